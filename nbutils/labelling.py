"""Labels without an annotator: from LiDAR returns, from a noisier map, or from a recipe of errors.

`from_lidar` turns returns into statistics on the image's grid and those into four classes by plain rules. Nothing
injects noise here. The errors come with the method: car parks are as flat and dark as roads, roof edges split pulses
as leaves do, low sheds pass for ground, water gives nothing back and stays void.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyproj
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from scipy import ndimage

from nbutils import legend, noise
from nbutils.cards import Inject, Lidar
from nbutils.files import Points, image_shape, read_image, read_mask, read_points
from nbutils.legend import VOID
from nbutils.sources import Dataset, SourceError, Tile, read_exact

BACKGROUND, TREE, BUILDING, ROAD = range(4)  # the order of the legend `autogeo4`


@dataclass(frozen=True)
class LidarRules:
    """Thresholds of the rules; metres, square metres and shares in [0, 1], whatever the units of the file.

    Attributes:
        high_m: Lowest height above the ground of trees and buildings.
        multiple_share: Share of pulses with several returns from which a high cell is leaves.
        rough_m: Departure of the surface from a plane (3 x 3 cells) from which a high cell is leaves.
        building_m2: Smaller groups of building cells become tree, their likeliest origin.
        road_intensity: Mean intensity, relative to that of bright ground, below which low ground is asphalt.
        road_low_m: Greatest height of the lowest return over a road; cars may stand higher above it.
        sparse_share: Ground that returns fewer pulses than this share of the scene's typical density (5 x 5 cells) is
            water or glass, and no road.
        road_width_m: Strips of asphalt narrower than this are dropped (drives, paths, shadows of gaps).
        road_m2: Smaller groups of road cells are dropped.
        gap_m: Cells farther than this from any return stay void.
        windows_m: Widths of the growing windows of the ground filter; the last must exceed the narrow side of the
            largest building.
        slope: Steepest ground that the filter expects, metres per metre.
        step_m: Lowest object the ground filter must remove, and `step_most_m` the most it may ask for.
        step_most_m: See `step_m`.
    """

    high_m: float = 2.0
    multiple_share: float = 0.30
    rough_m: float = 0.75
    building_m2: float = 12.0
    road_intensity: float = 0.56
    road_low_m: float = 0.35
    sparse_share: float = 0.4
    road_width_m: float = 3.0
    road_m2: float = 80.0
    gap_m: float = 2.0
    windows_m: tuple[float, ...] = (3.0, 7.0, 15.0, 31.0, 63.0)
    slope: float = 0.08
    step_m: float = 0.4
    step_most_m: float = 2.5


@dataclass(frozen=True)
class Labels:
    """A mask and the statistics it was made from.

    Attributes:
        mask: Classes of the legend autogeo4, 255 where no return is near; shape (H, W), uint8.
        statistics: Layers on the same grid with coordinates: density, ground, height, low, multiple, intensity,
            roughness.
    """

    mask: NDArray[np.uint8]
    statistics: xr.Dataset


def from_lidar(points: Points, grid: GeoBox, *, rules: LidarRules | None = None) -> Labels:
    """Label a grid from LiDAR returns.

    Args:
        points: Returns, coordinates in metres; they may lie beyond the grid. Class codes are not used.
        grid: Grid to label, as of the image; its CRS must be projected. Points in another CRS are brought to it.
        rules: Thresholds; the defaults suit some four returns to the square metre at 1 m.

    Returns:
        Mask and statistics on `grid`.

    Raises:
        ValueError: The grid has no projected CRS, or no return falls on it.
    """
    rules = rules or LidarRules()
    statistics = measure(points, grid, rules)
    return Labels(apply_rules(statistics, rules), statistics)


def measure(points: Points, grid: GeoBox, rules: LidarRules | None = None) -> xr.Dataset:
    """Rasterise what the rules look at.

    Returns:
        Layers of shape (H, W), float32, NaN where nothing is known: `density` (returns per square metre), `ground`
        (metres), `height` (highest return above the ground, metres), `low` (lowest return above the ground), `multiple`
        (share of pulses with several returns, 3 x 3 cells), `intensity` (over the 80th percentile of the ground),
        `roughness` (departure from a plane, 3 x 3 cells, metres).
    """
    rules = rules or LidarRules()
    cell, pixel_m = _cells(points, grid)
    shape, size = tuple(grid.shape), int(np.prod(grid.shape))
    inside = np.flatnonzero(cell >= 0)
    if not len(inside):
        raise ValueError(f"none of {len(points)} returns falls on the grid {grid}; are both in the right CRS?")
    inside = inside[np.argsort(cell[inside], kind="stable")]  # by cell, so that each cell is one run
    cell, z = cell[inside], points.z[inside]
    starts = np.flatnonzero(np.diff(cell, prepend=-1))
    filled, count = cell[starts], np.bincount(cell, minlength=size).reshape(shape)
    seen = count > 0
    nearest = ndimage.distance_transform_edt(~seen, return_distances=False, return_indices=True)

    def layer(values) -> NDArray[np.float64]:
        """Values of the cells that hold returns, spread to the nearest others."""
        out = np.zeros(size)
        out[filled] = values
        return out.reshape(shape)[tuple(nearest)]

    lowest = _without_pits(layer(np.minimum.reduceat(z, starts)))
    ground = _ground(lowest, pixel_m, rules)
    highest = _without_spikes(layer(np.maximum.reduceat(z, starts)) - ground)
    single = points.number_of_returns[inside] == 1
    first = points.return_number[inside] == 1
    pulses = _sum3(np.bincount(cell[first], minlength=size).reshape(shape))
    several = _sum3(np.bincount(cell[first & ~single], minlength=size).reshape(shape))
    intensity = _sum3(np.bincount(cell[single], points.intensity[inside][single], size).reshape(shape))
    intensity /= np.maximum(_sum3(np.bincount(cell[single], minlength=size).reshape(shape)), 1)
    on_ground = seen & (highest < 0.5) & (intensity > 0)
    # bright ground is mostly grass; the median would be asphalt itself where yards and car parks prevail
    bright = np.percentile(intensity[on_ground], 80) if on_ground.any() else 1.0
    layers = {
        "density": count / pixel_m**2,
        "ground": ground,
        "height": highest,
        "low": lowest - ground,
        "multiple": several / np.maximum(pulses, 1),
        "intensity": intensity / max(bright, 1e-9),
        "roughness": _roughness(highest),
    }
    near = ndimage.distance_transform_edt(~seen) * pixel_m <= rules.gap_m
    rows, columns = (
        np.arange(n) * step + start + step / 2
        for n, step, start in zip(
            shape, (grid.transform.e, grid.transform.a), (grid.transform.f, grid.transform.c), strict=True
        )
    )
    data = {
        name: (("y", "x"), np.where(near | (name == "density"), values, np.nan).astype(np.float32))
        for name, values in layers.items()
    }
    return xr.Dataset(data, coords={"y": rows, "x": columns}, attrs={"crs": _name(grid), "pixel_m": pixel_m})


def apply_rules(statistics: xr.Dataset, rules: LidarRules | None = None) -> NDArray[np.uint8]:
    """Turn statistics into classes of the legend autogeo4; shape (H, W), uint8, 255 where nothing is known."""
    rules, s = rules or LidarRules(), {name: statistics[name].values for name in statistics}
    pixel_m = statistics.attrs["pixel_m"]
    high = s["height"] >= rules.high_m
    leaves = high & ((s["multiple"] >= rules.multiple_share) | (s["roughness"] >= rules.rough_m))
    # roof edges split pulses too: what is only a rim of one or two cells between roof and ground is roof
    roof = _closed(_at_least(high & ~leaves, rules.building_m2 / pixel_m**2))
    core = _opened(leaves, 3)
    rim = leaves & ~ndimage.binary_dilation(core) & ndimage.binary_dilation(roof, np.ones((3, 3)))
    building = high & (roof | rim)
    flat = ~high & (s["low"] <= rules.road_low_m) & (s["intensity"] <= rules.road_intensity)
    dense = ndimage.uniform_filter(s["density"], 5, mode="nearest")
    flat &= dense >= rules.sparse_share * np.median(dense)
    reach = max(int(round(rules.road_width_m / pixel_m)), 1)
    flat = _opened(_closed(flat), reach)
    mask = np.full(high.shape, BACKGROUND, np.uint8)
    mask[_at_least(flat, rules.road_m2 / pixel_m**2)] = ROAD
    mask[high] = TREE
    mask[building] = BUILDING
    mask[np.isnan(s["height"])] = VOID
    return mask


def _cells(points: Points, grid: GeoBox) -> tuple[NDArray[np.intp], float]:
    """Flat cell number of every return (-1 outside the grid) and the side of a cell in metres."""
    if grid.crs is not None and not grid.crs.projected:
        raise ValueError(f"the grid is in {grid.crs}, which counts degrees; reproject the image to a projected CRS")
    x, y, unit = points.x, points.y, 1.0
    if grid.crs is not None:
        target = pyproj.CRS(grid.crs.to_wkt())
        unit = target.axis_info[0].unit_conversion_factor
        if points.crs is not None and not points.crs.equals(target, ignore_axis_order=True):
            x, y = pyproj.Transformer.from_crs(points.crs, target, always_xy=True).transform(x, y)
    to_grid = ~grid.transform
    columns = np.floor(to_grid.a * x + to_grid.b * y + to_grid.c).astype(np.int64)
    rows = np.floor(to_grid.d * x + to_grid.e * y + to_grid.f).astype(np.int64)
    height, width = grid.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return np.where(inside, rows * width + columns, -1), float(abs(grid.transform.a) * unit)


def _name(grid: GeoBox) -> str:
    """Short name of a grid's CRS: its EPSG code where it has one."""
    code = grid.crs.to_epsg() if grid.crs is not None else None
    return f"EPSG:{code}" if code else str(grid.crs)


