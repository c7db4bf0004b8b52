"""Archives: recipes that turn public archives into a folder of scenes and the data set card that reads them.

A recipe is a few facts (collections, published files with what is known of size and checksum) and the shipped card of
the same name. Scenes are made one by one, each whole or absent, so that an interrupted acquisition goes on where it
stopped. Members of archives are read by name and never unpacked, and what an API calls its items never names a file.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import rasterio
import shapely
import yaml
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds

from nbutils import ROOT, legend, remote
from nbutils.archives import ssl4eo
from nbutils.archives.clips import copy_points, copy_window, mosaic, open_packed, read_window, write_image
from nbutils.cards import DataMissing, few, load_card
from nbutils.files import SourceError, alone, write_mask
from nbutils.sources import read_dataset

LIDAR_MARGIN_M = 20.0  # returns beyond a scene's edge, for the ground filter
_CLOUDY = (0, 1, 3, 8, 9, 10)  # of Sentinel-2's scene classification: no data, defective, shadow, cloud, cirrus
Build = Callable[[Path], None]


class _Nothing(Exception):
    """A scene holds no data; the message says of what."""


@dataclass(frozen=True)
class Wish:
    """What is asked for: area (west, south, east, north in degrees), API, year, size and number of scenes, files."""

    bbox: tuple[float, float, float, float] | None = None
    api: str = remote.PLANETARY_COMPUTER
    year: int | None = None
    scene_px: int = 512
    most: int | None = None
    parts: int = 1
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """Items of a STAC collection; those that share the property `group` may make up one scene together."""

    collection: str
    assets: tuple[str, ...]
    when: str | None = "{year}"
    group: str | None = None
    query: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Piece:
    """A published file: where it is, size (told where the server does not) and SHA-256 if known, the page on it."""

    name: str
    url: str | None
    page: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Facts about an archive; its licence and bands are in the shipped card of the same name."""

    layers: Mapping[str, Layer] = field(default_factory=dict)
    pieces: tuple[Piece, ...] = ()
    gsd_m: float = 10.0
    year: int = 2021
    labels: str = ""


@dataclass(frozen=True)
class Plan:
    """What will be fetched; `scenes` (STAC archives) says from which items each scene is made."""

    name: str
    root: Path
    wish: Wish
    scenes: tuple[Mapping[str, Any], ...]
    left_out: tuple[str, ...]
    sizes: Mapping[str, int | None]


_HUB = "https://huggingface.co/datasets"
_S12 = "https://hf.co/datasets/wangyi111/SSL4EO-S12/resolve/3f5ddad68ba2ea29d019b0cef6cf292ff8af0d62/s2_l1c"
_S12_PARTS = tuple(
    Piece(f"images-{n + 1:02d}", f"{_S12}/s2_l1c.tar.gz.parta{'abcdefghijkl'[n]}", f"{_HUB}/wangyi111/SSL4EO-S12",
          size=26_000_000_000 if n == 11 else 48_300_000_000, sha256=digest)  # as its page rounds them
    for n, digest in enumerate(ssl4eo.IMAGES_SHA256)
)  # fmt: skip


def _noldo(name: str) -> Piece:
    page = f"{_HUB}/vikki23/NoLDO-S12"
    return Piece(name, f"{page}/resolve/main/ssl4eo_s12_{name}.zip", page)  # its authors give no size or checksum


_DFC2020 = Piece("dfc2020", None, "https://ieee-dataport.org/competitions/2020-ieee-grss-data-fusion-contest")
_S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
RECIPES = {
    "nyc": Recipe(
        {"image": Layer("naip", ("image",)), "points": Layer("3dep-lidar-copc", ("data",), None, "3dep:usgs_id")},
        (Piece("labels", "https://data.cityofnewyork.us/api/views/he6d-2qns/files/"
               "64c49dc7-c17f-43db-a4e3-669a28f73234?filename=Land_Cover.zip",
               "https://data.cityofnewyork.us/d/he6d-2qns", size=1_334_211_225),),
        gsd_m=1.0, year=2017,
    ),
    "sentinel2": Recipe(
        {"image": Layer("sentinel-2-l2a", (*_S2_BANDS, "SCL"), "{year}-05-01/{year}-09-30", "s2:datatake_id",
                        {"eo:cloud_cover": {"lt": 10}}),
         "exact": Layer("esa-worldcover", ("map",), "{year}-06-01/{year}-06-30"),
         "product": Layer("io-lulc-annual-v02", ("data",), "{year}-06-01/{year}-06-30", "id")},
    ),
    "ssl4eo_dw": Recipe(pieces=(_noldo("nol"), _noldo("dw"), *_S12_PARTS), labels="dw9"),
    "ssl4eo_osm": Recipe(pieces=(_noldo("nol"), _noldo("osm"), *_S12_PARTS), labels="osm13"),
    "ssl4eo_dfc2020": Recipe(pieces=(_noldo("nol"), _DFC2020, *_S12_PARTS), labels="dfc8"),
}  # fmt: skip


