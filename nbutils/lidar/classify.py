"""LiDAR labels: returns become statistics on a grid, and those four classes by plain rules.

Two grids are at work. Returns are collected on *cells*, the pixels of the grid asked for, or parts of them where they
are wider than 1.25 m. Ground, leaves and asphalt are judged on *blocks* of cells about a metre wide, so that the same
thresholds hold on every grid and for 1 to 30 returns to the square metre; cells draw the outline of what is high.
A margin around the grid is worked on too, as far as there are returns: a roof that fills the whole grid is known by
the ground beside it.

The errors come with the method: car parks are as flat and dark as roads, low sheds pass for ground and bridges for
roofs, clipped hedges look like walls, water gives nothing back and stays void.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from scipy import ndimage

from nbutils.compat import keep_memory
from nbutils.legend import VOID
from nbutils.lidar.cells import (
    PULSE,
    Returns,
    Source,
    Work,
    at_least,
    box,
    collect,
    filled_from,
    gaps,
    in_blocks,
    missed,
    opened,
    spread,
    to_blocks,
)  # fmt: skip
from nbutils.lidar.ground import find_ground
from nbutils.lidar.points import Points

BACKGROUND, TREE, BUILDING, ROAD = range(4)  # the order of the legend `autogeo4`
_JUDGED = ("multiple", "roughness", "scatter", "hollow", "cover", "intensity")  # layers of blocks
_Named = dict[str, NDArray[np.float32]]
Image = xr.DataArray | tuple[NDArray, Sequence[str]]
_LEAST_M = 0.7  # returns lower than this are the ground beside a wall or below leaves: their scatter says nothing
_SKIN_M = 1.0  # returns so far below the highest of their block came through what returned that one
_DOUBT = 2  # returns that speak neither for leaves nor for a roof: with fewer around a share tells little
_SPIKE_M = 12.0  # what rises so far above all its neighbours is a bird, a wire or an error


@dataclass(frozen=True)
class LidarRules:
    """Thresholds of the rules; metres, square metres and shares in [0, 1], whatever the units of the file.

    Attributes:
        high_m: Lowest height above the ground of trees and buildings.
        multiple_share: Share of pulses with several returns at which a high block is as likely leaves as roof.
        rough_m: The same for roughness; less is asked of what is lower than four metres and cannot scatter as much.
        hollow_share: The same for the share of returns from far below the top of their block; ground is one of them.
        green_ndvi: The same for NDVI, where an image has it; greener ground is no road.
        cover_share: Least share of returns from above the ground (3 x 3 blocks); less is a wire or a lamp.
        building_width_m: Narrower strips of roof are dropped (walls, fences, parked lorries).
        building_m2: Smaller groups of roof become tree, their likeliest origin.
        calm_m: How far roofs grow over blocks that are as high and, judged by 3 x 3 blocks, neither rough nor hollow.
        rim_m: How far they then grow over any that are as high: walls scatter returns as leaves do.
        rim_step_m: How far what they grow over may be higher or lower than the roof beside it.
        hole_m: Gaps in a roof up to this width are filled (chimneys, dormers, machines).
        crown_m: Gaps between leaves up to this width are filled.
        tree_width_m: Narrower strips of leaves are dropped.
        tree_m2: Smaller groups of high blocks are dropped.
        road_intensity: Mean intensity, relative to that of bright ground, below which low ground is asphalt.
        road_low_m: Greatest height of the lowest return over a road; cars may stand higher above it.
        sparse_share: Ground that returns fewer pulses than this share of the scene's typical density (5 x 5 blocks) is
            water or glass, and no road.
        road_width_m: Strips of asphalt narrower than this are dropped (drives, paths, shadows of gaps).
        road_m2: Smaller groups of road are dropped.
        gap_m: Cells farther than this from any return stay void.
        windows_m: Widths of the growing windows of the ground filter; the last must exceed the narrow side of the
            largest building.
        step_m: Lowest object that the ground filter removes.
        jump_m: Bend of the surface at the foot and the edge of an object; slopes of any steepness do not bend.
        jump_share: Share of its rim that must be such an edge for a large group to be an object, and not a hill.
    """

    high_m: float = 2.0
    multiple_share: float = 0.25
    rough_m: float = 0.70
    hollow_share: float = 0.40
    green_ndvi: float = 0.20
    cover_share: float = 0.15
    building_width_m: float = 3.0
    building_m2: float = 20.0
    calm_m: float = 2.0
    rim_m: float = 1.0
    rim_step_m: float = 1.0
    hole_m: float = 3.0
    crown_m: float = 2.0
    tree_width_m: float = 1.6
    tree_m2: float = 3.0
    road_intensity: float = 0.56
    road_low_m: float = 0.35
    sparse_share: float = 0.4
    road_width_m: float = 3.0
    road_m2: float = 80.0
    gap_m: float = 2.0
    windows_m: tuple[float, ...] = (3.0, 7.0, 15.0, 31.0, 63.0, 127.0, 255.0)
    step_m: float = 0.5
    jump_m: float = 1.5
    jump_share: float = 0.52


@dataclass(frozen=True)
class Layers:
    """What the rules look at, on the cells of a grid without the margin.

    Attributes:
        cells: Layers of cells, float32, NaN where nothing is known.
        blocks: Layers of their blocks, those at the lower and right edge cut by it; likewise.
        work: The grids.
    """

    cells: dict[str, NDArray[np.float32]]
    blocks: dict[str, NDArray[np.float32]]
    work: Work

    def on_grid(self) -> xr.Dataset:
        """All layers on the grid that was asked for, as `measure` gives them."""
        height, width = self.cells["height"].shape
        wide = {name: spread(a, self.work.block)[:height, :width] for name, a in self.blocks.items()}
        attrs = {"pixel_m": self.work.cell_m, "block": self.work.block}
        layers = {name: (("y", "x"), a) for name, a in (self.cells | wide).items()}
        return _on_grid(xr.Dataset(layers, attrs=attrs), self.work)


@dataclass(frozen=True)
class Labels:
    """A mask and the statistics it was made from.

    Attributes:
        mask: Classes of the legend autogeo4, 255 where no return is near; shape (H, W), uint8.
        layers: What the rules looked at.
    """

    mask: NDArray[np.uint8]
    layers: Layers

    @cached_property
    def statistics(self) -> xr.Dataset:
        """Layers on the grid of the mask, as `measure` gives them; put together when first asked for."""
        return self.layers.on_grid()


def from_lidar(points: Source, grid: GeoBox, *, rules: LidarRules | None = None,
               image: Image | None = None) -> Labels:  # fmt: skip
    """Label a grid from LiDAR returns.

    Args:
        points: Returns, or one or several LAS, LAZ or COPC files; they may lie beyond the grid. Returns coded as noise
            are left out, and those coded as ground are the ground where there are enough of them; other codes are not
            looked at. Numbers of returns and intensity are used where they are known; without intensity there is no
            road. Points without a CRS are taken to be in that of the grid, in its units.
        grid: Grid to label, as of the image: square pixels, best 0.3 to 2 m, in a projected CRS, turned or not. Points
            in another CRS are brought to it.
        rules: Thresholds; the defaults suit 1 to 30 returns to the square metre on any grid.
        image: Pixels on the grid with near infrared and red among their bands, for the NDVI as a third witness of
            leaves: a DataArray (band, y, x) whose coordinate `band` holds the names, or (pixels (B, H, W), names).

    Returns:
        Mask and statistics on `grid`.

    Raises:
        ValueError: The grid has no projected CRS or its pixels are not square, no return falls on it, or the image
            does not fit it.
        SourceError: A file is missing, damaged or empty, its coordinates are degrees, or none of them is on the grid.
    """
    work, rules = Work.of(grid), rules or LidarRules()
    points = points if isinstance(points, Points | str | Path) else list(points)
    layers = _measure(points, work, rules, image)
    mask = _classified(layers.cells, layers.blocks, work.block, work.cell_m, rules)
    if work.split > 1:
        votes = np.stack([in_blocks(mask == k, work.split) for k in range(4)])
        mask = np.where(votes.any(axis=0), votes.argmax(axis=0), VOID).astype(np.uint8)
    return Labels(mask, layers)


def measure(points: Source, grid: GeoBox, rules: LidarRules | None = None,
            image: Image | None = None) -> xr.Dataset:  # fmt: skip
    """Rasterise what the rules look at; arguments and errors as of `from_lidar`.

    Returns:
        Layers of shape (H, W), float32, NaN where nothing is known: `density` (returns per square metre), `ground`
        (metres), `height` (highest return above the ground, metres), `low` (lowest return above the ground); and of
        blocks with their neighbours `multiple` (share of pulses with several returns, 3 x 3), `roughness` (scatter of
        the heights of returns within blocks, metres, at most 1 for a block, 5 x 5), `scatter` (the same, 3 x 3),
        `hollow` (share of the other returns that lie a metre or more below the highest of their block, 3 x 3),
        `cover` (share of returns from above the ground, 3 x 3), `intensity` (over the 80th percentile of the ground,
        3 x 3) and, with an image, `ndvi`. The attributes give the side of a pixel in metres and that of a block in
        pixels.
    """
    return _measure(points, Work.of(grid), rules or LidarRules(), image).on_grid()


def apply_rules(statistics: xr.Dataset, rules: LidarRules | None = None) -> NDArray[np.uint8]:
    """Turn statistics into classes of the legend autogeo4; shape (H, W), uint8, 255 where nothing is known."""
    cells, block = {name: a.values for name, a in statistics.items()}, statistics.attrs["block"]
    judged = {name: to_blocks(cells[name], block, None) for name in _JUDGED}
    return _classified(cells, judged, block, statistics.attrs["pixel_m"], rules or LidarRules())


def _classified(layers: _Named, judged: _Named, block: int, pixel_m: float, rules: LidarRules) -> NDArray[np.uint8]:
    """Apply the rules to layers of cells, and those judged by blocks."""
    side_m, shape = block * pixel_m, layers["height"].shape
    how = {"height": np.fmax, "low": np.fmax, "density": np.add, "ndvi": np.add}
    s = {name: to_blocks(layers[name], block, ufunc) for name, ufunc in how.items() if name in layers} | judged
    cells = lambda metres: max(int(round(metres / side_m)), 1)  # noqa: E731
    with np.errstate(invalid="ignore"):  # what is unknown is NaN, and no rule holds for it
        high = (s["height"] >= rules.high_m) & (s["cover"] >= rules.cover_share)
        rough = rules.rough_m * np.clip(s["height"] / 4, 0.4, 1)
        hollow = s["hollow"] / rules.hollow_share
        witnesses = [s["roughness"] / rough, hollow, s["multiple"] / rules.multiple_share]
        witnesses += [s["ndvi"] / block**2 / rules.green_ndvi] if "ndvi" in s else []
        heard = np.clip(witnesses, 0, 4)
        calm = s["scatter"] / rough + hollow < 2
        leaves = np.nansum(heard, axis=0) >= np.isfinite(heard).sum(axis=0)  # the mean of those that know
        asphalt = (s["low"] <= rules.road_low_m) & (s["intensity"] <= rules.road_intensity)
        if "ndvi" in s:
            asphalt &= ~(s["ndvi"] / block**2 >= rules.green_ndvi)
    roof = at_least(opened(high & ~leaves, cells(rules.building_width_m)), rules.building_m2 / side_m**2)
    roof = _with_rim(roof, high & calm, s["height"], cells(rules.calm_m), rules.rim_step_m)
    roof = _with_rim(roof, high, s["height"], cells(rules.rim_m), rules.rim_step_m)
    roof |= high & ~opened(~roof, cells(rules.hole_m))
    roof = opened(roof, cells(rules.building_width_m))
    crowns = ~opened(~(high & ~roof), cells(rules.crown_m))
    high = at_least(roof | opened(crowns, cells(rules.tree_width_m)), rules.tree_m2 / side_m**2)
    dense = ndimage.uniform_filter(s["density"], 5, mode="nearest")
    asphalt &= ~high & (dense >= rules.sparse_share * np.median(dense[s["density"] > 0]))
    road = opened(~opened(~asphalt, 3), cells(rules.road_width_m))
    blocks = np.select([high & roof, high, at_least(road, rules.road_m2 / side_m**2)], [BUILDING, TREE, ROAD])
    mask = spread(blocks.astype(np.uint8), block)[: shape[0], : shape[1]]
    height = layers["height"]
    mask[~(height >= rules.high_m) & (mask == BUILDING)] = BACKGROUND
    # where cells hold less than one return, one that passed through a crown does not make a hole in it
    sparse = spread(dense * pixel_m**2 < block**2, block)[: shape[0], : shape[1]]
    told = ~sparse | (layers["density"] * pixel_m**2 > 1.5)
    mask[~(height >= rules.high_m) & (mask == TREE) & told] = BACKGROUND
    mask[np.isnan(height)] = VOID
    return mask


def _measure(points, work: Work, rules: LidarRules, image: Image | None) -> Layers:
    """The layers of `measure`."""
    keep_memory()
    r = collect(points, work)
    k, count, lowest = work.block, r.count, r.lowest
    if not count[work.inner()].any():
        raise missed(points, work)
    with ThreadPoolExecutor(1) as second:  # what does not wait for one another is reckoned side by side
        filling = second.submit(gaps, count > 0, work, rules.gap_m)
        blocks = (None if a is None else in_blocks(a, k, np.minimum) for a in (lowest, r.coded if r.ground else None))
        under = spread(find_ground(*blocks, r.ground / len(r), k * work.cell_m, rules), k)
        if k > 1:
            under = ndimage.uniform_filter(under, k | 1, mode="nearest")
        top, sums = _above(r, under, work)
        judging = second.submit(_judged, sums, in_blocks(count, k), in_blocks(top, k, np.maximum), rules)
        inner, filled, source, far = filling.result()
        height, floor, lowest = (filled_from(a, inner, filled, source) for a in (top, under, lowest))
        height = _without_spikes(height, far, k)
        judged = judging.result()
    layers = {"ground": under[inner].copy(), "height": height, "low": lowest - floor}
    if image is not None:
        layers["ndvi"] = spread(_ndvi(image, work.grid), work.split)
    for layer in layers.values():
        layer[far] = np.nan
    layers["density"] = count[inner].astype(np.float32) / np.float32(work.cell_m**2)
    nothing, first = to_blocks(far, k, np.logical_and), work.margin // k
    here = tuple(slice(first, first + n) for n in nothing.shape)
    judged = {name: np.where(nothing, np.float32(np.nan), a[here]).astype(np.float32) for name, a in judged.items()}
    return Layers(layers, judged, work)


def _without_spikes(height: NDArray[np.float32], far: NDArray[np.bool_], k: int) -> NDArray[np.float32]:
    """Cut down, in place, what rises far above all blocks beside it."""
    level = to_blocks(np.where(far, np.inf, height), k, np.maximum)  # beside a void cell nothing is known to be a spike
    beside = opened(level, 3)
    rows, columns = np.nonzero(level > beside + _SPIKE_M)
    for row, column in np.ndindex(k, k):
        at = np.minimum(rows * k + row, height.shape[0] - 1), np.minimum(columns * k + column, height.shape[1] - 1)
        height[at] = np.minimum(height[at], beside[rows, columns])
    return height


def _above(r: Returns, under: NDArray[np.float32], work: Work) -> tuple[NDArray[np.float32], dict[str, NDArray]]:
    """Highest return above the ground of every cell (-inf: none), and sums over blocks.

    The sums: those of `Returns`, returns from above the ground (`high`), their `heights` and squares, and how many of
    them lie less than `_SKIN_M` below the highest of their block (`skin`).
    """
    ground, top = under.ravel(), np.full(under.size, -np.inf, np.float32)
    sums = {name: np.zeros(work.blocks).ravel() for name in ("high", "heights", "squares", "skin")}
    high = []
    for part in r.parts:
        cell = part.cell.astype(np.intp)  # what numpy counts by
        height = part.z - ground.take(cell)
        np.maximum.at(top, cell, height)
        up = np.flatnonzero(height >= _LEAST_M)
        block, height = part.block.take(up).astype(np.intp), height.take(up)
        high.append((block, height))
        by = height.astype(np.float64)
        for name, weight in (("high", 1.0), ("heights", by), ("squares", by * by)):
            np.add.at(sums[name], block, weight)
    top = top.reshape(work.shape)
    skin = in_blocks(top, work.block, np.maximum).ravel() - np.float32(_SKIN_M)
    for block, height in high:
        np.add.at(sums["skin"], block[height > skin.take(block)], 1.0)
    return top, {name: a.reshape(work.blocks) for name, a in (sums | r.sums).items()}


def _bright(intensity: NDArray, returns: NDArray) -> float:
    """Intensity of bright ground, which is mostly grass: the 80th percentile of what returns on the ground have.

    The median would be asphalt itself where yards and car parks prevail. Returns are counted, not blocks: water gives
    few of them, but dazzling ones.
    """
    if not len(intensity):
        return 1.0
    some = max(len(intensity) // 100_000, 1)
    intensity, returns = intensity[::some], returns[::some]
    order = np.argsort(intensity)
    below = np.cumsum(returns[order], dtype=np.float64)
    return float(intensity[order][np.searchsorted(below, 0.8 * below[-1])])


def _judged(sums: dict[str, NDArray], count: NDArray, level: NDArray, rules: LidarRules) -> dict[str, NDArray]:
    """The layers that are judged by blocks with their neighbours; NaN where the file does not tell."""
    unknown = np.full(count.shape, np.nan, np.float32)
    sums = {**sums, "pulses": sums["pulses"] / PULSE, "count": count}  # exact so far
    high, skin, split, echo, pulses, count = (
        sums[name].astype(np.float32) for name in ("high", "skin", "split", "echo", "pulses", "count")
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        scatter = (sums["squares"] - sums["heights"] ** 2 / sums["high"]).astype(np.float32)
        scatter = np.nan_to_num(np.clip(scatter, 0, high - 1))
        freedom = np.maximum(high - 1, 0)
        near, wide = (np.sqrt(box(scatter, n) / np.maximum(box(freedom, n), 0.5)) for n in (1, 2))
        returns = box(count, 1)
        single = returns - box(split, 1)
        multiple = unknown if not split.any() else 1 - single / (single + box(pulses, 1))
        intensity = unknown if not echo.any() else box(echo, 1) / single
        cover = box(high, 1) / returns
    others = box(np.maximum(count - 1, 0), 1)  # the highest of a block is never below itself
    hollow = (others - box(np.maximum(skin - 1, 0), 1) + _DOUBT * rules.hollow_share) / (others + _DOUBT)
    on_ground = (level < 0.5) & np.isfinite(level) & (intensity > 0)
    intensity = intensity / _bright(intensity[on_ground], count[on_ground])
    return {"multiple": multiple, "roughness": wide, "scatter": near, "hollow": hollow, "cover": cover,
            "intensity": intensity}  # fmt: skip


def _ndvi(image: Image, grid: GeoBox) -> NDArray[np.float32]:
    """NDVI of an image with named bands; NaN where both bands are 0 or not finite."""
    if isinstance(image, xr.DataArray):
        if "band" not in image.coords:
            raise ValueError(
                f"the image needs a coordinate `band` with names, it has {', '.join(map(str, image.coords))}"
            )
        pixels, names = image.transpose("band", ...).values, [str(name) for name in image["band"].values]
    else:
        pixels, names = np.asarray(image[0]), list(image[1])
    if pixels.shape != (len(names), *grid.shape) or not {"nir", "red"} <= set(names):
        raise ValueError(f"the image has bands {names} and shape {pixels.shape}, expected nir and red among the bands "
                         f"and pixels (bands, {grid.shape[0]}, {grid.shape[1]}) on the grid")  # fmt: skip
    nir, red = (pixels[names.index(name)].astype(np.float32) for name in ("nir", "red"))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (nir - red) / (nir + red)


def _on_grid(statistics: xr.Dataset, work: Work) -> xr.Dataset:
    """Means over the cells of a pixel, with the grid's coordinates and CRS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some grids lose a parameter in the CF form, which stands beside the WKT
        attrs, coords = dict(statistics.attrs), xr_coords(work.grid, dims=("y", "x"))
    if work.split > 1:
        attrs = {"pixel_m": work.cell_m * work.split, "block": 1}
        known = {name: in_blocks(np.isfinite(a.values), work.split) for name, a in statistics.items()}
        with np.errstate(invalid="ignore"):
            layers = {
                name: in_blocks(np.nan_to_num(a.values), work.split) / known[name] for name, a in statistics.items()
            }
        statistics = xr.Dataset({name: (("y", "x"), a.astype(np.float32)) for name, a in layers.items()})
    code = work.grid.crs.to_epsg() if work.grid.crs is not None else None
    attrs["crs"] = f"EPSG:{code}" if code else str(work.grid.crs)
    return statistics.assign_coords(coords).assign_attrs(attrs)


def _with_rim(roof: NDArray[np.bool_], high: NDArray[np.bool_], height: NDArray, steps: int, step_m: float):
    """Let roofs grow, block by block, over what is as high as they are."""
    for _ in range(steps):
        level = np.pad(np.where(roof, height, np.nan), 1, constant_values=np.nan)
        h, w = height.shape
        beside = [level[i : i + h, j : j + w] for i in range(3) for j in range(3)]
        with np.errstate(invalid="ignore"):
            roof = roof | high & np.logical_or.reduce([np.abs(b - height) <= step_m for b in beside])
    return roof
