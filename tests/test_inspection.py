"""Every fault an inspection tells is planted in a sound data set and told, and of the sound one nothing is."""

import os
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import check
import clouds
import laspy
import numpy as np
import pystac
import pytest
import rasterio
import yaml
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from sklearn.metrics import cohen_kappa_score

from nbutils import ROOT, audit, inspection, legend, patches, sources
from nbutils.inspection import dates, looks, splits
from nbutils.legend import VOID

SIZE = 128
SCENES = ("a", "b", "v", "t1", "t2", "t3", "t4", "t5")
LEGEND = legend.get("dubai5")
SHARED = ROOT / "../shared/data"


def ground(seed: int) -> np.ndarray:
    """Blobs of all five classes."""
    fields = np.random.default_rng(seed).normal(size=(len(LEGEND), SIZE, SIZE))
    return np.argmax([ndimage.gaussian_filter(f, 6) for f in fields], axis=0).astype(np.uint8)


def photograph(mask: np.ndarray, seed: int) -> np.ndarray:
    """Three bands in which every class has a brightness of its own."""
    noise = np.random.default_rng(seed).normal(0, 4, (3, *mask.shape))
    return (40 + 45 * mask[None] + noise).clip(1, 255).astype(np.uint8)


class Town:
    """A data set of eight scenes, one image each: arrays and grids that a test may spoil before they are written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.exact = {name: ground(i) for i, name in enumerate(SCENES)}
        self.images = {name: photograph(mask, i) for i, (name, mask) in enumerate(self.exact.items())}
        self.noisy = {name: ndimage.grey_dilation(mask, 3) for name, mask in self.exact.items()}
        self.grids = {
            name: ("EPSG:32618", Affine(1, 0, 583_000 + 2 * SIZE * i, 0, -1, 4_512_000))
            for i, name in enumerate(SCENES)
        }
        self.mask_grids: dict[str, tuple] = {}
        self.tags: dict[str, str] = {"images": "2021:06:01 10:00:00", "noisy": "2021:08:01 00:00:00"}
        self.profile: dict = {}
        self.card = {
            "name": "town",
            "licence": "CC0",
            "get": "make it",
            "root": str(root),
            "gsd_m": 1.0,
            "images": {"glob": "images/*.tif", "bands": ["red", "green", "blue"], "scale": 255},
            "exact": {"glob": "exact/*.tif", "coding": "index", "legend": "dubai5"},
            "noisy": {"from": "mask", "glob": "noisy/*.tif", "coding": "index", "legend": "dubai5"},
            "split": {"test": ["t*"], "validation": ["v"]},
        }

    def write(self) -> Path:
        for kind in ("images", "exact", "noisy"):
            for name, array in getattr(self, kind).items():
                place = self.grids[name] if kind == "images" else self.mask_grids.get(name, self.grids[name])
                more = self.profile if kind == "images" else {"nodata": VOID}
                self.put(self.root / kind / f"{name}.tif", np.atleast_3d(array.T).T, place, self.tags.get(kind), more)
        path = self.root / "card.yaml"
        path.write_text(yaml.safe_dump(self.card, sort_keys=False))
        return path

    def put(self, path: Path, array: np.ndarray, place: tuple | None, date: str | None, more: dict) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        grid = dict(zip(("crs", "transform"), place, strict=True)) if place else {}
        shape = dict(zip(("count", "height", "width"), array.shape, strict=True))
        with rasterio.open(path, "w", driver="GTiff", dtype=array.dtype, **shape, **grid, **more) as data:
            data.write(array)
            if date:
                data.update_tags(TIFFTAG_DATETIME=date)

    def inspect(self, **options) -> list[inspection.Finding]:
        dataset = sources.read_dataset(self.write())
        return inspection.inspect(dataset, rng=np.random.default_rng(0), **{"size_px": 64} | options)


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture
def town(tmp_path):
    return Town(tmp_path)


def the(findings: list[inspection.Finding], check: str, *words: str, severity: str) -> inspection.Finding:
    """The one finding of a check that holds all words."""
    (one,) = [f for f in findings if f.check == check and all(word in f.what for word in words)]
    assert one.severity == severity and one.do, one
    return one


def test_of_a_sound_data_set_nothing_is_told(town):
    assert town.inspect() == []


def test_the_worst_comes_first_and_a_seed_repeats(town):
    town.images["a"][2] = 7
    town.exact["v"][:] = VOID
    del town.tags["noisy"]
    findings = town.inspect()
    order = [inspection.SEVERITIES.index(one.severity) for one in findings]
    assert order == sorted(order) and set(order) == {0, 1, 2}
    assert town.inspect() == findings
    assert str(findings[0]).splitlines()[1].startswith("    -> ")


@pytest.mark.parametrize("options", [{"size_px": 0}, {"size_px": -3}, {"most_images": 0}])
def test_numbers_below_one_are_refused(town, options):
    with pytest.raises(ValueError, match="at least 1"):
        town.inspect(**options)


# --- files


def test_files_that_cannot_be_used_are_told_once_for_each_part_and_the_rest_is_looked_at(town):
    path = town.write()
    for name in ("a", "t1"):
        os.truncate(town.root / f"exact/{name}.tif", 200)
    os.truncate(town.root / "images/b.tif", 100)
    findings = inspection.inspect(sources.read_dataset(path), rng=np.random.default_rng(0))
    one = the(findings, "files", "exact: 2 file(s)", "a/a, t1/t1", "exact/a.tif", severity="error")
    assert str(town.root) not in one.what
    the(findings, "files", "images: 1 file(s)", "b/b", severity="error")


def test_a_code_without_a_class_is_told_as_reading_tells_it(town):
    town.exact["t2"][0, 0] = 9
    the(town.inspect(), "files", "exact: 1 file(s)", "exact/t2.tif", "9 x 1", severity="error")


def test_a_mask_off_its_image_is_told_with_the_distance(town):
    crs, transform = town.grids["a"]
    town.mask_grids["a"] = (crs, Affine.translation(3, 0) @ transform)
    findings = town.inspect()
    the(findings, "files", "exact: 1 file(s)", "3.0 pixels off", severity="error")
    the(findings, "files", "noisy: 1 file(s)", "3.0 pixels off", severity="error")


def with_points(town):
    """Lay the same points on every scene in place of noisy masks."""
    town.card["noisy"] = {"from": "lidar", "glob": "points/*.laz"}
    town.card["exact"]["legend"] = "nyc8"
    (town.root / "points").mkdir()
    for name in SCENES:
        clouds.write(town.root / f"points/{name}.laz", clouds.town(density=1))
    town.grids |= dict.fromkeys(SCENES, ("EPSG:32618", Affine(1, 0, clouds.X0, 0, -1, clouds.Y0)))


def test_damaged_points_are_told_once_also_those_that_no_map_is_made_of(town, monkeypatch):
    monkeypatch.setattr(looks, "MADE", 1)
    with_points(town)
    for name in ("a", "b"):
        os.truncate(town.root / f"points/{name}.laz", 300)
    the(town.inspect(), "files", "noisy: 2 file(s)", "points/", severity="error")


def test_points_on_degrees_are_told(town):
    with_points(town)
    town.grids |= {"t1": ("EPSG:4326", Affine(1e-5, 0, -74, 0, -1e-5, 40.75))}
    the(town.inspect(), "files", "noisy: 1 file(s) cannot be used (t1/t1)", "projected", severity="error")


# --- grids


def without_place(town, names):
    town.grids |= dict.fromkeys(names)


def test_images_without_a_place(town):
    without_place(town, SCENES)
    the(town.inspect(), "grids", "8 of 8 images have no CRS", severity="note")


def test_some_images_without_a_place(town):
    without_place(town, ["a", "v"])
    one = the(town.inspect(), "grids", "2 of 8 images have no CRS", "a/a, v/v", severity="warning")
    assert "overlap" in one.do


def test_images_without_a_place_under_a_product(town):
    without_place(town, ["a"])
    town.card["noisy"] = {"from": "product", "glob": "noisy/*.tif", "legend": "dubai5"}
    the(town.inspect(), "grids", "1 of 8 images", "laid on them from product", severity="error")


def test_a_transform_without_a_crs_is_no_place(town):
    town.grids["b"] = (None, town.grids["b"][1])
    the(town.inspect(), "grids", "1 of 8 images have no CRS", "(b/b)", severity="warning")


def test_several_coordinate_systems(town):
    town.grids["a"] = ("EPSG:32617", town.grids["a"][1])
    findings = town.inspect()
    the(findings, "grids", "2 coordinate systems", "zone 18N x 7", "zone 17N x 1", severity="note")
    assert [f.check for f in findings] == ["grids"]


def test_a_card_that_errs_about_the_pixel_size(town):
    town.card["gsd_m"] = 0.5
    the(town.inspect(), "grids", "gsd_m 0.5, 8 image(s) have pixels of 1 m", severity="warning")


def test_a_card_that_says_no_pixel_size(town):
    del town.card["gsd_m"]
    assert "gsd_m: 1" in the(town.inspect(), "grids", "says no gsd_m", "1 m", severity="note").do


def test_pixels_of_web_mercator_are_measured_on_the_ground(town):
    """Where a metre of the map is the cosine of the latitude long, on the ellipsoid to half a per cent."""
    for i, name in enumerate(SCENES):
        town.grids[name] = ("EPSG:3857", Affine(1, 0, -8_238_000 + 2 * SIZE * i, 0, -1, 4_975_000))
    one = the(town.inspect(), "grids", "gsd_m 1, 8 image(s)", severity="warning")
    latitude = 2 * np.arctan(np.exp(4_975_000 / 6_378_137)) - np.pi / 2
    assert float(one.what.split(" of ")[-1].split(" m ")[0]) == pytest.approx(np.cos(latitude), rel=0.005)


def test_pixels_of_different_sizes(town):
    town.grids["t1"] = ("EPSG:32618", Affine(2, 0, 500_000, 0, -2, 4_400_000))
    the(town.inspect(), "grids", "differ in size: 1 m in", "2 m in t1/t1", severity="warning")


def test_degrees(town):
    for i, name in enumerate(SCENES):
        town.grids[name] = ("EPSG:4326", Affine(1e-5, 0, -74 + i / 100, 0, -1e-5, 60))
    one = the(town.inspect(), "grids", "count in degrees", severity="warning")
    assert "0.558 m wide and 1.11 m high" in one.what  # 60 degrees north: half as wide as high, on WGS 84


def test_pixels_that_are_not_square(town):
    for i, name in enumerate(SCENES):
        town.grids[name] = ("EPSG:32618", Affine(2, 0, 583_000 + 400 * i, 0, -0.5, 4_512_000))
    the(town.inspect(), "grids", "not square", "2 x 0.5 m", severity="warning")


@pytest.mark.parametrize(
    ("turn", "words"),
    [(Affine.scale(1, -1), "are flipped"), (Affine.scale(-1, 1), "are flipped"), (Affine.rotation(20), "are rotated")],
)
def test_turned_images(town, turn, words):
    town.grids["a"] = ("EPSG:32618", town.grids["a"][1] @ Affine.translation(-900, 9000) @ turn)
    findings = town.inspect()
    the(findings, "grids", f"1 image(s) {words}", "(a/a)", severity="note")
    assert len(findings) == 1


def test_images_nowhere_on_earth(town):
    town.grids["a"] = ("EPSG:3035", Affine(1, 0, 9e8, 0, -1, 9e8))
    the(town.inspect(), "files", "images: 1 file(s)", "(a/a)", "is nowhere on Earth", severity="error")


# --- values


@pytest.mark.parametrize(("scale", "words", "fits"), [(10_000, "nearly black", "255"), (1, "reach", "255")])
def test_a_scale_that_does_not_fit(town, scale, words, fits):
    town.card["images"]["scale"] = scale
    assert f"perhaps {fits}" in the(town.inspect(), "values", f"scale is {scale}", words, severity="warning").do


def test_one_image_of_another_scale_and_type(town):
    town.images["t3"] = town.images["t3"].astype(np.uint16) * 200
    findings = town.inspect()
    the(findings, "values", "reach", "(t3/t3)", severity="warning")
    the(findings, "values", "uint8 x 7, uint16 x 1 (t3/t3)", severity="warning")


def test_a_constant_band(town):
    town.images["a"][1] = 9
    the(town.inspect(), "values", "1 of the 8", "a/a: green", severity="warning")


def test_numbers_that_are_none(town):
    town.images = {name: image.astype(np.float32) for name, image in town.images.items()}
    town.images["b"][0, :32, :64], town.images["b"][1, 32:64, :64] = np.nan, np.inf
    the(town.inspect(), "values", "NaN or infinity", "b/b: 25 %", severity="note")


def test_numbers_that_are_none_on_purpose(town):
    town.images = {name: image.astype(np.float32) for name, image in town.images.items()}
    town.images["b"][:, :32] = np.nan
    town.profile["nodata"] = np.nan
    assert town.inspect() == []


def test_void_images(town):
    town.profile["nodata"] = 0
    town.images["b"][:] = 0
    town.images["t4"][:, :80] = 0
    findings = town.inspect()
    the(findings, "values", "1 of the 8", "hold no data at all (b/b)", severity="warning")
    the(findings, "values", "void for more than half", "(t4/t4: 62 %)", severity="note")
    assert len(findings) == 2, "the masks are void there too, which is no fault of theirs"


# --- legends


def test_a_class_that_a_split_lacks(town):
    town.exact["v"][town.exact["v"] == 4] = 0
    for name in ("a", "b"):
        town.exact[name][town.exact[name] == 3] = 1
    findings = town.inspect()
    the(findings, "legends", "split validation has no pixel of water in the 1", "no score", severity="warning")
    the(findings, "legends", "split finetune has no pixel of vegetation", "cannot be learned", severity="warning")


def test_a_class_that_no_mask_has(town):
    for mask in (*town.exact.values(), *town.noisy.values()):
        mask[mask == 2] = 1
    findings = town.inspect()
    the(findings, "legends", "no exact mask has road", severity="note")
    assert len(findings) == 1


def test_a_split_without_exact_labels(town):
    town.exact["v"][:] = VOID
    the(town.inspect(), "legends", "split validation has no exact label", severity="error")


def test_a_rare_class(town):
    for mask in town.exact.values():
        mask[mask == 4] = 0
        mask[5:8, 5:9] = 4  # 12 of 16384
    the(town.inspect(), "legends", "water 0.073 % of the labelled pixels of the exact masks", severity="note")


def test_masks_of_a_single_class(town):
    town.noisy["a"][:] = 4
    the(town.inspect(), "legends", "1 of 8 noisy masks", "(a/a: water)", severity="note")
    for mask in town.exact.values():
        mask[:] = 1
    the(town.inspect(), "legends", "all 8 exact masks", "land", "nothing to tell apart", severity="error")


def test_masks_that_are_mostly_void(town):
    town.noisy["a"][:96], town.exact["t1"][:100] = VOID, VOID
    findings = town.inspect()
    the(findings, "map", "1 of 8 noisy masks", "(a/a: 75 %)", severity="warning")
    the(findings, "legends", "1 of 8 exact masks", "(t1/t1: 78 %)", severity="warning")


def test_legends_without_a_mapping(town):
    own = {
        "name": "mine",
        "classes": {name: list(colour) for name, colour in zip("ABCDE", LEGEND.colours, strict=True)},
    }
    town.card["noisy"]["legend"] = own
    one = the(town.inspect(), "legends", "no mapping", "'dubai5'", "'mine'", severity="warning")
    assert "`crosswalk: {building: ..., land: ..." in one.do and "A, B, C, D" in one.do
    town.card["crosswalk"] = dict(zip(LEGEND.names, "ABCDE", strict=True))
    assert town.inspect() == []


# --- the map


def test_a_map_whose_codes_are_others(town):
    for name, mask in town.noisy.items():
        town.noisy[name] = (np.random.default_rng(len(name)).permutation(mask.ravel())).reshape(mask.shape)
    the(town.inspect(), "map", "no better than by chance", "kappa", severity="error")


def test_a_map_that_is_the_exact_one(town):
    town.noisy = town.exact
    the(town.inspect(), "map", "the same, pixel for pixel, in 8", severity="warning")


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=1, max_size=40))
def test_kappa_is_that_of_scikit_learn(pairs):
    noisy, exact = np.array(pairs, np.uint8).T[:, None]
    with np.errstate(all="ignore"):
        wanted = np.nan if len(set(noisy[0]) | set(exact[0])) == 1 else cohen_kappa_score(noisy[0], exact[0])
    assert audit.compare(noisy, exact, 3).kappa == pytest.approx(wanted, nan_ok=True, abs=1e-9)


def test_kappa_of_a_country_is_that_of_a_part_of_it():
    part = np.array([[40, 3], [7, 50]])
    small, large = (audit.Audit(part * n, part[None] * n) for n in (1, 10**9))
    assert large.kappa == pytest.approx(small.kappa)


def test_kappa_without_pixels_is_not_known():
    void = np.full((2, 2), VOID, np.uint8)
    assert np.isnan(audit.compare(void, void, 3).kappa)


# --- splits


@pytest.mark.parametrize(
    ("pair", "severity", "means"),
    [(("a", "t1"), "error", "too good"), (("v", "t1"), "error", "too good"), (("t1", "t2"), "warning", "too narrow"),
     (("a", "b"), "note", "more than once")],
)  # fmt: skip
def test_ground_that_two_scenes_share(town, pair, severity, means):
    crs, transform = town.grids[pair[0]]
    town.grids[pair[1]] = (crs, transform @ Affine.translation(SIZE / 2, 0))
    findings = town.inspect()
    the(findings, "splits", "overlap, by up to 50 %", *(f"{n}/{n} of" for n in pair), means, severity=severity)
    assert len(findings) == 1


def test_ground_is_shared_across_coordinate_systems(town):
    moved = town.grids["t5"][1] @ Affine.translation(20_000, 0)
    town.grids["t5"] = (town.grids["t5"][0], moved)
    (x, y), there = moved @ (0, 0), rasterio.warp.transform
    (x, y) = (values[0] for values in there("EPSG:32618", "EPSG:32617", [x], [y]))
    town.grids["b"] = ("EPSG:32617", Affine(1, 0, x, 0, -1, y))
    (found,) = splits.overlaps(inspection.read_headers(sources.read_dataset(town.write()))[0])
    assert {found[0].name, found[1].name} == {"b/b", "t5/t5"} and found[2] > 0.8, "turned by the zones' convergence"


def test_neighbours_and_images_of_one_scene_share_no_ground_of_note(town):
    for i, name in enumerate(SCENES):
        town.grids[name] = ("EPSG:32618", Affine(1, 0, 583_000 + SIZE * i, 0, -1, 4_512_000))
    town.card["images"]["scene"] = r"/(\w)\d?\.tif"
    town.grids["t2"] = town.grids["t1"]
    town.card["split"] = {"test": ["t"], "validation": ["v"]}
    findings = town.inspect()
    the(findings, "splits", "1 scene(s) (t): no interval", severity="warning")
    assert len(findings) == 1


def test_equal_files(town):
    town.images["t1"] = town.images["a"]
    town.grids |= dict.fromkeys(SCENES)
    with pytest.raises(
        sources.CardError, match=r"t1\.tif \(test\) and .*a\.tif \(pretrain, finetune\) are the same image"
    ):
        town.inspect()
    town.images["t1"] = town.images["a"] + np.uint8(1)
    assert not [one for one in town.inspect() if one.check == "splits"], "as large, and other pixels"


def test_equal_files_of_one_scene(town):
    town.card["images"]["scene"] = r"/(\w\d?)\w*\.tif"
    path = town.write()
    for kind in ("images", "exact", "noisy"):
        shutil.copy(town.root / kind / "a.tif", town.root / kind / "aa.tif")
    findings = inspection.inspect(sources.read_dataset(path), rng=np.random.default_rng(0))
    the(findings, "splits", "1 pair(s) of images of one scene are the same file", "a/a of", "a/aa of", severity="note")
    assert len(findings) == 1


@pytest.mark.parametrize(("test", "means"), [(["t1"], "no interval"), (["t1", "t2", "t3", "t4"], "wide")])
def test_few_test_scenes(town, test, means):
    town.card["split"] = {"test": test, "validation": ["v"]}
    the(town.inspect(), "splits", f"test split has {len(test)} scene(s) (t1", means, severity="warning")


def test_a_split_without_room_for_a_patch(town):
    for kind in (town.images, town.exact, town.noisy):
        kind["v"], kind["t1"] = kind["v"][..., :90], kind["t1"][..., :90]
    findings = town.inspect(size_px=100)
    the(findings, "splits", "split validation has no patch of 100 px", "at most 90 px", severity="error")
    the(findings, "splits", "1 image(s) are smaller", "(t1/t1)", severity="note")
    assert not [one for one in town.inspect(size_px=90) if one.check == "splits"]
    with pytest.raises(ValueError, match="split 'validation' has no patch"):
        patches.cut(sources.read_dataset(town.root / "card.yaml"), size_px=100, max_patches=4, workers=1).split(
            "validation"
        )


# --- dates


def test_a_map_of_another_year(town):
    town.tags["noisy"] = "2017:06:01 00:00:00"
    the(town.inspect(), "dates", "in 8 of 8", "2021-06-01 and 2017-06-01, 4.0 years", severity="warning")


def test_dates_that_are_not_known(town):
    town.tags = {"images": "0000:00:00 00:00:00"}
    findings = town.inspect()
    the(findings, "dates", "when images were taken is not known in 8", severity="note")
    the(findings, "dates", "when the noisy map was made is not known in 8", severity="note")


def test_injected_noise_has_no_date(town):
    town.tags = {}
    town.card["noisy"] = {"from": "inject"}
    assert town.inspect() == []


DAYS = st.dates(date(1990, 1, 1), date(2030, 1, 1))


@given(DAYS, DAYS, DAYS, DAYS)
def test_a_gap_is_the_least_distance_of_two_days_of_the_spans(a, b, c, d):
    one, two = tuple(sorted((a, b))), tuple(sorted((c, d)))
    apart = 0 if one[0] <= two[1] and two[0] <= one[1] else min(abs((x - y).days) for x in one for y in two)
    assert dates.gap_years(one, two) == dates.gap_years(two, one) == apart / 365.25


def test_dates_of_a_catalogue(tmp_path):
    item = pystac.Item(
        "x", None, None, None, {"start_datetime": "2020-01-01T00:00:00Z", "end_datetime": "2020-12-31T00:00:00Z"}
    )
    item.add_asset("image", pystac.Asset("i.tif", extra_fields={"datetime": "2021-07-01T00:00:00Z"}))
    item.add_asset("map", pystac.Asset("m.tif"))
    assert dates.of_item(item, "image") == (date(2021, 7, 1),) * 2
    assert dates.of_item(item, "map") == (date(2020, 1, 1), date(2020, 12, 31))
    assert dates.of_item(item, "other") is dates.of_item(None, "map") is None


FLOWN, WRITTEN = (date(2014, 3, 12), date(2014, 3, 15)), (date(2019, 2, 3),) * 2


@pytest.mark.parametrize(
    ("first", "last", "days"),
    [(78_648_204.0, 78_648_204.0 + 3 * 86_400, FLOWN), (300.0, 90_000.0, WRITTEN), (0.0, 0.0, WRITTEN)],
)  # the first is in GPS week 1783, which began on 9 March 2014; seconds of a week say no date
def test_dates_of_points(tmp_path, first, last, days):
    path = clouds.write(tmp_path / "points.laz", clouds.town(density=0.1))
    las = laspy.read(path)
    las.header.creation_date = WRITTEN[0]
    las.gps_time = np.linspace(first, last, len(las))
    las.write(path)
    assert dates.of_points(path) == days


def test_a_damaged_point_file_is_named(tmp_path):
    path = clouds.write(tmp_path / "points.laz", clouds.town(density=0.1))
    os.truncate(path, 400)
    with pytest.raises(sources.SourceError, match=r"points\.laz"):
        dates.of_points(path)


# --- alignment


@pytest.mark.parametrize("part", ["exact", "noisy"])
def test_masks_that_are_displaced(town, part):
    masks = getattr(town, part)
    for name, mask in masks.items():
        masks[name] = np.roll(mask, (3, -2), axis=(0, 1))
        masks[name][:3], masks[name][:, -2:] = VOID, VOID
    one = the(town.inspect(), "alignment", f"the {part} masks", "of their images, by 8 windows", severity="warning")
    down, left = (
        float(words.split(" px")[0]) for words in one.what.removeprefix(f"the {part} masks lie ").split(" and ")
    )
    assert (down, left) == pytest.approx((3, 2), abs=0.5)
    assert " m) down" in one.what and " m) left" in one.what


def test_what_cannot_be_told_is_said(town):
    rng = np.random.default_rng(0)
    town.images = {name: rng.integers(1, 255, image.shape, np.uint8) for name, image in town.images.items()}
    the(town.inspect(), "alignment", "exact masks", "cannot be told", severity="note")


# --- the sample


def test_what_was_drawn_is_said(town):
    the(town.inspect(most_images=1), "sample", "pixels of 3 of 8 images", severity="note")


def test_large_images_are_read_by_windows_of_which_a_map_is_made(town, monkeypatch):
    monkeypatch.setattr(looks, "WHOLE_PX", 100)
    monkeypatch.setattr(looks, "WINDOW_PX", 48)
    town.card["noisy"] = {"from": "product", "glob": "noisy/*.tif", "legend": "dubai5"}
    read = []
    monkeypatch.setattr(
        looks.labelling, "noisy_mask", lambda d, t, of=looks.labelling.noisy_mask: read.append(of(d, t)) or read[-1]
    )
    dataset = sources.read_dataset(town.write())
    headers, _ = inspection.read_headers(dataset)
    sample = looks.look_at(dataset, headers, len(headers), np.random.default_rng(0))
    assert {mask.shape for mask in read} == {(48, 48)} and len(read) == looks.MADE * looks.WINDOWS
    for look in sample.looks:
        mask = town.exact[look.tile.scene]
        assert not look.whole and look.n == looks.WINDOWS * 48 * 48 == look.counts["exact"].sum()
        assert set(np.flatnonzero(look.counts["exact"])) <= set(np.unique(mask))
    agree = sum(np.trace(look.confusion) for look in sample.looks) / sum(look.confusion.sum() for look in sample.looks)
    exact, noisy = np.stack(list(town.exact.values())), np.stack(list(town.noisy.values()))
    assert agree == pytest.approx((exact == noisy).mean(), abs=0.05), "windows of both masks show the same ground"
    the(town.inspect(), "sample", "of 8 large image(s) 8 windows of 48 px each", severity="note")


def test_a_map_that_does_not_reach_all_of_an_image_can_be_used_and_one_that_reaches_nothing_cannot(town, monkeypatch):
    monkeypatch.setattr(looks, "WHOLE_PX", 100)
    monkeypatch.setattr(looks, "WINDOW_PX", 48)
    town.card["noisy"] = {"from": "product", "glob": "noisy/*.tif", "legend": "dubai5"}
    town.noisy = {name: mask[:, :50] for name, mask in town.noisy.items()}
    found = town.inspect()
    assert not [finding for finding in found if finding.check == "files"]
    assert any("void" in finding.what and "noisy" in finding.what for finding in found), (
        "what it does not reach is void"
    )
    crs, away = town.grids["a"]
    town.mask_grids["a"] = (crs, away * Affine.translation(-5000, 0))
    the(town.inspect(), "files", "noisy: 1 file(s) cannot be used", "lies beside the grid", severity="error")


def test_pictures_that_gdal_does_not_know_have_no_date(town, tmp_path):
    town.card["images"]["glob"] = "images/*.jpg"
    town.write()
    for name, image in town.images.items():
        (tmp_path / f"images/{name}.tif").unlink()
        Image.fromarray(np.moveaxis(image, 0, -1)).save(tmp_path / f"images/{name}.jpg", format="TGA")
    found = inspection.inspect(sources.read_dataset(tmp_path / "card.yaml"), rng=np.random.default_rng(0), size_px=64)
    assert not [finding for finding in found if finding.check == "files"]
    the(found, "dates", "images", severity="note")


def test_further_dates_off_their_image_are_told(town):
    town.card["images"]["dates"] = ["winter/*.tif"]
    crs, transform = town.grids["b"]
    for name in SCENES:
        shift = 5 if name == "b" else 0
        place = (town.grids[name][0], town.grids[name][1] @ Affine.translation(shift, 0))
        town.put(town.root / f"winter/{name}.tif", town.images[name], place, None, {})
    the(town.inspect(), "files", "date 1: 1 file(s)", "5.0 pixels off", severity="error")


# --- the command


def test_the_command_tells_by_its_status_what_it_found(town, capsys):
    path = str(town.write())
    assert check.main([path]) == 0
    assert "town: 8 images: 0 errors, 0 warnings, 0 notes" in capsys.readouterr().out
    town.tags = {}
    assert check.main([str(town.write())]) == 0 and "2 notes" in capsys.readouterr().out
    town.card["gsd_m"] = 5
    assert check.main([str(town.write())]) == 1 and "warning, grids:" in capsys.readouterr().out
    assert check.main([str(town.write()), "--patch-px", "500"]) == 2
    assert "split test has no patch of 500 px" in capsys.readouterr().out


def test_the_command_ends_with_what_is_wrong_with_a_card(town, capsys):
    town.card["exact"]["glob"] = "nowhere/*.tif"
    assert check.main([str(town.write())]) == 2 and "no file matches" in capsys.readouterr().err
    town.card["bands"] = 3
    assert check.main([str(town.write())]) == 2 and "bands: no such key" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        check.main(["card.yaml", "--images", "0"])


# --- real data


def needs(folder: str) -> Path:
    path = SHARED / folder
    if not path.is_dir():
        pytest.skip(f"no {folder} at {path}; see data/README.md")
    return path


class Plain(yaml.SafeDumper):
    """Writes out what comes twice: cards know no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def write_card(folder: Path, **keys) -> sources.Dataset:
    path = folder / "card.yaml"
    about = {"name": "real", "licence": "see its README", "get": "see its README"}
    path.write_text(yaml.dump(about | keys, Dumper=Plain, sort_keys=False))
    return sources.read_dataset(path)


