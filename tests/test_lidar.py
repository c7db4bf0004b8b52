"""Labels from LiDAR on scenes whose answer is known, on a real one, and what they must not depend on."""

import dataclasses

import clouds
import numpy as np
import pyproj
import pytest
import xarray as xr
from affine import Affine
from clouds import GRID, SIZE, X0, Y0, grid_of
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from scipy import ndimage

from nbutils import ROOT
from nbutils.files import SourceError
from nbutils.lidar import cells, ground
from nbutils.lidar.classify import BACKGROUND, BUILDING, ROAD, TREE, LidarRules, apply_rules, from_lidar, measure
from nbutils.lidar.points import Points, concatenate, read_points

ZURICH = ROOT / "../shared/data/zurich"
US_FOOT = 1200 / 3937


@pytest.fixture(scope="module")
def town() -> Points:
    return clouds.town()


@pytest.fixture(scope="module")
def labels(town):
    return from_lidar(town, GRID)


def without(points: Points, *names: str) -> Points:
    return dataclasses.replace(points, **{name: None for name in names})


def places(grid: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """Metres to the east and south of the corner, of every pixel of a grid in UTM."""
    rows, columns = np.indices(grid.shape) + 0.5
    x, y = grid.transform * (columns, rows)
    return x - X0, Y0 - y


def agreement(mask: np.ndarray, x: np.ndarray, y: np.ndarray, house_only: bool = False) -> dict[str, float]:
    """IoU of the house, and shares of the tree's, the strip's and the rest's inner pixels that are right."""
    house, d = (abs(x - 40) < 10) & (abs(y - 30) < 10), np.hypot(x - 65, y - 60)
    rest = (d > 9) & ~((abs(x - 40) < 12) & (abs(y - 30) < 12)) & (abs(x - 15) > 7)
    right = {"house": (house & (mask == BUILDING)).sum() / (house | (mask == BUILDING)).sum()}
    right |= {"tree": (mask[d < 5] == TREE).mean(), "rest": (mask[rest] == BACKGROUND).mean()}
    return right | {"road": (mask[abs(x - 15) < 3] == ROAD).mean()}


def iou(a: np.ndarray, b: np.ndarray, valid: np.ndarray) -> float:
    return (a & b & valid).sum() / ((a | b) & valid).sum()


# --- what is found


@pytest.mark.parametrize("pixel_m", [0.3125, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("density", [2, 5, 20])
def test_house_tree_and_strip_are_found_on_every_grid(pixel_m, density):
    grid = grid_of(SIZE, pixel_m)
    mask = from_lidar(clouds.town(density=density), grid).mask
    found = agreement(mask, *places(grid))
    assert mask.shape == grid.shape and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1, 2, 3, 255}
    assert found["house"] > 0.85 and found["tree"] > 0.9 and found["rest"] > 0.97 and found["road"] > 0.97, found


TERRAINS = {
    "slope of 20 %": lambda x, y: 20 + 0.2 * x,
    "slope of 40 %": lambda x, y: 20 + 0.4 * y,
    "hills": lambda x, y: 300 + 6 * np.sin(x / 20) * np.cos(y / 25),
    "below the sea": lambda x, y: -4 + 0 * x,
}


@pytest.mark.parametrize("terrain", TERRAINS.values(), ids=TERRAINS)
@pytest.mark.parametrize("lacking", [(), ("return_number", "number_of_returns"), ("intensity",)], ids=str)
def test_they_are_found_on_slopes_and_without_returns_or_intensity(terrain, lacking):
    labels = from_lidar(without(clouds.town(terrain), *lacking), GRID)
    found = agreement(labels.mask, *places(GRID))
    assert found["house"] > 0.85 and found["tree"] > 0.9 and found["rest"] > 0.97, found
    assert found["road"] > 0.97 if "intensity" not in lacking else not (labels.mask == ROAD).any()
    x, y = places(GRID)
    off = labels.statistics.ground.values - terrain(x, y)
    assert abs(np.median(off)) < 0.25 and np.percentile(abs(off), 95) < 1.0
    unknown = {"number_of_returns": "multiple", "intensity": "intensity"}
    assert {unknown[name] for name in lacking if name in unknown} == {
        name for name, layer in labels.statistics.items() if np.isnan(layer).all()
    }


def test_zeros_tell_no_more_than_nothing(town):
    zeros = np.zeros(len(town), np.uint8)
    for value in (zeros, zeros + 1):
        blank = dataclasses.replace(town, return_number=value, number_of_returns=value, classification=value)
        bare = without(town, "return_number", "number_of_returns")
        assert np.array_equal(from_lidar(blank, GRID).mask, from_lidar(bare, GRID).mask)
    dark = dataclasses.replace(town, intensity=zeros.astype(np.uint16))
    assert np.array_equal(from_lidar(dark, GRID).mask, from_lidar(without(town, "intensity"), GRID).mask)


def lawn(x: np.ndarray, y: np.ndarray, z: np.ndarray, **more) -> Points:
    return Points(X0 + x, Y0 - y, z, crs=clouds.UTM, **more)


def test_a_hill_is_no_house_and_a_hall_is_no_hill():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 240, (2, 3 * 240 * 240))
    noise = rng.normal(0, 0.03, len(x))
    hill = 100 + 25 * np.exp(-((x - 120) ** 2 + (y - 120) ** 2) / 2 / 40**2)  # 38 % at its steepest
    assert (from_lidar(lawn(x, y, hill + noise), grid_of(240)).mask == BACKGROUND).mean() > 0.9995
    hall = (x > 40) & (x < 190) & (y > 60) & (y < 180)  # 150 x 120 m, and machines on it
    roof = 109 + 1.5 * ((x % 24 < 2) & (y % 24 < 2))
    grid = grid_of(240)
    mask = from_lidar(lawn(x, y, np.where(hall, roof, 100 + 0.01 * x) + noise), grid).mask
    east, south = places(grid)
    inside = (east > 40) & (east < 190) & (south > 60) & (south < 180)
    assert iou(mask == BUILDING, inside, mask < 255) > 0.97 and not (mask == TREE).any()


@pytest.mark.parametrize("where", ["hills", "terraces"])
def test_a_hall_at_the_end_of_the_returns_is_no_hill(where):
    terrain = {
        "hills": lambda x, y: 100 + 8 * np.sin(x / 35) * np.cos(y / 30),
        "terraces": lambda x, y: 100 + 2 * np.floor(0.06 * x),
    }[where]
    rng = np.random.default_rng(6)
    x, y = rng.uniform(-20, 220, (2, 4 * 240 * 240))
    hall = (x > 140) & (y > 20) & (y < 65)
    z = np.where(hall, terrain(np.array([180.0]), np.array([42.0]))[0] + 9, terrain(x, y))
    grid = grid_of(200)
    mask = from_lidar(lawn(x, y, z + rng.normal(0, 0.05, len(x))), grid).mask
    east, south = places(grid)
    assert iou(mask == BUILDING, (east > 140) & (south > 20) & (south < 65), mask < 255) > 0.9


@pytest.mark.parametrize("density", [2, 5, 20])
def test_leaves_without_numbers_of_returns_are_known_by_what_comes_through_them(density):
    rng = np.random.default_rng(7)
    x, y = rng.uniform(0, SIZE, (2, density * SIZE * SIZE))
    wood, roof = (x < 30) & (y < 50), (x > 50) & (x < 65) & (y > 20) & (y < 60)
    z = np.where(wood & (rng.random(len(x)) < 0.5), 9 + rng.normal(0, 0.5, len(x)), 0.0)  # crowns trimmed to a level
    z = np.where(roof, 7.0, z) + rng.normal(0, 0.15, len(x))
    mask = from_lidar(lawn(x, y, z), GRID).mask
    east, south = places(GRID)
    crowns = mask[(east < 29) & (south < 49)]
    assert (crowns == TREE).mean() > 0.7 and (crowns == BUILDING).mean() < 0.01
    assert iou(mask == BUILDING, (east > 50) & (east < 65) & (south > 20) & (south < 60), mask < 255) > 0.85


def test_a_roof_as_wide_as_the_grid_is_known_by_the_ground_beside_it():
    rng = np.random.default_rng(2)
    x, y = rng.uniform(-30, 50, (2, 5 * 80 * 80))
    roof = (x > -5) & (x < 25) & (y > -5) & (y < 25)
    cloud = lawn(x, y, np.where(roof, 12.0, 5.0) + rng.normal(0, 0.03, len(x)))
    assert (from_lidar(cloud, grid_of(20)).mask == BUILDING).all()


@pytest.mark.parametrize("steep", [0.0, 0.35])
@pytest.mark.parametrize("numbers", [True, False])
def test_a_dense_forest_on_a_slope_is_trees(steep, numbers):
    rng = np.random.default_rng(3)
    x, y = rng.uniform(0, 160, (2, 4 * 160 * 160))
    bare, wood = 400 + steep * x, x < 90
    crown = 14 + 5 * np.sin(x / 1.7) * np.cos(y / 1.9) - rng.exponential(1.0, len(x))
    low = rng.random(len(x)) < 0.06  # few pulses reach the ground
    z = bare + np.where(wood & ~low, crown, 0) + rng.normal(0, 0.03, len(x))
    of = np.where(wood & (rng.random(len(x)) < 0.4), 2, 1).astype(np.uint8)
    two = np.flatnonzero(of == 2)  # the second return comes from anywhere below the first
    x, y, z, of = (
        np.r_[x, x[two]],
        np.r_[y, y[two]],
        np.r_[z, bare[two] + rng.random(len(two)) * 12],
        np.r_[of, of[two]],
    )
    cloud = lawn(x, y, z, return_number=np.ones_like(of), number_of_returns=of)
    grid = grid_of(160)
    mask = from_lidar(cloud if numbers else without(cloud, "return_number", "number_of_returns"), grid).mask
    assert iou(mask == TREE, places(grid)[0] < 90, mask < 255) > 0.93 and (mask == BUILDING).mean() < 0.01


def test_wires_lamps_and_walls_are_no_trees():
    rng = np.random.default_rng(4)
    x, y = rng.uniform(0, SIZE, (2, 8 * SIZE * SIZE))
    z = rng.normal(0, 0.03, len(x))
    z[(abs(y - 20) < 0.1)] = 9.0  # a wire
    z[np.hypot(x - 60, y - 60) < 0.4] = 7.0  # a lamp
    z[(abs(y - 40.5) < 0.3) & (x > 20)] = 2.5  # a wall
    assert (from_lidar(lawn(x, y, z), GRID).mask != BACKGROUND).mean() < 0.005


def test_outliers_do_not_make_labels(town, labels):
    rng = np.random.default_rng(2)
    z = np.r_[rng.uniform(-30, 5, 20), rng.uniform(60, 150, 20)]
    stray = lawn(*rng.uniform(0, SIZE, (2, 40)), z)
    assert (from_lidar(concatenate([town, stray]), GRID).mask == labels.mask).mean() > 0.99


# --- what the statistics say


def test_statistics_are_layers_on_the_grid_with_the_heights_that_were_built(town, labels):
    s = labels.statistics
    judged = {"multiple", "roughness", "scatter", "hollow", "cover", "intensity"}
    assert set(s) == {"density", "ground", "height", "low"} | judged
    assert all(layer.shape == (SIZE, SIZE) and layer.dtype == np.float32 for layer in s.values())
    assert s.x.values[0] == X0 + 0.5 and s.y.values[0] == Y0 - 0.5 and s.attrs["crs"] == "EPSG:32618"
    assert s.odc.crs == GRID.crs and s.odc.geobox == GRID
    ridge, eave = s.height.values[29:31, 32:48], s.height.values[[20, 39], 32:48]
    assert abs(np.median(ridge) - 9) < 0.3 and abs(np.median(eave) - 6) < 0.6
    assert float(s.roughness[24:36, 34:46].max()) < 0.3 < 0.7 < float(s.roughness[58:62, 63:67].min())
    assert float(s.multiple[24:36, 34:46].max()) == 0 and 0.4 < float(s.multiple[58:62, 63:67].mean()) < 0.8
    assert float(s.cover[24:36, 34:46].min()) == 1 and float(s.cover[:10, :10].max()) == 0
    assert float(s.density.sum()) == len(town) and abs(float(s.intensity[5:15, 60:70].mean()) - 1) < 0.2
    assert float(s.hollow[24:36, 34:46].max()) < 0.1 < 0.5 < float(s.hollow[58:62, 63:67].min())
    shares = [s[name].values for name in ("multiple", "hollow", "cover")]
    assert all(np.nanmin(a) >= 0 and np.nanmax(a) <= 1 for a in shares)


def test_share_of_pulses_with_several_returns_is_counted_by_pulse():
    x = np.repeat(np.arange(0.5, 30), 30)
    y = np.tile(np.arange(0.5, 30), 30)
    one = lawn(x, y, np.zeros(900), number_of_returns=np.ones(900, np.uint8))
    three = lawn(np.repeat(x, 3), np.repeat(y, 3), np.zeros(2700), number_of_returns=np.full(2700, 3, np.uint8))
    share = measure(concatenate([one, three]), grid_of(30)).multiple.values
    assert np.allclose(share, 0.5), "as many pulses with three returns as with one"


@pytest.mark.parametrize("pixel_m", [0.5, 1.0])
def test_the_mask_follows_from_the_statistics(town, pixel_m):
    labels = from_lidar(town, grid_of(SIZE, pixel_m))
    assert np.array_equal(apply_rules(labels.statistics), labels.mask)
    xr.testing.assert_identical(labels.statistics, measure(town, grid_of(SIZE, pixel_m)))


def test_rules_are_thresholds_in_metres(town):
    assert (from_lidar(town, GRID, rules=LidarRules(high_m=9.5)).mask[22:38, 32:48] != BUILDING).all()
    assert not (from_lidar(town, GRID, rules=LidarRules(road_intensity=0.05)).mask == ROAD).any()
    assert not (from_lidar(town, GRID, rules=LidarRules(building_m2=500)).mask == BUILDING).any()


# --- void


def test_cells_far_from_any_return_are_void_and_small_gaps_are_filled(town):
    x, y = town.x - X0, Y0 - town.y
    hole, gap = (x > 56) & (x < 76) & (y > 4) & (y < 24), (abs(x - 70) < 1) & (abs(y - 36) < 1)
    labels = from_lidar(town[~(hole | gap)], GRID)
    assert (labels.mask[8:20, 60:72] == 255).all() and (labels.mask[34:38, 68:72] == BACKGROUND).all()
    for name in set(labels.statistics) - {"density"}:
        assert np.isnan(labels.statistics[name].values[8:20, 60:72]).all(), name
    assert np.isnan(labels.statistics.height.values[labels.mask == 255]).all()
    for name in ("ground", "height", "low"):
        layer = labels.statistics[name].values
        assert np.array_equal(np.isfinite(layer), labels.mask != 255) and abs(layer[labels.mask != 255]).max() < 40, (
            name
        )
    wide = from_lidar(town[~(hole | gap)], GRID, rules=LidarRules(gap_m=15)).mask
    assert (wide != 255).all()


@given(seed=st.integers(0, 99), gap_m=st.sampled_from([1.0, 2.0, 3.0]), pixel_m=st.sampled_from([0.5, 1.0]))
@settings(max_examples=25, deadline=None)
def test_void_is_exactly_what_is_farther_than_the_gap(seed, gap_m, pixel_m):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 30, (2, rng.integers(1, 60)))
    grid = grid_of(30, pixel_m)
    labels = from_lidar(lawn(x, y, np.zeros(len(x))), grid, rules=LidarRules(gap_m=gap_m))
    empty = labels.statistics.density.values == 0
    assert np.array_equal(labels.mask == 255, ndimage.distance_transform_edt(empty) * pixel_m > gap_m + 1e-9)


