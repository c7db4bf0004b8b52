"""Files: images, masks and LiDAR points, read from and written to public formats.

A hole in any file is void, never class 0; a damaged file is an error that names it, never skipped in silence.
"""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import laspy
import lazrs
import numpy as np
import pyproj
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from PIL import Image, UnidentifiedImageError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from nbutils import legend as legends
from nbutils.cards import Masks, few
from nbutils.legend import VOID, Legend

PLAIN = {".jpg", ".jpeg", ".png", ".bmp"}  # pictures without a grid, read through pillow


class SourceError(ValueError):
    """A file cannot be read or does not hold what the card says; the message names file and remedy."""


def _unreadable(path: Path, error: Exception) -> SourceError:
    if not path.exists():
        return SourceError(f"{path}: no such file")
    size = path.stat().st_size
    return SourceError(f"{path}: cannot be read ({size} bytes): {error}; fetch or write the file again")


def _open_plain(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
        return picture
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None


def _read_grid(path: Path, read) -> Any:
    """Open a raster with rasterio, quiet about a missing grid, and turn read errors into `SourceError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as data:
                return read(data)
    except (RasterioError, OSError) as error:
        raise _unreadable(path, error.__cause__ or error) from None


def _geobox(data: rasterio.DatasetReader) -> GeoBox | None:
    if data.crs is None and data.transform.is_identity:
        return None
    return GeoBox(data.shape, data.transform, data.crs)


def _image_bands(data: rasterio.DatasetReader) -> tuple[list[int], NDArray[np.bool_]]:
    """Bands that are image, and where they have data, (H, W).

    GDAL marks the fourth of four 8-bit bands as alpha unless told otherwise, also where it is near infrared; so a
    band marked alpha is taken as one only if it holds nothing but fully transparent and fully opaque.
    """
    roles = zip(data.indexes, data.colorinterp, strict=True)
    alpha = next((band for band, role in roles if role == rasterio.enums.ColorInterp.alpha), None)
    if alpha is None:
        return list(data.indexes), data.dataset_mask() > 0
    values = data.read(alpha)
    top = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1
    if ((values == 0) | (values == top)).all():
        return [band for band in data.indexes if band != alpha], values > 0
    valid = np.ones(data.shape, dtype=bool) if data.nodata is None else (data.read() != data.nodata).any(axis=0)
    return list(data.indexes), valid


def image_shape(path: Path) -> tuple[int, int]:
    """Return (H, W) of an image without reading its pixels."""
    if Path(path).suffix.lower() in PLAIN:
        try:
            with Image.open(path) as picture:
                return picture.height, picture.width
        except (OSError, UnidentifiedImageError) as error:
            raise _unreadable(Path(path), error) from None
    return _read_grid(Path(path), lambda data: data.shape)


def read_image(path: Path, bands: Sequence[int] | None = None) -> tuple[NDArray, GeoBox | None]:
    """Read an image.

    Args:
        path: GeoTIFF / COG or any raster of GDAL, or an ordinary picture (JPEG, PNG).
        bands: Band numbers of the file, from 1; all but an alpha band when left out.

    Returns:
        Pixels (B, H, W) in the file's own type, 0 where the file has no data (see `read_valid`), and the
        grid, or None when the file has none.

    Raises:
        SourceError: the file is missing, truncated or lacks a band.
    """
    path = Path(path)
    if path.suffix.lower() in PLAIN and (picture := _open_plain(path)).mode in ("L", "P", "RGB", "RGBA"):
        if picture.mode != "L":
            picture = picture.convert("RGB")
        pixels, geobox = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1), None
        wanted = list(range(1, len(pixels) + 1) if bands is None else bands)
        if wrong := [b for b in wanted if not 1 <= b <= len(pixels)]:
            raise SourceError(f"{path}: has bands 1..{len(pixels)}, asked for {wrong}")
        return np.ascontiguousarray(pixels[[b - 1 for b in wanted]]), geobox

    def read(data: rasterio.DatasetReader) -> tuple[NDArray, GeoBox | None]:
        own, valid = _image_bands(data)
        wanted = own if bands is None else list(bands)
        if wrong := [b for b in wanted if b not in data.indexes]:
            raise SourceError(f"{path}: has bands 1..{data.count}, asked for {wrong}")
        pixels, holes = data.read(wanted), ~valid
        if pixels.dtype.kind == "f":
            holes |= ~np.isfinite(pixels).all(axis=0)
        pixels[:, holes] = 0
        return pixels, _geobox(data)

    return _read_grid(path, read)


def read_valid(path: Path) -> NDArray[np.bool_]:
    """Return where an image has data, shape (H, W): nodata, alpha 0 and NaN are False."""
    path = Path(path)
    if path.suffix.lower() in PLAIN:
        picture = _open_plain(path)
        transparent = picture.has_transparency_data
        return np.asarray(picture.convert("RGBA").getchannel("A") if transparent else picture.convert("L")) > (
            0 if transparent else -1
        )

    def read(data: rasterio.DatasetReader) -> NDArray[np.bool_]:
        bands, valid = _image_bands(data)
        if np.dtype(data.dtypes[0]).kind == "f":
            valid &= np.isfinite(data.read(bands)).all(axis=0)
        return valid

    return _read_grid(path, read)


def _mask_raw(path: Path, colour: bool) -> tuple[NDArray, int | None, NDArray | None]:
    """Raw values of a mask file: (H, W) codes or (H, W, 3) colours, its nodata code, and its holes."""
    if path.suffix.lower() in PLAIN:
        picture = _open_plain(path)
        if colour:
            return np.asarray(picture.convert("RGB")), None, None
        if picture.mode not in ("1", "L", "P", "I", "I;16"):
            raise SourceError(f"{path}: is a {picture.mode} picture, codes need one band; did you mean coding: colour?")
        return np.asarray(picture).astype(np.int32), None, None

    def read(data: rasterio.DatasetReader) -> tuple[NDArray, int | None, NDArray | None]:
        bands, valid = _image_bands(data)
        if len(bands) != (3 if colour else 1) and not (colour and len(bands) == 1):
            wanted = "3 bands or a palette" if colour else "one band; did you mean coding: colour?"
            raise SourceError(f"{path}: has {len(bands)} bands, needs {wanted}")
        raw = data.read(bands)
        holes = ~valid
        if not colour:
            return raw[0], (None if data.nodata is None else int(data.nodata)), holes
        if len(bands) == 3:
            return raw.transpose(1, 2, 0), None, holes
        try:
            palette = data.colormap(1)
        except ValueError:
            raise SourceError(
                f"{path}: one band without a palette holds no colours; did you mean coding: code?"
            ) from None
        table = np.zeros((max(256, max(palette) + 1), 3), dtype=np.uint8)
        for code, rgba in palette.items():
            table[code] = rgba[:3]
        return table[raw[0]], None, holes

    return _read_grid(path, read)


def read_mask(path: Path, spec: Masks, legend: Legend, shape: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read a mask file into class ids.

    Args:
        path: Raster or picture; palette PNGs are turned into colours first when the coding is colour.
        spec: The card's `exact` or `noisy` part: coding and void values.
        legend: Legend of the file.
        shape: (H, W) the mask must have, usually the image's.

    Returns:
        Class ids, shape (H, W), uint8, `VOID` where the file is void or has no data.

    Raises:
        SourceError: unreadable file, wrong size, or a code or colour unknown to the legend.
    """
    path = Path(path)
    colour = spec.coding == "colour"
    raw, nodata, holes = _mask_raw(path, colour)
    if shape is not None and raw.shape[:2] != tuple(shape):
        raise SourceError(f"{path}: is {raw.shape[:2]} (rows, columns), its image is {tuple(shape)}; they must agree")
    try:
        if colour:
            mask = legend.encode_colours(raw, spec.void)
        else:
            void = {*spec.void, *({VOID} if spec.coding == "index" else ()), *({nodata} - {None})}
            own = Legend(legend.name, legend.names, legend.colours) if spec.coding == "index" else legend
            if raw.dtype.kind == "f" and not (raw == np.round(raw)).all():
                raise ValueError("values are not whole numbers")
            mask = own.encode(raw.astype(np.int64) if raw.dtype.kind == "f" else raw, void)
    except ValueError as error:
        jpeg = "; JPEG changes colours, use PNG" if path.suffix.lower() in (".jpg", ".jpeg") else ""
        raise SourceError(f"{path}: {error}; add them to `void` or correct legend and coding{jpeg}") from None
    if holes is not None:
        mask[holes] = VOID
    return mask


def write_mask(path: Path, mask: NDArray[np.uint8], geobox: GeoBox | None, legend: Legend) -> Path:
    """Write a mask as a cloud-optimised GeoTIFF with nodata 255 and the legend's colours; whole or absent.

    Args:
        path: Where to; parent folders are made.
        mask: Class ids, shape (H, W), uint8.
        geobox: Its grid, or None.
        legend: Names and colours; ids beyond it are an error.
    """
    path = Path(path)
    if mask.ndim != 2 or mask.dtype != np.uint8 or (geobox is not None and tuple(geobox.shape) != mask.shape):
        raise ValueError(f"{path}: mask is (H, W) uint8 on its grid, got {mask.shape} {mask.dtype} on {geobox}")
    if wrong := sorted(set(np.unique(mask)) - set(range(len(legend))) - {VOID}):
        raise ValueError(f"{path}: mask holds ids {few(wrong)} that legend {legend.name!r} does not have")
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = {} if geobox is None else {"transform": geobox.transform, "crs": geobox.crs and geobox.crs.to_wkt()}
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "nodata": VOID, **grid}
    colours = {i: (*colour, 255) for i, colour in enumerate(legend.colours)} | {VOID: (*legends.VOID_COLOUR, 0)}
    # a folder of its own rather than mkstemp: that file would stay readable for its owner only, whatever the umask
    scratch = tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent, ignore_cleanup_errors=True)
    with scratch as folder:
        temporary = Path(folder) / "mask.tif"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with MemoryFile() as memory:
                with memory.open(height=mask.shape[0], width=mask.shape[1], **profile) as data:
                    data.write(mask, 1)
                    data.write_colormap(1, colours)
                    data.update_tags(legend=legend.name, classes=", ".join(legend.names))
                with memory.open() as data:  # overviews of a class map pick a pixel, they never average
                    options = {"compress": "deflate", "overview_resampling": "nearest"}
                    rasterio.shutil.copy(data, temporary, driver="COG", **options)
        os.replace(temporary, path)
    return path


