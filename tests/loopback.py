"""A file server with ranges and faults, a STAC API and a signing service, all on this machine; and a tiny COPC file."""

import io
import json
import re
import struct
import threading
import zipfile
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import laspy
import lazrs
import numpy as np
import pyproj
import rasterio
import shapely

CONFORMS = [f"https://api.stacspec.org/v1.0.0/{what}" for what in ("core", "item-search", "item-search#query")]


class Server(ThreadingHTTPServer):
    """Serves `files` (path -> bytes) and `items` (STAC). `faults[path]` is consumed one entry per request:

    an int is a status, ("cut", n) ends the body after n bytes, ("to", url) redirects, ("call", f) calls f first,
    ("drop",) hangs up without an answer, ("stall", n, event) waits for the event after n bytes of the body.
    Paths below /signed/ need the query `sig=<token>`; a missing or old one is answered with 403.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.items, self.log = {}, {}, [], []
        self.ranges, self.etag, self.head, self.token, self.page = True, True, True, "t0", 100
        self.lasts_s = 3600
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.api = f"{self.url}/api"

    def asked(self, part: str) -> list[tuple[str, str, dict]]:
        return [entry for entry in self.log if part in entry[1]]

    def handle_error(self, request, client_address):
        pass  # a client that goes away is part of the tests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer(asked=json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, body: bool = True, asked: dict | None = None):
        server, parts = self.server, urlsplit(self.path)
        server.log.append((self.command, self.path, dict(self.headers)))
        fault = (server.faults.get(parts.path) or [None]).pop(0)
        if isinstance(fault, int):
            return self.send(fault, b"no", {"Retry-After": "3600"})
        if fault and fault[0] == "to":
            return self.send(302, b"", {"Location": fault[1]})
        if fault and fault[0] == "drop":
            self.close_connection = True
            return None
        if fault and fault[0] == "call":
            fault[1]()
        if parts.path.startswith("/api"):
            return self.stac(parts, asked)
        if parts.path.startswith("/token/"):
            expiry = datetime.now(UTC) + timedelta(seconds=server.lasts_s)
            grant = {"token": f"sig={server.token}", "msft:expiry": expiry.isoformat()}
            return self.send(200, json.dumps(grant).encode())
        if parts.path.startswith("/signed/") and parse_qs(parts.query).get("sig") != [server.token]:
            return self.send(403, b"Signature not valid in the specified time frame")
        if parts.path not in server.files:
            return self.send(404, b"not here")
        self.file(server.files[parts.path], fault, body)

    def file(self, data: bytes, fault, body: bool):
        tag, told = f'"{hash(data) & 0xFFFFFFFF:x}"', {}
        if self.server.etag:
            told["ETag"] = tag
        start, end, status = 0, len(data) - 1, 200
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.server.ranges else None
        if found and self.headers.get("If-Range", tag) == tag:
            start, end, status = int(found[1]), min(int(found[2] or end), end), 206
            if start >= len(data):
                return self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            told["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        whole = data[start : end + 1]
        sent = whole[: fault[1]] if fault and fault[0] in ("cut", "stall") else whole
        self.send(status, sent if body else b"", told | {"Accept-Ranges": "bytes"}, len(whole))
        if fault and fault[0] == "stall":
            self.wfile.flush()
            fault[2].wait(20)
        self.close_connection = self.close_connection or len(sent) < len(whole)

    def send(self, status: int, body: bytes, told: dict | None = None, length: int | None = None):
        self.send_response(status)
        for name, value in (told or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    def stac(self, parts, asked: dict | None):
        server = self.server
        if parts.path != "/api/search":
            links = [{"rel": "self", "href": server.api}, {"rel": "root", "href": server.api}]
            links += [{"rel": "search", "href": f"{server.api}/search", "method": how, "type": "application/geo+json"}
                      for how in ("GET", "POST")]  # fmt: skip
            about = {"type": "Catalog", "stac_version": "1.0.0", "id": "here", "description": "here", "links": links}
            return self.send(200, json.dumps(about | {"conformsTo": CONFORMS}).encode())
        area = shapely.box(*asked["bbox"])
        found = [item for item in server.items if item["collection"] in asked["collections"]
                 and shapely.geometry.shape(item["geometry"]).intersects(area) and in_time(item, asked.get("datetime"))
                 and item["properties"].get("eo:cloud_cover", 0) < asked.get("query", {}).get("eo:cloud_cover", {})
                 .get("lt", 101)]  # fmt: skip
        start = asked.get("token", 0)
        page = {"type": "FeatureCollection", "features": found[start : start + server.page], "links": []}
        if start + server.page < len(found):
            body = asked | {"token": start + server.page}
            page["links"] = [{"rel": "next", "href": f"{server.api}/search", "method": "POST", "body": body}]
        self.send(200, json.dumps(page).encode())


def in_time(item: dict, wanted: str | None) -> bool:
    first, _, last = (wanted or "0/9").partition("/")
    return first <= item["properties"]["datetime"] <= (last or first)


@contextmanager
def serving():
    """Run a server while the block runs."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def item(server: Server, collection: str, name: str, box, hrefs: dict[str, str], **about) -> dict:
    """Add a STAC item; `box` is its outline in degrees."""
    entry = {"type": "Feature", "stac_version": "1.0.0", "id": name, "collection": collection, "links": [
                {"rel": "self", "href": f"{server.api}/collections/{collection}/items/{name}"}],
             "bbox": list(box), "geometry": shapely.geometry.mapping(shapely.box(*box)),
             "properties": {"datetime": "2017-08-09T00:00:00Z"} | about,
             "assets": {key: {"href": href} for key, href in hrefs.items()}}  # fmt: skip
    server.items.append(entry)
    return entry