# --- what labels do not depend on


@pytest.mark.parametrize("what", ["order", "intensity gain", "codes of buildings and plants", "parts", "far points"])
def test_labels_do_not_depend_on(town, labels, what, monkeypatch):
    if what == "order":
        other = town[np.random.default_rng(1).permutation(len(town))]
    elif what == "intensity gain":
        other = dataclasses.replace(town, intensity=town.intensity * np.uint16(3))
    elif what == "parts":
        monkeypatch.setattr(cells, "CHUNK", 777)
        other = town
    elif what == "far points":
        away = dataclasses.replace(town, x=town.x + 400, z=town.z + 50)
        other = concatenate([town, away])
    else:
        codes = np.random.default_rng(1).choice(np.array([0, 1, 3, 4, 5, 6, 9, 17], np.uint8), len(town))
        other = dataclasses.replace(town, classification=codes)
    assert np.array_equal(from_lidar(other, GRID).mask, labels.mask)


@given(east=st.integers(-5000, 5000), north=st.integers(-5000, 5000), up=st.integers(-100, 3000))
@settings(max_examples=8, deadline=None)
def test_a_moved_scene_has_the_same_labels(east, north, up):
    town = clouds.town(density=3)
    moved = dataclasses.replace(town, x=town.x + east, y=town.y + north, z=town.z + up)
    grid = GeoBox(GRID.shape, Affine.translation(east, north) * GRID.transform, GRID.crs)
    assert (from_lidar(moved, grid).mask == from_lidar(town, GRID).mask).mean() > 0.999


