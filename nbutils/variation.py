"""How a paired difference varies over seeds and scenes, and what that says of a larger study.

Arms share their seeds and scenes, so what varies is their difference, or any weighted sum of scores: two-way random
effects, seeds crossed with scenes, each with a variance of its own. `nbutils.claims` makes intervals and p of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from nbutils import statistics

MOST_SEEDS = 1000  # more of them are no advice

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """A paired difference and how it varies over S seeds crossed with C scenes (two-way random effects).

    Attributes:
        effect: The difference, units of the metric.
        seeds: Variance of the S means over scenes; NaN for one seed.
        scenes: Variance of the C means over seeds; NaN for one scene.
        rest: Variance of what neither seed nor scene explains; NaN for one of either.
        n_seeds: S.
        n_scenes: C, without scenes that are all void.
    """

    effect: float
    seeds: float
    scenes: float
    rest: float
    n_seeds: int
    n_scenes: int

    def components(self) -> dict[str, float]:
        """Variances of "seed", "scene" and "rest" by the analysis of variance; none below zero."""
        seed, scene = self.seeds - self.rest / max(self.n_scenes, 1), self.scenes - self.rest / self.n_seeds
        return {"seed": float(np.fmax(seed, 0)), "scene": float(np.fmax(scene, 0)), "rest": self.rest}

    def error(self, n_seeds: int | None = None) -> tuple[float, float]:
        """Standard error of the effect and its degrees of freedom, now or as expected with `n_seeds` seeds.

        The variances of both means add up, which counts the rest twice: a little too wide where it dominates, never
        negative. Degrees of freedom as `satterthwaite`'s.
        """
        seeds, scenes = self.seeds / self.n_seeds, self.scenes / max(self.n_scenes, 1)
        if n_seeds is not None:
            noise = min(self.rest / self.n_seeds, self.scenes)  # of a scene's mean; the rest of it stays
            scenes = (self.scenes - noise + noise * self.n_seeds / n_seeds) / self.n_scenes
            seeds = self.seeds / n_seeds
        error, free = satterthwaite((seeds, scenes), ((n_seeds or self.n_seeds) - 1, self.n_scenes - 1))
        return float(error), float(free)

    def p_value(self, margin: float = 0.0) -> float:
        """Two-sided p of Student's t for an effect of `margin`: below 1 - level where `interval` leaves it out."""
        error, free = self.error()
        away = abs(self.effect - margin)
        if not error > 0:
            return float("nan") if np.isnan(error + away) else float(away == 0)
        return float(2 * special.stdtr(free, -away / error))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Ends of the interval of Student's t."""
        error, free = self.error()
        half = float(special.stdtrit(free, (1 + level) / 2)) * error
        return self.effect - half, self.effect + half


