"""Cells: returns laid on a grid, and what rasters of them are made of.

Returns are collected on *cells*, the pixels of the grid asked for, or parts of them where they are wider than 1.25 m.
What needs several returns is reckoned on *blocks* of cells about a metre wide, on every grid alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import pyproj
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError
from scipy import ndimage

from nbutils.cards import few
from nbutils.files import OutsideError, SourceError
from nbutils.lidar.points import CHUNK, Points, iter_points, read_crs

Source = Points | str | Path | Iterable[str | Path]
_CODE_GROUND, _CODES_NOISE = 2, (7, 18)  # class codes of the ASPRS; no other is looked at
_HEARD = ~np.isin(np.arange(256), _CODES_NOISE)  # by class code
_MARGIN_M = 32.0
PULSE = 360360  # divisible by 1 .. 15: a return's share of its pulse as a whole number makes sums exact in any order
_PART_OF_PULSE = np.array([0.0] + [PULSE // n for n in range(1, 16)] + [PULSE // 15] * 240)


@dataclass(frozen=True)
class Work:
    """The grids at work.

    Attributes:
        grid: Grid asked for; each of its pixels is split into `split` x `split` cells.
        split: Cells along a pixel.
        block: Cells along a block.
        margin: Cells of margin on every side, whole blocks.
        shape: Cells with the margin, whole blocks.
        cell_m: Side of a cell in metres.
        unit_m: Metres to the unit of the grid's CRS.
    """

    grid: GeoBox
    split: int
    block: int
    margin: int
    shape: tuple[int, int]
    cell_m: float
    unit_m: float

    @classmethod
    def of(cls, grid: GeoBox) -> Work:
        """Plan the work on a grid; ValueError if it is not in a projected CRS or not of square pixels."""
        if grid.crs is not None and not grid.crs.projected:
            raise ValueError(f"the grid is in {grid.crs}, which counts degrees; reproject the image to a projected CRS")
        unit_m = 1.0 if grid.crs is None else grid.crs.proj.axis_info[0].unit_conversion_factor
        a, b, _, d, e, _ = grid.transform[:6]
        across, down = np.hypot(a, d) * unit_m, np.hypot(b, e) * unit_m
        if abs(across - down) > 0.02 * down or abs(a * b + d * e) * unit_m**2 > 0.02 * across * down:
            raise ValueError(f"pixels are square, got {across:.3g} x {down:.3g} m or skewed; resample the image")
        split = max(int(np.ceil(across / 1.25)), 1)
        cell_m = float(across) / split
        block = max(int(round(1 / cell_m)), 1)
        margin = int(np.ceil(_MARGIN_M / (block * cell_m))) * block
        shape = tuple(-(-n * split // block) * block + 2 * margin for n in grid.shape)
        return cls(grid, split, block, margin, shape, cell_m, unit_m)

    def inner(self, rim: int = 0) -> tuple[slice, slice]:
        """The cells of the grid itself, and `rim` more on every side."""
        return tuple(slice(self.margin - rim, self.margin + n * self.split + rim) for n in self.grid.shape)

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of blocks, with the margin."""
        return self.shape[0] // self.block, self.shape[1] // self.block

    @property
    def to_cells(self) -> Affine:
        """From the grid's coordinates to column and row of cells."""
        return Affine.translation(self.margin, self.margin) * Affine.scale(self.split) * ~self.grid.transform

    def placing(self, crs: pyproj.CRS | None) -> tuple[Callable, tuple[float, float, float, float] | None]:
        """How points of a CRS come to columns and rows, and the bounds of the work there (None: unknown).

        Over the few kilometres of a grid one CRS is an affine map of another, nearly: where that holds to a fiftieth
        of a metre it saves the transformation point by point.
        """
        height, width = self.shape
        columns, rows = (a.ravel() for a in np.meshgrid(np.linspace(0, width, 9), np.linspace(0, height, 9)))
        x, y = ~self.to_cells * (columns, rows)
        to_cells = self.to_cells
        if crs is not None and self.grid.crs is not None and not crs.equals(self.grid.crs.proj, ignore_axis_order=True):
            try:
                there = pyproj.Transformer.from_crs(crs, self.grid.crs.proj, always_xy=True)
                x, y = there.transform(x, y, direction="INVERSE")
            except ProjError as error:
                raise ValueError(f"no way from {crs.name} to the grid's {self.grid.crs}: {error}") from None
            if not np.isfinite([x, y]).all():
                return lambda px, py: to_cells * there.transform(px, py), None
            centre = x.mean(), y.mean()
            terms = np.c_[x - centre[0], y - centre[1], np.ones(len(x))]
            fit = np.linalg.lstsq(terms, np.c_[columns, rows], rcond=None)[0].T
            if np.abs(terms @ fit.T - np.c_[columns, rows]).max() * self.cell_m > 0.02:
                return lambda px, py: to_cells * there.transform(px, py), (x.min(), y.min(), x.max(), y.max())
            to_cells = Affine(*fit.ravel()) * Affine.translation(-centre[0], -centre[1])
        return lambda px, py: _affine(to_cells, px, py), (x.min(), y.min(), x.max(), y.max())