@pytest.mark.parametrize("turn", ["south up", "mirrored", "quarter", "oblique"])
def test_turned_and_flipped_grids_look_at_the_same_places(town, labels, turn):
    shapes = {
        "south up": (Affine.translation(0, SIZE) * Affine.scale(1, -1), lambda m: m[::-1]),
        "mirrored": (Affine.translation(SIZE, 0) * Affine.scale(-1, 1), lambda m: m[:, ::-1]),
        "quarter": (Affine.translation(0, SIZE) * Affine.rotation(-90), lambda m: np.rot90(m, -1)),
        "oblique": (Affine.translation(20, 10) * Affine.rotation(30), None),
    }
    change, same = shapes[turn]
    grid = GeoBox((SIZE, SIZE) if same else (40, 40), GRID.transform * change, GRID.crs)
    got = from_lidar(town, grid)
    if same:
        assert (got.mask == same(labels.mask)).mean() > 0.98
    else:
        x, y = places(grid)
        house = (abs(x - 40) < 10) & (abs(y - 30) < 10)
        assert iou(got.mask == BUILDING, house, got.mask < 255) > 0.85
        assert got.statistics.odc.crs == grid.crs and dict(got.statistics.sizes) == {"y": 40, "x": 40}


def test_feet_give_the_labels_of_metres_to_the_cell(tmp_path):
    town, near = clouds.town(density=4), (300_000.0 - X0, 60_000.0 - Y0)
    town = dataclasses.replace(town, x=town.x + near[0], y=town.y + near[1])
    metres = clouds.write(tmp_path / "m.laz", town, "EPSG:32118+5703", scale=1e-4)
    feet = clouds.write(tmp_path / "ft.laz", town, "EPSG:2263+6360", scale=1e-4, unit=US_FOOT)
    grid = GeoBox((SIZE, SIZE), Affine.translation(*near) * GRID.transform, "EPSG:32118")
    in_feet = GeoBox((SIZE, SIZE), Affine.scale(1 / US_FOOT) * grid.transform, "EPSG:2263")
    want = from_lidar(metres, grid)
    assert agreement(want.mask, *places(GRID))["house"] > 0.85
    for path, on in ((feet, grid), (metres, in_feet), (feet, in_feet)):
        got = from_lidar(path, on)
        assert (got.mask == want.mask).mean() > 0.9995 and abs(got.statistics.attrs["pixel_m"] - 1) < 1e-6
        assert np.nanpercentile(abs(got.statistics.height.values - want.statistics.height.values), 99) < 0.01


