"""SSL4EO-S12 with Dynamic World labels, and the sets it is fine-tuned on: published archives read scene by scene.

Names inside the archives are those that the authors' own scripts expect: `<place>/<season>/B1.tif` ... for images,
`<place>/<season>/label.tif` for noisy labels, `..._train/image_s2/s2_<place>.tif` with `label_dw/dw_<place>.tif` or
`label_osm/osm_<place>.tif`, and `ROIs0000_<part>_s2_0_p<number>.tif` with `..._dfc_...` for DFC2020. Members are found
by these names wherever they lie; none is unpacked, so a name that leads elsewhere leads nowhere.
"""

import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from nbutils import legend
from nbutils.archives.clips import write_image
from nbutils.files import SourceError, write_mask
from nbutils.legend import Legend

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
# of the twelve parts of the tar of Sentinel-2 L1C images, 557 GB in all
IMAGES_SHA256 = """1003dd0b4e11fdcca00855c3de23fa3209926c24074a36f40a07efeba377a9da
96dd31b2d53e131daa73604013678e21dd2b29ff4865c73a24ada77001f77a7a
23cb241e947de1da08bb9a53c6c9b088232bbf622c9aee2117e4b9bf8e93d83d
e9502f21de324e6fc400c73af1a6486e1b75176c6511642763fb899537dada1e
f47a7aaaeda7df30af9b892e54eb6c00941c706f82584c8c5b4481ee411e3e56
207d2dc70378fc9c289b666fe1730821ec6dca0d2d6fb60d5325ba31b17de896
060e01cc896e1ed3e426ff965ed6aba2538d065b398575968b0f1ae92f6ef8bc
c32211630526dad919891d1a6aae82b7d82829f343f2176f04b37378b49d1f61
a62a34fe0708885b4bd0dcc3d8e2a14c0c29737d94f744b41381d2a6618ff240
a6206d4e40569b9e3b92eb4d5174193543980b6710b02f847d3629c50fd89d59
5ae573daf729a0d32ad8d7998b78d91e4083289df1d4444feb4907b9091d9f03
75ef65fdd931176ef82bc0d87dbd2c35202714499dfe7a3918bf48d01788538f""".split()
_MEMBER_BYTES = 1 << 27  # a larger member is none of these
_MEMBER_PIXELS = 1 << 25  # 13 bands of 1600 x 1600; packed zeros may claim a million times as many
_IMAGE = re.compile(r"(?:^|/)(\d{7})/([\w-]+)/(B\d{1,2}A?)\.tif$")
_NOISY = re.compile(r"(?:^|/)(\d{7})/([\w-]+)/label\.tif$")
_TUNING = re.compile(r"(train|test)\w*/(?:image_s2|label_(?:dw|osm))/(s2|dw|osm)_([-\w.]+)\.tif$")
_DFC2020 = re.compile(r"ROIs0000_(validation|test)_(s2|dfc)_0_p(\d+)\.tif$")
Read = Callable[[], bytes]


class _Joined:
    """Parts of one file, read one after the other."""

    def __init__(self, paths: Sequence[Path]):
        self.rest, self.file = list(paths), None

    def read(self, size: int) -> bytes:
        while self.file or self.rest:
            self.file = self.file or open(self.rest.pop(0), "rb")
            if data := self.file.read(size):
                return data
            self.file.close()
            self.file = None
        return b""


def _members(paths: Sequence[Path], whole: bool = True) -> Iterator[tuple[str, Read]]:
    """Names and contents of the GeoTIFFs in a folder, a zip, or a tar in parts."""
    if paths[0].is_dir():
        for path in sorted(paths[0].rglob("*.tif")):
            yield path.relative_to(paths[0]).as_posix(), path.read_bytes
    elif zipfile.is_zipfile(paths[0]):
        with _unpacking(paths[0]):
            archive = zipfile.ZipFile(paths[0])
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if info.filename.endswith(".tif") and info.file_size <= _MEMBER_BYTES:
                yield info.filename, partial(_unpacked, archive, info)
    else:
        try:
            with tarfile.open(fileobj=_Joined(paths), mode="r|gz") as archive:
                for info in archive:
                    if info.isfile() and info.name.endswith(".tif") and info.size <= _MEMBER_BYTES:
                        data = archive.extractfile(info).read()
                        yield info.name, lambda data=data: data
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            if whole or isinstance(error, OSError) and error.errno:  # some parts of a tar end in the middle
                raise SourceError(f"{paths[0]}: {error}; fetch it again") from None


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member of a zip; never more bytes than the archive's directory says."""
    with _unpacking(archive.filename, f", {info.filename}"):
        return archive.read(info)


@contextmanager
def _unpacking(path: str | Path, member: str = "") -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, struct.error) as error:
        raise SourceError(f"{path}{member}: cannot be unpacked: {error}; fetch it again") from None


def _read(data: bytes, name: str, shape: tuple[int, int] | None = None, band: int | None = None,
          method: Resampling = Resampling.nearest) -> tuple[NDArray, GeoBox]:  # fmt: skip
    """Pixels (B, H, W) of a GeoTIFF in memory, brought to `shape`, and its grid."""
    try:
        with MemoryFile(data) as memory, memory.open(driver="GTiff") as raster:
            if raster.count * raster.height * raster.width > _MEMBER_PIXELS:
                told = f"has {raster.count} bands of {raster.shape} pixels, no scene is so large"
                raise SourceError(f"{name}: {told}; is it the set asked for?")
            bands = list(raster.indexes) if band is None else [min(band, raster.count)]
            shape = shape or raster.shape
            pixels = raster.read(bands, out_shape=(len(bands), *shape), resampling=method)
            grid = GeoBox(raster.shape, raster.transform, raster.crs or "EPSG:4326")
            return pixels, grid if shape == raster.shape else grid.zoom_to(shape)
    except RasterioError as error:
        raise SourceError(f"{name}: cannot be read as GeoTIFF ({len(data)} bytes): {error}; fetch it again") from None


