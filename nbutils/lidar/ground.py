"""Ground: the bare earth below a point cloud, on slopes and below large roofs alike.

A progressive morphological filter that does not ask how steep the ground is: growing windows open the surface of
lowest returns, and what they cut away is an object if it ends in steps; hills end in slopes. The mean slope of the
scene is taken off first, and what lies below objects is filled from the ground around.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage

from nbutils.lidar.cells import box, in_blocks, opened, spread, window

_TESTED_M = 10.0  # what fits a smaller window is an object in any case: losing a knoll of that size loses nothing
_EDGE_TO_SIDE = 1.5  # least length of an object's edges to the side of a square of its area
_PIT_M = 1.0  # ground so far below the mean of the ground around is a false echo
_PIT_DEPTH_M, _PIT_REACH_M = 2.5, 5.0  # and so is what lies so far below everything within reach


class Rules(Protocol):
    """The thresholds of `nbutils.lidar.classify.LidarRules` that concern the ground."""

    windows_m: tuple[float, ...]
    step_m: float
    jump_m: float
    jump_share: float


def find_ground(lowest: NDArray[np.float32], coded: NDArray[np.float32] | None, share: float, block_m: float,
                rules: Rules) -> NDArray[np.float32]:  # fmt: skip
    """Find the height of the ground.

    Args:
        lowest: Lowest return of every block, inf where there is none; shape (H, W), metres.
        coded: The same of returns that the file calls ground, or None.
        share: Share of the returns that the file calls ground.
        block_m: Side of a block in metres.
        rules: Thresholds.

    Returns:
        Height everywhere, shape (H, W), float32, metres.
    """
    known = np.isfinite(lowest)
    if coded is not None and share < 0.98:  # where all is called ground nothing is
        reach = max(int(16 / block_m), 1)
        somewhere, there = (window(m, reach, np.maximum) for m in (known, np.isfinite(coded)))
        if there.sum() > 0.7 * somewhere.sum():
            return _smooth(fill(coded, np.isfinite(coded)))
    trend = _trend(lowest, known, max(int(16 / block_m), 1))
    lowest = np.where(known, lowest - trend, np.inf)
    for _ in range(2):  # where two false echoes are near each other, the first round finds the lower one
        lowest[_pits(lowest, block_m)] = np.inf
    known = np.isfinite(lowest)
    lowest = np.where(known, lowest, 0).astype(np.float32)
    ground = _filtered(fill(lowest, known), known, block_m, rules)
    weight = ndimage.uniform_filter(ground.astype(np.float32), 7)
    around = ndimage.uniform_filter(np.where(ground, lowest, 0), 7) / np.maximum(weight, 1e-3)
    ground &= lowest > around - _PIT_M
    return _smooth(fill(lowest, ground)) + trend


def _pits(lowest: NDArray[np.float32], block_m: float) -> tuple[NDArray, NDArray]:
    """Rows and columns of false echoes from below the ground.

    They lie far below all but one of the blocks around, whereas the few returns from the ground of a dense forest lie
    about as low as other ones.
    """
    reach = max(int(round(_PIT_REACH_M / block_m)), 1)
    known = np.isfinite(lowest)
    mean = box(np.where(known, lowest, 0), 1) / np.maximum(box(known.astype(np.float32), 1), 1)
    low = known & (mean - lowest > _PIT_M) & (lowest <= window(lowest, 2 * reach + 1, np.minimum))
    rows, columns = np.nonzero(low)
    padded = np.pad(lowest, reach, constant_values=np.inf)
    around = sliding_window_view(padded, (2 * reach + 1,) * 2)[rows, columns].reshape(len(rows), (2 * reach + 1) ** 2)
    third = np.partition(around, 2, axis=1)[:, 2]
    pit = np.isfinite(third) & (lowest[rows, columns] < third - _PIT_DEPTH_M)
    return rows[pit], columns[pit]


def _filtered(surface: NDArray[np.float32], known: NDArray[np.bool_], block_m: float, rules: Rules):
    """Which blocks hold ground; shape (H, W), bool."""
    covered = window(window(known, 5, np.maximum), 5, np.minimum)  # no farther than there are returns
    beyond, ground, cut = ~covered, known.copy(), surface
    bend = 2 * surface - window(surface, 3, np.minimum) - window(surface, 3, np.maximum)
    edge, foot = bend >= rules.jump_m, bend <= -rules.jump_m
    beside_edge = window(edge, 3, np.maximum)
    for width_m in rules.windows_m:
        low = opened(cut, max(int(round(width_m / block_m)) | 1, 3))
        raised = covered & (surface - low > rules.step_m)
        if width_m > _TESTED_M:
            inner = raised & ~edge & ~foot
            groups, count = ndimage.label(inner)
            rim = inner & ~window(inner | beyond, 3, np.minimum)  # the scene's edge tells nothing
            falls = rim & beside_edge
            area, falls, ends = (np.bincount(groups[m], minlength=count + 1) for m in (inner, falls, rim & ~falls))
            # a hill with many walls has many edges too, but not for its size
            stands = (falls >= rules.jump_share * (falls + ends)) & (falls >= _EDGE_TO_SIDE * np.sqrt(area))
            stands[0] = False
            raised = stands[groups] | (raised & (edge | foot))
        ground &= ~raised
        cut = np.where(raised, np.minimum(cut, low), cut)
    return ground


def _trend(lowest: NDArray[np.float32], known: NDArray[np.bool_], side: int) -> NDArray[np.float32]:
    """The slope of the whole scene: a surface of second order through low returns of wide blocks."""
    h, w = lowest.shape
    padded = np.pad(np.where(known, lowest, np.inf), [(0, -h % side), (0, -w % side)], constant_values=np.inf)
    wide = padded.reshape(-(-h // side), side, -(-w // side), side).swapaxes(1, 2)
    wide = wide.reshape(*wide.shape[:2], -1)
    low = np.partition(wide, side * side // 20, axis=-1)[..., side * side // 20]  # not the very lowest: false echoes
    rows, columns = np.nonzero(np.isfinite(low))
    if len(rows) < 12:
        return np.zeros((h, w), np.float32)
    y, x, z = (rows + 0.5) * side / h - 0.5, (columns + 0.5) * side / w - 0.5, low[rows, columns].astype(np.float64)
    terms, weight = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1), np.ones(len(z))
    for _ in range(5):  # what stands far from the rest counts little
        fit = np.linalg.lstsq(terms * weight[:, None], z * weight, rcond=None)[0]
        off = np.abs(terms @ fit - z)
        weight = 1 / (1 + off / max(np.median(off), 0.1))
    y, x = (np.arange(h)[:, None] + 0.5) / h - 0.5, (np.arange(w) + 0.5) / w - 0.5
    return (fit[0] + fit[1] * x + fit[3] * x * x + y * (fit[2] + fit[4] * x + fit[5] * y)).astype(np.float32)


def fill(values: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fill what is not known from means of wider and wider surroundings; 0 where nothing at all is known."""
    if known.all() or not known.any():
        return np.where(known, values, 0).astype(np.float32)
    pad = [(0, n % 2) for n in values.shape]
    weight = in_blocks(np.pad(known, pad).astype(np.float32), 2)
    total = in_blocks(np.pad(np.where(known, values, 0), pad), 2)
    wider = spread(fill(total / np.maximum(weight, 1), weight > 0), 2)[: values.shape[0], : values.shape[1]]
    return np.where(known, values, ndimage.uniform_filter(wider, 3, mode="nearest")).astype(np.float32)


def _smooth(ground: NDArray[np.float32]) -> NDArray[np.float32]:
    return ndimage.gaussian_filter(ground, 1.0, mode="nearest")
