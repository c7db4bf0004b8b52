"""Outlines: displacements in closed form, growth against distance transforms, grids and generalisation."""

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio import features
from scipy import ndimage

from nbutils import noise
from nbutils.legend import VOID


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scene(seed: int, k: int = 4, shape: tuple[int, int] = (90, 110), length: float = 14) -> np.ndarray:
    """Smooth areas of k classes."""
    fields = [noise.smooth_field(shape, length, rng([seed, i])) for i in range(k)]
    return np.argmax(fields, axis=0).astype(np.uint8)


@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_whole_pixels_are_moved_exactly_and_the_edge_is_replicated(down, right, seed):
    mask = np.arange(120, dtype=np.uint8).reshape(10, 12)
    noisy, _ = noise.shift_mask(mask, rng=rng(seed), vector_px=(down, right))
    assert np.array_equal(noisy, np.pad(mask, 9, mode="edge")[9 - down : 19 - down, 9 - right : 21 - right])


@pytest.mark.parametrize("vector_px", [(0.25, 0), (0, -0.6), (1.5, 2.75), (-3.1, 0.9)])
def test_fractions_of_a_pixel_are_met_on_average(vector_px):
    """Along a ramp the class tells where a pixel came from."""
    size = 200
    ramp = np.broadcast_to(np.arange(size, dtype=np.uint8), (size, size))
    found = []
    for axis, mask in enumerate((ramp.T, ramp)):
        noisy, _ = noise.shift_mask(np.ascontiguousarray(mask), rng=rng(axis), vector_px=vector_px)
        moved = mask.astype(int) - noisy
        inner = np.s_[8:-8, 8:-8]
        assert moved[inner].max() - moved[inner].min() <= 1, "one of two whole displacements"
        found.append(moved[inner].mean())
    assert np.allclose(found, vector_px, atol=0.05)


def test_random_shifts_are_no_longer_than_asked():
    mask = scene(0)
    directions = set()
    for seed in range(30):
        noisy, _ = noise.shift_mask(mask, 3, rng=rng(seed))
        near = [np.pad(mask, 4, mode="edge")[i : i + 90, j : j + 110] for i in range(9) for j in range(9)]
        same = [(noisy == one).mean() for one in near]
        down, right = np.divmod(np.argmax(same), 9)
        assert np.hypot(down - 4, right - 4) <= 3 + np.sqrt(2)
        directions.add((down, right))
    assert len(directions) > 8


