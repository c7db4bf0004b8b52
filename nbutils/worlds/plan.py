"""The embedded city while it is planned: its materials, and the small things that stand everywhere."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nbutils.worlds.canvas import WATER, Canvas, Streets

Block = tuple[float, float, float, float]


@dataclass(frozen=True)
class Palette:
    """Materials of a town: reflectance of near infrared, red, green, blue, before every scene shades them.

    Attributes:
        roofs: Deliberately share their colours with roads, pavement and soil.
        asphalt: What most roadways are of; `tones` are the factors it is multiplied with.
        tones: See `asphalt`.
        concrete: What pavements are of.
        earth: Bare ground, in blotches with `sand`.
        sand: See `earth`.
        lush: Lawns are between this and `dry`, as dry as (low, high) `drought` says.
        dry: See `lush`.
        drought: See `lush`.
        leaves: Most trees, and `other_leaves`: a few.
        other_leaves: See `leaves`.
        leafy: (low, high) density of trees.
    """

    roofs: tuple[tuple[float, ...], ...] = (
        (0.13, 0.12, 0.118, 0.117),  # tar and dark shingle: as asphalt
        (0.19, 0.175, 0.165, 0.155),  # weathered shingle: as old asphalt and gravel
        (0.27, 0.205, 0.160, 0.125),  # brown shingle: as soil
        (0.34, 0.315, 0.29, 0.26),  # gravelled flat roof: as concrete
        (0.36, 0.23, 0.135, 0.095),  # clay tile
        (0.56, 0.55, 0.54, 0.52),  # white membrane
        (0.24, 0.235, 0.245, 0.255),  # sheet metal
    )
    asphalt: tuple[float, ...] = (0.135, 0.125, 0.120, 0.115)
    tones: tuple[float, float] = (0.65, 1.65)
    concrete: tuple[float, ...] = (0.33, 0.31, 0.285, 0.25)
    earth: tuple[float, ...] = (0.30, 0.215, 0.160, 0.110)
    sand: tuple[float, ...] = (0.40, 0.34, 0.27, 0.20)
    lush: tuple[float, ...] = (0.47, 0.085, 0.125, 0.060)
    dry: tuple[float, ...] = (0.36, 0.20, 0.19, 0.115)
    drought: tuple[float, float] = (0.0, 0.7)
    leaves: tuple[float, ...] = (0.47, 0.050, 0.082, 0.038)
    other_leaves: tuple[tuple[float, ...], ...] = ((0.40, 0.105, 0.070, 0.045), (0.46, 0.150, 0.135, 0.050))
    leafy: tuple[float, float] = (0.6, 1.45)


_USUAL = Palette()
_PALETTES = {
    "oldtown": Palette(
        roofs=(
            (0.37, 0.235, 0.140, 0.100),  # clay tile: new,
            (0.33, 0.245, 0.165, 0.125),  # faded,
            (0.41, 0.300, 0.205, 0.150),  # pale,
            (0.28, 0.185, 0.120, 0.090),  # dark,
            (0.24, 0.190, 0.145, 0.115),  # and lichened: as earth
            (0.16, 0.155, 0.165, 0.175),  # slate
        ),
        asphalt=(0.22, 0.205, 0.185, 0.158),  # setts
        tones=(0.75, 1.35),
        concrete=(0.43, 0.41, 0.365, 0.30),  # pale stone
        earth=(0.36, 0.27, 0.19, 0.12),
        lush=(0.40, 0.125, 0.135, 0.070),
        dry=(0.40, 0.275, 0.225, 0.135),
        drought=(0.55, 1.0),
        leaves=(0.37, 0.072, 0.085, 0.052),
        other_leaves=((0.33, 0.105, 0.112, 0.085), (0.41, 0.060, 0.080, 0.036)),
        leafy=(0.35, 0.8),
    ),
    "estate": Palette(
        roofs=(
            (0.31, 0.290, 0.265, 0.235),  # gravelled flat roof: as concrete,
            (0.24, 0.225, 0.205, 0.185),  # weathered: as gravel,
            (0.37, 0.350, 0.320, 0.285),  # pale
            (0.12, 0.115, 0.112, 0.112),  # bitumen: as asphalt
            (0.33, 0.130, 0.125, 0.080),  # stonecrop: as lawn
        ),
        tones=(0.8, 1.9),
        concrete=(0.28, 0.265, 0.25, 0.23),
        earth=(0.24, 0.175, 0.135, 0.10),
        lush=(0.50, 0.075, 0.130, 0.055),
        drought=(0.0, 0.45),
        leaves=(0.53, 0.058, 0.105, 0.042),
        leafy=(0.45, 0.9),
    ),
}  # styles that are not listed have the usual one
_CARS = ((0.62, 0.60, 0.60, 0.59), (0.06, 0.04, 0.04, 0.045), (0.33, 0.32, 0.32, 0.32), (0.30, 0.34, 0.05, 0.05),
         (0.20, 0.06, 0.10, 0.28), (0.16, 0.14, 0.13, 0.12))  # fmt: skip


@dataclass
class Plan:
    """One scene under construction: the canvas, its streets, its random numbers and its materials."""

    canvas: Canvas
    streets: Streets
    rng: np.random.Generator
    style: str
    green: float  # how leafy the scene is, about 0.6 .. 1.4
    ids: dict[str, int | list[int]] = field(default_factory=dict)
    uv: tuple = ()  # street coordinates of every cell, set when the streets are drawn
    walk: float = 3.0  # width of the strip between roadway and blocks, metres

    def __post_init__(self) -> None:
        rng, add, have = self.rng, self.canvas.add_material, palette_of(self.style)

        def shade(colour, spread=0.12, tint=0.025):
            return np.array(colour) * rng.normal(1, spread) * rng.normal(1, tint, 4)

        tar, paved = np.array(have.asphalt), np.array(have.concrete)
        dry = rng.uniform(*have.drought)
        lawns = [np.array(have.lush) * (1 - d) + np.array(have.dry) * d for d in np.clip(rng.normal(dry, 0.2, 6), 0, 1)]
        self.ids = {
            "lawn": [add(shade(c, 0.06), np.array(have.dry) * 0.95, 0.07) for c in lawns],
            "asphalt": [
                add(shade(tar * g, 0.05), shade(tar * g * rng.uniform(0.75, 1.3)), 0.035)
                for g in rng.uniform(*have.tones, 9)
            ],
            "concrete": [add(shade(paved * g), shade(paved), 0.04) for g in (0.6, 0.8, 0.9, 1, 1.1)],
            "soil": [add(shade(have.earth, 0.15), shade(have.sand), 0.08) for _ in range(4)],
            "roof": [add(shade(c, 0.16, 0.05), None, 0.05) for c in have.roofs for _ in range(4)],
            "car": [add(shade(c), None, 0.02) for c in _CARS for _ in range(2)],
            "tree": [add(_leaves(rng, have), _leaves(rng, have), 0.17) for _ in range(14)],
            "paint": add((0.42, 0.41, 0.40, 0.36), (0.26, 0.25, 0.24, 0.21), 0.1),
            "yellow": add((0.40, 0.38, 0.30, 0.12), (0.26, 0.25, 0.22, 0.14), 0.1),
            "glass": add((0.05, 0.05, 0.06, 0.07), None, 0.02),
            "water": add(shade((0.020, 0.035, 0.050, 0.045), 0.25, 0.15), shade((0.03, 0.06, 0.07, 0.05)), 0.10),
            "pool": add((0.03, 0.16, 0.36, 0.42), None, 0.05),
            "gravel": add(shade((0.20, 0.185, 0.165, 0.145)), shade((0.15, 0.135, 0.115, 0.10)), 0.13),
            "rail": add((0.10, 0.085, 0.07, 0.065), (0.30, 0.28, 0.27, 0.27), 0.05),
            "court": add(shade((0.22, 0.11, 0.19, 0.14)), shade((0.26, 0.25, 0.12, 0.09)), 0.03),
        }

    def pick(self, name: str) -> int:
        """One of the materials of a kind."""
        ids = self.ids[name]
        return int(ids[self.rng.integers(len(ids))]) if isinstance(ids, list) else ids

    def tree_at(self, x: float, y: float, size: float = 1.0) -> None:
        """One tree of random size, crown and colour; the smallest are shrubs."""
        rng = self.rng
        radius = float(np.clip(rng.lognormal(np.log(3.1 * size), 0.38), 0.9, 8.5))
        height = float(np.clip(radius * rng.uniform(1.6, 3.4) + rng.uniform(0, 3), 1.2, 26))
        self.canvas.tree(x, y, radius, height, self.pick("tree"), rng)

    def shrub_at(self, x: float, y: float) -> None:
        """A shrub below the canopy height."""
        rng = self.rng
        self.canvas.tree(x, y, rng.uniform(0.6, 1.5), rng.uniform(0.8, 2.3), self.pick("tree"), rng)

    def car_at(self, x: float, y: float, angle: float) -> None:
        """A car with its windscreen, now and then a van or a lorry."""
        rng, canvas = self.rng, self.canvas
        size = 0 if rng.random() < 0.88 else 1 if rng.random() < 0.7 else 2
        half, wide, height = ((2.25, 0.95, 1.45), (2.8, 1.05, 2.2), (5.0, 1.25, 3.5))[size]
        if (canvas.cover[canvas.window(x, y, half)] == WATER).any():
            return
        canvas.box(x, y, angle, half, wide, height, self.pick("car"))
        front = half * 0.42
        where, p, q = canvas.local(x + front * np.cos(angle), y + front * np.sin(angle), angle, 1.2)
        canvas.material[where][(np.abs(p) < 0.4) & (np.abs(q) < wide - 0.2)] = self.ids["glass"]

    def block_mask(self, block: Block):
        """Window around a block and the cells of it that nothing has taken."""
        u0, u1, v0, v1 = block
        u, v = np.meshgrid([u0, (u0 + u1) / 2, u1], [v0, (v0 + v1) / 2, v1])
        x, y = self.streets.to_xy(u.ravel(), v.ravel())
        reach = max(np.ptp(x), np.ptp(y)) / 2 + 6
        where = self.canvas.window((x.min() + x.max()) / 2, (y.min() + y.max()) / 2, reach)
        u, v = self.uv[0][where], self.uv[1][where]
        inside = (u > u0) & (u < u1) & (v > v0) & (v < v1)
        return where, inside & ~self.canvas.taken[where]


def palette_of(style: str) -> Palette:
    """Materials of a style of the city."""
    return _PALETTES.get(style, _USUAL)


def _leaves(rng: np.random.Generator, have: Palette) -> np.ndarray:
    """Reflectance of a species: mostly green, a few copper or yellowing."""
    green = np.array(have.leaves) * rng.normal(1, 0.16) * rng.normal(1, 0.10, 4)
    other = np.array(have.other_leaves[rng.integers(2)])
    return np.clip(green if rng.random() < 0.85 else other, 0.01, None)
