"""Majority: which class has the largest area in a pixel, counted at points, from arrays alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nbutils.legend import VOID

EDGE = 1e-6  # share of a cell by which a point on an edge is pushed into the next column and row


def bilinear(values: NDArray, known: Sequence[NDArray], at: Sequence[NDArray]) -> NDArray:
    """Values (2, rows, columns) known at some rows and columns, at others."""
    for axis in (1, 2):
        nodes, wanted = known[axis - 1], at[axis - 1]
        left = np.clip(np.searchsorted(nodes, wanted, side="right") - 1, 0, len(nodes) - 2)
        share = ((wanted - nodes[left]) / (nodes[left + 1] - nodes[left])).reshape((-1, 1)[: 3 - axis])
        values = values.take(left, axis) * (1 - share) + values.take(left + 1, axis) * share
    return values


def mixed(ids: NDArray[np.uint8], reach: Sequence[int]) -> NDArray[np.bool_]:
    """Whether the `reach` (rows, columns) of cells from each on, where so many follow, are of several classes."""
    least = most = ids
    for axis, length in enumerate(reach):
        done = 1
        while done < length:  # twice as many each time
            step = min(done, length - done)
            first, last = ((slice(None),) * axis + (cut,) for cut in (slice(None, -step), slice(step, None)))
            least, most, done = np.minimum(least[first], least[last]), np.maximum(most[first], most[last]), done + step
    return least != most


def vote(
    ids: NDArray[np.uint8], base: NDArray[np.intp], four: NDArray[np.float64], steps: Sequence[int]
) -> NDArray[np.uint8]:
    """Class ids of the largest area in pixels.

    There is one point in each of `steps` parts of a pixel, sheared so that no two are in line: an edge seldom meets
    many. Within a pixel the way from one CRS to the other is taken as bilinear.

    Args:
        ids: Class ids of the product, (rows, columns), void 255.
        base: Flat index into `ids` of the lowest cell of each of P pixels.
        four: Columns and rows of the four corners from there, (4, 2, P): from the left to the right, then downwards.
        steps: Parts along the columns and along the rows of a pixel.
    """
    start, right, down = four[0], four[1] - four[0], four[2] - four[0]
    cross = four[3] - four[1] - down
    middle = np.floor(start + right / 2 + down / 2 + cross / 4).astype(np.intp)
    centre = ids.ravel()[base + middle[1] * ids.shape[1] + middle[0]]
    start, right, down, cross = (part.astype(np.float32) for part in (start, right, down, cross))
    classes, bent, number = np.setdiff1d(ids, [VOID]), abs(cross).max() > EDGE, steps[0] * steps[1]
    votes = np.zeros((len(classes), len(base)), np.uint8 if number < 256 else np.uint32)
    same, cells, flat = np.empty(len(base), bool), ids.ravel(), np.empty(len(base), np.intp)
    for i, j in np.ndindex(*steps):
        v, u = np.float32((i + (j + 0.5) / steps[1]) / steps[0]), np.float32((j + (i + 0.5) / steps[0]) / steps[1])
        place = right * u
        place += down * v
        place += start
        if bent:
            place += cross * (u * v)
        np.multiply(place[1].astype(np.int32), ids.shape[1], out=flat, dtype=np.intp)
        flat += place[0].astype(np.int32)
        flat += base
        found = cells.take(flat, mode="clip")
        for count, one in zip(votes, classes, strict=True):
            count += np.equal(found, one, out=same)
    votes = 2 * votes.astype(np.int64)
    unknown = 2 * number - votes.sum(0) > number
    votes += classes[:, None] == centre
    return np.where(unknown, VOID, classes[votes.argmax(0)] if len(classes) else VOID).astype(np.uint8)