def geotiff(pixels, crs, transform, driver="COG", **about) -> bytes:
    """A GeoTIFF, or another raster of GDAL, of pixels (B, H, W)."""
    with rasterio.MemoryFile() as memory:
        with memory.open(driver=driver, count=len(pixels), height=pixels.shape[1], width=pixels.shape[2], crs=crs,
                         dtype=pixels.dtype, transform=transform, **about) as data:  # fmt: skip
            data.write(pixels)
        return memory.read()


def zipped(members: dict[str, bytes]) -> bytes:
    """A zip of names and contents."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def copc(x, y, z, crs: str, **dims) -> bytes:
    """A valid COPC file of two levels: every tenth point in the root, the rest in the octants below it."""
    header = laspy.LasHeader(version="1.4", point_format=6)
    header.scales, header.offsets = np.full(3, 0.01), np.floor([x.min(), y.min(), z.min()])
    header.add_crs(pyproj.CRS(crs))
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = x, y, z
    for name, values in dims.items():
        cloud[name] = values
    cloud.update_header()
    centre = np.array([(x.min() + x.max()) / 2, (y.min() + y.max()) / 2, (z.min() + z.max()) / 2])
    half = float(np.ptp([x, y, z], axis=1).max()) / 2 + 1
    octant = [(v >= c).astype(int) for v, c in zip((x, y, z), centre, strict=True)]
    root = np.arange(len(x)) % 10 == 0
    nodes = {(0, 0, 0, 0): root} | {
        (1, a, b, c): ~root & (octant[0] == a) & (octant[1] == b) & (octant[2] == c)
        for a in (0, 1) for b in (0, 1) for c in (0, 1)
    }  # fmt: skip
    laz = lazrs.LazVlr.new_for_compression(6, 0, True)
    info = laspy.VLR("copc", 1, "", bytes(160))
    header.vlrs.insert(0, info)
    header.vlrs.append(laspy.VLR("laszip encoded", 22204, "", laz.record_data()))
    header.are_points_compressed = True
    header.write_to(io.BytesIO())  # settles the offset to the points
    body = io.BytesIO(bytes(header.offset_to_point_data))
    body.seek(0, io.SEEK_END)
    packer, entries = lazrs.LasZipCompressor(body, laz), []
    packer.reserve_offset_to_chunk_table()
    for key, which in nodes.items():
        if which.any():
            before = body.tell()
            packer.compress_many(np.ascontiguousarray(cloud.points.array[which]).view(np.uint8))
            packer.finish_current_chunk()
            entries.append(struct.pack("<iiiiQii", *key, before, body.tell() - before, int(which.sum())))
    packer.done()
    page = b"".join(entries)
    start = body.seek(0, io.SEEK_END)
    body.write(struct.pack("<H16sHQ32s", 0, b"copc", 1000, len(page), b"") + page)
    info.record_data = struct.pack("<5d2Q2d", *centre, half, half / 8, start + 60, len(page), 0, 0) + bytes(88)
    header.number_of_evlrs, header.start_of_first_evlr = 1, start
    body.seek(0)
    header.write_to(body)
    return body.getvalue()