@dataclass(frozen=True)
class Part:
    """Some returns on the cells, 12 bytes each, whose pulses and codes are forgotten.

    Attributes:
        cell: Flat number of the cell.
        block: Flat number of its block.
        z: Height in metres.
    """

    cell: NDArray[np.int32]
    block: NDArray[np.int32]
    z: NDArray[np.float32]


class Returns:
    """All returns on the cells, and what is reckoned from them without the ground.

    Attributes:
        parts: The returns.
        count: Returns of every cell; shape of the work, as `lowest` and `coded`.
        lowest: Lowest return of every cell, metres; inf where there is none.
        coded: The same of returns that the file calls ground.
        ground: How many these are.
        sums: Over blocks, shape (blocks,): returns of pulses with several (`split`) and their `pulses` in units of
            1 / `PULSE`; intensity of the other returns (`echo`).
    """

    def __init__(self, work: Work) -> None:
        self.work, self.parts, self.ground = work, [], 0
        self.count = np.zeros(work.shape, np.int32)
        self.lowest, self.coded = (np.full(work.shape, np.inf, np.float32) for _ in range(2))
        self.sums = {name: np.zeros(work.blocks[0] * work.blocks[1]) for name in ("split", "pulses", "echo")}

    def __len__(self) -> int:
        return sum(len(part.cell) for part in self.parts)

    def add(self, points: Points, place: Callable) -> None:
        """Lay returns on the cells; noise and what lies elsewhere is left out."""
        rows, columns, z, of, intensity, ground = _used(points, place, self.work)
        k, across = self.work.block, self.work.shape[1]
        cell = rows * np.int32(across) + columns
        block = cell if k == 1 else rows // np.int32(k) * np.int32(across // k) + columns // np.int32(k)
        self.parts.append(Part(cell, block, z))
        at, block = cell.astype(np.intp), block.astype(np.intp)  # what numpy counts by
        np.add.at(self.count.ravel(), at, np.int32(1))
        np.minimum.at(self.lowest.ravel(), at, z)
        if ground is not None and ground.any():
            self.ground += np.count_nonzero(ground)
            np.minimum.at(self.coded.ravel(), at, np.where(ground, z, np.float32(np.inf)))
        split = np.flatnonzero(of > 1) if of is not None else []
        if len(split):
            there = block.take(split)
            np.add.at(self.sums["split"], there, 1.0)
            np.add.at(self.sums["pulses"], there, _PART_OF_PULSE.take(of.take(split)))
        if intensity is not None:
            echo = intensity.astype(np.float64)
            echo[split] = 0
            np.add.at(self.sums["echo"], block, echo)


