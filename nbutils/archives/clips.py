"""Clips: what of a raster or point file, here or on a server, falls on a grid; and images written as COG.

Images are interpolated, class maps only ever take the nearest or the most frequent class, and 0 stands for no data.
"""

import struct
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import laspy
import lazrs
import numpy as np
import pyproj
import rasterio
import rasterio.shutil
from laspy.copc import Bounds, CopcReader
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window, from_bounds

from nbutils import guarded, remote
from nbutils.cards import few
from nbutils.files import SourceError


def open_packed(path: Path) -> rasterio.DatasetReader:
    """Open a raster, or the one raster in a zip, where it lies.

    What is read of a zip is unpacked on the way, forwards: read large ones from the north to the south.
    """
    where = str(path)
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                inside = [name for name in archive.namelist() if name.lower().endswith((".img", ".tif"))]
        except (zipfile.BadZipFile, OSError, struct.error) as error:
            raise SourceError(f"{path}: cannot be unpacked: {error}; remove it and fetch it again") from None
        if len(inside) != 1:
            raise SourceError(
                f"{path}: holds {few(inside) or 'no raster'}; expected one .img or .tif; remove it and fetch it again"
            )
        where = f"/vsizip/{{{path}}}/{inside[0]}"
    try:
        return guarded.open_raster(where)
    except RasterioError as error:
        raise SourceError(f"{path}: cannot be read as a raster: {error}; remove it and fetch it again") from None


def _part(data: rasterio.DatasetReader, grid: GeoBox, margin_px: int = 3) -> Window | None:
    """The part of a raster under a grid with a margin, in whole pixels; None where they do not meet."""
    if data.crs is None:
        raise SourceError(f"{remote.plain(data.name)}: has no CRS; it cannot be laid on a grid")
    box = transform_bounds(grid.crs.to_wkt(), data.crs, *grid.extent.boundingbox)
    near = from_bounds(*box, data.transform)
    rows = np.clip([near.row_off - margin_px, near.row_off + near.height + margin_px], 0, data.height)
    columns = np.clip([near.col_off - margin_px, near.col_off + near.width + margin_px], 0, data.width)
    (top, bottom), (left, right) = ((int(np.floor(a)), int(np.ceil(b))) for a, b in (rows, columns))
    return Window(left, top, right - left, bottom - top) if bottom > top and right > left else None


def _pixels(data: rasterio.DatasetReader, bands: Sequence[int], window: Window) -> NDArray:
    """Pixels (B, h, w) of a part, 0 where the file has no data."""
    pixels = data.read(list(bands), window=window)
    if data.nodata is not None:
        pixels[pixels == data.nodata] = 0
    return pixels


def read_window(data: rasterio.DatasetReader, grid: GeoBox, bands: Sequence[int], method: Resampling) -> NDArray:
    """Bring an open raster to a grid.

    Returns:
        Pixels (B, H, W) in the raster's type, 0 where it has no data. By `Resampling.mode`, a pixel that lies for
        the most part where there is no data has none.
    """
    out = np.zeros((len(bands), *grid.shape), data.dtypes[bands[0] - 1])
    if (window := _part(data, grid)) is None:
        return out
    # of a class map 0 is a class like the others, so that no single labelled pixel outvotes a hole around it
    hole = {} if method in (Resampling.mode, Resampling.nearest) else {"src_nodata": 0, "dst_nodata": 0}
    here = {"src_transform": data.window_transform(window), "src_crs": data.crs}
    there = {"dst_transform": grid.transform, "dst_crs": grid.crs.to_wkt()}
    reproject(_pixels(data, bands, window), out, **here, **there, resampling=method, **hole)
    return out


def mosaic(
    hrefs: Iterable[tuple[str, int]], grid: GeoBox, bands: Sequence[int], method: Resampling = Resampling.bilinear
) -> NDArray:
    """Bring rasters to a grid; at each pixel the first that has data counts.

    Args:
        hrefs: Paths or addresses, each with a number to subtract from its data.
        grid: The grid.
        bands: Band numbers, from 1.
        method: Bilinear for images, nearest or mode for class maps.

    Returns:
        Pixels (B, H, W), 0 where none has data.
    """
    out = None
    for href, offset in hrefs:
        new = remote.read_raster(href, lambda data: read_window(data, grid, bands, method))
        if offset:  # what has data keeps data: 1 is the least
            new = np.where(new > 0, np.maximum(new.astype(np.int64) - offset, 1), 0).astype(new.dtype)
        out = new if out is None else np.where((out == 0).all(axis=0), new, out)
        if (out != 0).any(axis=0).all():
            break
    return out


