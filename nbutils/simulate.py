"""The embedded worlds, `city` and `globe`, written as the files a mapping agency would hand over.

A world is a static STAC catalogue of scenes in UTM. A scene of the city is an item with an orthophoto (COG, NIR R G B,
1 m), exact land cover (COG), LiDAR returns (LAZ, unclassified) and footprints (GeoPackage). A place of the globe has
13-band images of four dates, exact land cover in three legends, a noisy land-cover product and cloud maps (all COG,
10 m). Everything random hangs on one seed: scene (split, index) draws from `SeedSequence(seed, spawn_key=(split,
index))`, so that a world is the same however many processes write it. A world is whole or absent: it is written
beside its place and then renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import geopandas as gpd
import laspy
import numpy as np
import pyogrio
import pyproj
import pystac
import rasterio.shutil
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pystac.extensions.projection import ProjectionExtension
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile

from nbutils import ROOT, legend
from nbutils.cards import Card
from nbutils.files import alone, write_mask
from nbutils.lidar.points import Points
from nbutils.worlds import KINDS, check_kinds, globe, globe_sensor
from nbutils.worlds.city_product import BANDS, Scene, city_scene
from nbutils.worlds.globe_product import Place, make_place

# raised whenever the same seed gives other pixels: worlds of another version are made anew
VERSIONS = {"city": 6, "globe": 1}
CRS = "EPSG:32618"
_CORNER = (583_000.0, 4_512_000.0)  # upper left of the first scene, metres
_COLUMNS, _GAP_M = 8, 116.0
_SPLITS = ("pretrain", "finetune", "validation", "test")
_TURN = (0, 3, 1, 0)  # biome of the first place of each split, so that small splits are varied too
_FLOWN = datetime(2024, 6, 15, 16, 0, tzinfo=UTC)


@dataclass(frozen=True)
class _World:
    """What determines a world; stored as world.json. `kinds` is None where the usual ones take turns."""

    seed: int
    pretrain: int
    finetune: int
    validation: int
    test: int
    size_px: int
    generator: str = "city"
    version: int = 0
    kinds: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.version == 0:
            object.__setattr__(self, "version", VERSIONS[self.generator])
        if self.kinds is not None:  # the usual ones by name are the same world as none
            object.__setattr__(self, "kinds", tuple(self.kinds) if tuple(self.kinds) != self.usual else None)
        check_kinds(self.generator, self.kinds)

    @property
    def usual(self) -> tuple[str, ...]:
        """The kinds that take turns where none are named."""
        return KINDS[self.generator]

    def text(self) -> str:
        """What world.json holds; a world of the usual kinds says nothing of them."""
        return json.dumps({key: value for key, value in asdict(self).items() if value is not None}, indent=1) + "\n"

    def scenes(self) -> list[tuple[str, int, int]]:
        """(name, split number, number in the split) of every scene, in order."""
        counts = asdict(self)
        return [(f"{split}-{i:02d}", s, i) for s, split in enumerate(_SPLITS) for i in range(counts[split])]


def ensure_world(card: Card) -> None:
    """Generate the embedded world of a card where its root lacks exactly this world; else do nothing.

    Raises:
        FileExistsError: The root holds something that is no embedded world; it is left alone.
    """
    if card.world is None:
        return
    options = card.world.model_dump()
    card.folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(card.folder.parent):  # another notebook may be writing the same world
        if _stored(card.folder) != _World(**options):
            write_world(card.folder, **options, workers=min(2, os.cpu_count() or 1))


def write_world(root: str | Path, *, seed: int, pretrain: int, finetune: int, validation: int, test: int,
                size_px: int, generator: str = "city", kinds: Sequence[str] | None = None, workers: int = 1,
                ) -> Path:  # fmt: skip
    """Write an embedded world as a static STAC catalogue; whole or absent.

    Args:
        root: Folder of the world; an older embedded world there is replaced.
        seed: Seed of the whole world.
        pretrain: Scenes per split, as the three that follow.
        finetune: See `pretrain`.
        validation: See `pretrain`.
        test: See `pretrain`.
        size_px: Side of a scene in pixels, of 1 m in the city and of 10 m on the globe.
        generator: "city" or "globe".
        kinds: Styles of the city or biomes of the globe that take turns; the usual ones if None.
        workers: Processes to share the scenes among; the result does not depend on it.

    Returns:
        Path of catalog.json.

    Raises:
        FileExistsError: `root` holds something that is no embedded world; it is left alone.
        RuntimeError: A process failed; the message ends with what it said.
        ValueError: A kind that the generator does not know.
    """
    kinds = None if kinds is None else tuple(kinds)
    root, world = Path(root), _World(seed, pretrain, finetune, validation, test, size_px, generator, kinds=kinds)
    if root.exists() and not (root / "world.json").is_file() and any(root.iterdir()):
        raise FileExistsError(
            f"{root} holds files but no world.json, so it is no embedded world and will not be overwritten; "
            "move it away or choose another root"
        )
    _sweep(root)
    scratch = root.parent / f".{root.name}.{os.getpid()}.tmp"
    scratch.mkdir(parents=True)
    try:
        (scratch / "world.json").write_text(world.text())
        _write_scenes(scratch, world, workers)
        _catalogue(scratch, world)
        _publish(scratch, root, world)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root / "catalog.json"


def _stored(root: Path) -> _World | None:
    """The world that lies whole in `root`, if any."""
    try:
        if (root / "catalog.json").is_file():
            return _World(**json.loads((root / "world.json").read_text()))
    except (OSError, ValueError, TypeError):
        pass  # no world, or one of another make: it is written anew
    return None


def _sweep(root: Path) -> None:
    """Remove what killed writers left behind."""
    for left in root.parent.glob(f".{root.name}.*.tmp"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return pid != os.getpid()


def _publish(scratch: Path, root: Path, world: _World) -> None:
    """Put the finished folder in its place; a writer that was faster with the same world wins."""
    old = root.parent / f".{root.name}.{os.getpid()}.old.tmp"
    if root.exists():
        if _stored(root) == world:
            return
        os.rename(root, old)
    try:
        os.rename(scratch, root)
    except OSError:
        if _stored(root) != world:  # else another writer of the same world finished just now
            raise
    shutil.rmtree(old, ignore_errors=True)


def _write_scenes(folder: Path, world: _World, workers: int) -> None:
    """Write all scenes, in this process or in several.

    Plain sub-processes rather than multiprocessing: they work from a notebook, from a script without a main guard
    and inside the workers of a Dask cluster, whose processes may not have multiprocessing children.
    """
    workers = max(1, min(workers, len(world.scenes())))
    if workers == 1:
        return _write_part(folder, 0, 1)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "nbutils.simulate", str(folder)]
    parts = [
        subprocess.Popen([*command, str(k), str(workers)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for k in range(workers)
    ]
    try:
        for part in parts:
            said = part.communicate()[1].decode(errors="replace").strip()
            if part.returncode:
                raise RuntimeError(f"writing scenes to {folder} failed with code {part.returncode}: {said[-800:]}")
    finally:
        for part in parts:
            if part.poll() is None:
                part.kill()
                part.wait()


def _write_part(folder: Path, part: int, parts: int, parent: int | None = None) -> None:
    """Write every `parts`-th scene, beginning with number `part`; stop when the process that asked is gone."""
    world = _World(**json.loads((folder / "world.json").read_text()))
    for number, (name, split, index) in list(enumerate(world.scenes()))[part::parts]:
        if parent is not None and os.getppid() != parent:
            return
        seed = np.random.SeedSequence(world.seed, spawn_key=(split, index))
        if world.generator == "globe":
            place = make_place(seed, world.size_px, index + _TURN[split], world.kinds or world.usual)
            about = write_place(folder / name, place, place_grid(place.biome, number, world.size_px))
        else:
            scene = city_scene(seed, world.size_px, index, world.kinds or world.usual)
            write_scene(folder / name, scene, scene_grid(number, world.size_px))
            about = {**_sun(scene.sun), "points": len(scene.points)}
        (folder / name / "scene.json").write_text(json.dumps(about) + "\n")


def _sun(angles: tuple[float, float]) -> dict[str, float]:
    return dict(zip(("sun_azimuth", "sun_elevation"), (round(angle, 2) for angle in angles), strict=True))


def scene_grid(number: int, size_px: int) -> GeoBox:
    """Grid of the scene of a running number: scenes lie side by side with gaps between them."""
    row, column = divmod(number, _COLUMNS)
    x, y = _CORNER[0] + column * (size_px + _GAP_M), _CORNER[1] - row * (size_px + _GAP_M)
    return GeoBox((size_px, size_px), Affine(1, 0, x, 0, -1, y), CRS)


def write_scene(folder: Path, scene: Scene, grid: GeoBox, *, footprints: bool = True) -> None:
    """Write image.tif, exact.tif, points.laz and, if wanted, footprints.gpkg into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_image(folder / "image.tif", scene.image, grid)
    write_mask(folder / "exact.tif", scene.exact, grid, legend.get("nyc8"))
    _write_points(folder / "points.laz", scene.points, grid)
    if footprints:
        _write_footprints(folder / "footprints.gpkg", scene, grid)