def test_points_of_another_crs_are_brought_to_the_grid(town, labels):
    to_17 = pyproj.Transformer.from_crs("EPSG:32618", "EPSG:32617", always_xy=True)
    x, y = to_17.transform(town.x, town.y)
    other = dataclasses.replace(town, x=x, y=y, crs=pyproj.CRS("EPSG:32617"))
    assert (from_lidar(other, GRID).mask == labels.mask).mean() > 0.99


# --- codes, files, images


def test_codes_of_ground_and_noise_are_used_and_others_not_needed(town, labels):
    x, y = town.x - X0, Y0 - town.y
    floor = 20 + 0.03 * x
    codes = np.where(town.z - floor < 0.2, 2, 1).astype(np.uint8)
    coded = from_lidar(dataclasses.replace(town, classification=codes), GRID)
    assert (coded.mask == labels.mask).mean() > 0.98
    mound = (abs(x - 60) < 12) & (abs(y - 25) < 12)  # steep, high and flat: only a code tells that it is no roof
    raised = dataclasses.replace(town, z=town.z + 5 * mound, classification=codes)
    assert (from_lidar(raised, GRID).mask[16:34, 52:69] == BACKGROUND).mean() > 0.9
    assert (from_lidar(without(raised, "classification"), GRID).mask[16:34, 52:69] == BUILDING).mean() > 0.9
    everything = dataclasses.replace(town, classification=np.full(len(town), 2, np.uint8))
    assert np.array_equal(from_lidar(everything, GRID).mask, labels.mask), "where all is called ground, nothing is"
    clutter = lawn(*np.random.default_rng(0).uniform(0, SIZE, (2, 4000)), np.full(4000, 40.0))
    noisy = [dataclasses.replace(p, classification=np.full(len(p), c, np.uint8)) for p, c in ((town, 1), (clutter, 7))]
    assert np.array_equal(from_lidar(concatenate(noisy), GRID).mask, labels.mask)


