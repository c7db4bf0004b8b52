"""Against a server on this machine that breaks in every way we know: what comes is whole or an error that says why."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import loopback
import numpy as np
import pystac
import pytest
import rasterio
import requests
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin

from nbutils import maps, remote, sources
from nbutils.files import SourceError


@pytest.fixture(scope="module")
def running():
    with loopback.serving() as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0.001)
    monkeypatch.setattr(remote, "PAUSE_MOST_S", 0.01)
    running.files.clear(), running.faults.clear(), running.items.clear(), running.log.clear()
    running.ranges, running.etag, running.token, running.page, running.lasts_s = True, True, "t0", 100, 3600
    return running


@pytest.fixture
def signed(server, monkeypatch):
    """Links to the server need a signature, made by a stand-in that keeps the last one until it is told to renew."""
    kept = {"token": server.token}

    def sign(href, renew):
        if renew:
            kept["token"] = server.token
        return f"{href}?sig={kept['token']}"

    monkeypatch.setattr(remote, "SIGNED_HOSTS", (server.url.removeprefix("http://"),))
    monkeypatch.setattr(remote, "_sign", sign)
    return server


def content(n: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, n, dtype=np.uint8).tobytes()


def put(server, data: bytes, path: str = "/a.bin") -> str:
    server.files[path] = data
    return server.url + path


def geotiff(path, crs="EPSG:26918"):
    pixels = np.arange(1, 4 * 40 * 50 + 1, dtype=np.uint16).reshape(4, 40, 50)
    with rasterio.open(path, "w", driver="GTiff", count=4, width=50, height=40, dtype="uint16", crs=crs,
                       transform=from_origin(586000, 4505000, 1, 1)) as data:  # fmt: skip
        data.write(pixels)
    return path.read_bytes(), pixels


# ---- downloads ------------------------------------------------------------------------------------------------------
def test_a_download_is_whole_summed_and_not_repeated(server, tmp_path):
    data = content(3_000_001)
    target = tmp_path / "deep" / "a.bin"
    assert remote.download(put(server, data), target) == target and target.read_bytes() == data
    assert sorted(p.name for p in target.parent.iterdir()) == ["a.bin", "a.bin.sha256"]
    assert (target.parent / "a.bin.sha256").read_text() == f"{hashlib.sha256(data).hexdigest()}  a.bin\n"
    asked = len(server.log)
    remote.download(server.url + "/a.bin", target, sha256=hashlib.sha256(data).hexdigest().upper())
    assert len(server.log) == asked
    target.write_bytes(data[:-1] + b"?")  # damaged since: the sum no longer holds
    remote.download(server.url + "/a.bin", target)
    assert target.read_bytes() == data


@given(size=st.integers(0, 5000), cuts=st.lists(st.integers(0, 6000), max_size=3), keeps=st.booleans())
def test_however_a_body_breaks_off_the_file_is_identical(running, tmp_path_factory, size, cuts, keeps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "PAUSE_S", 0.0)
        data, folder = content(size), tmp_path_factory.mktemp("x")
        running.etag = keeps
        running.files["/b.bin"], running.faults["/b.bin"] = data, [("cut", cut) for cut in cuts]
        remote.download(running.url + "/b.bin", folder / "b.bin")
        assert (folder / "b.bin").read_bytes() == data
        assert sorted(p.name for p in folder.iterdir()) == ["b.bin", "b.bin.sha256"]
        running.etag = True


def test_a_later_call_goes_on_where_an_earlier_one_stopped(server, tmp_path):
    data = content(100_000)
    href, target = put(server, data), tmp_path / "a.bin"
    server.faults["/a.bin"] = [("cut", 50_000)]
    with pytest.raises(SourceError, match=r"(broke off|ended) after 50000 of 100000 bytes.* run again to go on"):
        remote.download(href, target, attempts=1)
    assert not target.exists() and (tmp_path / "a.bin.part").stat().st_size == 50_000
    remote.download(href, target)
    assert target.read_bytes() == data
    last = server.log[-1][2]
    assert last["Range"] == "bytes=50000-" and last["If-Range"].startswith('"')


def test_progress_counts_what_was_there_before_and_begins_again_with_the_file(server, tmp_path):
    href, target, seen = put(server, data := content(100_000)), tmp_path / "a.bin", []
    server.faults["/a.bin"] = [("cut", 50_000)]
    with pytest.raises(SourceError):
        remote.download(href, target, attempts=1, progress=lambda *now: seen.append(now))
    assert seen[0] == (0, 100_000) and seen[-1] == (50_000, 100_000)
    seen.clear()
    remote.download(href, target, progress=lambda *now: seen.append(now))
    assert seen[0] == (50_000, 100_000) and seen[-1] == (100_000, 100_000) and seen == sorted(seen)
    seen.clear()
    remote.download(href, target, progress=lambda *now: seen.append(now))
    assert not seen, "it is there"
    server.etag, server.faults["/c.bin"], seen[:] = False, [("cut", 60_000)], []
    remote.download(put(server, data, "/c.bin"), tmp_path / "c.bin", progress=lambda *now: seen.append(now))
    assert [done for done, _ in seen].count(0) == 2, "without a tag nothing can be kept"


def test_a_killed_process_leaves_what_it_has_and_the_next_goes_on(server, tmp_path):
    data, free = content(3 << 20), threading.Event()
    href, target = put(server, data), tmp_path / "a.bin"
    server.faults["/a.bin"] = [("stall", (2 << 20) + 7, free)]
    code = f"from nbutils import remote; remote.download({href!r}, {str(target)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=remote.__file__.rsplit("/", 2)[0])
    part = tmp_path / "a.bin.part"
    until = time.monotonic() + 30
    while not (part.is_file() and part.stat().st_size >= 1 << 20) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    free.set()
    assert not target.exists() and 0 < (have := part.stat().st_size) < len(data)
    remote.download(href, target)
    assert target.read_bytes() == data and server.log[-1][2]["Range"] == f"bytes={have}-"


def test_a_file_that_changed_meanwhile_is_not_mixed_with_its_older_half(server, tmp_path):
    href, target = put(server, content(10_000, 1)), tmp_path / "a.bin"
    server.faults["/a.bin"] = [("cut", 4000)]
    with pytest.raises(SourceError):
        remote.download(href, target, attempts=1)
    put(server, newer := content(10_000, 2))
    remote.download(href, target)
    assert target.read_bytes() == newer


@pytest.mark.parametrize("state", [b"", b'{"mark": "', b"[]", b"\xff\xfe"])
def test_notes_cut_short_by_a_loss_of_power_cost_the_half_that_was_there_and_nothing_else(server, tmp_path, state):
    href, target = put(server, data := content(10_000)), tmp_path / "a.bin"
    server.faults["/a.bin"] = [("cut", 4000)]
    with pytest.raises(SourceError):
        remote.download(href, target, attempts=1)
    (tmp_path / "a.bin.part.json").write_bytes(state)
    assert remote.download(href, target).read_bytes() == data
    (tmp_path / "a.bin.sha256").write_bytes(b"")
    assert remote.download(href, target).read_bytes() == data
    assert (tmp_path / "a.bin.sha256").stat().st_size > 64


def test_a_leftover_longer_than_the_file_is_thrown_away(server, tmp_path):
    href, target = put(server, data := content(1000)), tmp_path / "a.bin"
    server.faults["/a.bin"] = [("cut", 400)]
    with pytest.raises(SourceError):
        remote.download(href, target, attempts=1)
    (tmp_path / "a.bin.part").write_bytes(bytes(5000))
    remote.download(href, target)
    assert target.read_bytes() == data


@pytest.mark.parametrize("fault", [503, 429, ("drop",)])
def test_passing_faults_are_sat_out_whatever_the_server_wants_us_to_wait(server, tmp_path, fault):
    href = put(server, data := content(1000))
    server.faults["/a.bin"] = [fault] * 2
    assert remote.download(href, tmp_path / "a.bin").read_bytes() == data and len(server.log) == 3


@pytest.mark.parametrize(("fault", "told"), [(503, "503"), (("drop",), "Connection|closed")])
def test_lasting_faults_end_with_the_last_error(server, tmp_path, fault, told):
    href = put(server, b"x")
    server.faults["/a.bin"] = [fault] * 50
    with pytest.raises(SourceError, match=rf"a\.bin: .*({told})"):
        remote.download(href, tmp_path / "a.bin")
    assert len(server.log) == remote.ATTEMPTS and not list(tmp_path.iterdir())


def test_a_missing_file_is_not_asked_for_twice(server, tmp_path):
    with pytest.raises(SourceError, match="404"):
        remote.download(server.url + "/none", tmp_path / "a")
    assert len(server.log) == 1


def test_a_body_that_always_ends_early_is_given_up_but_progress_counts(server, tmp_path):
    href = put(server, content(100_000))
    server.faults["/a.bin"] = [("cut", 10)] * 50
    with pytest.raises(SourceError, match=f"after {10 * remote.ATTEMPTS} of 100000 bytes"):
        remote.download(href, tmp_path / "a.bin")
    big = put(server, data := content(9 << 20), "/big.bin")
    server.faults["/big.bin"] = [("cut", (1 << 20) + 5)] * 8  # twice as many as attempts, each with progress
    assert remote.download(big, tmp_path / "big.bin").read_bytes() == data


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(SourceError, match=f"SHA-256 is {hashlib.sha256(b'abc').hexdigest()}, expected {'0' * 64}"):
        remote.download(put(server, b"abc"), tmp_path / "a", sha256="0" * 64)
    assert not list(tmp_path.iterdir())


def test_what_is_larger_than_allowed_is_not_fetched(server, tmp_path):
    with pytest.raises(SourceError, match="has 5000 bytes, 4999 are allowed"):
        remote.download(put(server, content(5000)), tmp_path / "a", max_bytes=4999)
    assert not list(tmp_path.iterdir())
    assert remote.download(server.url + "/a.bin", tmp_path / "a", max_bytes=5000).stat().st_size == 5000


@pytest.mark.parametrize("ranges", [True, False])
def test_the_size_is_told_before(server, tmp_path, ranges):
    server.ranges = ranges
    (tmp_path / "x").write_bytes(bytes(7))
    assert remote.size_of(put(server, content(12345))) == 12345 and remote.size_of(str(tmp_path / "x")) == 7


# ---- where requests may go ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("href", ["http://example.org/a", "ftp://example.org/a", "http://127.0.0.1.example.org/a"])
def test_only_https_leaves_this_machine(href, tmp_path):
    def search(address):
        remote.search(address, ["naip"], (0, 0, 1, 1))

    def fetch(address):
        remote.download(address, tmp_path / "a")

    for action in (remote.resolve, remote.size_of, fetch, search, lambda address: remote.read_raster(address, str)):
        with pytest.raises(SourceError, match="only https"):
            action(href)


def test_redirects_are_checked_as_well(server, tmp_path):
    href = put(server, b"abc")
    server.faults["/a.bin"] = [("to", "http://192.0.2.1/a.bin?sig=secret")]
    with pytest.raises(SourceError, match="192.0.2.1/a.bin: only https") as error:
        remote.download(href, tmp_path / "a")
    assert "secret" not in str(error.value)
    server.faults["/a.bin"] = [("to", put(server, b"moved", "/c.bin"))]
    assert remote.download(href, tmp_path / "a").read_bytes() == b"moved"
    inward = requests.Request("GET", href).prepare()
    with pytest.raises(SourceError, match="only https"):  # a public server does not send us to one of our own
        remote._Session("https://example.org/a").send(inward)


@pytest.fixture
def secure(server, monkeypatch):
    """The server under an https address, of this machine even: what is asked of it there is asked by http inside."""
    send, address = requests.adapters.HTTPAdapter.send, "https://localhost"

    def inside(adapter, request, **options):
        told, request.url = request.url, request.url.replace(address, server.url)
        answer = send(adapter, request, **options)
        answer.url = request.url = told
        return answer

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", inside)
    return address


FARTHER = [
    "http://127.0.0.1:1/a",
    "http://localhost/a",
    "http://192.0.2.1/a",
    "ftp://localhost/a",
    "file:" + "///etc/passwd",
]


@pytest.mark.parametrize("to", FARTHER)
def test_what_begins_with_https_is_never_redirected_to_anything_else(server, secure, tmp_path, to):
    put(server, b"abc", "/b")
    server.faults["/b"] = [("to", f"{secure}/b")]
    assert remote.download(f"{secure}/b", tmp_path / "b").read_bytes() == b"abc"
    actions = {
        "download": lambda: remote.download(f"{secure}/b", tmp_path / "c"),
        "size": lambda: remote.size_of(f"{secure}/b"),
        "ranges": lambda: remote.open_ranges(f"{secure}/b").read(1),
        "raster": lambda: remote.read_raster(f"{secure}/b", str),
        "open_raster": lambda: sources.open_raster(f"{secure}/b"),
        "search": lambda: remote.search(f"{secure}/b", ["naip"], (0, 0, 1, 1)),
    }
    for name, action in actions.items():
        server.faults["/b"] = [("to", f"{secure}/b"), ("to", to)]  # also behind a redirect that is right
        with pytest.raises(SourceError, match="only https is fetched"):
            pytest.fail(f"{name} went to {to}: {action()}")
    assert not (tmp_path / "c").exists()


def test_a_raster_is_read_where_its_address_leads_and_gdal_follows_nothing(server, tmp_path):
    data, pixels = geotiff(tmp_path / "a.tif")
    put(server, data, "/moved/a.tif")
    server.faults["/a.tif"] = [("to", f"{server.url}/moved/a.tif")]
    assert (remote.read_raster(f"{server.url}/a.tif", lambda d: d.read()) == pixels).all()
    assert len(server.asked("/moved/a.tif")) > 1 and [path for _, path, _ in server.log].count("/a.tif") == 1
    for to in ("http://192.0.2.1/a.tif?sig=secret", "ftp://127.0.0.1/a.tif"):
        server.faults["/a.tif"] = [("to", to)]
        with pytest.raises(SourceError, match="only https") as error:
            remote.read_raster(f"{server.url}/a.tif", lambda d: d.read())
        assert "secret" not in str(error.value)


@pytest.mark.parametrize("href", ["/data/a.tif", "a b/c.tif", "file:" + "///data/a.tif", "https://example.org/a?key=1"])
def test_what_needs_no_signature_is_left_as_it_is(href):
    assert remote.resolve(href) == href


# ---- signatures -----------------------------------------------------------------------------------------------------
def test_a_signature_that_expires_in_the_middle_of_a_job_is_renewed_once(signed, tmp_path):
    data = content(50_000)
    href = put(signed, data, "/signed/a.bin")
    signed.faults["/signed/a.bin"] = [("cut", 20_000), ("call", lambda: setattr(signed, "token", "t1"))]
    assert remote.download(href, tmp_path / "a").read_bytes() == data
    assert [query.split("sig=")[1] for _, query, _ in signed.log] == ["t0", "t0", "t1"]
    assert signed.log[-1][2]["Range"] == "bytes=20000-"


def test_a_raster_read_by_gdal_is_signed_anew_too(signed, tmp_path):
    data, pixels = geotiff(tmp_path / "a.tif")
    href = put(signed, data, "/signed/a.tif") + "?sig=from-the-catalogue"
    assert (remote.read_raster(href, lambda d: d.read()) == pixels).all()
    signed.token = "t1"
    signed.log.clear()
    other = put(signed, data, "/signed/b.tif")
    assert (remote.read_raster(other, lambda d: d.read()) == pixels).all()
    assert {query.split("sig=")[1] for _, query, _ in signed.log} == {"t0", "t1"}


def test_a_product_is_signed_retried_and_signed_anew_when_that_expires_during_the_work(signed, monkeypatch):
    """As Planetary Computer's WorldCover: an address, an asset and an item, read in blocks."""
    codes = np.random.default_rng(0).integers(0, 9, (1, 512, 512), dtype=np.uint8)
    transform, crs = from_origin(500_000, 5_000_000, 10, 10), "EPSG:32633"
    whole = loopback.geotiff(codes, crs, transform, "GTiff", tiled=True, blockxsize=64, blockysize=64)
    grid = GeoBox((512, 512), transform, crs)
    monkeypatch.setattr(maps, "MOST_SAMPLES", 1 << 14)
    item = pystac.Item("wc", None, None, None, {"start_datetime": "2021-01-01", "end_datetime": "2021-12-31"})
    for number, method in enumerate(("address", "asset", "item")):
        path, tokens = f"/signed/{method}.tif", [f"a{number}", f"b{number}"]
        href = put(signed, whole, path) + "?sig=from-the-catalogue"
        item.add_asset("map", pystac.Asset(href))
        product = {"address": href, "asset": item.assets["map"], "item": item}[method]
        signed.token = tokens[0]  # the one that is kept is of the last turn and refused at once
        signed.faults[path] = [None, 503] + [None] * 4 + [("call", lambda new=tokens[1]: setattr(signed, "token", new))]
        signed.log.clear()
        mask = maps.from_product(product, grid, source="dw9", target="dw9", asset="map")
        assert np.array_equal(mask, codes[0])
        used = list(dict.fromkeys(query.split("sig=")[1] for _, query, _ in signed.asked(path)))
        assert used[-2:] == tokens and len(used) <= 3
    with pytest.raises(SourceError, match="item 'wc' has no asset 'data', only map"):
        maps.from_product(item, grid, source="dw9", target="dw9", asset="data")
    monkeypatch.setattr(remote, "_sign", lambda href, renew: f"{href}?sig=wrong")
    with pytest.raises(SourceError, match="item.tif: cannot be read: the server says 403") as error:
        maps.from_product(item, grid, source="dw9", target="dw9", asset="map")
    assert "sig=" not in str(error.value)