def place_grid(biome: str, number: int, size_px: int) -> GeoBox:
    """Grid of the place of a running number in the UTM zone of its biome; no two places overlap."""
    code, northing, _ = globe.GROUNDS[biome]
    row, column = divmod(number, _COLUMNS)
    x, y = 300_000 + 48_000 * column, northing - 24_000 * row
    return GeoBox((size_px, size_px), Affine(10, 0, x, 0, -10, y), f"EPSG:{code}")


def write_place(folder: Path, place: Place, grid: GeoBox) -> dict:
    """Write an image per season, the exact maps, product.tif and clouds.tif; returns what the item says about them."""
    folder.mkdir(parents=True, exist_ok=True)
    dates = {}
    for season, shot in place.shots.items():
        _write_image(folder / f"{season}.tif", shot.image, grid, globe_sensor.BANDS)
        when = datetime(2021, 1, 1, 10, 30, tzinfo=UTC) + timedelta(days=int(shot.day) - 1)
        cover = round(100 * float((shot.clouds == globe_sensor.CLOUD).mean()), 1)
        dates[season] = {"datetime": when.isoformat(), **_sun(shot.sun), "cloud_cover": cover}
    for name, exact in place.exact.items():
        write_mask(folder / f"exact_{name}.tif", exact, grid, legend.get(name))
    write_mask(folder / "product.tif", place.product, grid, legend.get("dw9"))
    clouds = np.stack([shot.clouds for shot in place.shots.values()])
    _write_image(folder / "clouds.tif", clouds, grid, tuple(place.shots), "nearest")
    return {"biome": place.biome, "dates": dates}


