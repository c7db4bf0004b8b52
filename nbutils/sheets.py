"""Rasters of one band, written block by block: larger than memory, and whole or absent.

A raster goes to a scratch file first and is copied from there into a cloud-optimised GeoTIFF, which takes its name when
it has been read back.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from nbutils import disk
from nbutils import legend as legends
from nbutils.files import GDAL_CACHE
from nbutils.legend import VOID, Legend


class Sheet:
    """One band of uint8 with nodata 255; use it in a `with` block, inside one of `workshop`.

    Attributes:
        path: What it is to be.
        counts: (256,) int64 pixels of each value written so far.
    """

    def __init__(
        self,
        path: Path,
        scratch: Path,
        shape: tuple[int, int],
        geobox: GeoBox | None,
        *,
        block_px: int,
        overviews: str,
        tags: Mapping[str, str],
        legend: Legend | None = None,
    ) -> None:
        """Open the scratch file.

        Args:
            path: Where the raster goes.
            scratch: Folder of `workshop` on the same disk.
            shape: (H, W) in pixels.
            geobox: Its grid, or None.
            block_px: Side of the blocks it is written in, a multiple of 16; each is compressed once.
            overviews: How GDAL makes them, ``mode`` for classes: it never averages.
            tags: Written into the file.
            legend: Names and colours of the classes, where it holds classes.

        Raises:
            OSError: It cannot be written; the message names `path`.
        """
        self.path, self.counts, self._overviews = path, np.zeros(256, np.int64), overviews
        self._plain, self._copy = scratch / f"blocks-{path.name}", scratch / path.name
        grid = {} if geobox is None else {"transform": geobox.transform, "crs": geobox.crs and geobox.crs.to_wkt()}
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "nodata": VOID, "bigtiff": "if_safer", **grid}
        blocks = {"tiled": True, "blockxsize": block_px, "blockysize": block_px, "compress": "deflate", "zlevel": 1}
        with _writing(path):
            self._data = rasterio.open(self._plain, "w", height=shape[0], width=shape[1], **profile, **blocks)
            self._data.update_tags(**tags)
            if legend is not None:
                colours = {i: (*colour, 255) for i, colour in enumerate(legend.colours)}
                self._data.write_colormap(1, colours | {VOID: (*legends.VOID_COLOUR, 0)})
                self._data.update_tags(legend=legend.name, classes=", ".join(legend.names))

    def __enter__(self) -> "Sheet":
        return self

    def __exit__(self, _: type | None, error: BaseException | None, __: TracebackType | None) -> None:
        with _writing(self.path):
            self._data.close()

    def write(self, window: tuple[slice, slice], values: NDArray[np.uint8]) -> None:
        """Write values (h, w) to rows and columns that were not written before."""
        self.counts += np.bincount(values.ravel(), minlength=256)
        with _writing(self.path):
            self._data.write(values, 1, window=Window.from_slices(*window))

    def finish(self) -> None:
        """Copy it, flush the copy and read that back: a full disk is not always told to who writes."""
        with _writing(self.path):
            self._data.close()
            options = {"compress": "deflate", "bigtiff": "if_safer", "overview_resampling": self._overviews}
            rasterio.shutil.copy(self._plain, self._copy, driver="COG", **options)
            self._plain.unlink()
            with open(self._copy, "rb") as file:
                os.fsync(file.fileno())
            with rasterio.open(self._copy) as data:
                blocks = (data.read(1, window=window) for _, window in data.block_windows(1))
                found = sum(np.bincount(block.ravel(), minlength=256) for block in blocks)
            if not np.array_equal(found, self.counts):
                raise OSError("it does not read back as it was written")

    def publish(self) -> None:
        """Give the finished raster its name; one that has it is replaced."""
        os.replace(self._copy, self.path)


@contextmanager
def workshop(parent: Path) -> Iterator[Path]:
    """Keep GDAL frugal and make a folder for scratch files, gone afterwards; see `disk.scratch_folder`."""
    with disk.scratch_folder(parent) as folder, warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield folder


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # GDAL tells of a full disk in many ways
        raise OSError(f"{path}: cannot be written: {error}; make room on the disk or choose another folder") from error