@dataclass(frozen=True)
class Points:
    """LiDAR returns: coordinates in metres and, as far as the file has them, what the sensor recorded.

    `crs` is the horizontal CRS of x and y, in metres; for a file in feet that CRS with metres as unit.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    z: NDArray[np.float64]
    intensity: NDArray[np.uint16]
    return_number: NDArray[np.uint8]
    number_of_returns: NDArray[np.uint8]
    classification: NDArray[np.uint8] | None
    crs: pyproj.CRS | None

    def __len__(self) -> int:
        return len(self.x)


def _in_metres(path: Path, crs: pyproj.CRS | None) -> tuple[pyproj.CRS | None, float, float]:
    """Return the horizontal CRS in metres and the factors that bring x, y and z there."""
    if crs is None:
        return None, 1.0, 1.0
    parts = crs.sub_crs_list if crs.is_compound else [crs]
    if crs.is_geographic or parts[0].is_geographic:
        raise SourceError(f"{path}: coordinates are degrees ({crs.name}); reproject the points to metres first")
    flat = parts[0]
    horizontal = flat.axis_info[0].unit_conversion_factor
    vertical = parts[1].axis_info[0].unit_conversion_factor if len(parts) > 1 else horizontal
    if horizontal != 1.0:
        described = flat.to_json_dict()
        described.pop("id", None)
        described["name"] += " (metres)"
        for axis in described["coordinate_system"]["axis"]:
            axis["unit"] = "metre"
        flat = pyproj.CRS.from_json_dict(described)
    return flat, horizontal, vertical


def read_points(path: Path) -> Points:
    """Read a LAS or LAZ file.

    Returns:
        Points with x, y, z in metres: a CRS in feet is converted (z by the vertical CRS, else like x and y).
        `classification` is None when every point is unclassified (0 or 1).

    Raises:
        SourceError: missing or damaged file, or coordinates in degrees.
    """
    path = Path(path)
    try:
        cloud = laspy.read(path)
        crs = cloud.header.parse_crs()
    except (laspy.LaspyException, lazrs.LazrsError, OSError, ValueError, RuntimeError, EOFError) as error:
        raise _unreadable(path, error) from None
    flat, horizontal, vertical = _in_metres(path, crs)
    classes = np.asarray(cloud.classification, dtype=np.uint8)
    return Points(
        x=np.asarray(cloud.x, dtype=np.float64) * horizontal,
        y=np.asarray(cloud.y, dtype=np.float64) * horizontal,
        z=np.asarray(cloud.z, dtype=np.float64) * vertical,
        intensity=np.asarray(cloud.intensity, dtype=np.uint16),
        return_number=np.asarray(cloud.return_number, dtype=np.uint8),
        number_of_returns=np.asarray(cloud.number_of_returns, dtype=np.uint8),
        classification=classes if (classes > 1).any() else None,
        crs=flat,
    )


def fingerprint(paths: Iterable[Path]) -> str:
    """Return the SHA-256 (hex) over names and contents of files; where the folder lies does not matter."""
    paths = sorted({Path(p).resolve() for p in paths})
    base = os.path.commonpath([p.parent for p in paths]) if paths else ""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(base).as_posix()}\0{content}\n".encode())
    return total.hexdigest()