def test_a_reader_of_ranges_outlives_its_signature(signed):
    data = content(300_000)
    with remote.open_ranges(put(signed, data, "/signed/a.bin")) as file:
        assert file.read(10) == data[:10]
        signed.token = "t1"
        file.seek(200_000)
        assert file.read(70_000) == data[200_000:270_000]


def test_a_signature_that_is_refused_again_is_an_error_that_does_not_tell_it(signed, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_sign", lambda href, renew: f"{href}?sig=wrong")
    with pytest.raises(SourceError, match="403") as error:
        remote.download(put(signed, b"x", "/signed/a.bin"), tmp_path / "a")
    assert len(signed.log) == 2 and "sig=" not in str(error.value)
    data, _ = geotiff(tmp_path / "a.tif")
    with pytest.raises(SourceError) as error:
        remote.read_raster(put(signed, data, "/signed/a.tif"), lambda d: d.read())
    assert "sig=" not in str(error.value)


def test_planetary_computer_links_are_signed_by_the_library_and_kept_until_they_expire(server, monkeypatch):
    from planetary_computer import sas, settings

    monkeypatch.setenv("PC_SDK_SAS_URL", f"{server.url}/token")
    monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", "")
    settings.Settings.get.cache_clear()
    sas.TOKEN_CACHE.clear()
    href = "https://naipeuwest.blob.core.windows.net/naip/v002/a.tif"
    try:
        assert remote.resolve(href) == f"{href}?sig=t0" == remote.resolve(f"{href}?se=2020-01-01&sig=old")
        assert [path for _, path, _ in server.log] == ["/token/naipeuwest/naip"]
        server.token, server.lasts_s = "t1", 30  # so short that it is not used twice
        assert remote.resolve(href, renew=True) == remote.resolve(href) == f"{href}?sig=t1" and len(server.log) == 3
        server.faults["/token/naipeuwest/naip"] = [404]
        with pytest.raises(SourceError, match="cannot be signed"):
            remote.resolve(href)
    finally:
        settings.Settings.get.cache_clear()
        sas.TOKEN_CACHE.clear()


# ---- ranges and rasters ---------------------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.integers(0, 210_000), st.integers(0, 90_000)), min_size=1, max_size=5))
def test_reading_by_ranges_is_reading_the_file(running, places):
    running.ranges = running.etag = True
    data = running.files["/ranges.bin"] = content(200_000)
    with remote.open_ranges(running.url + "/ranges.bin") as file:
        for start, size in places:
            file.seek(start)
            assert file.read(size) == data[start : start + size]
        assert file.seek(-5, 2) == len(data) - 5 and file.read() == data[-5:]


def test_ranges_survive_a_broken_body_and_refuse_a_changed_file(server):
    data = content(200_000)
    href = put(server, data)
    server.faults["/a.bin"] = [("cut", 100)] * 2 + [503]
    with remote.open_ranges(href) as file:
        assert file.read(1000) == data[:1000]
        put(server, content(200_000, 1))
        file.seek(150_000)
        with pytest.raises(SourceError, match="changed while it was read"):
            file.read(10)
    server.ranges = False
    with remote.open_ranges(href) as file, pytest.raises(SourceError, match="no ranges are served"):
        file.read(10)


def test_a_raster_over_http_is_read_in_spite_of_passing_faults(server, tmp_path):
    data, pixels = geotiff(tmp_path / "a.tif")
    href = put(server, data, "/a.tif")
    server.faults["/a.tif"] = [503, 503]
    assert (remote.read_raster(href, lambda d: d.read()) == pixels).all()
    assert (remote.read_raster(str(tmp_path / "a.tif"), lambda d: d.read()) == pixels).all()
    assert not [path for _, path, _ in server.log if path != "/a.tif"]  # no look for sidecar files


@pytest.mark.parametrize("what", ["missing", "text", "truncated"])
def test_what_is_no_raster_is_an_error_that_names_it(server, tmp_path, what):
    data, _ = geotiff(tmp_path / "a.tif")
    put(server, {"missing": b"", "text": b"<html>busy</html>", "truncated": data[:300]}[what], f"/{what}.tif")
    if what == "missing":
        server.files.clear()
    with pytest.raises(SourceError, match=f"{what}.tif: cannot be read"):
        remote.read_raster(f"{server.url}/{what}.tif", lambda d: d.read())


# ---- catalogues -----------------------------------------------------------------------------------------------------
def test_a_search_brings_all_pages(server):
    for number in range(5):
        loopback.item(server, "naip", f"i{number}", (number, 0, number + 1, 1), {"image": f"{server.url}/{number}.tif"})
    loopback.item(server, "other", "o", (0, 0, 9, 9), {})
    server.page = 2
    found = remote.search(server.api, ["naip"], (0.5, 0.2, 9, 0.8))
    assert [item.id for item in found] == ["i0", "i1", "i2", "i3", "i4"]
    assert [item.id for item in remote.search(server.api, ["naip"], (3.5, 0.2, 9, 0.8), "2017-01-01/2017-12-31")] == [
        "i3", "i4"]  # fmt: skip
    assert remote.search(server.api, ["naip"], (0, 0, 9, 9), "2018-01-01/2018-12-31") == []
    with pytest.raises(SourceError, match="more than 4 items; narrow"):
        remote.search(server.api, ["naip"], (0, 0, 9, 9), limit=4)


def test_a_search_sits_out_passing_faults_and_tells_lasting_ones(server):
    loopback.item(server, "naip", "a", (0, 0, 1, 1), {})
    server.faults["/api"], server.faults["/api/search"] = [503], [("drop",), 502]
    assert len(remote.search(server.api, ["naip"], (0, 0, 1, 1))) == 1
    server.faults["/api/search"] = [503] * 50
    with pytest.raises(SourceError, match="/api: search for naip failed: .*503"):
        remote.search(server.api, ["naip"], (0, 0, 1, 1))
    assert len(server.asked("/api/search")) == 3 + remote.ATTEMPTS


@pytest.mark.parametrize("path", ["/nothing", "/text.json"])
def test_what_is_no_catalogue_is_an_error(server, path):
    put(server, b"<html>", "/text.json")
    with pytest.raises(SourceError, match=f"{path}: search for naip failed"):
        remote.search(server.url + path, ["naip"], (0, 0, 1, 1))
