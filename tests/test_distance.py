"""Bounded distances against SciPy's transform and against counting by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from nbutils import distance
from nbutils.legend import VOID

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)
REACH = st.one_of(st.integers(0, 12), st.floats(0, 70), st.just(np.inf))


@settings(deadline=None, max_examples=300)
@given(SHAPES, st.floats(0, 0.2), REACH, st.integers(0, 2**32 - 1))
def test_near_is_the_whole_transform_cut_off_at_the_reach(shape, share, reach, seed):
    mask = np.random.default_rng(seed).random(shape) < share
    expected = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(shape, np.inf)
    found = distance.near(mask, reach)
    assert found.dtype == np.float32
    sure = ~np.isclose(expected, reach, atol=1e-5) | np.isinf(expected)  # at the reach itself, rounding decides
    expected = np.where(expected > reach, np.inf, expected)
    assert np.array_equal(found[sure], expected.astype(np.float32)[sure])


def test_near_over_many_blocks_of_rows():
    mask = np.random.default_rng(0).random((301, 997)) < 0.002
    whole = ndimage.distance_transform_edt(~mask).astype(np.float32)
    for reach in (1, 5, 16, 64, 65):
        assert np.array_equal(distance.near(mask, reach), np.where(whole > reach, np.inf, whole))


@pytest.mark.parametrize(
    "mask, reach, message",
    [
        (np.zeros((1, 2, 3), bool), 1, r"\(1, 2, 3\)"),
        (np.zeros((2, 3), bool), -1, "-1"),
        (np.zeros((2, 2)), np.nan, "nan"),
    ],
)
def test_near_says_what_it_expects(mask, reach, message):
    with pytest.raises(ValueError, match=message):
        distance.near(mask, reach)


def test_boundary_distance_by_hand():
    mask = np.repeat(np.array([[0, 0, 0, 1, 1, 1, 1, VOID]], np.uint8), 3, axis=0)
    assert distance.boundary_distance(mask)[1].tolist() == [3, 2, 1, 1, 2, 3, 4, np.inf]
    assert distance.boundary_distance(mask, 2)[1].tolist() == [np.inf, 2, 1, 1, 2, np.inf, np.inf, np.inf]
    assert np.isinf(distance.boundary_distance(np.full((3, 3), 2, np.uint8))).all()


@settings(deadline=None)
@given(hnp.arrays(np.uint8, SHAPES, elements=st.sampled_from([0, 1, 2, VOID])))
def test_boundaries_are_where_neighbours_differ(mask):
    found = distance.boundaries(mask)
    padded = np.pad(mask, 1, constant_values=VOID)
    for (y, x), here in np.ndenumerate(mask):
        beside = {int(padded[y + 1 + dy, x + 1 + dx]) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))}
        assert found[y, x] == (here != VOID and bool(beside - {int(here), VOID}))
    assert ((distance.boundary_distance(mask, 5) == 1) == found).all()


@settings(deadline=None, max_examples=200)
@given(SHAPES, st.floats(0, 0.2), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_squared_is_the_square_up_to_that_of_one_pixel_more(shape, share, reach, seed):
    mask = np.random.default_rng(seed).random(shape) < share
    whole = np.rint(ndimage.distance_transform_edt(~mask) ** 2) if mask.any() else np.full(shape, np.inf)
    assert (distance.squared(mask, reach) == np.minimum(whole, (reach + 1) ** 2)).all()


@pytest.mark.parametrize("reach", [-1, distance.LONGEST + 1])
def test_squares_beyond_the_longest_reach_are_refused(reach):
    with pytest.raises(ValueError, match="measures as far as"):
        distance.squared(np.ones((3, 3), bool), reach)