def collect(points: Source, work: Work) -> Returns:
    """Lay returns on the cells; noise and what lies elsewhere is left out.

    Raises:
        ValueError: No return falls there.
        SourceError: The same of files, or a file that cannot be read.
    """
    returns = Returns(work)
    if isinstance(points, Points):
        place = work.placing(points.crs)[0]
        for i in range(0, len(points), CHUNK):
            returns.add(points[i : i + CHUNK], place)
    else:
        for path in _paths(points):
            try:
                place, bounds = work.placing(read_crs(path))
            except SourceError:
                raise
            except ValueError as error:
                raise SourceError(f"{path}: {error}; correct the CRS of the file or of the image") from None
            for part in iter_points(path, bounds=bounds):
                returns.add(part, place)
    if not len(returns):
        raise missed(points, work)
    return returns


def missed(points: Source, work: Work) -> ValueError:
    """The error that no return falls on the grid."""
    where = f"no return falls on the grid {tuple(work.grid.extent.boundingbox)} of {work.grid.crs}"
    if isinstance(points, Points):
        return ValueError(f"{where}; are the points and the grid in the right CRS?")
    names = [f"{path}{'' if read_crs(path) else ' (no CRS: taken for that of the grid)'}" for path in _paths(points)]
    return OutsideError(f"{few(names)}: {where}; correct the CRS of the file or of the image, or take another file")


def _paths(points: str | Path | Iterable[str | Path]) -> list[Path]:
    return [Path(path) for path in ([points] if isinstance(points, str | Path) else points)]


def _affine(to: Affine, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """Columns and rows; the terms that are 0 on a grid along its axes are not reckoned."""
    columns, rows = to.a * x, to.e * y
    if to.b or to.d:
        columns, rows = columns + to.b * y, rows + to.d * x
    columns += to.c
    rows += to.f
    return columns, rows


def _used(points: Points, place: Callable, work: Work) -> tuple[NDArray | None, ...]:
    """Row, column, height, returns of the pulse, intensity and whether it is ground of what falls on the work."""
    columns, rows = place(points.x, points.y)
    height, width = work.shape
    use = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height) & np.isfinite(points.z)
    codes = points.classification
    if codes is not None:
        use &= _HEARD.take(codes)
    z = points.z if points.crs is not None else points.z * work.unit_m
    with np.errstate(invalid="ignore"):  # what is far away or nowhere has no number, and is left out
        got = rows.astype(np.int32), columns.astype(np.int32), z.astype(np.float32), points.number_of_returns
    got += points.intensity, None if codes is None else codes == _CODE_GROUND
    return got if use.all() else tuple(a if a is None else a[use] for a in got)


def gaps(seen: NDArray[np.bool_], work: Work, gap_m: float):
    """Where the gaps between returns are filled from.

    Returns:
        The slices of the grid among the cells, the cells of the grid to be filled (rows, columns), the cells of the
        whole work to fill them from, and which cells of the grid stay empty.
    """
    reach = min(int(gap_m / work.cell_m + 1e-6), work.margin)
    inner, around, across = work.inner(), work.inner(reach), work.shape[1]
    near = window(seen[around], 2 * reach + 1, np.maximum)[tuple(slice(reach, n - reach) for n in seen[around].shape)]
    far = ~seen[inner]
    left = np.ravel_multi_index(tuple(n + work.margin for n in np.nonzero(near & far)), work.shape)
    steps = np.stack(np.mgrid[-reach : reach + 1, -reach : reach + 1], axis=-1).reshape(-1, 2)
    filled, source, flat = [], [], seen.ravel()
    for row, column in sorted(steps[1:].tolist(), key=lambda at: np.hypot(*at)):  # the nearest first
        if np.hypot(row, column) * work.cell_m > gap_m + 1e-9:
            break
        there = left + row * across + column
        found = flat[there]
        filled.append(left[found])
        source.append(there[found])
        left = left[~found]
    filled, source = (np.concatenate(a) if a else np.zeros(0, int) for a in (filled, source))
    filled = tuple(n - work.margin for n in np.unravel_index(filled, work.shape))
    far[filled] = False
    return inner, filled, source, far


