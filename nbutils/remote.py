"""Remote: catalogues searched, links signed, files fetched whole or in ranges, with bounded retries.

Only https leaves this machine, and what begins with https is never redirected to anything else; plain http is for
servers on the machine itself, when they are asked for by such an address. Planetary Computer links are signed
when they are used and anew when the server refuses them, so that a job outlives its signatures. Errors name an address
without its query, because that is where signatures are.
"""

import hashlib
import io
import ipaddress
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import pystac
import rasterio
import requests
from rasterio.errors import RasterioError
from requests.adapters import HTTPAdapter, Retry
from requests.exceptions import BaseHTTPError

from nbutils import guarded
from nbutils.cards import few
from nbutils.files import SourceError

PLANETARY_COMPUTER = "https://planetarycomputer.microsoft.com/api/stac/v1"
SIGNED_HOSTS = (".blob.core.windows.net",)  # ends of host names whose links need a signature
ATTEMPTS = 4
TIMEOUT_S = (10, 60)  # to connect, and between two bytes
PAUSE_S, PAUSE_MOST_S = 1.0, 30.0  # before the second attempt, doubled for each further one
PROGRESS_BYTES = 1 << 20  # an attempt that brought so much does not count
Progress = Callable[[int, int | None], None]  # bytes there so far, bytes of the whole file if the server tells
_PASSING = (408, 425, 429, 500, 502, 503, 504)


def plain(text: object) -> str:
    """Text with the queries of its addresses cut off, fit to be shown and kept."""
    return re.sub(r"\?[^\s'\")]*", "", " ".join(str(text).split()))


def is_remote(href: str | Path) -> bool:
    """Whether an href is the address of a server rather than a file of this machine."""
    return re.match(r"(?!file:)[A-Za-z][\w+.-]*://", str(href)) is not None


def _is_local(href: str) -> bool:
    host = urlsplit(href).hostname
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


class _Session(requests.Session):
    """Bounded retries, and a check of every request, also those a redirect or the next page of a catalogue leads to."""

    def __init__(self, href: str):
        super().__init__()
        self.max_redirects, self.local = 5, urlsplit(href).scheme == "http" and _is_local(href)
        tries = Retry(ATTEMPTS - 1, status_forcelist=_PASSING, allowed_methods=None, backoff_factor=PAUSE_S,
                      backoff_max=PAUSE_MOST_S, respect_retry_after_header=False)  # fmt: skip
        for scheme in ("https://", "http://"):
            self.mount(scheme, HTTPAdapter(max_retries=tries))

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        _check(request.url or "", self.local)
        return super().send(request, **options)


def _check(href: str, local: bool = True) -> None:
    """Refuse what is neither https nor, if `local`, http on this machine."""
    scheme = urlsplit(href).scheme
    if scheme != "https" and not (local and scheme == "http" and _is_local(href)):
        raise SourceError(f"{plain(href)}: only https is fetched (http from this machine alone); ask for an https link")


def needs_signature(href: str) -> bool:
    """Whether a link belongs to the Planetary Computer's storage."""
    return is_remote(href) and urlsplit(href).netloc.endswith(SIGNED_HOSTS)


def _sign(href: str, renew: bool) -> str:
    from planetary_computer import sas  # slow to import, and most sessions sign nothing

    if renew:
        sas.TOKEN_CACHE.clear()  # else a token is kept until less than a minute of it is left
    return sas.sign_url(href)


def resolve(href: str, *, renew: bool = False) -> str:
    """Return what to open: Planetary Computer links signed (an old signature replaced), all others as they are.

    Args:
        href: Local path or address.
        renew: Use no signature kept from before, the server has refused it.

    Raises:
        SourceError: http that leaves this machine, or no signature to be had.
    """
    if is_remote(href):
        _check(href)
    try:
        return _sign(plain(href), renew) if needs_signature(href) else str(href)
    except (requests.RequestException, ValueError) as error:
        raise SourceError(f"{plain(href)}: cannot be signed: {plain(error)}; try again later") from None


