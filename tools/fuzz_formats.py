"""The formats under attack: for each, a small sound file, the ways to damage it, and what the product does with it."""

import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fuzz_damage as damage
import geopandas
import laspy
import nbformat
import numpy as np
import pystac
import rasterio
import rasterio.shutil
import shapely
import study
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image

from nbutils import legend, maps, sources, store, weights
from nbutils.cards import Masks, load_card

GRID = GeoBox((48, 40), Affine(1, 0, 500_000, 0, -1, 4_000_048), "EPSG:32618")
OWN = ("exact", "noisy", "crosswalk", "tasks")  # the parts of a card that speak of legends
RUN = store.Run(stage="pretrain", data="x", fingerprint="f" * 64, arm="noisy", encoder="e", decoder="unet",
                width="slim", target="noisy", classes=2, budget=None, frozen=False, steps=9, batch_size=4,
                learning_rate=1e-3, seed=0, precision="fp32", code="c")  # fmt: skip


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        write: Writes sound files into an empty folder and returns those to damage.
        damages: Ways to do so, all equally often.
        read: What the product makes of the file; the argument is what `write` returned.
        summed: Whether the product claims to notice every change, so that what it reads must be what was written.
    """

    write: Callable[[Path], list[Path]]
    damages: tuple[damage.Damage, ...]
    read: Callable[[list[Path]], Any]
    summed: bool = False


def pixels(bands: int) -> np.ndarray:
    return np.random.default_rng(bands).integers(0, 255, (bands, *GRID.shape), dtype=np.uint8)


def classes() -> np.ndarray:
    return np.kron(np.random.default_rng(0).integers(0, 4, (6, 5)), np.ones((8, 8))).astype(np.uint8)


# ---- cards and catalogues ---------------------------------------------------------------------------------------
CARD = """
    name: small
    licence: CC0
    get: it is made where it is needed
    root: {root}
    gsd_m: 1.0
    images: {{glob: "*/image.png", bands: [grey], scale: 255, scene: "^(\\\\w+)/", key: "(\\\\.)"}}
    exact: {{glob: "*/exact.png", key: "(\\\\.)", coding: index, legend: {{name: mine, codes: [1, 2, 3, 4],
      classes: {{land: [1, 2, 3], tree: [4, 5, 6], roof: [7, 8, 9], road: [0, 0, 1]}}}}}}
    noisy: {{from: mask, glob: "*/noisy.png", key: "(\\\\.)", coding: colour, legend: autogeo4, void: [[9, 9, 9]]}}
    crosswalk: {{land: background, tree: tree, roof: building, road: road}}
    split: {{test: [a], validation: [b]}}
    tasks: {{two: {{legend: {{name: two, classes: {{open: [0, 0, 0], built: [9, 9, 9]}}}},
      mapping: {{land: open, tree: null, roof: built, road: built}}}}}}
