"""Where and how a noisy map errs, counted image by image.

Everything here is a sum over the pixels or objects of one image, so that statistics of many images are functions of
added sums, and drawing images with replacement needs no second look at the masks.

All pixels are counted, except in large images, where windows evenly spread over the image speak for it: 9 of 256 px
for displacement, correlation and commission by distance in images of more than 2^20 pixels, and 4 of 1024 px for
objects and kinds in images of more than 2^22 pixels whose noisy map is ragged, that is, changes every few pixels.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nbutils.audit.agreement import Mask, _confusion
from nbutils.audit.objects import RAGGED, Objects, find_objects, is_void
from nbutils.distance import boundaries, squared
from nbutils.legend import VOID

EDGES_PX = (1, 2, 3, 6, 9, 13, np.inf)
"""Bands of distance: to the nearest boundary inside a class, to the nearest pixel of the class outside; in pixels."""

SIZES_PX = (1, 4, 16, 64, 256, 1024, 4096, np.inf)
"""Bins of object size, in pixels."""

LAGS_PX = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64)
"""Distances at which errors are compared, along rows and along columns."""

KINDS = ("shift", "omission", "commission", "speckle", "boundary", "confusion")
SAMPLE = 1 << 20, 256, 9  # images of more pixels are sampled: by windows of that side, so many
LARGER = 1 << 22, 1024, 4
REACH_PX, STRIDE_PX = 15, 3  # how far displacements are looked for, and on which grid at first
AROUND_PX = 4  # how far around the best displacement others are looked at
BOUNDARY_PX = 4  # how far a wrong boundary may lie from the right one
BLOCK_PX = 1 << 16  # pixels worked on at a time
SPECKLE_PX = 4  # objects of fewer pixels are speckle


@dataclass(frozen=True)
class Counts:
    """Sums of one image, or of N images along a first axis.

    Args:
        joint: Valid pixels by band of distance to the nearest exact boundary, exact and noisy class, (B, K, K).
        outside: Pixels not of a class by band of distance to it: all, and those the noisy map gives it, (B, K, 2).
        objects: Exact objects, then noisy ones, by class and size: all, and those absent in the other map after
            undoing the displacement, (2, K, S, 2).
        shift: Displacement of the noisy map, pixels (down, right), (2,); nan where nothing tells.
        shift_weight: Boundary pixels it rests on.
        lags: Per lag, pairs of pixels: both wrong, first wrong, second wrong, all, (L, 4); lag 0 comes first.
        kinds: Wrong pixels by `KINDS`, (6,).
    """

    joint: NDArray[np.int64]
    outside: NDArray[np.int64]
    objects: NDArray[np.int64]
    shift: NDArray[np.float64]
    shift_weight: NDArray[np.float64]
    lags: NDArray[np.int64]
    kinds: NDArray[np.int64]


def stack(images: list[Counts], n_classes: int) -> Counts:
    """Put the counts of images along a first axis; no image gives arrays of length 0."""
    if not images:
        nothing = count(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8), n_classes)
        return Counts(*(np.asarray(getattr(nothing, f.name))[None][:0] for f in fields(Counts)))
    return Counts(*(np.stack([getattr(image, f.name) for image in images]) for f in fields(Counts)))


def count(noisy: Mask, exact: Mask, n_classes: int) -> Counts:
    """Count everything that the audit's statistics are made of, for one pair of masks (H, W)."""
    band, joint = _by_band(squared(boundaries(exact), int(EDGES_PX[-2]) - 2), exact, noisy, n_classes)
    parts = _windows(exact.shape, *SAMPLE)
    pairs = [(noisy[part], exact[part]) for part in parts]
    shift, step, weight = displacement(pairs)
    moved = undo_shift(noisy, step) if any(step) else noisy
    ragged = sum(np.count_nonzero(a[:, 1:] != a[:, :-1]) for a, _ in pairs) * RAGGED > sum(a.size for a, _ in pairs)
    larger = _windows(exact.shape, *LARGER) if ragged else [np.s_[:, :]]
    objects, kinds = zip(*(_explained(noisy[p], exact[p], moved[p], band[p], n_classes) for p in larger), strict=True)
    return Counts(
        joint=joint,
        outside=sum(_outside(a, b, n_classes, len(parts) > 1) for a, b in pairs),
        objects=sum(objects),
        shift=shift,
        shift_weight=np.float64(weight),
        lags=sum(_lags(a, b) for a, b in pairs),
        kinds=sum(kinds),
    )