def href_of(where: str | Path | pystac.Asset | pystac.Item, asset: str = "") -> str:
    """Path or address of what may also be an asset, or an item of a STAC catalogue of which `asset` is wanted.

    Raises:
        SourceError: The item lacks the asset, or came from a server and names a file of this machine.
    """
    if isinstance(where, pystac.Item):
        if asset not in where.assets:
            raise SourceError(f"item {where.id!r} has no asset {asset!r}, only {few(where.assets)}")
        where = where.assets[asset]
    if isinstance(where, pystac.Asset):
        href, owner = where.get_absolute_href() or where.href, where.owner
        if _is_from_afar(owner) and not is_remote(href):
            told = "is not a web address, and what a server says opens no file here; fetch the file and open that"
            raise SourceError(f"item {owner.id!r}: {href!r} {told}")
        where = href
    return str(where).removeprefix("file://")


def _is_from_afar(owner: pystac.Item | pystac.Collection | None) -> bool:
    """Whether an item came from a server, by its own link or by that of the API it was found with."""
    known = (owner, owner.get_root()) if owner is not None else ()
    return any(is_remote(each.get_self_href() or "") for each in known if each is not None)


def gdal_options() -> dict[str, str]:
    """Options of `rasterio.Env` for files read over http: time limits, bounded retries, no look for sidecar files."""
    return {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_HTTP_MAX_RETRY": str(ATTEMPTS - 1),
        "GDAL_HTTP_RETRY_DELAY": str(PAUSE_S),
        "GDAL_HTTP_CONNECTTIMEOUT": str(TIMEOUT_S[0]),
        "GDAL_HTTP_TIMEOUT": str(TIMEOUT_S[1]),
    }


def located(href: str, *, renew: bool = False) -> str:
    """Return what GDAL is to open: like `resolve`, and where an address leads in the end.

    GDAL follows redirects to http and ftp and has no option against it, so they are followed here, each checked. A
    server that begins to redirect only after this is not noticed.

    Raises:
        SourceError: as `resolve`, or the server does not answer, refuses, or redirects to what is not https.
    """
    if not is_remote(href):
        return href
    with _ask(href, {"Range": "bytes=0-0"}, renew) as answer:
        return answer.url


@contextmanager
def opened(href: str) -> Iterator[Callable[[Callable[[rasterio.DatasetReader], Any]], Any]]:
    """Open a raster here or over http when first asked; a refused signature is renewed once for each question.

    Yields:
        A function that returns `read(dataset)` for the `read` it is given.
    """
    name, remedy = (plain(href), "try again later") if is_remote(href) else (href, "fetch or write the file again")
    with ExitStack() as stack:
        data: rasterio.DatasetReader | None = None

        def ask(read: Callable[[rasterio.DatasetReader], Any]) -> Any:
            nonlocal data
            for renew in (False, True):
                try:
                    with rasterio.Env(**(gdal_options() if is_remote(href) else guarded.OFFLINE)):
                        if data is None or renew:
                            data = stack.enter_context(guarded.open_raster(located(href, renew=renew)))
                        return read(data)
                except (RasterioError, OSError) as error:
                    if renew or not needs_signature(href):
                        told = plain(error.__cause__ or error)
                        raise SourceError(f"{name}: cannot be read: {told}; {remedy}") from None

        yield ask


def read_raster(href: str, read: Callable[[rasterio.DatasetReader], Any]) -> Any:
    """Open a raster here or over http and return `read(dataset)`; a refused signature is renewed once."""
    with opened(href) as ask:
        return ask(read)


