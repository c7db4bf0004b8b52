"""Contrasts: arithmetic against its laws, planted scores against closed forms, claims against `claims` by hand."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbutils import claims, contrasts, statistics
from nbutils.contrasts import Term
from nbutils.store import Result, Run
from nbutils.study import Cell

UNET, FPN, PSPNET = (Cell(decoder=name) for name in ("unet", "fpn", "pspnet"))
SAME, SHIFTED = Cell(task="same"), Cell(task="shifted")
FROZEN = UNET._replace(frozen=True)
ARMS = ["random", "moco", "dino", "noisy"]
GRID = {
    UNET: ARMS,
    FPN: ARMS,
    PSPNET: ["random", "noisy"],
    SAME: ARMS,
    SHIFTED: ["random", "moco", "noisy"],
    FROZEN: ARMS,
}
PIXELS = 1000  # of each class in each scene
ABOUT = dict(id="a", text="a > b", world="city")


def scored(right):
    """Mean IoU where so many of the pixels of either class are right and the others take each other's class."""
    return right / (2 * PIXELS - right)


def result(cell, arm, seed, right, pixels=PIXELS):
    """A result on scenes with that many right pixels of each class, by scene."""
    run = Run(stage="finetune", data="city", fingerprint="", arm=arm, encoder="", decoder=cell.decoder, width="",
              target="exact", classes=2, budget=cell.budget, frozen=cell.frozen, steps=1, batch_size=1,
              learning_rate=1.0, seed=seed, precision="fp32", code="", carried=cell.carried)  # fmt: skip
    counts = {scene: [[n, pixels - n], [pixels - n, n]] for scene, n in right.items()}
    boundary = {scene: [[n, n], [n, n]] for scene, n in right.items()}
    return Result(run, {"test": counts}, {"test": boundary}, {"test": {}}, [], 0.0, 0, {}, Path())


def planted(right, grid=GRID, seeds=(0, 1, 2), scenes="abcd"):
    """Results by cell, arm and seed; `right` gives the right pixels of each class from cell, arm, seed, scene."""
    return {
        (cell, arm, seed): result(cell, arm, seed, {scene: right(cell, arm, seed, i) for i, scene in enumerate(scenes)})
        for cell, arms in grid.items() for arm in arms for seed in seeds
    }  # fmt: skip


def level(cell, arm):
    """Right pixels of each class that are planted in all seeds and scenes: cells and arms add up, and interact."""
    cells, arms = list(GRID), ARMS
    return 400 + 20 * cells.index(cell) + 50 * arms.index(arm) + 7 * cells.index(cell) * arms.index(arm)


EVEN = planted(lambda cell, arm, seed, scene: level(cell, arm))
NOISY = planted(
    lambda cell, arm, seed, scene: level(cell, arm) + int(np.sin(seed * 7 + scene * 3 + level(cell, arm)) * 30)
)


def by_place(terms):
    weights = Counter()
    for weight, cell, arm in terms:
        weights[cell, arm] += weight
    return weights


def worth(terms, scores):
    return sum(weight * scores[cell, arm] for weight, cell, arm in terms)


# ---- cells -------------------------------------------------------------------------------------------------------
@given(st.lists(st.sampled_from(["unet", "fpn", "segformer"]), max_size=3), st.booleans())
def test_cells_are_picked_by_their_values_in_their_order(decoders, frozen):
    expected = [cell for cell in GRID if cell.decoder in decoders and cell.frozen == frozen]
    assert contrasts.where(GRID, decoder=decoders, frozen=frozen) == expected
    assert contrasts.where(GRID) == list(GRID)


@pytest.mark.parametrize("pick", [contrasts.where, lambda grid, **fields: contrasts.twins(grid, [], **fields)])
def test_an_unknown_field_is_named(pick):
    with pytest.raises(ValueError, match="no field decoders; there are task, decoder"):
        pick(GRID, decoders="unet", frozen=True)


