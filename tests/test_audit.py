"""The audit of a noisy map: closed forms, properties, intervals that cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nbutils import audit, noise
from nbutils.legend import VOID

K = 4
IDS = st.sampled_from([*range(K), VOID])
PAIRS = hnp.array_shapes(min_dims=2, max_dims=3, max_side=12).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.uint8, shape, elements=IDS), hnp.arrays(np.uint8, shape, elements=IDS))
)


def test_compare_by_hand():
    exact = np.array([[0, 0, 0, 1], [1, 1, VOID, 2]], np.uint8)
    noisy = np.array([[0, 0, 1, 1], [1, 0, 0, VOID]], np.uint8)
    found = audit.compare(noisy, exact, 4)
    assert found.confusion.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0] * 4, [0] * 4]
    assert found.n_valid == 6 and found.rate == pytest.approx(2 / 6)
    assert found.iou[:2] == pytest.approx([0.5, 0.5]) and np.isnan(found.iou[2:]).all() and found.mean_iou == 0.5
    assert found.omission[:2] == pytest.approx([1 / 3, 1 / 3]) and np.isnan(found.omission[2:]).all()
    assert found.commission[:2] == pytest.approx([1 / 3, 1 / 3])
    assert found.transition[0, :2] == pytest.approx([2 / 3, 1 / 3])


@given(PAIRS)
def test_compare_agrees_with_counting_pixel_by_pixel(pair):
    noisy, exact = pair
    found = audit.compare(noisy, exact, K)
    valid = (noisy != VOID) & (exact != VOID)
    for i in range(K):
        for j in range(K):
            assert found.confusion[i, j] == ((exact == i) & (noisy == j)).sum()
    assert found.n_valid == valid.sum() and found.per_image.sum(axis=0).tolist() == found.confusion.tolist()
    report = noise.report(exact, noisy)
    assert found.rate == pytest.approx(report.achieved, nan_ok=True), "audit and noise report count alike"
    assert np.array_equal(audit.compare(exact, noisy, K).confusion, found.confusion.T)
    filled = ~np.isnan(found.transition).all(axis=1)
    assert np.allclose(found.transition[filled].sum(axis=1), 1)


@given(hnp.arrays(np.uint8, (6, 7), elements=IDS))
def test_a_map_that_is_exact_has_no_noise(mask):
    found = audit.compare(mask, mask, K)
    assert found.rate == 0 or (np.isnan(found.rate) and (mask == VOID).all())
    assert np.nan_to_num(found.iou, nan=1).tolist() == [1] * K
    assert not np.nan_to_num(audit.boundary_profile(mask, mask).rate).any()


def test_images_of_different_sizes_count_together():
    sizes = [(3, 4), (5, 2), (1, 1)]
    exact = [np.zeros(size, np.uint8) for size in sizes]
    noisy = [np.full(size, i, np.uint8) for i, size in enumerate(sizes)]
    found = audit.compare(noisy, exact, 3)
    assert found.confusion[0].tolist() == [12, 10, 1] and found.per_image.shape == (3, 3, 3)


@pytest.mark.parametrize(
    "noisy, exact, message",
    [
        (np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), r"image 0.*\(2, 2\).*\(2, 3\)"),
        ([np.zeros((2, 2), np.uint8)], [np.zeros((2, 2), np.uint8)] * 2, "1 noisy masks but 2 exact"),
        (np.full((2, 2), 9, np.uint8), np.zeros((2, 2), np.uint8), "class ids 9; with 4 classes they are 0..3"),
    ],
)
def test_compare_names_what_does_not_fit(noisy, exact, message):
    with pytest.raises(ValueError, match=message):
        audit.compare(noisy, exact, K)


def test_wilson_interval_against_published_values_and_limits():
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: score without continuity correction
    for errors, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert audit.wilson_interval(errors, n) == pytest.approx((low, high), abs=6e-5)
    assert audit.wilson_interval(29, 29) == pytest.approx((0.8830, 1), abs=6e-5)
    assert audit.wilson_interval(0, 0) == (0, 1)
    for errors, confidence, says in ((5, 0.95, "got 5 of 4"), (-1, 0.95, "got -1 of 4"), (1, 95, "got 95")):
        with pytest.raises(ValueError, match=says):
            audit.wilson_interval(errors, 4, confidence)


@given(st.integers(0, 500), st.integers(1, 500), st.floats(0.5, 0.999))
def test_wilson_interval_holds_the_share(errors, n, confidence):
    errors = min(errors, n)
    low, high = audit.wilson_interval(errors, n, confidence)
    assert 0 <= low <= errors / n <= high <= 1
    mirrored = audit.wilson_interval(n - errors, n, confidence)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_the_interval_over_images_covers_and_wilson_over_pixels_does_not():
    rng = np.random.default_rng(0)
    truth, hits, pixel_hits, trials = 0.2, 0, 0, 150
    for _ in range(trials):
        wrong = rng.binomial(1000, rng.beta(4, 16, size=30))  # images differ, as they do on the ground
        counts = np.zeros((30, 2, 2), np.int64)
        counts[:, 0, 0], counts[:, 0, 1] = 1000 - wrong, wrong
        low, high = audit.Audit(counts.sum(axis=0), counts).interval(rng=rng, n_draws=400)
        hits += low <= truth <= high
        low, high = audit.wilson_interval(int(wrong.sum()), 30_000)
        pixel_hits += low <= truth <= high
    assert 0.86 <= hits / trials <= 1 and pixel_hits / trials < 0.5


def test_the_interval_covers_a_rate_that_few_images_bear():
    """Where percentiles of drawn images held 63 to 73 % at 5 to 8 images."""
    rng, hits = np.random.default_rng(0), []
    for n in (5, 8) * 150:
        wrong = rng.binomial(1000, rng.beta(0.2, 9.8, size=n))
        counts = np.zeros((n, 2, 2), np.int64)
        counts[:, 0, 0], counts[:, 0, 1] = 1000 - wrong, wrong
        low, high = audit.Audit(counts.sum(axis=0), counts).interval(rng=rng, n_draws=300)
        hits.append(low <= 0.02 <= high)
    assert np.mean(hits) >= 0.83


def test_an_interval_needs_two_images_with_valid_pixels():
    exact = np.stack([np.zeros((4, 4), np.uint8), np.full((4, 4), VOID, np.uint8)])
    found = audit.compare(np.zeros_like(exact), exact, 2)
    assert np.isnan(found.interval(rng=np.random.default_rng(0))).all()


def test_boundary_distance_by_hand():
    mask = np.repeat(np.array([[0, 0, 0, 1, 1, 1, 1, VOID]], np.uint8), 3, axis=0)
    assert audit.boundary_distance(mask)[1].tolist() == [3, 2, 1, 1, 2, 3, 4, np.inf]
    assert np.isinf(audit.boundary_distance(np.full((3, 3), 2, np.uint8))).all()


def test_boundary_profile_by_hand():
    exact = np.repeat(np.array([[0, 0, 0, 0, 1, 1, 1, 1]], np.uint8), 2, axis=0)
    noisy = exact.copy()
    noisy[:, 3] = 1  # the boundary is one pixel off
    found = audit.boundary_profile(noisy, exact, [1, 2, 3, np.inf])
    assert found.rate == pytest.approx([0.5, 0, 0]) and found.count.tolist() == [4, 4, 8]
    inner = audit.boundary_profile(noisy, exact, [2, 3, 4])
    assert inner.count.tolist() == [4, 4], "what lies outside the edges is left out"
    assert found.contrast == pytest.approx(0.5 / (2 / 16)) and np.isnan(
        audit.boundary_profile(exact, exact, [1, 2, 3, np.inf]).contrast
    )


def test_the_usual_bands_reach_as_far_as_they_say():
    exact = np.repeat(np.arange(80) >= 40, 2).reshape(80, 2).T.astype(np.uint8)  # a boundary with 40 px either side
    found = audit.boundary_profile(1 - exact, exact)
    assert found.count.tolist() == [2 * 2 * n for n in (1, 1, 2, 3, 5, 8, 20)]
    assert (found.rate == 1).all()


@settings(deadline=None)
@given(PAIRS)
def test_the_profile_shares_out_every_error(pair):
    noisy, exact = pair
    found, total = audit.boundary_profile(noisy, exact, [1, 2, 4, np.inf]), audit.compare(noisy, exact, K)
    assert found.count.sum() == total.n_valid
    wrong = np.nan_to_num(found.rate * found.count).sum()
    assert wrong == pytest.approx(total.n_valid - np.trace(total.confusion))


def test_the_profile_tells_structured_noise_from_flips():
    ids = np.random.default_rng(0).integers(0, K, (10, 10), dtype=np.uint8)
    exact = np.kron(ids, np.ones((40, 40), np.uint8))
    moved, _ = noise.move_boundaries(exact, 4, rng=np.random.default_rng(1))
    flipped, _ = noise.flip_labels(exact, audit.compare(moved, exact, K).rate, K, rng=np.random.default_rng(1))
    profiles = [audit.boundary_profile(noisy, exact, [1, 2, 4, 8, np.inf]) for noisy in (moved, flipped)]
    assert profiles[0].contrast > 2 and profiles[1].contrast == pytest.approx(1, abs=0.1)


def test_edges_must_increase():
    with pytest.raises(ValueError, match="increasing distances"):
        audit.boundary_profile(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), [3, 1])
