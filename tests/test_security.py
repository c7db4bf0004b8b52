"""What strangers send: cards, archives, catalogues, weights and files that want more than to be read."""

import ast
import hashlib
import io
import json
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import fuzz_formats
import loopback
import nbformat
import numpy as np
import pystac
import pytest
import rasterio
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from PIL import Image
from rasterio.transform import from_origin

from nbutils import elsewhere, guarded, maps, remote, sources, weights
from nbutils.archives import clips, ssl4eo
from nbutils.sources import CardError, SourceError

ROOT = Path(__file__).resolve().parents[1]
UTM, CORNER = "EPSG:32618", from_origin(5e5, 4e6, 1, 1)
HERE = GeoBox((20, 20), CORNER, UTM)


@pytest.fixture(scope="module")
def running():
    with loopback.serving() as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0.001)
    for kept in (running.files, running.faults, running.items, running.log):
        kept.clear()
    return running


@pytest.fixture
def card(tmp_path):
    """Write the card of the campaign with another value at a key."""
    (root := tmp_path / "data").mkdir()
    (path,) = fuzz_formats.write_card(root)

    def write(part: str, key: str, value: str) -> Path:
        tree = yaml.safe_load(path.read_text())
        (tree[part] if part else tree)[key] = value
        (tmp_path / "card.yaml").write_text(yaml.safe_dump(tree))
        return tmp_path / "card.yaml"

    return write


# ---- cards ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("glob", ["../*.png", "a/../../data/*/image.png", "../../../../etc/*"])
def test_a_glob_does_not_lead_out_of_the_root(card, glob):
    with pytest.raises(CardError, match=r"images\.glob: got .*'\.\.' leads out of root"):
        sources.read_dataset(card("images", "glob", glob))


def test_links_are_followed_and_their_files_bear_the_names_of_the_links(card, tmp_path):
    """Data often lie behind links; who can make one can also write a root: nothing is gained by refusing it."""
    (tmp_path / "data/c").rename(tmp_path / "far away")
    (tmp_path / "data/c").symlink_to(tmp_path / "far away")
    dataset = sources.read_dataset(card("", "title", "with a link"))
    assert [tile.scene for tile in dataset.tiles] == ["a", "b", "c"]
    (tmp_path / "data/c").unlink()
    (tmp_path / "data/c").symlink_to(tmp_path / "data")  # in a circle
    with pytest.raises((CardError, sources.DataMissing)):
        sources.read_dataset(card("images", "glob", "c/**/image.png"))


@pytest.mark.parametrize(("part", "key"), [("images", "scene"), ("exact", "key")])
@pytest.mark.parametrize("pattern", [r"(a+)+\$", r"^(?:a|aa)*(\.)"])
def test_an_expression_that_never_ends_is_stopped(card, tmp_path, monkeypatch, part, key, pattern):
    monkeypatch.setattr(guarded, "SEARCH_S", 1.0)
    for kind in ("image", "exact", "noisy"):  # a path on which it has much to try
        path = tmp_path / "data" / ("a" * 60) / f"{kind}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((48, 40), np.uint8)).save(path)
    with pytest.raises(CardError, match=rf"{part}\.{key}: .*takes more than 1 s on 4 paths; write it without"):
        sources.read_dataset(card(part, key, pattern))


@settings(max_examples=25)  # each starts a process
@given(st.sampled_from([r"(\d+)", r"^(\w*)/", "(a|b)", "(é)?", r"x(.)\Z"]), st.lists(st.text(max_size=30), max_size=20))
def test_searching_elsewhere_finds_what_searching_here_does(pattern, texts):
    texts = [text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for text in texts]
    assert guarded.search_all(pattern, texts) == [(found := re.search(pattern, text)) and found[1] for text in texts]


# ---- files that refer to others -------------------------------------------------------------------------------------
def vrt(source: str) -> str:
    return (
        '<VRTDataset rasterXSize="20" rasterYSize="20"><SRS>EPSG:32618</SRS><GeoTransform>500000,1,0,4000000,0,-1'
        '</GeoTransform><VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="0">'
        f"{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )


def tms(url: str) -> str:
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service><DataWindow>'
        "<UpperLeftX>0</UpperLeftX><UpperLeftY>0</UpperLeftY><LowerRightX>9</LowerRightX><LowerRightY>-9</LowerRightY>"
        "<TileLevel>1</TileLevel><TileCountX>1</TileCountX><TileCountY>1</TileCountY></DataWindow><Projection>EPSG:4326"
        "</Projection><BlockSizeX>32</BlockSizeX><BlockSizeY>32</BlockSizeY><BandsCount>1</BandsCount></GDAL_WMS>"
    )