def test_cells_that_compare_arms():
    assert contrasts.having(GRID, [SHIFTED, PSPNET, UNET], "noisy", "moco") == [SHIFTED, UNET]
    assert contrasts.having(GRID, GRID, "noisy") == list(GRID) and contrasts.having(GRID, GRID, "exact") == []
    with pytest.raises(ValueError, match="budget=5.* none of the 6 cells"):
        contrasts.having(GRID, [UNET, Cell(budget=5)], "noisy")


def test_twins_differ_in_the_changed_field_alone():
    assert contrasts.twins(GRID, [FPN, UNET, FROZEN, SAME], frozen=True) == ([UNET], [FROZEN])
    assert contrasts.twins(GRID, [UNET, FPN], decoder="pspnet") == ([UNET, FPN], [PSPNET, PSPNET])


# ---- terms -------------------------------------------------------------------------------------------------------
terms = st.lists(
    st.builds(Term, st.integers(-5, 5), st.sampled_from(list(GRID)), st.sampled_from(ARMS)), min_size=1, max_size=6
)
some_cells = st.lists(st.sampled_from(list(GRID)), min_size=1, unique=True)


@given(st.lists(terms, min_size=1, max_size=4), terms, terms, st.integers(0, 2**32 - 1))
def test_means_and_differences_of_contrasts_are_those_of_their_values(several, first, second, seed):
    drawn = np.random.default_rng(seed).random((len(GRID), len(ARMS)))
    scores = {(cell, arm): drawn[i, j] for i, cell in enumerate(GRID) for j, arm in enumerate(ARMS)}
    assert worth(contrasts.mean(several), scores) == pytest.approx(np.mean([worth(t, scores) for t in several]))
    assert worth(contrasts.less(first, second), scores) == pytest.approx(worth(first, scores) - worth(second, scores))


def test_no_terms_stay_none():
    held = [Term(1, UNET, "noisy")]
    assert contrasts.mean([]) == contrasts.mean([held, []]) == contrasts.gain([], "noisy", "moco") == []
    assert contrasts.less(held, []) == contrasts.less([], held) == []


@given(some_cells, st.randoms(use_true_random=False))
def test_weights_of_a_gain_are_shares_that_cancel_in_any_order_of_cells(cells, random):
    found = by_place(contrasts.gain(cells, "noisy", "random"))
    for arm, total in (("noisy", 1), ("random", -1)):
        assert [found[cell, arm] for cell in cells] == pytest.approx([total / len(cells)] * len(cells))
    shuffled = random.sample(cells, len(cells))
    assert by_place(contrasts.gain(shuffled, "noisy", "random")) == found


@given(st.lists(some_cells, min_size=1, max_size=3))
def test_gains_over_others_weigh_each_other_alike_and_cancel(kinds):
    found = contrasts.gain_over(GRID, "noisy", ["moco", "dino"], *kinds)
    compared = {arm for arm in ("moco", "dino") if all(any(arm in GRID[cell] for cell in cells) for cells in kinds)}
    for cells, one in zip(kinds, found, strict=True):
        weights, totals = by_place(one), Counter()
        for (cell, arm), weight in weights.items():
            assert cell in cells and arm in GRID[cell]
            totals[arm] += weight
        assert dict(totals) == pytest.approx(
            {arm: -1 / len(compared) for arm in compared} | ({"noisy": 1} if compared else {})
        )


def test_an_other_that_one_kind_of_cells_lacks_counts_for_none():
    shifted, own = contrasts.gain_over(GRID, "noisy", ["moco", "dino"], [SHIFTED], [UNET, FPN])
    assert {arm for _, _, arm in (*shifted, *own)} == {"noisy", "moco"}
    assert contrasts.gain_over(GRID, "noisy", ["dino"], [SHIFTED], [UNET]) == [[], []]
    assert contrasts.gain_over(GRID, "noisy", [], [UNET]) == [[]]


