"""Design-based audit: what a random sample of checked pixels says about a whole map.

Nothing is assumed about the errors; what makes an estimate valid is that the pixels were drawn at random, each stratum
on its own (Stehman 2014, Int. J. Remote Sens. 35:4923; with the map's classes as strata it is Olofsson et al. 2014,
Remote Sens. Environ. 148:42). `planning.plan` says how many to draw, `draw` where, `estimate` what follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

from nbutils.legend import VOID

Mask = NDArray[np.uint8]
Allocation = Literal["proportional", "equal", "neyman"]


@dataclass(frozen=True)
class Estimate:
    """Shares with their uncertainty; all arrays of one shape, nan where nothing was sampled.

    Attributes:
        value: Estimated shares.
        error: Their standard errors.
        low, high: Confidence limits (Wilson, with the effective size of the sample), within [0, 1].
        n: Sampled pixels that bear on each.
    """

    value: NDArray[np.float64]
    error: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: NDArray[np.int64]


@dataclass(frozen=True)
class Estimates:
    """What a sample says about a map of K classes.

    Attributes:
        rate: Noise rate, shape (): one minus the overall accuracy.
        users: User's accuracy per noisy class, shape (K,).
        producers: Producer's accuracy per exact class, shape (K,).
        area: Share of the valid ground per exact class, shape (K,).
        transition: P(noisy class | exact class), shape (K, K).
        iou: Intersection over union per class, shape (K,).
        names: Names of the classes.
    """

    rate: Estimate
    users: Estimate
    producers: Estimate
    area: Estimate
    transition: Estimate
    iou: Estimate
    names: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """One row per number: statistic, key, value, error, low, high, n; keys as in the table of `Findings`."""
        columns = ("value", "error", "low", "high", "n")
        pairs = tuple(f"{a} -> {b}" for a in self.names for b in self.names)
        keys = {"rate": ("all",), "transition": pairs}
        parts = []
        for statistic in ("rate", "users", "producers", "area", "transition", "iou"):
            found = getattr(self, statistic)
            part = pd.DataFrame({name: np.ravel(getattr(found, name)) for name in columns})
            part.insert(0, "key", keys.get(statistic, self.names))
            part.insert(0, "statistic", statistic)
            parts.append(part)
        return pd.concat(parts, ignore_index=True)


def estimate(
    sizes: ArrayLike,
    sample_map: ArrayLike,
    sample_exact: ArrayLike,
    n_classes: int,
    *,
    strata: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> Estimates:
    """Estimate accuracy, areas and the transition matrix from a stratified random sample of pixels.

    Every number is a ratio of two estimated totals; its variance is the linearised one of Stehman (2014, eq. 24-28)
    with the correction for finite strata. For strata = map classes these are eq. 5-11 of Olofsson et al. (2014).

    Args:
        sizes: Pixels in every stratum, shape (L,); of the map's classes, or one number for simple random sampling.
        sample_map: Noisy class of every sampled pixel, shape (n,).
        sample_exact: Exact class, shape (n,); 255 where it cannot be told: such a pixel, or one that is void in the
            map, counts as outside the ground the estimates are about.
        n_classes: Number of classes K.
        strata: Stratum 0..L-1 of every sampled pixel, shape (n,); the map's class if None, or 0 for one stratum.
        names: Names of the classes; their numbers if None.
        confidence: Two-sided, in (0, 1).

    Raises:
        ValueError: shapes or ids do not fit, or a stratum with pixels has fewer than two samples.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is in (0, 1), got {confidence}")
    sizes = np.atleast_1d(np.asarray(sizes, dtype=np.float64))
    noisy, exact = (np.asarray(a).ravel().astype(np.int64) for a in (sample_map, sample_exact))
    if strata is None:
        strata = np.zeros(len(noisy), np.int64) if len(sizes) == 1 else noisy
    strata = np.asarray(strata).ravel().astype(np.int64)
    if not len(noisy) == len(exact) == len(strata):
        raise ValueError(f"{len(noisy)} noisy labels, {len(exact)} exact ones and {len(strata)} strata: need as many")
    names = tuple(names) if names is not None else tuple(map(str, range(n_classes)))
    if len(names) != n_classes:
        raise ValueError(f"{len(names)} names for {n_classes} classes")
    counts = _cells(sizes, noisy, exact, strata, n_classes)
    parts, wholes = _indicators(n_classes)
    found = {name: _ratio(sizes, counts, parts[name], wholes[name], confidence) for name in parts}
    return Estimates(**found, names=names)


