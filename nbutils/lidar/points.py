"""Points: LiDAR returns read from LAS, LAZ and COPC files, in metres whatever the units of the file.

Files are read in chunks, so that memory does not grow with them. A damaged file is an error that names it: what the
header promises is compared with the size of the file before a decoder sees it.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import laspy
import lazrs
import numpy as np
import pyproj
from laspy.copc import CopcInfoVlr
from numpy.typing import NDArray

from nbutils.files import SourceError, _unreadable

CHUNK = 200_000  # returns in one part: some ten MB
_DECODED = 1_000_000  # records decoded at once, twenty of the blocks of LAZ: four keep two cores less busy than that
_UNITS = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937}  # metres per unit of length, by its EPSG code
_VERTICAL_UNIT_KEY = 4099  # of GeoTIFF
_NODE = np.dtype([("level", "<i4"), ("x", "<i4"), ("y", "<i4"), ("z", "<i4"),
                  ("offset", "<u8"), ("size", "<i4"), ("count", "<i4")])  # fmt: skip
_NOISE = 7
_Part = laspy.DecompressionSelection
_WANTED = _Part.base() | _Part.Z | _Part.INTENSITY | _Part.CLASSIFICATION | _Part.FLAGS  # spares times and colours


@dataclass(frozen=True)
class Points:
    """LiDAR returns: coordinates in metres and, as far as the file has them, what the sensor recorded.

    Every array has shape (N,). `intensity`, `return_number` and `number_of_returns`, and `classification` are None
    where the source lacks them: all 0, no pulse with several returns, all unclassified (0 or 1).
    `crs` is the horizontal CRS of x and y, in metres; for a file in feet that CRS with metres as unit. Where it is
    None nothing is known about units, and the numbers are those of the file.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    z: NDArray[np.float64]
    intensity: NDArray[np.uint16] | None = None
    return_number: NDArray[np.uint8] | None = None
    number_of_returns: NDArray[np.uint8] | None = None
    classification: NDArray[np.uint8] | None = None
    crs: pyproj.CRS | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, which) -> Points:
        """Some of the points, by a slice, a boolean array or indices."""
        return Points(**{name: a[which] if isinstance(a, np.ndarray) else a for name, a in vars(self).items()})


def read_points(path: str | Path, bounds: Sequence[float] | None = None) -> Points:
    """Read a LAS, LAZ or COPC file.

    Args:
        path: The file.
        bounds: minx, miny, maxx, maxy in the file's CRS in metres; the whole file when left out.

    Returns:
        Points with x, y, z in metres: a CRS in feet is converted (z by the vertical CRS, else like x and y).

    Raises:
        SourceError: Missing, damaged or empty file, or coordinates in degrees.
    """
    parts = list(iter_points(path, bounds=bounds))
    if not parts:
        none = np.zeros(0)
        return Points(none, none, none, crs=read_crs(path))
    return concatenate(parts)


def concatenate(parts: Sequence[Points]) -> Points:
    """Join parts of one cloud; what only some of them know is filled up with what the others lack by definition."""
    absent = {"return_number": 1, "number_of_returns": 1}
    joined = {}
    for name in (f.name for f in fields(Points) if f.name != "crs"):
        values = [getattr(part, name) for part in parts]
        known = next((v for v in values if v is not None), None)
        if known is not None:
            filled = (np.full(len(p), absent.get(name, 0), known.dtype) if v is None else v
                      for p, v in zip(parts, values, strict=True))  # fmt: skip
            joined[name] = np.concatenate(list(filled))
    return Points(**joined, crs=parts[0].crs)


def iter_points(path: str | Path, chunk: int = CHUNK, bounds: Sequence[float] | None = None) -> Iterator[Points]:
    """Read a LAS, LAZ or COPC file part by part, with as much memory as a part needs.

    Args:
        path: The file.
        chunk: Most returns of a part.
        bounds: As in `read_points`; of a COPC file only the octree's nodes that touch them are read.

    Yields:
        Parts of the cloud, as in `read_points`. What a part lacks (None) another part may have.

    Raises:
        SourceError: As in `read_points`.
    """
    path = Path(path)
    with _opened(path) as reader:
        header, (crs, across, up) = reader.header, _frame(path, reader.header)
        if not header.point_count:
            raise SourceError(f"{path}: holds no points; fetch or write the file again")
        raw = None if bounds is None else np.asarray(bounds, float) / across
        if raw is not None and (header.mins[:2] >= raw[:2]).all() and (header.maxs[:2] <= raw[2:]).all():
            raw = None
        got = 0
        for record in _records(path, reader, chunk, raw):
            got += len(record)
            points = _metres(record, header, crs, across, up)
            if raw is not None:
                x, y = points.x, points.y
                inside = (x >= bounds[0]) & (x <= bounds[2]) & (y >= bounds[1]) & (y <= bounds[3])
                points = points if inside.all() else points[inside]
            if len(points):
                yield points
        if raw is None and got != header.point_count:
            raise SourceError(f"{path}: holds {got} of {header.point_count} points; fetch or write the file again")


