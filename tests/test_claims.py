"""Claims: each number against a closed form, an independent oracle or a simulation whose truth is known."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats as oracle

from nbutils import claims, statistics, worth

ACCURACY = statistics.overall_accuracy


def counts_of(shares):
    """Counts (S, C, 2, 2) of scenes of one size whose overall accuracy is as given, so that scores are means."""
    counts = np.zeros((*np.shape(shares), 2, 2))
    counts[..., 0, 0], counts[..., 0, 1] = shares, 1 - np.asarray(shares)
    return counts


def arms_of(differences):
    return counts_of(0.5 + np.asarray(differences)), counts_of(np.full(np.shape(differences), 0.5))


def crossed(rng, seeds, scenes, sds, effect=0.0):
    """Differences that vary by seed, scene and both, in points."""
    shapes = ((seeds, 1), (1, scenes), (seeds, scenes))
    return effect + 0.01 * sum(sd * rng.standard_normal(shape) for sd, shape in zip(sds, shapes, strict=True))


def made(differences, **named):
    named = {"id": "a", "text": "a > b", "world": "city", "metric": ACCURACY} | named
    return claims.claim(*arms_of(differences), rng=np.random.default_rng(0), **named)


@given(hnp.arrays(np.float64, (4, 6), elements=st.floats(-0.4, 0.4)))
def test_spread_is_that_of_the_analysis_of_variance(differences):
    found = claims.spread(*arms_of(differences), metric=ACCURACY)
    rows, columns = differences.mean(1), differences.mean(0)
    assert found.effect == pytest.approx(differences.mean())
    assert (found.seeds, found.scenes) == pytest.approx((rows.var(ddof=1), columns.var(ddof=1)), abs=1e-12)
    total = ((differences - differences.mean()) ** 2).sum()
    explained = 6 * 3 * rows.var(ddof=1) + 4 * 5 * columns.var(ddof=1)
    assert found.rest == pytest.approx((total - explained) / 15, abs=1e-12)


def test_components_find_what_was_planted():
    rng = np.random.default_rng(0)
    every = [claims.spread(*arms_of(crossed(rng, 6, 8, (1, 2, 1))), metric=ACCURACY) for _ in range(300)]
    mean = {name: 1e4 * np.mean([found.components()[name] for found in every]) for name in ("seed", "scene", "rest")}
    assert mean == pytest.approx({"seed": 1, "scene": 4, "rest": 1}, rel=0.2)


@given(hnp.arrays(np.float64, (1, 5), elements=st.integers(-40, 40).map(lambda i: i / 100)))
def test_one_seed_is_a_t_test_over_scenes(differences):
    if differences.std() < 1e-3:
        return
    result = claims.paired_interval(*arms_of(differences), metric=ACCURACY)
    expected = oracle.ttest_1samp(differences[0], 0)
    ends = expected.confidence_interval()
    assert (result.low, result.high) == pytest.approx((ends.low, ends.high), abs=1e-9)
    assert made(differences).p == pytest.approx(expected.pvalue, abs=1e-9)
    other = claims.paired_interval(*arms_of(differences.T), metric=ACCURACY)
    assert (other.low, other.high) == pytest.approx((result.low, result.high), abs=1e-9)


def test_welch_is_a_special_case_of_the_degrees_of_freedom():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, 4), rng.normal(1, 3, 7)
    error, free = claims.satterthwaite([first.var(ddof=1) / 4, second.var(ddof=1) / 7], [3, 6])
    expected = oracle.ttest_ind(first, second, equal_var=False)
    assert free == pytest.approx(expected.df)
    assert abs(first.mean() - second.mean()) / error == pytest.approx(abs(expected.statistic))


def test_a_pooled_score_is_judged_by_its_jackknife():
    rng = np.random.default_rng(0)
    a = rng.integers(50, 90, (3, 5, 3, 3)) + 300 * np.eye(3, dtype=int)
    b = a + 40 * np.eye(3, dtype=int)[[1, 2, 0]] - 40 * np.eye(3, dtype=int)  # forty pixels of a class go wrong
    found = claims.spread(a, b)
    own = np.empty((3, 5))
    for s, c in itertools.product(range(3), range(5)):
        all_of, others = (
            [statistics.mean_iou(x[s, keep].sum(0)) for x in (a, b)]
            for keep in (slice(None), [i for i in range(5) if i != c])
        )
        own[s, c] = 5 * (all_of[0] - all_of[1]) - 4 * (others[0] - others[1])
    assert found.scenes == pytest.approx(own.mean(0).var(ddof=1))
    each = statistics.mean_iou(a.sum(1)) - statistics.mean_iou(b.sum(1))
    assert found.seeds == pytest.approx(each.var(ddof=1))
    effect = statistics.paired_bootstrap(a, b, rng=rng, n_boot=5).effect
    assert found.effect == pytest.approx(effect) and effect > 0


def test_a_void_scene_is_no_scene():
    a, b = arms_of(crossed(np.random.default_rng(0), 3, 5, (1, 2, 1)))
    empty = np.zeros_like(a[:, :1])
    with_void = claims.spread(np.concatenate([a, empty], 1), np.concatenate([b, empty], 1), metric=ACCURACY)
    assert with_void == claims.spread(a, b, metric=ACCURACY)
    nothing = claims.paired_interval(np.zeros_like(a), np.zeros_like(a))
    assert np.isnan([nothing.effect, nothing.low]).all() and nothing.verdict == "undecided"


@pytest.mark.parametrize(("seeds", "scenes", "sds"), [(3, 5, (1, 2, 1)), (3, 5, (2, 1, 1)), (5, 8, (1, 2, 1))])
def test_coverage_is_what_the_docstring_says(seeds, scenes, sds):
    def simulate(rng):
        return arms_of(crossed(rng, seeds, scenes, sds, 0.02)), 0.02

    def interval(arms, _):
        result = claims.paired_interval(*arms, metric=ACCURACY)
        return result.low, result.high

    assert 0.92 <= statistics.coverage(simulate, interval, 1500, np.random.default_rng(0)) <= 0.985


@given(hnp.arrays(np.float64, (2, 4), elements=st.integers(-40, 40).map(lambda i: i / 100)))
@settings(max_examples=40, deadline=None)
def test_the_permutation_test_flips_signs_by_scene(differences):
    p = claims.permutation_test(*arms_of(differences), rng=np.random.default_rng(0), metric=ACCURACY)
    means = differences.mean(0)
    every = [abs(np.dot(signs, means)) for signs in itertools.product([-1, 1], repeat=4)]
    assert p == np.mean([each >= abs(means.sum()) - 1e-9 for each in every])


def test_the_permutation_test_is_that_of_scipy():
    differences = np.random.default_rng(3).normal(0.02, 0.05, (1, 9))
    ours = claims.permutation_test(*arms_of(differences), rng=np.random.default_rng(0), metric=ACCURACY)
    theirs = oracle.permutation_test((differences[0],), np.mean, permutation_type="samples", n_resamples=2**9)
    assert 0.01 < ours < 0.99 and ours == pytest.approx(theirs.pvalue)


def test_drawn_patterns_approach_all_of_them():
    arms = arms_of(np.random.default_rng(3).normal(0.02, 0.05, (2, 10)))
    exact = claims.permutation_test(*arms, rng=np.random.default_rng(0), metric=ACCURACY)
    drawn = claims.permutation_test(*arms, rng=np.random.default_rng(0), metric=ACCURACY, n_draws=1000)
    assert drawn == pytest.approx(exact, abs=0.05) and drawn != exact
    clear = arms_of(np.full((2, 12), 0.2))
    assert claims.permutation_test(*clear, rng=np.random.default_rng(0), n_draws=99) >= 1 / 100


def test_few_scenes_bound_the_permutation_test():
    clear = np.full((5, 5), 0.3)
    assert claims.permutation_test(*arms_of(clear), rng=np.random.default_rng(0)) == 2 / 2**5
    assert claims.permutation_test(*arms_of(0 * clear), rng=np.random.default_rng(0)) == 1
    assert np.isnan(claims.permutation_test(*[np.zeros((2, 3, 2, 2))] * 2, rng=np.random.default_rng(0)))


@pytest.mark.parametrize(("sds", "bounds"), [((0, 2, 1), (0.03, 0.07)), ((2, 1, 1), (0.25, 0.5))])
def test_false_positives_are_what_the_docstring_says(sds, bounds):
    rng = np.random.default_rng(0)
    p = [claims.permutation_test(*arms_of(crossed(rng, 5, 8, sds)), rng=rng, metric=ACCURACY) for _ in range(1000)]
    assert bounds[0] <= np.mean(np.array(p) <= 0.05) <= bounds[1]


def test_blocks_do_not_change_the_permutation_test(monkeypatch):
    arms = arms_of(np.random.default_rng(3).normal(0.02, 0.05, (2, 7)))
    whole = claims.permutation_test(*arms, rng=np.random.default_rng(0))
    monkeypatch.setattr(statistics, "BLOCK", 300)
    assert claims.permutation_test(*arms, rng=np.random.default_rng(0)) == whole


def test_holm_by_hand():
    np.testing.assert_allclose(claims.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(claims.holm([0.6, np.nan, 0.04]), [0.6, np.nan, 0.08])
    assert claims.holm([]).shape == (0,)
    for wrong in ([1.2], [-0.1], [[0.1]]):
        with pytest.raises(ValueError, match="list of p-values"):
            claims.holm(wrong)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.2), st.randoms())
def test_holm_rejects_step_by_step(p_values, alpha, shuffle):
    adjusted = claims.holm(p_values)
    rejected, ranked = set(), sorted(range(len(p_values)), key=p_values.__getitem__)
    for step, i in enumerate(ranked):
        if p_values[i] * (len(p_values) - step) > alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    assert (adjusted >= np.array(p_values)).all() and (adjusted <= 1).all()
    order = shuffle.sample(range(len(p_values)), len(p_values))
    np.testing.assert_array_equal(claims.holm([p_values[i] for i in order]), adjusted[order])


def test_the_detectable_difference_is_detected_as_often_as_it_says():
    rng = np.random.default_rng(0)
    known = claims.Spread(0, 1.0, 0.5, 1.0, 8, 9)
    error, free = known.error()
    truth = claims.minimum_detectable_difference(known, power=0.8)
    t = (rng.standard_normal(40_000) + truth / error) / np.sqrt(rng.chisquare(free, 40_000) / free)
    assert np.mean(t > oracle.t.ppf(0.975, free)) == pytest.approx(0.8, abs=0.01)
    assert claims.minimum_detectable_difference(known, power=0.9) > truth
    assert claims.minimum_detectable_difference(known, level=0.9) < truth
    with pytest.raises(ValueError, match="power and level are fractions"):
        claims.minimum_detectable_difference(known, power=80)


def test_seeds_help_where_seeds_dominate():
    found = claims.Spread(effect=1.0, seeds=1.0, scenes=0.1, rest=0.1, n_seeds=3, n_scenes=5)
    assert found.interval()[0] < 0
    more = claims.seeds_needed(found)
    assert more > 0 and claims.dominant(found) == "seed"

    def half(n_seeds):
        error, free = found.error(n_seeds)
        return oracle.t.ppf(0.975, free) * error

    assert half(3 + more) < 1 <= half(3 + more - 1)
    assert claims.seeds_needed(claims.Spread(9.0, 1.0, 0.1, 0.1, 3, 5)) == 0
    assert claims.seeds_needed(found, margin=0.5) > more


def test_no_number_of_seeds_outweighs_the_scenes():
    found = claims.Spread(effect=1.0, seeds=0.1, scenes=4.0, rest=0.1, n_seeds=3, n_scenes=5)
    assert claims.seeds_needed(found) is None
    assert claims.dominant(found) == "scene"
    for one in (claims.Spread(1, np.nan, 4, np.nan, 1, 5), claims.Spread(1, 1, np.nan, np.nan, 4, 1)):
        assert claims.seeds_needed(one) is None and claims.dominant(one) == "unknown"
    assert claims.dominant(claims.Spread(1.0, 0.1, 0.1, 0.5, 3, 5)) == "rest"


def test_the_error_now_is_the_error_expected_with_as_many_seeds():
    for found in (claims.Spread(1, 0.5, 0.4, 0.3, 3, 5), claims.Spread(1, 0.1, 0.01, 0.9, 3, 5)):
        assert found.error(3) == pytest.approx(found.error())
        assert found.error(30)[0] < found.error()[0]


def test_a_clear_claim_is_supported_and_its_reverse_contradicted():
    differences = crossed(np.random.default_rng(0), 4, 6, (1, 1, 1), 0.1)
    found, reverse = made(differences, runs=["r1", "r2"]), made(-differences)
    assert (found.verdict, reverse.verdict) == ("supported", "contradicted")
    assert (found.effect, found.low, found.p) == pytest.approx((-reverse.effect, -reverse.high, reverse.p))
    assert (found.n_seeds, found.n_scenes, found.more_seeds, found.runs) == (4, 6, 0, ("r1", "r2"))
    assert found.p_signs == 2 / 2**6 and 0 < found.detectable < found.effect
    assert made(differences, margin=0.5).verdict == "contradicted"
    assert made(0 * differences).p == 1 and made(0 * differences).verdict == "undecided"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-0.06, 0.06), st.floats(0.5, 0.99))
def test_interval_and_p_of_one_claim_agree(seed, margin, level):
    found = made(crossed(np.random.default_rng(seed), 3, 5, (1, 2, 1), 0.02), margin=margin, level=level)
    assert (found.p < 1 - level) == (not found.low <= margin <= found.high)
    assert found.verdict == statistics.verdict(found.low, found.high, margin)


def test_one_of_each_decides_nothing():
    found = made([[0.3]])
    assert found.effect == pytest.approx(0.3) and found.verdict == "undecided"
    assert np.isnan([found.low, found.p, found.p_holm, found.detectable]).all() and found.more_seeds is None


def test_holm_takes_back_what_only_a_crowd_could_find():
    rng = np.random.default_rng(1)
    weak = next(c for c in (made(crossed(rng, 4, 6, (1, 1, 1), 0.02)) for _ in range(99)) if 0.02 < c.p < 0.05)
    strong = made(crossed(rng, 4, 6, (1, 1, 1), 0.2), id="strong")
    nothing = [made(crossed(rng, 4, 6, (1, 1, 1)), id=str(i)) for i in range(3)]
    corrected = claims.family([weak, strong, *nothing])
    assert weak.verdict == "supported" and corrected[0].verdict == "undecided"
    assert corrected[0].p == weak.p and corrected[0].p_holm > 0.05
    assert corrected[1].verdict == "supported" and corrected[1].p_holm <= 0.05
    assert claims.family([weak]) == [weak]
    with pytest.raises(ValueError, match=r"\['a'\] came more than once"):
        claims.family([weak, weak])


def test_a_family_is_a_table():
    rng = np.random.default_rng(0)
    family = [
        made(crossed(rng, 3, 5, (1, 1, 1), 0.2), id="clear", runs=["k1", "k2"]),
        made(crossed(rng, 3, 5, (0, 9, 0)), id="scenes"),
    ]
    rows = claims.table(family)
    assert rows.id.tolist() == ["clear", "scenes"]
    assert rows.runs.tolist() == ["k1 k2", ""]
    assert rows.verdict.tolist() == ["supported", "undecided"]
    assert rows.more_seeds.isna().tolist() == [False, True]
    np.testing.assert_allclose(rows.p_holm, claims.holm(rows.p))
    assert claims.table([]).columns.tolist() == rows.columns.tolist()


def test_cells_make_one_claim():
    rng = np.random.default_rng(0)
    cells = [crossed(rng, 3, 5, (1, 1, 1), effect) for effect in (0.0, 0.1)]
    a, b = (np.stack(arms, axis=2) for arms in zip(*map(arms_of, cells), strict=True))
    together = claims.spread(a, b, metric=claims.over_cells(ACCURACY))
    mean = claims.spread(*arms_of(np.mean(cells, axis=0)), metric=ACCURACY)
    assert (together.effect, together.seeds, together.scenes) == pytest.approx((mean.effect, mean.seeds, mean.scenes))


def test_counters_that_arms_need_not_share():
    rng = np.random.default_rng(0)
    edges = rng.integers(1, 50, (2, 3, 5, 3, 3)).cumsum(axis=-1)
    assert claims.paired_interval(*edges, metric=statistics.boundary_iou).n_scenes == 5
    cells = np.stack([edges, edges], axis=3)
    assert claims.paired_interval(*cells, metric=claims.over_cells(statistics.boundary_iou)).n_scenes == 5
    (found,) = worth.break_even({16: edges[0]}, {16: edges[1], 64: edges[0]}, metric=statistics.boundary_iou)
    assert found.budget == 16
    with pytest.raises(ValueError, match=r"not paired: the exact pixels of scene"):
        claims.paired_interval(*edges)


def test_claims_refuse():
    a, b = arms_of(np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"not the same \(seeds, scenes"):
        claims.spread(a, b[:, :2])
    with pytest.raises(ValueError, match="level is a fraction"):
        claims.paired_interval(a, b, level=95)
    moved = np.roll(a, 1, axis=-2)
    moved[:, [0, 1, 2, 4]] = a[:, [0, 1, 2, 4]]
    with pytest.raises(ValueError, match=r"scene\(s\) \[3\] differ"):
        claims.permutation_test(moved, b, rng=np.random.default_rng(0))


def several(rng, effect=0.0, seeds=3, scenes=5, sds=(1, 2, 1)):
    """Four terms, a gain on one task less the gain on another, and the differences behind them."""
    gains = [crossed(rng, seeds, scenes, sds, each) for each in (effect + 0.05, 0.05)]
    (a, b), (c, d) = map(arms_of, gains)
    wide = [np.pad(each, [(0, 0), (0, 0), (0, 2), (0, 2)]) for each in (c, d)]  # of four classes
    return [(1, a), (-1, b), (-1, wide[0]), (1, wide[1])], gains[0] - gains[1]


def test_two_terms_are_a_pair():
    rng = np.random.default_rng(0)
    a = rng.integers(5, 90, (3, 5, 4, 4)) + 100 * np.eye(4, dtype=int)
    b = np.take_along_axis(a, rng.permuted(np.broadcast_to(np.arange(4), a.shape), axis=-1), -1)
    assert claims.spread_of([(1, a), (-1, b)]) == claims.spread(a, b)
    assert claims.spread_of([(-1, b), (1, a)]) == claims.spread(a, b)
    named = {"id": "a", "text": "a > b", "world": "city", "margin": 0.01, "level": 0.9, "runs": ("k",)}
    alone, pair = claims.claim_of([(1, a), (-1, b)], **named), claims.claim(a, b, rng=rng, **named)
    assert np.isnan(alone.p_signs) and 0 < pair.p_signs <= 1
    assert dataclasses.replace(alone, p_signs=pair.p_signs) == pair
    interval = claims.paired_interval(a, b, level=0.9, margin=0.01)
    assert (pair.effect, pair.low, pair.high) == (interval.effect, interval.low, interval.high)
    usual = {name: named[name] for name in ("id", "text", "world")}
    plain, told = (claims.claim_of([(1, a), (-1, b)], **usual, **more) for more in ({}, {"margin": 0.0, "level": 0.95}))
    assert dataclasses.replace(plain, p_signs=0) == dataclasses.replace(told, p_signs=0)


@given(st.integers(0, 2**32 - 1), st.floats(-0.1, 0.1))
@settings(max_examples=40, deadline=None)
def test_gains_on_tasks_of_other_classes_are_those_of_their_differences(seed, effect):
    terms, differences = several(np.random.default_rng(seed), effect)
    assert {counts.shape[-1] for _, counts in terms} == {2, 4}
    found, plain = claims.spread_of(terms, metric=ACCURACY), claims.spread(*arms_of(differences), metric=ACCURACY)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(plain), abs=1e-12)


@given(st.floats(0.1, 5), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_weighted_sum_is_linear(scale, negative):
    factor = -scale if negative else scale
    terms, _ = several(np.random.default_rng(0), 0.03)
    plain = claims.spread_of(terms, metric=ACCURACY)
    scaled = claims.spread_of([(factor * weight, counts) for weight, counts in terms], metric=ACCURACY)
    assert scaled.effect == pytest.approx(factor * plain.effect)
    ends = sorted(factor * end for end in plain.interval())
    assert scaled.interval() == pytest.approx(ends)
    assert scaled.p_value() == pytest.approx(plain.p_value())
    halves = [(weight / 2, counts) for weight, counts in terms] * 2
    assert dataclasses.astuple(claims.spread_of(halves, metric=ACCURACY)) == pytest.approx(dataclasses.astuple(plain))


def test_effects_of_sums_are_sums_of_effects():
    rng = np.random.default_rng(0)
    terms = [(weight, rng.integers(1, 90, (3, 5, classes, classes))) for weight, classes in ((2, 4), (-1, 8), (-1, 3))]
    expected = sum(weight * statistics.mean_iou(counts.sum(1)).mean() for weight, counts in terms)
    assert claims.spread_of(terms).effect == pytest.approx(expected)


def test_a_scene_void_in_one_task_is_left_out_of_all():
    terms, _ = several(np.random.default_rng(0))
    kept = [(weight, counts[:, [0, 1, 3, 4]]) for weight, counts in terms]
    holed = [(weight, counts.copy()) for weight, counts in terms]
    for _, counts in holed[2:]:
        counts[:, 2] = 0
    assert claims.spread_of(holed, metric=ACCURACY) == claims.spread_of(kept, metric=ACCURACY)
    for _, counts in holed[:2]:
        counts[:, [0, 1, 3, 4]] = 0
    nothing = claims.claim_of(holed, id="a", text="", world="", metric=ACCURACY)
    assert np.isnan(nothing.effect) and nothing.verdict == "undecided" and nothing.n_scenes == 0


@pytest.mark.parametrize(("seeds", "scenes"), [(3, 5), (5, 8)])
def test_coverage_of_a_difference_of_differences(seeds, scenes):
    def interval(terms, _):
        return claims.spread_of(terms, metric=ACCURACY).interval()

    def simulate(rng):
        return several(rng, 0.02, seeds, scenes)[0], 0.02

    assert 0.92 <= statistics.coverage(simulate, interval, 1000, np.random.default_rng(0)) <= 0.985


def test_sums_refuse_what_is_not_shared():
    terms, _ = several(np.random.default_rng(0))
    with pytest.raises(
        ValueError, match=r"terms of the same \(seeds, scenes, \.\.\.\) are expected, got \[\(3, 5, 2, 2"
    ):
        claims.spread_of([*terms, (1, terms[0][1][:, :4])])
    with pytest.raises(ValueError, match="are expected, got none"):
        claims.spread_of([])
    with pytest.raises(ValueError, match="a task for each of 4 terms is expected, got 3"):
        claims.spread_of(terms, tasks="aab")
    with pytest.raises(ValueError, match=r"not the same \(seeds, scenes"):
        claims.spread_of(terms, tasks="aaaa")
    with pytest.raises(ValueError, match="level is a fraction"):
        claims.claim_of(terms, id="a", text="", world="", level=95)


def test_tasks_of_as_many_classes_are_told_apart_by_name():
    rng = np.random.default_rng(0)
    a, c = (rng.integers(1, 90, (3, 5, 4, 4)) for _ in range(2))
    terms = [(1, a), (-1, a[..., [1, 0, 2, 3]]), (-1, c), (1, c[..., [0, 2, 1, 3]])]
    with pytest.raises(ValueError, match="not paired: the exact pixels of scene"):
        claims.spread_of(terms)
    assert claims.spread_of(terms, tasks=["a", "a", "c", "c"]).n_scenes == 5
    with pytest.raises(ValueError, match="not paired"):
        claims.spread_of(terms, tasks=["a", "c", "c", "a"])
