"""Objects of a mask: 4-connected areas of one class, found by joining the runs of its rows.

A run is a stretch of equal pixels in a row. Smooth maps have few, so that joining them is several times as quick as
labelling pixels; ragged maps are labelled pixel by pixel.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from skimage import measure

from nbutils.legend import VOID

RAGGED = 12  # pixels per run below which labelling pixels is quicker


@dataclass(frozen=True)
class Objects:
    """The objects of a mask and the runs they are made of; areas of void are among them, with class 255.

    Args:
        starts: Flat index of each run's first pixel, (R,), increasing; the first is 0.
        lengths: Pixels per run, (R,).
        of_run: Object of each run, (R,).
        class_of: Class id per object, (M,).
        area: Pixels per object, (M,).
        shape: (H, W) of the mask.
    """

    starts: NDArray[np.intp]
    lengths: NDArray[np.intp]
    of_run: NDArray[np.intp]
    class_of: NDArray[np.uint8]
    area: NDArray[np.int64]
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.class_of)

    def count(self, flags: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Count the True pixels of (H, W) within each object, (M,)."""
        if not self.starts.size:
            return np.zeros(0, np.int64)
        per_run = np.add.reduceat(flags.ravel(), self.starts, dtype=np.int32)
        return np.bincount(self.of_run, weights=per_run, minlength=len(self)).astype(np.int64)

    def paint(self, flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Spread a flag per object, (M,), over its pixels, (H, W)."""
        return np.repeat(flags[self.of_run], self.lengths).reshape(self.shape)

    def at(self, pixels: NDArray[np.intp]) -> NDArray[np.intp]:
        """Objects at flat pixel indices."""
        return self.of_run[np.searchsorted(self.starts, pixels, side="right") - 1]

    def beside(self, which: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Class ids left or right of chosen objects, (M,): a row of 256 per object, in order, (number chosen, 256)."""
        row_of = np.cumsum(which) - 1
        found = np.zeros((int(np.count_nonzero(which)), 256), dtype=bool)
        chosen = which[self.of_run]
        same_row = self.starts[1:] % self.shape[1] != 0  # the next run does not begin a row
        for one, other in ((np.s_[:-1], np.s_[1:]), (np.s_[1:], np.s_[:-1])):
            runs = np.flatnonzero(chosen[one] & same_row)
            found[row_of[self.of_run[one][runs]], self.class_of[self.of_run[other][runs]]] = True
        return found


def find_objects(mask: NDArray[np.uint8]) -> Objects:
    """Find the 4-connected areas of equal id in a mask, (H, W), uint8."""
    if not mask.size:
        nothing = np.zeros(0, np.intp)
        return Objects(nothing, nothing, nothing, np.zeros(0, np.uint8), np.zeros(0, np.int64), mask.shape)
    mask = np.ascontiguousarray(mask)
    first = np.ones(mask.shape, dtype=bool)
    np.not_equal(mask[:, 1:], mask[:, :-1], out=first[:, 1:])
    starts = np.flatnonzero(first)
    if len(starts) * RAGGED > mask.size:
        of_run = measure.label(mask, background=VOID, connectivity=1).ravel()[starts].astype(np.intp)  # 0 is void
    else:
        of_run = _join(mask, first, starts)
    class_of = np.full(of_run.max() + 1, VOID, np.uint8)
    class_of[of_run] = mask.ravel()[starts]
    lengths = np.diff(starts, append=mask.size)
    area = np.bincount(of_run, weights=lengths, minlength=len(class_of)).astype(np.int64)
    return Objects(starts, lengths, of_run, class_of, area, mask.shape)


def _join(mask: NDArray[np.uint8], first: NDArray[np.bool_], starts: NDArray[np.intp]) -> NDArray[np.intp]:
    """Number the connected runs: two of neighbouring rows meet once, where the later one of them starts."""
    meet = mask[1:] == mask[:-1]
    meet &= first[1:] | first[:-1]
    upper = np.flatnonzero(meet)
    runs = [np.searchsorted(starts, at, side="right") - 1 for at in (upper, upper + mask.shape[1])]
    links = sparse.coo_array((np.ones(len(upper), np.int8), tuple(runs)), shape=(len(starts), len(starts)))
    return sparse.csgraph.connected_components(links, directed=False)[1].astype(np.intp)


def is_void(objects: Objects) -> NDArray[np.bool_]:
    """Which objects are areas of void, (M,)."""
    return objects.class_of == VOID
