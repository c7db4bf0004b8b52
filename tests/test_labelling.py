"""Labels from LiDAR on surfaces whose answer is known, and the dispatch by card."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyproj
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from nbutils import cards, labelling, legend, lidar, noise
from nbutils.files import SourceError, write_mask
from nbutils.labelling import BACKGROUND, BUILDING, ROAD, TREE, LidarRules, from_lidar
from nbutils.points import Points

SIZE = 80
X0, Y0 = 583_000.0, 4_512_000.0
GRID = GeoBox((SIZE, SIZE), Affine(1, 0, X0, 0, -1, Y0), "EPSG:32618")


def _cloud(x, y, z, intensity, number=None, of=None, crs="EPSG:32618") -> Points:
    """Returns at scene metres (x east, y south of the corner)."""
    one = np.ones(len(x), np.uint8)
    return Points(X0 + x, Y0 - y, np.asarray(z, float), np.asarray(intensity, np.uint16),
                  one if number is None else number, one if of is None else of, None, pyproj.CRS(crs))  # fmt: skip


@pytest.fixture(scope="module")
def town() -> Points:
    """A slope with a strip of asphalt (x 10..20), a box of 6 m (x 30..50, y 20..40), a tree round (65, 60)."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, SIZE, (2, 5 * SIZE * SIZE))
    z = 20 + 0.03 * x + rng.normal(0, 0.03, len(x))
    intensity = np.where((x > 10) & (x < 20), 2000, 6000) * rng.lognormal(0, 0.1, len(x))
    box = (x > 30) & (x < 50) & (y > 20) & (y < 40)
    z[box] += 6
    d = np.hypot(x - 65, y - 60)
    leaves = d < 7
    two = leaves & (rng.random(len(x)) < 0.6)
    crown = z + 3 + (10 - 0.8 * d) * rng.uniform(0.3, 1, len(x))
    number, of = np.ones(len(x), np.uint8), np.where(two, 2, 1).astype(np.uint8)
    first = _cloud(x, y, np.where(leaves, crown, z), intensity, number, of)
    second = _cloud(x[two], y[two], z[two], intensity[two], 2 * number[two], of[two])
    joined = {
        f.name: np.concatenate([getattr(first, f.name), getattr(second, f.name)])
        for f in dataclasses.fields(Points)
        if f.name not in ("classification", "crs")
    }
    return Points(**joined, classification=None, crs=first.crs)


def test_box_tree_and_strip_are_found_where_they_stand(town):
    mask = from_lidar(town, GRID).mask
    assert mask.shape == (SIZE, SIZE) and mask.dtype == np.uint8
    assert (mask[22:38, 32:48] == BUILDING).all()
    assert (mask[:, 12:18] == ROAD).mean() > 0.98
    yy, xx = np.mgrid[:SIZE, :SIZE]
    assert (mask[np.hypot(xx - 65, yy - 60) < 5] == TREE).mean() > 0.9
    rest = (np.hypot(xx - 65, yy - 60) > 9) & ~((abs(xx - 39.5) < 12) & (abs(yy - 29.5) < 12)) & (abs(xx - 14.5) > 7)
    assert (mask[rest] == BACKGROUND).mean() > 0.99


def test_statistics_are_layers_on_the_grid_with_the_heights_that_were_built(town):
    s = from_lidar(town, GRID).statistics
    assert set(s) == {"density", "ground", "height", "low", "multiple", "intensity", "roughness"}
    assert all(layer.shape == (SIZE, SIZE) and layer.dtype == np.float32 for layer in s.values())
    assert s.x.values[0] == X0 + 0.5 and s.y.values[0] == Y0 - 0.5 and s.attrs["crs"] == "EPSG:32618"
    assert abs(float(s.height[22:38, 32:48].median()) - 6) < 0.15
    assert abs(float((s.ground - (20 + 0.03 * (s.x - X0))).median())) < 0.15
    assert float(s.roughness[24:36, 34:46].max()) < 0.15 < 0.75 < float(s.roughness[58:62, 63:67].mean())
    assert float(s.density.sum()) == len(town)
    assert float(s.multiple.min()) >= 0 and float(s.multiple.max()) <= 1


def test_roughness_of_a_slope_is_zero_and_of_a_spike_is_in_closed_form():
    yy, xx = np.mgrid[:9, :9].astype(float)
    assert np.abs(lidar._roughness(3 * xx - 2 * yy)[1:-1, 1:-1]).max() < 1e-6
    spike = np.zeros((9, 9))
    spike[4, 4] = 3.0
    assert np.isclose(lidar._roughness(spike)[4, 4], np.sqrt(9 / 9 - 1 / 9))


@pytest.mark.parametrize("what", ["order", "datum", "intensity gain", "codes"])
def test_labels_do_not_depend_on(town, what):
    want = from_lidar(town, GRID).mask
    if what == "order":
        at = np.random.default_rng(1).permutation(len(town))
        values = {f.name: getattr(town, f.name) for f in dataclasses.fields(Points)}
        other = Points(**{k: v[at] if isinstance(v, np.ndarray) else v for k, v in values.items()})
    elif what == "datum":
        other = dataclasses.replace(town, z=town.z + 512)
    elif what == "intensity gain":
        other = dataclasses.replace(town, intensity=(town.intensity * 3).astype(np.uint16))
    else:
        other = dataclasses.replace(town, classification=np.full(len(town), 6, np.uint8))
    assert (from_lidar(other, GRID).mask == want).mean() > 0.9995


