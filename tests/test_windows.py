"""Windows: a part reads as the same part of the whole, here and over http, and cutting reads no more than it must."""

import ast
import json
import os
import textwrap
from functools import cache
from pathlib import Path

import geopandas
import loopback
import numpy as np
import pystac
import pytest
import rasterio
import rasterio.shutil
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from PIL import Image
from rasterio.windows import Window

from nbutils import files, labelling, legend, patches, remote, shards, sources, windows
from nbutils.legend import VOID
from nbutils.sources import Masks, SourceError

AUTOGEO = legend.get("autogeo4")
SHAPE = (60, 70)
GRID = GeoBox.from_bbox((500000, 4000000, 500070, 4000060), "EPSG:32618", resolution=1)


def write(path: Path, pixels: np.ndarray, geobox: GeoBox = GRID, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = {"transform": geobox.transform, "crs": str(geobox.crs)}
    profile = {"driver": "GTiff", "count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}
    with rasterio.open(path, "w", dtype=pixels.dtype, **profile, **grid, **more) as data:
        data.write(pixels)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Images with every kind of hole: nodata, NaN, alpha, near infrared that looks like alpha, none."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    byte = rng.integers(0, 255, (4, *SHAPE), dtype=np.uint8)
    alpha = np.where(rng.random((1, *SHAPE)) < 0.5, 0, 255).astype(np.uint8)
    real = rng.random((2, *SHAPE)).astype(np.float32)
    real[1, rng.random(SHAPE) < 0.2] = np.nan
    Image.fromarray(byte.transpose(1, 2, 0)).save(folder / "rgba.png")
    Image.fromarray(byte[:3].transpose(1, 2, 0)).save(folder / "rgb.jpg")
    return [
        write(folder / "nodata.tif", byte.astype(np.int16) % 5 - 1, nodata=-1),
        write(folder / "nan.tif", real, tiled=True, blockxsize=16, blockysize=16),
        write(folder / "alpha.tif", np.r_[byte[:3], alpha]),
        write(folder / "infrared.tif", byte),
        folder / "rgba.png",
        folder / "rgb.jpg",
    ]


@st.composite
def parts(draw) -> tuple[slice, slice]:
    ends = [sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in SHAPE]
    return tuple(slice(*pair) for pair in ends)


@settings(max_examples=40)
@given(parts(), st.sampled_from(range(6)), st.booleans())
def test_a_window_is_that_part_of_the_whole(images, part, which, slices):
    path, given_as = images[which], part if slices else Window.from_slices(*part)
    pixels, geobox = sources.read_image(path)
    inside, grid = sources.read_image(path, window=given_as)
    assert np.array_equal(inside, pixels[(slice(None), *part)])
    assert np.array_equal(sources.read_valid(path, given_as), sources.read_valid(path)[part])
    assert grid == (None if geobox is None else geobox[part])
    with sources.open_raster(path) as raster:
        assert raster.shape == SHAPE and raster.dtype == pixels.dtype and raster.count == len(pixels)
        assert np.array_equal(raster.read(given_as, bands=[2, 1]), pixels[[1, 0]][(slice(None), *part)])


@settings(max_examples=40)
@given(parts(), st.sampled_from(["index.tif", "colour.tif", "palette.png", "grey.png"]))
def test_a_window_of_a_mask_is_that_part_of_it(tmp_path_factory, part, name):
    folder = tmp_path_factory.getbasetemp() / "masks"
    mask = np.random.default_rng(0).integers(0, 4, SHAPE, dtype=np.uint8)
    mask[5:9] = VOID
    if not folder.exists():
        sources.write_mask(folder / "index.tif", mask, GRID, AUTOGEO)
        write(folder / "colour.tif", AUTOGEO.to_rgb(mask).transpose(2, 0, 1))
        Image.fromarray(AUTOGEO.to_rgb(mask)).quantize(8).save(folder / "palette.png")
        Image.fromarray(mask).save(folder / "grey.png")
    colour = name in ("colour.tif", "palette.png")
    void = [legend.VOID_COLOUR] if colour else []
    spec = Masks(glob="*", coding="colour" if colour else "index", legend="autogeo4", void=void)
    assert np.array_equal(sources.read_mask(folder / name, spec, AUTOGEO, SHAPE, part), mask[part])


@pytest.mark.parametrize(
    "window",
    [
        (slice(0, 61), slice(0, 9)),
        (slice(-5, None), slice(0, 9)),
        (slice(3, 3), slice(0, 9)),
        (slice(0, 9, 2), slice(0, 9)),
        Window(-1, 0, 5, 5),
        Window(66, 0, 5, 5),
    ],
)
def test_windows_that_stick_out_are_refused(images, window):
    for path in (images[0], images[-1]):
        with pytest.raises(ValueError, match=r"does not lie within \(60, 70\)"):
            sources.read_image(path, window=window)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 50), st.integers(1, 5000))
