"""Points read from files: metres whatever the units, parts as the whole, and errors that name the file."""

import faulthandler
import struct
from pathlib import Path

import clouds
import laspy
import loopback
import numpy as np
import pyproj
import pytest
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from nbutils.files import SourceError
from nbutils.lidar import points as room
from nbutils.lidar.points import Points, iter_points, read_crs, read_points

TOWN = clouds.town(density=2)
FIELDS = ("x", "y", "z", "intensity", "return_number", "number_of_returns", "classification")
FOOT, US_FOOT = 0.3048, 1200 / 3937


def same(a: Points, b: Points, atol: float = 1e-6) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in FIELDS]
    return all((p is None) == (q is None) and (p is None or np.allclose(p, q, atol=atol)) for p, q in pairs)


def some(points: Points, **more) -> Points:
    return Points(**({name: getattr(points, name) for name in (*FIELDS, "crs")} | more))


@pytest.fixture(autouse=True)
def no_hang():
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("name, form", [("a.las", 6), ("a.laz", 6), ("a.las", 1), ("a.laz", 3)])
def test_what_was_written_is_read(tmp_path, name, form):
    path = clouds.write(tmp_path / name, TOWN, point_format=form)
    read = read_points(path)
    assert same(read, TOWN, 6e-4) and read.crs.to_epsg() == 32618 == read_crs(path).to_epsg()
    assert read.x.dtype == np.float64 and read.intensity.dtype == np.uint16 and read.number_of_returns.dtype == np.uint8


@pytest.mark.parametrize(
    "crs, across, up",
    [
        ("EPSG:32118", 1, 1),
        ("EPSG:2263", US_FOOT, US_FOOT),  # no vertical CRS: like x and y
        ("EPSG:2263+5703", US_FOOT, 1),  # NAVD88 in metres
        ("EPSG:2263+6360", US_FOOT, US_FOOT),  # in US survey feet
        ("EPSG:2994", FOOT, FOOT),
        ("EPSG:2994+8228", FOOT, FOOT),  # NAVD88 in feet
        ("EPSG:32118+6360", 1, US_FOOT),
    ],
)
def test_units_are_those_of_the_crs(tmp_path, crs, across, up):
    x, y, z = 1e5 + np.arange(5.0), 2e5 + np.arange(5.0), np.arange(5.0)
    points = read_points(clouds.write(tmp_path / "a.laz", Points(x, y, z), crs))
    want = np.c_[x * across, y * across, z * up]
    assert np.allclose(np.c_[points.x, points.y, points.z], want, atol=1e-3)
    assert points.crs.axis_info[0].unit_name == "metre" and not points.crs.is_compound
    home = pyproj.CRS(crs).sub_crs_list[0] if "+" in crs else pyproj.CRS(crs)
    there = pyproj.Transformer.from_crs(points.crs, home, always_xy=True).transform(points.x, points.y)
    assert np.allclose(there, [x, y], atol=2e-3), "the CRS in metres means the same places"


def geokeys(path: Path, *keys: tuple[int, int]) -> Path:
    """A LAS 1.2 file whose CRS is given by GeoTIFF keys."""
    header = laspy.LasHeader(point_format=1, version="1.2")
    header.scales, header.offsets = np.full(3, 0.01), (6e5, 2e5, 0)
    data = struct.pack("<4H", 1, 1, 0, len(keys)) + b"".join(struct.pack("<4H", key, 0, 1, v) for key, v in keys)
    header.vlrs.append(laspy.VLR("LASF_Projection", 34735, "", data))
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = np.array([[6e5, 6e5 + 9], [2e5, 2e5 + 9], [10, 20]])
    cloud.write(path)
    return path


def test_geotiff_keys_tell_the_vertical_unit(tmp_path):
    points = read_points(geokeys(tmp_path / "a.las", (1024, 1), (3072, 2263), (4099, 9001)))
    assert points.z.tolist() == [10, 20] and np.isclose(points.x[0], 6e5 * US_FOOT)
    points = read_points(geokeys(tmp_path / "a.las", (1024, 1), (3072, 32118), (4099, 9002)))
    assert np.allclose(points.z, [3.048, 6.096]) and points.x[0] == 6e5


def test_a_projection_without_code_is_no_crs_and_not_degrees(tmp_path):
    path = geokeys(tmp_path / "a.las", (1024, 1), (2048, 4269), (3072, 32767))
    assert read_points(path).crs is None and read_points(path).x[0] == 6e5