def test_dubai_has_three_test_scenes_and_plain_pictures():
    needs("dubai")
    findings = inspection.inspect(
        sources.read_dataset("data/datasets/dubai.yaml"), rng=np.random.default_rng(0), size_px=64
    )
    the(findings, "grids", "72 of 72 images have no CRS", severity="note")
    the(findings, "splits", "3 scene(s) (1, 4, 7)", severity="warning")
    assert not [one for one in findings if one.severity == "error"]


def test_terramesh_samples_with_their_map_in_place_of_exact_masks(tmp_path):
    """Real Sentinel-2: five UTM zones, dates of the map only; one place is snow alone, and has the map's codes."""
    own = {"name": "terramesh9", "codes": [*range(1, 10)], "classes": {}}
    for i, name in enumerate("water trees flooded crops built bare snow clouds rangeland".split()):
        own["classes"][name] = [i, i, i]
    images = {"glob": "S2L2A/*.tif", "bands": [f"B{i}" for i in range(12)], "scale": 10_000}
    masks = {"glob": "LULC/*.tif", "coding": "code", "legend": own, "void": [0]}
    names = sorted(path.stem for path in (needs("terramesh-samples") / "S2L2A").glob("*.tif"))
    split = {"test": names[:2], "validation": names[2:3]}
    dataset = write_card(tmp_path, root=str(SHARED / "terramesh-samples"), images=images, exact=masks, gsd_m=10,
                         noisy=masks | {"from": "mask"}, split=split)  # fmt: skip
    findings = inspection.inspect(dataset, rng=np.random.default_rng(0), size_px=64)
    the(findings, "grids", "5 coordinate systems", severity="note")
    the(findings, "dates", "images were taken is not known in 5", severity="note")
    the(findings, "legends", "1 of 5 exact masks", "609U_541L_3_0: snow", severity="note")
    the(findings, "map", "the same, pixel for pixel", severity="warning")
    assert not [one for one in findings if one.severity == "error" or one.check == "values"]
    wrong = replace(
        dataset, card=dataset.card.model_copy(update={"images": dataset.card.images.model_copy(update={"scale": 255})})
    )
    assert (
        "perhaps 10000"
        in the(inspection.inspect(wrong, rng=np.random.default_rng(0)), "values", "scale", severity="warning").do
    )


