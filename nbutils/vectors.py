"""Vector maps: the features round a grid, read from any of the usual files, as areas in the grid's coordinates."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from nbutils import guarded
from nbutils.cards import few
from nbutils.files import OutsideError, SourceError

MOST_WIDTH_M = 1000.0  # of a line whose width stands in a column; features are read so far round the grid
HUGE = 1e9  # no coordinate is larger
PARQUET = {".parquet", ".geoparquet", ".pq"}
TAG = r'(?:^|,)"{}"=>"((?:[^"\\]|\\.)*)"'  # a key of OSM's `other_tags`

Place = str | Path
Box = tuple[float, float, float, float]


@contextmanager
def reading(name: object, remedy: str = "fetch or write the file again") -> Iterator[None]:
    """Turn whatever a library says about a file into `SourceError`: damaged files make them raise nearly anything.

    GDAL fetches nothing meanwhile, whatever the file refers to.
    """
    before = {option: pyogrio.get_gdal_config_option(option) for option in guarded.OFFLINE}
    pyogrio.set_gdal_config_options(guarded.OFFLINE)
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        remedy = f"pip install {error.name}" if isinstance(error, ImportError) else remedy
        told = " ".join(str(error.__cause__ or error).split())
        raise SourceError(f"{name}: cannot be read: {told}; {remedy}") from None
    finally:
        pyogrio.set_gdal_config_options(before)


def crs_of(grid: GeoBox) -> pyproj.CRS:
    """CRS of a grid; ValueError where it has none."""
    if grid.crs is None:
        raise ValueError("the grid has no CRS, so no map can be laid on it; give the image one")
    return grid.crs.proj


def along(affine: Affine, x: Any, y: Any) -> tuple[Any, Any]:
    """Apply an affine to numbers or arrays."""
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f


@lru_cache(64)
def way_between(a: pyproj.CRS, b: pyproj.CRS) -> pyproj.Transformer:
    """Transformer of (x, y) or (longitude, latitude); to find the best one takes PROJ longer than to use it."""
    return pyproj.Transformer.from_crs(a, b, always_xy=True)


def _middle(grid: GeoBox) -> tuple[float, float, float, float]:
    """Longitude and latitude of the middle of the grid, and there metres per unit of x and of y of its CRS."""
    x, y = along(grid.transform, grid.shape[1] / 2, grid.shape[0] / 2)
    step = abs(grid.transform.determinant) ** 0.5
    to_degrees = way_between(crs_of(grid), pyproj.CRS(4326))
    (lon, east, north), (lat, *lats) = to_degrees.transform([x, x + step, x], [y, y, y + step])
    if not np.isfinite([lon, lat]).all():
        raise ValueError(f"the middle of the grid, {(x, y)} in {grid.crs}, is nowhere on Earth; is its CRS right?")
    metres = pyproj.Geod(ellps="WGS84").inv([lon, lon], [lat, lat], [east, north], lats)[2]
    return lon, lat, metres[0] / step, metres[1] / step


def bounds_of(grid: GeoBox, crs: pyproj.CRS, pad_m: float = 0.0) -> Box:
    """Box round the grid and `pad_m` metres more, (minx, miny, maxx, maxy) in another CRS; huge where undefined."""
    box = grid.extent.boundingbox
    # wider by a hundredth, as the way between CRSs is followed at some points only, and by half, as scale varies
    pads = [0.01 * side + 1.5 * pad_m / m for side, m in zip((box.span_x, box.span_y), _middle(grid)[2:], strict=True)]
    box = np.add(box, [-pads[0], -pads[1], *pads])
    west, south, east, north = way_between(crs_of(grid), crs).transform_bounds(*box)
    box = (west, south, east, north) if west <= east else (-180.0, south, 180.0, north)  # across the antimeridian
    return tuple(np.where(np.isfinite(box), box, (-HUGE, -HUGE, HUGE, HUGE)).tolist())


def beside(name: str, extent: Sequence[float], grid: Box, crs: pyproj.CRS) -> OutsideError:
    """The error of a file that has nothing under the grid; both boxes are in `crs`."""
    a, b = (tuple(round(float(v), 3) for v in box) for box in (extent, grid))
    return OutsideError(f"{name}: lies beside the grid: it spans {a}, the grid {b} (west, south, east, north in "
                        f"{crs.name}); take the file of this place or correct a wrong CRS")  # fmt: skip


def read_features(
    vectors: Place | geopandas.GeoDataFrame, name: str, columns: list[str], grid: GeoBox, pad_m: float, *how: str | None
) -> tuple[geopandas.GeoDataFrame, Box]:
    """Features whose box meets that of the grid and `pad_m` metres round it, with the columns wanted; that box."""
    crs, fields, read, extent = _describe(vectors, name, *how)
    tags = [column for column in columns if column not in fields]
    if tags and "other_tags" not in fields:
        raise SourceError(f"{name}: has no column {few(tags)}; it has {few(fields, 20)}")
    if not crs:
        raise SourceError(f"{name}: has no CRS; write it into the file, for instance by ogr2ogr -a_srs EPSG:...")
    wanted = [field for field in fields if field in columns or tags and field == "other_tags"]
    box = bounds_of(grid, crs, pad_m)
    with reading(name, "fetch or write the file again, or correct `where`"):
        frame = read(wanted, box)
        frame = frame.iloc[np.sort(frame.sindex.query(shapely.box(*box)))].reset_index(drop=True)
        spans = extent() if frame.empty else box
        for tag in tags:
            frame[tag] = frame["other_tags"].str.extract(TAG.format(re.escape(tag)))[0]
        frame = frame.astype(dict.fromkeys(columns, object))  # text is decoded here and now
    if spans is None or not (spans[0] <= box[2] and spans[2] >= box[0] and spans[1] <= box[3] and spans[3] >= box[1]):
        raise beside(name, (np.nan,) * 4 if spans is None else spans, box, crs)
    return frame, box


def _describe(vectors: Place | geopandas.GeoDataFrame, name: str, layer: str | None, where: str | None):
    """CRS, columns, a function (columns, box) -> features, and one that gives the extent."""
    parquet, given = Path(name).suffix.lower() in PARQUET, isinstance(vectors, geopandas.GeoDataFrame)
    if (given or parquet) and (layer or where):
        raise ValueError(f"{name}: `layer` and `where` are for files that GDAL opens; select the rows before")
    if given:
        fields = [column for column in vectors.columns if column != vectors.geometry.name]
        return vectors.crs, fields, lambda *_: vectors, lambda: vectors.total_bounds
    with reading(name):
        if parquet:
            return _describe_parquet(name)
        layers = pyogrio.list_layers(name)[:, 0].tolist()
        if layer not in (layers if len(layers) > 1 else [None, *layers]):
            raise SourceError(f"{name}: has the layers {few(layers, 20)}, not {layer!r}; name one of them by `layer`")
        info = pyogrio.read_info(name, layer=layer)
        return (
            info["crs"] and pyproj.CRS(info["crs"]),
            info["fields"].tolist(),
            lambda columns, box: pyogrio.read_dataframe(name, layer=layer, columns=columns, where=where, bbox=box),
            lambda: pyogrio.read_info(name, layer=layer, force_total_bounds=True)["total_bounds"],
        )


def _describe_parquet(name: str):
    """As `_describe`, for GeoParquet, which the usual builds of GDAL do not read.

    One row group at a time, which bounds the memory, and without Arrow's scanner and statistics: on a damaged file the
    one can wait for ever and the other ends the process.
    """
    from pyarrow.parquet import ParquetFile  # only this format needs it

    with ParquetFile(name, pre_buffer=False) as file:
        fields, geo = file.schema_arrow.names, json.loads(file.schema_arrow.metadata[b"geo"])
    main = geo["primary_column"]
    about = geo["columns"][main]
    if about["encoding"] != "WKB":
        raise SourceError(f"{name}: geometries are written as {about['encoding']!r}; write them as WKB")
    crs = about.get("crs", "OGC:CRS84")  # the standard's default
    crs = crs and pyproj.CRS(crs)
    edges = about.get("covering", {}).get("bbox", {})
    edges = [".".join(edges[edge]) for edge in ("xmin", "ymin", "xmax", "ymax") if edge in edges]

    def groups(columns: list[str], box: Box) -> Iterator[geopandas.GeoDataFrame]:
        with ParquetFile(name, pre_buffer=False) as file:
            for i in range(file.num_row_groups):
                if len(edges) == 4:
                    boxes = file.read_row_group(i, columns=edges, use_threads=False).flatten()
                    west, south, east, north = (np.array(boxes[edge].to_pylist(), float) for edge in edges)
                    if not ((west <= box[2]) & (east >= box[0]) & (south <= box[3]) & (north >= box[1])).any():
                        continue
                table = file.read_row_group(i, columns=[main, *columns], use_threads=False)
                values = {column: table[column].to_pylist() for column in columns}
                shapes = geopandas.GeoSeries.from_wkb(table[main].to_pylist(), crs=crs)
                yield geopandas.GeoDataFrame(values, geometry=shapes).iloc[shapes.sindex.query(shapely.box(*box))]

    def read(columns: list[str], box: Box = (-HUGE, -HUGE, HUGE, HUGE)) -> geopandas.GeoDataFrame:
        found = list(groups(columns, box))
        return pd.concat(found) if found else geopandas.GeoDataFrame(columns=columns, geometry=[], crs=crs)

    return crs, [field for field in fields if field != main], read, lambda: read([]).total_bounds


def areas_of(
    drawing: geopandas.GeoDataFrame, box: Box, pad_m: float, grid: GeoBox, name: str
) -> geopandas.GeoDataFrame:
    """Turn features into polygons in the CRS of the grid.

    Args:
        drawing: Features with the columns `level` (drawn in this order) and `half_m` (half the width of a line or
            point, metres, at most `pad_m`; NaN for none).
        box: Box round the grid in the features' CRS; what lies beyond is cut off.
        pad_m: Metres of that box beyond the grid.
        grid: The grid.
        name: File, for errors.

    Returns:
        Polygons, sorted by `level`.

    Raises:
        SourceError: A line or point without a width, or a geometry beyond repair.
    """
    with reading(name, "repair its geometries"):
        shapes = drawing.geometry
        drawing = drawing.assign(valid=shapes.is_valid, rank=shapely.get_dimensions(shapes))
        parts = drawing.set_geometry(shapes.where(drawing["valid"], shapes.make_valid())).explode()
        # a repaired polygon may leave lines behind, which nobody drew
        parts["rank"], before = shapely.get_dimensions(parts.geometry), parts["rank"]
        parts = parts[parts["valid"] | (parts["rank"] == before)].reset_index(drop=True)
        # what reaches far away may have no place in the grid's CRS, and edges straight in the file are bent there
        far = ~parts.within(around := shapely.box(*box))
        parts.loc[far, "geometry"] = parts[far].intersection(around)
        parts["geometry"] = parts.segmentize(max(box[2] - box[0], box[3] - box[1]) / 64)
        thin = parts["rank"] < 2
        if bad := int((thin & ~parts["half_m"].between(1e-9, pad_m)).sum()):
            raise SourceError(f"{name}: {bad} points or lines have no width, so they cover nothing; give `width_m` in "
                              f"metres (in a column up to {MOST_WIDTH_M:g}) or select areas only")  # fmt: skip
        areas = parts[~thin].to_crs(crs_of(grid))
        if thin.any():  # in metres true to scale here, whatever the grid counts in
            lon, lat, *_ = _middle(grid)
            lines = parts[thin].to_crs(f"+proj=aeqd +lat_0={lat} +lon_0={lon} +datum=WGS84 +units=m")
            lines["geometry"] = lines.buffer(lines["half_m"])
            areas = pd.concat([areas, lines.to_crs(crs_of(grid))])
        areas = areas[~areas.is_empty].sort_values("level", kind="stable")
        if lost := int((~np.isfinite(areas.bounds)).any(axis=1).sum()):
            raise SourceError(f"{name}: {lost} features have no place in {grid.crs}; is its CRS right?")
    return areas
