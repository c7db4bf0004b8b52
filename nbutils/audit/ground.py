"""An exact mask as a noise model sees it, and what is counted on audited ones; `nbutils.audit.calibrate` fits to it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbutils.audit import structure
from nbutils.distance import boundary_distance, near
from nbutils.legend import VOID
from nbutils.noise.objects import Objects

Mask = NDArray[np.uint8]
BANDS_PX = np.array([1, 2, 3, 4, 6, 9, 14])  # distance to the nearest boundary, each up to the next
SIZES_PX = np.array(structure.SIZES_PX[:-1])  # pixels of an object, each up to the next
LAGS_PX = np.array([1, 2, 3, 5, 8, 13, 21, 34])  # at which the autocorrelation of errors is matched
PRIOR_PX = 50.0  # pixels that a wider average counts for beside a cell's own


@dataclass(frozen=True)
class Ground:
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
    def of(cls, exact: Mask, to_noisy: NDArray[np.intp], n_classes: int) -> "Ground":
        """Look at an exact mask (H, W) whose classes the map calls `to_noisy` (K,) when it is right."""
        right = right_map(exact, to_noisy)
        valid = right != VOID
        band = np.searchsorted(BANDS_PX, boundary_distance(right, BANDS_PX[-1]), side="right") - 1
        least, nearest = np.full(exact.shape, np.inf, np.float32), np.full(exact.shape, n_classes, np.intp)
        for k in np.unique(right[valid]):
            distance = np.where(right == k, np.inf, near(right == k, 2 * BANDS_PX[-1]))
            closer = distance < least
            least[closer], nearest[closer] = distance[closer], k
        objects, size, class_of = areas_of(right)
        own = np.where(valid, exact, 0).astype(np.intp)
        return cls(
            own, np.where(valid, right, 0).astype(np.intp), valid, band, nearest, objects, size, class_of, n_classes
        )

    def mask(self) -> Mask:
        """The exact mask, void where the map has no class for it."""
        return np.where(self.valid, self.own, VOID).astype(np.uint8)

    @property
    def bins(self) -> NDArray[np.intp]:
        """Size class of every object."""
        return size_bins(self.size)

    def at(
        self, lost: NDArray[np.bool_]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Place of every pixel in the table: object kept or lost, exact class, nearest other class, band."""
        state = lost[self.object_of].astype(np.intp)
        return state, self.own, self.nearest, np.where(state, 0, self.band)


@dataclass(frozen=True)
class Audited:
    """A mask of the map, its ground, and which objects it has lost."""

    noisy: Mask
    ground: Ground
    lost: NDArray[np.bool_]


def size_bins(size: NDArray[np.intp]) -> NDArray[np.intp]:
    """Bin of each size in `SIZES_PX`."""
    return np.maximum(np.searchsorted(SIZES_PX, size, side="right") - 1, 0)


def counted(shape: tuple[int, ...], *index: NDArray[np.integer]) -> NDArray[np.intp]:
    """How often each place of a table occurs; one array of indices for each of its axes."""
    return np.bincount(np.ravel_multi_index(index, shape), minlength=np.prod(shape)).reshape(shape)


def count_areas(masks: list[Mask], n_classes: int) -> NDArray[np.float64]:
    """Areas of maps by class and size, (C, S)."""
    counts = np.zeros((n_classes, len(SIZES_PX)))
    for mask in masks:
        _, size, class_of = areas_of(mask)
        counts += counted(counts.shape, class_of[1:], size_bins(size)[1:])
    return counts


def areas_of(mask: Mask) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """4-connected areas of one class: number at every pixel (0: void), and size and class of each."""
    objects = Objects.of(mask)
    return objects.ids, objects.sizes, np.where(objects.class_of == VOID, 0, objects.class_of).astype(np.intp)


def lost_objects(noisy: Mask, ground: Ground) -> NDArray[np.bool_]:
    """Objects less than half of which the map has in their class."""
    kept = np.bincount(ground.object_of.ravel(), weights=(noisy == ground.right).ravel(), minlength=len(ground.size))
    lost = kept * 2 < ground.size
    lost[0] = False
    return lost