"""


def write_card(folder: Path) -> list[Path]:
    mask = classes()
    for number, scene in enumerate("abc"):
        (folder / scene).mkdir()
        Image.fromarray(pixels(number + 1)[number]).save(folder / scene / "image.png")
        Image.fromarray(mask).save(folder / scene / "exact.png")
        Image.fromarray(legend.get("autogeo4").to_rgb(mask)).save(folder / scene / "noisy.png")
    (folder / "card.yaml").write_text(textwrap.dedent(CARD.format(root=folder)))
    return [folder / "card.yaml"]


def read_card(paths: list[Path]) -> None:
    dataset = sources.read_dataset(paths[0])
    for tile in dataset.tiles:
        dataset.open_image(tile).close()


def read_legends(paths: list[Path]) -> None:
    dataset = sources.Dataset(load_card(paths[0]), paths[0], ())
    if dataset.crosswalk is not None:
        legend.translate(classes(), dataset.crosswalk)


def write_catalogue(folder: Path) -> list[Path]:
    catalog = pystac.Catalog("world", "a small world")
    when = {"start_datetime": "2024-01-01T00:00:00Z", "end_datetime": "2024-01-01T00:00:00Z"}
    for number, name in enumerate("abc"):
        item = pystac.Item(name, None, None, None, when)
        for asset in ("image", "exact"):
            (folder / name).mkdir(exist_ok=True)
            path = folder / name / f"{asset}.png"
            Image.fromarray(pixels(number + 1)[number] if asset == "image" else classes()).save(path)
            item.add_asset(asset, pystac.Asset(str(path)))
        catalog.add_item(item)
    catalog.normalize_hrefs(str(folder))
    for item in catalog.get_items():
        item.make_asset_hrefs_relative()
    catalog.save(pystac.CatalogType.SELF_CONTAINED)
    (folder / "card.yaml").write_text(
        f"{{name: small, licence: CC0, get: make it, root: {folder}, catalog: catalog.json,"
        " images: {asset: image, bands: [grey]}, exact: {asset: exact, coding: index, legend: autogeo4},"
        " noisy: {from: inject, recipe: map-like}, split: {test: [a], validation: [b]}}\n"
    )
    return [folder / "catalog.json", folder / "b/b.json"]


def read_catalogue(paths: list[Path]) -> None:
    read_card([paths[0].parent / "card.yaml"])


# ---- rasters, points, vectors -----------------------------------------------------------------------------------
def write_geotiff(folder: Path, driver: str, **more: Any) -> list[Path]:
    profile = {"driver": "GTiff", "count": 4, "height": GRID.shape[0], "width": GRID.shape[1], "dtype": "uint8"}
    with rasterio.open(folder / "plain.tif", "w", crs="EPSG:32618", transform=GRID.transform, **profile) as data:
        data.write(pixels(4))
    rasterio.shutil.copy(folder / "plain.tif", folder / "image.tif", driver=driver, compress="deflate", **more)
    (folder / "plain.tif").unlink()
    sources.write_mask(folder / "mask.tif", classes(), GRID, legend.get("autogeo4"))
    return [folder / "image.tif", folder / "mask.tif"]


def read_geotiff(paths: list[Path]) -> None:
    autogeo = legend.get("autogeo4")
    with sources.open_raster(paths[0]) as raster:
        raster.read((slice(0, 1), slice(0, 1)))
    sources.read_image(paths[0])
    sources.read_valid(paths[0])
    mask = sources.read_mask(paths[1], Masks(glob="*", coding="index", legend="autogeo4"), autogeo)
    if not set(np.unique(mask)) <= {0, 1, 2, 3, legend.VOID}:
        raise AssertionError(f"a class beyond the legend: {np.unique(mask)}")


def write_laz(folder: Path) -> list[Path]:
    rng, header = np.random.default_rng(0), laspy.LasHeader(point_format=6, version="1.4")
    header.scales, header.offsets = np.full(3, 0.01), np.array([500_000, 4_000_000, 0])
    header.add_crs(GRID.crs.proj)
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = (low + rng.uniform(0, 40, 2000) for low in header.offsets)
    cloud.write(folder / "points.laz")
    return [folder / "points.laz"]


def read_laz(paths: list[Path]) -> None:
    sources.read_points(paths[0])
    sources.read_points(paths[0], (500_010, 4_000_010, 500_020, 4_000_020))


def write_geopackage(folder: Path) -> list[Path]:
    west, north = GRID.transform.c, GRID.transform.f
    boxes = [shapely.box(west + 8 * i, north - 20 - 2 * i, west + 8 * i + 6, north - 2) for i in range(5)]
    frame = geopandas.GeoDataFrame({"kind": list("abcab")}, geometry=boxes, crs="EPSG:32618")
    frame.to_file(folder / "map.gpkg")
    return [folder / "map.gpkg"]


def read_geopackage(paths: list[Path]) -> None:
    kinds = {"a": "tree", "b": "building", "c": "road"}
    mask = maps.from_vector(paths[0], GRID, legend="autogeo4", column="kind", classes=kinds, background="background")
    if mask.max() > 3:
        raise AssertionError(f"a class beyond the legend: {np.unique(mask)}")


# ---- what the product writes itself -----------------------------------------------------------------------------
def weight_card() -> weights.WeightCard:
    return weights.WeightCard(encoder="e", arm="noisy", bands=("nir", "red"), scale=255.0, mean=(0.4, 0.3),
                              std=(0.1, 0.2), patch_px=64, gsd_m=1.0, legend="autogeo4", run=RUN.key,
                              licence="CC0")  # fmt: skip


def state() -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.arange(54.0).reshape(3, 2, 3, 3), "bn.running_mean": torch.zeros(3)}


def write_weights(folder: Path) -> list[Path]:
    weights.save(folder, state(), weight_card())
    return [folder / "weights.safetensors", folder / "card.json"]


def read_weights(paths: list[Path]) -> Any:
    found, card = weights.load(paths[0].parent)
    return {name: (value.dtype, value.tolist()) for name, value in found.items()}, card


def write_run(folder: Path) -> list[Path]:
    table = {"test": {"a": [[5, 1], [2, 7]], "b": [[3, 0], [0, 4]]}, "validation": {"c": [[1, 1], [1, 1]]}}
    record = {"run": asdict(RUN), "counts": table, "boundary": table, "calibration": {}, "parameters": 3,
              "curve": [{"step": 1, "loss": 0.5}], "seconds": 1.5, "provenance": {"torch": "2"}}  # fmt: skip
    store.write(folder, RUN.key, record, state(), weight_card())
    return [folder / RUN.key / "run.json"]


def read_run(paths: list[Path]) -> Any:
    result = store.read(RUN, paths[0].parents[1])
    return {key: value for key, value in vars(result).items() if key != "folder"}


def write_profile(folder: Path) -> list[Path]:
    code = 'seeds = [0]\nsteps = 1\nrate = 0.1\narms = ["noisy"]\ndevice = "cpu"\nsave_figures = False'
    cell = nbformat.v4.new_code_cell(code, metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), folder / "00_x.ipynb")
    (folder / "mine.yaml").write_text("seeds: [0, 1]\nsteps: 20\nrate: 1.0e-4\narms: [moco, noisy]\ndevice: cpu\n")
    return [folder / "mine.yaml"]


def read_profile(paths: list[Path]) -> None:
    study.parameters_for([paths[0].parent / "00_x.ipynb"], study.read_profile("mine", paths[0].parent), str(paths[0]))


_BINARY = (damage.of_bytes, damage.of_numbers)
FORMATS = {
    "card (YAML)": Format(write_card, (damage.of_bytes, damage.of_yaml), read_card),
    "legends and crosswalks": Format(write_card, (partial(damage.of_yaml, below=OWN),), read_legends),
    "GeoTIFF": Format(partial(write_geotiff, driver="GTiff"), _BINARY, read_geotiff),
    "COG": Format(partial(write_geotiff, driver="COG"), _BINARY, read_geotiff),
    "LAZ": Format(write_laz, _BINARY, read_laz),
    "GeoPackage": Format(write_geopackage, _BINARY, read_geopackage),
    "STAC (JSON)": Format(write_catalogue, (damage.of_bytes, damage.of_json), read_catalogue),
    "run.json": Format(write_run, (damage.of_bytes, damage.of_json), read_run, summed=True),
    "weights and their card": Format(
        write_weights, (damage.of_bytes, damage.of_numbers, damage.of_text), read_weights, summed=True
    ),
    "profile (YAML)": Format(write_profile, (damage.of_bytes, damage.of_yaml), read_profile),
}
