"""Break-even: curves whose equivalent is known, ends of the budgets, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import isotonic_regression

from nbutils import statistics, worth

ACCURACY = statistics.overall_accuracy
BUDGETS = [16, 64, 256]


def counts_of(scores):
    """Counts (S, C, 2, 2) of scenes of one size with these overall accuracies."""
    counts = np.zeros((*np.shape(scores), 2, 2))
    counts[..., 0, 0], counts[..., 0, 1] = scores, 1 - np.asarray(scores)
    return counts


def curve_of(scores, budgets=BUDGETS, rng=None, sd=0.0, seeds=3, scenes=5):
    """Counts by budget around the scores, with deviations by seed and scene."""
    noise = sd * rng.standard_normal((len(budgets), seeds, scenes)) if sd else np.zeros((len(budgets), seeds, scenes))
    return {budget: counts_of(score + each) for budget, score, each in zip(budgets, scores, noise, strict=True)}


def even(arm, baseline, **named):
    return worth.break_even(arm, baseline, metric=ACCURACY, **named)


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 7)), elements=st.floats(-1, 1)))
def test_rising_is_isotonic_regression(scores):
    fitted = worth.rising(scores)
    for ours, given_scores in zip(fitted, scores, strict=True):
        np.testing.assert_allclose(ours, isotonic_regression(given_scores).x, atol=1e-12)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=6), st.integers(-2, 22))
def test_reached_is_the_first_crossing(scores, score):
    curve, score, budgets = np.sort(scores) / 20, score / 20, 2.0 ** np.arange(4, 4 + len(scores))
    patches = float(worth.reached(curve, budgets, score))
    if score < curve[0]:
        assert patches == -np.inf
    elif score > curve[-1]:
        assert patches == np.inf
    else:
        assert budgets[0] <= patches <= budgets[-1]
        assert np.interp(np.log(patches), np.log(budgets), curve) == pytest.approx(score, abs=1e-9)
        assert (curve[budgets < patches * (1 - 1e-9)] < score).all()


def test_reached_takes_the_fewest_patches_of_a_plateau():
    assert worth.reached([0.4, 0.5, 0.5, 0.6], [4, 8, 16, 32], 0.5) == pytest.approx(8)
    assert worth.reached([0.5, 0.5], [4, 8], 0.5) == pytest.approx(4)
    assert np.isnan(worth.reached([0.4, 0.5], [4, 8], np.nan))
    assert np.isnan(worth.reached([0.4, np.nan], [4, 8], 0.45))


def test_equal_curves_are_worth_their_own_budget():
    for each in even(curve_of([0.4, 0.5, 0.6]), curve_of([0.4, 0.5, 0.6])):
        assert each.equals.bound == ""
        assert each.equals.value == pytest.approx(each.budget)
        assert each.ratio()[0].value == pytest.approx(1)
        assert each.per_noisy_patch(100)[0].value == pytest.approx(0, abs=1e-9)


def test_a_curve_shifted_by_a_factor_is_worth_that_factor():
    """Straight in log n, so that the monotone cubic is the straight line itself."""
    arm, baseline = curve_of([0.45, 0.55, 0.65]), curve_of([0.4, 0.5, 0.6])
    first, second, last = even(arm, baseline)
    assert (first.equals.value, second.equals.value) == pytest.approx((32, 128))
    assert (first.score, first.ratio()[0].value) == pytest.approx((0.45, 2))
    assert first.per_noisy_patch(8)[0].value == pytest.approx(2)
    assert str(last.equals) == "more than 256" and str(last.ratio()[0]) == "more than 1"


def test_a_power_law_is_followed_between_budgets():
    def power(n):
        return 0.7 - 0.6 * np.asarray(n, float) ** -0.4

    budgets = [8, 16, 32, 64, 128, 256]
    factor = 3
    arm, baseline = curve_of(power(np.multiply(budgets, factor)), budgets), curve_of(power(budgets), budgets)
    for each in even(arm, baseline)[:4]:
        assert each.equals.value == pytest.approx(factor * each.budget, rel=0.02)


def test_budgets_may_differ_and_come_in_any_order():
    baseline = curve_of([0.6, 0.4, 0.5], [256, 16, 64])
    (only,) = even({32: counts_of(np.full((3, 5), 0.5))}, baseline)
    assert (only.budget, only.equals.value) == (32, pytest.approx(64))


def test_one_patch_is_a_budget():
    baseline = curve_of([0.4, 0.5, 0.6], budgets=[1, 4, 16])
    assert [each.equals.value for each in even(baseline, baseline)] == pytest.approx([1, 4, 16])


def test_the_grid_rises_and_holds_the_budgets():
    grid = worth._grid(BUDGETS)
    assert (np.diff(grid) > 0).all() and set(BUDGETS) <= set(grid)


def test_nothing_is_claimed_outside_the_budgets():
    rng = np.random.default_rng(0)
    baseline = curve_of([0.4, 0.5, 0.6], rng=rng, sd=0.002)
    (above,) = even({16: counts_of(np.full((3, 5), 0.8))}, baseline)
    assert [str(each) for each in (above.equals, above.low, above.high)] == ["more than 256"] * 3
    (below,) = even({16: counts_of(np.full((3, 5), 0.2))}, baseline)
    assert [str(each) for each in (below.equals, below.low, below.high)] == ["fewer than 16"] * 3
    assert str(below.ratio()[0]) == "fewer than 1"
    assert below.per_noisy_patch(10)[0] == worth.Amount(0.0, "fewer than")
    row = above.as_row()
    assert (row["budget"], row["equals"], row["ratio_high"]) == (16, "more than 256", "more than 16")


def test_an_interval_may_end_where_the_budgets_end():
    rng = np.random.default_rng(0)
    arm, baseline = (curve_of(scores, rng=rng, sd=0.05) for scores in ([0.49, 0.5, 0.51], [0.49, 0.5, 0.51]))
    for each in even(arm, baseline):
        assert each.low == worth.Amount(16.0, "fewer than") and each.high == worth.Amount(256.0, "more than")


def test_seeds_that_falter_make_no_falling_curve():
    arm = {16: counts_of(np.full((3, 5), 0.5))}
    baseline = curve_of([0.45, 0.55, 0.53, 0.6], [16, 32, 64, 128])  # the middle is pooled at 0.54
    (only,) = even(arm, baseline)
    assert 16 < only.equals.value < 32
    (pooled,) = even({16: counts_of(np.full((3, 5), 0.54))}, baseline)
    assert pooled.equals.value == pytest.approx(32)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_interval_holds_its_point(seed):
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.uniform(0.3, 0.8, (2, 3)), axis=1)
    arm, baseline = (curve_of(each, rng=rng, sd=0.03) for each in scores)

    def place(amount):
        return {"fewer than": -np.inf, "more than": np.inf, "": amount.value}[amount.bound]

    for each in even(arm, baseline):
        assert place(each.low) <= place(each.equals) <= place(each.high)


@pytest.mark.parametrize(("shape", "known"), [((1, 1), False), ((1, 5), True), ((4, 1), True)])
def test_one_seed_or_one_scene(shape, known):
    rng = np.random.default_rng(0)
    arm, baseline = (
        curve_of(scores, rng=rng, sd=0.01, seeds=shape[0], scenes=shape[1])
        for scores in ([0.45, 0.55, 0.65], [0.4, 0.5, 0.6])
    )
    first = even(arm, baseline)[0]
    assert 16 < first.equals.value < 64
    assert np.isnan(first.low.value) != known


def test_void_scenes_count_nowhere():
    rng = np.random.default_rng(0)
    arm, baseline = (curve_of(scores, rng=rng, sd=0.01) for scores in ([0.45, 0.55, 0.65], [0.4, 0.5, 0.6]))
    longer = [{n: np.concatenate([c, 0 * c[:, :1]], 1) for n, c in each.items()} for each in (arm, baseline)]
    assert even(*longer) == even(arm, baseline)
    nothing = even(*[{n: 0 * c for n, c in each.items()} for each in (arm, baseline)])
    assert str(nothing[0].equals) == "nan" and np.isnan(nothing[0].high.value)


def test_coverage_is_what_the_docstring_says():
    """Power laws a factor 1.5 apart, with deviations by seed, arm and scene; the scenes themselves are common."""
    budgets, factor = np.array(BUDGETS), 1.5

    def simulate(rng):
        truth = 0.6 - 0.25 * (np.stack([factor * budgets, budgets]) / 16) ** -0.5
        scores = truth[..., None, None] + 0.05 * rng.standard_normal((1, 1, 1, 5))
        for sd, shape in zip((0.01, 0.02, 0.01), ((2, 3, 3, 1), (2, 1, 1, 5), (2, 3, 3, 5)), strict=True):
            scores = scores + sd * np.sqrt(0.5) * rng.standard_normal(shape)
        return [dict(zip(BUDGETS, counts_of(arm), strict=True)) for arm in scores], 64 * factor

    def interval(arms, _):
        middle = even(*arms)[1]
        return (
            0 if middle.low.bound == "fewer than" else middle.low.value,
            np.inf if middle.high.bound == "more than" else middle.high.value,
        )

    assert 0.91 <= statistics.coverage(simulate, interval, 400, np.random.default_rng(0)) <= 0.985


@pytest.mark.parametrize(
    ("arm", "baseline", "named", "says"),
    [
        (curve_of([0.4], [16]), curve_of([0.4], [16]), {}, r"baseline needs 2 or more budgets.*got \[16\]"),
        ({}, curve_of([0.4, 0.5, 0.6]), {}, "arm needs 1 or more budgets"),
        (curve_of([0.4], [0]), curve_of([0.4, 0.5, 0.6]), {}, "at least one patch"),
        (curve_of([0.4], [16], seeds=2), curve_of([0.4, 0.5, 0.6]), {}, "counts of one shape"),
        (curve_of([0.4], [16]), curve_of([0.4, 0.5, 0.6]), {"level": 95}, "level is a fraction"),
        ({16: 2 * counts_of(np.full((3, 5), 0.4))}, curve_of([0.4, 0.5, 0.6]), {}, "not paired"),
    ],
)
def test_break_even_refuses(arm, baseline, named, says):
    with pytest.raises(ValueError, match=says):
        even(arm, baseline, **named)


def test_a_share_of_no_patches_is_refused():
    with pytest.raises(ValueError, match="at least one noisy patch"):
        even(curve_of([0.4, 0.5, 0.6]), curve_of([0.4, 0.5, 0.6]))[0].per_noisy_patch(0)