def write_image(path: Path, pixels: NDArray, grid: GeoBox, bands: Sequence[str], *, classes: bool = False) -> None:
    """Write an image (B, H, W), or a map of class codes, as a COG with named bands in which 0 is no data."""
    profile = {"driver": "GTiff", "dtype": pixels.dtype, "count": len(pixels), "height": grid.shape[0], "nodata": 0,
               "width": grid.shape[1], "crs": grid.crs.to_wkt(), "transform": grid.transform,
               "photometric": "minisblack", "alpha": "unspecified"}  # fmt: skip
    with MemoryFile() as memory:
        with memory.open(**profile) as data:
            data.write(pixels)
            data.descriptions = tuple(bands)
            data.colorinterp = [getattr(ColorInterp, name, ColorInterp.undefined) for name in bands]
        with memory.open() as data:
            how = {
                "compress": "deflate",
                "blocksize": "256",
                "overview_resampling": "nearest" if classes else "average",
            }
            rasterio.shutil.copy(data, path, driver="COG", predictor="no" if classes else "2", **how)


def copy_window(href: str, grid: GeoBox, path: Path) -> None:
    """Write the part of a class map under a grid as it is, on its own grid and with its own codes."""

    def read(data: rasterio.DatasetReader) -> tuple[NDArray, GeoBox]:
        if (window := _part(data, grid)) is None:
            raise SourceError(f"{remote.plain(href)}: does not reach the area {grid.extent.boundingbox}")
        return _pixels(data, [1], window), GeoBox(
            (window.height, window.width), data.window_transform(window), data.crs
        )

    pixels, own = remote.read_raster(href, read)
    write_image(path, pixels, own, ("class",), classes=True)


def copy_points(hrefs: Sequence[str], grid: GeoBox, path: Path, margin_m: float) -> int:
    """Write the returns over a grid and `margin_m` around it as LAZ, in the CRS and the precision of the first file.

    Of COPC only the parts in question are fetched; other LAS and LAZ files are read through.

    Returns:
        Number of returns; 0 and no file when there are none.

    Raises:
        SourceError: a file cannot be read, tells no CRS, or has heights in another unit than the first.
    """
    number, writer, first = 0, None, None
    try:
        for href in hrefs:
            for crs, points in _returns(href, grid, margin_m):
                first = first or crs
                if writer is None:
                    header = laspy.LasHeader(version="1.4", point_format=points.point_format.id)
                    header.scales, header.offsets = points.scales, points.offsets
                    header.add_crs(crs)
                    writer = laspy.open(path, "w", header=header, laz_backend=laspy.LazBackend.Lazrs)
                record = laspy.ScaleAwarePointRecord.zeros(len(points), header=writer.header)
                shared = set(record.point_format.dimension_names) & set(points.point_format.dimension_names)
                for name in shared - {"X", "Y", "Z"}:
                    record[name] = points[name]
                record.x, record.y = _moved(points, crs, first, href)
                record.z = points.z
                writer.write_points(record)
                number += len(points)
    finally:
        if writer is not None:
            writer.close()
    return number


def _moved(points: laspy.ScaleAwarePointRecord, crs: pyproj.CRS, to: pyproj.CRS, href: str) -> tuple[NDArray, NDArray]:
    """Return x and y of returns in another CRS, such as that of the neighbouring zone."""
    if crs == to:
        return points.x, points.y
    units, wanted = ([axis.unit_name for axis in one.axis_info] for one in (crs, to))
    if units != wanted:
        told = f"is in {crs.name} ({', '.join(units)}), the first file in {to.name} ({', '.join(wanted)})"
        raise SourceError(f"{remote.plain(href)}: {told}; take files of one CRS")
    way = pyproj.Transformer.from_crs(crs.to_2d(), to.to_2d(), always_xy=True)
    return way.transform(np.asarray(points.x), np.asarray(points.y))


def _returns(href: str, grid: GeoBox, margin_m: float) -> Iterator[tuple[pyproj.CRS, laspy.ScaleAwarePointRecord]]:
    """The CRS of a file and its returns around a grid, in one piece or in chunks."""
    try:
        with remote.open_ranges(href) as file:
            header = laspy.LasHeader.read_from(file)
            if (crs := header.parse_crs()) is None:
                raise SourceError(f"{remote.plain(href)}: tells no CRS; its returns cannot be laid on a grid")
            unit = pyproj.CRS(grid.crs.to_wkt()).axis_info[0].unit_conversion_factor
            around = grid.extent.buffer(margin_m / unit).boundingbox
            west, south, east, north = transform_bounds(grid.crs.to_wkt(), crs.to_2d().to_wkt(), *around)
            file.seek(0)
            if any(vlr.user_id == "copc" for vlr in header.vlrs):
                found = CopcReader(file).query(Bounds(np.array([west, south]), np.array([east, north])))
                if len(found):
                    yield crs, found
                return
            with laspy.open(file, closefd=False) as whole:
                for chunk in whole.chunk_iterator(1_000_000):
                    x, y = np.asarray(chunk.x), np.asarray(chunk.y)
                    inside = (x >= west) & (x <= east) & (y >= south) & (y <= north)
                    if inside.any():
                        yield crs, chunk[inside]
    except SourceError:
        raise
    except (laspy.LaspyException, lazrs.LazrsError, OSError, ValueError, RuntimeError, EOFError) as error:
        raise SourceError(f"{remote.plain(href)}: cannot be read as LAS, LAZ or COPC: {remote.plain(error)}") from None
