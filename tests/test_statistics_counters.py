"""Boundaries and confidence: counters against loops by hand and against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nbutils import statistics as stats

K = 3
TARGETS = hnp.arrays(np.uint8, (2, 6, 7), elements=st.sampled_from([*range(K), stats.VOID]))
PREDICTIONS = hnp.arrays(np.uint8, (2, 6, 7), elements=st.integers(0, K - 1))


def boundary_by_hand(ids, valid, width):
    """Every pixel looks at every other one."""
    found = np.zeros(ids.shape, bool)
    for n, y, x in zip(*np.nonzero(valid), strict=True):
        near = slice(max(0, y - width), y + width + 1), slice(max(0, x - width), x + width + 1)
        found[n, y, x] = (valid[n][near] & (ids[n][near] != ids[n, y, x])).any()
    return found


@settings(max_examples=60, deadline=None)
@given(PREDICTIONS, TARGETS, st.integers(1, 3))
def test_boundary_counts_are_those_of_a_loop(prediction, target, width):
    valid = target != stats.VOID
    ours, exact = (boundary_by_hand(ids, valid, width) for ids in (prediction, target))
    counts = stats.boundary_counts(prediction, target, K, width)
    assert counts.dtype == np.int64
    for k in range(K):
        first, second = ours & (prediction == k), exact & (target == k)
        assert counts[k].tolist() == [(first & second).sum(), (first | second).sum()]


@given(PREDICTIONS, PREDICTIONS, TARGETS)
def test_what_is_predicted_in_void_counts_nowhere(prediction, other, target):
    mixed = np.where(target == stats.VOID, other, prediction)
    np.testing.assert_array_equal(
        stats.boundary_counts(mixed, target, K, 1), stats.boundary_counts(prediction, target, K, 1)
    )


def test_a_straight_edge_has_a_boundary_on_either_side():
    target = np.zeros((1, 8, 10), np.uint8)
    target[..., 5:] = 1
    assert stats.boundary_counts(target, target, 2, 2).tolist() == [[16, 16], [16, 16]]
    shifted = np.roll(target, 1, axis=2)
    shifted[..., 0] = 0
    assert stats.boundary_counts(shifted, target, 2, 1).tolist() == [[0, 16], [0, 16]]
    assert stats.boundary_counts(shifted, target, 2, 2).tolist() == [[8, 24], [8, 24]]


def test_neither_the_rim_nor_void_is_a_boundary():
    target = np.ones((3, 9, 9), np.uint8)
    assert not stats.boundary_counts(target, target, 2, 3).any()
    target[:, 3:6] = stats.VOID
    assert not stats.boundary_counts(target, target, 2, 1).any()
    target[:, 6:] = 0  # another class, behind three rows of void
    assert not stats.boundary_counts(target, target, 2, 3).any()
    assert stats.boundary_counts(target, target, 2, 4)[0, 1] == 27  # one row of three patches sees across
    assert not stats.boundary_counts(target, np.full_like(target, stats.VOID), 2, 4).any()


def test_patches_do_not_touch():
    target = np.stack([np.full((4, 4), k, np.uint8) for k in range(3)])
    assert not stats.boundary_counts(target, target, 3, 2).any()


def test_boundary_iou_leaves_out_what_no_map_has():
    assert stats.boundary_iou([[1, 2], [0, 4], [0, 0]]) == pytest.approx(0.25)
    assert np.isnan(stats.boundary_iou(np.zeros((3, 2))))
    assert stats.boundary_iou(np.ones((4, 5, 3, 2))).shape == (4, 5)


@settings(max_examples=30, deadline=None)
@given(TARGETS)
def test_boundary_iou_of_a_map_with_itself_is_one(target):
    score = stats.boundary_iou(stats.boundary_counts(np.where(target == stats.VOID, 0, target), target, K, 1))
    assert np.isnan(score) or score == 1


@pytest.mark.parametrize(
    ("prediction", "target", "classes", "width", "says"),
    [
        (np.zeros((1, 2, 2), int), np.zeros((1, 2, 2), int), 2, 0, "width of 1 pixel or more"),
        (np.zeros((2, 2), int), np.zeros((2, 2), int), 2, 1, r"maps \(N, h, w\)"),
        (np.zeros((1, 2, 2), int), np.zeros((1, 2, 2), int), 256, 1, "at most 255 classes"),
        (np.full((1, 2, 2), 2), np.zeros((1, 2, 2), int), 2, 1, r"prediction holds \[2\]"),
    ],
)
def test_boundary_counts_refuses(prediction, target, classes, width, says):
    with pytest.raises(ValueError, match=says):
        stats.boundary_counts(prediction, target, classes, width)


def test_calibration_by_hand():
    counts = stats.calibration_counts([0.0, 0.5, 0.51, 1.0], [False, True, False, True], n_bins=2)
    np.testing.assert_allclose(counts, [[2, 0.5, 1], [2, 1.51, 1]])
    assert stats.calibration_error(counts) == pytest.approx((0.5 + 0.51) / 4)
    assert np.isnan(stats.calibration_error(np.zeros((15, 3))))
    assert stats.calibration_error(np.ones((2, 6, 15, 3))).shape == (2, 6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.integers(1, 20))
def test_calibration_error_is_that_of_torchmetrics(seed, pixels, n_bins):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(seed)
    chances = torch.tensor(rng.dirichlet(np.full(4, 0.4), pixels))
    target = torch.tensor(rng.integers(0, 4, pixels))
    sure, predicted = chances.max(dim=1)
    ours = stats.calibration_error(stats.calibration_counts(sure, predicted == target, n_bins))
    oracle = functional.multiclass_calibration_error(chances, target, 4, n_bins=n_bins, norm="l1")
    assert ours == pytest.approx(float(oracle), abs=1e-6)


@given(hnp.arrays(np.float64, 30, elements=st.floats(0, 1)), st.integers(1, 29))
def test_calibration_counts_of_parts_add_up(sure, cut):
    right = np.arange(30) % 3 > 0
    parts = stats.calibration_counts(sure[:cut], right[:cut]) + stats.calibration_counts(sure[cut:], right[cut:])
    np.testing.assert_allclose(parts, stats.calibration_counts(sure, right))


def test_counters_refuse():
    for sure in ([1.2], [-0.1], [np.nan], [0.5, 0.5]):
        with pytest.raises(ValueError, match=r"one confidence in \[0, 1\] per prediction"):
            stats.calibration_counts(sure, [True])
    with pytest.raises(ValueError, match=r"classes or bins, 2\), got shape \(3, 3\)"):
        stats.boundary_iou(np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"classes or bins, 3\), got shape \(5, 2\)"):
        stats.calibration_error(np.zeros((5, 2)))


def test_coverage_of_a_known_interval():
    rng = np.random.default_rng(0)

    def simulate(rng):
        return rng.standard_normal(), 0.0

    share = stats.coverage(simulate, lambda x, _: (x - 1.96, x + 1.96), 2000, rng)
    assert share == pytest.approx(0.95, abs=0.02)
    assert stats.coverage(simulate, lambda x, _: (np.nan, np.inf), 10, rng) == 0
