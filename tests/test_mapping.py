"""Maps of large images: the same whatever the squares, on the image's grid, void kept."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio
from affine import Affine
from grounds import (
    AUTOGEO,
    BANDS,
    MODEL,
    PLACED,
    SMALL,
    Held,
    a_card,
    expected,
    left_in,
    mapped,
    pixels_of,
    read,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from nbutils import files, legend, mapping, sheets, sources, study, weights
from nbutils.legend import VOID
from nbutils.mapping import MappingError, Squares

# --- squares


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(0, 200))
def test_mirroring_is_that_of_numpy(length, pad):
    ours = mapping._mirrored(np.arange(-pad, length + pad), length)
    assert np.array_equal(ours, np.pad(np.arange(length), pad, mode="reflect"))


@settings(max_examples=25)
@given(st.integers(1, 210), st.integers(1, 210), st.sampled_from([(96, 32), (128, 32), (160, 64), (512, 32)]))
def test_the_map_is_that_of_the_whole_image_whatever_the_squares(height, width, sizes):
    pixels = pixels_of(height, width, seed=height)
    classes, percent = Held(pixels).mapped(Squares(*sizes))
    assert np.array_equal(classes, expected(pixels)[0]) and np.array_equal(percent, expected(pixels)[1])


def test_without_a_margin_squares_are_seen_in_the_map():
    pixels = pixels_of(192, 192)
    differs = Held(pixels).mapped(Squares(96, 0))[0] != expected(pixels)[0]
    rim = np.zeros_like(differs)
    for at in (0, 96):
        for edge in (slice(at, at + 3), slice(at + 93, at + 96)):
            rim[edge] = rim[:, edge] = True
    assert differs.any() and not differs[~rim].any()


@pytest.mark.parametrize("sizes", [(100, 32), (96, 48), (96, 16), (64, 32), (32, 32), (0, 0), (96, -32)])
def test_squares_that_do_not_fit_the_stages_are_refused(sizes):
    with pytest.raises(MappingError, match="multiples of 32 and twice the margin"):
        Squares(*sizes)


@pytest.mark.parametrize("decoder", ["unet", "linear"])
def test_a_network_of_the_study_says_nearly_the_same_in_small_and_large_squares(decoder):
    network = study.networks.build("tu-test_resnet", decoder, in_channels=4, n_classes=4, seed=1, width="slim").eval()
    model = replace(MODEL, network=network, card=a_card(scale=255.0, mean=(0.4,) * 4, std=(0.2,) * 4))
    image = Held(pixels_of(256, 320))
    whole = image.mapped(Squares(640, 128), model)
    for margin, least in ((32, 0.99), (64, 0.999), (96, 0.9999)):
        parts = image.mapped(Squares(2 * margin + 128, margin), model)
        assert (parts[0] == whole[0]).mean() >= least, margin
        assert margin < 96 or np.abs(parts[1].astype(int) - whole[1]).max() <= 1


def test_no_more_than_two_squares_a_side_are_read_at_once():
    image = Held(pixels_of(500, 333))
    image.mapped(SMALL)
    assert len(image.seen) == 16 * 11
    assert max(part.stop - part.start for window in image.seen for part in window) <= 2 * SMALL.size_px


# --- void


def test_void_stays_void_and_what_is_all_void_is_not_looked_at():
    pixels, valid = pixels_of(200, 200), np.ones((200, 200), bool)
    valid[:70], valid[100, 100] = False, False
    image = Held(pixels, valid)
    classes, percent = image.mapped(SMALL)
    assert np.array_equal(classes == VOID, ~valid) and np.array_equal(percent == VOID, ~valid)
    assert np.array_equal(classes[valid], expected(pixels)[0][valid])
    assert len(image.seen) == 5 * 7, "two of seven rows of cores have no data"


def test_nodata_in_every_band_is_void_and_in_one_is_not(tmp_path):
    pixels = pixels_of(100, 100)
    pixels[pixels == 0] = 1
    pixels[:, :40, :30] = 0
    pixels[0, 90:] = 0
    classes = read(mapped(write(tmp_path / "a.tif", pixels, nodata=0), tmp_path / "maps").classes)
    void = np.zeros((100, 100), bool)
    void[:40, :30] = True
    assert np.array_equal(classes == VOID, void) and np.array_equal(classes[~void], expected(pixels)[0][~void])


def test_numbers_that_are_none_are_void_and_those_without_end_are_an_error(tmp_path):
    pixels = pixels_of(64, 64).astype(np.float32)
    pixels[1, 5, 5] = np.nan
    classes = read(mapped(write(tmp_path / "a.tif", pixels), tmp_path / "maps").classes)
    assert np.argwhere(classes == VOID).tolist() == [[5, 5]]
    pixels[1, 40, 40] = -3e38
    with pytest.raises(MappingError, match=r"b.tif: the network gives no finite numbers in rows 32 to 64, columns 32"):
        mapped(write(tmp_path / "b.tif", pixels), tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


# --- files


@pytest.mark.parametrize(
    "placed",
    [PLACED, {"crs": "EPSG:4326", "transform": Affine(1e-5, 2e-6, 8, 1e-6, -1e-5, 47)}, {"crs": None}],
    ids=["metres", "turned", "no grid"],
)
def test_the_map_is_a_cog_on_the_grid_of_its_image(tmp_path, placed):
    image = write(tmp_path / "town.north.tif", pixels := pixels_of(700, 300), **placed)
    place = mapped(image, tmp_path / "deep/maps", confidence=True)
    assert sorted(p.name for p in place.classes.parent.iterdir()) == [
        "town.north_classes.tif", "town.north_confidence.tif"]  # fmt: skip
    for path, values in zip(place, expected(pixels), strict=True):
        with rasterio.open(path) as data, rasterio.open(image) as of:
            assert (data.shape, data.crs, data.transform) == (of.shape, of.crs, of.transform)
            assert (data.count, data.dtypes, data.nodata) == (1, ("uint8",), VOID)
            assert data.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and data.overviews(1) == [2]
            assert data.tags()["run"] == MODEL.card.run and data.tags()["image"] == image.name
            assert np.array_equal(data.read(1), values)
    with rasterio.open(place.classes) as data:
        assert data.tags()["classes"] == "background, tree, building, road" and data.tags()["legend"] == "autogeo4"
        assert data.colormap(1)[2][:3] == AUTOGEO.colours[2] and data.colormap(1)[VOID] == (*legend.VOID_COLOUR, 0)


def test_overviews_hold_classes_of_the_pixels_below_them(tmp_path):
    pixels = pixels_of(600, 600)
    pixels[:, 100:300, 100:300] = 0
    place = mapped(write(tmp_path / "a.tif", pixels, nodata=0), tmp_path)
    classes = read(place.classes)
    with rasterio.open(place.classes, overview_level=0) as data:
        small = data.read(1)
    below = classes.reshape(300, 2, 300, 2).transpose(0, 2, 1, 3).reshape(300, 300, 4)
    assert (below == small[..., None]).any(axis=2).all() and (small == VOID).sum() > 9000


def test_a_map_reads_as_a_noisy_mask_of_the_study(tmp_path):
    pixels = pixels_of(100, 90)
    place = mapped(write(tmp_path / "a.tif", pixels), tmp_path)
    spec = sources.Masks(glob="*", coding="index", legend="autogeo4")
    assert np.array_equal(files.read_mask(place.classes, spec, AUTOGEO, (100, 90)), expected(pixels)[0])


# --- bands, scale, pixel size


def test_bands_are_found_by_name_in_any_order(tmp_path):
    pixels = pixels_of(64, 64)
    shuffled = np.stack([pixels[1], pixels[3], np.zeros_like(pixels[0]), pixels[2], pixels[0]])
    names = ("red", "blue", "haze", "green", "nir")
    named = mapped(write(tmp_path / "named.tif", shuffled, names), tmp_path)
    told = mapped(write(tmp_path / "told.tif", shuffled, None), tmp_path, bands=names)
    assert np.array_equal(read(named.classes), expected(pixels)[0])
    assert np.array_equal(read(told.classes), expected(pixels)[0])


def test_an_alpha_band_is_no_band(tmp_path):
    pixels = pixels_of(64, 64)
    alpha = np.full((1, 64, 64), 255, np.uint8)
    alpha[0, :8] = 0
    path = write(tmp_path / "a.tif", np.concatenate([pixels, alpha]), None)
    with rasterio.open(path, "r+") as data:
        data.colorinterp = [*[ColorInterp.undefined] * 4, ColorInterp.alpha]
    classes = read(mapped(path, tmp_path / "maps", bands=BANDS).classes)
    assert (classes[:8] == VOID).all() and (classes[8:] != VOID).all()


@pytest.mark.parametrize(
    ("change", "how", "message"),
    [
        ({"bands": None}, {}, r"the images have 1, 2, 3, 4: .*name the bands in the file's order"),
        ({"bands": ("nir", "red", "green", "blau")}, {}, "blue missing and blau not known"),
        ({}, {"bands": ("nir", "red")}, "has 4 bands, 2 names were given for its bands, nir, red; name each"),
        ({}, {"bands": ("nir", "red", "red", "blue")}, "name each of them once"),
        ({}, {"scale": None}, "trained on raw values divided by 1, the images are divided by 255"),
        ({"kind": np.int16}, {"scale": None}, r"type int16 do not tell .*give the scale \(1 in training\)"),
    ],
)  # fmt: skip
def test_images_of_another_kind_are_refused(tmp_path, change, how, message):
    path = write(tmp_path / "a.tif", pixels_of(64, 64).astype(change.get("kind", np.uint8)), change.get("bands", BANDS))
    with pytest.raises((MappingError, weights.WeightsError), match=f"{path}: .*{message}"):
        mapped(path, tmp_path / "maps", **how)
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(("code", "side", "metres"), [(32618, 2.5, 2.5), (2263, 3.0, 0.9144), (4326, 1e-5, None)])
def test_the_size_of_pixels_is_told_in_metres(tmp_path, code, side, metres):
    placed = {"crs": f"EPSG:{code}", "transform": Affine(side, 0, 8, 0, -side, 47)}
    with sources.open_raster(write(tmp_path / "a.tif", pixels_of(9, 9), **placed)) as image:
        assert mapping._gsd_m(image) == (metres and pytest.approx(metres, rel=1e-4))
        if code == 32618:
            with pytest.warns(UserWarning, match="trained at 1 m per pixel, the images have 2.5 m"):
                mapping.reader(MODEL, image, scale=1.0)


# --- places


def test_images_of_one_name_are_refused(tmp_path):
    for first, second in (("x/a.tif", "y/a.tif"), ("x/a.tif", "https://example.org/A.tif?sig=1"), ("a.tif", "a.tif")):
        with pytest.raises(MappingError, match=r"would both become [aA]_classes.tif; use two folders"):
            mapping.places([first, second], tmp_path)
    names = ["a.tif", "a_classes.tif", "https://example.org/b.c.tif?a=/d.tif", "what? a.tif"]
    found = [place.classes.name for place in mapping.places(names, tmp_path)]
    assert found == ["a_classes.tif", "a_classes_classes.tif", "b.c_classes.tif", "what? a_classes.tif"]
    with pytest.raises(MappingError, match="a_classes.tif is an image to be mapped and the map of another"):
        mapping.places([tmp_path / "a.tif", tmp_path / "a_classes.tif"], tmp_path)


@pytest.mark.parametrize("left", ["classes", "confidence"])
def test_a_map_that_is_there_is_kept_unless_told(tmp_path, left):
    path = write(tmp_path / "a.tif", pixels_of(64, 64))
    place = mapped(path, tmp_path, confidence=True)
    kept, before = getattr(place, left), getattr(place, left).read_bytes()
    place[left == "classes"].unlink()
    write(path, pixels_of(64, 64, seed=9))
    with pytest.raises(FileExistsError, match=f"a_{left}.tif is there; leave its image out"):
        mapped(path, tmp_path)
    assert kept.read_bytes() == before
    mapped(path, tmp_path, overwrite=True)
    assert np.array_equal(read(place.classes), expected(pixels_of(64, 64, seed=9))[0])
    assert not place.confidence.exists(), "no confidence is left beside a map it is not of"


def test_a_map_that_comes_meanwhile_is_kept(tmp_path, monkeypatch):
    path, finish = write(tmp_path / "a.tif", pixels_of(64, 64)), sheets.Sheet.finish
    (place,) = mapping.places([path], tmp_path)
    monkeypatch.setattr(sheets.Sheet, "finish", lambda sheet: (finish(sheet), place.classes.write_text("other's")))
    with pytest.raises(FileExistsError):
        mapped(path, tmp_path)
    assert place.classes.read_text() == "other's" and left_in(tmp_path) == ["a.tif", "a_classes.tif"]
