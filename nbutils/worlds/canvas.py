"""The drawing board of the embedded city: rasters of cover, material and height, and a street grid that bends.

A scene is laid out in metres on a raster of half a metre (x to the east, y to the south, origin in the upper left
corner of the scene). `simulate` then looks at the finished `Canvas` with its two sensors, a camera and a laser
scanner. Streets live on a rotated and gently warped grid (u, v), so that they bend; everything that people build
straight is placed in that grid but drawn straight in x, y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

TREE, GRASS, SOIL, WATER, BUILDING, ROAD, PAVED, RAIL = range(8)  # the order of the legend `nyc8`
STEP_M = 0.5  # side of a canvas cell
MARGIN_M = 16.0  # drawn beyond the scene, so that shadows and crowns reach in
CANOPY_M = 2.44  # the city's rule: vegetation under 8 ft is grass/shrub, above it is canopy


def smooth_noise(rng: np.random.Generator, n: int, wavelength: float) -> NDArray[np.float32]:
    """Noise of about unit variance on (n, n) cells that varies over `wavelength` cells (cubic B-spline)."""
    m = int(np.ceil(n / wavelength)) + 4
    coarse = rng.standard_normal((m, m), dtype=np.float32)
    at = np.arange(n, dtype=np.float32) / np.float32(wavelength)
    i, t = at.astype(int), at % 1
    taps = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    rows = sum(w[:, None] / 6 * coarse[i + k] for k, w in enumerate(taps))
    return sum(w / 6 * rows[:, i + k] for k, w in enumerate(taps)) * np.float32(2.1)


@dataclass
class Canvas:
    """A scene being drawn. Rasters have shape (n, n); heights are metres above the terrain."""

    size_px: int
    n: int = field(init=False)

    def __post_init__(self) -> None:
        self.n = int(round((self.size_px + 2 * MARGIN_M) / STEP_M))
        axis = ((np.arange(self.n) + 0.5) * STEP_M - MARGIN_M).astype(np.float32)
        self.x, self.y = axis[None, :], axis[:, None]
        shape = (self.n, self.n)
        self.cover = np.full(shape, GRASS, np.uint8)
        self.material = np.zeros(shape, np.uint16)
        self.top = np.zeros(shape, np.float32)  # opaque things: roofs, cars, heaps
        self.crown = np.zeros(shape, np.float32)  # top of leaves, 0 where there are none
        self.crown_material = np.zeros(shape, np.uint16)
        self.slope = np.zeros((2, *shape), np.float32)  # dz/dx, dz/dy of the opaque surface
        self.crown_slope = np.zeros((2, *shape), np.float32)
        self.terrain = np.zeros(shape, np.float32)
        self.taken = np.zeros(shape, bool)  # nothing may be built here any more
        self.barred = np.zeros(shape, bool)  # streets, railway, river with banks: not even the wing of a building
        self.river = np.zeros(shape, bool)  # the river's course, also where bridges hide it
        self.table: list[tuple[float, ...]] = []  # materials: 4 + 4 reflectances to mix, grain
        self.buildings: list[dict] = []
        self.streets: list[dict] = []

    def add_material(self, colour, other=None, grain: float = 0.06) -> int:
        """Register a material: `colour` mixed in blotches with `other`, with fine-grained contrast `grain`."""
        self.table.append((*colour, *(other if other is not None else colour), grain))
        return len(self.table) - 1

    def window(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """The part of the raster within `reach` metres of (x, y); may be empty."""
        low = [int((c - reach + MARGIN_M) / STEP_M) for c in (y, x)]
        high = [int((c + reach + MARGIN_M) / STEP_M) + 1 for c in (y, x)]
        return tuple(slice(max(a, 0), max(min(b, self.n), 0)) for a, b in zip(low, high, strict=True))

    def local(self, x: float, y: float, angle: float, reach: float):
        """Window around (x, y) and the coordinates p, q in it, turned by `angle` (radians, x towards y)."""
        rows, cols = self.window(x, y, reach)
        dx, dy = self.x[:, cols] - np.float32(x), self.y[rows] - np.float32(y)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return (rows, cols), dx * c + dy * s, dy * c - dx * s

    def paint(self, where, inside: NDArray[np.bool_], cover: int, material: int) -> None:
        """Cover the cells `inside` the window `where` with a class and a material."""
        self.cover[where][inside] = cover
        self.material[where][inside] = material

    def patch(self, x, y, angle, half_p, half_q, cover, material, free_only=True) -> None:
        """Paint a straight rectangle on the ground, by default only where nothing is taken yet."""
        where, p, q = self.local(x, y, angle, float(np.hypot(half_p, half_q)))
        inside = (np.abs(p) < half_p) & (np.abs(q) < half_q)
        self.paint(where, inside & ~self.taken[where] if free_only else inside, cover, material)

    def box(self, x, y, angle, half_p, half_q, height, material, cover=None) -> None:
        """Put a box on whatever is there (a car, a container, a roof unit); not on water; its class only if given."""
        where, p, q = self.local(x, y, angle, float(np.hypot(half_p, half_q)))
        inside = (np.abs(p) < half_p) & (np.abs(q) < half_q)
        if (self.cover[where][inside] == WATER).any():
            return
        self.top[where][inside] += np.float32(height)
        self.slope[:, where[0], where[1]][:, inside] = 0
        self.material[where][inside] = material
        if cover is not None:
            self.cover[where][inside] = cover

    def building(self, x, y, angle, half_p, half_q, height, material, roof="flat", pitch=0.0, use="house", wing=False):
        """Draw one straight building; returns False, and draws nothing, on water and where the ground is taken.

        Args:
            x: Centre, metres.
            y: Centre, metres.
            angle: Direction of p, radians.
            half_p: Half the length, metres.
            half_q: Half the width, metres.
            height: Height of the eaves, metres above the terrain.
            material: Material of the roof.
            roof: "flat" (with a parapet), "gable" (ridge along p) or "hip".
            pitch: Rise per metre of a gable or hip roof.
            use: Written to the footprints.
            wing: True for a part of a building just drawn: it may overlap it, and the higher roof wins.
        """
        where, p, q = self.local(x, y, angle, float(np.hypot(half_p, half_q)) + 1.5)
        to_p, to_q = half_p - np.abs(p), half_q - np.abs(q)
        inside = (to_p > 0) & (to_q > 0)
        if not inside.any() or (self.cover[where][inside] == WATER).any():
            return False
        if self.barred[where][inside].mean() > 0.1 or (not wing and self.taken[where][inside].mean() > 0.02):
            return False
        rise = to_q if roof == "gable" else np.minimum(to_p, to_q)
        z = np.float32(height) + np.float32(pitch) * rise
        if roof == "flat":
            z = z + 0.7 * (rise < 0.6)
        inside &= z > self.top[where]
        if not inside.any():
            return False
        along_q = (to_q <= to_p) | (roof == "gable")
        fall_p, fall_q = -pitch * np.sign(p) * ~along_q, -pitch * np.sign(q) * along_q
        c, s = np.cos(angle), np.sin(angle)
        for axis, slope in enumerate((fall_p * c - fall_q * s, fall_p * s + fall_q * c)):
            self.slope[axis][where][inside] = slope[inside]
        self.top[where][inside] = z[inside]
        self.paint(where, inside, BUILDING, material)
        self.taken[where] |= (to_p > -1) & (to_q > -1)
        signs = ((1, 1), (1, -1), (-1, -1), (-1, 1))
        corners = [(x + i * half_p * c - j * half_q * s, y + i * half_p * s + j * half_q * c) for i, j in signs]
        self.buildings.append({"corners": corners, "height_m": round(float(z[inside].max()), 2), "use": use})
        return True

    def tree(self, x, y, radius, height, material, rng) -> None:
        """A crown with a lobed outline; its leaves start at about a third of the height."""
        where, p, q = self.local(x, y, 0.0, radius * 1.3)
        turn = np.arctan2(q, p)
        a, b = rng.uniform(0, 6.3, 2)
        lobes = radius * (1 + 0.13 * np.sin(3 * turn + a) + 0.09 * np.sin(5 * turn + b))
        d = np.hypot(p, q) / lobes
        dome = np.sqrt(np.clip(1 - d * d, 0, 1))
        z = (height * (0.45 + 0.55 * dome)).astype(np.float32)
        inside = (d < 1) & (z > self.crown[where])
        self.crown[where][inside] = z[inside]
        self.crown_material[where][inside] = material
        fall = -0.55 * height / radius * d / (dome + 0.45) / np.maximum(d * radius, 0.3)
        self.crown_slope[0][where][inside] = (fall * p)[inside]
        self.crown_slope[1][where][inside] = (fall * q)[inside]


@dataclass(frozen=True)
class Layout:
    """How a style lays out its streets; (low, high) are metres to draw from.

    Attributes:
        u_gap: From one street of the first direction to the next.
        v_gap: See `u_gap`, of the second direction.
        narrow: Width of most streets.
        wide: Width of every fourth.
        broad_m: Streets wider than this have lanes and zebras, are never interrupted, and cross rivers.
        open: Share of cross streets that go through.
        bend: How winding, relative to the usual.
        wave: Length of the bends.
        walk: Width of the strip between roadway and blocks.
        verge: Width of the grass between roadway and pavement.
        marked: Whether the roadways are painted.
        parked: Share of kerb places with a car.
        kerb_trees: Share of kerb places with a tree.
    """

    u_gap: tuple[float, float] = (68, 104)
    v_gap: tuple[float, float] = (110, 210)
    narrow: tuple[float, float] = (8.5, 11.5)
    wide: tuple[float, float] = (15, 20)
    broad_m: float = 14
    open: float = 0.8
    bend: float = 1.0
    wave: tuple[float, float] = (260, 520)
    walk: tuple[float, float] = (2.6, 3.4)
    verge: float = 1.3
    marked: bool = True
    parked: tuple[float, float] = (0.25, 0.7)
    kerb_trees: float = 0.75


_TIGHT = Layout((62, 84), (95, 160), bend=0.35, walk=(3.0, 4.2), verge=0.0)
LAYOUTS = {
    "suburb": Layout(),
    "rows": _TIGHT,
    "centre": _TIGHT,
    "industry": Layout(verge=0.0),
    "campus": Layout(),
    "oldtown": Layout((34, 56), (48, 96), (4.6, 6.6), (7.0, 9.5), 6.9, 0.62, 1.25, (120, 250), (0.7, 1.5), 0.0, False,
                      (0.02, 0.12), 0.03),
    "estate": Layout((150, 220), (150, 260), (12, 14), (21, 27), bend=0.5, walk=(5.0, 7.0), verge=3.2,
                     parked=(0.05, 0.3), kerb_trees=0.45),
}  # fmt: skip


@dataclass(frozen=True)
class Streets:
    """A street grid: rotated by `turn`, warped by two slow waves, with its own spacing and widths."""

    turn: float
    centre: float
    waves: NDArray[np.float64]  # (k, 5): kx, ky, phase, amplitude in u, amplitude in v
    u: NDArray[np.float64]
    v: NDArray[np.float64]
    u_width: NDArray[np.float64]
    v_width: NDArray[np.float64]
    open: NDArray[np.bool_]  # (columns, v streets): False where a cross street is missing

    @classmethod
    def draw(cls, rng: np.random.Generator, size_px: int, style: str) -> Streets:
        """Draw the layout of one scene."""
        reach = size_px * 0.75 + 60
        layout = LAYOUTS[style]

        def lines(low: float, high: float):
            gaps = rng.uniform(low, high, int(2 * reach / low) + 2)
            at = np.cumsum(gaps) - gaps[0] - reach - rng.uniform(0, high)
            wide = (np.arange(len(at)) + rng.integers(4)) % 4 == 0
            return at, np.where(wide, rng.uniform(*layout.wide, len(at)), rng.uniform(*layout.narrow, len(at)))

        u, u_width = lines(*layout.u_gap)
        v, v_width = lines(*layout.v_gap)
        is_open = (rng.random((len(u) + 1, len(v))) < layout.open) | (v_width > layout.broad_m)
        is_open[:, [0, -1]] = True
        bend = rng.uniform(0.2, 1.0) * layout.bend
        length = rng.uniform(*layout.wave, 3)
        heading = rng.uniform(0, 2 * np.pi, 3)
        k = 2 * np.pi / length
        amplitude = bend * length[:, None] * rng.uniform(-0.035, 0.035, (3, 2))
        waves = np.c_[k * np.cos(heading), k * np.sin(heading), rng.uniform(0, 6.3, 3), amplitude]
        return cls(rng.uniform(0, np.pi / 2), size_px / 2, waves, u, v, u_width, v_width, is_open)

    def _shift(self, x, y):
        wave = [np.sin(np.float32(w[0]) * x + np.float32(w[1]) * y + np.float32(w[2])) for w in self.waves]
        return tuple(sum(np.float32(w[i]) * s for w, s in zip(self.waves, wave, strict=True)) for i in (3, 4))

    def to_uv(self, x, y):
        """Grid coordinates of places, metres."""
        c, s = np.float32(np.cos(self.turn)), np.float32(np.sin(self.turn))
        x, y = x - np.float32(self.centre), y - np.float32(self.centre)
        du, dv = self._shift(x, y)
        return x * c + y * s + du, y * c - x * s + dv

    def to_xy(self, u, v):
        """Places of grid coordinates, metres: the warp is a contraction, so iterating inverts it."""
        c, s = np.cos(self.turn), np.sin(self.turn)
        x, y = u * c - v * s, u * s + v * c
        for _ in range(12):
            du, dv = self._shift(x, y)
            x, y = (u - du) * c - (v - dv) * s, (u - du) * s + (v - dv) * c
        return x + self.centre, y + self.centre

    def place(self, u: float, v: float) -> tuple[float, float, float]:
        """Place of (u, v) and the direction of u there, radians."""
        x, y = self._solve(u, v)
        x1, y1 = self._solve(u + 1.0, v)
        return x, y, math.atan2(y1 - y, x1 - x)

    def places(self, u, v):
        """As `place`, for arrays."""
        x, y = self.to_xy(u, v)
        x1, y1 = self.to_xy(u + 1.0, v)
        return x, y, np.arctan2(y1 - y, x1 - x)

    def _solve(self, u: float, v: float) -> tuple[float, float]:
        c, s, waves = math.cos(self.turn), math.sin(self.turn), self.waves.tolist()
        x, y = u * c - v * s, u * s + v * c
        for _ in range(8):
            swing = [math.sin(kx * x + ky * y + phase) for kx, ky, phase, _, _ in waves]
            a = u - sum(w[3] * t for w, t in zip(waves, swing, strict=True))
            b = v - sum(w[4] * t for w, t in zip(waves, swing, strict=True))
            x, y = a * c - b * s, a * s + b * c
        return x + self.centre, y + self.centre


def ribbon(canvas: Canvas, rng: np.random.Generator, bend: float = 0.05):
    """A curve right across the scene.

    Returns:
        Signed distance to it and distance along it, metres, shape (n, n); and the curve itself as x, y, shape (k,).
    """
    heading, size = rng.uniform(0, np.pi), canvas.size_px
    through = size * rng.uniform(0.25, 0.75, 2)
    c, s = np.float32(np.cos(heading)), np.float32(np.sin(heading))
    dx, dy = canvas.x - np.float32(through[0]), canvas.y - np.float32(through[1])
    along, across = dx * c + dy * s, dy * c - dx * s
    k, phase = 2 * np.pi / rng.uniform(250, 420), rng.uniform(0, 6.3)
    swing = bend / k * 2.5
    slope = swing * k * np.cos(k * along + phase)
    t = np.arange(-1.2 * size, 1.2 * size, 8.0)
    swung = swing * np.sin(k * t + phase)
    line = through[0] + t * c - swung * s, through[1] + t * s + swung * c
    return (across - swing * np.sin(k * along + phase)) / np.sqrt(1 + slope**2), along, line
