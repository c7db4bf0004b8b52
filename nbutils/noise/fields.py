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
        if mask.ndim == 3:
            noisy = np.empty_like(mask)
            for i, image in enumerate(mask):
                noisy[i] = operator(image, *args, **settings)
        else:
            noisy = operator(mask, *args, **settings) if mask.size else mask.copy()
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
    if correlation_px <= 1:
        return rng.standard_normal(shape, dtype=np.float32)
    spacing = correlation_px / 1.155  # a cubic B-spline is a Gaussian of sigma = spacing / sqrt(3); 1/e at 2 sigma
    weights = [_spline_weights(size, spacing, rng.random()) for size in shape]
    coarse = rng.standard_normal((weights[0].shape[1], weights[1].shape[1]), dtype=np.float32)
    rows = weights[0] @ coarse  # (H, coarse columns)
    return np.ascontiguousarray((weights[1] @ np.ascontiguousarray(rows.T)).T)


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