def make_plan(name: str, wish: Wish | None = None, root: str | Path | None = None) -> Plan:
    """Find out what an acquisition takes, without writing anything.

    Args:
        name: One of `RECIPES`.
        wish: What is asked for.
        root: Folder to fill; that of the shipped card when left out.

    Raises:
        ValueError: unknown recipe, no area, or one too small for scenes of all splits.
        SourceError: the archive cannot be reached or does not have the data, or `root` holds another acquisition.
        DataMissing: a file that only its owner's page gives out was not named in `wish.files`.
    """
    if name not in RECIPES:
        raise ValueError(f"no archive {name!r}; there are {', '.join(RECIPES)}")
    wish, recipe = wish or Wish(), RECIPES[name]
    known = {"images", *(piece.name for piece in recipe.pieces)}
    if unknown := sorted(set(wish.files) - known):
        raise ValueError(f"{name} takes no file {few(unknown)}; it takes {', '.join(sorted(known))}")
    root = Path(root).expanduser().resolve() if root else load_card(_shipped(name)).folder
    scenes, left_out = _stored(name, recipe, wish, root) if recipe.layers else ((), ())
    sizes: dict[str, int | None] = {piece.name: _piece_size(piece, wish, root) for piece in _needed(recipe, wish)}
    if scenes:
        bands = 4 if name == "nyc" else 2 * len(_S2_BANDS) + 2
        sizes["images, uncompressed at most"] = len(scenes) * wish.scene_px**2 * bands
        files = {hrefs[0] for scene in scenes for hrefs, _ in scene["from"].get("points", ())}
        if files:  # what of them lies in the area is read; nothing tells how much that is
            known_sizes = [remote.size_of(href) for href in sorted(files)]
            sizes["LiDAR files, a part of"] = None if None in known_sizes else sum(known_sizes)
    return Plan(name, root, wish, scenes, left_out, sizes)


def acquire(plan: Plan, tell: Callable[[str], None] = lambda line: None,
            progress: Callable[[str, int, int | None], None] = lambda name, done, size: None,
            ) -> tuple[Path, tuple[str, ...]]:  # fmt: skip
    """Fetch what is planned, going on where an earlier call stopped.

    Args:
        plan: From `make_plan`.
        tell: Called with a line on every file and scene.
        progress: Called while a file is fetched: its name, the bytes there so far, its size if it is known.

    Returns:
        The card, and what was left out with the reason, a line each.

    Raises:
        SourceError: a file or link cannot be had or read.
    """
    plan.root.mkdir(parents=True, exist_ok=True)
    with alone(plan.root):  # a second one would write to the same parts of files
        return _acquire(plan, tell, progress)


