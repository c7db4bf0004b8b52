"""Calibration: learn from a few audited masks how a map errs, and break exact masks elsewhere in the same way.

The model has three parts. *Where the map lies*: one shift per scene, as audited. *What it misses*: objects are lost
with a probability that depends on their class and size. *How it errs otherwise*: a table of the class the map gives, by
exact class, nearest other class and distance to it, with rows of its own for lost objects. Errors happen where a smooth
random field falls below the quantile that the table asks for: they come in patches, and a boundary that is off by
three pixels is off by two and one as well. That is truncated Gaussian simulation, as geostatistics has it (Matheron et
al. 1987, SPE 16753), with proportions given by the exact map. The field mixes several correlation lengths; their shares
are read from the autocorrelation of the audited errors.

The exact mask may be in a richer legend than the map: a car park that is *other impervious* there and *background* in
the map's legend is mistaken for a road far more often than a lawn is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, special

from nbutils.audit.findings import pool, statistics_of, with_intervals
from nbutils.audit.ground import (
    LAGS_PX,
    Audited,
    Ground,
    Mask,
    areas_of,
    company_of,
    count_areas,
    count_errors,
    counted,
    lost_objects,
    moved,
    right_map,
    size_bins,
    tabulate,
    true_to_state,
)
from nbutils.audit.structure import displacement
from nbutils.legend import VOID, Legend
from nbutils.noise.fields import smooth_field
from nbutils.noise.objects import surroundings

LENGTHS_PX = np.array([0.0, 2, 5, 12, 30, 80])  # correlation lengths that the field mixes
CHOICE_PX = 40.0  # correlation length of which class an error becomes
_STEP = 0.7  # of the way that each round of corrections goes


@dataclass(frozen=True)
class Calibrated:
    """How a map errs, as learned by `fit`; K exact classes, C classes of the map.

    Attributes:
        to_noisy: The map's class for every exact class when it is right, (K,); void: the map says nothing there.
        shifts_px: Displacements (down, right) of the audited scenes, whole pixels, (S, 2).
        areas: Share of the loose areas of each map class and size that stay, (C, S): what is neither an object nor
            part of one becomes what surrounds it until there are as many areas as the map shows.
        omission: Probability that an object is lost, by map class and size (`SIZES_PX`), (C, S).
        table: Probability of every map class, (2, K, C + 1, B, C): object kept or lost, exact class, nearest other
            class (C: none near), distance (`BANDS_PX`; the first stands for all in lost objects).
        offset: Correction of the log odds of an error so that the audited rates come out, (2, K, B).
        shares: Share of each of `LENGTHS_PX` in the variance of the field, (6,).
    """

    to_noisy: NDArray[np.intp]
    shifts_px: NDArray[np.intp] = field(repr=False)
    areas: NDArray[np.float64] = field(repr=False)
    omission: NDArray[np.float64] = field(repr=False)
    table: NDArray[np.float64] = field(repr=False)
    offset: NDArray[np.float64] = field(repr=False)
    shares: NDArray[np.float64] = field(repr=False)

    def apply(self, exact: Mask | Sequence[Mask], rng: np.random.Generator, groups: Sequence[str] | None = None):
        """Break exact masks as the audited map is broken.

        Args:
            exact: Exact classes: (H, W), (N, H, W) or a list of (H, W), uint8; void stays void.
            rng: Source of randomness.
            groups: Scene of each of several masks: those of one scene are displaced alike. Each by itself if left out.

        Returns:
            noisy: The map in its own legend, of the same kind as `exact`.
            changed: Where it differs from what a right map would say.
        """
        alone = isinstance(exact, np.ndarray) and exact.ndim == 2
        images = [exact] if alone else list(exact)
        groups = list(range(len(images)) if groups is None else groups)
        if len(groups) != len(images):
            raise ValueError(f"{len(groups)} groups were given for {len(images)} masks")
        vectors, noisy = self._draw_shifts(groups, rng), []
        for image, group in zip(images, groups, strict=True):
            _check(image, len(self.to_noisy))
            at = moved(image, vectors[group])
            noisy.append(self._break(np.where((image == VOID) | (at == VOID), image, at), rng))
        changed = [a != right_map(b, self.to_noisy) for a, b in zip(noisy, images, strict=True)]
        if alone:
            return noisy[0], changed[0]
        if isinstance(exact, np.ndarray):
            return np.array(noisy, np.uint8).reshape(exact.shape), np.array(changed, bool).reshape(exact.shape)
        return noisy, changed

    def _draw_shifts(self, groups: list, rng: np.random.Generator) -> dict:
        """Each audited shift in turn, in random order: their spread is that of the audit."""
        names = list(dict.fromkeys(groups))
        turns = [rng.permutation(len(self.shifts_px)) for _ in range(-(-len(names) // len(self.shifts_px)))]
        return dict(zip(names, self.shifts_px[np.concatenate(turns)[: len(names)]], strict=True)) if names else {}

    def _break(self, exact: Mask, rng: np.random.Generator) -> Mask:
        ground = Ground.of(exact, self.to_noisy, self.table.shape[-1])
        lost = rng.random(len(ground.size)) < self.omission[ground.class_of, ground.bins]
        lost[0] = False
        at = ground.at(lost)
        chance = np.clip(1 - self.table[(*at, ground.right)], 1e-9, 1 - 1e-9)
        wrong = special.expit(special.logit(chance) + self.offset[at[0], at[1], at[3]])
        level = self._levels(ground, rng)
        changed = true_to_state(ground.valid & (level < wrong), level / wrong, lost, ground)
        others = self.table[tuple(index[changed] for index in at)]
        others[np.arange(len(others)), ground.right[changed]] = 0
        steps = np.cumsum(others, axis=1)
        choice = smooth_field(exact.shape, CHOICE_PX, rng)  # slow, so that an error in company becomes one class
        draw = special.ndtr(choice[changed]) * steps[:, -1]
        noisy = np.where(ground.valid, ground.right, VOID).astype(np.uint8)
        noisy[changed] = np.minimum((draw[:, None] >= steps).sum(axis=1), others.shape[1] - 1)
        return self._thinned(noisy, ground, lost, rng)

    def _thinned(self, noisy: Mask, ground: Ground, lost: NDArray[np.bool_], rng: np.random.Generator) -> Mask:
        """Let loose areas go until there are about as many of each class and size as the map shows."""
        ids, size, class_of = areas_of(noisy)
        kept = ground.valid & (noisy == ground.right) & ~lost[ground.object_of]
        loose = np.bincount(ids.ravel(), weights=kept.ravel(), minlength=len(size)) * 2 < size
        gone = loose & (rng.random(len(size)) >= self.areas[class_of, size_bins(size)])
        gone[0] = False
        around = surroundings(noisy, ids, gone)[ids]
        back = (around == ground.right) & lost[ground.object_of]  # what is lost does not come back
        return np.where((around == VOID) | back | ~ground.valid, noisy, around).astype(np.uint8)

    def _levels(self, ground: "Ground", rng: np.random.Generator) -> NDArray[np.float32]:
        """Numbers uniform in (0, 1) at every pixel; low on one side of a boundary where they are high on the other.

        The difference of the fields of two classes: where one gains ground the other loses it.
        """
        present = np.unique([ground.right[ground.valid], ground.nearest[ground.valid]])
        fields = {k: self._field(ground.own.shape, rng) for k in present}
        normal = np.zeros(ground.own.shape, np.float32)
        for k, made in fields.items():
            normal[ground.right == k] += made[ground.right == k]
            normal[ground.nearest == k] -= made[ground.nearest == k]
        return special.ndtr(normal / np.float32(np.sqrt(2)))

    def _field(self, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
        """A field of normal numbers with the correlation of the audited errors."""
        total = np.zeros(shape, np.float32)
        for length, share in zip(LENGTHS_PX, self.shares, strict=True):
            if share > 0:
                total += np.float32(np.sqrt(share)) * smooth_field(shape, length, rng)
        return total


def fit(
    noisy: Sequence[Mask],
    exact: Sequence[Mask],
    to_noisy: Sequence[int],
    n_classes: int,
    *,
    rng: np.random.Generator,
    groups: Sequence[str] | None = None,
    rounds: int = 3,
) -> Calibrated:
    """Learn from audited masks how the map errs.

    Args:
        noisy: The map, one (H, W) uint8 mask per audited image, classes 0 .. `n_classes` - 1 or void.
        exact: The same ground, exactly, in a legend of its own or the same one.
        to_noisy: The map's class for each exact class, (K,), as `legend.crosswalk` gives it; void: the class the map
            gives most often counts as right.
        n_classes: Classes of the map, C.
        rng: Source of randomness for the corrections.
        groups: Scene of each image, for the shift; each by itself if left out.
        rounds: How often the audited masks are broken anew to correct rates and correlation.

    Raises:
        ValueError: Shapes or numbers of masks differ, or no pixel is valid in both.
    """
    noisy, exact, to_noisy = list(noisy), list(exact), np.asarray(to_noisy).astype(np.intp)
    groups = list(range(len(exact)) if groups is None else groups)
    _check_pairs(noisy, exact, groups, to_noisy, n_classes)
    to_noisy = _most_frequent(noisy, exact, to_noisy, n_classes)
    shifts = {}
    for group in dict.fromkeys(groups):
        mine = [i for i, other in enumerate(groups) if other == group]
        shifts[group] = np.array(displacement([(noisy[i], right_map(exact[i], to_noisy)) for i in mine])[1])
    places = [moved(b, shifts[group]) for b, group in zip(exact, groups, strict=True)]
    known = [np.where(a == VOID, VOID, b) for a, b in zip(noisy, places, strict=True)]
    grounds = [Ground.of(mask, to_noisy, n_classes) for mask in known]
    audited = _audited(noisy, grounds)
    table, omission = tabulate(audited, to_noisy, n_classes)
    wanted, rates, shown = (
        company_of(audited, table),
        count_errors(audited, len(to_noisy)),
        count_areas(noisy, n_classes),
    )
    target, offset, areas = wanted.copy(), np.zeros(rates.shape[1:]), np.ones(omission.shape)
    vectors = np.stack(list(shifts.values()))
    made = Calibrated(to_noisy, vectors, areas, omission, table, offset, _shares(target))
    for _ in range(rounds):
        masks = [made._break(ground.mask(), rng) for ground in grounds]
        again = _audited(masks, grounds)
        target = np.clip(target + _STEP * (wanted - company_of(again, table)), 0, 0.99)
        offset = offset + _STEP * (_log_odds(rates) - _log_odds(count_errors(again, len(to_noisy))))
        areas = np.clip(areas * ((shown + 1) / (count_areas(masks, n_classes) + 1)) ** _STEP, 0.01, 1)
        made = replace(made, offset=offset, areas=areas, shares=_shares(target))
    return _to_the_rate(made, noisy, exact, groups, rng, rounds)


def _audited(masks: list[Mask], grounds: list[Ground]) -> list[Audited]:
    pairs = zip(masks, grounds, strict=True)
    return [Audited(mask, ground, lost_objects(mask, ground)) for mask, ground in pairs]


def _to_the_rate(
    made: Calibrated, noisy: list[Mask], exact: list[Mask], groups: list, rng: np.random.Generator, rounds: int
) -> Calibrated:
    """Correct the rate of every exact class once more, shifts included: a shift hides errors and makes others."""

    def odds(maps: list[Mask]) -> NDArray[np.float64]:
        counts = np.zeros((2, len(made.to_noisy)))
        for a, b, m in zip(noisy, exact, maps, strict=True):
            right = right_map(b, made.to_noisy)
            valid = (a != VOID) & (right != VOID)
            counts += counted(counts.shape, (m != right)[valid].astype(np.intp), b[valid])
        return _log_odds(counts)

    wanted = odds(noisy)
    for _ in range(rounds):
        drawn = np.mean([odds(made.apply(exact, rng, groups)[0]) for _ in range(2)], axis=0)
        made = replace(made, offset=made.offset + (wanted - drawn)[None, :, None])
    return made


def goodness(
    simulate: Callable[[np.random.Generator], Sequence[Mask]],
    noisy: Sequence[Mask],
    exact: Sequence[Mask],
    legend_or_n: Legend | int,
    *,
    rng: np.random.Generator,
    groups: Sequence[str] | None = None,
    n_draws: int = 5,
) -> pd.DataFrame:
    """Compare what a noise model simulates with what was audited, statistic by statistic.

    Args:
        simulate: Gives a noisy mask for each exact one.
        noisy: Audited masks of the map; the harder test is of other scenes than those the model was fitted to.
        exact: The same ground, exactly, in the map's legend.
        legend_or_n: Legend of both, or its number of classes.
        rng: Source of randomness.
        groups: Scene of each image, the unit of the intervals; each image by itself if left out.
        n_draws: Simulated maps; their statistics are averaged.

    Returns:
        The rows of `Findings.table` (value and 95 % interval are the audit's) and two columns: `simulated`, and
        `inside`: whether that lies in the interval (nan where there is none).
    """
    audited = with_intervals(pool(statistics_of(noisy, exact, legend_or_n), groups), rng=rng).table()
    drawn = []
    for _ in range(n_draws):
        made = [np.where(a == VOID, VOID, m) for a, m in zip(noisy, simulate(rng), strict=True)]
        drawn.append(pool(statistics_of(made, exact, legend_or_n), groups).table()["value"].to_numpy())
    simulated = np.mean(drawn, axis=0)
    known = audited["low"].notna() & np.isfinite(simulated)
    inside = (simulated >= audited["low"]) & (simulated <= audited["high"])
    return audited.assign(simulated=simulated, inside=inside.where(known))


def _log_odds(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log((counts[1] + 1) / (counts[0] + 1))


def _shares(correlation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of `LENGTHS_PX` that give a field this correlation once it is cut at a quantile (exact at its median)."""
    latent = np.sin(np.clip(correlation, 0, 0.99) * np.pi / 2)
    basis = np.exp(-((LAGS_PX[:, None] / np.maximum(LENGTHS_PX, 1e-3)) ** 2))
    unit = 10 * np.ones((1, len(LENGTHS_PX)))  # the shares sum to 1, nearly
    shares = optimize.nnls(np.vstack([basis, unit]), np.append(latent, unit[0, 0]))[0]
    return shares / shares.sum()


def _most_frequent(noisy: list, exact: list, to_noisy: NDArray[np.intp], n_classes: int) -> NDArray[np.intp]:
    """Give classes without a counterpart what the map calls them most often; void if it was not seen to."""
    counts = np.zeros((len(to_noisy), n_classes))
    for a, b in zip(noisy, exact, strict=True):
        valid = (a != VOID) & (b != VOID)
        counts += counted(counts.shape, b[valid], a[valid])
    often = np.where(counts.any(axis=1), counts.argmax(axis=1), VOID)
    return np.where(to_noisy == VOID, often, to_noisy)


def _check(mask: Mask, k: int, what: str = "an exact mask") -> None:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.ndim != 2:
        got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"{what} is a uint8 array (H, W), got {got}")
    if (wrong := np.unique(mask[(mask >= k) & (mask != VOID)])).size:
        raise ValueError(f"{what} holds classes {wrong[:5].tolist()}; known are 0..{k - 1}")


def _check_pairs(noisy: list, exact: list, groups: list, to_noisy: NDArray[np.intp], n_classes: int) -> None:
    if not len(noisy) == len(exact) == len(groups):
        raise ValueError(f"{len(noisy)} noisy masks, {len(exact)} exact ones and {len(groups)} groups were given")
    if not (((to_noisy >= 0) & (to_noisy < n_classes)) | (to_noisy == VOID)).all():
        raise ValueError(f"to_noisy gives the map's classes 0..{n_classes - 1} or void, got {to_noisy.tolist()}")
    for i, (a, b) in enumerate(zip(noisy, exact, strict=True)):
        _check(a, n_classes, f"image {i}: the noisy mask")
        _check(b, len(to_noisy), f"image {i}: the exact mask")
        if a.shape != b.shape or not a.size:
            raise ValueError(f"image {i}: noisy mask {a.shape} and exact mask {b.shape} differ in shape or are empty")
    if not any(((a != VOID) & (b != VOID)).any() for a, b in zip(noisy, exact, strict=True)):
        raise ValueError("no pixel is valid in both maps; audit images where both say something")
