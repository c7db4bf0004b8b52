"""The embedded city: whole, repeatable, varied, and on one ground."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import geopandas as gpd
import laspy
import numpy as np
import pystac
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.features import rasterize

from nbutils import ROOT, cards, files, labelling, legend, simulate
from nbutils.lidar.points import read_points
from nbutils.worlds import city
from nbutils.worlds.canvas import BUILDING, MARGIN_M, ROAD, STEP_M, WATER, Canvas, Streets, smooth_noise

SMALL = {"seed": 5, "pretrain": 2, "finetune": 1, "validation": 1, "test": 1, "size_px": 128}
NAMES = ["pretrain-00", "pretrain-01", "finetune-00", "validation-00", "test-00"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("worlds") / "a.small.city"  # a name with dots
    catalog = simulate.write_world(root, **SMALL, workers=1)
    assert catalog == root / "catalog.json"
    return root


def _contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_catalogue_opens_and_every_link_is_relative_and_leads_somewhere(world):
    catalog = pystac.Catalog.from_file(str(world / "catalog.json"))
    items = list(catalog.get_items())
    assert [item.id for item in items] == NAMES
    for path in world.rglob("*.json"):
        for link in json.loads(path.read_text()).get("links", []):
            assert "://" not in link["href"] and not link["href"].startswith("/"), (path, link)
    for item in items:
        assert set(item.assets) == {"image", "exact", "points", "footprints"}
        assert all(Path(asset.get_absolute_href()).is_file() for asset in item.assets.values())
        assert item.properties["proj:code"] == "EPSG:32618" and item.properties["proj:shape"] == [128, 128]
        west, south, east, north = item.bbox
        assert -75 < west < east < -73 and 40 < south < north < 41


def test_rasters_are_tiled_cogs_with_overviews(world):
    with (
        rasterio.open(world / "test-00" / "image.tif") as image,
        rasterio.open(world / "test-00" / "exact.tif") as exact,
    ):
        assert image.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == exact.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert image.descriptions == simulate.BANDS and image.dtypes[0] == "uint8"
        assert exact.nodata == 255 and exact.colormap(1)[3][:3] == legend.get("nyc8").colours[3]
        assert (image.crs, image.transform, image.shape) == (exact.crs, exact.transform, exact.shape)
        assert image.crs.to_epsg() == 32618 and image.res == (1, 1)
    assert files.read_image(world / "test-00" / "image.tif")[0].shape == (4, 128, 128)  # no band taken for alpha


def test_files_follow_the_umask(world, tmp_path):
    (tmp_path / "plain").touch()
    assert {p.stat().st_mode for p in world.rglob("*.tif")} == {(tmp_path / "plain").stat().st_mode}


def test_large_rasters_have_overviews(tmp_path):
    image = np.zeros((4, 384, 384), np.uint8)
    simulate._write_image(tmp_path / "image.tif", image, simulate.scene_grid(0, 384))
    with rasterio.open(tmp_path / "image.tif") as data:
        assert data.overviews(1) and data.block_shapes[0] == (128, 128)


def test_points_lie_on_the_image_and_are_unclassified(world):
    grid = files.read_image(world / "test-00" / "image.tif")[1]
    with laspy.open(world / "test-00" / "points.laz") as file:
        assert file.header.parse_crs().to_epsg() == 32618
    points = read_points(world / "test-00" / "points.laz")
    west, south, east, north = grid.extent.boundingbox
    assert points.x.min() >= west - 0.01 and points.x.max() <= east + 0.01
    assert points.y.min() >= south - 0.01 and points.y.max() <= north + 0.01
    assert points.classification is None
    assert 2.5 < len(points) / 128**2 < 8
    assert (points.return_number >= 1).all() and (points.return_number <= points.number_of_returns).all()
    assert 0.03 < (points.number_of_returns > 1).mean() < 0.7


def test_footprints_and_cover_agree(world):
    buildings = gpd.read_file(world / "test-00" / "footprints.gpkg", layer="buildings")
    roads = gpd.read_file(world / "test-00" / "footprints.gpkg", layer="roads")
    with rasterio.open(world / "test-00" / "exact.tif") as data:
        exact, transform = data.read(1), data.transform
    drawn = rasterize(buildings.geometry, exact.shape, transform=transform).astype(bool)
    covered = exact[drawn]
    assert np.isin(covered, [4, 0]).mean() > 0.85  # buildings, or the crowns above them
    assert (exact == 4)[~drawn].sum() < 0.25 * (exact == 4).sum()
    lines = rasterize(roads.geometry, exact.shape, transform=transform).astype(bool)
    assert np.isin(exact[lines], [5, 0]).mean() > 0.7
    assert (buildings.height_m > 0).all() and (roads.width_m > 5).all()


def test_a_world_is_the_same_with_any_number_of_processes(world, tmp_path):
    simulate.write_world(tmp_path / "again", **SMALL, workers=2)
    assert _contents(tmp_path / "again") == _contents(world)


def test_scenes_differ_and_do_not_repeat_each_other():
    scenes = [simulate.city_scene(np.random.SeedSequence(1, spawn_key=(0, i)), 96, i) for i in range(4)]
    for i, a in enumerate(scenes):
        for b in scenes[:i]:
            same = [
                (a.exact == turned).mean()
                for k in range(4)
                for turned in (np.rot90(b.exact, k), np.rot90(b.exact.T, k))
            ]
            assert max(same) < 0.9
            assert not np.array_equal(a.image, b.image)
    twice = simulate.city_scene(np.random.SeedSequence(1, spawn_key=(0, 2)), 96, 2)
    assert np.array_equal(twice.image, scenes[2].image) and np.array_equal(twice.points.z, scenes[2].points.z)


def test_asking_for_a_scene_leaves_the_seed_as_it_was():
    seed = np.random.SeedSequence(4)
    first = simulate.city_scene(seed, 64)
    assert np.array_equal(first.image, simulate.city_scene(seed, 64).image)


def test_shares_heights_and_colours_are_plausible():
    scenes = [simulate.city_scene(np.random.SeedSequence(2, spawn_key=(0, i)), 160, i) for i in range(6)]
    exact = np.stack([s.exact for s in scenes])
    shares = np.bincount(exact.ravel(), minlength=8) / exact.size
    for name, low, high in (
        ("tree canopy", 0.08, 0.40), ("grass/shrub", 0.08, 0.45), ("water", 0.003, 0.2), ("buildings", 0.06, 0.40),
        ("roads", 0.08, 0.35), ("other impervious", 0.04, 0.35), ("railroads", 0.002, 0.12),
    ):  # fmt: skip
        assert low < shares[legend.get("nyc8").index(name)] < high, (name, shares)
    height = np.stack([s.height for s in scenes])
    assert height.min() >= 0 and height.max() < 90
    assert (
        np.median(height[exact == 4]) > 3 and np.median(height[exact == 0]) > 3 and np.median(height[exact == 5]) < 0.2
    )
    image = np.stack([s.image for s in scenes]).astype(float)
    ndvi = (image[:, 0] - image[:, 1]) / (image[:, 0] + image[:, 1])
    assert ndvi[exact == 1].mean() > ndvi[exact == 5].mean() + 0.15
    assert 40 < image.mean() < 160 and (image >= 254).mean() < 0.03


def test_colour_alone_does_not_solve_it():
    """The best single-pixel rule over a fine colour histogram errs on a fifth of buildings, roads and pavement."""
    made = [simulate.city_scene(np.random.SeedSequence(3, spawn_key=(0, i)), 160, i) for i in range(6)]
    codes = [(s.image.astype(int) // 16 * np.array([4096, 256, 16, 1])[:, None, None]).sum(0).ravel() for s in made]
    table = np.zeros((65536, 8))
    for code, scene in zip(codes[:-1], made[:-1], strict=True):
        np.add.at(table, (code, scene.exact.ravel()), 1)
    guess, truth = table.argmax(1)[codes[-1]], made[-1].exact.ravel()
    sealed = np.isin(truth, [4, 5, 6])
    assert (guess == truth)[sealed].mean() < 0.8


@pytest.mark.parametrize("seed", [5, 9, 10, 11, 12])
@pytest.mark.parametrize("style", city.STYLES)
def test_nothing_is_built_on_water(seed, style):
    canvas = city.build_city(np.random.default_rng(seed), 208, style, river=True, rail=False)
    assert canvas.river.any() and (canvas.cover == BUILDING).any()
    assert np.isin(canvas.cover[canvas.river], [WATER, ROAD]).all()  # the river itself and the bridges over it
    assert (canvas.top[canvas.cover == WATER] == 0).all()  # no house, car or container stands in it
    cells = Affine(STEP_M, 0, -MARGIN_M, 0, STEP_M, -MARGIN_M)
    outlines = [shapely.Polygon(part["corners"]) for part in canvas.buildings]
    drawn = rasterize(outlines, canvas.cover.shape, transform=cells).astype(bool)
    assert not (drawn & canvas.river).any() and not (drawn & (canvas.cover == WATER)).any()


def test_no_wing_of_a_building_reaches_far_onto_a_street():
    canvas = Canvas(64)
    canvas.barred[:, 60:] = True
    assert not canvas.building(20, 20, 0.0, 6, 4, 8, 0, wing=True)
    assert canvas.building(5, 20, 0.0, 6, 4, 8, 0, wing=True)


def test_shadows_fall_away_from_the_sun():
    canvas = Canvas(64)
    canvas.top[60:70, 60:70] = 20
    from nbutils.worlds import sensors

    light = sensors._sunlight(canvas, (180.0, 45.0), np.random.default_rng(0))
    north, south = light[30:55, 62:68].mean(), light[75:100, 62:68].mean()
    assert north < 0.3 < 0.9 < south


def test_lidar_of_a_plane_is_the_plane():
    from nbutils.worlds import sensors

    canvas = Canvas(64)
    canvas.terrain += 7.0
    points = sensors.scan(canvas, np.full((canvas.n, canvas.n), 0.3, np.float32), np.random.default_rng(0))
    assert abs(np.median(points.z) - 7) < 0.01 and 0.03 < np.std(points.z[np.abs(points.z - 7) < 0.5]) < 0.06
    assert (points.number_of_returns == 1).all()


def test_streets_map_there_and_back():
    streets = Streets.draw(np.random.default_rng(0), 384, "suburb")
    x, y = np.random.default_rng(1).uniform(0, 384, (2, 50))
    u, v = streets.to_uv(x, y)
    there = np.stack(streets.to_xy(u, v))
    assert np.abs(there - np.stack([x, y])).max() < 0.02
    assert np.allclose(streets.place(float(u[0]), float(v[0]))[:2], [x[0], y[0]], atol=0.05)


def test_smooth_noise_is_smooth_and_standardised():
    noise = smooth_noise(np.random.default_rng(0), 400, 8)
    assert abs(noise.mean()) < 0.1 and 0.7 < noise.std() < 1.3
    assert np.abs(np.diff(noise, axis=0)).max() < 0.8


def test_small_scenes_are_refused():
    with pytest.raises(ValueError, match="at least 48, got 20"):
        simulate.city_scene(0, 20)


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="world.json"):
        simulate.write_world(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def _card(root: Path, **changes) -> cards.Card:
    return cards.Card.model_validate({
        "name": "tiny", "licence": "CC0", "get": "generated", "root": str(root), "catalog": "catalog.json",
        "world": {"generator": "city", "seed": 1, "pretrain": 1, "finetune": 1, "validation": 1, "test": 1,
                  "size_px": 64, **changes},
        "images": {"asset": "image", "bands": ["nir", "red", "green", "blue"], "scale": 255},
        "exact": {"asset": "exact", "coding": "index", "legend": "nyc8"},
        "noisy": {"from": "lidar", "asset": "points"},
        "split": {"test": ["test-*"], "validation": ["validation-*"]},
    })  # fmt: skip


def test_ensure_world_makes_it_once_and_again_when_something_changed(tmp_path, monkeypatch):
    root, calls = tmp_path / "w", []
    write = simulate.write_world

    def counted(*args, **kwargs):
        calls.append(kwargs["seed"])
        return write(*args, **{**kwargs, "workers": 1})

    monkeypatch.setattr(simulate, "write_world", counted)
    simulate.ensure_world(_card(root))
    simulate.ensure_world(_card(root))
    assert calls == [1]
    simulate.ensure_world(_card(root, seed=2))
    assert calls == [1, 2] and json.loads((root / "world.json").read_text())["seed"] == 2
    (root / "catalog.json").unlink()
    simulate.ensure_world(_card(root, seed=2))
    assert calls == [1, 2, 2] and (root / "catalog.json").is_file()
    assert not list(tmp_path.glob(".*tmp"))


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "write_scene", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        simulate.write_world(tmp_path / "w", **SMALL)
    assert not list(tmp_path.iterdir())


def test_failing_process_says_what_it_said(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="failed with code 1"):
        simulate.write_world(tmp_path / "w", **SMALL, workers=2)
    assert not (tmp_path / "w").exists()


def test_killed_writer_leaves_no_world_and_the_next_one_sweeps(tmp_path):
    code = f"from nbutils import simulate; simulate.write_world({str(tmp_path / 'w')!r}, **{SMALL!r}, workers=1)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".w.*.tmp/pretrain-00/image.tif")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "w").exists() and list(tmp_path.glob(".w.*.tmp"))
    simulate._sweep(tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_noisy_labels_are_useful_and_wrong(world):
    lookup = legend.crosswalk(legend.get("nyc8"), legend.get("autogeo4"), legend.CROSSWALKS[("nyc8", "autogeo4")])
    right = known = 0
    for name in NAMES:
        grid = files.read_image(world / name / "image.tif")[1]
        mask = labelling.from_lidar(read_points(world / name / "points.laz"), grid).mask
        with rasterio.open(world / name / "exact.tif") as data:
            exact = lookup[data.read(1)]
        right, known = right + ((mask == exact) & (mask != 255)).sum(), known + (mask != 255).sum()
    assert 0.7 < right / known < 0.95


def test_committed_sample_is_what_its_readme_says(tmp_path):
    sample = ROOT / "data/sample"
    assert sum(path.stat().st_size for path in sample.iterdir()) < 200_000
    simulate.write_scene(tmp_path, simulate.city_scene(21, 80, index=4), simulate.scene_grid(0, 80), footprints=False)
    for name in ("image.tif", "exact.tif"):
        with rasterio.open(sample / name) as kept, rasterio.open(tmp_path / name) as made:
            assert kept.transform == made.transform and kept.crs == made.crs
            assert (kept.read() == made.read()).mean() > 0.99  # other processors may round the last bit differently
    assert abs(len(read_points(sample / "points.laz")) / len(read_points(tmp_path / "points.laz")) - 1) < 0.01


def test_two_processes_that_want_one_world_write_it_once(tmp_path, monkeypatch):
    """While one holds the folder another waits, and then finds the world there."""
    order = []

    def wait_and_look():
        with files.alone(tmp_path):
            order.append("second")

    with files.alone(tmp_path):
        second = threading.Thread(target=wait_and_look)
        second.start()
        second.join(0.3)
        order.append("first")
    second.join(5)
    assert order == ["first", "second"] and list(tmp_path.iterdir()) == []
