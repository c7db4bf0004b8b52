"""Shapes that change: shifts and boundaries that move."""

import numpy as np

from nbutils.noise.fields import Mask, Noisy, check_pixels, per_image, smooth_field


def shift_mask(mask: Mask, max_px: float, *, rng: np.random.Generator) -> Noisy:
    """Displace the whole mask by one vector per image: misregistration.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        max_px: Longest displacement in pixels; direction and length are uniform, rounded to whole pixels.
        rng: Source of randomness.

    Returns: noisy, changed as `flip_labels`; the edge is replicated, and what void would cover keeps its class.
    """
    check_pixels("max_px", max_px)
    return _shift(mask, max_px, rng=rng)


@per_image
def _shift(mask: Mask, max_px: float, *, rng: np.random.Generator) -> Mask:
    angle, length = rng.random() * 2 * np.pi, rng.random() * max_px
    down, right = round(length * np.sin(angle)), round(length * np.cos(angle))
    rows = np.clip(np.arange(mask.shape[0]) - down, 0, mask.shape[0] - 1)
    columns = np.clip(np.arange(mask.shape[1]) - right, 0, mask.shape[1] - 1)
    return mask[rows[:, None], columns]


def move_boundaries(
    mask: Mask, distance_px: float, *, rng: np.random.Generator, correlation_px: float | None = None
) -> Noisy:
    """Move boundaries by a smooth random field: objects are eroded here and dilated there, corners go round.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        distance_px: Standard deviation of the displacement across a boundary, in pixels.
        rng: Source of randomness.
        correlation_px: Length over which the displacement changes; 4 x `distance_px` (at least 8) when left out.

    Returns: noisy, changed as `flip_labels`; the edge is replicated, and what void would cover keeps its class.
    """
    check_pixels("distance_px", distance_px)
    length = max(8.0, 4 * distance_px) if correlation_px is None else correlation_px
    check_pixels("correlation_px", length)
    return _move(mask, distance_px, length, rng=rng)


@per_image
def _move(mask: Mask, distance_px: float, correlation_px: float, *, rng: np.random.Generator) -> Mask:
    height, width = mask.shape
    at = []
    for axis, size in enumerate(mask.shape):
        field = smooth_field(mask.shape, correlation_px, rng)
        field *= distance_px
        field += np.arange(size, dtype=np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
        at.append(np.clip(np.rint(field, out=field), 0, size - 1, out=field).astype(np.intp))
    flat = at[0]
    flat *= width
    flat += at[1]
    return mask.ravel().take(flat)