def test_strips_cover_the_rows_once_in_whole_windows(height, width, size, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "STRIP_PX", most)
        rows = list(files.strips((height, width), size))
    assert [r for strip in rows for r in range(strip.start, strip.stop)] == list(range(height))
    assert all((r.stop - r.start) % size == 0 for r in rows[:-1])
    assert all((r.stop - r.start) * width <= max(most, size * width) for r in rows)


def test_alpha_is_told_from_near_infrared_by_the_whole_band(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "STRIP_PX", SHAPE[1] * 4)
    pixels = np.full((4, *SHAPE), 255, np.uint8)
    pixels[3, -1, -1] = 7  # one value between, in the last strip
    path = write(tmp_path / "a.tif", pixels)
    part = (slice(0, 5), slice(0, 5))
    assert len(sources.read_image(path, window=part)[0]) == 4
    pixels[3, -1, -1] = 0
    assert len(sources.read_image(write(path, pixels), window=part)[0]) == 3


def test_bands_have_names(tmp_path):
    path = write(tmp_path / "a.tif", np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((3, *SHAPE), np.uint8))
    with rasterio.open(path, "r+") as data:
        data.descriptions = ("B02", "B03", "B04")
    with sources.open_raster(path) as raster:
        assert raster.bands == ("B02", "B03", "B04") and raster.read(bands=["B04", "B02"])[:, 0, 0].tolist() == [2, 0]
        with pytest.raises(SourceError, match=r"bands 1..3, asked for \['B08'\], named B02, B03, B04"):
            raster.read(bands=["B08"])


# --- over http


@pytest.fixture
def server(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4000, (3, 1024, 1024), dtype=np.uint16)
    grid = GeoBox.from_bbox((500000, 4000000, 510240, 4010240), "EPSG:32618", resolution=10)
    write(tmp_path / "plain.tif", pixels, grid)
    rasterio.shutil.copy(tmp_path / "plain.tif", tmp_path / "cog.tif", driver="COG", compress="deflate", blocksize=128)
    with loopback.serving() as running:
        for folder in ("", "/signed"):
            running.files[f"{folder}/cog.tif"] = (tmp_path / "cog.tif").read_bytes()
        running.pixels, running.grid = pixels, grid
        yield running


