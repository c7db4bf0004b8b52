"""Acquisitions from archives on this machine, in their true formats, with faults: what comes out is what lies there."""

import hashlib
import io
import re
from concurrent.futures import ThreadPoolExecutor

import acquire
import laspy
import loopback
import numpy as np
import pyproj
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from loopback import geotiff, zipped
from odc.geo.geobox import GeoBox
from rasterio.transform import from_bounds, from_origin
from rasterio.warp import transform_bounds

from nbutils import labelling, legend, remote, sources
from nbutils.archives import clips, recipes
from nbutils.files import SourceError, fingerprint

UTM, FEET = "EPSG:26918", "EPSG:2263"
X, Y, WIDTH, HEIGHT = 586_000, 4_505_000, 260, 130  # north-west corner and size in metres
AREA = (X + 40, Y - 100, X + 225, Y - 30)  # of the wish, well inside


def degrees(box, crs=UTM):
    return transform_bounds(crs, "EPSG:4326", *box)


def land_cover(x, y):
    """Class of the City's legend (1..8) at places in metres: blocks of 20 m."""
    return (np.floor(x / 20).astype(int) * 3 + np.floor(y / 20).astype(int)) % 8 + 1


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """The files of a small city: orthophoto, land cover in feet in a zip, returns."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (4, HEIGHT, WIDTH), dtype=np.uint8)
    files = {
        "/west.tif": geotiff(photo[:, :, :150], UTM, from_origin(X, Y, 1, 1)),
        "/east.tif": geotiff(photo[:, :, 110:], UTM, from_origin(X + 110, Y, 1, 1)),
    }
    west, south, east, north = transform_bounds(UTM, FEET, X, Y - HEIGHT, X + WIDTH, Y)
    shape = (int((north - south) * 2), int((east - west) * 2))
    columns, rows = np.meshgrid(west + (np.arange(shape[1]) + 0.5) / 2, north - (np.arange(shape[0]) + 0.5) / 2)
    codes = land_cover(*pyproj.Transformer.from_crs(FEET, UTM, always_xy=True).transform(columns, rows))
    image = tmp_path_factory.mktemp("labels") / "NYC.img"
    image.write_bytes(geotiff(codes.astype(np.uint8)[None], FEET, from_origin(west, north, 0.5, 0.5), "HFA"))
    files["/Land_Cover.zip"] = zipped({"Land_Cover/NYC.img": image.read_bytes(), "Land_Cover/NYC.img.xml": b"<a/>"})
    points = {"x": X + rng.uniform(0, WIDTH, 40_000), "y": Y - rng.uniform(0, HEIGHT, 40_000),
              "z": rng.uniform(0, 9, 40_000)}  # fmt: skip
    for name, half in (("/p0.copc.laz", points["x"] < X + 130), ("/p1.copc.laz", points["x"] >= X + 130)):
        part = {key: values[half] for key, values in points.items()}
        files[name] = loopback.copc(**part, crs=f"{UTM}+5703", intensity=np.full(half.sum(), 7, np.uint16))
    return files, photo, points


@pytest.fixture(scope="module")
def running():
    with loopback.serving() as server:
        yield server


@pytest.fixture
def server(running, city, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0.001)
    monkeypatch.setattr(remote, "PAUSE_MOST_S", 0.01)
    for kept in (running.files, running.faults, running.items, running.log):
        kept.clear()
    running.token = "t0"
    running.files |= city[0] | {f"/signed{path}": data for path, data in city[0].items()}
    return running


def catalogue(server, below=""):
    """NAIP in two overlapping items and LiDAR in two, and a later survey that must not be mixed with it."""
    halves = [(X, Y - HEIGHT, X + 150, Y), (X + 110, Y - HEIGHT, X + WIDTH, Y)]
    for name, box in zip(("west", "east"), halves, strict=True):
        loopback.item(server, "naip", f"ny_{name}", degrees(box), {"image": f"{server.url}{below}/{name}.tif"},
                      **{"proj:epsg": 26918})  # fmt: skip
    for number in (0, 1):
        box = (X + 130 * number, Y - HEIGHT, X + 130 * (number + 1), Y)
        href = f"{server.url}{below}/p{number}.copc.laz"
        survey = {"3dep:usgs_id": "NY_NewYorkCity"}
        loopback.item(server, "3dep-lidar-copc", f"p{number}", degrees(box), {"data": href}, **survey)
    loopback.item(server, "3dep-lidar-copc", "old", degrees((X, Y - HEIGHT, X + WIDTH, Y)),
                  {"data": f"{server.url}/old.laz"}, **{"3dep:usgs_id": "older", "datetime": "2022-01-01T00:00:00Z",
                                                        "proj:epsg": 26918})  # fmt: skip


def wish(server, **changes):
    files = {"labels": f"{server.url}/Land_Cover.zip"}
    return recipes.Wish(**{"bbox": degrees(AREA), "api": server.api, "scene_px": 32, "files": files} | changes)


def grids(root):
    for folder in sorted((root / "scenes").iterdir()):
        with rasterio.open(folder / "image.tif") as data:
            yield folder, data.bounds, data.read()


# ---- New York -------------------------------------------------------------------------------------------------------
def test_new_york_in_one_command(server, city, tmp_path, capsys):
    catalogue(server)
    options = ["nyc", "--bbox", *map(str, degrees(AREA)), "--api", server.api, "--root", str(tmp_path / "nyc"),
               "--scene-px", "32", "--file", f"labels={server.url}/Land_Cover.zip"]  # fmt: skip
    assert acquire.main(options) == 3 and not (tmp_path / "nyc").exists()  # nobody there to agree
    told = capsys.readouterr()
    assert "public domain" in told.out and "labels: " in told.out and "--yes" in told.err
    assert acquire.main([*options, "--yes"]) == 0
    card = tmp_path / "nyc/nyc.yaml"
    assert capsys.readouterr().out.splitlines()[-1] == f"card     : {card}"
    _, photo, points = city
    dataset = sources.read_dataset(card)
    assert all(dataset.scenes(split) for split in sources.SPLITS) and dataset.scenes("test")[0].startswith("test-r000")
    seen = set()
    for folder, bounds, image in grids(tmp_path / "nyc"):
        left, top = int(bounds.left) - X, Y - int(bounds.top)
        assert (image == photo[:, top : top + 32, left : left + 32]).all()
        place = {(left + a, top + b) for a in range(32) for b in range(32)}
        assert not place & seen  # scenes do not share ground
        seen |= place
        columns, rows = np.meshgrid(bounds.left + np.arange(32) + 0.5, bounds.top - np.arange(32) - 0.5)
        with rasterio.open(folder / "exact.tif") as data:
            exact = data.read(1)
        expected = land_cover(columns, rows) - 1
        inner = (np.abs(columns % 20 - 10) < 9) & (np.abs(rows % 20 - 10) < 9)
        assert (exact[inner] == expected[inner]).all() and (exact == expected).mean() > 0.97
        cloud = laspy.read(folder / "points.laz")
        near = [(points[axis] >= low - 20) & (points[axis] <= high + 20) for axis, low, high in
                (("x", bounds.left, bounds.right), ("y", bounds.bottom, bounds.top))]  # fmt: skip
        assert abs(len(cloud) - (near[0] & near[1]).sum()) <= 5 and (cloud.intensity == 7).all()  # rounded to 1 cm
        assert cloud.header.parse_crs().sub_crs_list[0].to_epsg() == 26918
    assert len(seen) == 1024 * len(dataset.tiles) and not server.asked("old.laz")
    assert labelling.noisy_mask(dataset, dataset.tiles[0]).shape == (32, 32)
    for line in (tmp_path / "nyc/SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / "nyc" / name).read_bytes()).hexdigest() == digest
    assert sorted(p.name for p in (tmp_path / "nyc").iterdir()) == [
        "SHA256SUMS", "downloads", "nyc.yaml", "plan.json", "scenes"]  # fmt: skip


def test_a_terminal_shows_how_much_of_a_file_is_there_and_a_log_does_not(server, tmp_path, capsys, monkeypatch):
    catalogue(server)
    options = ["nyc", "--bbox", *map(str, degrees(AREA)), "--api", server.api, "--root", str(tmp_path / "nyc"), "--yes",
               "--scene-px", "32", "--file", f"labels={server.url}/Land_Cover.zip"]  # fmt: skip
    size = len(server.files["/Land_Cover.zip"])
    server.faults["/Land_Cover.zip"] = [None, ("cut", size // 2)] + [503] * 20
    assert acquire.main(options) == 1
    told = capsys.readouterr().err
    assert "Land_Cover.zip: " in told and "503" in told and "%" not in told
    server.faults.clear()
    monkeypatch.setattr(acquire.sys.stderr, "isatty", lambda: True)
    assert acquire.main(options) == 0
    told = capsys.readouterr()
    shares = [int(share) for share in re.findall(r"labels: +(\d+)%", told.err)]
    assert shares[0] == 50 and shares[-1] == 100 and shares == sorted(shares)
    assert "%" not in told.out and told.out.splitlines()[-1].startswith("card ")


def stop_after(number):
    def tell(line, left=[number]):  # noqa: B006
        left[0] -= line.startswith("scene")
        if left[0] < 0:
            raise KeyboardInterrupt

    return tell


def test_an_interrupted_acquisition_goes_on_and_ends_the_same(server, tmp_path):
    catalogue(server)
    whole = recipes.make_plan("nyc", wish(server), tmp_path / "whole")
    recipes.acquire(whole)
    plan = recipes.make_plan("nyc", wish(server), tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        recipes.acquire(plan, stop_after(1))
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "parts/scenes").glob("*/*")}
    assert len(first) == 6 and not (tmp_path / "parts/.making").exists()
    (tmp_path / "parts/.making").mkdir()  # as a killed process leaves it
    (tmp_path / "parts/.making/image.tif").write_bytes(b"half")
    path = "/p1.copc.laz"
    server.faults[path] = [None] * 8 + [503] * 200  # and then the server goes away in the middle
    server.items.clear()  # the plan is kept: nothing is searched again
    plan = recipes.make_plan("nyc", wish(server), tmp_path / "parts")
    with pytest.raises(SourceError, match="p1.copc.laz: .*503"):
        recipes.acquire(plan)
    assert all({p.name for p in f.iterdir()} == {"image.tif", "exact.tif", "points.laz"}
               for f in (tmp_path / "parts/scenes").iterdir())  # fmt: skip
    assert not (tmp_path / "parts/.making").exists()
    server.faults.clear()
    server.log.clear()
    lines = []
    recipes.acquire(recipes.make_plan("nyc", wish(server), tmp_path / "parts"), lines.append)
    assert all(p.stat().st_mtime_ns == then for p, then in first.items())
    assert not server.asked("/Land_Cover.zip")
    files = [sorted((tmp_path / name / "scenes").glob("*/*")) for name in ("whole", "parts")]
    assert fingerprint(files[0]) == fingerprint(files[1]) and len(files[0]) == 3 * len(whole.scenes)
    with pytest.raises(SourceError, match="holds another acquisition"):
        recipes.make_plan("nyc", wish(server, scene_px=16), tmp_path / "parts")


def test_signatures_that_expire_during_the_job_are_renewed(server, tmp_path, monkeypatch):
    kept = {"token": "t0"}

    def sign(href, renew):
        kept["token"] = server.token if renew else kept["token"]
        return f"{href}?sig={kept['token']}"

    monkeypatch.setattr(remote, "SIGNED_HOSTS", (server.url.removeprefix("http://"),))
    monkeypatch.setattr(remote, "_sign", sign)
    catalogue(server, "/signed")
    for path, token in (("/signed/p0.copc.laz", "t1"), ("/signed/p1.copc.laz", "t2")):
        server.faults[path] = [None] * 5 + [("call", lambda token=token: setattr(server, "token", token))]
    plan = recipes.make_plan("nyc", wish(server), tmp_path)
    assert "sig=" not in str(plan.scenes)
    recipes.acquire(plan)
    assert kept["token"] == "t2" and len(list((tmp_path / "scenes").iterdir())) == len(plan.scenes)


def test_items_without_the_asset_are_named_and_missing_ground_is_left_out(server, tmp_path):
    catalogue(server)
    loopback.item(server, "naip", "bare", degrees((X, Y - HEIGHT, X + WIDTH, Y)), {"thumbnail": "x.png"})
    server.items[:] = [item for item in server.items if item["id"] not in ("ny_east", "old")]
    plan = recipes.make_plan("nyc", wish(server), tmp_path)
    assert "naip item 'bare' has no asset image, only thumbnail" in plan.left_out
    assert [line for line in plan.left_out if "not covered by naip" in line] and len(plan.scenes) >= 3
    server.items[:] = [item for item in server.items if item["id"] == "bare"]
    with pytest.raises(SourceError, match="naip has nothing to use; naip item 'bare' has no asset image"):
        recipes.make_plan("nyc", wish(server), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("href", ["file:" + "///etc/passwd", "/etc/passwd", "../../../../etc/passwd"])
def test_links_of_an_item_never_open_a_file_of_this_machine(server, tmp_path, href):
    catalogue(server)
    entry = loopback.item(server, "naip", "../../evil", degrees((X, Y - HEIGHT, X + WIDTH, Y)), {"image": href},
                          **{"proj:epsg": 26918, "datetime": "2017-12-01T00:00:00Z"})  # fmt: skip
    entry["links"] = []
    with pytest.raises(SourceError, match="is not a web address"):
        recipes.make_plan("nyc", wish(server), tmp_path)


def test_wrong_labels_are_an_error_and_void_ground_is_left_out(server, tmp_path):
    catalogue(server)
    codes = np.full((1, 140, 270), 9, np.uint8)
    server.files["/9.zip"] = zipped({"a.tif": geotiff(codes, UTM, from_origin(X, Y, 1, 1))})
    plan = recipes.make_plan("nyc", wish(server, files={"labels": f"{server.url}/9.zip"}), tmp_path / "a")
    with pytest.raises(SourceError, match=r"values unknown to legend 'nyc8'.* 9 x 1024"):
        recipes.acquire(plan)
    codes[:, :, :72], codes[:, :, 72:] = 0, 4
    path = tmp_path / "labels.tif"  # a file of one's own instead of the City's
    path.write_bytes(geotiff(codes, UTM, from_origin(X, Y, 1, 1)))
    plan = recipes.make_plan("nyc", wish(server, files={"labels": str(path)}), tmp_path / "b")
    card, left_out = recipes.acquire(plan)
    assert left_out and all("no exact label of nyc8" in line for line in left_out)
    assert {t.scene for t in sources.read_dataset(card).tiles} == {
        s["name"] for s in plan.scenes} - {line.split(":")[0] for line in left_out}  # fmt: skip
    for data in (b"no zip", zipped({"a.txt": b""})):
        server.files["/bad.zip"] = data
        with pytest.raises(SourceError, match="labels: (cannot be read|holds no raster).*remove it"):
            recipes.acquire(recipes.make_plan("nyc", wish(server, files={"labels": f"{server.url}/bad.zip"}),
                                                tmp_path / hashlib.sha256(data).hexdigest()))  # fmt: skip


def test_points_that_are_no_copc_are_read_through_and_what_is_none_is_named(server, city, tmp_path):
    catalogue(server)
    cloud = laspy.read(io.BytesIO(city[0]["/p0.copc.laz"]))
    header = laspy.LasHeader(version="1.4", point_format=6)
    header.scales, header.offsets = cloud.header.scales, cloud.header.offsets
    header.add_crs(cloud.header.parse_crs())
    plain, stream = laspy.LasData(header, cloud.points), io.BytesIO()
    plain.write(stream, do_compress=True, laz_backend=laspy.LazBackend.Lazrs)
    plan = recipes.make_plan("nyc", wish(server), tmp_path / "copc")
    recipes.acquire(plan)
    server.files["/p0.copc.laz"] = stream.getvalue()
    recipes.acquire(recipes.make_plan("nyc", wish(server), tmp_path / "laz"))
    for path in (tmp_path / "copc/scenes").glob("*/points.laz"):
        other = laspy.read(tmp_path / "laz" / path.relative_to(tmp_path / "copc"))
        ours = laspy.read(path)
        assert sorted(zip(ours.X, ours.Y, ours.Z, strict=True)) == sorted(zip(other.X, other.Y, other.Z, strict=True))
    server.files["/p0.copc.laz"] = b"<html>busy</html>" * 100
    with pytest.raises(SourceError, match="p0.copc.laz: cannot be read as LAS, LAZ or COPC"):
        recipes.acquire(recipes.make_plan("nyc", wish(server), tmp_path / "bad"))


def test_returns_of_the_neighbouring_zone_come_to_lie_where_they_are(city, tmp_path):
    files, _, points = city
    east, units = points["x"] >= X + 130, [("EPSG:26919+5703", 1.0), ("EPSG:26919+6360", 3937 / 1200)]
    x, y = pyproj.Transformer.from_crs(UTM, "EPSG:26919", always_xy=True).transform(
        points["x"][east], points["y"][east]
    )
    (tmp_path / "p0.laz").write_bytes(files["/p0.copc.laz"])
    for name, (crs, unit) in zip("12", units, strict=True):
        (tmp_path / f"p{name}.laz").write_bytes(loopback.copc(x, y, points["z"][east] * unit, crs))
    grid = GeoBox.from_bbox((X, Y - HEIGHT, X + WIDTH, Y), UTM, resolution=1)
    hrefs = [str(tmp_path / f"p{number}.laz") for number in (0, 1, 2)]
    assert clips.copy_points(hrefs[:2], grid, tmp_path / "out.laz", 5) == len(points["x"])
    found = laspy.read(tmp_path / "out.laz")
    assert found.header.parse_crs() == pyproj.CRS(f"{UTM}+5703")
    for name in "xyz":
        assert np.abs(np.sort(found[name]) - np.sort(points[name])).max() < 0.02
    with pytest.raises(SourceError, match=r"p2.laz: is in .*\(metre, metre, US survey foot\), the first file in "):
        clips.copy_points([hrefs[0], hrefs[2]], grid, tmp_path / "feet.laz", 5)


def test_two_acquisitions_of_one_area_wait_for_each_other_and_end_whole(server, tmp_path):
    catalogue(server)
    plans = [recipes.make_plan("nyc", wish(server), tmp_path / "both") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        cards = [pool.submit(recipes.acquire, plan) for plan in plans]
    alone = recipes.make_plan("nyc", wish(server), tmp_path / "alone")
    recipes.acquire(alone)
    assert len({card.result()[0] for card in cards}) == 1
    sums = [(tmp_path / name / "SHA256SUMS").read_text() for name in ("both", "alone")]
    assert sums[0] == sums[1] and not (tmp_path / "both/.making").exists()


# ---- Sentinel-2 -----------------------------------------------------------------------------------------------------
def sentinel(server):
    """Images in two tiles of one overpass, a cloudier one before, WorldCover in degrees, the Esri map in UTM."""
    rng = np.random.default_rng(1)
    truth = rng.integers(1, 3000, (12, 160, 320), dtype=np.uint16)
    for half, (start, stop) in {"a": (0, 185), "b": (180, 320)}.items():
        hrefs = {}
        for number, band in enumerate((*recipes._S2_BANDS, "SCL")):
            pixels = np.full((1, 160, stop - start), 4, np.uint8) if band == "SCL" else (
                truth[number : number + 1, :, start:stop] + np.uint16(1000))  # fmt: skip
            if band == "SCL":
                pixels[:, 60:70] = 9
            path = f"/s2/{half}/{band}.tif"
            server.files[path] = geotiff(pixels, UTM, from_origin(X + 10 * start, Y, 10, 10))
            hrefs[band] = server.url + path
        box = degrees((X + 10 * start, Y - 1600, X + 10 * stop, Y))
        about = {"proj:epsg": 26918, "s2:processing_baseline": "05.09", "s2:datatake_id": "one", "eo:cloud_cover": 3,
                 "datetime": "2021-07-01T00:00:00Z"}  # fmt: skip
        loopback.item(server, "sentinel-2-l2a", f"S2_{half}", box, hrefs, **about)
        worse = about | {"eo:cloud_cover": 8, "s2:datatake_id": "two", "datetime": "2021-08-01T00:00:00Z"}
        loopback.item(server, "sentinel-2-l2a", f"S2_{half}_hazy", box,
                      {key: f"{server.url}/none.tif" for key in hrefs}, **worse)  # fmt: skip
    whole = (X - 500, Y - 2000, X + 3700, Y + 500)
    west, south, east, north = degrees(whole)
    cover = np.repeat(np.array([[[10, 40, 50, 80] * 150]], np.uint8), 300, axis=1)
    server.files["/wc.tif"] = geotiff(cover, "EPSG:4326", from_bounds(west, south, east, north, 600, 300))
    loopback.item(server, "esa-worldcover", "wc", (west, south, east, north), {"map": f"{server.url}/wc.tif"},
                  datetime="2021-06-15T00:00:00Z")  # fmt: skip
    esri = np.repeat(np.repeat(rng.choice([1, 2, 5, 7, 11], (1, 50, 84)).astype(np.uint8), 5, 1), 5, 2)
    server.files["/io.tif"] = geotiff(esri, UTM, from_origin(whole[0], whole[3], 10, 10), nodata=0)
    loopback.item(server, "io-lulc-annual-v02", "io", (west, south, east, north), {"data": f"{server.url}/io.tif"},
                  datetime="2021-06-15T00:00:00Z")  # fmt: skip
    return truth, esri


def test_sentinel2_with_two_maps(server, tmp_path):
    truth, esri = sentinel(server)
    asked = recipes.Wish(bbox=degrees((X + 1300, Y - 750, X + 2400, Y - 50)), api=server.api, scene_px=32)
    plan = recipes.make_plan("sentinel2", asked, tmp_path)
    card, left_out = recipes.acquire(plan)
    dataset = sources.read_dataset(card)
    assert len(dataset.tiles) == len(plan.scenes) == 6 and not left_out and not server.asked("/none.tif")
    clouds = 0
    for tile in dataset.tiles:
        image, grid = dataset.read_image(tile)
        left, top = round((grid.transform.c - X) / 10), round((Y - grid.transform.f) / 10)
        expected = truth[:, top : top + 32, left : left + 32].astype(int)
        cloudy = np.isin(np.arange(top, top + 32), np.arange(60, 70))
        clouds += cloudy.sum()
        assert (image[:, ~cloudy] == expected[:, ~cloudy]).all() and (image[:, cloudy] == 0).all()
        with rasterio.open(tile.noisy) as data:  # as it is, on its own grid, and wide enough
            row, column = round((Y + 500 - data.transform.f) / 10), round((data.transform.c - X + 500) / 10)
            assert (data.read(1) == esri[0, row : row + data.height, column : column + data.width]).all()
            product = esri[0, top + 50 : top + 82, left + 50 : left + 82]
            assert (labelling.noisy_mask(dataset, tile) == legend.get("esri9").encode(product)).all()
            assert (top + 50 - row, left + 50 - column) == (3, 3) and data.shape == (38, 38) and data.nodata == 0
        longitude = pyproj.Transformer.from_crs(UTM, "EPSG:4326", always_xy=True).transform(
            *np.meshgrid(grid.transform.c + 10 * np.arange(32) + 5, grid.transform.f - 10 * np.arange(32) - 5)
        )[0]
        west, _, east, _ = degrees((X - 500, Y - 2000, X + 3700, Y + 500))
        column = (longitude - west) / (east - west) * 600
        codes = np.array([10, 40, 50, 80])[np.floor(column).astype(int) % 4]
        sure = np.abs(column % 1 - 0.5) < 0.45
        exact = sources.read_exact(dataset, tile)
        assert (exact[sure] == legend.get("worldcover11").encode(codes)[sure]).all()
    assert clouds


# ---- plans ----------------------------------------------------------------------------------------------------------
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), gaps=st.sets(st.integers(0, 143), max_size=40))
def test_splits_are_bands_at_one_end_of_the_longer_side(rows, columns, gaps):
    scenes = [{"row": r, "column": c} for r in range(rows) for c in range(columns) if r * 12 + c not in gaps]
    along = "column" if len({s["column"] for s in scenes}) > len({s["row"] for s in scenes}) else "row"
    if max(len({s["row"] for s in scenes}), len({s["column"] for s in scenes}), 0) < 3:
        with pytest.raises(ValueError, match="at least 3 are needed"):
            recipes._split(scenes, ())
        return
    named = recipes._split(scenes, ())
    ends = {
        split: [s[along] for s in named if s["name"].startswith(split)] for split in ("train", "validation", "test")
    }
    assert max(ends["train"]) < min(ends["validation"]) <= max(ends["validation"]) < min(ends["test"])
    assert len({s["name"] for s in named}) == len(scenes)


def test_wrong_wishes_are_told_before_anything_is_fetched(server, tmp_path, capsys):
    catalogue(server)
    for wrong, told in (
        (["paris"], "no archive 'paris'; there are nyc, sentinel2"),
        (["nyc"], "nyc needs an area"),
        (["nyc", "--bbox", "1", "0", "0", "1"], "nyc needs an area"),
        (["nyc", "--bbox", *map(str, degrees(AREA)), "--api", server.api, "--scene-px", "64"], "at least 3 are needed"),
        (["nyc", "--file", "lables=x"], "nyc takes no file lables; it takes images, labels"),
        (["nyc", "--file", "labels"], "--file takes NAME=PATH"),
    ):
        assert acquire.main([*wrong, "--root", str(tmp_path / "x"), "--yes"]) == 2
        assert told in capsys.readouterr().err and not (tmp_path / "x").exists()
    gone = ["nyc", "--bbox", *map(str, degrees(AREA)), "--root", str(tmp_path / "x"), "--yes"]
    assert acquire.main([*gone, "--api", f"{server.url}/none"]) == 1
    assert "search for naip failed" in capsys.readouterr().err
    assert acquire.main(["--list"]) == 0
    told = capsys.readouterr().out
    assert all(
        name in told and sources.load_card(f"data/datasets/{name}.yaml").licence in told for name in recipes.RECIPES
    )


def test_a_size_that_the_server_does_not_tell_is_the_published_one_or_said_not_to_be(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(remote, "size_of", lambda href: None)
    own = tmp_path / "DFC2020.zip"
    own.write_bytes(bytes(7))
    assert acquire.main(["ssl4eo_dfc2020", "--file", f"dfc2020={own}", "--parts", "12", "--root", str(tmp_path)]) == 3
    told = capsys.readouterr().out
    assert "fetches  : nol: size not published, and the server does not tell it\n" in told
    assert "fetches  : dfc2020: 7 B\n" in told and "fetches  : images-01: 48.3 GB\n" in told
    parts = [piece.size for piece in recipes.RECIPES["ssl4eo_dw"].pieces if piece.name.startswith("images")]
    assert len(parts) == 12 and round(sum(parts) / 1e9) == 557


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_has_a_card_and_links_that_may_be_fetched(name):
    card = sources.load_card(f"data/datasets/{name}.yaml")
    assert card.name == name and card.get.startswith(f"python tools/acquire.py {name}")
    for piece in recipes.RECIPES[name].pieces:
        assert piece.page.startswith("https://") and (piece.url or "https://").startswith("https://")
        assert piece.sha256 is None or len(bytes.fromhex(piece.sha256)) == 32
