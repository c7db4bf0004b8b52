"""Classes that spread over their neighbours from the boundary inwards, by the distance each has grown.

Only pixels near boundaries are visited. Each front carries the boundary pixel it came from, so that distances are
Euclidean, as in the transform of Danielsson (Computer Graphics and Image Processing 14, 1980).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbutils.legend import VOID
from nbutils.noise.fields import Mask, smooth_field

DITHER_PX = 10.0  # as of a shift: stretches about so long lie one pixel farther than others
AROUND = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
EDGE = np.float32(1e-3)  # a pixel exactly at the distance is reached


@dataclass
class Front:
    """Pixels reached last, by place in the padded mask, and where the class came from."""

    at: NDArray[np.intp]
    source: NDArray[np.intp]


class Terrain:
    """A mask with a rim of void, and the best claim on each of its pixels so far."""

    def __init__(self, mask: Mask, growth: NDArray[np.float64], rng: np.random.Generator) -> None:
        """See `spread`."""
        padded = np.pad(mask, 1, constant_values=VOID)
        self.width = padded.shape[1]
        self.flat = padded.ravel()
        self.whole, part = np.floor(growth).astype(np.float32), growth - np.floor(growth)
        self.limits = self.field = None
        if (part > 1e-9).any():
            self.field = smooth_field(padded.shape, DITHER_PX, rng).ravel()
            step = 1 + self.field.size // (1 << 20)
            self.limits = np.quantile(self.field[::step], part).astype(np.float32)
            self.limits[part <= 1e-9] = -np.inf
        self.best = np.full(self.flat.size, np.inf, dtype=np.float32)
        self.source = np.empty(self.flat.size, dtype=np.int32 if self.flat.size < 1 << 31 else np.int64)
        self.reached = np.zeros(self.flat.size, dtype=bool)

    def gain(self, at: NDArray[np.intp], taker: Mask, holder: Mask) -> tuple[NDArray, NDArray]:
        """By how many pixels two classes have grown at some places."""
        if self.field is None:
            return self.whole[taker], self.whole[holder]
        luck = self.field[at]
        return tuple(self.whole[one] + (luck < self.limits[one]) for one in (taker, holder))

    def start(self, growth: NDArray[np.float64]) -> Front:
        """Boundary pixels of classes that grow more than a neighbour."""
        for step in (1, self.width):
            first = np.flatnonzero(self.flat[:-step] != self.flat[step:])
            for here, there in ((first, first + step), (first + step, first)):
                a, b = self.flat[here], self.flat[there]
                self.reached[here[(a != VOID) & (b != VOID) & (growth[a] > growth[b])]] = True
        at = self._reached()
        return Front(at, at)

    def advance(self, front: Front) -> Front:
        """Let a front take the pixels around it that it wins; return those."""
        classes = self.flat[front.source]
        for down, right in AROUND:
            at = front.at + (down * self.width + right)
            other = self.flat[at]
            open_ = np.flatnonzero((other != classes) & (other != VOID))
            at, source = at[open_], front.source[open_]
            rows, columns = np.divmod(at, self.width)
            rows -= source // self.width
            columns -= source % self.width
            taker, holder = self.gain(at, classes[open_], other[open_])
            claim = np.sqrt(rows * rows + columns * columns, dtype=np.float32) - taker
            wins = (claim < EDGE - holder) & (claim < self.best[at])
            at, source = at[wins], source[wins]
            self.best[at], self.source[at] = claim[wins], source
            self.reached[at] = True
        at = self._reached()
        return Front(at, self.source[at])

    def _reached(self) -> NDArray[np.intp]:
        """Places marked since the last call, each once and in order."""
        at = np.flatnonzero(self.reached)
        self.reached[at] = False
        return at


def spread(mask: Mask, growth: NDArray[np.float64], rng: np.random.Generator) -> Mask:
    """Give each pixel to the class for which distance less growth is least.

    Args:
        mask: Class ids, shape (H, W), uint8; void neither spreads nor is overrun.
        growth: Pixels by id, shape (256,), negative for classes that shrink.
        rng: Source of randomness, for fractions of a pixel.

    Returns:
        The mask afterwards.
    """
    terrain = Terrain(mask, growth, rng)
    front = terrain.start(growth)
    after = terrain.flat.copy()
    while len(front.at):
        front = terrain.advance(front)
        after[front.at] = terrain.flat[front.source]
    return after.reshape(-1, terrain.width)[1:-1, 1:-1]