def test_a_window_over_http_is_the_same_and_fetches_little(server, tmp_path):
    part = (slice(300, 420), slice(500, 600))
    with sources.open_raster(f"{server.url}/cog.tif") as raster:
        assert raster.shape == (1024, 1024) and raster.geobox == server.grid
        assert np.array_equal(raster.read(part), server.pixels[(slice(None), *part)])
    asked = [about.get("Range", "bytes=0-99999999") for how, _, about in server.log if how == "GET"]
    ends = [[int(end) for end in one.removeprefix("bytes=").split("-")] for one in asked]
    assert 0 < sum(last - first for first, last in ends) < len(server.files["/cog.tif"]) / 4
    item = pystac.Item("here", None, None, None, {"start_datetime": "2024-01-01", "end_datetime": "2024-01-02"})
    item.add_asset("visual", pystac.Asset(f"{server.url}/cog.tif"))
    item.add_asset("local", pystac.Asset(str(tmp_path / "plain.tif")))
    for asset in ("visual", "local"):
        with sources.open_raster(item, asset) as raster:
            assert np.array_equal(raster.read(part, bands=[2])[0], server.pixels[1][part])
    with pytest.raises(SourceError, match="item 'here' has no asset 'B04', only visual, local"):
        sources.open_raster(item, "B04")


def test_what_a_server_does_not_have_is_named_without_its_signature(server):
    with pytest.raises(SourceError, match=rf"{server.url}/none.tif: cannot be read.*check the address") as error:
        sources.open_raster(f"{server.url}/none.tif?sig=secret")
    assert "secret" not in str(error.value)


def test_a_signature_that_expires_while_reading_is_renewed_once(server, monkeypatch):
    monkeypatch.setattr(remote, "SIGNED_HOSTS", (server.url.removeprefix("http://"),))
    monkeypatch.setattr(remote, "_sign", lambda href, renew: renewed.append(renew) or f"{href}?sig={server.token}")
    renewed, address = [], f"{server.url}/signed/cog.tif"
    with sources.open_raster(address) as raster:
        server.token = "t1"
        assert np.array_equal(raster.read(), server.pixels)
        assert renewed == [False, True]
    server.files["/signed/other.tif"] = server.files["/cog.tif"]
    with sources.open_raster(f"{server.url}/signed/other.tif") as raster:
        server.token = "t2"
        monkeypatch.setattr(remote, "_sign", lambda href, renew: f"{href}?sig=wrong")
        with pytest.raises(SourceError, match="signed/other.tif: cannot be read") as error:
            raster.read()
        assert "wrong" not in str(error.value)


# --- cutting

CARD = """
name: strips
licence: CC0
get: made by the test
root: {root}
images: {{glob: "images/*.tif", bands: [red, green]}}
exact: {{glob: "exact/*.tif", coding: index, legend: autogeo4}}
noisy: {noisy}
split: {{test: [c], validation: [b]}}
"""
MASKED = '{from: mask, glob: "noisy/*.tif", coding: index, legend: autogeo4}'


@pytest.fixture
def card(tmp_path, monkeypatch):
    """Three scenes, half of the first without exact labels and a quarter without any."""
    monkeypatch.setattr(patches, "CACHE", tmp_path / "cache")
    rng = np.random.default_rng(0)
    for name, height in (("a", 200), ("b", 50), ("c", 50)):
        shape = (height, 130)
        grid = GeoBox.from_bbox((500000, 4000000, 500130, 4000000 + height), "EPSG:32618", resolution=1)
        write(tmp_path / f"images/{name}.tif", rng.integers(0, 255, (2, *shape), dtype=np.uint8), grid)
        for part in ("exact", "noisy"):
            mask = rng.integers(0, 4, shape, dtype=np.uint8)
            if name == "a":
                mask[100 if part == "exact" else 150 :] = VOID
            sources.write_mask(tmp_path / f"{part}/{name}.tif", mask, grid, AUTOGEO)

    def make(noisy: str = MASKED, more: str = "") -> Path:
        path = tmp_path / "card.yaml"
        path.write_text(textwrap.dedent(CARD).format(root=tmp_path, noisy=noisy) + more)
        return path

    return make


def cut(path: Path, **more) -> patches.PatchSet:
    return patches.cut(patches.open_dataset(path), **{"size_px": 16, "max_patches": 10, "workers": 1} | more)


INJECTED = "{from: inject, recipe: map-like}"