def _acquire(
    plan: Plan, tell: Callable[[str], None], progress: Callable[[str, int, int | None], None]
) -> tuple[Path, tuple[str, ...]]:
    root, recipe, left_out = plan.root, RECIPES[plan.name], list(plan.left_out)
    making = root / ".making"
    shutil.rmtree(making, ignore_errors=True)  # of a run that was killed
    (root / "scenes").mkdir(parents=True, exist_ok=True)
    if plan.scenes:
        kept = {"asked": _asked(plan.wish), "scenes": plan.scenes, "left_out": plan.left_out}
        _write_text(root / "plan.json", json.dumps(kept, indent=1) + "\n")
    files: dict[str, Path] = {}
    for piece in _needed(recipe, plan.wish):
        given = plan.wish.files.get(piece.name, piece.url) or ""
        tell(f"{piece.name}: {remote.plain(given)}")
        files[piece.name] = Path(given).expanduser()
        if remote.is_remote(given):
            where, seen = root / "downloads" / piece.name, partial(progress, piece.name)
            files[piece.name] = remote.download(given, where, sha256=piece.sha256, progress=seen)
    source = _stac_scenes(plan, files) if plan.scenes else _published_scenes(plan, files)
    for number, (name, build) in enumerate(source, 1):
        if (root / "scenes" / name).is_dir():
            continue
        making.mkdir(parents=True)
        try:
            build(making)
            os.replace(making, root / "scenes" / name)
            tell(f"scene {number}{f' of {len(plan.scenes)}' if plan.scenes else ''}: {name}")
        except _Nothing as reason:
            left_out.append(f"{name}: {reason}")
        finally:
            shutil.rmtree(making, ignore_errors=True)
    made = sorted((root / "scenes").glob("*/*"))
    sums = [f"{remote.sha256_of(path)}  {path.relative_to(root).as_posix()}\n" for path in made]
    _write_text(root / "SHA256SUMS", "".join(sums))
    return _write_card(plan), tuple(left_out)


def _shipped(name: str) -> Path:
    return ROOT / "data/datasets" / f"{name}.yaml"


def _write_text(path: Path, text: str) -> None:
    path.with_name(path.name + ".new").write_text(text)
    os.replace(path.with_name(path.name + ".new"), path)


def _write_card(plan: Plan) -> Path:
    """The shipped card where it fits, else a copy with this root; the files it names are found and paired."""
    path = _shipped(plan.name)
    if load_card(path).folder.resolve() != plan.root:
        card = yaml.safe_load(path.read_text()) | {"root": str(plan.root)}
        path = plan.root / f"{plan.name}.yaml"
        _write_text(path, yaml.safe_dump(card, sort_keys=False, allow_unicode=True))
    read_dataset(path)
    return path


def _needed(recipe: Recipe, wish: Wish) -> list[Piece]:
    """The files of a recipe: of the image archive only so many parts, or what the user has of it."""
    parts = {piece.name for piece in _S12_PARTS[0 if "images" in wish.files else wish.parts :]}
    own = [Piece("images", None, "")] if "images" in wish.files else []
    return own + [piece for piece in recipe.pieces if piece.name not in parts]


def _piece_size(piece: Piece, wish: Wish, root: Path) -> int | None:
    place = wish.files.get(piece.name, piece.url)
    if place is None:
        raise DataMissing(f"{piece.name} is given out on {piece.page} only; get it and name it as {piece.name}=PATH")
    kept = root / "downloads" / piece.name if remote.is_remote(place) else Path(place).expanduser()
    if not remote.is_remote(place) and not kept.exists():
        raise DataMissing(f"{piece.name}: {place} is not there")
    if kept.exists():
        return kept.stat().st_size
    told = remote.size_of(place)
    return piece.size if told is None and piece.name not in wish.files else told


# ---- archives behind a STAC API -------------------------------------------------------------------------------------
def _asked(wish: Wish) -> dict[str, Any]:
    asked = asdict(wish) | {"bbox": list(wish.bbox or ())}
    return {key: value for key, value in asked.items() if key not in ("files", "parts")}