def search(
    api_url: str, collections: Sequence[str], bbox: Sequence[float], datetime: str | None = None, limit: int = 500,
    query: dict[str, Any] | None = None,
) -> list[pystac.Item]:  # fmt: skip
    """Search a STAC API.

    Args:
        api_url: Landing page of the API.
        collections: Their names.
        bbox: West, south, east, north in degrees.
        datetime: Time or range as STAC writes it, such as "2021-06-01/2021-06-30".
        limit: More items than this are an error, never cut off in silence.
        query: Conditions on properties, such as {"eo:cloud_cover": {"lt": 10}}.

    Raises:
        SourceError: the API cannot be reached, does not search, or finds more than `limit`.
    """
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO

    talk, told = StacApiIO(timeout=TIMEOUT_S), f"{plain(api_url)}: search for {', '.join(collections)}"
    talk.session = _Session(api_url)
    what = {"collections": list(collections), "bbox": list(bbox), "datetime": datetime, "query": query}
    try:
        found = Client.open(api_url, stac_io=talk).search(**what, max_items=limit + 1, limit=min(limit + 1, 250))
        items = list(found.items())
    except Exception as error:  # of the API, the transport, JSON or STAC: the library wraps only some
        raise SourceError(f"{told} failed: {plain(error)[:300]}") from None
    if len(items) > limit:
        raise SourceError(f"{told} finds more than {limit} items; narrow the area or the time")
    return items


def _ask(href: str, headers: dict[str, str], renew: bool = False) -> requests.Response:
    """Get the head of an answer (2xx, or 416: no such range), signing anew once when refused."""
    for renew in (True,) if renew else (False, True):  # noqa: B020
        try:
            headers = {"Accept-Encoding": "identity"} | headers
            answer = _Session(href).get(resolve(href, renew=renew), headers=headers, timeout=TIMEOUT_S, stream=True)
        except requests.RequestException as error:
            raise SourceError(f"{plain(href)}: {plain(error)} (after {ATTEMPTS} attempts); try again later") from None
        if answer.ok or answer.status_code == 416:
            return answer
        answer.close()
        if renew or answer.status_code != 403 or not needs_signature(href):
            break
    told = f"cannot be read: the server says {answer.status_code} {answer.reason}"
    raise SourceError(f"{plain(href)}: {told}; check the address and the connection")


def size_of(href: str) -> int | None:
    """Return the size of a file here or on a server in bytes, None where the server does not tell."""
    if not is_remote(href):
        return Path(href).stat().st_size
    with _ask(href, {"Range": "bytes=0-0"}) as answer:  # signed links are often for GET alone
        total = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length", "")
        return int(total) if total.isdigit() else None