def test_files_several_files_and_points_are_the_same(tmp_path, town):
    whole = clouds.write(tmp_path / "whole.laz", town)
    want = from_lidar(read_points(whole), GRID)
    assert np.array_equal(from_lidar(whole, GRID).mask, want.mask)
    west = town.x < X0 + 33
    parts = [clouds.write(tmp_path / f"{i}.las", town[m]) for i, m in enumerate((west, ~west))]
    assert np.array_equal(from_lidar(map(str, parts), GRID).mask, want.mask)
    import loopback

    octree = tmp_path / "a.copc.laz"
    octree.write_bytes(loopback.copc(town.x, town.y, town.z, "EPSG:32618", intensity=town.intensity,
                                     number_of_returns=town.number_of_returns))  # fmt: skip
    assert (from_lidar(octree, GRID).mask == want.mask).mean() > 0.99


def test_a_cloud_without_crs_is_in_that_of_the_grid_if_it_lies_there(tmp_path, town, labels):
    path = clouds.write(tmp_path / "plain.las", town, crs=None)
    assert (from_lidar(path, GRID).mask == labels.mask).mean() > 0.999
    in_feet = GeoBox((SIZE, SIZE), Affine.scale(1 / US_FOOT) * GRID.transform, "EPSG:2263")
    feet = clouds.write(tmp_path / "feet.las", town, crs=None, unit=US_FOOT)
    assert (from_lidar(feet, in_feet).mask == labels.mask).mean() > 0.999, "heights are in the grid's unit too"
    with pytest.raises(SourceError, match=r"feet\.las \(no CRS.*falls on the grid"):
        from_lidar(feet, GRID)