def read_crs(path: str | Path) -> pyproj.CRS | None:
    """Horizontal CRS of a file's points, in metres; None where the file has none; errors as in `read_points`."""
    with _opened(Path(path)) as reader:
        return _frame(Path(path), reader.header)[0]


@contextmanager
def _opened(path: Path) -> Iterator[laspy.LasReader]:
    """Open a file; whatever its parsers and decoders raise becomes a `SourceError`.

    They raise nearly anything at damaged bytes, the decoder's panics even derive from BaseException, and laspy would
    log to the screen what is raised anyway.
    """
    log = logging.getLogger("laspy")
    disabled, log.disabled = log.disabled, True
    try:
        with open(path, "rb") as file:
            _check_sizes(path, file)
            with laspy.open(path, decompression_selection=_WANTED) as reader:
                yield reader
    except (SourceError, GeneratorExit):
        raise
    except Exception as error:
        raise _unreadable(path, error) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the LAZ decoder, which does not export the class
            raise
        raise _unreadable(path, RuntimeError(f"the decoder failed: {error}")) from None
    finally:
        log.disabled = disabled


def _check_sizes(path: Path, file) -> None:
    """Compare what the header promises with the size of the file: wrong counts make readers hang or ask for memory."""
    head, size = file.read(375).ljust(375, b"\0"), path.stat().st_size
    if head[:4] != b"LASF" or size < 227:
        raise SourceError(f"{path}: is no LAS or LAZ file ({size} bytes); fetch the file again or correct the path")
    header_size, data_at, records, form, width, count = struct.unpack_from("<HIIBHI", head, 94)
    last_at, last = 0, 0
    if head[25] >= 4:
        last_at, last, count = struct.unpack_from("<QIQ", head, 235)
    packed, numbers = form & 0xC0, struct.unpack_from("<6d", head, 131)
    ends = [header_size + 54 * records, data_at, _end_of_records(file, last_at, last, size)]
    if packed and count:
        file.seek(data_at)
        (table,) = struct.unpack("<q", file.read(8).ljust(8, b"\0"))
        file.seek(table if 0 < table < size else max(size - 8, 0))
        chunks = struct.unpack("<II", file.read(8).ljust(8, b"\0"))[1] if table > 0 else 0
        ends += [table, data_at + chunks]
    elif count:
        ends.append(data_at + width * count)
    if max(ends) > size or ends[0] > data_at:
        raise SourceError(f"{path}: is damaged: its header promises more than its {size} bytes hold; fetch it again")
    if not np.isfinite(numbers).all() or 0 in numbers[:3]:
        raise SourceError(f"{path}: is damaged: scales and offsets are {numbers}; fetch or write the file again")


def _end_of_records(file, at: int, count: int, size: int) -> int:
    """Where the records behind the points end, each of a length of its own; beyond the file where one does not fit."""
    for _ in range(count):
        if at + 60 > size:
            return size + 1
        file.seek(at + 20)
        at += 60 + struct.unpack("<Q", file.read(8))[0]
    return at


def _frame(path: Path, header: laspy.LasHeader) -> tuple[pyproj.CRS | None, float, float]:
    """Horizontal CRS in metres (None: unknown), and the factors that bring x and y, and z, to metres."""
    crs = header.parse_crs()
    if crs is None:
        return None, 1.0, 1.0
    parts = [part.source_crs if part.is_bound else part for part in (crs.sub_crs_list if crs.is_compound else [crs])]
    flat, axes = parts[0], parts[0].axis_info
    if not flat.is_projected:
        if flat.is_geographic and max(np.abs([*header.mins[:2], *header.maxs[:2]])) <= 361:
            raise SourceError(f"{path}: coordinates are degrees ({crs.name}); reproject the points to metres first")
        return None, 1.0, 1.0  # a projection without a name: the file says only which datum it rests on
    across = axes[0].unit_conversion_factor
    keys = {key.id: key.value_offset for vlr in header.vlrs.get("GeoKeyDirectoryVlr") for key in vlr.geo_keys}
    if len(parts) > 1 or len(axes) > 2:
        up = (parts[1].axis_info[0] if len(parts) > 1 else axes[2]).unit_conversion_factor
    else:
        up = _UNITS.get(keys.get(_VERTICAL_UNIT_KEY), across)
    if across != 1.0:
        described = flat.to_json_dict()
        described.pop("id", None)
        described["name"] += " (metres)"
        for axis in described["coordinate_system"]["axis"]:
            axis["unit"] = "metre"
        flat = pyproj.CRS.from_json_dict(described)
    return flat, across, up