@pytest.mark.parametrize("noisy", [MASKED, INJECTED])
def test_strips_do_not_change_the_patches(card, monkeypatch, noisy):
    whole = cut(card(noisy)).fingerprint
    for strip in (1, 16 * 130 * 3):
        monkeypatch.setattr(files, "STRIP_PX", strip)
        (next(patches.CACHE.glob("strips-*.json"))).unlink()
        assert cut(card(noisy)).fingerprint == whole
    monkeypatch.setattr(shards, "BLOCK_BYTES", 1500)
    assert patches.content_hash(patches.load(whole)) == whole, "whatever is read at once"


@pytest.mark.slow
def test_processes_do_not_change_the_patches(card):
    alone = cut(card()).fingerprint
    next(patches.CACHE.glob("strips-*.json")).unlink()
    assert cut(card(), workers=2).fingerprint == alone


def test_patches_are_those_of_the_files(card, tmp_path):
    found = cut(card(), max_patches=1000)
    image, exact, noisy = (files.read_image(tmp_path / f"{part}/a.tif")[0] for part in ("images", "exact", "noisy"))
    own = found.scenes == "a"
    rows = [slice(r, r + 16) for r in range(0, 200 - 15, 16) if (noisy[0, r : r + 16] != 0).any()][:10]
    columns = [slice(c, c + 16) for c in range(0, 130 - 15, 16)]
    for i, (row, column) in enumerate([(r, c) for r in rows for c in columns]):
        assert np.array_equal(found.images[own][i], image[:, row, column])
    mask = np.array([patch for patch in found.masks["exact"][own]])
    assert len(found.images[own]) == 10 * 8 and (mask[-8:] == VOID).all() and (mask[:48] != VOID).all()
    assert found.member["finetune"].sum() == 7 * 8, "the windows that hold exact labels"


def test_only_strips_of_masks_and_chosen_windows_of_images_are_read(card, monkeypatch):
    monkeypatch.setattr(files, "STRIP_PX", 16 * 130)
    read, plain = [], files.Raster._get

    def counted(self, what, window, *arguments):
        found = plain(self, what, window, *arguments)
        read.append((self.path.parent.name, what, found.size))
        return found

    monkeypatch.setattr(files.Raster, "_get", counted)
    made = cut(card(), max_patches=5)
    pixels = [size for part, what, size in read if part == "images" and what == "read"]
    assert pixels == [2 * 16 * 16] * len(made), "each window once, all bands, nothing else"
    assert max(size for _, _, size in read) <= 16 * 130


def test_masks_that_need_the_whole_scene_are_made_once(card, monkeypatch):
    made, plain = [], labelling.noisy_mask
    monkeypatch.setattr(windows.labelling, "noisy_mask", lambda d, tile: made.append(tile.name) or plain(d, tile))
    assert len(cut(card(INJECTED))) and sorted(made) == ["a/a", "b/b", "c/c"]


def test_what_was_left_by_a_killed_process_does_no_harm_and_nothing_is_left(card):
    old = os.umask(0o027)
    try:
        (patches.CACHE / ".writing-killed/set").mkdir(parents=True)
        found = cut(card())
    finally:
        os.umask(old)
    names = sorted(path.name for path in patches.CACHE.iterdir())
    assert names == [found.fingerprint, next(patches.CACHE.glob("strips-*.json")).name]
    assert (patches.CACHE / found.fingerprint).stat().st_mode & 0o777 == 0o750, "as the umask asks"


def test_a_set_that_was_deleted_is_cut_again(card):
    first = cut(card())
    (patches.CACHE / first.fingerprint).rename(patches.CACHE / "elsewhere")
    assert cut(card()).fingerprint == first.fingerprint


def test_a_damaged_file_leaves_nothing_half_written(card, tmp_path):
    path = tmp_path / "images/b.tif"
    path.write_bytes(path.read_bytes()[:-8000])
    with pytest.raises(SourceError, match="images/b.tif: cannot be read"):
        cut(card())
    assert list(patches.CACHE.iterdir()) == []


