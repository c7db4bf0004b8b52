"""Exact Euclidean distances in masks up to a reach: what lies farther away is not measured, which makes it quick.

Two passes, as in the separable transforms of Felzenszwalb and Huttenlocher (Theory of Computing 8, 2012), but over
a window of `reach` pixels instead of a whole row.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nbutils.legend import VOID

LONGEST = 64  # above, the unbounded transform of SciPy is as quick
NARROW = 512  # pixels per row below which a call per row costs more than its work
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
    squares = squared(mask, int(reach))
    distance = np.sqrt(squares, dtype=np.float32)
    distance[squares > int(reach * reach)] = np.inf
    return distance


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


def squared(mask: NDArray[np.bool_], reach: int) -> NDArray[np.uint16]:
    """Squared distance to the nearest True pixel, (H, W), as far as `reach`, at most 64 pixels.

    Exact below (reach + 1)^2, which stands for all that is as far or farther; between reach^2 and that it is exact
    too. What lies outside the square of side 2 reach + 1 around a pixel is never seen.

    Distance along columns first, then the least sum of squares along rows, some rows at a time.
    """
    if not 0 <= reach <= LONGEST:
        raise ValueError(f"squared measures as far as 0..{LONGEST} pixels, got {reach}; near has no limit")
    (height, width), wide = mask.shape, mask.shape[1] + reach
    column = _along_columns(mask, reach + 1)
    squares = np.empty(mask.shape, dtype=np.uint16)
    rows = max(1, BLOCK_PX // wide)
    far = np.uint16((reach + 1) ** 2)
    padded = np.full(reach + rows * wide, far, dtype=np.uint16)  # `reach` pixels between rows: none sees the next
    least, other = np.empty((2, rows * wide), dtype=np.uint16)
    for top in range(0, height, rows):
        block = column[top : top + rows]
        n = len(block) * wide
        inside = padded[reach : reach + n].reshape(-1, wide)[:, :width]
        np.multiply(block, block, out=inside, dtype=np.uint16)
        best, part = least[:n], other[:n]
        best[:] = padded[reach : reach + n]
        for step in range(1, reach + 1):
            part[:] = padded[reach - step : reach - step + n]
            np.minimum(part[: n - step], padded[reach + step : reach + n], out=part[: n - step])
            part += np.uint16(step * step)
            np.minimum(best, part, out=best)
        squares[top : top + rows] = best.reshape(-1, wide)[:, :width]
    return squares


def _along_columns(mask: NDArray[np.bool_], most: int) -> NDArray[np.uint8]:
    """Distance to the nearest True pixel of the same column, `most` where it is that far or farther.

    Row by row down and up; for narrow masks by steps of 1, 2, 4, ... rows, which are fewer than the rows.
    """
    distance = np.where(mask, np.uint8(0), np.uint8(most))
    if mask.shape[1] < NARROW:
        step = 1
        while step < min(most, len(mask)):
            farther = distance + np.uint8(step)
            np.minimum(distance[step:], farther[:-step], out=distance[step:])
            np.minimum(distance[:-step], farther[step:], out=distance[:-step])
            step *= 2
        return distance
    for ahead in (distance, distance[::-1]):
        following = np.empty(mask.shape[1], np.uint8)
        for before, row in zip(ahead[:-1], ahead[1:], strict=True):
            np.add(before, np.uint8(1), out=following)
            np.minimum(row, following, out=row)
    return distance