def test_degrees_and_empty_files_are_refused_and_no_crs_is_told(tmp_path):
    near = Points(np.array([8.1, 8.2]), np.array([47.1, 47.2]), np.zeros(2))
    path = clouds.write(tmp_path / "b.las", near, "EPSG:4326", scale=1e-6)
    with pytest.raises(SourceError, match=r"b\.las.*degrees.*reproject"):
        read_points(path)
    with pytest.raises(SourceError, match=r"b\.las.*degrees"):
        read_crs(path)
    empty = clouds.write(tmp_path / "c.laz", TOWN[:0])
    for use in (read_points, lambda p: next(iter_points(p))):
        with pytest.raises(SourceError, match=r"c\.laz: holds no points"):
            use(empty)
    plain = read_points(clouds.write(tmp_path / "d.las", TOWN[:9], crs=None))
    assert plain.crs is None and np.allclose(plain.x, TOWN.x[:9], atol=1e-3)
    with pytest.raises(SourceError, match=r"e\.las: no such file"):
        read_points(tmp_path / "e.las")


def test_what_a_file_does_not_tell_is_none(tmp_path):
    bare = some(TOWN, intensity=None, return_number=None, number_of_returns=None)
    read = read_points(clouds.write(tmp_path / "a.laz", bare))
    assert [getattr(read, name) for name in FIELDS[3:]] == [None] * 4
    one = np.ones(len(TOWN), np.uint8)
    assert read_points(clouds.write(tmp_path / "b.laz", some(bare, return_number=one, number_of_returns=one),
                                    )).number_of_returns is None  # fmt: skip


def test_withheld_returns_count_as_noise(tmp_path):
    path = clouds.write(tmp_path / "a.las", TOWN[:10])
    cloud = laspy.read(path)
    cloud.withheld = np.arange(10) < 3
    cloud.write(path)
    assert read_points(path).classification.tolist() == [7] * 3 + [0] * 7


@given(chunk=st.integers(1, 3000))
@settings(max_examples=15, deadline=None)
def test_parts_are_the_whole(tmp_path_factory, chunk):
    path = tmp_path_factory.getbasetemp() / "parts.laz"
    if not path.exists():
        clouds.write(path, TOWN[:4000])
    parts = list(iter_points(path, chunk))
    assert max(map(len, parts)) <= chunk and same(room.concatenate(parts), read_points(path))


def test_parts_that_know_less_are_filled_up():
    one, two = TOWN[:3], Points(TOWN.x[3:5], TOWN.y[3:5], TOWN.z[3:5], crs=TOWN.crs)
    joined = room.concatenate([two, one])
    assert joined.intensity.tolist() == [0, 0, *one.intensity] and joined.number_of_returns[:2].tolist() == [1, 1]
    assert joined.classification is None and len(joined) == 5


BOUNDS = (clouds.X0 + 20, clouds.Y0 - 50, clouds.X0 + 45, clouds.Y0 - 10)


def copc(path: Path, points: Points = TOWN, crs: str = "EPSG:32618", unit: float = 1.0) -> Path:
    told = {name: getattr(points, name) for name in FIELDS[3:6]}
    path.write_bytes(loopback.copc(points.x / unit, points.y / unit, points.z / unit, crs, **told))
    return path