def shifted(path: Path, east: float = 0, crs: str = "EPSG:32618") -> None:
    mask, grid = sources.read_image(path)
    a = grid.affine
    moved = GeoBox(grid.shape, rasterio.Affine(a.a, a.b, a.c + east, a.d, a.e, a.f), crs)
    sources.write_mask(path, np.where(files.read_valid(path), mask[0], VOID).astype(np.uint8), moved, AUTOGEO)


def test_masks_beside_their_images_are_refused(card, tmp_path):
    shifted(tmp_path / "noisy/a.tif", 0.4)
    assert len(cut(card())), "less than half a pixel is rounding"
    shifted(tmp_path / "noisy/a.tif", 2)
    with pytest.raises(SourceError, match=r"noisy/a.tif: lies up to 2.4 pixels off its image; warp it .*images/a.tif"):
        cut(card())
    shifted(tmp_path / "exact/a.tif", 0, "EPSG:32619")
    with pytest.raises(SourceError, match=r"exact/a.tif: is in EPSG:32619, its image in EPSG:32618; warp it"):
        cut(card())
    sources.write_mask(tmp_path / "exact/a.tif", np.zeros((9, 9), np.uint8), None, AUTOGEO)
    with pytest.raises(SourceError, match=r"exact/a.tif: is \(9, 9\).*its image is \(200, 130\); they must agree"):
        cut(card())


def test_what_cannot_be_cut_is_refused_with_the_remedy(card, tmp_path):
    with pytest.raises(ValueError, match=r"no window of 500 pixels.*images/a.tif, has 200 x 130.*smaller patch size"):
        cut(card(), size_px=500)
    for wrong in ({"size_px": 0}, {"max_patches": 0}):
        with pytest.raises(ValueError, match="size_px >= 1 and max_patches >= 1"):
            cut(card(), **wrong)
    for part in ("exact", "noisy"):
        void = np.full((200, 130), VOID, np.uint8)
        sources.write_mask(tmp_path / f"{part}/a.tif", void, sources.read_image(tmp_path / "images/a.tif")[1], AUTOGEO)
    with pytest.raises(ValueError, match="no window for pretraining has a label"):
        cut(card())


@given(st.integers(0, 99), st.integers(1, 3), st.sampled_from([np.uint8, np.int32, np.float32]))
@settings(max_examples=20)
def test_moments_are_those_of_the_whole(seed, bands, dtype):
    rng = np.random.default_rng(seed)
    images, inside = rng.integers(0, 200, (9, bands, 5, 5)).astype(dtype), rng.random(9) < 0.7
    inside[0] = True
    scaled = images[inside].astype(np.float64) / 255
    mean, std = shards.moments(images, inside, 255)
    assert np.allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-13)
    assert np.allclose(std, scaled.std(axis=(0, 2, 3)), rtol=1e-12)


# --- legends and mappings of one's own

OWN = "{name: mine, classes: {wood: [0, 99, 0], town: [99, 0, 0], other: [9, 9, 9]}, codes: [10, 20, 30]}"