def satterthwaite(variances: ArrayLike, free: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Roots of sums of variances and their degrees of freedom (Satterthwaite, Biometrics Bulletin 2, 1946).

    Args:
        variances: (V, ...) >= 0; those without freedom are not seen and do not count, so may be NaN.
        free: Degrees of freedom of each, (V,).

    Returns:
        Both (...); NaN where none has any.
    """
    seen = np.asarray(free) > 0
    parts, degrees = np.asarray(variances, np.float64)[seen], np.asarray(free, np.float64)[seen]
    if not seen.any():
        nothing = np.full(np.shape(variances)[1:], np.nan)
        return nothing, nothing
    total, curvature = parts.sum(0), np.tensordot(1 / degrees, parts**2, axes=1)
    full = np.full(np.shape(total), degrees.sum())  # where nothing varies
    return np.sqrt(total), np.divide(total**2, curvature, out=full, where=curvature > 0)


def spread(a: ArrayLike, b: ArrayLike, *, metric: statistics.Metric = statistics.mean_iou) -> Spread:
    """How the difference between two arms varies over their common seeds and scenes.

    Args:
        a: Counts of the arm claimed to be better, (S seeds, C scenes, ...), the rest as `metric` takes it.
        b: Counts of the other arm, seeds and scenes in the same order.
        metric: Function of pooled counts to scores.

    Returns:
        Effect and variances, as of `spread_of` with weights 1 and -1. ValueError if shapes do not match or a scene has
        not the same exact pixels in both.
    """
    first, second = pair(a, b, metric)
    return spread_of([(1, first), (-1, second)], metric=metric)


def spread_of(
    terms: Sequence[tuple[float, ArrayLike]],
    *,
    metric: statistics.Metric = statistics.mean_iou,
    tasks: Sequence[object] | None = None,
) -> Spread:
    """How a weighted sum of scores varies over the seeds and scenes that its terms share.

    A gain on one task less the gain on another is four terms, [(1, a), (-1, b), (-1, c), (1, d)]; the tasks may differ
    in their classes. Weights that add up to zero make it a difference; nothing else is asked of them.

    A score pools its scenes, so what a scene adds to a seed's sum is its jackknife pseudo-value (Tukey 1958; Efron and
    Tibshirani 1993, chapter 11): C - 1 times what leaving it out takes away, about the seed's sum. It is the scene's
    own sum where scores are means over scenes. Correcting each seed for bias as well made its variance up to eight
    times that of the differences themselves, of U-Nets judged on 5 scenes by mean IoU.

    Args:
        terms: Weight and counts, (S seeds, C scenes, ...), of each term, the rest as `metric` takes it; seeds and
            scenes in the same order throughout.
        metric: Function of pooled counts to scores.
        tasks: What each term is judged on; those of one task must share shape and exact pixels. Without it, terms of
            one shape are of one task: name tasks that happen to have as many classes.

    Returns:
        Effect and variances; a scene that is void in a task is left out of all. ValueError if numbers of seeds or
        scenes differ, or terms of one task do not match.
    """
    weights = [float(weight) for weight, _ in terms]
    stacks = _shared([np.asarray(counts, np.float64) for _, counts in terms], metric, tasks)
    total = [stack.sum(1) for stack in stacks]
    whole = _weighed(weights, total, metric)
    n_seeds, n_scenes = stacks[0].shape[:2]
    if n_scenes == 0 or np.isnan(whole).any():
        return Spread(float("nan"), *(float("nan"),) * 3, n_seeds, n_scenes)
    own = whole[:, None]
    if n_scenes > 1:
        left_out = [pooled[:, None] - stack for pooled, stack in zip(total, stacks, strict=True)]
        without = _weighed(weights, left_out, metric)
        own = own - (n_scenes - 1) * (without - without.mean(1, keepdims=True))
    rows, columns = own.mean(1), own.mean(0)
    left = own - rows[:, None] - columns + own.mean()
    variance = [float(each.var(ddof=1)) if each.size > 1 else float("nan") for each in (rows, columns)]
    free = (n_seeds - 1) * (n_scenes - 1)
    rest = float((left**2).sum() / free) if free else float("nan")
    return Spread(float(whole.mean()), *variance, rest, n_seeds, n_scenes)


def minimum_detectable_difference(found: Spread, *, power: float = 0.8, level: float = 0.95) -> float:
    """Smallest true difference that an interval like this one excludes zero for with probability `power`.

    The noncentrality of Student's t at that power times the standard error (Bloom 1995, who adds two quantiles for
    it); in units of the metric. NaN for one seed on one scene.
    """
    if not 0 < power < 1 or not 0 < level < 1:
        raise ValueError(f"power and level are fractions in (0, 1), got {power} and {level}")
    error, free = found.error()
    return float(special.nctdtrinc(free, 1 - power, special.stdtrit(free, (1 + level) / 2)) * error)


def seeds_needed(found: Spread, *, level: float = 0.95, margin: float = 0.0) -> int | None:
    """How many more seeds would clear the interval off the margin, if effect and variances stay as they are.

    Returns:
        0 if it is clear already; None if no number of seeds up to a thousand does it, because what scenes differ by
        stays: more scenes are needed. None too for one seed or one scene, whose variation was not seen.
    """
    if np.isnan(found.rest):
        return None

    def clear(n_seeds: int) -> bool:
        error, free = found.error(n_seeds)
        return special.stdtrit(free, (1 + level) / 2) * error < abs(found.effect - margin)

    return next((n - found.n_seeds for n in range(found.n_seeds, MOST_SEEDS + 1) if clear(n)), None)


def dominant(found: Spread) -> str:
    """Which of "seed", "scene" and "rest" the variance of the effect owes most to; "unknown" if not all were seen."""
    if np.isnan(found.rest):
        return "unknown"
    numbers = {"seed": found.n_seeds, "scene": found.n_scenes, "rest": found.n_seeds * found.n_scenes}
    parts = {name: variance / numbers[name] for name, variance in found.components().items()}
    return max(parts, key=parts.__getitem__)


def pair(a: ArrayLike, b: ArrayLike, metric: statistics.Metric) -> tuple[Floats, Floats]:
    """Counts of two arms as arrays of one shape; ValueError if they are not, or of other exact pixels."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim < 4 or 0 in first.shape:
        raise ValueError(f"a {first.shape} and b {second.shape} are not the same (seeds, scenes, ...)")
    if first.shape[-1] == first.shape[-2] and statistics.of_classes(metric):
        statistics.check_paired(first, second)
    return first, second


def _weighed(weights: list[float], counts: list[Floats], metric: statistics.Metric) -> Floats:
    return sum(weight * metric(each) for weight, each in zip(weights, counts, strict=True))


def _shared(stacks: list[Floats], metric: statistics.Metric, tasks: Sequence[object] | None) -> list[Floats]:
    """The terms without the scenes that are void in one of the tasks."""
    shapes = [stack.shape for stack in stacks]
    if len({shape[:2] for shape in shapes}) != 1 or any(len(shape) < 4 or 0 in shape for shape in shapes):
        raise ValueError(f"terms of the same (seeds, scenes, ...) are expected, got {shapes or 'none'}")
    if tasks is not None and len(tasks) != len(stacks):
        raise ValueError(f"a task for each of {len(stacks)} terms is expected, got {len(tasks)}")
    seen = np.ones(shapes[0][1], bool)
    names = shapes if tasks is None else list(tasks)
    for task in dict.fromkeys(names):
        first, *others = (stack for stack, name in zip(stacks, names, strict=True) if name == task)
        for other in others:
            pair(first, other, metric)
        filled = sum((other for other in others), first)
        seen &= filled.sum(axis=(0, *range(2, filled.ndim))) > 0
    return [stack[:, seen] for stack in stacks]