@pytest.mark.parametrize("kind", ["las", "laz", "copc"])
def test_bounds_keep_what_lies_within(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path = copc(tmp_path / "a.copc.laz") if kind == "copc" else clouds.write(path, TOWN, scale=0.01)
    whole, part = read_points(path), read_points(path, BOUNDS)
    inside = (whole.x >= BOUNDS[0]) & (whole.y >= BOUNDS[1]) & (whole.x <= BOUNDS[2]) & (whole.y <= BOUNDS[3])
    order = [np.lexsort((p.z, p.y, p.x)) for p in (part, whole[inside])]
    assert 0 < len(part) < len(whole) == len(TOWN) and same(part[order[0]], whole[inside][order[1]])
    assert len(read_points(path, (0, 0, 1, 1))) == 0 and read_points(path, (0, 0, 1, 1)).crs.to_epsg() == 32618
    assert all(len(p) <= 700 for p in iter_points(path, 700, BOUNDS)) or kind == "copc"


def test_of_a_copc_file_only_the_nodes_near_the_bounds_are_unpacked(tmp_path, monkeypatch):
    unpacked, unpack = [], room.lazrs.decompress_points_with_chunk_table

    def counting(packed, packing, out, table, *more):
        unpacked.append(sum(count for count, _ in table))
        return unpack(packed, packing, out, table, *more)

    monkeypatch.setattr(room.lazrs, "decompress_points_with_chunk_table", counting)
    feet = copc(tmp_path / "a.copc.laz", crs="EPSG:2263", unit=US_FOOT)
    corner = (clouds.X0, clouds.Y0 - 10, clouds.X0 + 10, clouds.Y0)  # bounds are metres, the octree is in feet
    part = read_points(feet, corner)
    assert len(part) > 50 and sum(unpacked) < 0.6 * len(TOWN)


def test_an_octree_that_leads_in_circles_is_an_error(tmp_path):
    path = copc(tmp_path / "a.copc.laz")
    raw = bytearray(path.read_bytes())
    root = laspy.open(path).header.vlrs[0]
    at = root.hierarchy_root_offset
    raw[at : at + 32] = struct.pack("<iiiiQii", 0, 0, 0, 0, at, root.hierarchy_root_size, -1)
    path.write_bytes(raw)
    with pytest.raises(SourceError, match=r"a\.copc\.laz: is damaged: its octree"):
        read_points(path, BOUNDS)


@pytest.mark.parametrize("at, values", [(96, "<I"), (100, "<I"), (235, "<Q"), (243, "<I"), (247, "<Q")])
def test_a_header_that_promises_too_much_is_an_error_at_once(tmp_path, at, values):
    path = clouds.write(tmp_path / "a.las", TOWN[:500])
    raw = bytearray(path.read_bytes())
    struct.pack_into(values, raw, at, (1 << 31) - 1)
    path.write_bytes(raw)
    with pytest.raises(SourceError, match=r"a\.las"):
        read_points(path)


def test_what_is_no_point_file_is_told_apart(tmp_path):
    path = tmp_path / "a.laz"
    path.write_bytes(b"<html>not found</html>" * 30)
    with pytest.raises(SourceError, match=r"a\.laz: is no LAS or LAZ file"):
        read_points(path)
    with pytest.raises(SourceError, match="cannot be read"):
        read_points(tmp_path)


def test_an_interruption_is_not_taken_for_a_damaged_file(tmp_path):
    path = clouds.write(tmp_path / "a.laz", TOWN)
    with pytest.raises(KeyboardInterrupt):
        for _ in iter_points(path, 100):
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), room._opened(path):
        raise KeyboardInterrupt


class PanicException(BaseException):
    """What the decoder's panics look like."""


def failing(monkeypatch, error: BaseException, after: int) -> list[laspy.LasReader]:
    """Let reading fail after some parts; the readers that were used."""
    readers, read = [], laspy.LasReader.read_points

    def read_points(reader, n):
        readers.append(reader)
        if len(readers) > after:
            raise error
        return read(reader, n)

    monkeypatch.setattr(laspy.LasReader, "read_points", read_points)
    monkeypatch.setattr(room, "_DECODED", 500)
    return readers


@pytest.mark.parametrize("error", [RuntimeError("broken"), PanicException("broken")], ids=repr)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_what_fails_in_the_middle_of_a_file_is_an_error_after_the_parts_before(tmp_path, monkeypatch, error, after):
    path, parts = clouds.write(tmp_path / "a.laz", TOWN), []
    readers = failing(monkeypatch, error, after)
    with pytest.raises(SourceError, match=r"a\.laz: cannot be read.*broken"):
        for part in iter_points(path, 500):
            parts.append(part)
    assert len(readers) == after + 1
    assert [len(part) for part in parts] == [500] * after
    assert not parts or same(room.concatenate(parts), TOWN[: 500 * after], 6e-4)


@pytest.mark.parametrize("taken", [1, 3])
def test_who_stops_early_leaves_no_open_file(tmp_path, monkeypatch, taken):
    path = clouds.write(tmp_path / "a.las", TOWN)
    readers = failing(monkeypatch, RuntimeError("read too far"), taken)
    parts = iter_points(path, 500)
    assert [len(next(parts)) for _ in range(taken)] == [500] * taken
    parts.close()
    assert readers[0]._source.closed and len(readers) == taken


@pytest.mark.parametrize("kind", ["las", "laz", "copc", "las of 1999"])
def test_damaged_files_are_read_or_named(tmp_path, kind):
    path = tmp_path / ("a.copc.laz" if kind == "copc" else f"a.{kind[:3]}")
    if kind == "copc":
        copc(path, TOWN[:3000])
    else:
        clouds.write(path, TOWN[:3000], point_format=1 if "of" in kind else 6)
    good, refused = path.read_bytes(), 0
    for case in range(200):
        path.write_bytes(damaged(good, np.random.default_rng([case, len(good)])))
        for bounds in (None, BOUNDS):
            try:
                read_points(path, bounds)
            except SourceError as error:
                assert path.name in str(error) and not str(error).rstrip().endswith(":"), f"case {case}: {error}"
                refused += 1
    assert 40 < refused < 400
    path.write_bytes(good)
    assert len(read_points(path)) == 3000