def true_to_state(
    changed: NDArray[np.bool_], level: NDArray[np.floating], lost: NDArray[np.bool_], ground: Ground
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


def tabulate(
    audited: list[Audited], right: NDArray[np.intp], n_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The table and the omission of `Calibrated`."""
    counts = np.zeros((2, len(right), n_classes + 1, len(BANDS_PX), n_classes))
    objects = np.zeros((2, n_classes, len(SIZES_PX)))
    for a in audited:
        valid = a.ground.valid
        counts += counted(counts.shape, *(index[valid] for index in a.ground.at(a.lost)), a.noisy[valid])
        objects += counted(objects.shape, a.lost[1:].astype(np.intp), a.ground.class_of[1:], a.ground.bins[1:])
    seen = counts.sum(axis=(0, 2, 3))  # (K, C)
    by_class = _mixed(
        counts.sum(axis=(2, 3)), np.where(seen.any(axis=1)[:, None], seen, _like_the_rest(seen, right))[None]
    )
    by_band = _mixed(counts.sum(axis=2), by_class[:, :, None])
    omission = np.zeros(objects.shape[1:])
    before = objects[1].sum(axis=1) / np.maximum(objects.sum(axis=(0, 2)), 1)
    for size in range(len(SIZES_PX)):  # where few objects were seen, those a size smaller have a say
        before = omission[:, size] = (objects[1, :, size] + before) / (objects[:, :, size].sum(axis=0) + 1)
    return _mixed(counts, by_band[:, :, None]), omission


def _like_the_rest(seen: NDArray[np.float64], right: NDArray[np.intp]) -> NDArray[np.float64]:
    """Counts for classes that were not audited: right as often as all others together, wrong as the map is at all."""
    known = right != VOID
    own = np.zeros(seen.shape)
    own[known, right[known]] = 1
    correct = (seen * own).sum() / seen.sum()
    wrong = (seen * (1 - own)).sum(axis=0) + 1e-9
    return correct * own + (1 - correct) * wrong * (1 - own) / (wrong * (1 - own)).sum(axis=1, keepdims=True)


def _mixed(counts: NDArray[np.float64], wider: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of counts, in which those of wider surroundings stand in where little was counted."""
    total = wider.sum(axis=-1, keepdims=True)
    prior = np.divide(wider, total, out=np.full(wider.shape, 1 / wider.shape[-1]), where=total > 0)
    return (counts + PRIOR_PX * prior) / (counts.sum(axis=-1, keepdims=True) + PRIOR_PX)


def count_errors(audited: list[Audited], k: int) -> NDArray[np.float64]:
    """Right and wrong pixels by state, exact class and band, (2, 2, K, B)."""
    counts = np.zeros((2, 2, k, len(BANDS_PX)))
    for a in audited:
        state, own, _, band = a.ground.at(a.lost)
        wrong = (a.noisy != a.ground.right).astype(np.intp)
        counts += counted(counts.shape, *(index[a.ground.valid] for index in (wrong, state, own, band)))
    return counts


def company_of(audited: list[Audited], table: NDArray[np.float64]) -> NDArray[np.float64]:
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


def right_map(exact: Mask, to_noisy: NDArray[np.intp]) -> Mask:
    """What a right map would say of exact masks (..., H, W)."""
    table = np.full(VOID + 1, VOID, np.uint8)
    table[: len(to_noisy)] = to_noisy
    return table[exact]


def moved(mask: Mask, vector: NDArray[np.intp]) -> Mask:
    """Displace a mask by (down, right) whole pixels; the edge is replicated."""
    rows = np.clip(np.arange(mask.shape[0]) - vector[0], 0, mask.shape[0] - 1)
    columns = np.clip(np.arange(mask.shape[1]) - vector[1], 0, mask.shape[1] - 1)
    return mask[rows[:, None], columns]