def test_the_lake_shore_of_zurich_was_flown_in_2014(tmp_path):
    path = needs("zurich")
    assert [day.year for day in dates.of_points(path / "lidar.laz")] == [2014, 2014], "as its owner says"
    with rasterio.open(path / "ref-img.tif") as data:
        whole, profile = data.read(), data.profile
    for i in range(4):  # four pieces of land, then tests of the whole way from points
        part = rasterio.windows.Window(100 * i, 200, 100, 200)
        for folder in ("images", "exact"):
            (tmp_path / folder).mkdir(exist_ok=True)
        cut = {"height": 200, "width": 100, "transform": rasterio.windows.transform(part, profile["transform"])}
        with rasterio.open(tmp_path / f"images/{i}.tif", "w", **profile | cut) as data:
            data.write(whole[:, 200:, 100 * i : 100 * i + 100])
            data.update_tags(TIFFTAG_DATETIME="2018:07:01 00:00:00")
        with rasterio.open(tmp_path / f"exact/{i}.tif", "w", **profile | cut | {"count": 1}) as data:
            data.write(np.tile(np.arange(4, dtype=np.uint8), (1, 200, 25)))
    noisy = {"from": "lidar", "file": str(path / "lidar.laz"), "legend": "autogeo4"}
    noisy = {"from": "lidar", "glob": "points/*.laz", "legend": "autogeo4"}
    (tmp_path / "points").mkdir()
    for i in range(4):
        (tmp_path / f"points/{i}.laz").symlink_to((path / "lidar.laz").resolve())
    dataset = write_card(tmp_path, root=str(tmp_path), gsd_m=0.5, split={"test": ["3"], "validation": ["2"]},
                         images={"glob": "images/*.tif", "bands": ["red", "green", "blue"]}, noisy=noisy,
                         exact={"glob": "exact/*.tif", "coding": "index", "legend": "autogeo4"})  # fmt: skip
    findings = inspection.inspect(dataset, rng=np.random.default_rng(0))
    the(findings, "dates", "in 4 of 4", "2018-07-01 and 2014-03-", severity="warning")
    the(findings, "map", "no better than by chance", "in 4 image(s)", severity="error")