def _stored(name: str, recipe: Recipe, wish: Wish, root: Path) -> tuple[tuple, tuple]:
    """Scenes and what was left out: as planned before in `root`, else from the API."""
    if (root / "plan.json").is_file():
        kept = json.loads((root / "plan.json").read_text())
        if kept["asked"] != _asked(wish):
            raise SourceError(f"{root} holds another acquisition: {kept['asked']}; give another folder")
        return tuple(kept["scenes"]), tuple(kept["left_out"])
    if not wish.bbox or not (wish.bbox[0] < wish.bbox[2] and wish.bbox[1] < wish.bbox[3]):
        raise ValueError(f"{name} needs an area: west, south, east, north in degrees, got {wish.bbox}")
    found, left_out = {}, []
    for role, layer in recipe.layers.items():
        when = layer.when and layer.when.format(year=wish.year or recipe.year)
        items = remote.search(wish.api, [layer.collection], wish.bbox, when, query=layer.query)
        near = datetime(wish.year or recipe.year, 7, 1, tzinfo=UTC)
        found[role] = [item for item in (_item(item, layer, near, left_out) for item in items) if item]
        if not found[role]:
            why = f"; {left_out[-1]}" if left_out else f" for {when or 'any time'} in {wish.bbox}"
            raise SourceError(f"{wish.api}: {layer.collection} has nothing to use{why}")
    scenes, first = [], found["image"][0]
    crs = first["crs"] or remote.read_raster(first["hrefs"][0], lambda data: data.crs.to_wkt())
    for row, column, grid in _tiling(wish, recipe.gsd_m, crs):
        around = grid.pad(math.ceil(LIDAR_MARGIN_M / recipe.gsd_m))
        outlines = (grid.geographic_extent.geom, around.geographic_extent.geom)
        chosen = {role: _choose(*outlines, items) for role, items in found.items()}
        if lacking := [recipe.layers[role].collection for role, items in chosen.items() if not items]:
            left_out.append(f"row {row}, column {column}: not covered by {few(lacking)}")
        else:
            scenes.append({"row": row, "column": column, "crs": str(grid.crs), "size": list(grid.shape),
                           "transform": list(grid.transform)[:6], "from": chosen})  # fmt: skip
    return tuple(_split(scenes[: wish.most], left_out)), tuple(left_out)


def _item(item: pystac.Item, layer: Layer, near: datetime, left_out: list[str]) -> dict[str, Any] | None:
    """What of an item is needed; None, with a line in `left_out`, when it lacks an asset."""
    if missing := [asset for asset in layer.assets if asset not in item.assets]:
        left_out.append(f"{layer.collection} item {item.id!r} has no asset {few(missing)}, only {few(item.assets)}")
        return None
    hrefs = [item.assets[asset].get_absolute_href() or "" for asset in layer.assets]
    if wrong := [href for href in hrefs if not remote.is_remote(href)]:
        raise SourceError(f"{layer.collection} item {item.id!r}: {wrong[0]!r} is not a web address; it is not opened")
    about, when = item.properties, item.datetime or item.common_metadata.end_datetime or near
    code = about.get("proj:code") or about.get("proj:epsg")
    return {
        "hrefs": [remote.plain(href) if remote.needs_signature(href) else href for href in hrefs],
        "group": item.id if layer.group == "id" else about.get(layer.group, item.id) if layer.group else "",
        "rank": [about.get("eo:cloud_cover", 0), abs(when - near)],
        "outline": shapely.geometry.shape(item.geometry),
        "offset": 1000 if float(about.get("s2:processing_baseline", 0)) >= 4 else 0,  # Sentinel-2 since 2022
        "crs": f"EPSG:{code}" if isinstance(code, int) else code,
    }