def _cells(sizes: NDArray, noisy: NDArray, exact: NDArray, strata: NDArray, k: int) -> NDArray[np.int64]:
    """Count the sample by stratum and (exact, noisy) pair, shape (L, K * K + 1); the last column is void."""
    for what, ids in (("map", noisy), ("exact", exact)):
        if (wrong := np.setdiff1d(ids, [*range(k), VOID])).size:
            raise ValueError(f"sample_{what} holds {wrong[:5].tolist()}; with {k} classes ids are 0..{k - 1} or {VOID}")
    if (wrong := np.setdiff1d(strata, np.arange(len(sizes)))).size:
        raise ValueError(f"the sample has strata {wrong[:5].tolist()}, sizes are given of 0..{len(sizes) - 1}")
    void = (noisy == VOID) | (exact == VOID)
    cell = np.where(void, k * k, exact * k + noisy)
    counts = np.bincount(strata * (k * k + 1) + cell, minlength=len(sizes) * (k * k + 1)).reshape(len(sizes), -1)
    n = counts.sum(axis=1)
    if (n > sizes).any():
        stratum = int(np.argmax(n > sizes))
        raise ValueError(f"stratum {stratum} has {sizes[stratum]:.0f} pixels but {n[stratum]} samples")
    if (few := np.flatnonzero(n < np.minimum(2, sizes))).size:
        raise ValueError(
            f"stratum {few[0]} has {sizes[few[0]]:.0f} pixels and {n[few[0]]} samples; draw at least two, or merge it"
        )
    return counts


def _indicators(k: int) -> tuple[dict[str, NDArray[np.bool_]], dict[str, NDArray[np.bool_]]]:
    """For every statistic, which cells make its numerator and its denominator: (..., K * K + 1) each."""
    one = np.eye(k, dtype=bool)
    exact, noisy = np.repeat(one, k, axis=1), np.tile(one, k)  # (K, K * K): cells of an exact and of a noisy class
    everything, wrong = np.ones(k * k, bool), ~one.ravel()
    right = exact & noisy
    parts = {
        "rate": wrong,
        "users": right,
        "producers": right,
        "area": exact,
        "transition": exact[:, None] & noisy[None],
        "iou": right,
    }
    wholes = {
        "rate": everything,
        "users": noisy,
        "producers": exact,
        "area": np.broadcast_to(everything, exact.shape),
        "transition": np.broadcast_to(exact[:, None], (k, k, k * k)),
        "iou": exact | noisy,
    }
    with_void = [{name: _without_void(cells) for name, cells in which.items()} for which in (parts, wholes)]
    return with_void[0], with_void[1]


def _without_void(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.concatenate([cells, np.zeros((*cells.shape[:-1], 1), bool)], axis=-1)


def _ratio(sizes: NDArray, counts: NDArray, part: NDArray, whole: NDArray, confidence: float) -> Estimate:
    """Estimate total(part) / total(whole) with standard error and interval."""
    shape, n = part.shape[:-1], counts.sum(axis=1)
    part, whole = (cells.reshape(-1, cells.shape[-1]).T.astype(float) for cells in (part, whole))
    mean_part, mean_whole = _means(counts, part), _means(counts, whole)  # (L, S)
    total = sizes @ mean_whole
    value = _divide(sizes @ mean_part, total)
    error = _error(sizes, counts, part, whole, value) / np.where(total > 0, total, np.nan)
    seen = np.rint(n @ mean_whole).astype(np.int64)
    # how many independent pixels the sample is worth: as it shows itself; if each stratum had held one pixel more;
    # and, where no variance shows, if the share were the same in every stratum
    alike = _divide(total**2, (sizes**2 * _left(sizes, n) / n.clip(min=1)) @ mean_whole)
    more = counts + _prior(counts)
    other_total = sizes @ _means(more, whole)
    other = _divide(sizes @ _means(more, part), other_total)
    spread = _divide(_error(sizes, more, part, whole, other), other_total) ** 2
    once = _divide(other * (1 - other), spread)
    shown = _divide(value * (1 - value), error**2)
    size = np.where(error > 0, np.fmin(shown, np.fmax(once, 1)), np.fmin(alike, once))
    low, high = _wilson(value, size, seen, confidence)
    known = np.isnan(size)  # every pixel was checked, or none of this kind
    low, high = np.where(known, value, low), np.where(known, value, high)
    return Estimate(*(np.reshape(a, shape) for a in (value, error, low, high, seen)))


def _means(counts: NDArray, cells: NDArray) -> NDArray[np.float64]:
    """Share of every stratum's sample in sets of cells: (L, C) counts and (C, S) sets give (L, S)."""
    n = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, n, out=np.zeros(counts.shape), where=n > 0) @ cells


