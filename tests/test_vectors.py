"""Vector maps on a grid, against points in polygons and distances on the ellipsoid, in every usual format."""

import struct
import zlib
from itertools import pairwise

import geopandas
import numpy as np
import pandas as pd
import pyproj
import pytest
import shapely
from affine import Affine
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from shapely.geometry import GeometryCollection, LineString, MultiPolygon, Point, Polygon

from nbutils import ROOT, maps
from nbutils.files import SourceError
from nbutils.legend import VOID, Legend

SLOVENIA = ROOT / "../shared/data/slovenia"
KINDS = {"wood": "tree", "house": "building", "street": "road"}
HOW = {"legend": "autogeo4", "column": "kind", "classes": KINDS}
GRIDS = {
    "UTM": GeoBox((60, 80), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633"),
    "turned": GeoBox((60, 80), Affine(8, 5, 500_000, 5, -8, 5_000_000), "EPSG:32633"),
    "rows upwards": GeoBox((60, 80), Affine(10, 0, 500_000, 0, 10, 4_999_000), "EPSG:32633"),
    "degrees": GeoBox((60, 80), Affine(1e-4, 0, 15.0, 0, -1e-4, 45.15), "EPSG:4326"),
    "Mercator": GeoBox((60, 80), Affine(10, 0, 1_669_792, 0, -10, 8_400_000), "EPSG:3857"),
    "feet": GeoBox((60, 80), Affine(15, 0, 985_000, 0, -15, 205_000), "EPSG:2263"),
}
GRID = GRIDS["UTM"]


def _place(grid, column, row, crs):
    """Coordinates in `crs` of places given in columns and rows of a grid."""
    t = grid.transform
    way = pyproj.Transformer.from_crs(grid.crs.proj, crs, always_xy=True)
    return way.transform(t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f)


def _centres(grid, crs):
    return _place(grid, *np.meshgrid(np.arange(grid.shape[1]) + 0.5, np.arange(grid.shape[0]) + 0.5), crs)


def _shapes(rng, grid, crs, count=12, reach=25):
    """Star-shaped polygons over the grid, in another CRS."""
    shapes = []
    for _ in range(count):
        around = np.sort(rng.uniform(0, 2 * np.pi, n := rng.integers(3, 9)))
        far, column, row = rng.uniform(reach / 3, reach, n), *rng.uniform(0, grid.shape[::-1])
        x, y = _place(grid, column + far * np.cos(around), row + far * np.sin(around), crs)
        shapes.append(Polygon(np.c_[x, y]))
    return shapes


def _boxes(crs="EPSG:32633"):
    """A wood in the west, a house on it, a street through both; metres from the grid's corner."""
    x, y = 500_000, 5_000_000
    shapes = [shapely.box(x, y - 600, x + 300, y), shapely.box(x + 100, y - 200, x + 200, y - 100),
              shapely.box(x, y - 160, x + 800, y - 140)]  # fmt: skip
    return geopandas.GeoDataFrame({"kind": list(KINDS), "w": [0.0, 5.0, 20.0]}, geometry=shapes, crs=32633).to_crs(crs)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("crs", [None, 4326, 3395])
def test_a_pixel_belongs_to_the_last_area_that_holds_its_centre(name, crs):
    grid, rng = GRIDS[name], np.random.default_rng(3)
    crs = grid.crs.proj if crs is None else pyproj.CRS(crs)
    shapes, kinds = _shapes(rng, grid, crs), rng.choice(list(KINDS), 12)
    frame = geopandas.GeoDataFrame({"kind": kinds}, geometry=shapes, crs=crs)
    order = ["road", "tree", "building"]
    mask = maps.from_vector(frame, grid, **HOW, background="background", order=order)
    points = shapely.points(*_centres(grid, crs))
    wanted = np.zeros(grid.shape, np.uint8)
    for one in order:
        for shape in frame.geometry[[KINDS[kind] == one for kind in kinds]]:
            wanted[shapely.contains(shapely.make_valid(shape), points)] = ["background", *KINDS.values()].index(one)
    assert mask.dtype == np.uint8 and len(np.unique(wanted)) == 4
    assert (mask != wanted).sum() <= 1, "a centre on an edge"


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(0, 360), st.sampled_from([4326, 32633, 3035]))
def test_any_turn_any_polygon(seed, turned, crs):
    c, s = 7 * np.cos(np.radians(turned)), 7 * np.sin(np.radians(turned))
    grid = GeoBox((20, 25), Affine(c, s, 500_000, s, -c, 5_000_000), "EPSG:32633")
    shapes = _shapes(np.random.default_rng(seed), grid, crs, 3, 12)
    frame = geopandas.GeoDataFrame({"kind": list(KINDS)}, geometry=shapes, crs=crs)
    mask = maps.from_vector(frame, grid, **HOW)
    points, wanted = shapely.points(*_centres(grid, crs)), np.full(grid.shape, VOID, np.uint8)
    near = np.zeros(grid.shape, bool)
    for i, shape in enumerate(shapes):
        wanted[shapely.contains(shapely.make_valid(shape), points)] = i + 1
        near |= shapely.distance(shape.exterior, points) < (1e-3 if crs != 4326 else 1e-8)  # a millimetre
    assert np.array_equal(mask[~near], wanted[~near])


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("crs", [4326, None])
def test_lines_and_points_are_as_wide_as_said_in_metres_on_the_ground(name, crs):
    """The oracle measures on the ellipsoid; in Mercator at 60 degrees a metre of the map is half a metre."""
    grid, rng = GRIDS[name], np.random.default_rng(5)
    crs, width = crs or grid.crs.proj, 57.0
    nodes = np.array([_place(grid, *rng.uniform(0, grid.shape[::-1]), crs) for _ in range(4)])
    dot = Point(_place(grid, 70, 50, crs))
    frame = geopandas.GeoDataFrame({"kind": ["street"] * 2}, geometry=[LineString(nodes), dot], crs=crs)
    mask = maps.from_vector(frame, grid, **HOW, width_m=width)
    lon, lat = _centres(grid, 4326)
    steps = np.linspace(0, 1, 400)[:, None]
    trail = np.concatenate([a + (b - a) * steps for a, b in pairwise(nodes)] + [[dot.coords[0]]])
    x, y = pyproj.Transformer.from_crs(crs, 4326, always_xy=True).transform(*trail.T)
    nearest = np.full(grid.shape, np.inf)
    for px, py in zip(x, y, strict=True):
        flat = np.hypot((lon - px) * np.cos(np.radians(lat)), lat - py)
        nearest = np.minimum(nearest, flat)
    close = np.nonzero(nearest * 111_000 < width)  # measured properly near the trail only
    metres = np.full(grid.shape, np.inf)
    for i, j in zip(*close, strict=True):
        few = np.argsort(np.hypot((x - lon[i, j]) * np.cos(np.radians(lat[i, j])), y - lat[i, j]))[:3]
        metres[i, j] = pyproj.Geod(ellps="WGS84").inv([lon[i, j]] * 3, [lat[i, j]] * 3, x[few], y[few])[2].min()
    clear = abs(metres - width / 2) > 0.02 * width / 2
    assert (metres < width / 2).sum() > 50
    assert np.array_equal(mask[clear] == 3, metres[clear] < width / 2)


