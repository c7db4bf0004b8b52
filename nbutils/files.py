"""Files: images and masks, read from and written to public formats, whole or window by window.

A hole in any file is void, never class 0; a damaged file is an error that names it, never skipped in silence.
"""

import fcntl
import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from nbutils import guarded
from nbutils import legend as legends
from nbutils.cards import Masks, few
from nbutils.legend import VOID, Legend

PLAIN = {".jpg", ".jpeg", ".png", ".bmp"}  # pictures without a grid, read through pillow
STRIP_PX = 1 << 22  # pixels of a band looked at in one go where a file is read piece by piece
GDAL_CACHE = 1 << 26  # bytes of decoded blocks GDAL may keep; left alone it takes a share of the machine's memory

AnyWindow = tuple[slice, slice] | Window
"""Rows and columns to read: two slices, or a window of rasterio."""


class SourceError(ValueError):
    """A file cannot be read or does not hold what the card says; the message names file and remedy."""


class OutsideError(SourceError):
    """A file holds nothing on the grid that was asked for."""


def _unreadable(path: str | Path, error: Exception) -> SourceError:
    if isinstance(path, str):
        told = re.sub(r"\?[^\s'\")]*", "", str(error))  # the query of an address may hold a signature
        return SourceError(f"{path}: cannot be read: {told}; check the address and the connection")
    if not path.exists():
        return SourceError(f"{path}: no such file")
    return SourceError(f"{path}: cannot be read ({path.stat().st_size} bytes): {error}; fetch or write the file again")