def _error(sizes: NDArray, counts: NDArray, part: NDArray, whole: NDArray, value: NDArray) -> NDArray[np.float64]:
    """Standard error of total(part) - value * total(whole)."""
    mean_part, mean_whole, n = _means(counts, part), _means(counts, whole), counts.sum(axis=1)
    # within a stratum the residual is 1 - R in the numerator's cells and -R in the other cells of the denominator
    square = mean_part * (1 - 2 * value) + mean_whole * value**2
    spread = square - (mean_part - value * mean_whole) ** 2
    spread[spread <= 1e-9 * square + 1e-14] = 0  # what rounding left of equal numbers
    weight = sizes**2 * np.divide(_left(sizes, n), n - 1, out=np.zeros(len(n)), where=n > 1)
    return np.sqrt(weight @ spread)


def _left(sizes: NDArray, n: NDArray) -> NDArray[np.float64]:
    """Share of every stratum that was not looked at: the correction for finite strata."""
    return 1 - np.minimum(n / np.maximum(sizes, 1), 1)


def _prior(counts: NDArray) -> NDArray[np.float64]:
    """One sample more per stratum, of any exact class alike.

    A large stratum whose few samples happen to show no error has no variance of its own and would make the interval
    of a rare class far too narrow (with 25 samples per stratum it covered 66 % instead of 95 %).
    """
    k = int(np.sqrt(counts.shape[1] - 1))
    noisy = counts[:, :-1].reshape(-1, k, k).sum(axis=1)  # (L, K)
    share = noisy / noisy.sum(axis=1, keepdims=True).clip(min=1)
    return np.concatenate([np.tile(share / k, k), np.zeros((len(counts), 1))], axis=1)