def test_widths_may_stand_in_a_column_and_in_text():
    lines = [
        LineString([(500_000, 4_999_895), (500_800, 4_999_895)]),
        LineString([(500_000, 4_999_695), (500_800, 4_999_695)]),
    ]
    frame = geopandas.GeoDataFrame({"kind": ["street"] * 2, "w": [30, "50"]}, geometry=lines, crs=32633)
    mask = maps.from_vector(frame, GRID, **HOW, width_m="w")
    assert (mask[:, 40] == 3).nonzero()[0].tolist() == [9, 10, 11, 28, 29, 30, 31, 32]
    frame.loc[1, "w"] = None
    with pytest.raises(SourceError, match="1 points or lines have no width.*`width_m`"):
        maps.from_vector(frame, GRID, **HOW, width_m="w")
    with pytest.raises(SourceError, match="features given: 2 points or lines have no width"):
        maps.from_vector(frame, GRID, **HOW)
    beyond = frame.iloc[:1].translate(0, 300)  # 195 m north of the grid; wide enough to reach it
    beyond = geopandas.GeoDataFrame({"kind": ["street"]}, geometry=beyond, crs=32633)
    assert (maps.from_vector(beyond, GRID, **HOW, width_m=430)[0] == 3).all()


def test_what_is_repaired_and_what_is_left_out():
    x, y = 500_000, 5_000_000
    bow = Polygon([(x, y), (x + 400, y - 400), (x + 400, y), (x, y - 400)])
    spike = Polygon([(x + 500, y - 500), (x + 600, y - 500), (x + 500, y - 500)])  # no area at all
    mixed = GeometryCollection([MultiPolygon([shapely.box(x + 700, y - 300, x + 800, y - 200)]),
                                LineString([(x + 700, y - 405), (x + 800, y - 405)])])  # fmt: skip
    frame = {"kind": ["wood", "wood", "street", "house"]}
    frame = geopandas.GeoDataFrame(frame, geometry=[bow, spike, mixed, None], crs=32633)
    mask = maps.from_vector(frame, GRID, **HOW, background="background", width_m=20)
    assert (mask[2, 4:36] == 0).all() and mask[10, 2] == 1 and mask[10, 37] == 1 and mask[10, 20] == 0
    assert (mask[50, 50:60] == 0).all(), "a ring without area is no line"
    assert (mask[20:30, 70:] == 3).all() and (mask[40, 71:79] == 3).all() and (mask == 2).sum() == 0