def test_points_of_another_crs_are_brought_to_the_grid(town):
    to_nad = pyproj.Transformer.from_crs("EPSG:32618", "EPSG:32617", always_xy=True)
    x, y = to_nad.transform(town.x, town.y)
    other = dataclasses.replace(town, x=x, y=y, crs=pyproj.CRS("EPSG:32617"))
    assert (from_lidar(other, GRID).mask == from_lidar(town, GRID).mask).mean() > 0.999


def test_grid_in_feet_uses_thresholds_in_metres(town):
    to_feet = pyproj.Transformer.from_crs("EPSG:32618", "EPSG:2263", always_xy=True)
    east, north = to_feet.transform(X0 + 40, Y0 - 30)  # the middle of the box
    grid = GeoBox((30, 30), Affine(3.28, 0, east - 49.2, 0, -3.28, north + 49.2), "EPSG:2263")
    labels = from_lidar(town, grid)
    assert abs(labels.statistics.attrs["pixel_m"] - 1) < 0.01
    assert (labels.mask[9:21, 9:21] == BUILDING).all()


def test_cells_far_from_any_return_are_void_and_small_gaps_are_filled(town):
    x, y = town.x - X0, Y0 - town.y
    hole, gap = (x > 56) & (x < 76) & (y > 4) & (y < 24), (np.abs(x - 70) < 1) & (np.abs(y - 36) < 1)
    keep = ~(hole | gap)
    values = {f.name: getattr(town, f.name) for f in dataclasses.fields(Points)}
    labels = from_lidar(Points(**{k: v[keep] if isinstance(v, np.ndarray) else v for k, v in values.items()}), GRID)
    assert (labels.mask[8:20, 60:72] == 255).all()
    assert (labels.mask[34:38, 68:72] == BACKGROUND).all()
    assert np.isnan(labels.statistics.height.values[labels.mask == 255]).all()


def test_outliers_do_not_make_labels(town):
    rng = np.random.default_rng(2)
    stray = _cloud(rng.uniform(55, 80, 20), rng.uniform(0, 30, 20), np.r_[np.full(10, -15.0), np.full(10, 90.0)],
                   np.full(20, 5000))  # fmt: skip
    joined = {
        f.name: np.concatenate([getattr(town, f.name), getattr(stray, f.name)])
        for f in dataclasses.fields(Points)
        if f.name not in ("classification", "crs")
    }
    both = Points(**joined, classification=None, crs=town.crs)
    assert (from_lidar(both, GRID).mask == from_lidar(town, GRID).mask).mean() > 0.995


def test_rules_are_thresholds_in_metres(town):
    assert (from_lidar(town, GRID, rules=LidarRules(high_m=7.0)).mask[22:38, 32:48] != BUILDING).all()
    assert not (from_lidar(town, GRID, rules=LidarRules(road_intensity=0.05)).mask == ROAD).any()


def test_errors_name_the_cause(town):
    with pytest.raises(ValueError, match="falls on the grid"):
        from_lidar(town, GeoBox((9, 9), Affine(1, 0, 0, 0, -1, 9), "EPSG:32618"))
    with pytest.raises(ValueError, match="degrees"):
        from_lidar(town, GeoBox((9, 9), Affine(1, 0, 0, 0, -1, 9), "EPSG:4326"))


def _dataset(noisy, exact_path: Path | None = None):
    exact = cards.Masks.model_validate({"glob": "*", "coding": "index", "legend": "dubai5"})
    card = SimpleNamespace(noisy=noisy, exact=exact)
    tile = SimpleNamespace(name="a/b", image=exact_path, exact=exact_path, noisy=None)
    return SimpleNamespace(card=card, exact_legend=legend.get("dubai5")), tile


def test_injected_masks_are_the_tiles_own_and_repeatable(tmp_path):
    exact = np.kron(np.random.default_rng(0).integers(0, 5, (8, 8)), np.ones((12, 12))).astype(np.uint8)
    path = write_mask(tmp_path / "exact.tif", exact, GeoBox((96, 96), GRID.transform, GRID.crs), legend.get("dubai5"))
    inject = cards.Inject.model_validate({"from": "inject", "recipe": next(iter(noise.RECIPES)), "seed": 3})
    dataset, tile = _dataset(inject, path)
    first = labelling.noisy_mask(dataset, tile)
    assert np.array_equal(first, labelling.noisy_mask(dataset, tile)) and 0.01 < (first != exact).mean() < 0.8
    tile.name = "a/c"
    assert not np.array_equal(first, labelling.noisy_mask(dataset, tile))
    still = inject.model_copy(update={"strength": 0.0})
    assert np.array_equal(labelling.noisy_mask(_dataset(still, path)[0], tile), exact)


def test_missing_noisy_file_is_named():
    dataset, tile = _dataset(cards.Lidar.model_validate({"from": "lidar", "glob": "*.laz"}))
    with pytest.raises(SourceError, match="a/b"):
        labelling.noisy_mask(dataset, tile)