def test_a_card_brings_its_own_legend_and_mapping(card, tmp_path):
    for name in "abc":
        path = tmp_path / f"exact/{name}.tif"
        codes, grid = sources.read_image(path)
        codes = np.where(files.read_valid(path), codes % 3 * 10 + 10, 0).astype(np.uint8)
        write(path, codes, grid, nodata=0)
    text = (
        card().read_text().replace("coding: index, legend: autogeo4}\nnoisy", f"coding: code, legend: {OWN}}}\nnoisy")
    )
    card().write_text(text)
    plain = cut(tmp_path / "card.yaml")
    assert not plain.comparable and plain.exact_legend.names == ("wood", "town", "other")
    with pytest.raises(ValueError, match="no mapping from legend 'mine' to 'autogeo4'; give the card a `crosswalk`"):
        plain.exact_as_noisy()
    (tmp_path / "card.yaml").write_text(text + "crosswalk: {wood: tree, town: building, other: null}\n")
    mapped = cut(tmp_path / "card.yaml")
    again = patches.load(mapped.fingerprint)
    assert mapped.fingerprint != plain.fingerprint and again.comparable and again.exact_legend == plain.exact_legend
    expected = np.array([1, 2, VOID], np.uint8)[again.masks["exact"] % 3]
    assert np.array_equal(again.exact_as_noisy(), np.where(again.masks["exact"] == VOID, VOID, expected))
    table = patches.open_dataset(tmp_path / "card.yaml").crosswalk
    assert table[:3].tolist() == [1, 2, VOID]
    assert patches.with_noisy(again, again.masks["noisy"], legend.get("dw9")).crosswalk is None
    stored = json.loads((patches.CACHE / plain.fingerprint / "patches.json").read_text())
    assert stored["crosswalk"] is None and stored["noisy_legend"] == "autogeo4"