def bands(grid: GeoBox, green: np.ndarray) -> np.ndarray:
    red = np.where(green, 30, 90).astype(np.uint8)
    return np.stack([red, np.full(grid.shape, 50, np.uint8), np.where(green, 150, 80).astype(np.uint8)])


@pytest.mark.parametrize("pixel_m", [0.5, 1.0, 2.0])
def test_an_image_is_a_third_witness(pixel_m):
    grid, town = grid_of(SIZE, pixel_m), clouds.town()
    x, y = places(grid)
    lush = bands(grid, (abs(x - 40) < 10) & (abs(y - 30) < 10) | (abs(x - 15) < 5))
    names = ("red", "green", "nir")
    with_image = from_lidar(town, grid, image=(lush, names))
    assert not (with_image.mask == ROAD).any(), "what is green is no road"
    assert abs(float(with_image.statistics.ndvi.max()) - 120 / 180) < 1e-5
    wood = from_lidar(town, grid, rules=LidarRules(green_ndvi=0.1), image=(lush, names)).mask
    assert not (wood == BUILDING).any(), "a calm green roof of leaves"
    array = xr.DataArray(lush, dims=("band", "y", "x"), coords={"band": list(names)})
    xr.testing.assert_identical(from_lidar(town, grid, image=array).statistics, with_image.statistics)
    bare = from_lidar(town, grid, image=(bands(grid, np.zeros(grid.shape, bool)), names)).mask
    assert agreement(bare, x, y)["house"] > 0.85