@pytest.fixture
def secret(tmp_path) -> Path:
    (tmp_path / "secret.tif").write_bytes(loopback.geotiff(np.full((1, 20, 20), 7, np.uint8), UTM, CORNER))
    return tmp_path / "secret.tif"


def test_no_image_of_this_machine_makes_gdal_ask_a_server(server, secret, tmp_path):
    server.files["/a.tif"] = secret.read_bytes()
    path = tmp_path / "image.tif"
    for text in (vrt(f"/vsicurl/{server.url}/a.tif"), vrt(f"{server.url}/a.tif"), tms(server.url)):
        path.write_text(text)
        for read in (sources.read_image, lambda path: maps.from_product(path, HERE, source="dw9", target="dw9")):
            with pytest.raises(SourceError, match=r"image\.tif: cannot be read"):
                read(path)
    assert not server.log
    path.write_text(vrt(str(secret)))  # but a mosaic of files that are here may be read
    assert (sources.read_image(path)[0] == 7).all()


def test_leaving_drivers_out_is_silent_and_leaves_every_format_of_pixels():
    code = (
        "import logging; logging.basicConfig(); from nbutils import guarded, vectors; import rasterio;"
        "env = rasterio.Env().__enter__(); print(sorted({'HTTP', 'WMS', 'VRT', *guarded._PIXELS} & set(env.drivers())))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{sorted(['VRT', *guarded._PIXELS])}\n" and not done.stderr


def test_no_image_of_a_server_makes_gdal_read_a_file_here_or_ask_another(server, secret):
    server.files["/a.tif"] = secret.read_bytes()
    for text in (vrt(str(secret)), vrt(f"/vsicurl/{server.url}/a.tif"), tms(server.url)):
        server.files["/image.tif"] = text.encode()
        for read in (sources.open_raster, lambda href: remote.read_raster(href, lambda data: data.read())):
            with pytest.raises(SourceError, match=r"image\.tif: cannot be read"):
                read(f"{server.url}/image.tif")
    assert {path for _, path, _ in server.log} == {"/image.tif"}


def test_no_vector_map_makes_gdal_ask_a_server_and_the_setting_does_not_stay(server, tmp_path):
    import pyogrio

    server.files["/m.geojson"] = b'{"type": "FeatureCollection", "features": []}'
    address = f"{server.url}/m.geojson"
    layer = f'<OGRVRTLayer name="m"><SrcDataSource>/vsicurl/{address}</SrcDataSource></OGRVRTLayer>'
    mosaic, service = f"<OGRVRTDataSource>{layer}</OGRVRTDataSource>", f"<OGRWFSDataSource><URL>{address}</URL>"
    for name, text in (("a.gpkg", mosaic), ("b.gpkg", service)):
        (tmp_path / name).write_text(text)
        with pytest.raises(SourceError, match=rf"{name}: cannot be read"):
            maps.from_vector(tmp_path / name, fuzz_formats.GRID, legend="autogeo4", column="k", classes={"a": "tree"})
    assert not server.log and pyogrio.get_gdal_config_option(*guarded.OFFLINE) is None


# ---- catalogues -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("href", ["file:" + "///etc/passwd", "/etc/passwd", "/vsicurl/http://192.0.2.1/a.tif"])
@pytest.mark.parametrize("linked", [True, False])
def test_an_item_of_a_server_opens_no_file_here(server, href, linked):
    entry = loopback.item(server, "naip", "evil", (0, 0, 1, 1), {"image": href})
    if not linked:
        entry["links"] = []
    (item,) = remote.search(server.api, ["naip"], (0, 0, 1, 1))
    told = f"item 'evil': '{href}' is not a web address|the server says 404"  # a path may be one of the server's
    for where, asset in ((item, "image"), (item.assets["image"], "")):
        with pytest.raises(SourceError, match=told):
            sources.open_raster(where, asset)
        with pytest.raises(SourceError, match=told):
            maps.from_product(where, fuzz_formats.GRID, source="dw9", target="dw9", asset=asset)


def test_an_item_of_this_machine_opens_its_files(secret):
    item = pystac.Item("mine", None, None, None, {"start_datetime": "2021-01-01", "end_datetime": "2021-12-31"})
    item.add_asset("image", pystac.Asset(str(secret)))
    with sources.open_raster(item, "image") as raster:
        assert raster.shape == (20, 20)


# ---- archives -------------------------------------------------------------------------------------------------------
NAMES = ["../../0000001/a/label.tif", "/0000002/a/label.tif", "x/../../../0000003/a/label.tif"]


def labels(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def test_members_with_names_that_lead_elsewhere_are_written_nowhere(tmp_path):
    inside = tmp_path / "deep/er"
    inside.mkdir(parents=True)
    path = labels(inside / "labels.zip", dict.fromkeys(NAMES, b"x"))
    tar = inside / "images.tar.gz"
    with tarfile.open(tar, "w:gz") as archive:
        for name in (*NAMES, "link.tif", "hard.tif"):
            info = tarfile.TarInfo(name)
            info.size = 1 if name in NAMES else 0
            info.type = {"link.tif": tarfile.SYMTYPE, "hard.tif": tarfile.LNKTYPE}.get(name, tarfile.REGTYPE)
            info.linkname = "/etc/passwd"
            archive.addfile(info, io.BytesIO(b"x"))
    assert sorted(name for name, _ in ssl4eo._members([path])) == sorted(NAMES)
    assert [(name, read()) for name, read in ssl4eo._members([tar])] == [(name, b"x") for name in NAMES]
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["images.tar.gz", "labels.zip"]


def test_members_that_grow_are_left_out_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ssl4eo, "_MEMBER_BYTES", 1 << 20)
    path = labels(tmp_path / "bomb.zip", {"0000001/a/label.tif": bytes(1 << 24)})
    assert path.stat().st_size < 1 << 17 and not list(ssl4eo._members([path]))
    lies = path.read_bytes().replace(struct.pack("<I", 1 << 24), struct.pack("<I", 1000))  # of its size unpacked
    path.write_bytes(lies)
    ((_, read),) = ssl4eo._members([path])
    with pytest.raises(SourceError, match=r"bomb\.zip, 0000001/a/label\.tif: cannot be unpacked: .*; fetch it again"):
        read()
    for tail in (lies[:-40], lies[: len(lies) // 2], lies[-60:]):
        (tmp_path / "cut.zip").write_bytes(tail)
        with pytest.raises(SourceError, match=r"cut\.zip"):
            [read() for _, read in ssl4eo._members([tmp_path / "cut.zip"])]
    with rasterio.MemoryFile() as memory:
        profile = {"driver": "GTiff", "height": 20_000, "width": 20_000, "count": 3, "dtype": "uint8"}
        memory.open(**profile, compress="deflate", SPARSE_OK=True).close()
        packed = memory.read()
    assert len(packed) < 1 << 20
    with pytest.raises(SourceError, match=r"x\.tif: has 3 bands of \(20000, 20000\) pixels"):
        ssl4eo._read(packed, "x.tif")


def test_a_raster_in_a_zip_holds_its_pixels_itself(secret, tmp_path):
    path = labels(tmp_path / "cover.zip", {"cover.tif": vrt(str(secret)).encode()})
    with pytest.raises(SourceError, match=r"cover\.zip: cannot be read as a raster"):
        clips.open_packed(path)
    labels(path, {"cover.tif": secret.read_bytes()})
    with clips.open_packed(path) as data:
        assert (data.read() == 7).all()
    path.write_bytes(path.read_bytes()[:200] + path.read_bytes()[-22:])  # its directory lies elsewhere
    with pytest.raises(SourceError, match=r"cover\.zip: cannot be (unpacked|read)"):
        clips.open_packed(path)


# ---- weights --------------------------------------------------------------------------------------------------------
class Marker:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def header(fields: dict, content: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + content


HUGE = {"w": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 4]}}
WRAPS = {"w": {"dtype": "F32", "shape": [1 << 32, 1 << 32], "data_offsets": [0, 0]}}
BEYOND = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [1 << 40, (1 << 40) + 4]}}
OVERLAP = {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}