def _tiling(wish: Wish, gsd_m: float, crs: str) -> Iterator[tuple[int, int, GeoBox]]:
    """Scenes side by side within the area, row by row from the north, on whole pixels of the CRS."""
    left, bottom, right, top = transform_bounds("EPSG:4326", crs, *wish.bbox)
    x, y, side = math.ceil(left / gsd_m) * gsd_m, math.floor(top / gsd_m) * gsd_m, wish.scene_px * gsd_m
    for row in range(int((y - bottom) // side)):
        for column in range(int((right - x) // side)):
            corner = Affine(gsd_m, 0, x + column * side, 0, -gsd_m, y - row * side)
            yield row, column, GeoBox((wish.scene_px, wish.scene_px), corner, crs)


def _choose(outline: shapely.Polygon, around: shapely.Polygon, items: Sequence[Mapping[str, Any]]) -> list[list]:
    """Links and offsets of the best group of items that covers an outline, with those around it; none if none does."""
    groups: dict[str, list] = {}
    for item in items:
        if item["outline"].intersects(around):
            groups.setdefault(item["group"], []).append(item)
    for group in sorted(groups.values(), key=lambda group: min(item["rank"] for item in group)):
        if shapely.union_all([item["outline"] for item in group]).intersection(outline).area > 0.999 * outline.area:
            group.sort(key=lambda item: -item["outline"].intersection(outline).area)
            return [[item["hrefs"], item["offset"]] for item in group]
    return []


def _split(scenes: list[dict], left_out: Sequence[str]) -> list[dict]:
    """Name scenes by split: a fifth of the area at one end is test, the fifth beside it validation."""
    along = max(("row", "column"), key=lambda axis: len({scene[axis] for scene in scenes}))
    places = sorted({scene[along] for scene in scenes})
    if len(places) < 3:
        raise ValueError(f"the area holds {len(scenes)} whole scenes in {len(places)} {along}s, at least 3 are needed "
                         "to hold out validation and test: take a larger area or smaller scenes"
                         + "".join(f"\n  left out: {line}" for line in left_out[:3]))  # fmt: skip
    fifth = max(1, round(len(places) / 5))
    part = dict.fromkeys(places, "train") | dict.fromkeys(places[-2 * fifth : -fifth], "validation")
    part |= dict.fromkeys(places[-fifth:], "test")
    return [{"name": f"{part[s[along]]}-r{s['row']:03d}-c{s['column']:03d}"} | s for s in scenes]


def _stac_scenes(plan: Plan, files: Mapping[str, Path]) -> Iterator[tuple[str, Build]]:
    """Names of scenes and the functions that write them, from the north to the south."""
    with ExitStack() as stack:
        labels = stack.enter_context(open_packed(files["labels"])) if "labels" in files else None
        for scene in plan.scenes:
            grid = GeoBox(tuple(scene["size"]), Affine(*scene["transform"]), scene["crs"])
            make = partial(_make_nyc, labels=labels) if labels else _make_sentinel2
            yield scene["name"], partial(make, scene["from"], grid)


def _write_exact(codes: np.ndarray, grid: GeoBox, folder: Path, name: str, where: str) -> None:
    try:
        mask = legend.get(name).encode(codes, (0,))
    except ValueError as error:
        raise SourceError(f"{where}: {error}") from None
    if (mask == legend.VOID).all():
        raise _Nothing(f"no exact label of {name} in it")
    write_mask(folder / "exact.tif", mask, grid, legend.get(name))


def _make_nyc(of: Mapping[str, list], grid: GeoBox, folder: Path, *, labels: rasterio.DatasetReader) -> None:
    try:
        codes = read_window(labels, grid, [1], Resampling.mode)[0]
    except RasterioError as error:
        raise SourceError(f"{labels.name}: {error.__cause__ or error}; fetch it again") from None
    _write_exact(codes, grid, folder, "nyc8", labels.name)
    if not copy_points([hrefs[0] for hrefs, _ in of["points"]], grid, folder / "points.laz", LIDAR_MARGIN_M):
        raise _Nothing("no LiDAR return in it")
    image = mosaic([(hrefs[0], 0) for hrefs, _ in of["image"]], grid, (1, 2, 3, 4))
    write_image(folder / "image.tif", image, grid, ("red", "green", "blue", "nir"))


def _make_sentinel2(of: Mapping[str, list], grid: GeoBox, folder: Path) -> None:
    codes = mosaic([(hrefs[0], 0) for hrefs, _ in of["exact"]], grid, (1,), Resampling.nearest)[0]
    _write_exact(codes, grid, folder, "worldcover11", of["exact"][0][0][0])
    bands = [
        mosaic([(hrefs[b], offset) for hrefs, offset in of["image"]], grid, (1,))[0] for b in range(len(_S2_BANDS))
    ]
    clear = mosaic([(hrefs[-1], 0) for hrefs, _ in of["image"]], grid, (1,), Resampling.nearest)[0]
    image = np.stack(bands) * ~np.isin(clear, _CLOUDY)  # a cloud is a hole, and a hole is void
    write_image(folder / "image.tif", image, grid, _S2_BANDS)
    copy_window(of["product"][0][0][0], grid, folder / "product.tif")


def _published_scenes(plan: Plan, files: Mapping[str, Path]) -> Iterator[tuple[str, Build]]:
    labels, (tuning,) = RECIPES[plan.name].labels, [files[name] for name in ("dw", "osm", "dfc2020") if name in files]
    images = [path for name, path in files.items() if name.startswith("images")]
    most, there = plan.wish.most, lambda name: (plan.root / "scenes" / name).is_dir()
    yield from ssl4eo.tuning(tuning, labels, most)
    whole = "images" in plan.wish.files or len(images) == len(_S12_PARTS)
    yield from ssl4eo.pretraining(files["nol"], images, whole=whole, most=most, skip=there)