# --- errors


def test_errors_name_the_cause(town, tmp_path):
    away = GeoBox((9, 9), Affine(1, 0, 0, 0, -1, 9), "EPSG:32618")
    with pytest.raises(ValueError, match="falls on the grid"):
        from_lidar(town, away)
    with pytest.raises(SourceError, match=r"town\.laz: no return falls on the grid"):
        from_lidar(clouds.write(tmp_path / "town.laz", town), away)
    with pytest.raises(ValueError, match="degrees"):
        from_lidar(town, GeoBox((9, 9), Affine(1, 0, 0, 0, -1, 9), "EPSG:4326"))
    for transform in (Affine(1, 0, X0, 0, -2, Y0), Affine(1, 0.5, X0, 0, -1, Y0)):
        with pytest.raises(ValueError, match="pixels are square"):
            from_lidar(town, GeoBox((9, 9), transform, "EPSG:32618"))
    with pytest.raises(ValueError, match="red"):
        from_lidar(town, GRID, image=(np.zeros((1, SIZE, SIZE)), ["nir"]))
    with pytest.raises(ValueError, match="on the grid"):
        from_lidar(town, GRID, image=(np.zeros((2, 9, 9)), ["nir", "red"]))
    with pytest.raises(ValueError, match="`band`"):
        from_lidar(town, GRID, image=xr.DataArray(np.zeros((2, SIZE, SIZE)), dims=("band", "y", "x")))
    moon = dataclasses.replace(town, crs=pyproj.CRS("+proj=tmerc +lon_0=10 +R=1737400 +units=m +type=crs"))
    with pytest.raises(ValueError, match="falls on the grid|no way from"):
        from_lidar(moon, GRID)


def test_damaged_files_give_a_mask_or_a_named_error(tmp_path, town):
    path = clouds.write(tmp_path / "a.laz", town[:4000])
    good, refused = path.read_bytes(), 0
    for case in range(200):
        path.write_bytes(damaged(good, np.random.default_rng([case, len(good)])))
        try:
            mask = from_lidar(path, grid_of(SIZE, 2)).mask
            assert set(np.unique(mask)) <= {0, 1, 2, 3, 255}
        except SourceError as error:
            assert "a.laz" in str(error), f"case {case}: {error}"
            refused += 1
    assert 20 < refused < 200


# --- the parts


@given(st.integers(1, 9), st.integers(0, 99), st.sampled_from([np.minimum, np.maximum]))
@settings(max_examples=40, deadline=None)
def test_windows_are_those_of_scipy(width, seed, how):
    a = np.random.default_rng(seed).normal(size=(11, 14)).astype(np.float32)
    oracle = ndimage.minimum_filter if how is np.minimum else ndimage.maximum_filter
    assert np.array_equal(
        cells.window(a, width, how), oracle(a, width, origin=-1 if width % 2 == 0 else 0, mode="nearest")
    )
    assert np.array_equal(cells.window(a, width, how, mirrored=True), oracle(a, width, mode="nearest"))