def test_a_continent_is_cut_to_the_place_before_it_is_projected():
    """Its far corners have no place in UTM, and its straight edge is a curve there."""
    north = Polygon([(-170, 44.8), (170, 44.8), (170, 89), (-170, 89)])
    frame = geopandas.GeoDataFrame({"kind": ["wood"]}, geometry=[north], crs=4326)
    wide = GeoBox((60, 200), Affine(3000, 0, 200_000, 0, -3000, 5_090_000), "EPSG:32633")
    north_by = _centres(wide, 4326)[1] - 44.8
    wanted, clear = np.where(north_by > 0, 1, 0), abs(north_by) > 1e-4
    assert sum(len(np.unique(row)) == 2 for row in wanted) > 1, "the parallel is no row of the grid"
    mask = maps.from_vector(frame, wide, **HOW, background="background")
    assert np.array_equal(mask[clear], wanted[clear]) and clear.mean() > 0.99


def test_a_map_in_degrees_covers_a_grid_across_the_antimeridian():
    grid = GeoBox((6, 40), Affine(30_000, 0, -400_000, 0, -200_000, 1_500_000), "EPSG:32601")  # zone 1 begins at -180
    sides = [shapely.box(150, -50, 180, 50), shapely.box(-180, -50, -150, 50)]
    frame = geopandas.GeoDataFrame({"kind": ["wood", "house"]}, geometry=sides, crs=4326)
    lon = _centres(grid, 4326)[0]
    assert np.array_equal(maps.from_vector(frame, grid, **HOW), np.where(lon > 0, 1, 2))