def _records(path: Path, reader: laspy.LasReader, chunk: int, raw: NDArray | None) -> Iterator[laspy.PackedPointRecord]:
    """Records of a file part by part; with bounds in the file's units, of a COPC file only those near them."""
    header = reader.header
    if raw is None or not (len(header.vlrs) and isinstance(header.vlrs[0], CopcInfoVlr)):
        for many in reader.chunk_iterator(max(_DECODED // chunk, 1) * chunk):
            yield from (many[i : i + chunk] for i in range(0, len(many), chunk))
        return
    packing = header.vlrs.get("LasZipVlr")[0].record_data
    with open(path, "rb") as file:
        nodes = _octree_nodes(path, file, header, raw)
        parts = np.cumsum(nodes["count"], dtype=np.int64) // chunk
        for part in np.split(nodes, np.flatnonzero(np.diff(parts)) + 1) if len(nodes) else ():
            packed = bytearray()
            for node in part:
                file.seek(int(node["offset"]))
                packed += file.read(int(node["size"]))
            out = np.zeros(int(part["count"].sum()) * header.point_format.size, np.uint8)
            table = [(int(node["count"]), int(node["size"])) for node in part]
            lazrs.decompress_points_with_chunk_table(bytes(packed), packing, out, table, _WANTED.to_lazrs())
            yield laspy.PackedPointRecord.from_buffer(out, header.point_format)


def _octree_nodes(path: Path, file, header: laspy.LasHeader, raw: NDArray) -> NDArray:
    """The nodes of a COPC file's octree that touch bounds and hold points, in the order of the file."""
    info, size = header.vlrs[0], path.stat().st_size
    pages, chosen = [(int(info.hierarchy_root_offset), int(info.hierarchy_root_size))], [np.zeros(0, _NODE)]
    seen: set[int] = set()
    while pages:
        at, length = pages.pop()
        if at in seen or length < 0 or at + length > size:
            raise SourceError(f"{path}: is damaged: its octree leads nowhere; fetch the file again")
        seen.add(at)
        file.seek(at)
        nodes = np.frombuffer(file.read(length // _NODE.itemsize * _NODE.itemsize), _NODE)
        side = 2 * info.halfsize / 2.0 ** np.clip(nodes["level"], 0, 60)
        west, south = (info.center[k] - info.halfsize + nodes[axis] * side for k, axis in enumerate("xy"))
        nodes = nodes[(west <= raw[2]) & (west + side >= raw[0]) & (south <= raw[3]) & (south + side >= raw[1])]
        pages += [(int(node["offset"]), int(node["size"])) for node in nodes[nodes["count"] < 0]]
        chosen.append(nodes[nodes["count"] > 0])
    found = np.sort(np.concatenate(chosen), order="offset")
    ends = found["offset"] + found["size"].astype(np.uint64)
    if (found["size"] < 0).any() or (ends > size).any() or found["count"].sum(dtype=np.int64) > header.point_count:
        raise SourceError(f"{path}: is damaged: its octree and its header disagree; fetch the file again")
    return found


def _metres(record, header: laspy.LasHeader, crs: pyproj.CRS | None, across: float, up: float) -> Points:
    """Points of a part of a file; what the sensor withdrew ("withheld") counts as noise."""
    units = (across, across, up)
    xyz = (record[axis] * (scale * unit) + offset * unit
           for axis, scale, offset, unit in zip("XYZ", header.scales, header.offsets, units, strict=True))  # fmt: skip
    intensity, of, codes = (np.array(record[n]) for n in ("intensity", "number_of_returns", "classification"))
    withheld = np.asarray(record["withheld"], bool)
    if withheld.any():
        codes[withheld] = _NOISE
    several = of.max(initial=0) > 1
    return Points(
        *xyz,
        intensity=intensity if intensity.any() else None,
        return_number=np.array(record["return_number"]) if several else None,
        number_of_returns=of if several else None,
        classification=codes if codes.max(initial=0) > 1 else None,
        crs=crs,
    )
