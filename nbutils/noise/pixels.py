"""Pixels that change their class: each on its own, by a matrix, and in patches."""

import numpy as np
from numpy.typing import NDArray

from nbutils.distance import boundaries, near
from nbutils.legend import VOID, Legend
from nbutils.noise.fields import (
    Mask,
    Noisy,
    check_mask,
    check_pixels,
    check_rate,
    count_ids,
    lowest,
    per_image,
    rounded,
    smooth_field,
    uniform_field,
)
from nbutils.noise.pairs import CONFUSED_PAIRS, Pairs


def flip_labels(mask: Mask, rate: float, n_classes: int, *, rng: np.random.Generator) -> Noisy:
    """Replace a share of pixels by another class, each pixel on its own.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8; void is left alone.
        rate: Share of valid pixels to change in each image, in [0, 1]; met to within one pixel.
        n_classes: Number of classes K; the new class is drawn evenly from the K - 1 others.
        rng: Source of randomness.

    Returns:
        noisy: Same shape and type.
        changed: True where the class differs.

    Raises:
        TypeError: `mask` is not uint8.
        ValueError: `rate` outside [0, 1], or an id that is neither a class nor void.
    """
    check_mask(mask, n_classes)
    check_rate(rate)
    return _flip(mask, rate, n_classes, rng=rng)


@per_image
def _flip(mask: Mask, rate: float, n_classes: int, *, rng: np.random.Generator) -> Mask:
    void = (mask == VOID).view(np.uint8)
    size = mask.size - np.count_nonzero(void)
    (changed,) = lowest(uniform_field(mask.shape, rng), void, rounded([rate * size], rng), np.array([size]))
    noisy = mask.copy()
    step = rng.integers(1, n_classes, size=len(changed), dtype=np.uint16)  # 1..K-1: never back to itself
    noisy.ravel()[changed] = (mask.ravel()[changed] + step) % n_classes
    return noisy


def confuse_classes(
    mask: Mask,
    matrix: NDArray[np.floating],
    *,
    rng: np.random.Generator,
    correlation_px: float = 0.0,
    edge_px: float | None = None,
) -> Noisy:
    """Replace classes by others with class-wise probabilities, pixel by pixel or in patches.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8; void is left alone.
        matrix: Shape (K, K); row i holds the shares of class i that are mapped as class 0 .. K-1, summing to 1. Each
            image meets them to within a pixel.
        rng: Source of randomness.
        correlation_px: Size of the patches in which errors agree (see `smooth_field`); 0: every pixel on its own.
        edge_px: Only pixels at most so far from one that touches another class are confused, and the shares of the
            matrix are shares of those; all when left out.

    Returns:
        noisy, changed: as `flip_labels`.

    Raises:
        ValueError: `matrix` is not square, has negative entries or rows that do not sum to 1 within 1e-6.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix is (K, K), got {matrix.shape}")
    if (matrix < 0).any() or not np.allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-6):
        sums = np.round(matrix.sum(axis=1), 8).tolist()
        raise ValueError(f"rows of matrix are probabilities that sum to 1; rows sum to {sums}, least {matrix.min():g}")
    matrix = matrix / matrix.sum(axis=1, keepdims=True)
    check_mask(mask, len(matrix))
    check_pixels("correlation_px", correlation_px)
    check_pixels("edge_px", edge_px or 0)
    return _confuse(mask, matrix, correlation_px, edge_px, rng=rng)


@per_image
def _confuse(
    mask: Mask, matrix: NDArray, correlation_px: float, edge_px: float | None, *, rng: np.random.Generator
) -> Mask:
    """Two independent fields: the first says where a class is lost, the second what it becomes.

    The second is much smoother, so that most patches become one class.
    """
    others = matrix * (1 - np.eye(len(matrix)))
    if not others.any():
        return mask
    patches = correlation_px > 0
    first = smooth_field(mask.shape, correlation_px, rng) if patches else uniform_field(mask.shape, rng)
    groups = mask if edge_px is None else np.where(near(boundaries(mask), edge_px) <= edge_px, mask, VOID)
    sizes = count_ids(groups)[: len(matrix)]
    wanted = np.minimum(rounded(others.sum(axis=1) * sizes, rng), sizes)
    lost = lowest(first, groups, wanted, sizes)
    # where pixels are independent, the first field is as good: nobody knows the order within what is lost
    second = smooth_field(mask.shape, 4 * correlation_px, rng) if patches else first
    noisy = mask.copy()
    for i, places in enumerate(lost):
        if len(places):
            noisy.ravel()[places] = _share_out(_levels(second.ravel()[places]), others[i], rng)
    return noisy


def _levels(values: NDArray) -> NDArray[np.uint16]:
    """Values in 4096 steps, in their order: of 1/256 for a normal field."""
    if values.dtype == np.uint16:
        return values >> 4
    return (np.clip(values + 8, 0, 15.99) * 256).astype(np.uint16)


def _share_out(levels: NDArray[np.uint16], weights: NDArray[np.float64], rng: np.random.Generator) -> Mask:
    """Give the lowest levels class 0 and so on, in numbers as even with the weights as can be."""
    count = len(levels)
    ends = count * np.cumsum(weights) / weights.sum() + rng.random()
    ends[np.flatnonzero(weights)[-1] :] = count + 0.5  # rounding must not reach a class of weight 0
    ends = np.minimum(np.floor(ends), count)
    pixels = np.bincount(levels, minlength=4096)
    last = np.cumsum(pixels)
    lowest_label = np.searchsorted(ends, last - pixels, side="right").astype(np.uint8)
    labels = lowest_label[levels]
    for level in np.flatnonzero((ends.searchsorted(last - 1, side="right") > lowest_label) & (pixels > 0)):
        ranks = last[level] - pixels[level] + np.arange(pixels[level])  # the level is split among classes
        labels[np.flatnonzero(levels == level)] = np.searchsorted(ends, ranks, side="right")
    return labels


def confusion_matrix(legend: Legend | int, rate: float, pairs: Pairs = CONFUSED_PAIRS) -> NDArray[np.float64]:
    """Make a matrix for `confuse_classes` in which every class is lost at the same rate, to classes alike.

    Args:
        legend: A legend whose names occur in `pairs`; a class of no pair, or a mere number of classes,
            loses to all others evenly.
        rate: Share of each class that is lost, in [0, 1].
        pairs: Names of two classes that are alike, and how much.

    Returns: Matrix (K, K), rows sum to 1, diagonal 1 - rate.
    """
    check_rate(rate)
    k = legend if isinstance(legend, int) else len(legend)
    weights = np.zeros((k, k))
    for a, b, weight in () if isinstance(legend, int) else pairs:
        if a in legend.names and b in legend.names:
            i, j = legend.index(a), legend.index(b)
            weights[i, j] = weights[j, i] = weight
    alone = ~weights.any(axis=1)
    weights[alone] = 1
    np.fill_diagonal(weights, 0)
    return rate * weights / weights.sum(axis=1, keepdims=True) + (1 - rate) * np.eye(k)
