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

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, special
from skimage import measure

from nbutils.audit import structure
from nbutils.audit.findings import pool, statistics_of, with_intervals
from nbutils.audit.structure import displacement
from nbutils.distance import boundary_distance, near
from nbutils.legend import VOID, Legend
from nbutils.noise.fields import smooth_field
from nbutils.noise.objects import surroundings

Mask = NDArray[np.uint8]
BANDS_PX = np.array([1, 2, 3, 4, 6, 9, 14])  # distance to the nearest boundary, each up to the next
SIZES_PX = np.array(structure.SIZES_PX[:-1])  # pixels of an object, each up to the next
LENGTHS_PX = np.array([0.0, 2, 5, 12, 30, 80])  # correlation lengths that the field mixes
LAGS_PX = np.array([1, 2, 3, 5, 8, 13, 21, 34])  # at which the autocorrelation of errors is matched
CHOICE_PX = 40.0
_PRIOR_PX = 50.0  # pixels that a wider average counts for beside a cell's own
_LEAST_SHARE = 0.02  # of a map's objects may be smaller than what counts as its smallest
_STEP = 0.7  # of the way that each round of corrections goes


@dataclass(frozen=True)
class Calibrated:
    """How a map errs, as learned by `fit`; K exact classes, C classes of the map.

    Attributes:
        to_noisy: The map's class for every exact class when it is right, (K,).
        shifts_px: Displacements (down, right) of the audited scenes, whole pixels, (S, 2).
        least_px: Smallest area the map shows of each of its classes, (C,); a smaller error becomes what
            surrounds it.
        omission: Probability that an object is lost, by map class and size (`SIZES_PX`), (C, S).
        table: Probability of every map class, (2, K, C + 1, B, C): object kept or lost, exact class, nearest other
            class (C: none near), distance (`BANDS_PX`; the first stands for all in lost objects).
        offset: Correction of the log odds of an error so that the audited rates come out, (2, K, B).
        shares: Share of each of `LENGTHS_PX` in the variance of the field, (6,).
    """

    to_noisy: NDArray[np.intp]
    shifts_px: NDArray[np.intp] = field(repr=False)
    least_px: NDArray[np.float64] = field(repr=False)
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
            moved = _moved(image, vectors[group])
            noisy.append(self._break(np.where((image == VOID) | (moved == VOID), image, moved), rng))
        changed = [a != _right(b, self.to_noisy) for a, b in zip(noisy, images, strict=True)]
        if alone:
            return noisy[0], changed[0]
        return (np.stack(noisy), np.stack(changed)) if isinstance(exact, np.ndarray) and noisy else (noisy, changed)

    def save(self, path: str | Path) -> None:
        """Write as JSON, under a temporary name first."""
        path = Path(path)
        content = {name: getattr(self, name).tolist() for name in self.__dataclass_fields__}
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_text(json.dumps(content) + "\n")
        scratch.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "Calibrated":
        """Read what `save` wrote.

        Raises:
            ValueError: The file is not what `save` writes.
        """
        try:
            content = json.loads(Path(path).read_text())
            made = cls(**{name: np.array(value) for name, value in content.items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no calibration ({error}); write it with Calibrated.save") from None
        k, c = len(made.to_noisy), made.table.shape[-1]
        shapes = {
            "table": (2, k, c + 1, len(BANDS_PX), c),
            "offset": (2, k, len(BANDS_PX)),
            "omission": (c, len(SIZES_PX)),
        }
        if wrong := [name for name, shape in shapes.items() if getattr(made, name).shape != shape]:
            raise ValueError(
                f"{path}: {', '.join(wrong)} of another shape than expected; write it with Calibrated.save"
            )
        return made

    def _draw_shifts(self, groups: list, rng: np.random.Generator) -> dict:
        """Each audited shift in turn, in random order: their spread is that of the audit."""
        names = list(dict.fromkeys(groups))
        turns = [rng.permutation(len(self.shifts_px)) for _ in range(-(-len(names) // len(self.shifts_px)))]
        return dict(zip(names, self.shifts_px[np.concatenate(turns)[: len(names)]], strict=True)) if names else {}

    def _break(self, exact: Mask, rng: np.random.Generator) -> Mask:
        ground = _Ground.of(exact, self.to_noisy, self.table.shape[-1])
        lost = rng.random(len(ground.size)) < self.omission[ground.class_of, ground.bins]
        lost[0] = False
        at = ground.at(lost)
        chance = np.clip(1 - self.table[(*at, ground.right)], 1e-9, 1 - 1e-9)
        wrong = special.expit(special.logit(chance) + self.offset[at[0], at[1], at[3]])
        level = self._levels(ground, rng)
        changed = _true_to_state(ground.valid & (level < wrong), level / wrong, lost, ground)
        others = self.table[tuple(index[changed] for index in at)]
        others[np.arange(len(others)), ground.right[changed]] = 0
        steps = np.cumsum(others, axis=1)
        choice = smooth_field(exact.shape, CHOICE_PX, rng)  # slow, so that an error in company becomes one class
        draw = special.ndtr(choice[changed]) * steps[:, -1]
        noisy = np.where(ground.valid, ground.right, VOID).astype(np.uint8)
        noisy[changed] = np.minimum((draw[:, None] >= steps).sum(axis=1), others.shape[1] - 1)
        objects, size, class_of = _objects(noisy)
        wrong = np.bincount(objects.ravel(), weights=(noisy != ground.right).ravel(), minlength=len(size))
        small = (size < self.least_px[class_of]) & (wrong * 2 > size)
        around = surroundings(noisy, objects, small)[objects]
        return np.where(around == VOID, noisy, around).astype(np.uint8)

    def _levels(self, ground: "_Ground", rng: np.random.Generator) -> NDArray[np.float32]:
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
    _check_pairs(noisy, exact, groups, len(to_noisy), n_classes)
    to_noisy = _most_frequent(noisy, exact, to_noisy, n_classes)
    shifts = {}
    for group in dict.fromkeys(groups):
        mine = [i for i, other in enumerate(groups) if other == group]
        shifts[group] = np.array(displacement([(noisy[i], _right(exact[i], to_noisy)) for i in mine])[1])
    grounds = []
    for a, b, group in zip(noisy, exact, groups, strict=True):
        grounds.append(_Ground.of(np.where(a == VOID, VOID, _moved(b, shifts[group])), to_noisy, n_classes))
    audited = [_Audited(a, ground, _lost(a, ground)) for a, ground in zip(noisy, grounds, strict=True)]
    table, omission = _count(audited, len(to_noisy), n_classes)
    wanted, rates = _company(audited, table), _errors(audited, len(to_noisy))
    target, offset = wanted.copy(), np.zeros(rates.shape[1:])
    vectors, least = np.stack(list(shifts.values())), _least(noisy, n_classes)
    made = Calibrated(to_noisy, vectors, least, omission, table, offset, _shares(target))
    for _ in range(rounds):
        masks = [made._break(np.where(g.valid, g.own, VOID).astype(np.uint8), rng) for g in grounds]
        again = [_Audited(mask, ground, _lost(mask, ground)) for mask, ground in zip(masks, grounds, strict=True)]
        target = np.clip(target + _STEP * (wanted - _company(again, table)), 0, 0.99)
        offset = offset + _STEP * (_log_odds(rates) - _log_odds(_errors(again, len(to_noisy))))
        made = Calibrated(to_noisy, vectors, least, omission, table, offset, _shares(target))
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
        drawn.append(statistics_of(made, exact, legend_or_n).table()["value"].to_numpy())
    simulated = np.mean(drawn, axis=0)
    known = audited["low"].notna() & np.isfinite(simulated)
    inside = (simulated >= audited["low"]) & (simulated <= audited["high"])
    return audited.assign(simulated=simulated, inside=inside.where(known))


@dataclass(frozen=True)
class _Ground:
    """An exact mask as the model sees it; arrays are (H, W) or have an entry per object, 0 being void."""

    own: NDArray[np.intp]
    right: NDArray[np.intp]
    valid: NDArray[np.bool_]
    band: NDArray[np.intp]
    nearest: NDArray[np.intp]
    object_of: NDArray[np.intp]
    size: NDArray[np.intp]
    class_of: NDArray[np.intp]
    n_classes: int

    @classmethod
    def of(cls, exact: Mask, to_noisy: NDArray[np.intp], n_classes: int) -> "_Ground":
        right, valid = _right(exact, to_noisy), exact != VOID
        band = np.searchsorted(BANDS_PX, boundary_distance(right, BANDS_PX[-1]), side="right") - 1
        least, nearest = np.full(exact.shape, np.inf, np.float32), np.full(exact.shape, n_classes, np.intp)
        for k in np.unique(right[valid]):
            distance = np.where(right == k, np.inf, near(right == k, 2 * BANDS_PX[-1]))
            closer = distance < least
            least[closer], nearest[closer] = distance[closer], k
        objects, size, class_of = _objects(right)
        own = np.where(valid, exact, 0).astype(np.intp)
        return cls(
            own, np.where(valid, right, 0).astype(np.intp), valid, band, nearest, objects, size, class_of, n_classes
        )

    @property
    def bins(self) -> NDArray[np.intp]:
        """Size class of every object."""
        return np.maximum(np.searchsorted(SIZES_PX, self.size, side="right") - 1, 0)

    def at(
        self, lost: NDArray[np.bool_]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Place of every pixel in the table: object kept or lost, exact class, nearest other class, band."""
        state = lost[self.object_of].astype(np.intp)
        return state, self.own, self.nearest, np.where(state, 0, self.band)


@dataclass(frozen=True)
class _Audited:
    """A mask of the map, its ground, and which objects it has lost."""

    noisy: Mask
    ground: _Ground
    lost: NDArray[np.bool_]


def _objects(mask: Mask) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """4-connected areas of one class: number at every pixel (0: void), and size and class of each."""
    objects, n = measure.label(mask, background=VOID, connectivity=1, return_num=True)
    class_of = np.zeros(n + 1, np.intp)
    class_of[objects[objects > 0]] = mask[objects > 0]
    return objects, np.bincount(objects.ravel(), minlength=n + 1), class_of


def _least(noisy: list[Mask], n_classes: int) -> NDArray[np.float64]:
    """Areas that next to all objects of a class in the map reach; those the image cuts are not looked at."""
    areas: list[list[int]] = [[] for _ in range(n_classes)]
    for mask in noisy:
        objects, size, class_of = _objects(mask)
        cut = np.unique(np.concatenate([objects[0], objects[-1], objects[:, 0], objects[:, -1]]))
        for i in np.setdiff1d(np.arange(1, len(size)), cut):
            areas[class_of[i]].append(size[i])
    return np.array([np.quantile(own, _LEAST_SHARE) if own else 0 for own in areas])


def _lost(noisy: Mask, ground: _Ground) -> NDArray[np.bool_]:
    """Objects less than half of which the map has in their class."""
    kept = np.bincount(ground.object_of.ravel(), weights=(noisy == ground.right).ravel(), minlength=len(ground.size))
    lost = kept * 2 < ground.size
    lost[0] = False
    return lost


def _true_to_state(
    changed: NDArray[np.bool_], level: NDArray[np.floating], lost: NDArray[np.bool_], ground: _Ground
) -> NDArray[np.bool_]:
    """Let kept objects keep at least half of their pixels and lost ones lose more, the likeliest errors first."""
    flat, ids = changed.ravel().copy(), ground.object_of.ravel()
    gone = np.bincount(ids, weights=flat, minlength=len(ground.size))
    untrue = (gone * 2 > ground.size) != lost
    untrue[0] = False
    at = np.flatnonzero(untrue[ids])
    at = at[np.lexsort((level.ravel()[at], ids[at]))]
    rank = np.arange(len(at)) - np.searchsorted(ids[at], ids[at])
    flat[at] = rank < (ground.size // 2 + lost)[ids[at]]
    return flat.reshape(changed.shape)


def _count(audited: list[_Audited], k: int, n_classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The table and the omission of `Calibrated`."""
    counts, objects = np.zeros((2, k, n_classes + 1, len(BANDS_PX), n_classes)), np.zeros((2, n_classes, len(SIZES_PX)))
    for a in audited:
        valid = a.ground.valid
        np.add.at(counts, (*(index[valid] for index in a.ground.at(a.lost)), a.noisy[valid]), 1)
        np.add.at(objects, (a.lost[1:].astype(np.intp), a.ground.class_of[1:], a.ground.bins[1:]), 1)
    by_class = _mixed(counts.sum(axis=(2, 3)), counts.sum(axis=(0, 2, 3))[None])
    by_band = _mixed(counts.sum(axis=2), by_class[:, :, None])
    omission = np.zeros(objects.shape[1:])
    before = objects[1].sum(axis=1) / np.maximum(objects.sum(axis=(0, 2)), 1)
    for size in range(len(SIZES_PX)):  # where few objects were seen, those a size smaller have a say
        before = omission[:, size] = (objects[1, :, size] + before) / (objects[:, :, size].sum(axis=0) + 1)
    return _mixed(counts, by_band[:, :, None]), omission


def _mixed(counts: NDArray[np.float64], wider: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of counts, in which those of wider surroundings stand in where little was counted."""
    total = wider.sum(axis=-1, keepdims=True)
    prior = np.divide(wider, total, out=np.full(wider.shape, 1 / wider.shape[-1]), where=total > 0)
    return (counts + _PRIOR_PX * prior) / (counts.sum(axis=-1, keepdims=True) + _PRIOR_PX)


def _errors(audited: list[_Audited], k: int) -> NDArray[np.float64]:
    """Right and wrong pixels by state, exact class and band, (2, 2, K, B)."""
    counts = np.zeros((2, 2, k, len(BANDS_PX)))
    for a in audited:
        state, own, _, band = a.ground.at(a.lost)
        wrong = (a.noisy != a.ground.right).astype(np.intp)
        np.add.at(counts, tuple(index[a.ground.valid] for index in (wrong, state, own, band)), 1)
    return counts


def _log_odds(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log((counts[1] + 1) / (counts[0] + 1))


def _company(audited: list[_Audited], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation of errors within an exact class at `LAGS_PX`, beyond what the table explains."""
    sums = np.zeros((2, len(LAGS_PX)))
    for a in audited:
        ground = a.ground
        chance = np.where(ground.valid, 1 - table[(*ground.at(a.lost), ground.right)], 0)
        rest = np.where(ground.valid, (a.noisy != ground.right) - chance, 0)
        spread = np.sqrt(chance * (1 - chance))
        for i, lag in enumerate(LAGS_PX):
            for one, other in ((np.s_[lag:, :], np.s_[:-lag, :]), (np.s_[:, lag:], np.s_[:, :-lag])):
                same = ground.own[one] == ground.own[other]
                sums[0, i] += (rest[one] * rest[other])[same].sum()
                sums[1, i] += (spread[one] * spread[other])[same].sum()
    return np.divide(sums[0], sums[1], out=np.zeros(len(LAGS_PX)), where=sums[1] > 0)


def _shares(correlation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of `LENGTHS_PX` that give a field this correlation once it is cut at a quantile (exact at its median)."""
    latent = np.sin(np.clip(correlation, 0, 0.99) * np.pi / 2)
    basis = np.exp(-((LAGS_PX[:, None] / np.maximum(LENGTHS_PX, 1e-3)) ** 2))
    unit = 10 * np.ones((1, len(LENGTHS_PX)))  # the shares sum to 1, nearly
    shares = optimize.nnls(np.vstack([basis, unit]), np.append(latent, unit[0, 0]))[0]
    return shares / shares.sum()


def _most_frequent(noisy: list, exact: list, to_noisy: NDArray[np.intp], n_classes: int) -> NDArray[np.intp]:
    """Fill classes without a counterpart by what the map calls them most often."""
    counts = np.zeros((len(to_noisy), n_classes))
    for a, b in zip(noisy, exact, strict=True):
        valid = (a != VOID) & (b != VOID)
        np.add.at(counts, (b[valid], a[valid]), 1)
    return np.where(to_noisy == VOID, counts.argmax(axis=1), to_noisy)


def _right(exact: Mask, to_noisy: NDArray[np.intp]) -> Mask:
    table = np.full(VOID + 1, VOID, np.uint8)
    table[: len(to_noisy)] = to_noisy
    return table[exact]


def _moved(mask: Mask, vector: NDArray[np.intp]) -> Mask:
    """Displace a mask by (down, right) whole pixels; the edge is replicated."""
    rows = np.clip(np.arange(mask.shape[0]) - vector[0], 0, mask.shape[0] - 1)
    columns = np.clip(np.arange(mask.shape[1]) - vector[1], 0, mask.shape[1] - 1)
    return mask[rows[:, None], columns]


def _check(exact: Mask, k: int) -> None:
    if not isinstance(exact, np.ndarray) or exact.dtype != np.uint8 or exact.ndim != 2:
        raise TypeError("masks are uint8 arrays (H, W), or stacks or lists of them")
    if (wrong := np.unique(exact[(exact >= k) & (exact != VOID)])).size:
        raise ValueError(f"exact masks hold classes {wrong[:5].tolist()}; the calibration knows 0..{k - 1}")


def _check_pairs(noisy: list, exact: list, groups: list, k: int, n_classes: int) -> None:
    if not len(noisy) == len(exact) == len(groups):
        raise ValueError(f"{len(noisy)} noisy masks, {len(exact)} exact ones and {len(groups)} groups were given")
    for i, (a, b) in enumerate(zip(noisy, exact, strict=True)):
        if a.shape != b.shape:
            raise ValueError(f"image {i}: noisy mask {a.shape} and exact mask {b.shape} differ in shape")
        _check(b, k)
        _check(a, n_classes)
    if not any(((a != VOID) & (b != VOID)).any() for a, b in zip(noisy, exact, strict=True)):
        raise ValueError("no pixel is valid in both maps; audit images where both say something")