def _write_image(path: Path, image: NDArray, grid: GeoBox, bands: tuple[str, ...] = BANDS,
                 overviews: str = "average") -> None:  # fmt: skip
    profile = {"driver": "GTiff", "dtype": str(image.dtype), "count": len(image), "height": grid.shape[0],
               "width": grid.shape[1], "crs": str(grid.crs), "transform": grid.transform, "photometric": "minisblack",
               "alpha": "unspecified"}  # fmt: skip
    with MemoryFile() as memory:
        with memory.open(**profile) as data:
            data.write(image)
            data.descriptions = bands
            data.colorinterp = [ColorInterp[n if n in ("red", "green", "blue") else "undefined"] for n in bands]
        with memory.open() as data:
            options = {"compress": "deflate", "predictor": "2", "blocksize": "128", "overview_resampling": overviews}
            rasterio.shutil.copy(data, path, driver="COG", **options)


def _write_points(path: Path, points: Points, grid: GeoBox) -> None:
    """Write LAZ; every return is unclassified, because labels must come from rules and not from codes."""
    x0, y0 = grid.transform.c, grid.transform.f - grid.shape[0]
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.scales, header.offsets = np.full(3, 0.01), np.array((x0, y0, 0.0))
    header.add_crs(pyproj.CRS(CRS))
    header.creation_date, header.generating_software = date(2024, 6, 15), "noisy-maps city"
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = points.x + x0, points.y + y0, points.z
    cloud.intensity, cloud.classification = points.intensity, np.ones(len(points), np.uint8)
    cloud.return_number, cloud.number_of_returns = points.return_number, points.number_of_returns
    cloud.write(path, laz_backend=laspy.LazBackend.Lazrs)


def _write_footprints(path: Path, scene: Scene, grid: GeoBox) -> None:
    """Write building outlines and street centre lines, cut at the edge of the scene."""
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _FLOWN.strftime("%Y-%m-%dT%H:%M:%S.000Z")})
    x0, y0 = grid.transform.c, grid.transform.f
    frame = shapely.box(*grid.extent.boundingbox)

    def place(xy):
        return [(x0 + x, y0 - y) for x, y in xy]

    layers = {
        "buildings": (scene.buildings, [shapely.Polygon(place(b["corners"])) for b in scene.buildings], "corners"),
        "roads": (scene.streets, [shapely.LineString(place(s["line"])) for s in scene.streets], "line"),
    }
    for layer, (rows, shapes, drop) in layers.items():
        table = [{k: v for k, v in row.items() if k != drop} for row in rows]
        frame_ = gpd.GeoDataFrame(table, geometry=shapely.intersection(shapes, frame), crs=CRS)
        frame_ = frame_[~frame_.geometry.is_empty]
        frame_.to_file(path, layer=layer, driver="GPKG", engine="pyogrio", promote_to_multi=True)