@given(
    st.lists(st.tuples(st.sampled_from(list(GRID)), st.sampled_from(list(GRID))), min_size=1, max_size=6, unique=True)
)
def test_cells_that_belong_together_count_for_an_other_where_both_compare_it(pairs):
    first, second = zip(*pairs, strict=True)
    ones, twins = contrasts.gain_over(GRID, "noisy", ["moco", "dino"], first, second, paired=True)
    terms = {
        arm: [[cell for _, cell, name in kind if name == arm] for kind in (ones, twins)] for arm in ("moco", "dino")
    }
    for arm, (here, there) in terms.items():
        held = [pair for pair in pairs if all(arm in GRID[cell] for cell in pair)]
        assert list(zip(here, there, strict=True)) == held
    if terms["dino"][0] and len(terms["dino"][0]) == len(pairs):
        assert [ones, twins] == contrasts.gain_over(GRID, "noisy", ["moco", "dino"], first, second)
    with pytest.raises(ValueError):
        contrasts.gain_over(GRID, "noisy", ["moco"], first, [*second, UNET], paired=True)


def test_a_change_counts_the_arms_that_both_cells_compare():
    found = contrasts.change(GRID, ["moco", "dino"], [FROZEN, SHIFTED], [UNET, FPN])
    planned = {(FROZEN, "moco"): 1, (FROZEN, "dino"): 1, (SHIFTED, "moco"): 1,
               (UNET, "moco"): -1, (UNET, "dino"): -1, (FPN, "moco"): -1}  # fmt: skip
    assert by_place(found) == pytest.approx({place: sign / 3 for place, sign in planned.items()})
    with pytest.raises(ValueError, match="zip"):
        contrasts.change(GRID, ["moco"], [FROZEN, SAME], [UNET])


# ---- scores and claims -------------------------------------------------------------------------------------------
def closed(terms):
    return sum(weight * scored(level(cell, arm)) for weight, cell, arm in terms)


@pytest.mark.parametrize(
    "terms",
    [
        contrasts.gain([UNET, FPN, PSPNET], "noisy", "random"),
        contrasts.less(*contrasts.gain_over(GRID, "noisy", ["moco", "dino"], [UNET, FPN], [SAME])),
        contrasts.change(GRID, ["moco", "dino"], [FROZEN], [UNET]),
    ],
    ids=["gain", "difference of gains", "change"],
)
def test_planted_effects_are_recovered(terms):
    found = contrasts.claim(EVEN, terms, **ABOUT)
    assert found.effect == pytest.approx(closed(terms), rel=1e-12) and abs(found.effect) > 1e-3
    assert (found.low, found.high) == pytest.approx((found.effect, found.effect))
    assert (found.n_seeds, found.n_scenes) == (3, 4)
    expected = {EVEN[cell, arm, seed].run.key for _, cell, arm in terms for seed in (0, 1, 2)}
    assert set(found.runs) == expected and len(found.runs) == len(expected)


def test_gains_of_single_cells_are_planted_ones_and_average_to_the_claim():
    cells = [FPN, PSPNET, UNET]
    each = contrasts.gains(EVEN, cells, "noisy", "random")
    assert each == pytest.approx([scored(level(c, "noisy")) - scored(level(c, "random")) for c in cells], rel=1e-12)
    for results in (EVEN, NOISY):
        effect = contrasts.claim(results, contrasts.gain(cells, "noisy", "random"), **ABOUT).effect
        assert np.mean(contrasts.gains(results, cells, "noisy", "random")) == pytest.approx(effect, rel=1e-12)


def test_counts_are_stacked_by_seed_and_scene():
    stacked = contrasts.counts(NOISY, FPN, "moco")
    assert stacked.shape == (3, 4, 2, 2)
    for (s, seed), (c, scene) in itertools.product(enumerate((0, 1, 2)), enumerate("abcd")):
        assert stacked[s, c].tolist() == NOISY[FPN, "moco", seed].counts["test"][scene]
    assert contrasts.counts(NOISY, FPN, "moco", "boundary").shape == (3, 4, 2, 3)