def _windows(shape: tuple[int, int], most_px: int, side: int, number: int) -> list[tuple[slice, slice]]:
    """The whole image up to `most_px` pixels, else a `number` of evenly spread windows."""
    if shape[0] * shape[1] <= most_px:
        return [np.s_[:, :]]
    down = max(1, min(int(number**0.5), shape[0] // side))
    starts = [
        np.linspace(0, max(size - side, 0), n).astype(int)
        for size, n in zip(shape, (down, number // down), strict=True)
    ]
    return [np.s_[y : y + side, x : x + side] for y in starts[0] for x in starts[1]]


def _explained(
    noisy: Mask, exact: Mask, moved: Mask, band: NDArray[np.uint8], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Objects by class and size on both sides, (2, K, S, 2), and wrong pixels by kind, (6,)."""
    both = find_objects(exact), find_objects(moved)
    same = moved == exact
    void = (moved == VOID) | (exact == VOID)
    known = ~void if void.any() else None
    counts, absent = zip(*(_absent(objects, same, known) for objects in both), strict=True)
    tables = [_by_size(*side, k) for side in zip(both, counts, absent, strict=True)]
    return np.stack(tables), _kinds(noisy, exact, moved, band, (both[0], absent[0]), (both[1], absent[1]))


def _by_band(
    squares: NDArray[np.uint16], exact: Mask, noisy: Mask, k: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Band of distance of every pixel, (H, W), and pixels by band, exact and noisy class, (B, K, K); row by row."""
    n_bands = len(EDGES_PX) - 1
    size = n_bands * (k + 1) ** 2
    band = np.zeros(exact.shape, dtype=np.uint8)
    table = np.zeros(size, dtype=np.int64)
    limits = [np.uint16((edge - 1) ** 2) for edge in EDGES_PX[1:-1]]
    rows = max(1, BLOCK_PX // max(1, exact.shape[1]))
    for top in range(0, exact.shape[0], rows):
        part = slice(top, top + rows)
        for limit in limits:
            band[part] += squares[part] >= limit
        code = band[part].astype(np.uint16 if size < 1 << 16 else np.uint32)
        for mask in (exact[part], noisy[part]):
            known = np.minimum(mask, np.uint8(k))
            if np.count_nonzero(known == k) != np.count_nonzero(mask == VOID):
                _confusion(noisy, exact, k)  # says which ids are no classes
            code *= k + 1
            code += known
        table += np.bincount(code.ravel(), minlength=size)
    return band, table.reshape(n_bands, k + 1, k + 1)[:, :k, :k]


def _outside(noisy: Mask, exact: Mask, k: int, cut: bool) -> NDArray[np.int64]:
    """Pixels not of each class by distance to it, (B, K, 2); the margin of a window only serves distances."""
    reach = int(EDGES_PX[-2]) - 1
    limits = [np.uint16(edge**2) for edge in EDGES_PX[1:-1]]
    inner = np.s_[reach:-reach, reach:-reach] if cut and min(exact.shape) > 2 * reach else np.s_[:, :]
    known = ((noisy != VOID) & (exact != VOID))[inner]
    present = np.bincount(exact.ravel(), minlength=256)
    beyond = np.zeros((len(EDGES_PX) - 1, k, 2), dtype=np.int64)
    for c in range(k):
        given = known & (noisy[inner] == c)
        if not present[c]:  # infinitely far away
            beyond[-1, c] = np.count_nonzero(known), np.count_nonzero(given)
            continue
        own = exact == c
        outside = known & ~own[inner]
        squares = squared(own, reach)[inner]
        for i, flags in enumerate((outside, outside & given)):
            below = squares[flags]
            nearer = [np.count_nonzero(below < limit) for limit in limits]
            beyond[:, c, i] = np.diff([0, *nearer, len(below)])
    return beyond


def displacement(pairs: list[tuple[Mask, Mask]]) -> tuple[NDArray[np.float64], tuple[int, int], int]:
    """Displacement of noisy masks against exact ones, of one image: sub-pixel, in whole pixels, and its weight.

    The share of agreeing pixels over displacements is symmetric about the true one, whatever else is wrong alike
    everywhere. What the same pixels gain by a displacement (others may agree more for no reason but that an omitted
    object at the rim is left out) is looked at on every third pixel, up to 15 away and a quarter of the side at most;
    around the greatest gain, the greatest share is sought. Smoothed, so that its tip becomes a dome, the paraboloid
    through the dome's top tells the fraction of a pixel. Where the maps have no boundaries, or a displacement explains
    no more errors than chance would (three standard errors of as many lone pixels), nothing tells. Errors come in
    objects, though: where some are omitted, a displacement may lay one that is left on one that is not. A displacement
    that makes fewer boundaries coincide than none does is chance, however much it gains; the best within 2 px is told
    then.
    """
    nothing = np.full(2, np.nan), (0, 0), 0
    edges = [sum(int(np.count_nonzero(boundaries(mask))) for mask in masks) for masks in zip(*pairs, strict=True)]
    reach = min(REACH_PX, (min(min(exact.shape) for _, exact in pairs) - 1) // 4)
    if not all(edges) or reach < STRIDE_PX:
        return nothing
    grid = range(-(reach // STRIDE_PX) * STRIDE_PX, reach + 1, STRIDE_PX)
    gain = _gain(_agreement(pairs, grid, grid))
    best = np.array(np.unravel_index(gain.argmax(), gain.shape))
    top = STRIDE_PX * best + grid[0] if gain.max() > 0 else np.zeros(2, int)
    shift, step, told = _around(pairs, top, reach)
    if _coinciding(pairs, step) < _coinciding(pairs, (0, 0)):
        shift, step, told = _around(pairs, np.zeros(2, int), STRIDE_PX - 1)
        if _coinciding(pairs, step) < _coinciding(pairs, (0, 0)):
            step, told = (0, 0), bool(np.abs(shift).max() <= 1)
    return (shift, step, edges[1]) if told else nothing


def _around(
    pairs: list[tuple[Mask, Mask]], top: NDArray[np.int64], reach: int
) -> tuple[NDArray[np.float64], tuple[int, int], bool]:
    """Best displacement around `top`: sub-pixel, in whole pixels that chance would not do, whether it tells."""
    first, last = np.maximum(top - AROUND_PX, -reach), np.minimum(top + AROUND_PX, reach)
    fine = _agreement(pairs, *(range(*pair) for pair in zip(first, last + 1, strict=True)))
    share = fine[0] / np.maximum(fine[2], 1)
    dome = ndimage.gaussian_filter(share, 1.0, mode="nearest")
    inner = dome[1:-1, 1:-1]
    peak = np.array(np.unravel_index(inner.argmax(), inner.shape)) + 1
    shift = first + peak + _summit(dome[peak[0] - 1 : peak[0] + 2, peak[1] - 1 : peak[1] + 2])
    step = np.round(shift).astype(int)
    if not step.any():
        return shift, (0, 0), True
    after, before, n = fine[:, *step - first]
    if after - before <= 3 * np.sqrt(2 * n - after - before):
        return shift, (0, 0), bool(np.abs(shift).max() <= 1)
    return shift, (int(step[0]), int(step[1])), True


def _coinciding(pairs: list[tuple[Mask, Mask]], step: tuple[int, int]) -> int:
    """Pixels of one class that lie at a boundary of both maps, the noisy ones displaced by whole pixels."""
    found = 0
    for noisy, exact in pairs:
        (one, other), (left, right) = (_overlap(*pair) for pair in zip(exact.shape, step, strict=True))
        here, there = boundaries(exact)[one, left], boundaries(noisy)[other, right]
        found += np.count_nonzero(here & there & (exact[one, left] == noisy[other, right]))
    return found


def _gain(agreement: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the valid pixels that agree more than without the displacement; 0 without any."""
    return (agreement[0] - agreement[1]) / np.maximum(agreement[2], 1)


def _summit(around: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the paraboloid through 3 x 3 values has its top, from the middle, within a pixel."""
    slope = np.array([around[2, 1] - around[0, 1], around[1, 2] - around[1, 0]]) / 2
    down, right = (around[2, 1] + around[0, 1], around[1, 2] + around[1, 0]) - 2 * around[1, 1]
    mixed = (around[2, 2] + around[0, 0] - around[2, 0] - around[0, 2]) / 4
    bent = down * right - mixed**2
    if not (down < 0 and bent > 0):
        return np.zeros(2)
    top = -np.array([right * slope[0] - mixed * slope[1], down * slope[1] - mixed * slope[0]]) / bent
    return np.clip(top, -1, 1)


def _agreement(pairs: list[tuple[Mask, Mask]], downs: range, rights: range) -> NDArray[np.int64]:
    """Compare (noisy, exact) where the noisy masks are displaced, (3, downs, rights).

    Agreeing pixels, those of the same that agree without displacement, and all that are valid either way.
    """
    found = np.zeros((3, len(downs), len(rights)), dtype=np.int64)
    for noisy, exact in pairs:
        here, there = exact != VOID, noisy != VOID
        full = bool(here.all() and there.all())
        known = here & there
        same = known & (noisy == exact)
        exact = np.where(known, exact, np.uint8(VOID - 1))  # void agrees with nothing
        for i, down in enumerate(downs):
            rows = _overlap(exact.shape[0], down)
            for j, right in enumerate(rights):
                columns = _overlap(exact.shape[1], right)
                one, other = (rows[0], columns[0]), (rows[1], columns[1])
                agree = exact[one] == noisy[other]
                before = same[one] if full else same[one] & there[other]
                n = agree.size if full else np.count_nonzero(known[one] & there[other])
                found[:, i, j] += [np.count_nonzero(agree), np.count_nonzero(before), n]
    return found


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    """What overlaps of `size` pixels and as many displaced ones: the slice of the former, of the latter."""
    return slice(max(0, -shift), size - max(0, shift)), slice(max(0, shift), size + min(0, shift))


def undo_shift(noisy: Mask, step: tuple[int, int]) -> Mask:
    """Move a mask (H, W) back by whole pixels (down, right); void comes in at the rim."""
    back = np.full_like(noisy, VOID)
    (rows, from_rows), (columns, from_columns) = (_overlap(*pair) for pair in zip(noisy.shape, step, strict=True))
    back[rows, columns] = noisy[from_rows, from_columns]
    return back


def _absent(
    objects: Objects, same: NDArray[np.bool_], known: NDArray[np.bool_] | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which objects count (some valid pixel), and which of them have their class on less than half of it."""
    valid = objects.area if known is None else objects.count(known)
    counts = (valid > 0) & ~is_void(objects)
    return counts, counts & (2 * objects.count(same) < valid)


def _by_size(objects: Objects, counts: NDArray[np.bool_], absent: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
    """Objects by class and size: all and the absent ones, (K, S, 2)."""
    n_sizes = len(SIZES_PX) - 1
    size = np.searchsorted(SIZES_PX[1:-1], objects.area, side="right")
    code = objects.class_of.astype(np.int64) * n_sizes + size
    tables = [np.bincount(code[which], minlength=k * n_sizes).reshape(k, n_sizes) for which in (counts, absent)]
    return np.stack(tables, axis=-1)


def _lags(noisy: Mask, exact: Mask) -> NDArray[np.int64]:
    """Pairs of pixels a lag apart, along rows and columns, (L + 1, 4): both wrong, first, second, all."""
    known = (noisy != VOID) & (exact != VOID)
    wrong = known & (noisy != exact)
    full = bool(known.all())
    pairs = np.zeros((len(LAGS_PX) + 1, 4), dtype=np.int64)
    pairs[0] = [2 * np.count_nonzero(wrong)] * 3 + [2 * np.count_nonzero(known)]
    for i, lag in enumerate(LAGS_PX, start=1):
        for one, other in ((np.s_[lag:, :], np.s_[:-lag, :]), (np.s_[:, lag:], np.s_[:, :-lag])):
            a, b = wrong[one], wrong[other]
            if not full:
                a, b = a & known[other], b & known[one]
            n = a.size if full else np.count_nonzero(known[one] & known[other])
            pairs[i] += [np.count_nonzero(a & b), np.count_nonzero(a), np.count_nonzero(b), n]
    return pairs


def _kinds(
    noisy: Mask,
    exact: Mask,
    moved: Mask,
    band: NDArray[np.uint8],
    omitted: tuple[Objects, NDArray[np.bool_]],
    committed: tuple[Objects, NDArray[np.bool_]],
) -> NDArray[np.int64]:
    """Share out the wrong pixels among `KINDS`; each goes to the first that explains it (see `Findings`)."""
    wrong = np.flatnonzero((noisy != exact) & (noisy != VOID) & (exact != VOID))
    found = np.zeros(len(KINDS), dtype=np.int64)

    def explain(kind: str, by: NDArray[np.bool_]) -> None:
        nonlocal wrong
        found[KINDS.index(kind)] = np.count_nonzero(by)
        wrong = wrong[~by]

    right, drawn, before = exact.ravel(), moved.ravel(), noisy.ravel()
    explain("shift", drawn[wrong] == right[wrong])
    for kind, (objects, absent), other in (("omission", omitted, drawn), ("commission", committed, right)):
        explain(kind, _replaced(objects, absent & (objects.area >= SPECKLE_PX), other, wrong))
    explain("speckle", committed[0].paint(committed[0].area < SPECKLE_PX).ravel()[wrong])
    explain("boundary", _beyond_boundary(exact, before, band, wrong))
    found[KINDS.index("confusion")] = len(wrong)
    return found


def _replaced(
    objects: Objects, absent: NDArray[np.bool_], other: NDArray[np.uint8], pixels: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Pixels of absent objects where the other map goes on with a class that lies beside the object."""
    found = np.zeros(len(pixels), dtype=bool)
    if not absent.any() or not len(pixels):
        return found
    inside = np.flatnonzero(objects.paint(absent).ravel()[pixels])
    where = pixels[inside]
    row_of = np.cumsum(absent) - 1
    found[inside] = objects.beside(absent)[row_of[objects.at(where)], other[where]] & (other[where] != VOID)
    return found


def _beyond_boundary(
    exact: Mask, noisy: NDArray[np.uint8], band: NDArray[np.uint8], pixels: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Pixels whose noisy class the exact map has within `BOUNDARY_PX`."""
    found = np.zeros(len(pixels), dtype=bool)
    if not len(pixels):
        return found
    last = int(np.searchsorted(EDGES_PX, BOUNDARY_PX + 1, side="left"))  # bands that may hold such pixels
    left = np.flatnonzero(band.ravel()[pixels] < last)
    padded = np.pad(exact, BOUNDARY_PX, constant_values=VOID)
    wide = padded.shape[1]
    rows, columns = np.divmod(pixels[left], exact.shape[1])
    at = (rows + BOUNDARY_PX) * wide + columns + BOUNDARY_PX
    wanted = noisy[pixels[left]]
    steps = np.arange(-BOUNDARY_PX, BOUNDARY_PX + 1)
    squares = steps[:, None] ** 2 + steps**2
    for square in np.unique(squares[(squares > 0) & (squares <= BOUNDARY_PX**2)]):  # ring by ring
        hit = np.zeros(len(left), dtype=bool)
        for y, x in np.argwhere(squares == square).tolist():
            step = (y - BOUNDARY_PX) * wide + x - BOUNDARY_PX
            hit |= padded.ravel().take(at + step, mode="clip") == wanted  # clip: no check of bounds
        found[left[hit]] = True
        left, at, wanted = left[~hit], at[~hit], wanted[~hit]
    return found
