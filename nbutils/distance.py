"""Exact Euclidean distances in masks up to a reach: what lies farther away is not measured, which makes it quick.

Two passes, as in the separable transforms of Felzenszwalb and Huttenlocher (Theory of Computing 8, 2012), but over
a window of `reach` pixels instead of a whole row.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nbutils.legend import VOID

LONGEST = 64  # above, the unbounded transform of SciPy is as quick
BLOCK_PX = 1 << 14  # pixels worked on at a time: three arrays of them stay in a core's cache


def near(mask: NDArray[np.bool_], reach: float) -> NDArray[np.float32]:
    """Distance of every pixel to the nearest True pixel, as far as `reach`.

    Args:
        mask: (H, W), bool.
        reach: Largest distance told, in pixels, >= 0; inf tells every distance.

    Returns:
        (H, W) in pixels, between pixel centres: 0 on True, inf beyond `reach` and without any True pixel.

    Raises:
        ValueError: `mask` is not (H, W), or `reach` is negative or nan.
    """
    if mask.ndim != 2:
        raise ValueError(f"near expects a mask (H, W), got shape {mask.shape}; pass images one by one")
    if not reach >= 0:
        raise ValueError(f"reach is a number of pixels >= 0, got {reach}")
    if not mask.any():
        return np.full(mask.shape, np.inf, dtype=np.float32)
    if reach > LONGEST:
        distance = ndimage.distance_transform_edt(~mask).astype(np.float32)
        distance[distance > reach] = np.inf
        return distance
    return _bounded(mask, reach)


def boundary_distance(mask: NDArray[np.uint8], reach: float = np.inf) -> NDArray[np.float32]:
    """Distance of every pixel of a mask to the nearest boundary between classes, in pixels, as far as `reach`.

    Args:
        mask: Class ids, (H, W), uint8. Void is no class: its rim is no boundary.
        reach: Largest distance told, in pixels.

    Returns:
        (H, W): 1 on both sides of a boundary; inf beyond `reach`, at void and where no boundary is.
    """
    distance = near(boundaries(mask), max(reach - 1, 0)) + np.float32(1)
    distance[mask == VOID] = np.inf
    return distance


def boundaries(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels of a mask (H, W) that have another class, not void, above, below, left or right; void is none."""
    edge = np.zeros(mask.shape, dtype=bool)
    known = mask != VOID
    for one, other in ((np.s_[1:, :], np.s_[:-1, :]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = mask[one] != mask[other]
        differ &= known[one]
        differ &= known[other]
        edge[one] |= differ
        edge[other] |= differ
    return edge


def _bounded(mask: NDArray[np.bool_], reach: float) -> NDArray[np.float32]:
    """Distance along columns first, then the least of squares along rows, some rows at a time."""
    (height, width), steps = mask.shape, int(reach)
    column = _along_columns(mask, steps + 1)
    distance = np.empty(mask.shape, dtype=np.float32)
    rows, wide = max(1, BLOCK_PX // (width + steps)), width + steps
    far = np.uint16((steps + 1) ** 2)
    padded = np.full(steps + rows * wide, far, dtype=np.uint16)  # `steps` pixels between rows: none reaches the next
    least, other = np.empty((2, rows * wide), dtype=np.uint16)
    for top in range(0, height, rows):
        block = column[top : top + rows]
        n = len(block) * wide
        inside = padded[steps : steps + n].reshape(-1, wide)[:, :width]
        np.multiply(block, block, out=inside, dtype=np.uint16)
        best, part = least[:n], other[:n]
        best[:] = padded[steps : steps + n]
        for step in range(1, steps + 1):
            part[:] = padded[steps - step : steps - step + n]
            np.minimum(part[: n - step], padded[steps + step : steps + n], out=part[: n - step])
            part += np.uint16(step * step)
            np.minimum(best, part, out=best)
        found, told = best.reshape(-1, wide)[:, :width], distance[top : top + rows]
        np.sqrt(found, out=told, dtype=np.float32)
        np.copyto(told, np.inf, where=found > int(reach * reach))
    return distance


def _along_columns(mask: NDArray[np.bool_], most: int) -> NDArray[np.uint8]:
    """Distance to the nearest True pixel of the same column, `most` where it is that far or farther."""
    distance = np.where(mask, np.uint8(0), np.uint8(most))
    for ahead in (distance, distance[::-1]):
        following = np.empty_like(ahead[0])
        for before, row in zip(ahead[:-1], ahead[1:], strict=True):
            np.add(before, np.uint8(1), out=following)
            np.minimum(row, following, out=row)
    return distance