@given(st.randoms(use_true_random=False))
def test_the_order_of_results_changes_no_claim(random):
    terms = contrasts.gain([UNET, FPN], "noisy", "moco")
    mixed = dict(random.sample(list(NOISY.items()), len(NOISY)))
    expected, found = (asdict(contrasts.claim(results, terms, **ABOUT)) for results in (NOISY, mixed))
    assert sorted(found.pop("runs")) == sorted(expected.pop("runs"))
    assert found == pytest.approx(expected, nan_ok=True)


def of_gain(cells, arm="noisy", other="moco", results=NOISY):
    return contrasts.claim_of_gain(results, cells, arm, other, rng=np.random.default_rng(0), **ABOUT)


def test_a_gain_in_one_cell_is_the_claim_by_hand():
    first, second = (
        np.stack([NOISY[FPN, arm, seed].scene_counts() for seed in (0, 1, 2)]) for arm in ("noisy", "moco")
    )
    runs = [NOISY[FPN, arm, seed].run.key for arm in ("noisy", "moco") for seed in (0, 1, 2)]
    assert of_gain([FPN]) == claims.claim(first, second, rng=np.random.default_rng(0), runs=runs, **ABOUT)


def test_a_gain_over_cells_is_that_of_their_mean_and_has_a_permutation_test_on_one_task():
    cells = [UNET, FPN, FROZEN]
    both = (np.stack([contrasts.counts(NOISY, cell, arm) for cell in cells], axis=2) for arm in ("noisy", "moco"))
    metric = claims.over_cells(statistics.mean_iou)
    by_hand = claims.claim(*both, rng=np.random.default_rng(0), metric=metric, **ABOUT)
    names = ("effect", "low", "high", "p", "p_signs", "detectable")
    for found in (of_gain(cells), of_gain(cells[::-1])):
        assert [getattr(found, name) for name in names] == pytest.approx([getattr(by_hand, name) for name in names])
    mixed = of_gain([UNET, SAME])
    assert np.isnan(mixed.p_signs) and not np.isnan(mixed.p)


def test_tasks_of_as_many_classes_need_not_have_the_same_exact_pixels():
    rarer = {key: result(*key, {scene: 500 for scene in "abcd"}, pixels=600) for key in NOISY if key[0] == SAME}
    found = of_gain([UNET, SAME], results=EVEN | rarer)
    assert found.effect == pytest.approx((scored(level(UNET, "noisy")) - scored(level(UNET, "moco"))) / 2)


def test_a_claim_without_terms_is_refused():
    with pytest.raises(ValueError, match=r"'a' \(a > b\) has no terms"):
        contrasts.claim(EVEN, [], **ABOUT)


def test_an_arm_that_is_missing_from_a_cell_is_named():
    message = "no result of 'moco' in .*pspnet.* for seeds .0, 1, 2. .*arms with results there: random, noisy"
    for ask in (lambda: of_gain([UNET, PSPNET]), lambda: contrasts.counts(NOISY, PSPNET, "moco"),
                lambda: contrasts.gains(NOISY, [PSPNET], "noisy", "moco")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ask()
    part = {key: one for key, one in NOISY.items() if key != (FPN, "moco", 1)}
    with pytest.raises(ValueError, match=r"'moco' in .*fpn.* for seeds \[1\] of \[0, 1, 2\]"):
        of_gain([UNET, FPN], results=part)
    with pytest.raises(ValueError, match="arms with results there: none"):
        contrasts.counts({}, UNET, "noisy")


@pytest.mark.parametrize("scenes", ["abce", "abc"])
def test_results_on_other_scenes_are_not_paired(scenes):
    other = NOISY | planted(lambda *_: 500, {FPN: ["moco"]}, scenes=scenes)
    with pytest.raises(ValueError, match="'moco' in .*fpn.* is judged on scenes .*cannot be paired"):
        of_gain([UNET, FPN], results=other)
    one_seed = NOISY | planted(lambda *_: 500, {FPN: ["moco"]}, seeds=[2], scenes=scenes)
    with pytest.raises(ValueError, match="cannot be paired"):
        contrasts.counts(one_seed, FPN, "moco")