def test_drawing_order_background_ignored_and_missing():
    frame = _boxes()
    later_on_top = maps.from_vector(frame, GRID, **HOW)
    assert [later_on_top[r, c] for r, c in ((30, 10), (12, 15), (15, 15), (15, 60), (50, 60))] == [1, 2, 3, 3, VOID]
    mask = maps.from_vector(frame, GRID, **HOW, order=["road", "building", "tree"], background="background")
    assert [mask[r, c] for r, c in ((12, 15), (15, 15), (15, 60), (50, 60))] == [1, 1, 3, 0]
    mask = maps.from_vector(frame, GRID, legend="autogeo4", column="kind", classes={"house": None, "*": "tree"},
                            order=["tree", None], background="background")  # fmt: skip
    assert [mask[r, c] for r, c in ((12, 15), (15, 60), (50, 60))] == [VOID, 1, 0]
    frame["kind"] = ["wood", None, "path"]
    told = "given: column 'kind' holds values without a class: missing x 1, 'path' x 1; give them one in `classes` or"
    with pytest.raises(SourceError, match=told):
        maps.from_vector(frame, GRID, **HOW)
    with pytest.raises(SourceError, match="missing x 1"):
        maps.from_vector(frame, GRID, **{**HOW, "classes": {"*": "tree"}})
    mask = maps.from_vector(frame, GRID, **HOW, ignore=[None, "path"])
    assert set(np.unique(mask)) == {1, VOID}
    frame["kind"] = [7, np.nan, 8]  # whole numbers that a missing one turned into floats
    mask = maps.from_vector(
        frame, GRID, legend="autogeo4", column="kind", classes={7: "tree", 8: "road"}, ignore=[None]
    )
    assert set(np.unique(mask)) == {1, 3, VOID}


def test_nothing_here_is_background_but_a_map_of_elsewhere_is_an_error(tmp_path):
    frame = _boxes()
    path = tmp_path / "far.gpkg"
    frame.translate(3000).to_frame("geometry").assign(kind="wood").to_file(path)
    with pytest.raises(SourceError, match=r"far.gpkg: lies beside the grid: it spans \(503000.0, 4999400.0, 503800.0, "
                                          r"5000000.0\), the grid \(4999.*zone 33N\); take the file"):  # fmt: skip
        maps.from_vector(path, GRID, **HOW)
    both = pd.concat([frame.translate(3000), frame.translate(-3000)]).to_frame("geometry").assign(kind="wood")
    both.to_file(path)
    assert (maps.from_vector(path, GRID, **HOW, background="background") == 0).all()
    assert (maps.from_vector(both, GRID, **HOW) == VOID).all()
    frame.iloc[:0].to_file(path)
    with pytest.raises(SourceError, match="far.gpkg: lies beside the grid"):
        maps.from_vector(path, GRID, **HOW)


FORMATS = {"a.gpkg": 32633, "a.geojson": 4326, "a.shp": 3035, "a.fgb": 2056, "a.parquet": 4326, "boxed.parquet": 32633}


@pytest.mark.filterwarnings("ignore:Geometry is in a geographic CRS")
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_mask(tmp_path, name):
    frame, path = _boxes(FORMATS[name]), tmp_path / name
    frame.geometry = frame.segmentize(frame.length.max() / 400)  # straight in each of the CRSs
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="GeoParquet needs pyarrow")
        frame.to_parquet(path, write_covering_bbox=name.startswith("boxed"))
    else:
        frame.to_file(path)
    mask = maps.from_vector(path, GRID, **HOW, background="background")
    assert np.array_equal(mask, maps.from_vector(_boxes(), GRID, **HOW, background="background"))
    with pytest.raises(SourceError, match=rf"{name}: has no column knd; it has kind, w"):
        maps.from_vector(path, GRID, **{**HOW, "column": "knd"})


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_layers_conditions_and_files_without_crs(tmp_path):
    path = tmp_path / "two.gpkg"
    _boxes().to_file(path, layer="land")
    _boxes().assign(kind="x").to_file(path, layer="other")
    with pytest.raises(
        SourceError, match="two.gpkg: has the layers land, other, not None; name one of them by `layer`"
    ):
        maps.from_vector(path, GRID, **HOW)
    with pytest.raises(SourceError, match="not 'lnad'"):
        maps.from_vector(path, GRID, **HOW, layer="lnad")
    mask = maps.from_vector(path, GRID, **HOW, layer="land", where="kind = 'wood' AND w < 1")
    assert set(np.unique(mask)) == {1, VOID}
    with pytest.raises(SourceError, match="two.gpkg: cannot be read.*correct `where`"):
        maps.from_vector(path, GRID, **HOW, layer="land", where="nonsense nonsense")
    with pytest.raises(ValueError, match="`layer` and `where` are for files that GDAL opens"):
        maps.from_vector(_boxes(), GRID, **HOW, where="w < 1")
    bare = _boxes().set_crs(None, allow_override=True)
    bare.to_file(tmp_path / "bare.shp")
    for vectors in (bare, tmp_path / "bare.shp"):
        with pytest.raises(SourceError, match="has no CRS; write it into the file"):
            maps.from_vector(vectors, GRID, **HOW)
    with pytest.raises(SourceError, match="none.gpkg: cannot be read: .*No such file"):
        maps.from_vector(tmp_path / "none.gpkg", GRID, **HOW)