@given(st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_rotation_by_right_angles_and_by_any(seed):
    mask = scene(seed, shape=(61, 61))
    for turns in range(4):
        assert np.array_equal(noise.rotate_mask(mask, rng=rng(), degrees=90.0 * turns)[0], np.rot90(mask, -turns))
    ours = noise.rotate_mask(mask, rng=rng(), degrees=13.0)[0]
    theirs = ndimage.rotate(mask, -13.0, order=0, reshape=False, mode="nearest")
    assert (ours != theirs).mean() < 0.002, "but for rounding at the middle between two pixels"


class Drawn:
    """A source of randomness that always says the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.mark.parametrize(("value", "share"), [(0.0, -1), (0.25, -0.5), (0.5, 0), (1.0, 1)])
def test_random_angles_lie_evenly_either_way(value, share):
    mask = scene(0)
    assert np.array_equal(
        noise.rotate_mask(mask, 12, rng=Drawn(value))[0], noise.rotate_mask(mask, rng=rng(), degrees=12 * share)[0]
    )


@pytest.mark.parametrize(("distance", "length"), [(1, 8), (2, 8), (3, 12), (5, 20)])
def test_displacements_vary_over_four_times_their_size(distance, length):
    mask = scene(1)
    noisy, changed = noise.move_boundaries(mask, distance, rng=rng(3))
    assert changed.any()
    assert np.array_equal(noisy, noise.move_boundaries(mask, distance, rng=rng(3), correlation_px=length)[0])


def test_moved_boundaries_stray_by_the_distance_asked():
    mask = np.zeros((600, 600), np.uint8)
    mask[:, 300:] = 1
    noisy, changed = noise.move_boundaries(mask, 6, rng=rng())
    columns = np.flatnonzero(changed.any(axis=0))
    assert 300 - 5 * 6 <= columns.min() < columns.max() < 300 + 5 * 6
    width = (noisy == 0).sum(axis=1) - 300  # where the boundary of each row went
    assert 3 < width.std() < 9 and width.min() < 0 < width.max(), "erosion here, dilation there"


@pytest.mark.parametrize("distance", [1, 2, 3, 5.5, 9])
@given(st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_one_class_grows_and_shrinks_by_the_distance(distance, seed):
    mask = scene(seed)
    mask[rng(seed).random(mask.shape) < 0.002] = VOID
    own = mask == 1
    away = ndimage.distance_transform_edt(~own) if own.any() else np.full(mask.shape, np.inf)
    inside = ndimage.distance_transform_edt(own | (mask == VOID))
    grown, _ = noise.resize_classes(mask, {1: int(distance)}, rng=rng(seed))
    assert (((away <= int(distance)) & (mask != VOID)) != (grown == 1)).mean() < 0.004, "void is in the way at times"
    shrunk, changed = noise.resize_classes(mask, {1: -int(distance)}, rng=rng(seed))
    if (mask[~own] != VOID).any():
        assert ((own & (inside > int(distance))) != (shrunk == 1)).mean() < 0.004
    assert not changed[~own].any() and not (grown != mask)[own].any()
    half, _ = noise.resize_classes(mask, {1: distance}, rng=rng(seed))
    assert (grown == 1).sum() <= (half == 1).sum()


def test_what_shrinks_goes_to_the_nearest_neighbour():
    mask = np.zeros((21, 21), np.uint8)
    mask[:, 8:13], mask[:, 13:] = 1, 2
    noisy, _ = noise.resize_classes(mask, {1: -3}, rng=rng())
    assert (noisy[:, 8:10] == 0).all() and (noisy[:, 11:13] == 2).all() and set(noisy[:, 10]) <= {0, 2}


def test_growth_by_a_fraction_moves_that_share_of_the_boundary():
    mask = np.zeros((2000, 40), np.uint8)
    mask[:, 20:] = 1
    for growth in (0.25, 1.5, -0.75):
        noisy, _ = noise.resize_classes(mask, {1: growth}, rng=rng(3))
        assert abs((noisy == 1).sum(axis=1).mean() - 20 - growth) < 0.12
    both, _ = noise.resize_classes(mask, {0: 2, 1: 5}, rng=rng())
    assert ((both == 1).sum(axis=1) == 23).all(), "the difference counts"


def test_large_images_grow_by_fractions_too():
    mask = np.zeros((1200, 1200), np.uint8)
    mask[:, 600:] = 1
    noisy, _ = noise.resize_classes(mask, {0: 1.25}, rng=rng())
    assert (noisy == 0).sum(axis=1).mean() - 600 == pytest.approx(1.25, abs=0.1)


def test_simplified_outlines_lose_corners_up_to_the_tolerance():
    mask = np.zeros((60, 80), np.uint8)
    mask[10:50, 10:50] = 1
    mask[10:12, 20:24] = 0  # a notch of two pixels
    mask[30:38, 50:58] = 1  # a wing of eight
    mask[20:30, 20:30] = 2  # a yard within
    fine, changed = noise.simplify_outlines(mask, 3, rng=rng(), gsd_m=3.0)
    assert not changed.any(), "one pixel"
    coarse, changed = noise.simplify_outlines(mask, 3, rng=rng())
    assert changed[10:12, 20:24].all() and changed.sum() == 8 and (coarse[30:38, 50:58] == 1).all()
    rough = scene(5, length=5)
    amounts = [noise.simplify_outlines(rough, t, rng=rng())[1].mean() for t in (0.3, 1, 2, 4)]
    assert amounts[0] == 0 and amounts == sorted(amounts) and amounts[-1] < 0.5


@pytest.mark.parametrize("tolerance_px", [0.5, 1.5, 5])
def test_simplified_outlines_are_those_of_shapely_painted_the_large_ones_first(tolerance_px):
    mask = scene(7, length=4)
    mask[rng().random(mask.shape) < 0.02] = VOID
    drawn = [(shapely.Polygon(one["coordinates"][0]), value) for one, value in features.shapes(mask, mask != VOID)]
    expected = mask.copy()
    for outline, value in sorted(drawn, key=lambda pair: -pair[0].area):
        features.rasterize([(outline.simplify(tolerance_px), int(value))], out=expected)
    noisy, _ = noise.simplify_outlines(mask, tolerance_px, rng=rng())
    assert np.array_equal(noisy[mask != VOID], expected[mask != VOID])


def test_a_coarse_grid_shows_the_majority_of_its_blocks():
    mask = scene(1, k=3, shape=(64, 48), length=6)
    noisy, _ = noise.coarsen(mask, 8, rng=Halves())
    for i in range(4, 60, 8):
        for j in range(4, 44, 8):
            block, counts = noisy[i : i + 8, j : j + 8], np.bincount(mask[i : i + 8, j : j + 8].ravel(), minlength=3)
            assert (block == block[0, 0]).all() and counts[block[0, 0]] == counts.max()


class Halves(np.random.Generator):
    """Puts the grid half a block off."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def random(self, *_, **__):
        return 0.5


@given(st.floats(1.0, 20.0), st.integers(0, 99))
@example(2.0, 0)
@settings(max_examples=30, deadline=None)
def test_blocks_of_any_size_cover_every_pixel(block_px, seed):
    mask = rng(seed).integers(0, 3, (23, 31), dtype=np.uint8)
    mask[:4] = VOID
    noisy, _ = noise.coarsen(mask, block_px, rng=rng(seed))
    assert noisy.shape == mask.shape and (noisy[4:] < 3).all()
    edges = np.flatnonzero((noisy[4:, 1:] != noisy[4:, :-1]).any(axis=0))
    if len(edges) > 1:
        assert np.diff(edges).min() >= int(block_px)


def test_areas_below_the_mapping_unit_join_a_neighbour():
    mask = np.zeros((40, 40), np.uint8)
    mask[5:8, 5:8], mask[20:26, 20:26] = 1, 1
    noisy, changed = noise.coarsen(mask, 1, rng=rng(), least_px=20)
    assert changed.sum() == 9 and (noisy[20:26, 20:26] == 1).all()
