"""Masks from maps that exist: coded land-cover rasters and vector maps, laid on an image's grid.

Codes are names, not amounts, so a raster is only ever picked from or counted, never averaged; what the map does not
say is void. Both doors work alike on flipped and rotated grids and across coordinate systems.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import geopandas
import numpy as np
import pandas as pd
import pyproj
import pystac
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize
from rasterio.windows import Window

from nbutils import legend as legends
from nbutils import majority, remote
from nbutils.cards import few
from nbutils.files import SourceError
from nbutils.legend import VOID, Legend
from nbutils.majority import EDGE
from nbutils.vectors import (
    MOST_WIDTH_M,
    Place,
    along,
    areas_of,
    beside,
    bounds_of,
    crs_of,
    read_features,
    reading,
    way_between,
)

MOST_SAMPLES, MOST_PIXELS = 1 << 21, 1 << 24  # points of the grid and pixels of the product held at once
SAMPLES, MOST_STEPS = 10, 256  # points along each side of a grid pixel, at least and at most, that count its area
CONTROL_PX, CONTROL_ERROR = 16, 1e-3  # corners followed exactly are so far apart; error allowed, in product pixels
CHUNK = 1 << 14  # pixels whose points are counted at once: what they need stays in the processor's cache


def _legend(legend: Legend | str) -> Legend:
    return legends.get(legend) if isinstance(legend, str) else legend


Product = Place | pystac.Asset | pystac.Item | tuple[NDArray, GeoBox]
Block = tuple[slice, slice]  # rows and columns of the grid
ClassIds = Callable[[Window], NDArray[np.uint8]]


@dataclass(frozen=True)
class _Product:
    """A coded raster under a grid: where its pixels lie, how a window is read (codes, masked where there are none)."""

    name: str
    grid: GeoBox
    crs: pyproj.CRS
    transform: Affine
    shape: tuple[int, int]
    read: Callable[[Window], NDArray]

    @cached_property
    def way(self) -> pyproj.Transformer:
        """From the grid's CRS to this one."""
        return way_between(crs_of(self.grid), self.crs)

    @cached_property
    def turn(self) -> float:
        """Columns in a full turn round the Earth where columns count longitude, else 0."""
        if not self.crs.is_geographic or self.transform.b or self.transform.d:
            return 0.0
        return abs(2 * np.pi / self.crs.axis_info[0].unit_conversion_factor / self.transform.a)

    def pixels(self, columns: NDArray, rows: NDArray) -> tuple[NDArray, NDArray]:
        """Fractional columns and rows of this raster at those of the grid; NaN where there is no such place."""
        places = self.way.transform(*along(self.grid.transform, columns, rows))
        x, y = (np.where(np.isfinite(place), place, np.nan) for place in places)
        columns, rows = along(~self.transform, x, y)
        if self.turn and (known := columns[np.isfinite(columns)]).size:  # neighbours stay so across the antimeridian
            columns = (columns - known[0] + self.turn / 2) % self.turn + known[0] - self.turn / 2
        return columns, rows

    def cells(self, columns: NDArray, rows: NDArray) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
        """Whole columns and rows, and whether they lie on the raster."""
        columns, rows = columns + EDGE, rows + EDGE
        if self.turn:  # one file counts from -180, another from 0: take the turn round the middle of this one
            start = (self.shape[1] - self.turn) / 2
            columns = (columns - start) % self.turn + start
        inside = (columns >= 0) & (columns < self.shape[1]) & (rows >= 0) & (rows < self.shape[0])
        return np.where(inside, columns, 0).astype(np.intp), np.where(inside, rows, 0).astype(np.intp), inside

    def centres(self, block: Block) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
        """`cells` of the pixel centres of a block, shape (h, w) each."""
        rows, columns = (np.arange(part.start, part.stop) + 0.5 for part in block)
        return self.cells(*self.pixels(*np.meshgrid(columns, rows)))

    def corners(self, block: Block) -> NDArray[np.float64]:
        """`pixels` of the pixel corners of a block, shape (2, h + 1, w + 1).

        The way from one CRS to the other is followed at one corner in `CONTROL_PX` along each side and taken as
        bilinear between them where every second of these would have told the others to `CONTROL_ERROR` (so that the
        true error is about a quarter of it); else, and where some place does not exist, it is followed at all.
        """
        every = [np.arange(part.start, part.stop + 1.0) for part in block]
        steps = [max(min(CONTROL_PX, len(at) // 2), 1) for at in every]  # at least one between the ends, for the check
        some = [np.unique([*at[::step], at[-1]]) for at, step in zip(every, steps, strict=True)]
        few_of_some = [np.unique([*at[::2], at[-1]]) for at in some]
        known = np.stack(self.pixels(*np.meshgrid(some[1], some[0])))
        told = known[:, np.isin(some[0], few_of_some[0])][..., np.isin(some[1], few_of_some[1])]
        if (abs(majority.bilinear(told, few_of_some, some) - known) < CONTROL_ERROR).all():
            return majority.bilinear(known, some, every)
        return np.stack(self.pixels(*np.meshgrid(every[1], every[0])))

    def around(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn fractional columns and rows round the Earth to where their middle is next to the raster's."""
        if self.turn and np.isfinite(places[0]).any():
            middle = (np.nanmin(places[0]) + np.nanmax(places[0])) / 2
            places[0] -= np.floor((middle - (self.shape[1] - self.turn) / 2) / self.turn) * self.turn
        return places

    def ids(self, window: Window, legend: Legend, void: Sequence[int]) -> NDArray[np.uint8]:
        """Class ids of a window, void where the raster is masked or not a number."""
        read = self.read(window)
        codes, known = np.ma.getdata(read), ~np.ma.getmaskarray(read)
        ids = np.full(codes.shape, VOID, np.uint8)
        try:
            if codes.dtype.kind == "f":
                known &= np.isfinite(codes)
                odd = codes[known & ((codes != np.round(codes)) | (abs(codes) > 2**31))]
                if odd.size:
                    raise ValueError(f"{odd[0]} is no code; is this a map of classes?")
                codes = np.where(known, codes, 0).astype(np.int64)
            ids[known] = legend.encode(codes[known], void)
        except ValueError as error:
            raise SourceError(f"{self.name}: {error}; correct the legend or name them in `void`") from None
        return ids


@contextmanager
def _open(product: Product, grid: GeoBox, asset: str) -> Iterator[_Product]:
    """Open a raster of one band with a CRS and a grid."""
    if isinstance(product, tuple):
        codes, own = product
        if codes.shape != tuple(own.shape):
            raise ValueError(f"codes are {codes.shape} but their grid is {tuple(own.shape)} (rows, columns)")
        yield _Product("the codes given", grid, crs_of(own), own.transform, codes.shape, lambda w: codes[w.toslices()])
        return
    href = remote.href_of(product, asset)
    name = remote.plain(href) if remote.is_remote(href) else href

    def open_it(data: rasterio.DatasetReader) -> tuple[int, pyproj.CRS, Affine, tuple[int, int]]:
        roles = zip(data.indexes, data.colorinterp, strict=True)
        bands = [band for band, role in roles if role != ColorInterp.alpha]
        if len(bands) != 1:
            raise SourceError(f"{name}: has {len(bands)} bands, a map of classes has one; extract that")
        if data.crs is None or data.transform.is_identity or not abs(data.transform.determinant) > 0:
            raise SourceError(f"{name}: has no CRS or no grid ({data.crs}, {data.transform[:6]}); write them "
                              "into it, for instance by gdal_edit.py -a_srs EPSG:... -a_ullr ...")  # fmt: skip
        return bands[0], pyproj.CRS.from_wkt(data.crs.to_wkt()), data.transform, data.shape

    with remote.opened(href) as ask:

        def read(window: Window) -> NDArray:
            with reading(name):
                return ask(lambda data: data.read(band, window=window, masked=True))

        with reading(name), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # an error above
            band, crs, transform, shape = ask(open_it)
        yield _Product(name, grid, crs, transform, shape, read)


def from_product(
    product: Product,
    grid: GeoBox,
    *,
    source: Legend | str,
    target: Legend | str,
    mapping: Mapping[str, str | None] | None = None,
    method: Literal["nearest", "majority"] = "nearest",
    void: Sequence[int] = (),
    asset: str = "",
) -> NDArray[np.uint8]:
    """Lay a coded raster (WorldCover, Esri, Dynamic World, ...) on a grid.

    Only the part under the grid is read. A majority is one of area among the classes of the *target* legend, counted
    at 10 x 10 points of a pixel or more, each where it belongs to a thousandth of a product pixel; a pixel more than
    half unknown is void; of equal areas the one at the pixel's centre wins. Where the product is as coarse as the
    grid or coarser, both methods are the same.

    Args:
        product: File or address GDAL opens (one band of codes, integer or float, palette or not), an asset or item
            of a STAC catalogue, or codes (H, W) and their grid. Addresses are signed as `remote.resolve` says.
        grid: Grid of the image.
        source: Legend the product is coded in.
        target: Legend wanted.
        mapping: Target class of every source class, None for void; `legend.CROSSWALKS` when left out.
        method: "nearest" takes what lies at the pixel's centre.
        void: Codes that mean "no label", besides the file's own nodata value and mask.
        asset: Name of the item's asset.

    Returns:
        Class ids of `target`, shape (H, W), uint8, 255 where the product says nothing.

    Raises:
        SourceError: Unreadable, several bands, no CRS, a code that the legend lacks, or the grid lies beside it.
        ValueError: Unknown legend or method, incomplete mapping, or a grid without CRS.
    """
    source, target = _legend(source), _legend(target)
    lookup = legends.crosswalk(source, target, mapping)
    if method not in ("nearest", "majority"):
        raise ValueError(f"unknown method {method!r}; classes are resampled by 'nearest' or 'majority'")
    mask, covered = np.full(tuple(grid.shape), VOID, np.uint8), False
    blocks = [tuple(slice(0, n) for n in grid.shape)]
    with _open(product, grid, asset) as raster:

        def class_ids(window: Window) -> NDArray[np.uint8]:
            return legends.translate(raster.ids(window, source, void), lookup)

        with reading(raster.name):
            _ = raster.way  # a CRS that is no place on Earth fails here
        while blocks:
            block = blocks.pop()
            try:
                found = (_majority if method == "majority" else _nearest)(raster, block, class_ids)
            except _TooMuch:
                blocks += _halves(block)
                continue
            if found is not None:
                mask[block], covered = found, True
        if not covered:
            own = GeoBox(raster.shape, raster.transform, None).extent.boundingbox
            raise beside(raster.name, own, bounds_of(grid, raster.crs), raster.crs)
    return mask


class _TooMuch(Exception):
    """A block needs more memory than allowed, or is not in one piece on the product."""


def _halves(block: Block) -> list[Block]:
    """Cut a block across its longer side."""
    longer = int(np.argmax([part.stop - part.start for part in block]))
    start, stop = block[longer].start, block[longer].stop
    halves = slice(start, (start + stop) // 2), slice((start + stop) // 2, stop)
    return [(half, block[1]) if longer == 0 else (block[0], half) for half in halves]


def _size(block: Block) -> int:
    return int(np.prod([part.stop - part.start for part in block]))


def _nearest(raster: _Product, block: Block, class_ids: ClassIds) -> NDArray[np.uint8] | None:
    """Class ids (h, w) at the pixel centres of a block; None beside the raster."""
    if _size(block) > MOST_SAMPLES:
        raise _TooMuch
    columns, rows, inside = raster.centres(block)
    if not inside.any():
        return None
    left, top = columns.min(where=inside, initial=1 << 40), rows.min(where=inside, initial=1 << 40)
    window = Window(left, top, columns.max() - left + 1, rows.max() - top + 1)  # cells outside are 0
    if window.width * window.height > MOST_PIXELS and _size(block) > 1:
        raise _TooMuch
    at = np.where(inside, rows - top, 0), np.where(inside, columns - left, 0)
    return np.where(inside, class_ids(window)[at], VOID)


def _majority(raster: _Product, block: Block, class_ids: ClassIds) -> NDArray[np.uint8] | None:
    """Class ids (h, w) of the largest area in the pixels of a block; None beside the raster.

    Pixels over cells of one class have that class. In all others points are counted; see `majority.vote`.
    """
    one = _size(block) == 1
    if 8 * _size(block) > MOST_SAMPLES and not one:
        raise _TooMuch
    corners = raster.around(raster.corners(block))
    sides = [np.nanmax(np.hypot(*np.diff(corners, axis=a)), initial=0) for a in (1, 2)]
    if raster.turn and max(sides) > raster.turn / 2 and not one:
        raise _TooMuch  # neighbours on both ends of the map
    if max(sides) <= 1.001:
        return _nearest(raster, block, class_ids)
    four = np.stack([corners[:, i : i - 1 or None, j : j - 1 or None] for i in (0, 1) for j in (0, 1)])
    four = four.reshape(4, 2, -1) + EDGE
    low, high = np.floor(four.min(0)), np.floor(four.max(0))
    past = np.inf if raster.turn else 0  # where columns come round again none lies beside
    there = (high[0] >= -past) & (low[0] < raster.shape[1] + past) & (high[1] >= 0) & (low[1] < raster.shape[0])
    if not there.any():  # nor where a corner is no place
        return None
    four, low, high = four[..., there], low[:, there].astype(np.intp), high[:, there].astype(np.intp)
    reach = (high - low).max(1) + 1
    ids = _cells(raster, low.min(1), high.max(1) + 1 + reach, class_ids, one)  # so many follow on every lowest one
    if ids is None:
        return None
    at = low - low.min(1, keepdims=True)
    base = at[1] * ids.shape[1] + at[0]
    found = ids.ravel()[base]
    mixed = np.flatnonzero(majority.mixed(ids, reach[::-1])[at[1], at[0]])
    finer = [max(int(np.ceil(side - 0.001)), 1) for side in sides]
    steps = [min(n * -(-SAMPLES // n), MOST_STEPS) for n in finer]
    for start in range(0, len(mixed), CHUNK):
        some = mixed[start : start + CHUNK]
        found[some] = majority.vote(ids, base[some], four[..., some] - low[:, some], steps)
    mask = np.full(there.shape, VOID, np.uint8)
    mask[there] = found
    return mask.reshape([part.stop - part.start for part in block])


def _cells(
    raster: _Product, first: NDArray[np.intp], last: NDArray[np.intp], class_ids: ClassIds, whole: bool
) -> NDArray[np.uint8] | None:
    """Class ids of the cells from `first` to before `last` (column, row), void beside the raster; None if all are."""
    (left, top), (right, bottom), width = first.tolist(), last.tolist(), raster.shape[1]
    apart = raster.turn and (left < 0 or right > width) and abs(raster.turn - round(raster.turn)) > 1e-3
    if ((right - left) * (bottom - top) > MOST_PIXELS or apart) and not whole:
        raise _TooMuch
    ids, around, known = np.full((bottom - top, right - left), VOID, np.uint8), round(raster.turn), False
    rows = slice(max(top, 0), min(bottom, raster.shape[0]))
    for turned in (-around, around, 0) if around else (0,):
        columns = slice(max(left - turned, 0), min(right - turned, width))
        if columns.start < columns.stop and rows.start < rows.stop:
            part = ids[rows.start - top : rows.stop - top, columns.start + turned - left : columns.stop + turned - left]
            part[...], known = class_ids(Window.from_slices(rows, columns)), True
    return ids if known else None


def from_vector(
    vectors: Place | geopandas.GeoDataFrame,
    grid: GeoBox,
    *,
    legend: Legend | str,
    column: str,
    classes: Mapping[Hashable, str | None],
    background: str | None = None,
    order: Sequence[str | None] | None = None,
    width_m: float | str | None = None,
    ignore: Collection[Hashable] = (),
    layer: str | None = None,
    where: str | None = None,
) -> NDArray[np.uint8]:
    """Draw a vector map (GeoPackage, GeoJSON, GeoParquet, Shapefile, OSM extract, ...) on a grid.

    Only features whose box meets the grid's are read; broken polygons are repaired; a pixel belongs to the area that
    holds its centre. Points and lines are drawn as wide as `width_m`, with round ends.

    Args:
        vectors: File that GDAL or GeoParquet's reader opens, or features.
        grid: Grid of the image.
        legend: Legend of the mask.
        column: Column whose values tell the class; of an OSM extract also a key among its `other_tags`.
        classes: Class name of every value, None for void; the key "*" stands for all values not named.
        background: Class where nothing is drawn; void when left out.
        order: Class names as they are drawn, later ones on top; the order of `classes` when left out.
        width_m: Width of lines and points in metres on the ground, or the column that holds it.
        ignore: Values whose features are not drawn; None stands for missing values.
        layer: Layer of the file; needed where it has several.
        where: SQL condition on the features, for files that GDAL opens.

    Returns:
        Class ids of `legend`, shape (H, W), uint8.

    Raises:
        SourceError: Unreadable, no CRS, no such column, a value without a class (named with its count), a line
            without a width, or the file lies beside the grid.
        ValueError: A class that `legend` lacks, an incomplete `order`, or a grid without CRS.
    """
    legend, drawn = _legend(legend), list(dict.fromkeys(classes.values()))
    order = drawn if order is None else list(order)
    ids = {name: VOID if name is None else legend.index(name) for name in [*drawn, *order, background]}
    if missing := [name for name in drawn if name not in order]:
        raise ValueError(f"`order` does not say when {few(missing)} is drawn; it holds {few(order)}")
    name = "the features given" if isinstance(vectors, geopandas.GeoDataFrame) else str(vectors)
    pad_m = (MOST_WIDTH_M if isinstance(width_m, str) else width_m or 0) / 2
    columns = list(dict.fromkeys([column, *([width_m] if isinstance(width_m, str) else [])]))
    frame, box = read_features(vectors, name, columns, grid, pad_m, layer, where)
    level = _levels(frame[column], {key: order.index(one) for key, one in classes.items()}, ignore, name)
    widths = pd.to_numeric(frame[width_m], errors="coerce") if isinstance(width_m, str) else width_m
    drawing = {"level": level, "half_m": np.nan if widths is None else widths / 2}
    drawing = geopandas.GeoDataFrame(drawing, index=frame.index, geometry=frame.geometry)[level >= 0]
    mask = np.full(tuple(grid.shape), ids[background], np.uint8)
    areas = areas_of(drawing, box, pad_m, grid, name)
    if len(areas):
        values = [ids[order[one]] for one in areas["level"]]
        rasterize(zip(areas.geometry, values, strict=True), out=mask, transform=grid.transform)
    return mask


def _levels(values: pd.Series, levels: Mapping[Hashable, int], ignore: Collection, name: str) -> NDArray[np.int_]:
    """When each feature is drawn, -1 for never."""
    plain = [v if isinstance(v, Hashable) else str(v) for v in values]
    plain = [None if pd.api.types.is_scalar(v) and pd.isna(v) else v for v in plain]
    known = {v: -1 for v in plain if v in ignore} | {v: levels[v] for v in plain if v in levels}
    if "*" in levels:
        known = {v: levels["*"] for v in plain if v is not None} | known
    if unknown := Counter("missing" if v is None else repr(v) for v in plain if v not in known).most_common():
        raise SourceError(f"{name}: column {values.name!r} holds values without a class: "
                          f"{few((f'{v} x {n}' for v, n in unknown), 12)}; give them one in `classes` or name them in "
                          "`ignore` (None for missing)")  # fmt: skip
    return np.array([known[v] for v in plain], int)
