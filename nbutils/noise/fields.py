"""What the operators share: checks of their arguments, images one by one, and smooth random fields."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from nbutils.legend import VOID

Mask = NDArray[np.uint8]
Noisy = tuple[Mask, NDArray[np.bool_]]


def check_mask(mask: Mask, n_classes: int | None = None) -> None:
    """Refuse what is no mask, and ids beyond `n_classes` where that is given."""
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8:
        raise TypeError(f"a mask is a uint8 array, got {getattr(mask, 'dtype', type(mask).__name__)}")
    if mask.ndim not in (2, 3):
        raise ValueError(f"a mask is (H, W) or (N, H, W), got shape {mask.shape}")
    if n_classes is None:
        return
    if not 2 <= n_classes < VOID:
        raise ValueError(f"n_classes is 2..254, got {n_classes}")
    if (wrong := (mask >= n_classes) & (mask != VOID)).any():
        ids = ", ".join(map(str, np.unique(mask[wrong])[:5]))
        raise ValueError(
            f"mask holds class ids {ids}; with {n_classes} classes they are 0..{n_classes - 1} or void {VOID}"
        )


def check_rate(rate: float, name: str = "rate") -> None:
    """Refuse what is no fraction."""
    if not 0 <= rate <= 1:
        raise ValueError(f"{name} is a fraction in [0, 1], got {rate}")


def check_pixels(name: str, value: float) -> None:
    """Refuse what is no distance in pixels."""
    if not (np.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is a number of pixels >= 0, got {value}")


def per_image(operator: Callable[..., Mask]) -> Callable[..., Noisy]:
    """Let an operator on one (H, W) mask take (N, H, W) too, keep void as it was, and say what changed."""

    @wraps(operator)
    def whole(mask: Mask, *args: Any, **settings: Any) -> Noisy:
        check_mask(mask)
        if not mask.size:
            noisy = mask
        elif mask.ndim == 3:
            noisy = np.empty_like(mask)
            for i, image in enumerate(mask):
                noisy[i] = operator(image, *args, **settings)
        else:
            noisy = operator(mask, *args, **settings)
        noisy = np.where((mask == VOID) | (noisy == VOID), mask, noisy)  # void neither moves nor spreads
        return noisy, noisy != mask

    return whole


def smooth_field(shape: tuple[int, int], correlation_px: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a smooth random field: normal, mean 0 and variance 1 at every pixel.

    Random numbers on a coarse grid, interpolated with cubic B-splines whose weights are scaled to unit variance.

    Args:
        shape: (H, W) in pixels.
        correlation_px: Distance at which the correlation of two pixels has fallen to about 1/e; 0: independent.
        rng: Source of randomness.
    """
    return spline(shape, correlation_px, rng)(slice(None))


def spline(
    shape: tuple[int, int], correlation_px: float, rng: np.random.Generator, scale: float = 1.0
) -> Callable[[slice], NDArray[np.float32]]:
    """Draw a smooth field as `smooth_field` does, times `scale`, and return a function that evaluates some rows."""
    if correlation_px <= 1:
        plain = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        return lambda rows: plain[rows].copy()
    spacing = correlation_px / 1.155  # a cubic B-spline is a Gaussian of sigma = spacing / sqrt(3); 1/e at 2 sigma
    down, right = (_spline_weights(size, spacing, rng.random()) for size in shape)
    knots = rng.standard_normal((right.shape[1], down.shape[1]), dtype=np.float32) * np.float32(scale)
    along = np.ascontiguousarray((right @ knots).T)  # columns first: the large product then needs no transpose
    return lambda rows: down[rows] @ along


def _spline_weights(size: int, spacing: float, phase: float) -> sparse.csr_array:
    """Weights (size, knots) of the four nearest knots per pixel, each row of unit length."""
    at = np.arange(size) / spacing + phase
    first, t = np.floor(at).astype(np.int64), (at - np.floor(at))
    taps = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1)
    taps /= np.linalg.norm(taps, axis=1, keepdims=True)
    columns = first[:, None] + np.arange(4)
    starts = np.arange(0, 4 * size + 1, 4)
    shape = (size, int(first[-1]) + 4)
    return sparse.csr_array((taps.ravel().astype(np.float32), columns.ravel(), starts), shape=shape)


def uniform_field(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint16]:
    """Draw a random integer per pixel, independent of the others."""
    return rng.integers(0, 1 << 16, shape, dtype=np.uint16)


def rounded(expected: NDArray[np.floating] | float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Round up or down at random, so that the mean over many draws is what was expected."""
    expected = np.asarray(expected, dtype=np.float64)
    return np.floor(np.round(expected, 9) + rng.random(expected.shape)).astype(np.int64)


def count_ids(ids: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Number of pixels of each id, shape (256,)."""
    flat = np.ascontiguousarray(ids).ravel()
    pairs = np.bincount(flat[: flat.size // 2 * 2].view(np.uint16), minlength=1 << 16).reshape(256, 256)
    return pairs.sum(axis=0) + pairs.sum(axis=1) + np.bincount(flat[flat.size // 2 * 2 :], minlength=256)


def lowest(
    field: NDArray,
    groups: NDArray[np.uint8],
    wanted: NDArray[np.integer],
    sizes: NDArray[np.integer],
    spread: float = 4.0,
) -> list[NDArray[np.intp]]:
    """Find in each group the pixels where a field is lowest, as many as wanted, exactly.

    Candidates lie below a quantile of a part of the pixels, a little above the one wanted; of these the surplus is
    dropped by order statistics. Equal values go by position.

    Args:
        field: Any values, shape (H, W).
        groups: Id of the group of each pixel, shape (H, W), uint8; ids beyond `wanted` belong to none.
        wanted: Number of pixels to find per group.
        sizes: Number of pixels there are per group.
        spread: Standard deviations of the count by which the quantile is put higher.

    Returns:
        Per group the places in the flattened field, ascending.
    """
    step = 4 if field.size >= 1 << 18 else 1
    part, part_groups = field[::step, ::step], groups[::step, ::step]
    least = -np.inf if field.dtype.kind == "f" else 0
    limits = np.full(256, least, dtype=field.dtype)
    for group in np.flatnonzero(wanted):
        share, values = wanted[group] / sizes[group], part[part_groups == group]
        rank = int(share * len(values) + spread * np.sqrt(share * (1 - share) * len(values)) + spread)
        highest = np.inf if field.dtype.kind == "f" else np.iinfo(field.dtype).max
        limits[group] = highest if rank >= len(values) else np.partition(values, rank)[rank]
    places = np.flatnonzero(field < limits[groups])
    of = groups.ravel()[places]
    order = np.argsort(of, kind="stable")
    ends = np.cumsum(np.bincount(of, minlength=256))[: len(wanted)]
    parts = np.split(places[order], ends)
    found = []
    for group, count in enumerate(wanted.tolist()):
        here = parts[group] if len(parts[group]) >= count else np.flatnonzero(groups == group)
        found.append(here[_lowest(field.ravel()[here], count)])
    return found


def _lowest(values: NDArray, count: int) -> NDArray[np.bool_]:
    """True at the `count` lowest values."""
    if count in (0, len(values)):
        return np.full(len(values), bool(count))
    last = np.partition(values, count - 1)[count - 1]
    keep = values < last
    keep[np.flatnonzero(values == last)[: count - int(keep.sum())]] = True
    return keep