class _Ranges(io.RawIOBase):
    """A file on a server, read by ranges; every answer is checked to come from the same file."""

    def __init__(self, href: str):
        self.href, self.position, self.mark = href, 0, ""

    def readable(self) -> bool:
        return True

    seekable = readable

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + (0, self.position, size_of(self.href) if whence == io.SEEK_END else 0)[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        for attempt in range(ATTEMPTS):
            with _ask(self.href, {"Range": f"bytes={self.position}-{self.position + len(buffer) - 1}"}) as answer:
                mark = answer.headers.get("ETag", "") + answer.headers.get("Content-Range", "").rpartition("/")[2]
                if answer.status_code == 416:
                    return 0
                if answer.status_code != 206 or mark != (self.mark or mark):
                    why = "no ranges are served" if answer.status_code != 206 else "the file changed while it was read"
                    raise SourceError(f"{plain(self.href)}: {why}; download it and read it here")
                try:
                    self.mark, came = mark, answer.content
                except requests.RequestException as error:
                    told = f"broke off ({type(error).__name__})"
                    time.sleep(min(PAUSE_S * 2**attempt, PAUSE_MOST_S))
                    continue
            buffer[: len(came)] = came
            self.position += len(came)
            return len(came)
        raise SourceError(f"{plain(self.href)}: {told} {ATTEMPTS} times; try again later")


def open_ranges(href: str) -> BinaryIO:
    """Open a file here or on a server for reading at any place, without fetching the rest of it."""
    return io.BufferedReader(_Ranges(href), 1 << 16) if is_remote(href) else open(href, "rb")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mark_of(state: Path) -> str:
    """What the server called the version of a file that is there in part; "" where that is not known."""
    try:
        return str(json.loads(state.read_text())["mark"])
    except (OSError, ValueError, KeyError, TypeError):  # absent, or cut short by a loss of power
        return ""


def _fetch(href: str, part: Path, state: Path, max_bytes: int | None, progress: Progress) -> str:
    """Add to `part` what is missing of the file; returns what went wrong, "" when it is whole."""
    mark = _mark_of(state) if part.is_file() else ""
    have = part.stat().st_size if mark else 0
    with _ask(href, {"Range": f"bytes={have}-", "If-Range": mark} if have else {}) as answer:
        told = answer.headers.get("Content-Range", "")
        if told == f"bytes */{have}":
            return ""
        if answer.status_code == 416 or (answer.status_code == 206 and not told.startswith(f"bytes {have}-")):
            part.unlink(missing_ok=True)
            return f"asked for the bytes from {have}, got {told or answer.status_code}; beginning again"
        have = have if answer.status_code == 206 else 0
        length = answer.headers.get("Content-Length", "")
        size = have + int(length) if length.isdigit() else None
        for most, why in ((max_bytes, "allowed"), (shutil.disk_usage(part.parent).free + have, "free on the disk")):
            if most is not None and (size or 0) > most:
                raise SourceError(f"{plain(href)}: has {size} bytes, {most} are {why}; nothing is fetched")
        tag = answer.headers.get("ETag", "W/")  # a weak tag does not promise the same bytes
        mark = answer.headers.get("Last-Modified", "") if tag.startswith("W/") else tag
        fresh = state.with_name(state.name + ".new")
        fresh.write_text(json.dumps({"mark": mark, "from": plain(href)}))
        os.replace(fresh, state)
        with open(part, "ab" if have else "wb") as file:
            progress(have, size)
            try:
                while chunk := answer.raw.read1(1 << 20):  # all that has come, also before a connection breaks
                    have += len(chunk)
                    if max_bytes is not None and have > max_bytes:
                        raise SourceError(f"{plain(href)}: sends more than the {max_bytes} bytes allowed; stopped")
                    file.write(chunk)
                    progress(have, size)
            except BaseHTTPError as error:
                return f"broke off after {have} of {size} bytes ({type(error).__name__})"
            file.flush()
            os.fsync(file.fileno())
    return f"ended after {have} of {size} bytes" if size is not None and have != size else ""


def download(href: str, path: str | Path, *, sha256: str | None = None, max_bytes: int | None = None,
             attempts: int = ATTEMPTS, progress: Progress = lambda done, size: None) -> Path:  # fmt: skip
    """Fetch a file, going on where an earlier call stopped; `path` is whole or absent.

    What has come so far lies in `<path>.part`; `<path>.sha256` keeps the checksum in the form of `sha256sum -c`.

    Args:
        href: Address; see `resolve`.
        path: Where to; parent folders are made.
        sha256: The checksum that the file must have, hex.
        max_bytes: Larger files are refused.
        attempts: Attempts in a row that bring less than 1 MiB before giving up.
        progress: Called with the bytes there, those of earlier calls among them, and the size if it is known.

    Raises:
        SourceError: larger than allowed or than the disk, wrong checksum, or given up; the last error is told.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, state, sums, new = (path.with_name(path.name + end) for end in (".part", ".part.json", ".sha256", ".new"))
    kept = next(iter(sums.read_text(errors="replace").split()), None) if sums.is_file() and path.is_file() else None
    if kept and kept == (sha256 or kept).lower() == sha256_of(path):
        return path
    failed, before = 0, part.stat().st_size if part.is_file() else 0
    while told := _fetch(href, part, state, max_bytes, progress):
        have = part.stat().st_size if part.is_file() else 0
        failed, before = (1 if have - before >= PROGRESS_BYTES else failed + 1), have
        if failed >= attempts:
            raise SourceError(f"{plain(href)}: {told}, {failed} attempts in a row; run again to go on from there")
        time.sleep(min(PAUSE_S * 2 ** (failed - 1), PAUSE_MOST_S))
    found = sha256_of(part)
    if sha256 and found != sha256.lower():
        part.unlink()
        state.unlink()
        raise SourceError(f"{plain(href)}: SHA-256 is {found}, expected {sha256}; the file is not kept")
    new.write_text(f"{found}  {path.name}\n")
    os.replace(part, path)
    os.replace(new, sums)
    state.unlink()
    return path
