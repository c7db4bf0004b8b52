"""What a noisy map is worth: how many exactly labelled patches would have done as well.

Two learning curves over the same budgets of exact patches, one of an arm that saw the noisy map and one of a baseline
that did not. Where the arm scores s with n patches, the baseline needs some m for the same s: m / n is the worth of
pretraining at n, and (m - n) / (noisy patches) that of one noisy patch in exact ones.

**The curves** are the closest that never fall (isotonic regression, Barlow et al. 1972), straight between budgets in
log n. FITS

**Nothing is said outside the budgets that were measured**: a score the baseline's curve does not reach there is worth
"more than" its largest budget, one that it exceeds throughout "fewer than" its smallest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbutils import statistics

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Amount:
    """A number, or the bound where measuring ended: `bound` is "", "more than" or "fewer than"."""

    value: float
    bound: str = ""

    def __str__(self) -> str:
        """As in "more than 256"."""
        return f"{self.bound} {self.value:.3g}".strip()

    def moved(self, scale: float, shift: float = 0.0) -> Amount:
        """(value + shift) x scale, with the same bound; `scale` > 0."""
        return Amount((self.value + shift) * scale, self.bound)


@dataclass(frozen=True)
class Equivalent:
    """What an arm's budget is worth to the baseline.

    Attributes:
        budget: Exact patches of the arm, n.
        score: Of the arm's fitted curve there.
        equals: Exact patches m that the baseline needs for that score.
        low: Lower end of its interval.
        high: Upper end.
    """

    budget: int
    score: float
    equals: Amount
    low: Amount
    high: Amount

    def ratio(self) -> tuple[Amount, Amount, Amount]:
        """Worth m / n with its ends: above 1, pretraining saves exact patches."""
        first, low, high = (each.moved(1 / self.budget) for each in (self.equals, self.low, self.high))
        return first, low, high

    def per_noisy_patch(self, n_noisy: int) -> tuple[Amount, Amount, Amount]:
        """(m - n) / `n_noisy` with its ends: exact patches that one noisy patch stands for."""
        if n_noisy < 1:
            raise ValueError(f"at least one noisy patch is expected, got {n_noisy}")
        first, low, high = (each.moved(1 / n_noisy, -self.budget) for each in (self.equals, self.low, self.high))
        return first, low, high

    def as_row(self) -> dict[str, Any]:
        """Budget, score, amounts and ratios in words, for a table."""
        amounts = {"equals": self.equals, "low": self.low, "high": self.high}
        ratios = dict(zip(("ratio", "ratio_low", "ratio_high"), self.ratio(), strict=True))
        words = {name: str(each) for name, each in (amounts | ratios).items()}
        return {"budget": self.budget, "score": self.score} | words


def break_even(
    arm: Mapping[int, ArrayLike],
    baseline: Mapping[int, ArrayLike],
    *,
    rng: np.random.Generator,
    metric: statistics.Metric = statistics.mean_iou,
    n_boot: int = 2000,
    level: float = 0.95,
) -> list[Equivalent]:
    """How many exact patches the baseline needs for what the arm reaches, at every budget of the arm.

    Each draw takes the same seeds and scenes for both arms at all budgets and fits both curves anew.

    COVERAGE

    Args:
        arm: Counts by budget, each (S seeds, C scenes, K, K), seeds and scenes in the same order throughout.
        baseline: The same for the arm it is compared with, at two budgets or more.
        rng: Source of randomness.
        metric: Function of pooled counts to scores.
        n_boot: Number of draws.
        level: Nominal coverage of the intervals, in (0, 1).

    Returns:
        One per budget of the arm, in rising order; ends are NaN for one seed on one scene. ValueError if budgets are
        too few or below 1, or shapes or exact pixels differ.
    """
    ours, theirs = _budgets(arm, "arm", 1), _budgets(baseline, "baseline", 2)
    stacks = _stacks([arm[budget] for budget in ours] + [baseline[budget] for budget in theirs], level)
    score, draws = statistics.score_draws(stacks, rng=rng, metric=metric, n_boot=n_boot)
    fits = [_fit(each, len(ours), theirs) for each in (score, draws.T)]
    if stacks.shape[1] * stacks.shape[2] == 1:
        fits[1] = (fits[1][0], np.full_like(fits[1][1], np.nan))
    return [
        Equivalent(budget, float(fits[0][0][i]), *_amounts(fits[0][1][i], fits[1][1][:, i], theirs, level))
        for i, budget in enumerate(ours)
    ]


def rising(scores: ArrayLike) -> Floats:
    """The closest curve that never falls, by least squares: scores (..., B) give (..., B).

    The largest of means to the left of the smallest of means to the right (Barlow et al. 1972, theorem 1.4), for all
    draws at once.
    """
    values = np.asarray(scores, np.float64)
    n = values.shape[-1]
    total = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
    start, stop = np.arange(n)[:, None], np.arange(1, n + 1)
    length = np.where(stop > start, stop - start, 1)
    mean = (total[..., None, 1:] - total[..., :-1, None]) / length  # of scores start..stop - 1
    mean = np.where(stop > start, mean, np.inf)
    smallest = np.minimum.accumulate(mean[..., ::-1], axis=-1)[..., ::-1]  # over ends to the right
    smallest = np.where(stop > start, smallest, -np.inf)
    return np.diagonal(np.maximum.accumulate(smallest, axis=-2), axis1=-2, axis2=-1)


def reached(curve: ArrayLike, budgets: ArrayLike, score: ArrayLike) -> Floats:
    """Fewest patches at which a curve that never falls reaches a score.

    Args:
        curve: Scores at the budgets, (..., B).
        budgets: Rising numbers of patches, (B,).
        score: (...).

    Returns:
        Patches (...): straight in log n between budgets, -inf below the curve, inf above it, NaN for NaN.
    """
    values, wanted = np.asarray(curve, np.float64), np.asarray(score, np.float64)
    places = np.log(np.asarray(budgets, np.float64))
    above = (values < wanted[..., None]).sum(-1)  # the first budget that reaches it
    right = np.clip(above, 1, len(places) - 1)
    left_score, right_score = (np.take_along_axis(values, i[..., None], -1)[..., 0] for i in (right - 1, right))
    step = right_score - left_score
    share = np.divide(wanted - left_score, step, out=np.zeros(np.shape(step)), where=step > 0)
    patches = np.exp(places[right - 1] + np.clip(share, 0, 1) * (places[right] - places[right - 1]))
    patches = np.where(wanted < values[..., 0], -np.inf, np.where(above == len(places), np.inf, patches))
    return np.where(np.isnan(wanted) | np.isnan(values).any(-1), np.nan, patches)


def _fit(scores: Floats, n_ours: int, budgets: list[int]) -> tuple[Floats, Floats]:
    """The arm's fitted scores (..., A) and the baseline's patches for each, from scores (..., A + B)."""
    ours, theirs = rising(scores[..., :n_ours]), rising(scores[..., n_ours:])
    return ours, reached(np.broadcast_to(theirs[..., None, :], (*ours.shape, len(budgets))), budgets, ours)


def _amounts(point: float, drawn: Floats, budgets: list[int], level: float) -> list[Amount]:
    """The point and the ends of the interval; ends are draws, since nothing lies between a bound and a number."""
    known = drawn[~np.isnan(drawn)]
    ends = [np.nan, np.nan]
    if known.size:
        tail = (1 - level) / 2
        ends = [np.quantile(known, tail, method="lower"), np.quantile(known, 1 - tail, method="higher")]
    return [_amount(float(value), budgets) for value in (point, *ends)]


def _amount(value: float, budgets: list[int]) -> Amount:
    if np.isinf(value):
        return Amount(float(budgets[-1]), "more than") if value > 0 else Amount(float(budgets[0]), "fewer than")
    return Amount(value)


def _budgets(curve: Mapping[int, ArrayLike], name: str, fewest: int) -> list[int]:
    budgets = sorted(curve)
    if len(budgets) < fewest or budgets[0] < 1:
        raise ValueError(f"{name} needs {fewest} or more budgets of at least one patch, got {budgets}")
    return budgets


def _stacks(counts: list[ArrayLike], level: float) -> Floats:
    """All counts as one array (A, S, C, ...), of one shape and, if of classes, of the same exact pixels."""
    if not 0 < level < 1:
        raise ValueError(f"level is a fraction in (0, 1), got {level}")
    arrays = [np.asarray(each, np.float64) for each in counts]
    shapes = sorted({each.shape for each in arrays})
    if len(shapes) > 1 or len(shapes[0]) != 4 or 0 in shapes[0]:
        raise ValueError(f"counts of one shape (seeds, scenes, K, K) are expected at every budget, got {shapes}")
    if shapes[0][-1] == shapes[0][-2]:
        for each in arrays[1:]:
            statistics.check_paired(arrays[0], each)
    return np.stack(arrays)