@contextmanager
def _reading(path: str | Path, options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Keep GDAL frugal and quiet about a missing grid, and turn read errors into `SourceError`."""
    try:
        with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE, **(options or guarded.OFFLINE)):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield
    except SourceError:
        raise
    except Exception as error:  # a damaged file makes the libraries raise nearly anything
        raise _unreadable(path, error.__cause__ or error) from None


def spans(window: AnyWindow | None, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Return a window as two slices with both ends; ValueError where it does not lie within `shape`."""
    given = (slice(None), slice(None)) if window is None else window
    if isinstance(given, Window):
        rows, columns = (given.row_off, given.height), (given.col_off, given.width)
        given = tuple(slice(round(start), round(start + length)) for start, length in (rows, columns))
    ends = [(s.start or 0, n if s.stop is None else s.stop, n) for s, n in zip(given, shape, strict=True)]
    if any(not 0 <= start < stop <= n for start, stop, n in ends) or any(s.step not in (None, 1) for s in given):
        raise ValueError(f"window {window} does not lie within {tuple(shape)} (rows, columns)")
    return tuple(slice(start, stop) for start, stop, _ in ends)


def strips(shape: tuple[int, int], size_px: int = 1) -> Iterator[slice]:
    """Yield rows, top to bottom, in strips of a bounded number of pixels and of whole multiples of `size_px`."""
    rows = max(STRIP_PX // (shape[1] * size_px), 1) * size_px
    yield from (slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))


class Raster:
    """An open raster: what it holds, and any window of it, read when asked. Close it, or use it in a `with` block.

    Attributes:
        path: Where it lies; of an address the part before the query, which may hold a signature.
        shape: (H, W) in pixels.
        bands: Name of each band: the file's description, else its number.
        dtype: Type of the values.
        nodata: Value that means "no data", or None.
        geobox: Its grid, or None.
    """

    def __init__(
        self, where: str | Path, options: Mapping[str, Any] | None = None, renew: Callable[[], str] | None = None
    ) -> None:
        """Open a file or an address.

        Args:
            where: Path, or http(s) address of which only the parts that are asked for are fetched.
            options: GDAL settings while reading.
            renew: Returns a fresh address; asked once when a read fails, because signed ones expire.

        Raises:
            SourceError: Missing or damaged file, address that does not answer.
        """
        self.path = where.split("?")[0] if isinstance(where, str) and "://" in where else Path(where)
        self._options, self._renew = options, renew
        with _reading(self.path, options):
            try:
                self._data = data = guarded.open_raster(where)
            except RasterioError:
                self._data = data = self._open_anew()
            self.shape, self.dtype, self.nodata = tuple(data.shape), np.dtype(data.dtypes[0]), data.nodata
            self.bands = tuple(name or str(i) for i, name in zip(data.indexes, data.descriptions, strict=True))
            blank = data.crs is None and data.transform.is_identity
            self.geobox = None if blank else GeoBox(data.shape, data.transform, data.crs)

    def __enter__(self) -> "Raster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go."""
        self._data.close()

    @property
    def count(self) -> int:
        """Number of bands that are image."""
        return len(self._numbers(None))

    def grid(self, window: AnyWindow | None = None) -> GeoBox | None:
        """Return the grid of a window, or None when the file has none."""
        return self.geobox[spans(window, self.shape)] if window and self.geobox else self.geobox

    def read(self, window: AnyWindow | None = None, bands: Sequence[int | str] | None = None) -> NDArray:
        """Read bands by number (from 1) or name, all but an alpha band when left out: (B, h, w), 0 without data."""
        wanted = self._numbers(bands)
        pixels, holes = self._get("read", window, wanted), ~self._has_data(window)
        if pixels.dtype.kind == "f":
            holes |= ~np.isfinite(pixels).all(axis=0)
        if holes.any():
            pixels[:, holes] = 0
        return pixels

    def valid(self, window: AnyWindow | None = None) -> NDArray[np.bool_]:
        """Return where the image has data, (h, w): nodata, alpha 0 and NaN are False."""
        valid = self._has_data(window)
        if self.dtype.kind == "f":
            valid &= np.isfinite(self._get("read", window, self._numbers(None))).all(axis=0)
        return valid

    def labels(self, colour: bool, window: AnyWindow | None = None) -> tuple[NDArray, NDArray[np.bool_] | None]:
        """Read raw values of a mask, (h, w) codes or (h, w, 3) colours, and its holes."""
        bands = self._numbers(None)
        if len(bands) != (3 if colour else 1) and not (colour and len(bands) == 1):
            wanted = "3 bands or a palette" if colour else "one band; did you mean coding: colour?"
            raise SourceError(f"{self.path}: has {len(bands)} bands, needs {wanted}")
        raw, holes = self._get("read", window, bands), ~self._has_data(window)
        if not colour:
            return raw[0], holes
        if len(bands) == 3:
            return raw.transpose(1, 2, 0), holes
        with _reading(self.path, self._options):
            try:
                palette = self._data.colormap(1)
            except ValueError:
                hint = "one band without a palette holds no colours; did you mean coding: code?"
                raise SourceError(f"{self.path}: {hint}") from None
        table = np.zeros((1 << 16, 3), dtype=np.uint8)
        for code, rgba in palette.items():
            table[code] = rgba[:3]
        return table[raw[0]], holes

    def _get(self, what: str, window: AnyWindow | None, *args: Any) -> NDArray:
        """Call a reading method of rasterio; an address is renewed and opened again before giving up."""
        part = Window.from_slices(*spans(window, self.shape))
        with _reading(self.path, self._options):
            try:
                return getattr(self._data, what)(*args, window=part)
            except RasterioError:
                self._data = self._open_anew()
                return getattr(self._data, what)(*args, window=part)

    def _open_anew(self) -> rasterio.DatasetReader:
        """Open a renewed address after an error; where there is none, the error stands."""
        if self._renew is None:
            raise
        return guarded.open_raster(self._renew())

    @cached_property
    def _alpha(self) -> tuple[bool, int | None]:
        """Whether a band is marked alpha, and its number if it is one.

        GDAL marks the fourth of four 8-bit bands as alpha unless told otherwise, also where it is near infrared; so a
        band marked alpha is taken as one only if it holds nothing but fully transparent and fully opaque.
        """
        with _reading(self.path, self._options):
            roles = zip(self._data.indexes, self._data.colorinterp, strict=True)
        alpha = next((band for band, role in roles if role == rasterio.enums.ColorInterp.alpha), None)
        top = np.iinfo(self.dtype).max if self.dtype.kind == "u" else 1
        for rows in strips(self.shape) if alpha else ():
            values = self._get("read", (rows, slice(None)), alpha)
            if not ((values == 0) | (values == top)).all():
                return True, None
        return alpha is not None, alpha

    def _numbers(self, bands: Sequence[int | str] | None) -> list[int]:
        count = len(self.bands)
        if bands is None:
            return [band for band in range(1, count + 1) if band != self._alpha[1]]
        numbers = [self.bands.index(b) + 1 if b in self.bands else b for b in bands]
        if wrong := [b for b in numbers if b not in range(1, count + 1)]:
            named = f", named {few(self.bands, 13)}" if any(isinstance(b, str) for b in wrong) else ""
            raise SourceError(f"{self.path}: has bands 1..{count}, asked for {wrong}{named}")
        return numbers

    def _has_data(self, window: AnyWindow | None) -> NDArray[np.bool_]:
        marked, alpha = self._alpha
        if not marked:
            return self._get("dataset_mask", window) > 0
        if alpha:
            return self._get("read", window, alpha) > 0
        if self.nodata is not None:
            return (self._get("read", window) != self.nodata).any(axis=0)
        return np.ones([s.stop - s.start for s in spans(window, self.shape)], dtype=bool)


class Picture(Raster):
    """An ordinary picture without a grid, decoded once when its pixels are first asked for."""

    def __init__(self, path: Path, picture: Image.Image) -> None:
        self.path, self._data, self.nodata, self.geobox = path, picture, None, None
        self.shape, self.dtype = (picture.height, picture.width), np.dtype(np.uint8)
        self.bands = ("grey",) if picture.mode == "L" else ("red", "green", "blue")
        self._alpha = (False, None)

    def read(self, window: AnyWindow | None = None, bands: Sequence[int | str] | None = None) -> NDArray:
        """See `Raster.read`."""
        pixels = np.atleast_3d(self._crop(window, "L" if len(self.bands) == 1 else "RGB")).transpose(2, 0, 1)
        return np.ascontiguousarray(pixels[[b - 1 for b in self._numbers(bands)]])

    def valid(self, window: AnyWindow | None = None) -> NDArray[np.bool_]:
        """See `Raster.valid`."""
        if self._data.has_transparency_data:
            return self._crop(window, "RGBA")[..., 3] > 0
        return np.ones([s.stop - s.start for s in spans(window, self.shape)], dtype=bool)

    def labels(self, colour: bool, window: AnyWindow | None = None) -> tuple[NDArray, NDArray[np.bool_] | None]:
        """See `Raster.labels`; transparency is no hole in a mask."""
        mode = self._data.mode
        if not colour and mode not in ("L", "P"):
            raise SourceError(f"{self.path}: is a {mode} picture, codes need one band; did you mean coding: colour?")
        return self._crop(window, "RGB" if colour else mode), None

    def _crop(self, window: AnyWindow | None, mode: str) -> NDArray[np.uint8]:
        rows, columns = spans(window, self.shape)
        with _reading(self.path):
            part = self._data.crop((columns.start, rows.start, columns.stop, rows.stop))
            return np.array(part if part.mode == mode else part.convert(mode))


def open_file(path: str | Path) -> Raster:
    """Open a file: an ordinary picture (JPEG, PNG) through pillow, any other raster through GDAL.

    Raises:
        SourceError: Missing or damaged file.
    """
    path = Path(path)
    if path.suffix.lower() in PLAIN:
        with _reading(path):
            picture = Image.open(path)
            if picture.mode in ("L", "P", "RGB", "RGBA"):
                return Picture(path, picture)
            picture.close()  # 16-bit, bilevel, CMYK: GDAL knows more of them
    return Raster(path)


def image_shape(path: Path) -> tuple[int, int]:
    """Return (H, W) of an image without reading its pixels."""
    with open_file(path) as raster:
        return raster.shape


def read_image(
    path: Path, bands: Sequence[int] | None = None, window: AnyWindow | None = None
) -> tuple[NDArray, GeoBox | None]:
    """Read an image.

    Args:
        path: GeoTIFF / COG or any raster of GDAL, or an ordinary picture (JPEG, PNG).
        bands: Band numbers of the file, from 1; all but an alpha band when left out.
        window: Rows and columns to read; the whole image when left out.

    Returns:
        Pixels (B, H, W) in the file's own type, 0 where the file has no data (see `read_valid`), and their
        grid, or None when the file has none.

    Raises:
        SourceError: the file is missing, truncated or lacks a band.
        ValueError: the window does not lie within the image.
    """
    with open_file(path) as raster:
        return raster.read(window, bands), raster.grid(window)


def check_grid(mask: Raster, image: Raster) -> None:
    """Raise `SourceError` unless a mask has its image's pixels: as many, and where both have coordinates, there."""
    if mask.shape != image.shape:
        have, want = mask.shape, image.shape
        raise SourceError(f"{mask.path}: is {have} (rows, columns), its image is {want}; they must agree")
    own, wanted = mask.geobox, image.geobox
    if own is None or wanted is None:
        return
    remedy = f"warp it onto the grid of {image.path} by nearest neighbour (rio warp --like)"
    codes = (own.crs, wanted.crs) if own.crs == wanted.crs else [crs and crs.to_epsg() for crs in (own.crs, wanted.crs)]
    if None not in codes and codes[0] != codes[1]:
        raise SourceError(f"{mask.path}: is in EPSG:{codes[0]}, its image in EPSG:{codes[1]}; {remedy}")
    corners = [(0, 0), (mask.shape[1], 0), (0, mask.shape[0])]
    off = [np.subtract(wanted.wld2pix(*own.pix2wld(*corner)), corner) for corner in corners]
    if (most := np.abs(off).max()) > 0.5:
        raise SourceError(f"{mask.path}: lies up to {most:.1f} pixels off its image; {remedy}")


def read_valid(path: Path, window: AnyWindow | None = None) -> NDArray[np.bool_]:
    """Return where an image has data, shape (H, W): nodata, alpha 0 and NaN are False."""
    with open_file(path) as raster:
        return raster.valid(window)


def read_mask(
    path: Path,
    spec: Masks,
    legend: Legend,
    shape: tuple[int, int] | None = None,
    window: AnyWindow | None = None,
) -> NDArray[np.uint8]:
    """Read a mask file into class ids.

    Args:
        path: Raster or picture; palette PNGs are turned into colours first when the coding is colour.
        spec: The card's `exact` or `noisy` part: coding and void values.
        legend: Legend of the file.
        shape: (H, W) the whole mask must have, usually the image's.
        window: Rows and columns to read; the whole mask when left out.

    Returns:
        Class ids, shape (H, W), uint8, `VOID` where the file is void or has no data.

    Raises:
        SourceError: unreadable file, wrong size, or a code or colour unknown to the legend.
        ValueError: the window does not lie within the mask.
    """
    with open_file(path) as raster:
        if shape is not None and raster.shape != tuple(shape):
            want = tuple(shape)
            raise SourceError(f"{path}: is {raster.shape} (rows, columns), its image is {want}; they must agree")
        return decode(raster, spec, legend, window)


def decode(raster: Raster, spec: Masks, legend: Legend, window: AnyWindow | None = None) -> NDArray[np.uint8]:
    """Read an open mask, or a window of it, into class ids; see `read_mask`."""
    colour = spec.coding == "colour"
    raw, holes = raster.labels(colour, window)
    try:
        if colour:
            mask = legend.encode_colours(raw, spec.void)
        else:
            own = Legend(legend.name, legend.names, legend.colours) if spec.coding == "index" else legend
            void = {*spec.void, VOID} if spec.coding == "index" else {*spec.void}
            if holes is not None:  # nodata may be any number, also one that no legend can hold
                raw = np.where(holes, raw.dtype.type(own.codes[0]), raw)
            if raw.dtype.kind == "f" and not (raw == np.round(raw)).all():
                raise ValueError("values are not whole numbers")
            mask = own.encode(raw.astype(np.int64) if raw.dtype.kind == "f" else raw, void)
    except ValueError as error:
        jpeg = "; JPEG changes colours, use PNG" if raster.path.suffix.lower() in (".jpg", ".jpeg") else ""
        hint = f"add them to `void` or correct legend and coding{jpeg}"
        raise SourceError(f"{raster.path}: {error}; {hint}") from None
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


def fingerprint(paths: Iterable[Path]) -> str:
    """Return the SHA-256 (hex) over names and contents of files; where the folder lies does not matter.

    The parts of a Shapefile count with it.
    """
    paths = {Path(p).resolve() for p in paths}
    paths = sorted(paths.union(*(p.parent.glob(f"{p.stem}.*") for p in paths if p.suffix.lower() == ".shp")))
    base = os.path.commonpath([p.parent for p in paths]) if paths else ""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(base).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process works alone in a folder; a lock dies with its holder and leaves nothing behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