@given(st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_openings_only_remove_and_do_so_once(width, seed):
    mask = np.random.default_rng(seed).random((20, 20)) < 0.8
    once = cells.opened(mask, width)
    assert not (once & ~mask).any() and np.array_equal(cells.opened(once, width), once)


def test_sums_over_boxes_and_blocks():
    a = np.random.default_rng(0).integers(0, 9, (6, 8)).astype(float)
    assert np.array_equal(cells.box(a, 1), ndimage.convolve(a, np.ones((3, 3)), mode="constant"))
    assert np.array_equal(cells.box(a, 2), ndimage.convolve(a, np.ones((5, 5)), mode="constant"))
    assert np.array_equal(cells.in_blocks(a, 2), a.reshape(3, 2, 4, 2).sum(axis=(1, 3)))
    assert np.array_equal(cells.in_blocks(a > 3, 2), (a > 3).reshape(3, 2, 4, 2).sum(axis=(1, 3)))
    for side in (1, 2, 3):
        assert np.array_equal(cells.spread(a, side), np.kron(a, np.ones((side, side))))


def test_gaps_in_the_ground_are_filled_from_around():
    yy, xx = np.mgrid[:60, :50].astype(np.float32)
    plane, known = 5 + 0.2 * xx - 0.1 * yy, np.ones((60, 50), bool)
    known[20:36, 15:31] = False
    filled = ground.fill(np.where(known, plane, np.inf).astype(np.float32), known)
    assert np.array_equal(filled[known], plane[known]) and abs(filled - plane)[~known].max() < 1.2
    assert (ground.fill(plane, np.zeros_like(known)) == 0).all()


# --- the real world


@pytest.mark.skipif(not ZURICH.is_dir(), reason=f"the cloud of Zurich is not at {ZURICH}; see data/README.md")
@pytest.mark.parametrize("what", ["as it is", "no numbers", "thinned", "on hills", "1 m"])
def test_zurich_agrees_with_its_class_codes(what):
    points = read_points(ZURICH / "lidar.laz")
    pixel_m = 1.0 if what == "1 m" else 0.5
    grid = GeoBox((int(200 / pixel_m), int(437.5 / pixel_m)), Affine(pixel_m, 0, 2690000, 0, -pixel_m, 1234200),
                  "EPSG:2056")  # fmt: skip
    columns, rows = ~grid.transform * (points.x, points.y)
    inside = (columns >= 0) & (columns < grid.shape[1]) & (rows >= 0) & (rows < grid.shape[0])
    at = rows[inside].astype(int) * grid.shape[1] + columns[inside].astype(int)
    count = np.bincount(at, minlength=grid.shape[0] * grid.shape[1])

    def cover(codes, least):
        hits = np.bincount(at, np.isin(points.classification[inside], codes), len(count))
        return (hits >= np.maximum(least * count, 1)).reshape(grid.shape)

    used = without(points, "classification")
    if what == "no numbers":
        used = without(used, "return_number", "number_of_returns", "intensity")
    elif what == "thinned":
        used = used[np.random.default_rng(0).random(len(used)) < 0.2]  # 2 to the square metre of land
    elif what == "on hills":
        hills = 24 * np.sin((used.x - 2690000) / 60) * np.cos((used.y - 1234000) / 60)  # up to 40 %
        used = dataclasses.replace(used, z=used.z + hills)
    mask = from_lidar(used, grid).mask
    valid = (mask != 255) & (count > 0).reshape(grid.shape)
    assert iou(mask == BUILDING, cover([6], 0.5), valid) > (0.78 if what in ("as it is", "no numbers") else 0.75)
    assert iou(mask == TREE, cover([4, 5], 0), valid) > (0.58 if what == "thinned" else 0.67)
    assert (mask == 255).mean() > 0.5, "the lake"