def _write(folder: Path, name: str, image: NDArray, grid: GeoBox, kind: str, codes: NDArray, of: Legend,
           void: tuple[int, ...] = ()) -> None:  # fmt: skip
    if len(image) != len(BANDS):
        raise SourceError(f"{name}: has {len(image)} bands, expected the {len(BANDS)} of Sentinel-2 L1C")
    try:
        mask = of.encode(codes.astype(np.int64), void)
    except ValueError as error:
        raise SourceError(f"{name}: {error}; is it the set asked for?") from None
    write_image(folder / "image.tif", image, grid, BANDS)
    write_mask(folder / f"{kind}.tif", mask, grid, legend.get(of.name))


def pretraining(
    labels: Path, images: Sequence[Path], *, whole: bool, most: int | None = None, skip: Callable[[str], bool]
) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Scenes of SSL4EO-S12@NoL: 13 bands on the grid of the 10 m bands, with Dynamic World's noisy label.

    Args:
        labels: Zip or folder of the labels.
        images: Folder, or parts of the tar of Sentinel-2 L1C images, from the first on.
        whole: Whether `images` is all of it; if not, it may end anywhere.
        most: Number of scenes to stop at.
        skip: Tells of a scene's name whether it is there already.

    Yields:
        A name and the function that writes the scene into a folder.
    """
    known = {found.groups(): (name, read) for name, read in _members([labels]) if (found := _NOISY.search(name))}
    if not known:
        raise SourceError(f"{labels}: holds no <place>/<season>/label.tif; is it SSL4EO-S12@NoL?")
    order = [band.replace("B0", "B") for band in BANDS]
    begun: dict[tuple[str, str], dict[str, bytes]] = {}
    number = 0
    for name, read in _members(images, whole):
        found = _IMAGE.search(name)
        if not found or (place := found.groups()[:2]) not in known:
            continue
        scene = f"pretrain-{'-'.join(place)}"
        bands = begun.setdefault(place, {})
        bands[found[3]] = b"" if skip(scene) else read()
        if set(order) <= set(bands):
            del begun[place]

            def build(folder: Path, bands=bands, place=place, scene=scene) -> None:
                shape = _read(bands["B2"], f"{scene}/B2.tif")[0].shape[1:]
                grid = _read(bands["B2"], scene)[1]
                each = [_read(bands[b], f"{scene}/{b}.tif", shape, 1, Resampling.bilinear)[0][0] for b in order]
                label, read_label = known[place]
                codes = _read(read_label(), label, shape, 1)[0][0]
                _write(folder, label, np.stack(each), grid, "noisy", codes, legend.get("dw9"))

            yield scene, build
            number += 1
            if number == most:
                return


def tuning(archive: Path, labels: str, most: int | None = None) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Scenes with exact labels: SSL4EO-S12@DW or @OSM, or DFC2020.

    The published test part stays the test part; of the other, the last fifth in the order of places (by longitude)
    is for validation.

    Args:
        archive: Zip or folder.
        labels: Legend of the exact masks: dw9, osm13 or dfc8.
        most: Number of scenes of each split to stop at.

    Yields:
        A name and the function that writes the scene into a folder.
    """
    pattern, own = (_DFC2020, "dfc") if labels == "dfc8" else (_TUNING, labels[:-1] if labels == "dw9" else "osm")
    of, void = legend.get(labels), (0, 10) if labels == "dw9" else (0,)
    if labels != "dfc8":  # written from 1, after the unmarked 0; Dynamic World's experts also mark clouds, 10
        of = Legend(of.name, of.names, of.colours, tuple(range(1, len(of) + 1)))
    found: dict[tuple[str, str], dict[str, tuple[str, Read]]] = {}
    for name, read in _members([archive]):
        if (match := pattern.search(name)) and match[2] in ("s2", own):
            place = f"{int(match[3]):05d}" if match[3].isdigit() else match[3]
            found.setdefault((match[1], place), {})[match[2]] = (name, read)
    pairs = {key: files for key, files in found.items() if len(files) == 2}
    test = [key for key in sorted(pairs) if key[0] == "test"]
    rest = sorted((key for key in pairs if key[0] != "test"), key=lambda key: (_longitude(key[1]), key[1]))
    held = len(rest) - max(1, round(len(rest) / 5))
    if len(test) < 1 or held < 1:
        raise SourceError(f"{archive}: holds {len(rest)} training and {len(test)} test images with {own} labels of "
                          f"{len(found)} images; is it the set asked for?")  # fmt: skip
    for split, keys in (("finetune", rest[:held]), ("validation", rest[held:]), ("test", test)):
        for key in keys[:most]:
            (image, read_image), (label, read_label) = pairs[key]["s2"], pairs[key][own]

            def build(folder: Path, image=image, read_image=read_image, label=label, read_label=read_label) -> None:
                pixels, grid = _read(read_image(), image)
                codes = _read(read_label(), label, pixels.shape[1:], 2 if own == "dw" else 1)[0][0]
                _write(folder, label, pixels, grid, "exact", codes, of, void)

            yield f"{split}-{re.sub(r'[^-.0-9A-Za-z]', '_', key[1])}", build


def _longitude(place: str) -> float:
    found = re.match(r"-?\d+[.p]?\d*", place)
    return float(found[0].replace("p", ".")) if found else 0.0
