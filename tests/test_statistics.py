"""Scores against independent oracles, intervals against a simulation whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score

from nbutils import statistics as stats

K = 4
MASK = hnp.arrays(np.uint8, (6, 7), elements=st.sampled_from([*range(K), stats.VOID]))
PREDICTION = hnp.arrays(np.uint8, (6, 7), elements=st.integers(0, K - 1))
SCORES = [stats.mean_iou, stats.macro_f1, stats.overall_accuracy]


def random_stack(rng, seeds=3, scenes=5, n_classes=K, right=0.7, rows=None):
    """Counts (S, C, K, K) in which a share `right` of the pixels is right; all seeds share the exact pixels."""
    rows = rng.integers(200, 900, (scenes, n_classes)) if rows is None else rows
    chance = np.full((n_classes, n_classes), (1 - right) / (n_classes - 1))
    np.fill_diagonal(chance, right)
    return rng.multinomial(np.broadcast_to(rows, (seeds, scenes, n_classes)), chance), rows


def test_confusion_counts_by_hand():
    target = np.array([[0, 0, 1], [1, 255, 2]], dtype=np.uint8)
    prediction = np.array([[0, 1, 1], [1, 2, 0]])
    counts = stats.confusion_counts(prediction, target, 3)
    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert counts.dtype == np.int64
    np.testing.assert_allclose(stats.iou_per_class(counts), [1 / 3, 2 / 3, 0])
    assert stats.mean_iou(counts) == pytest.approx(1 / 3)
    assert stats.overall_accuracy(counts) == pytest.approx(3 / 5)


def test_confusion_counts_takes_tensors():
    torch = pytest.importorskip("torch")
    target = torch.tensor([[0, 1], [255, 1]], dtype=torch.uint8)
    assert stats.confusion_counts(torch.tensor([[0, 1], [0, 0]]), target, 2).tolist() == [[1, 0], [1, 1]]


@given(PREDICTION, MASK)
def test_confusion_counts_is_that_of_sklearn(prediction, target):
    valid = target != stats.VOID
    counts = stats.confusion_counts(prediction, target, K)
    assert counts.sum() == valid.sum()
    if valid.any():
        expected = confusion_matrix(target[valid], prediction[valid], labels=range(K))
        np.testing.assert_array_equal(counts, expected)


@given(PREDICTION, MASK)
def test_scores_are_those_of_sklearn(prediction, target):
    valid = target != stats.VOID
    counts = stats.confusion_counts(prediction, target, K)
    if not valid.any():
        assert all(np.isnan(score(counts)) for score in SCORES)
        return
    exact, predicted = target[valid], prediction[valid]
    present = np.unique(exact)
    iou = jaccard_score(exact, predicted, labels=present, average="macro", zero_division=0)
    f1 = f1_score(exact, predicted, labels=present, average="macro", zero_division=0)
    assert stats.mean_iou(counts) == pytest.approx(iou)
    assert stats.macro_f1(counts) == pytest.approx(f1)
    assert stats.overall_accuracy(counts) == pytest.approx(accuracy_score(exact, predicted))


def test_mean_iou_is_that_of_torchmetrics_where_all_classes_are_there():
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.classification")
    rng = np.random.default_rng(0)
    target = rng.choice([*range(K), 255], (2, 40, 40))
    prediction = rng.integers(0, K, (2, 40, 40))
    oracle = classification.MulticlassJaccardIndex(num_classes=K, ignore_index=255, average="macro")
    expected = float(oracle(torch.tensor(prediction), torch.tensor(target)))
    assert stats.mean_iou(stats.confusion_counts(prediction, target, K)) == pytest.approx(expected, abs=1e-6)


@given(PREDICTION, MASK, st.permutations(range(K)))
def test_renaming_classes_changes_no_score(prediction, target, order):
    lookup = np.arange(256, dtype=np.uint8)
    lookup[:K] = order
    before = stats.confusion_counts(prediction, target, K)
    after = stats.confusion_counts(lookup[prediction], lookup[target], K)
    for score in SCORES:
        np.testing.assert_allclose(score(after), score(before), equal_nan=True)


@given(PREDICTION, PREDICTION, MASK)
def test_void_never_counts(prediction, other, target):
    mixed = np.where(target == stats.VOID, other, prediction)
    np.testing.assert_array_equal(
        stats.confusion_counts(mixed, target, K), stats.confusion_counts(prediction, target, K)
    )


def test_the_rule_for_classes_that_are_not_there():
    absent_but_predicted = [[8, 0, 2], [0, 10, 0], [0, 0, 0]]
    assert np.isnan(stats.iou_per_class([[8, 2, 0], [0, 9, 0], [0, 0, 0]])[2])
    assert stats.iou_per_class(absent_but_predicted)[2] == 0
    assert stats.mean_iou(absent_but_predicted) == pytest.approx((0.8 + 1.0) / 2)
    assert stats.mean_iou([[10, 0], [10, 0]]) == pytest.approx((0.5 + 0.0) / 2)  # never predicted scores 0
    assert stats.mean_iou(np.zeros((5, 3, 3))).shape == (5,)


@pytest.mark.parametrize(
    ("prediction", "target", "error", "says"),
    [
        ([0, 3], [0, 1], ValueError, r"prediction holds \[3\].*0\.\.2"),
        ([0, 255], [0, 1], ValueError, r"prediction holds \[255\]"),
        ([0, 1], [0, 7], ValueError, r"target holds \[7\]"),
        ([0, 1], [0, -1], ValueError, r"target holds \[-1\]"),
        ([0, 1, 1], [0, 1], ValueError, "differ in shape"),
        ([0.2, 0.8], [0, 1], TypeError, "prediction must hold integer"),
    ],
)
def test_confusion_counts_refuses(prediction, target, error, says):
    with pytest.raises(error, match=says):
        stats.confusion_counts(np.array(prediction), np.array(target), 3)


def test_scores_refuse_what_is_not_square():
    with pytest.raises(ValueError, match=r"\(\.\.\., K, K\), got shape \(2, 3\)"):
        stats.mean_iou(np.zeros((2, 3)))


def test_verdict():
    assert stats.verdict(0.01, 0.02) == "supported"
    assert stats.verdict(-0.02, -0.01) == "contradicted"
    assert stats.verdict(-0.01, 0.01) == stats.verdict(0.0, 0.0) == "undecided"
    assert stats.verdict(0.01, 0.02, margin=0.05) == "contradicted"
    assert stats.verdict(float("nan"), float("nan")) == "undecided"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 4))
def test_the_same_counts_make_no_difference(seed, seeds, scenes):
    rng = np.random.default_rng(seed)
    counts, _ = random_stack(rng, seeds, scenes)
    result = stats.paired_bootstrap(counts, counts, rng=rng, n_boot=50)
    assert result.effect == 0
    assert result.verdict == "undecided"
    assert seeds * scenes == 1 or result.low == result.high == 0


def test_a_clear_difference_is_supported_and_its_reverse_contradicted():
    rng = np.random.default_rng(0)
    good, rows = random_stack(rng, right=0.8)
    poor, _ = random_stack(rng, right=0.6, rows=rows)
    result = stats.paired_bootstrap(good, poor, rng=np.random.default_rng(1))
    reverse = stats.paired_bootstrap(poor, good, rng=np.random.default_rng(1))
    assert (result.verdict, reverse.verdict) == ("supported", "contradicted")
    assert result.low < result.effect < result.high
    assert (reverse.effect, reverse.low, reverse.high) == pytest.approx((-result.effect, -result.high, -result.low))
    assert (result.n_seeds, result.n_scenes) == (3, 5)
    assert result.as_row()["verdict"] == "supported"
    assert stats.paired_bootstrap(good, poor, rng=rng, margin=0.9).verdict == "contradicted"


def test_effect_is_the_mean_over_seeds_of_pooled_scores():
    good, rows = random_stack(np.random.default_rng(0), right=0.8)
    poor, _ = random_stack(np.random.default_rng(1), right=0.6, rows=rows)
    by_hand = [stats.mean_iou(good[s].sum(0)) - stats.mean_iou(poor[s].sum(0)) for s in range(3)]
    result = stats.paired_bootstrap(good, poor, rng=np.random.default_rng(2), n_boot=10)
    assert result.effect == pytest.approx(np.mean(by_hand))
    assert stats.mean_interval(good, rng=np.random.default_rng(2)).mean == pytest.approx(
        np.mean([stats.mean_iou(good[s].sum(0)) for s in range(3)])
    )


def test_draws_are_those_of_a_plain_loop():
    """The vectorised bootstrap against indexing by hand, draw for draw in distribution."""
    rng = np.random.default_rng(0)
    a, rows = random_stack(rng, right=0.75)
    b, _ = random_stack(rng, right=0.65, rows=rows)
    draws = []
    for _ in range(4000):
        s, c = rng.integers(0, 3, 3), rng.integers(0, 5, 5)
        pooled = [stats.mean_iou(x[s][:, c].sum(1)).mean() for x in (a, b)]
        draws.append(pooled[0] - pooled[1])
    result = stats.paired_bootstrap(a, b, rng=np.random.default_rng(1), n_boot=20_000)
    width = result.high - result.low
    np.testing.assert_allclose([result.low, result.high], np.quantile(draws, [0.025, 0.975]), atol=0.08 * width)


def test_blocks_do_not_change_the_result(monkeypatch):
    a, rows = random_stack(np.random.default_rng(0))
    b, _ = random_stack(np.random.default_rng(1), rows=rows)
    whole = stats.paired_bootstrap(a, b, rng=np.random.default_rng(2), n_boot=500)
    monkeypatch.setattr(stats, "BLOCK", 1000)
    assert stats.paired_bootstrap(a, b, rng=np.random.default_rng(2), n_boot=500) == whole


def test_one_seed_on_one_scene_decides_nothing():
    rng = np.random.default_rng(0)
    good, rows = random_stack(rng, 1, 1, right=0.9)
    poor, _ = random_stack(rng, 1, 1, right=0.3, rows=rows)
    result = stats.paired_bootstrap(good, poor, rng=rng)
    assert np.isnan([result.low, result.high]).all()
    assert result.effect > 0 and result.verdict == "undecided"
    assert np.isnan(stats.mean_interval(good, rng=rng).low)


def test_a_scene_without_exact_pixels_changes_nothing():
    rng = np.random.default_rng(0)
    a, rows = random_stack(rng)
    b, _ = random_stack(rng, right=0.6, rows=rows)
    empty = np.zeros_like(a[:, :1])
    result = stats.paired_bootstrap(np.concatenate([a, empty], 1), np.concatenate([b, empty], 1), rng=rng)
    assert result.effect == pytest.approx(stats.paired_bootstrap(a, b, rng=rng).effect)
    assert np.isfinite([result.low, result.high]).all()
    nothing = stats.paired_bootstrap(np.zeros_like(a), np.zeros_like(a), rng=rng)
    assert np.isnan(nothing.effect) and nothing.verdict == "undecided"


def test_bootstrap_refuses():
    rng = np.random.default_rng(0)
    a, _ = random_stack(rng)
    other, _ = random_stack(rng)
    with pytest.raises(ValueError, match="not paired"):
        stats.paired_bootstrap(a, other, rng=rng)
    with pytest.raises(ValueError, match="not the same"):
        stats.paired_bootstrap(a, a[:, :2], rng=rng)
    with pytest.raises(ValueError, match="seeds, scenes, K, K"):
        stats.mean_interval(a[0], rng=rng)
    for wrong in (a[:0], a[..., :-1]):  # no seed; not square
        with pytest.raises(ValueError, match="seeds, scenes, K, K"):
            stats.mean_interval(wrong, rng=rng)
    with pytest.raises(ValueError, match="level is a fraction"):
        stats.mean_interval(a, rng=rng, level=95)


def simulated(rng, seeds, scenes, effect, sd=0.02):
    """Two arms whose accuracies differ by `effect` and by scene, seed and their combination."""
    rows = rng.integers(500, 501, (scenes, K))
    base = 0.6 + 0.08 * rng.standard_normal((1, scenes))
    noise = [sd * rng.standard_normal(shape) for shape in ((1, scenes), (seeds, 1), (seeds, scenes))]

    def counts(right):
        chance = ((1 - right) / (K - 1))[..., None, None] * np.ones((K, K))
        chance[..., range(K), range(K)] = right[..., None]
        return rng.multinomial(np.broadcast_to(rows, (seeds, scenes, K)), chance)

    right = np.broadcast_to(base, (seeds, scenes))
    return counts(np.clip(right + effect + sum(noise), 0.02, 0.98)), counts(np.clip(right, 0.02, 0.98))


@pytest.mark.parametrize(("seeds", "scenes", "bounds"), [(3, 5, (0.78, 0.95)), (10, 10, (0.88, 0.99))])
def test_coverage_is_what_the_docstring_says(seeds, scenes, bounds):
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        a, b = simulated(rng, seeds, scenes, effect=0.03)
        result = stats.paired_bootstrap(a, b, rng=rng, metric=stats.overall_accuracy, n_boot=300)
        covered.append(result.low <= 0.03 <= result.high)
    assert bounds[0] <= np.mean(covered) <= bounds[1]


def _planted(right: float, rng: np.random.Generator, seeds: int = 4, scenes: int = 6) -> np.ndarray:
    """Counts of two equal classes of which a share `right` is predicted right."""
    hits = np.round(1000 * np.clip(right + 0.01 * rng.normal(size=(seeds, scenes, 2)), 0, 1))
    counts = np.zeros((seeds, scenes, 2, 2))
    counts[..., [0, 1], [0, 1]], counts[..., [0, 1], [1, 0]] = hits, 1000 - hits
    return counts


def test_share_of_gain_is_the_ratio_of_the_differences():
    rng = np.random.default_rng(0)
    part, none, full = (_planted(right, rng) for right in (0.8, 0.6, 0.9))
    share = stats.share_of_gain(part, none, full, rng=rng)
    scores = [stats.mean_iou(each.sum(1)).mean() for each in (part, none, full)]
    assert share.mean == pytest.approx((scores[0] - scores[1]) / (scores[2] - scores[1]))
    assert share.low < share.mean < share.high < 1
    assert stats.share_of_gain(full, none, full, rng=rng)[:2] == pytest.approx((1, 1))


def test_scenes_that_are_not_paired_are_named():
    counts = np.ones((3, 5, 2, 2))
    other = counts.copy()
    other[1, 4, 0] += 1
    with pytest.raises(ValueError, match=r"scene\(s\) \[4\] differ"):
        stats.check_paired(counts, other)


def test_a_share_of_no_gain_is_not_a_number():
    rng = np.random.default_rng(0)
    part, none, full = (_planted(right, rng) for right in (0.8, 0.6, 0.6))
    assert np.isnan(stats.share_of_gain(part, none, full, rng=rng)).all()
    with pytest.raises(ValueError, match="not the same"):
        stats.share_of_gain(part, none, full[:2], rng=rng)


def test_boundary_iou_follows_the_rule_for_absent_classes():
    counts = np.array([[3, 4, 9], [0, 5, 0], [0, 7, 6], [0, 0, 2]])  # the second is predicted, and not there
    assert stats.boundary_iou(counts) == pytest.approx((3 / 4 + 0) / 2)
    assert np.isnan(stats.boundary_iou(np.zeros((4, 3))))
    assert stats.boundary_iou(np.ones((4, 5, 3, 3))).shape == (4, 5)
    with pytest.raises(ValueError, match=r"classes or bins, 3\), got shape \(3, 2\)"):
        stats.boundary_iou(np.zeros((3, 2)))


def test_calibration_error_weighs_bins_by_their_pixels():
    bins = [[2, 0.5, 1], [2, 1.51, 1], [0, 0, 0]]
    assert stats.calibration_error(bins) == pytest.approx((0.5 + 0.51) / 4)
    assert np.isnan(stats.calibration_error(np.zeros((15, 3))))
    with pytest.raises(ValueError, match=r"classes or bins, 3\), got shape \(5, 2\)"):
        stats.calibration_error(np.zeros((5, 2)))


def test_coverage_of_a_known_interval():
    rng = np.random.default_rng(0)

    def simulate(rng):
        return rng.standard_normal(), 0.0

    share = stats.coverage(simulate, lambda x, _: (x - 1.96, x + 1.96), 2000, rng)
    assert share == pytest.approx(0.95, abs=0.02)
    assert stats.coverage(simulate, lambda x, _: (np.nan, np.inf), 10, rng) == 0