def _divide(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _wilson(
    share: NDArray, size: NDArray, seen: NDArray, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson limits at an effective sample size (Korn and Graubard 1998, Surv. Methodol. 24:193).

    The normal quantile gives way to Student's, for the variance is estimated from few pixels.
    """
    z = special.ndtri(0.5 + confidence / 2)
    size = size * (z / special.stdtrit(np.maximum(seen - 1, 1), 0.5 + confidence / 2)) ** 2
    middle = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2)) / (1 + z**2 / size)
    return np.where(share == 0, 0, (middle - half).clip(0, 1)), np.where(share == 1, 1, (middle + half).clip(0, 1))


@dataclass(frozen=True)
class Draw:
    """Pixels to look at.

    Attributes:
        positions: Image, row and column of each, shape (n, 3), in order of stratum, image, row, column.
        strata: Stratum of each, shape (n,).
        sizes: Pixels in every stratum, shape (L,), as `estimate` wants them.
    """

    positions: NDArray[np.int64]
    strata: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def take(self, masks: Mask | Sequence[Mask]) -> Mask:
        """Return the values of masks (as given to `draw`) at the positions, shape (n,)."""
        images = _as_list(masks)
        return np.array([images[i][row, column] for i, row, column in self.positions], dtype=np.uint8)


def draw(
    masks: Mask | Sequence[Mask],
    n: int,
    *,
    rng: np.random.Generator,
    allocation: Allocation = "proportional",
    error_rates: ArrayLike | None = None,
) -> Draw:
    """Draw pixels without replacement, each stratum on its own.

    Args:
        masks: Strata: the noisy map for strata = classes, zeros (and void) for simple random sampling, or any other
            division; uint8 (H, W), (N, H, W) or a list of (H, W); 255 is never drawn.
        n: Pixels to draw in all.
        rng: Source of randomness.
        allocation: ``proportional`` to the strata's sizes (all pixels alike), ``equal`` (for the rare classes'
            sake), or ``neyman`` (least variance of the noise rate, given guessed error rates). Every stratum gets at
            least two pixels, as many as a variance needs.
        error_rates: Guessed noise rate of every stratum 0..L-1, for ``neyman``; more than the highest id of the masks
            asks for, as of all classes of a legend, and nan of strata without pixels do no harm.

    Raises:
        ValueError: `n` is too small for two pixels per stratum or exceeds the pixels there are, or the rates do not
            fit.
    """
    images = _as_list(masks)
    counts = np.stack([np.bincount(image.ravel(), minlength=256)[:VOID] for image in images])  # (N, 255)
    counts = counts[:, : int(np.flatnonzero(counts.any(axis=0)).max(initial=-1)) + 1]
    sizes = counts.sum(axis=0)
    rates = None if error_rates is None else np.asarray(error_rates, dtype=np.float64)[: len(sizes)]
    numbers = allocate(sizes, n, allocation, rates)
    positions, strata = [], []
    for stratum, number in enumerate(numbers):
        ranks = np.sort(rng.choice(sizes[stratum], number, replace=False, shuffle=False)) if number else []
        ends = np.cumsum(counts[:, stratum])
        which = np.searchsorted(ends, ranks, side="right")
        for i in np.unique(which):
            inside = np.asarray(ranks)[which == i] - (ends[i] - counts[i, stratum])
            flat = np.flatnonzero(images[i].ravel() == stratum)[inside]
            rows, columns = np.unravel_index(flat, images[i].shape)
            positions.append(np.stack([np.full(len(flat), i), rows, columns], axis=1))
        strata.append(np.full(number, stratum))
    return Draw(np.concatenate(positions).astype(np.int64), np.concatenate(strata).astype(np.int64), sizes)


def allocate(
    sizes: ArrayLike, n: int, allocation: Allocation = "proportional", error_rates: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Share `n` samples out among strata, at least two each (or all of a smaller one), never more than there are.

    Args:
        sizes: Pixels in every stratum, shape (L,).
        n: Samples in all.
        allocation: As in `draw`; Neyman's is proportional to size times sqrt(p (1 - p)) (Cochran 1977, 5.26).
        error_rates: Guessed p per stratum, for ``neyman``.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    least = np.minimum(2, sizes)
    if not least.sum() <= n <= sizes.sum() or n < 1:
        raise ValueError(
            f"n is {least.sum()}..{sizes.sum()} for {(sizes > 0).sum()} strata of {sizes.sum()} pixels, got {n}"
        )
    weight = _weights(sizes, allocation, error_rates)
    given = least.copy()
    while (left := n - given.sum()) > 0:  # more than once only where a stratum is used up
        room = np.where(given < sizes, weight, 0.0)
        room = room if room.any() else (given < sizes).astype(float)
        wanted = room / room.sum() * max(n - given[room == 0].sum(), 0)  # of all samples, not of those left
        more = (wanted - given).clip(0)
        more = np.minimum(more * min(1, left / more.sum()), sizes - given)
        whole = np.floor(more + 1e-9).astype(np.int64)
        if not whole.any():  # the largest remainders
            order = np.argsort(-np.where(room > 0, more, -1), kind="stable")
            whole[order[: min(left, np.count_nonzero(room))]] = 1
        given += whole
    return given


def _weights(sizes: NDArray, allocation: Allocation, error_rates: ArrayLike | None) -> NDArray[np.float64]:
    if allocation == "proportional":
        return sizes.astype(float)
    if allocation == "equal":
        return (sizes > 0).astype(float)
    if allocation != "neyman":
        raise ValueError(f"unknown allocation {allocation!r}; known: proportional, equal, neyman")
    rates = np.asarray(np.nan if error_rates is None else error_rates, dtype=float)
    if rates.shape != sizes.shape or not ((rates >= 0) & (rates <= 1) | (sizes == 0)).all():
        raise ValueError(f"neyman needs error_rates in [0, 1] of all {len(sizes)} strata, got {error_rates}")
    rates = np.where(sizes > 0, rates, 0)
    return sizes * np.sqrt(rates * (1 - rates))


def _as_list(masks: Mask | Sequence[Mask]) -> list[Mask]:
    images = [masks] if isinstance(masks, np.ndarray) and masks.ndim == 2 else list(masks)
    for i, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 2:
            raise TypeError(f"image {i}: expected a uint8 (H, W) mask, got {image.dtype} {image.shape}")
    return images