@cache
def imported(room: str) -> set[str]:
    """Names of the rooms a room imports, directly or not."""
    names = set()
    for node in ast.walk(ast.parse(module_file(room).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nbutils":
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name for name in inside if module_file(name).exists()} or {node.module}
    return names.union(*map(imported, names))


def module_file(name: str) -> Path:
    path = Path(files.__file__).parents[1] / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_whatever_makes_a_patch_is_part_of_its_recipe():
    listed = {room.__name__ for room in windows.MAKERS}
    needed = imported("nbutils.windows") - {"nbutils"}
    apart = {"nbutils.remote", "nbutils.compat"}  # what is far away is not cut; how libraries load changes no pixel
    apart |= {"nbutils.guarded"}  # nor does how a card is read; what it says is in the recipe
    apart |= {"nbutils.worlds"}  # of it, cards read the names of kinds alone; a world's own recipe covers what it draws
    assert needed - listed == apart


# --- maps as noisy sources

COVER = legend.get("worldcover11")
PRODUCT = "{from: product, %s, legend: worldcover11, to: autogeo4, method: nearest, void: [0], mapping: {%s}}"
MAPPING = ", ".join(f"{name}: {'tree' if name == 'tree cover' else 'background'}" for name in COVER.names)


def test_a_product_on_a_coarser_grid_is_a_noisy_source(card, tmp_path):
    codes = np.array([[10, 80], [50, 0]], np.uint8).repeat(2, 0).repeat(2, 1)[None]
    coarse = GeoBox.from_bbox((500000, 4000000, 500200, 4000200), "EPSG:32618", resolution=50)
    write(tmp_path / "cover.tif", codes, coarse)
    found = cut(card(PRODUCT % ("file: cover.tif", MAPPING)), max_patches=1000)
    assert found.noisy_legend.name == "autogeo4" and found.comparable is True
    upper = found.masks["noisy"][found.scenes == "a"][0]  # the first window lies in the upper left quarter
    assert (upper == AUTOGEO.index("tree")).all()
    assert set(np.unique(found.masks["noisy"])) == {0, 1, VOID}
    (tmp_path / "cover.tif").rename(tmp_path / "elsewhere.tif")
    with pytest.raises(sources.DataMissing, match="noisy.file .*cover.tif is missing"):
        patches.open_dataset(tmp_path / "card.yaml")


def test_a_vector_map_is_a_noisy_source(card, tmp_path):
    boxes = [shapely.box(500000, 4000000, 500065, 4000200), shapely.box(500040, 4000000, 500065, 4000200)]
    frame = geopandas.GeoDataFrame({"kind": ["wood", "house"]}, geometry=boxes, crs="EPSG:32618")
    frame.to_file(tmp_path / "map.gpkg")
    noisy = "{from: vector, file: map.gpkg, legend: autogeo4, column: kind, classes: {wood: tree, house: building}%s}"
    found = cut(card(noisy % ", background: background"), max_patches=1000)
    row = found.masks["noisy"][found.scenes == "a"][:8, 0].reshape(-1)  # the windows of the first row, side by side
    assert row[:40].tolist() == [1] * 40 and row[40:65].tolist() == [2] * 25 and set(row[65:].tolist()) == {0}
    upside = cut(card(noisy % ", order: [building, tree]"), max_patches=1000)
    row = upside.masks["noisy"][upside.scenes == "a"][:8, 0].reshape(-1)
    assert row[:65].tolist() == [1] * 65 and set(row[65:].tolist()) == {VOID}
    text = (noisy % ", order: [null, tree]").replace("house: building", "house: null")
    assert (cut(card(text), max_patches=1000).masks["noisy"] == upside.masks["noisy"]).all(), "void has a turn, too"
    frame.assign(kind=["wood", "barn"]).to_file(tmp_path / "map.gpkg")
    with pytest.raises(SourceError, match="map.gpkg.*barn"):
        cut(card(noisy % ""))


FAULTS = [
    (PRODUCT % ("file: a.tif, glob: x", MAPPING), "", "noisy: give one of `glob`"),
    (PRODUCT % ("glob: x", "tree cover: tree"), "", "noisy: worldcover11 -> autogeo4: nothing is said about shrubland"),
    ("{from: product, file: x, legend: worldcover12}", "", r"noisy.legend: .*did you mean 'worldcover11'"),
    ("{from: product, file: x, legend: worldcover11, mehod: nearest}", "", "noisy.mehod: .*did you mean 'method'"),
    ("{from: vector, file: x, legend: autogeo4, classes: {a: tree}}", "", "noisy.column: missing"),
    ("{from: vector, file: x, legend: autogeo4, column: k, classes: {a: trees}}", "", "no class 'trees'.*'tree'"),
    (
        "{from: product, file: x, legend: {name: m, classes: {a: 1}}}",
        "",
        "legend of one's own",
    ),
    (
        "{from: product, file: x, legend: {name: dw9, classes: {a: [1, 2, 3]}}}",
        "",
        "shipped",
    ),
    (
        INJECTED,
        "crosswalk: {tree: tree}\n",
        "`crosswalk` leads from .* here they are the same",
    ),
    (
        "{from: vector, file: x, legend: autogeo4, column: k, classes: {a: tree, b: road}, order: [road]}",
        "",
        "`order` does not say when tree is drawn; it holds road",
    ),
    ("{from: lidar, glob: x}", "crosswalk: {tree: tree}\n", "here they are the same"),
    (MASKED.replace("autogeo4", "dubai5"), "crosswalk: {tree: land}\n", "nothing is said about background, building"),
]


@pytest.mark.parametrize("noisy, more, message", FAULTS)
def test_faults_of_maps_and_mappings_are_named(card, noisy, more, message):
    with pytest.raises(sources.CardError, match=message) as error:
        sources.load_card(card(noisy, more))
    assert "card.yaml" in str(error.value)


def test_two_legends_of_one_name_are_refused_for_masks_are_told_apart_by_it(card):
    mine = "{name: mine, classes: {%s: [1, 2, 3], %s: [4, 5, 6]}}"
    path = card(MASKED.replace("autogeo4", mine % ("b", "a")))
    text = path.read_text()
    assert text.index("exact:") < text.index("legend: autogeo4") < text.index("noisy:")
    path.write_text(text.replace("legend: autogeo4", f"legend: {mine % ('a', 'b')}", 1))
    with pytest.raises(sources.CardError, match="legend 'mine' is a, b in the exact masks and b, a in the noisy ones"):
        sources.load_card(path)
    path.write_text(text.replace("legend: autogeo4", f"legend: {mine % ('b', 'a')}", 1))
    assert sources.load_card(path).exact_legend == sources.load_card(path).noisy_legend