def test_the_map_of_slovenia_lies_on_sentinel_2(tmp_path):
    """One real place cut into quarters, with the land use rasterised and the same as polygons for the noisy map."""
    path = needs("slovenia")
    with np.load(path / "eopatch_slovenia.npz", allow_pickle=False) as patch:
        image, lulc = patch["s2_l1c_toa_x10000"][0].transpose(2, 0, 1), patch["lulc"]
    place = Affine(10, 0, 465181.05, 0, -10, 5080254.63)
    town = Town(tmp_path)
    for i, (rows, columns) in enumerate([(r, c) for r in (0, 50) for c in (0, 50)]):
        part = np.s_[rows : rows + 50, columns : columns + 50]
        grid = ("EPSG:32633", place @ Affine.translation(columns, rows))
        town.put(tmp_path / f"images/{i}.tif", image[(slice(None), *part)], grid, None, {})
        town.put(tmp_path / f"exact/{i}.tif", lulc[part][None], grid, None, {})
    names = {1: "cultivated", 2: "forest", 3: "grass", 4: "shrub", 8: "built"}
    own = {"name": "lulc", "classes": {name: [k, k, k] for k, name in names.items()}, "codes": list(names)}
    noisy = {"from": "vector", "file": str((path / "LULC.gpkg").resolve()), "column": "LULC_ID", "legend": own,
             "classes": names | {0: None}}  # fmt: skip
    split = {"test": ["3"], "validation": ["2"]}
    dataset = write_card(tmp_path, root=str(tmp_path), gsd_m=10, split=split, noisy=noisy,
                         images={"glob": "images/*.tif", "bands": [f"B{i}" for i in range(13)], "scale": 10_000},
                         exact={"glob": "exact/*.tif", "coding": "code", "legend": own, "void": [0]})  # fmt: skip
    findings = inspection.inspect(dataset, rng=np.random.default_rng(0), size_px=48)
    assert not [one for one in findings if one.check in ("files", "map", "values")]
    the(findings, "splits", "test split has 1 scene(s)", severity="warning")
    the(findings, "dates", "the noisy map was made is not known in 4", severity="note")