def test_arguments_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match="no class 'roads'"):
        maps.from_vector(_boxes(), GRID, **{**HOW, "classes": {"street": "roads"}})
    with pytest.raises(ValueError, match="`order` does not say when building is drawn"):
        maps.from_vector(_boxes(), GRID, **HOW, order=["tree", "road"])
    with pytest.raises(ValueError, match="grid has no CRS"):
        maps.from_vector(_boxes(), GeoBox((4, 4), GRID.transform, None), **HOW)
    with pytest.raises(ValueError, match="nowhere on Earth"):
        maps.from_vector(_boxes(), GeoBox((4, 4), Affine(10, 0, 1e30, 0, -10, 0), "EPSG:32633"), **HOW)


def _varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def _field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _pbf(nodes, ways) -> bytes:
    """An OSM extract: nodes (lon, lat) numbered from 1, ways (node numbers, tags)."""
    words = [b"", *{text.encode() for _, tags in ways for pair in tags.items() for text in pair}]
    index = {word.decode(): i for i, word in enumerate(words)}
    zigzag = lambda n: n * 2 if n >= 0 else -n * 2 - 1  # noqa: E731
    packed = lambda numbers: b"".join(map(_varint, numbers))  # noqa: E731
    group = lines = b""
    for i, (lon, lat) in enumerate(nodes, 1):
        place = _field(8, zigzag(round(lat * 1e7))) + _field(9, zigzag(round(lon * 1e7)))
        group += _field(1, _field(1, zigzag(i)) + place)
    for i, (refs, tags) in enumerate(ways, 1):
        keys, values = packed(index[k] for k in tags), packed(index[v] for v in tags.values())
        steps = packed(map(zigzag, np.diff([0, *refs]).tolist()))
        lines += _field(3, _field(1, i) + _field(2, keys) + _field(3, values) + _field(8, steps))
    block = _field(1, b"".join(_field(1, word) for word in words)) + _field(2, group) + _field(2, lines)
    out = b""
    for kind, body in ((b"OSMHeader", _field(4, b"OsmSchema-V0.6")), (b"OSMData", block)):
        blob = _field(2, len(body)) + _field(3, zlib.compress(body))
        head = _field(1, kind) + _field(3, len(blob))
        out += struct.pack(">I", len(head)) + head + blob
    return out