def _catalogue(folder: Path, world: _World) -> None:
    """Write the static STAC catalogue over the scenes in `folder`, with relative links only."""
    globe_ = world.generator == "globe"
    what = (
        "Sentinel-2 like images and land cover of invented places"
        if globe_
        else ("Synthetic orthophotos, exact land cover and LiDAR of one invented city")
    )
    title = f"{world.generator.capitalize()}, an embedded synthetic world"
    catalog = pystac.Catalog(id=world.generator, title=title, description=f"{what}; seed {world.seed}.")
    for number, (name, split, _) in enumerate(world.scenes()):
        about = json.loads((folder / name / "scene.json").read_text())
        if globe_:
            item = _place_item(folder / name, _SPLITS[split], place_grid(about["biome"], number, world.size_px), about)
        else:
            item = _scene_item(folder / name, _SPLITS[split], scene_grid(number, world.size_px), about)
        catalog.add_item(item)
    catalog.normalize_hrefs(f"{folder}{os.sep}")  # the separator tells pystac that a name with a dot is a folder
    catalog.make_all_asset_hrefs_relative()
    catalog.save(catalog_type=pystac.CatalogType.SELF_CONTAINED)


def _item(name: str, grid: GeoBox, when: datetime | None, **properties) -> pystac.Item:
    west, south, east, north = grid.extent.boundingbox
    corners = zip((west, east, east, west), (south, south, north, north), strict=True)
    to_lonlat = pyproj.Transformer.from_crs(str(grid.crs), "EPSG:4326", always_xy=True)
    outline = shapely.Polygon([to_lonlat.transform(*corner) for corner in corners])
    item = pystac.Item(name, shapely.geometry.mapping(outline), list(outline.bounds), when, properties)
    item.stac_extensions.append("https://stac-extensions.github.io/view/v1.0.0/schema.json")
    projection = ProjectionExtension.ext(item, add_if_missing=True)
    projection.apply(code=str(grid.crs), shape=list(grid.shape), transform=list(grid.transform)[:6])
    return item


def _scene_item(folder: Path, split: str, grid: GeoBox, about: dict) -> pystac.Item:
    sun = {f"view:{key}": about[key] for key in ("sun_azimuth", "sun_elevation")}
    item = _item(folder.name, grid, _FLOWN, split=split, gsd=1.0, **sun)
    for key, file, kind, role, title in (
        ("image", "image.tif", pystac.MediaType.COG, "data", "Orthophoto: near infrared, red, green, blue"),
        ("exact", "exact.tif", pystac.MediaType.COG, "labels", "Exact land cover, legend nyc8, 255 void"),
        ("points", "points.laz", "application/vnd.laszip", "data", f"LiDAR, {about['points']} returns"),
        ("footprints", "footprints.gpkg", pystac.MediaType.GEOPACKAGE, "data", "Buildings and roads"),
    ):
        item.add_asset(key, pystac.Asset(str(folder / file), title, media_type=kind, roles=[role]))
    item.assets["image"].extra_fields["bands"] = [{"name": band} for band in BANDS]
    return item


def _place_item(folder: Path, split: str, grid: GeoBox, about: dict) -> pystac.Item:
    dates = about["dates"]
    days = sorted(date["datetime"] for date in dates.values())
    span = {"start_datetime": days[0], "end_datetime": days[-1]}
    item = _item(folder.name, grid, None, split=split, gsd=10.0, biome=about["biome"], **span)
    item.stac_extensions.append("https://stac-extensions.github.io/eo/v1.1.0/schema.json")
    titles = {season: f"Top-of-atmosphere reflectance x 10000, {season}" for season in dates}
    titles |= {f"exact_{name}": f"Exact land cover, legend {name}, 255 void" for name in ("dw9", "dfc8", "osm13")}
    titles |= {"product": "Land-cover product with errors, legend dw9, 255 void"}
    titles |= {"clouds": "0 clear, 1 cloud, 2 shadow of a cloud; a band per season"}
    for key, title in titles.items():
        role = "data" if key in dates else "cloud" if key == "clouds" else "labels"
        asset = pystac.Asset(str(folder / f"{key}.tif"), title, media_type=pystac.MediaType.COG, roles=[role])
        item.add_asset(key, asset)
        if key in dates:
            sun = {f"view:{k}": dates[key][k] for k in ("sun_azimuth", "sun_elevation")}
            more = {"eo:cloud_cover": dates[key]["cloud_cover"], "bands": [{"name": b} for b in globe_sensor.BANDS]}
            asset.extra_fields |= {"datetime": dates[key]["datetime"], **sun, **more}
    return item


if __name__ == "__main__":
    _write_part(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), parent=os.getppid())