def filled_from(cells: NDArray[np.float32], inner, filled, source) -> NDArray[np.float32]:
    """Cut a layer to the grid and fill its gaps."""
    out = cells[inner].copy()
    out[filled] = cells.ravel()[source]
    return out


def in_blocks(cells: NDArray, side: int, how: np.ufunc = np.add) -> NDArray:
    """Reduce blocks of `side` x `side` cells by a ufunc, a sum unless told otherwise; the shape is whole blocks."""
    if side == 1:
        return cells
    cells = cells.astype(np.float32) if cells.dtype == bool else cells
    rows = reduce(how, [cells[i::side] for i in range(side)])
    return reduce(how, [rows[:, i::side] for i in range(side)])


def spread(blocks: NDArray, side: int) -> NDArray:
    """Give every cell the value of its block."""
    if side == 1:
        return blocks
    (height, width), out = blocks.shape, np.empty((blocks.shape[0], side, blocks.shape[1], side), blocks.dtype)
    for i in range(side):  # twice as fast as `repeat`
        out[:, 0, :, i] = blocks
    out[:, 1:] = out[:, :1]
    return out.reshape(height * side, width * side)


def window(cells: NDArray, width: int, how: np.ufunc, mirrored: bool = False) -> NDArray:
    """Least or greatest value (np.minimum, np.maximum) of square windows, the scene continued beyond its edge.

    Windows are put together from two of about half their width, which beats a running minimum. A window of even width
    reaches one cell farther down and right, or up and left if `mirrored`.
    """
    before = width // 2 if mirrored else (width - 1) // 2
    for axis in (0, 1):
        part, size = _continued(cells, before, width - 1 - before, axis), 1
        while size < width:
            step = min(size, width - size)
            part = how(part[:-step], part[step:]) if axis == 0 else how(part[:, :-step], part[:, step:])
            size += step
        cells = part
    return cells


def _continued(cells: NDArray, before: int, after: int, axis: int) -> NDArray:
    """Repeat the first and the last row (axis 0) or column; `numpy.pad` takes several times as long."""
    shape = list(cells.shape)
    shape[axis] += before + after
    out = np.empty(shape, cells.dtype)
    along, source = (out, cells) if axis == 0 else (out.T, cells.T)
    along[:before], along[before : len(along) - after], along[len(along) - after :] = source[:1], source, source[-1:]
    return out


def opened(cells: NDArray, width: int) -> NDArray:
    """Morphological opening: of a mask, drop what is narrower than `width`; of a surface, cut it down."""
    return window(window(cells, width, np.minimum), width, np.maximum, mirrored=True)


def at_least(mask: NDArray[np.bool_], cells: float) -> NDArray[np.bool_]:
    """Keep connected groups of at least so many cells, and those that the edge cuts."""
    groups, count = ndimage.label(mask)
    keep = np.bincount(groups.ravel(), minlength=count + 1) >= cells
    for side in (groups[0], groups[-1], groups[:, 0], groups[:, -1]):
        keep[side] = True
    keep[0] = False
    return keep[groups]


def box(blocks: NDArray, reach: int) -> NDArray:
    """Sum over (2 reach + 1)^2 blocks; beyond the edge there is nothing. Exact for counts, unlike a running mean."""
    h, w = blocks.shape
    wide = np.pad(blocks, reach)
    wide = sum(wide[i : i + h] for i in range(1, 2 * reach + 1)) + wide[:h]
    return sum(wide[:, i : i + w] for i in range(1, 2 * reach + 1)) + wide[:, :w]


def to_blocks(cells: NDArray, side: int, how: np.ufunc | None) -> NDArray:
    """Reduce blocks of cells (None: which are of one value); those cut by the edge are continued beyond it."""
    if side == 1 or how is None:
        return cells[::side, ::side]
    lacking = [(0, -n % side) for n in cells.shape]
    return in_blocks(np.pad(cells, lacking, mode="edge") if np.any(lacking) else cells, side, how)