@pytest.mark.parametrize("kind", ["pickle", "torch", "long header", "huge", "wraps", "beyond", "overlap", "negative"])
def test_weights_that_are_something_else_are_refused_also_with_a_right_checksum(tmp_path, kind):
    path, card = fuzz_formats.write_weights(tmp_path)
    if kind == "torch":
        torch.save({"w": Marker(tmp_path / "touched")}, path)
    else:
        path.write_bytes({
            "pickle": pickle.dumps(Marker(tmp_path / "touched")),
            "long header": struct.pack("<Q", 1 << 62) + b"{}",
            "huge": header(HUGE, bytes(4)),
            "wraps": header(WRAPS),
            "beyond": header(BEYOND, bytes(4)),
            "overlap": header(OVERLAP, bytes(4)),
            "negative": header({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        }[kind])  # fmt: skip
    fields = json.loads(card.read_text()) | {"weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    card.write_text(json.dumps(fields))
    with pytest.raises(weights.WeightsError, match=r"weights\.safetensors: cannot be read .*; delete the folder"):
        weights.load(tmp_path)
    with pytest.raises(weights.WeightsError, match=r"weights\.safetensors: not a whole safetensors file"):
        elsewhere.load("imagenet", encoder="resnet18", bands=("red", "green", "blue"), scale=255, file=path)
    assert not (tmp_path / "touched").exists()


# ---- our own code and what it publishes -----------------------------------------------------------------------------
FORBIDDEN = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
LOOSE = {"eval", "exec", "os.system", "os.popen", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
         "tarfile.TarFile.extractall", "np.load"}  # fmt: skip
LOOSE_KEYS = {("shell", "True"), ("verify", "False"), ("allow_pickle", "True"), ("weights_only", "False")}
FOLDERS = ("nbutils", "tools", "benchmarks", "notebooks")
CODE = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".ipynb") and ".ipynb_checkpoints" not in path.parts]  # fmt: skip


def code_of(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text()
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def loose_ends(text: str) -> list[str]:
    """What of a program could run what a file says, or trust a server without looking."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"import {name}" for name in names if name.split(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            called = ast.unparse(node.func)
            safe = given.get("weights_only") == "True" or given.get("Loader") == "_Loader"
            safe |= called == "np.load" and given.get("allow_pickle", "False") == "False"
            if called in LOOSE and not safe or called.endswith(".extractall"):
                found.append(called)
            found += [f"{key}={value}" for key, value in given.items() if (key, value) in LOOSE_KEYS]
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_runs_what_a_file_says(path):
    assert not loose_ends(code_of(path))


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from joblib import load", "torch.load(p)", "torch.load(p, weights_only=False)", "eval('1')",
     "yaml.load(t, Loader=yaml.Loader)", "requests.get(u, verify=False)", "subprocess.run(c, shell=True)",
     "np.load(p, allow_pickle=True)", "archive.extractall()", "os.system('x')"],
)  # fmt: skip
def test_the_look_for_it_finds_it(text):
    assert loose_ends(text)


def test_the_one_loader_of_yaml_is_a_safe_one():
    assert issubclass(guarded._Loader, yaml.SafeLoader)
    assert not {key for key in guarded._Loader.yaml_constructors if key and "python" in key}


SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{30,}|\bhf_\w{30,}"
    r"|[?&](?:sig|sv|token|X-Amz-\w+)="
    r"|\b[\w.-]+@[\w-]+\.(?!example)\w{2,}\b|(?i:\b(?:password|api_key|secret)\s*[=:]\s*\S)"
    r"|(?<![\w.:/])/(?:home|Users|root)/|\b(?:\d{1,3}\.){3}\d{1,3}:\d+|\blocalhost\b|\bip-\d+-\d+-\d+-\d+\b"
)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")), ids=lambda path: path.stem)
def test_stored_outputs_hold_no_secret_and_name_no_machine(path):
    host = subprocess.run(["uname", "-n"], capture_output=True, text=True, check=True).stdout.strip()
    texts = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            data = {"text": output.get("text", ""), **output.get("data", {})}
            texts += ["".join(v) if isinstance(v, list) else str(v) for k, v in data.items() if "image" not in k]
    assert texts and not [found[0] for text in texts if (found := SECRETS.search(text))]
    assert len(host) < 5 or not [text for text in texts if host in text]


@pytest.mark.parametrize(
    "text", ["?sig=abc", "gh" + "p_" + "a" * 36, "x /" + "home/me/", "me@uni.edu", "password = x", "10.0.0.1:80"]
)
def test_the_look_for_secrets_finds_them(text):
    assert SECRETS.search(text)