def test_an_osm_extract_with_classes_among_its_other_tags(tmp_path):
    corners = [(0, 0), (300, 0), (300, -600), (0, -600), (0, -155), (800, -155)]
    nodes = [
        pyproj.Transformer.from_crs(32633, 4326, always_xy=True).transform(500_000 + x, 5_000_000 + y)
        for x, y in corners
    ]
    ways = [([1, 2, 3, 4, 1], {"natural": "wood"}), ([5, 6], {"highway": "primary", "lit": 'a "b",', "width": "30"}),
            ([1, 3], {"barrier": "fence"})]  # fmt: skip
    path = tmp_path / "town.osm.pbf"
    path.write_bytes(_pbf(nodes, ways))
    with pytest.raises(SourceError, match="has the layers points, lines, multilinestrings, multipolygons"):
        maps.from_vector(path, GRID, legend="autogeo4", column="highway", classes={"primary": "road"})
    roads = {
        "legend": "autogeo4",
        "column": "highway",
        "classes": {"primary": "road"},
        "layer": "lines",
        "ignore": [None],
    }
    mask = maps.from_vector(path, GRID, **roads, width_m="width", where="highway IS NOT NULL")
    assert np.array_equal(mask == 3, np.repeat(np.isin(np.arange(60), [14, 15, 16])[:, None], 80, 1))
    assert np.array_equal(mask, maps.from_vector(path, GRID, **roads, width_m=30))
    lit = maps.from_vector(path, GRID, **{**roads, "column": "lit", "classes": {r"a \"b\",": "road"}}, width_m=30)
    assert np.array_equal(lit, mask)
    with pytest.raises(SourceError, match="column 'highway' holds values without a class: missing x 1"):
        maps.from_vector(path, GRID, **{**roads, "ignore": []}, width_m=30)
    wood = maps.from_vector(
        path, GRID, legend="autogeo4", column="natural", classes={"wood": "tree"}, layer="multipolygons"
    )
    assert (wood[:, :30] == 1).all() and (wood[:, 30:] == VOID).all()


@pytest.mark.skipif(not SLOVENIA.is_dir(), reason=f"the Slovenian sample is not at {SLOVENIA}; see data/README.md")
def test_official_land_use_polygons_give_the_published_raster():
    names = ("cultivated land", "forest", "grassland", "shrubland", "artificial surface")
    land = Legend("land use", names, tuple((i, 0, 0) for i in range(5)), (1, 2, 3, 4, 8))
    with np.load(SLOVENIA / "eopatch_slovenia.npz") as data:
        wanted = land.encode(data["lulc"], void=[0])
    west, south, east, north = 465181.0522318204, 5079244.8912012065, 466180.53145382757, 5080254.63349641
    grid = GeoBox(wanted.shape, Affine((east - west) / 100, 0, west, 0, (south - north) / 101, north), "EPSG:32633")
    classes = dict(zip(land.codes, names, strict=True)) | {0: None}
    mask = maps.from_vector(SLOVENIA / "LULC.gpkg", grid, legend=land, column="LULC_ID", classes=classes)
    assert np.array_equal(mask, wanted)
    classes = {name: name for name in names} | {"": None}  # the file spells one of them otherwise
    with pytest.raises(SourceError, match="column 'LULC_NAME' holds values without a class: 'schrubland' x 33"):
        maps.from_vector(SLOVENIA / "LULC.gpkg", grid, legend=land, column="LULC_NAME", classes=classes)


@pytest.mark.parametrize("name", ["x.gpkg", "x.geojson", "x.parquet", "x.shp"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what GDAL says of damage that it reads past
def test_damaged_maps_are_read_or_named_never_worse(tmp_path, name):
    path, told = tmp_path / name, 0
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="GeoParquet needs pyarrow")
        _boxes().to_parquet(path, write_covering_bbox=True)
    else:
        _boxes(4326 if "json" in name else 32633).to_file(path)
    raw = path.read_bytes()
    for seed in range(200):
        path.write_bytes(damaged(raw, np.random.default_rng(seed)))
        try:
            mask = maps.from_vector(path, GRID, **HOW, background="background")
            assert mask.dtype == np.uint8 and mask.shape == (60, 80) and mask.max() <= 3
        except SourceError as error:
            assert str(error).startswith(f"{path}: ") and "; " in str(error)
            told += 1
    assert told > 50
