"""Coded rasters on a grid, against counts made point by point, on real products and on damaged files."""

from dataclasses import replace

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from nbutils import ROOT, legend, maps
from nbutils.files import SourceError
from nbutils.legend import VOID

SAMPLES = ROOT / "../shared/data/terramesh-samples/LULC"
DW = {"source": "dw9", "target": "dw9"}
GRID = GeoBox((24, 24), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633")


def _affine(x, y, size, turned=0.0, flipped=False) -> Affine:
    """Origin, pixel size, rotation in degrees, and whether rows run upwards."""
    c, s = np.cos(np.radians(turned)) * size, np.sin(np.radians(turned)) * size
    return Affine(c, s, x, s, -c, y) if not flipped else Affine(c, -s, x, s, c, y)


def _blobs(rng, shape, classes=9, side=3):
    """Random classes in blobs of `side` pixels."""
    small = rng.integers(0, classes, (shape[0] // side + 1, shape[1] // side + 1))
    return small.repeat(side, 0).repeat(side, 1)[: shape[0], : shape[1]].astype(np.uint8)


def _write(path, codes, transform=GRID.transform, crs="EPSG:32633", **more):
    codes = codes[None] if codes.ndim == 2 else codes
    with rasterio.open(path, "w", driver="GTiff", height=codes.shape[1], width=codes.shape[2], count=len(codes),
                       dtype=codes.dtype.name, crs=crs, transform=transform, **more) as data:  # fmt: skip
        data.write(codes)
    return path


def _dense(codes, transform, crs, grid, n):
    """Codes at n x n points of every grid pixel, each projected on its own; 255 off the raster; (H, W, n * n)."""
    height, width = grid.shape
    u, v = np.meshgrid((np.arange(width * n) + 0.5) / n, (np.arange(height * n) + 0.5) / n)
    t, way = grid.transform, pyproj.Transformer.from_crs(grid.crs.proj, crs, always_xy=True)
    x, y = way.transform(t.a * u + t.b * v + t.c, t.d * u + t.e * v + t.f)
    t = ~transform
    column, row = np.floor(t.a * x + t.b * y + t.c), np.floor(t.d * x + t.e * y + t.f)
    inside = (column >= 0) & (row >= 0) & (column < codes.shape[1]) & (row < codes.shape[0])
    found = np.full(u.shape, VOID, np.uint8)
    found[inside] = codes[row[inside].astype(int), column[inside].astype(int)]
    return found.reshape(height, n, width, n).transpose(0, 2, 1, 3).reshape(height, width, n * n)


CASES = {
    "degrees to UTM": (_affine(14.99, 45.16, 1 / 12000), 4326, (400, 700), _affine(500_000, 4_999_000, 10), 32633),
    "degrees, rows upwards": (_affine(14.99, 45.12, 1 / 12000, flipped=True), 4326, (400, 700),
                              _affine(500_000, 4_997_000, 10, flipped=True), 32633),
    "turned grid": (_affine(14.99, 45.16, 1 / 12000), 4326, (400, 700), _affine(500_500, 4_999_000, 10, 33), 32633),
    "turned product": (_affine(500_000, 4_999_000, 9, 20), 32633, (400, 400), _affine(15.01, 45.14, 1 / 9000), 4326),
    "Europe to Switzerland": (_affine(4_100_000, 2_700_000, 100), 3035, (900, 2000),
                              _affine(2_600_000, 1_200_000, 70, 5), 2056),
    "feet": (_affine(583_000, 4_512_000, 2), 32618, (900, 900), _affine(982_500, 212_000, 7), 2263),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_nearest_is_the_product_at_the_projected_pixel_centre(case, tmp_path):
    transform, crs, shape, onto, to = CASES[case]
    codes = _blobs(np.random.default_rng(1), shape, side=1)
    grid = GeoBox((70, 90), onto, f"EPSG:{to}")
    wanted = _dense(codes, transform, crs, grid, 1)[..., 0]
    assert (wanted != VOID).mean() > 0.3, "the case is about a grid on the product"
    path = _write(tmp_path / "a.tif", codes, transform, f"EPSG:{crs}", tiled=True, blockxsize=64, blockysize=64)
    mask = maps.from_product(path, grid, **DW)
    assert mask.dtype == np.uint8 and mask.shape == (70, 90)
    assert (mask != wanted).sum() <= 1, "a centre on the edge of two pixels"
    own = GeoBox(shape, transform, f"EPSG:{crs}")
    assert np.array_equal(mask, maps.from_product((codes, own), grid, **DW))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("coarser", [2.0, 5.3])
def test_majority_is_the_largest_area_among_the_classes_of_the_target(case, coarser):
    transform, crs, shape, onto, to = CASES[case]
    codes = _blobs(np.random.default_rng(2), shape)
    codes[:, : shape[1] // 3][codes[:, : shape[1] // 3] == 8] = 77  # holes of the product
    grid = GeoBox((16, 20), onto @ Affine.scale(coarser), f"EPSG:{to}")
    points = _dense(codes, transform, crs, grid, 24)
    lookup = np.full(256, 8, np.uint8)
    lookup[:9] = np.array([legend.crosswalk("dw9", "dfc8")[i] for i in range(9)])
    points = np.where(points < 9, np.where(lookup[points] == VOID, 8, lookup[points]), 8)  # 8: unknown
    votes = np.stack([(points == i).sum(-1) for i in range(9)], -1)
    share = np.sort(votes[..., :8], -1) / points.shape[-1]
    unknown = votes[..., 8] / points.shape[-1]
    clear = (abs(unknown - 0.5) > 0.08) & ((share[..., -1] - share[..., -2] > 0.1) | (unknown > 0.58))
    wanted = np.where(unknown > 0.5, VOID, votes[..., :8].argmax(-1))
    own = GeoBox(shape, transform, f"EPSG:{crs}")
    mask = maps.from_product((codes, own), grid, source="dw9", target="dfc8", method="majority", void=[77])
    assert clear.mean() > 0.3 and np.array_equal(mask[clear], wanted[clear])
    assert (mask != wanted).mean() < 0.12, "areas that differ by less than a tenth"


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.booleans())
def test_majority_of_whole_pixels_is_counted_exactly_and_ties_go_to_the_centre(seed, n, flipped):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, (5 * n, 6 * n)).astype(np.uint8)
    codes[rng.random(codes.shape) < 0.3] = 9
    blocks = codes.reshape(5, n, 6, n).transpose(0, 2, 1, 3).reshape(5, 6, n * n)
    votes = np.stack([(blocks == i).sum(-1) for i in range(3)], -1)
    unknown = (blocks == 9).sum(-1) * 2 > n * n
    own = GeoBox(codes.shape, _affine(500_000, 5_000_000, 3.7, flipped=flipped), "EPSG:32633")
    onto = GeoBox((5, 6), _affine(500_000, 5_000_000, 3.7 * n, flipped=flipped), "EPSG:32633")
    mask = maps.from_product((codes, own), onto, **DW, method="majority", void=[9])
    assert np.array_equal(mask == VOID, unknown)
    best = votes.max(-1)
    row, column = np.nonzero(~unknown)
    assert (votes[row, column, mask[row, column]] == best[row, column]).all()
    centre = codes[n // 2 :: n, n // 2 :: n]
    tied = ~unknown & (centre < 3) & (np.take_along_axis(votes, np.minimum(centre, 2)[..., None], -1)[..., 0] == best)
    assert np.array_equal(mask[tied], centre[tied])


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 360),
    st.booleans(),
    st.floats(0.2, 6),
    st.sampled_from(["nearest", "majority"]),
)
def test_any_turn_and_size_gives_only_codes_that_lie_under_the_pixel(seed, turned, flipped, size, method):
    codes = _blobs(np.random.default_rng(seed), (40, 50), side=4)
    own = GeoBox(codes.shape, _affine(0, 0, 1), "EPSG:32633")
    grid = GeoBox((9, 7), _affine(20, -20, size, turned, flipped), "EPSG:32633")
    try:
        mask = maps.from_product((codes, own), grid, **DW, method=method)
    except SourceError as error:
        assert "beside the grid" in str(error)
        mask = np.full((9, 7), VOID, np.uint8)
    under = _dense(codes, own.transform, 32633, grid, 12)
    there = (under == mask[..., None]).any(-1)
    assert there.all()
    if method == "nearest" or size <= 1:
        centre = _dense(codes, own.transform, 32633, grid, 1)[..., 0]
        assert (mask == centre).mean() > 0.98  # a centre may lie on an edge


def test_a_product_as_coarse_as_the_grid_is_the_same_by_both_methods():
    codes = _blobs(np.random.default_rng(0), (90, 90), side=1)
    own = GeoBox(codes.shape, _affine(14.99, 45.16, 1 / 1500), "EPSG:4326")
    masks = [maps.from_product((codes, own), GRID, **DW, method=m) for m in ("nearest", "majority")]
    assert np.array_equal(*masks) and len(np.unique(masks[0])) > 3


@pytest.mark.parametrize("case", CASES)
def test_majority_differs_from_points_each_projected_on_its_own_in_no_pixel_in_a_thousand(case):
    """Same points, counted one by one: the worst that is left is a point on an edge where two classes tie."""
    transform, crs, shape, onto, to = CASES[case]
    codes = _blobs(np.random.default_rng(5), shape, side=2)
    grid = GeoBox((60, 80), onto @ Affine.scale(1.9), f"EPSG:{to}")
    own = GeoBox(shape, transform, f"EPSG:{crs}")
    mask = maps.from_product((codes, own), grid, **DW, method="majority")
    raster = maps._Product("", grid, pyproj.CRS(crs), transform, shape, lambda window: codes)
    sides = [np.nanmax(np.hypot(*np.diff(raster.corners((slice(0, 60), slice(0, 80))), axis=a))) for a in (1, 2)]
    steps = [(n := int(np.ceil(side - 0.001))) * -(-maps.SAMPLES // n) for side in sides]
    i, j = (part.ravel() for part in np.indices(steps))
    v, u = (i + (j + 0.5) / steps[1]) / steps[0], (j + (i + 0.5) / steps[0]) / steps[1]
    rows, columns = np.mgrid[:60, :80][..., None] + np.stack([v, u])[:, None, None]
    x, y = (grid.transform.a * columns + grid.transform.b * rows + grid.transform.c,
            grid.transform.d * columns + grid.transform.e * rows + grid.transform.f)  # fmt: skip
    x, y = pyproj.Transformer.from_crs(to, crs, always_xy=True).transform(x, y)
    t = ~transform
    column, row = (np.floor(c).astype(int) for c in (t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f))
    inside = (column >= 0) & (row >= 0) & (column < shape[1]) & (row < shape[0])
    found = np.where(inside, codes[np.where(inside, row, 0), np.where(inside, column, 0)], 9)
    votes = (found[..., None] == np.arange(10)).sum(2)
    most = np.where(votes[..., 9] * 2 > len(u), VOID, votes[..., :9].argmax(-1))
    ties = (votes[..., :9] == votes[..., :9].max(-1, keepdims=True)).sum(-1) > 1
    assert inside.mean() > 0.3 and ((mask != most) & ~ties).mean() < 1e-3


def test_majority_follows_the_way_between_two_systems_at_few_places(monkeypatch):
    """One corner in 16 along each side, not every point of every pixel."""

    class Counting:
        def __init__(self, way):
            self.way, self.count = way, 0

        def transform(self, x, y):
            self.count += np.size(x)
            return self.way.transform(x, y)

    transform, crs, shape, onto, to = CASES["degrees to UTM"]
    counting = Counting(pyproj.Transformer.from_crs(to, crs, always_xy=True))
    monkeypatch.setattr(maps, "way_between", lambda a, b: counting)
    grid = GeoBox((320, 320), onto, f"EPSG:{to}")
    own = GeoBox(shape, transform, f"EPSG:{crs}")
    maps.from_product((np.zeros(shape, np.uint8), own), grid, **DW, method="majority")
    assert 0 < counting.count < 320 * 320 / 100


@pytest.mark.parametrize(
    "to, x, y, size", [(3413, -4e6, 4e6, 1.3e5), (3995, -3e6, 3e6, 9e4), (32633, -3e6, 8e6, 1.5e5)]
)
def test_majority_where_the_way_bends_is_followed_at_every_corner(to, x, y, size):
    """Round the pole and across a whole zone's neighbours nothing is bilinear over sixteen pixels."""
    codes = _blobs(np.random.default_rng(3), (180, 360), side=4)
    own, grid = (
        GeoBox(codes.shape, Affine(1, 0, -180, 0, -1, 90), "EPSG:4326"),
        GeoBox((40, 50), _affine(x, y, size), to),
    )
    mask = maps.from_product((codes, own), grid, **DW, method="majority")
    points = _dense(codes, own.transform, 4326, grid, 16)
    votes = np.sort((points[..., None] == np.arange(9)).sum(2), -1)
    best = (points[..., None] == np.arange(9)).sum(2).argmax(-1)
    clear = (votes[..., -1] - votes[..., -2] > 0.25 * points.shape[-1]) & (votes.sum(-1) == 256)
    assert clear.mean() > 0.2 and np.array_equal(mask[clear], best[clear])


@pytest.mark.parametrize("west", [-180, 0])
@pytest.mark.parametrize("method", ["nearest", "majority"])
def test_a_world_map_covers_a_grid_across_the_antimeridian(west, method):
    lon = np.arange(west, west + 360)
    codes = np.tile(np.where(np.mod(lon, 360) < 180, 4, 6).astype(np.uint8), (180, 1))  # east 4, west 6
    own = GeoBox(codes.shape, Affine(1, 0, west, 0, -1, 90), "EPSG:4326")
    grid = GeoBox((6, 40), Affine(30_000, 0, -400_000, 0, -200_000, 1_500_000), "EPSG:32601")  # zone 1 begins at -180
    mask = maps.from_product((codes, own), grid, **DW, method=method)
    x, y = np.meshgrid((np.arange(40) + 0.5) * 30_000 - 400_000, 1_500_000 - (np.arange(6) + 0.5) * 200_000)
    centre = pyproj.Transformer.from_crs(32601, 4326, always_xy=True).transform(x, y)[0]
    assert np.array_equal(mask[abs(centre) < 179], np.where(centre > 0, 4, 6)[abs(centre) < 179])
    assert {4, 6} == set(np.unique(mask))


def test_only_the_part_under_the_grid_is_read(tmp_path):
    """A country at 1 m, 90 000 MB if it were read whole; the file itself is sparse."""
    path = tmp_path / "country.tif"
    with rasterio.open(path, "w", driver="GTiff", height=300_000, width=300_000, count=1, dtype="uint8",
                       crs="EPSG:32633", transform=_affine(400_000, 5_200_000, 1), tiled=True, blockxsize=2048,
                       blockysize=2048, sparse_ok=True, compress="deflate") as data:  # fmt: skip
        data.write(np.full((1, 240, 240), 5, np.uint8), window=rasterio.windows.Window(100_000, 200_000, 240, 240))
    for method in ("nearest", "majority"):
        assert (maps.from_product(path, GRID, **DW, method=method) == 5).all()
    wide = GeoBox((3, 3), _affine(400_000, 5_200_000, 100_000), "EPSG:32633")
    assert (maps.from_product(path, wide, **DW) == 0).all()


def test_a_big_grid_is_worked_through_in_blocks(monkeypatch):
    codes = _blobs(np.random.default_rng(0), (300, 300), side=2)
    own = GeoBox(codes.shape, _affine(14.999, 45.1535, 1 / 20000, 10), "EPSG:4326")
    whole = {m: maps.from_product((codes, own), GRID.zoom_out(0.7), **DW, method=m) for m in ("nearest", "majority")}
    monkeypatch.setattr(maps, "MOST_SAMPLES", 700)
    monkeypatch.setattr(maps, "MOST_PIXELS", 50)
    for method, mask in whole.items():
        parts = maps.from_product((codes, own), GRID.zoom_out(0.7), **DW, method=method)
        assert (parts == mask).mean() > (1 if method == "nearest" else 0.995) - 1e-9, "points per pixel may differ"


def test_partly_covered_is_void_and_beside_is_an_error_with_both_extents(tmp_path):
    path = _write(tmp_path / "half.tif", np.full((24, 12), 3, np.uint8))
    mask = maps.from_product(path, GRID, **DW)
    assert (mask[:, :12] == 3).all() and (mask[:, 12:] == VOID).all()
    away = GeoBox(GRID.shape, _affine(600_000, 5_000_000, 10), GRID.crs)
    with pytest.raises(SourceError, match=r"half.tif: lies beside the grid: it spans \(500000.0, 4999760.0, 500120.0, "
                                          r"5000000.0\), the grid \(5999.*take the file of this place"):  # fmt: skip
        maps.from_product(path, away, **DW)


@pytest.mark.parametrize("method", ["nearest", "majority"])
def test_holes_of_every_kind_are_void_never_class_0(tmp_path, method):
    codes = np.full((24, 24), 4, np.int16)
    codes[:, :3], codes[:, 3:6] = -999, 99
    mask = maps.from_product(_write(tmp_path / "nodata.tif", codes, nodata=-999), GRID, **DW, method=method, void=[99])
    assert (mask[:, :6] == VOID).all() and (mask[:, 6:] == 4).all()
    real = np.where(codes < 0, np.nan, codes).astype(np.float32)
    mask = maps.from_product(_write(tmp_path / "float.tif", real), GRID, **DW, method=method, void=[99])
    assert (mask[:, :6] == VOID).all() and (mask[:, 6:] == 4).all()
    codes = np.stack([np.full((24, 24), 4, np.uint8), np.where(np.arange(24) < 6, 0, 255)[None].repeat(24, 0)])
    path = _write(tmp_path / "alpha.tif", codes.astype(np.uint8), photometric="minisblack", alpha="yes")
    mask = maps.from_product(path, GRID, **DW, method=method)
    assert (mask[:, :6] == VOID).all() and (mask[:, 6:] == 4).all()
    path = _write(tmp_path / "palette.tif", codes[:1].astype(np.uint8))
    with rasterio.open(path, "r+") as data:
        data.write_colormap(1, {4: (10, 20, 30, 255)})
        data.write_mask(codes[1] > 0)
    mask = maps.from_product(path, GRID, **DW, method=method)
    assert (mask[:, :6] == VOID).all() and (mask[:, 6:] == 4).all()


def test_classes_that_say_nothing_are_void_and_the_vote_is_among_what_is_wanted():
    codes = np.repeat([[10, 95, 40, 50]], 4, 0).astype(np.uint8)  # forest twice over, cropland, built-up
    codes[:, 3] = [40, 40, 50, 50]
    own, one = GeoBox((4, 4), _affine(0, 0, 1), "EPSG:32633"), GeoBox((1, 1), _affine(0, 0, 4), "EPSG:32633")
    both = {"tree cover": "trees", "mangroves": "trees", "cropland": "crops", "built-up": None}
    rest = {name: None for name in legend.get("worldcover11").names if name not in both}
    mask = maps.from_product(
        (codes, own), one, source="worldcover11", target="dw9", mapping=both | rest, method="majority"
    )
    assert mask.tolist() == [[1]], "8 of 16 are trees in two codes, 6 crops, 2 void"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: _write(p, np.full((24, 24), 42, np.uint8)), r"576 of 576 pixels .*legend 'dw9'.*42 x 576; .*`void`"),
        (lambda p: _write(p, np.full((24, 24), 3.5, np.float32)), "3.5 is no code; is this a map of classes"),
        (lambda p: _write(p, np.full((24, 24), 1e30, np.float64)), "is no code"),
        (lambda p: _write(p, np.zeros((3, 24, 24), np.uint8)), "has 3 bands, a map of classes has one; extract that"),
        (lambda p: _write(p, np.zeros((24, 24), np.uint8), crs=None), "has no CRS or no grid.*gdal_edit"),
        (lambda p: _write(p, np.zeros((24, 24), np.complex64)), "integers, got complex64"),
        (lambda p: _write(p, np.zeros((24, 24), np.uint8), crs='LOCAL_CS["room",UNIT["metre",1]]'), "cannot be|no CRS"),
        (lambda p: p, "No such file.*fetch or write"),
        (lambda p: (p.write_bytes(b""), p)[1], "not recognized.*fetch or write"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_is_no_product_is_named_with_a_remedy(tmp_path, make, message):
    path = tmp_path / "x.tif"
    make(path)
    with pytest.raises(SourceError, match=rf"(?s)x.tif: .*{message}" if "x.tif" not in message else message):
        maps.from_product(path, GRID, **DW)


def test_arguments_that_cannot_be_meant_are_refused():
    codes = np.zeros((24, 24), np.uint8)
    with pytest.raises(ValueError, match="unknown method 'bilinear'.*'nearest' or 'majority'"):
        maps.from_product((codes, GRID), GRID, **DW, method="bilinear")
    with pytest.raises(ValueError, match="nothing is said about trees"):
        maps.from_product((codes, GRID), GRID, source="dw9", target="dfc8", mapping={"water": "water"})
    with pytest.raises(ValueError, match="no mapping from 'autogeo4' to 'dw9'"):
        maps.from_product((codes, GRID), GRID, source="autogeo4", target="dw9")
    with pytest.raises(ValueError, match="grid has no CRS"):
        maps.from_product((codes, GRID), GeoBox((4, 4), GRID.transform, None), **DW)
    with pytest.raises(ValueError, match=r"codes are \(24, 24\) but their grid is \(5, 5\)"):
        maps.from_product((codes, GeoBox((5, 5), GRID.transform, GRID.crs)), GRID, **DW)
    with pytest.raises(ValueError, match="codes given: .* 200 x 576"):
        maps.from_product((codes + 200, GRID), GRID, **DW)


@pytest.mark.parametrize("names", sorted(legend.CROSSWALKS), ids="-".join)
def test_shipped_mappings_lose_no_class_without_saying_so(names):
    """Every target class is reached by some source class, or no source class bears a name like it."""
    mapping = legend.CROSSWALKS[names]
    assert list(mapping) == list(legend.get(names[0]).names), "in the order of the legend"
    same = {name for name in mapping if name in legend.get(names[1]).names}
    assert all(mapping[name] == name for name in same)


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"the TerraMesh samples are not at {SAMPLES}; see data/README.md")
def test_real_esri_maps_keep_their_histogram_and_their_majorities(root):
    """The samples number Esri's classes 1..9 and nodata 0; the counts are those of their README."""
    esri = replace(legend.get("esri9"), name="esri, renumbered", codes=tuple(range(1, 10)))
    same, total = {name: name for name in esri.names}, np.zeros(256, int)
    for path in sorted(SAMPLES.glob("*.tif")):
        with rasterio.open(path) as data:
            raw, grid = data.read(1), GeoBox(data.shape, data.transform, data.crs)
        mask = maps.from_product(path, grid, source=esri, target="esri9", mapping=same, void=[0], method="majority")
        assert np.array_equal(mask, np.where(raw == 0, VOID, raw - 1))
        total += np.bincount(mask.ravel(), minlength=256)
        coarse = maps.from_product(path, grid.zoom_out(4), source=esri, target="esri9", mapping=same, method="majority")
        blocks = (raw - 1).reshape(56, 4, 56, 4).transpose(0, 2, 1, 3).reshape(56, 56, 16)
        votes = (blocks[..., None] == np.arange(9)).sum(2)
        assert (np.take_along_axis(votes, coarse[..., None].astype(int), -1)[..., 0] == votes.max(-1)).all()
        turned = grid.transform @ Affine.translation(40, 90) @ Affine.rotation(40) @ Affine.scale(1.3)
        turned = GeoBox((60, 60), turned, grid.crs)
        mask = maps.from_product(path, turned, source=esri, target="esri9", mapping=same)
        assert np.array_equal(mask, _dense(raw - 1, grid.transform, grid.crs.proj, turned, 1)[..., 0])
    shares = dict(zip(esri.names, np.round(100 * total[:9] / total.sum(), 1), strict=True))
    assert shares["water"] == 11.6 and shares["crops"] == 34.8 and shares["snow and ice"] == 20.0


@pytest.mark.parametrize("compress", [None, "deflate", "lzw"])
def test_damaged_products_are_read_or_named_never_worse(tmp_path, compress):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 9, (40, 40)).astype(np.uint8)
    path = _write(tmp_path / "whole.tif", codes, _affine(499_990, 5_000_010, 8), nodata=255, tiled=True,
                  blockxsize=16, blockysize=16, compress=compress)  # fmt: skip
    raw, told = path.read_bytes(), 0
    for seed in range(100):
        broken = tmp_path / "broken.tif"
        broken.write_bytes(damaged(raw, np.random.default_rng(seed)))
        try:
            mask = maps.from_product(broken, GRID, **DW, method="majority")
            assert mask.dtype == np.uint8 and mask.shape == (24, 24) and ((mask < 9) | (mask == VOID)).all()
        except SourceError as error:
            assert str(error).startswith(f"{broken}: ") and "; " in str(error)
            told += 1
    assert told > 40