def _sum3(counts: NDArray) -> NDArray[np.float64]:
    """Sum over 3 x 3 cells; beyond the edge there is nothing."""
    for axis in (0, 1):  # exact for counts, where a running mean would drift below zero
        counts = ndimage.correlate1d(np.asarray(counts, np.float64), np.ones(3), axis, mode="constant")
    return counts


def _opened(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Drop what is narrower than `width` cells, with the scene continued beyond its edge."""
    padded = ndimage.binary_opening(np.pad(mask, width, mode="edge"), np.ones((width, width)))
    return padded[width:-width, width:-width]


def _closed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill gaps of one cell, with the scene continued beyond its edge."""
    return ndimage.binary_closing(np.pad(mask, 2, mode="edge"))[2:-2, 2:-2]


def _without_pits(lowest: NDArray) -> NDArray:
    """Replace single returns from far below (multiple reflections) by a low value of their neighbourhood."""
    around = ndimage.percentile_filter(lowest, 10, size=7)
    return np.where(lowest < around - 0.8, around, lowest)


def _without_spikes(height: NDArray) -> NDArray:
    """Replace single returns from far above (birds) by the median of their neighbours."""
    around = ndimage.median_filter(height, 3)
    return np.where(height > around + 12, around, height)


def _ground(lowest: NDArray, pixel_m: float, rules: LidarRules) -> NDArray[np.float64]:
    """Height of the ground: a progressive morphological filter over the lowest returns.

    Openings with growing windows remove growing objects; a cell that an opening lowers by more than the ground could
    slope over the growth of the window is no ground. The rest is interpolated from the nearest ground and smoothed.
    """
    surface, is_ground, before = lowest, np.ones(lowest.shape, bool), 1.0
    for window in rules.windows_m:
        width = max(int(round(window / pixel_m)) | 1, 3)
        opened = ndimage.grey_opening(surface, size=(width, width), mode="nearest")
        step = min(rules.step_m + rules.slope * (window - before) / 2, rules.step_most_m)
        is_ground &= surface - opened <= step
        surface, before = opened, window
    if not is_ground.any():
        return surface.astype(np.float64)
    nearest = ndimage.distance_transform_edt(~is_ground, return_distances=False, return_indices=True)
    return ndimage.gaussian_filter(lowest[tuple(nearest)].astype(np.float64), 2.0 / pixel_m, mode="nearest")


def _roughness(surface: NDArray) -> NDArray[np.float64]:
    """Root mean square departure from the plane that fits 3 x 3 cells best, in closed form."""
    mean = ndimage.uniform_filter(surface, 3, mode="nearest")
    square = ndimage.uniform_filter(surface * surface, 3, mode="nearest")
    ramp = np.array([-1.0, 0.0, 1.0]) / 2
    means = [ndimage.uniform_filter1d(surface, 3, axis=1 - a, mode="nearest") for a in (0, 1)]
    slopes = [ndimage.correlate1d(mean_, ramp, a, mode="nearest") for a, mean_ in enumerate(means)]
    return np.sqrt(np.clip(square - mean**2 - sum(s * s for s in slopes) * 2 / 3, 0, None))


def _at_least(mask: NDArray[np.bool_], cells: float) -> NDArray[np.bool_]:
    """Keep connected groups of at least so many cells."""
    groups, _ = ndimage.label(mask)
    keep = np.bincount(groups.ravel()) >= cells
    keep[0] = False
    return keep[groups]


def noisy_mask(dataset: Dataset, tile: Tile) -> NDArray[np.uint8]:
    """The noisy mask of a tile, by the card's `noisy` part.

    Injected errors are drawn from a generator seeded by the recipe's seed and the tile's name, so that a tile has the
    same errors in whatever order tiles are asked for.

    Returns:
        Classes of `dataset.noisy_legend`, void 255; shape (H, W) as the image.

    Raises:
        SourceError: The tile has no noisy source, or an image without a grid is to be labelled from LiDAR.
    """
    how = dataset.card.noisy
    if isinstance(how, Inject):
        key = hashlib.sha256(tile.name.encode()).digest()[:16]
        rng = np.random.default_rng([how.seed, *np.frombuffer(key, np.uint32).tolist()])
        exact = read_exact(dataset, tile)
        return noise.RECIPES[how.recipe].apply(exact, dataset.exact_legend, rng, how.strength)[0]
    if tile.noisy is None:
        raise SourceError(f"{tile.name}: has no file for its noisy mask; the card's `noisy` part finds none")
    if isinstance(how, Lidar):
        grid = read_image(tile.image)[1]
        if grid is None:
            raise SourceError(f"{tile.image}: has no CRS and transform, so LiDAR returns cannot be laid on it")
        return from_lidar(read_points(tile.noisy), grid).mask
    return read_mask(tile.noisy, how, legend.get(how.legend), shape=image_shape(tile.image))
