"""Damaged files: whatever bytes are wrong, there is a result or an error that names the file, and nothing else."""

import faulthandler
import json
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
import rasterio.shutil
import yaml
from damage import damaged
from PIL import Image

from nbutils import legend, sources
from nbutils.sources import CardError, DataMissing, Masks, SourceError

CASES = 200
AUTOGEO = legend.get("autogeo4")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (4, 96, 80), dtype=np.uint8)
MASK = np.kron(RNG.integers(0, 4, (12, 10)), np.ones((8, 8))).astype(np.uint8)


# rasterio logs what GDAL says, and cannot log what is no text
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def no_hang():
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def outcomes(path: Path, use, named: str) -> list[bool]:
    """Use a file damaged in `CASES` ways; True where that worked. Any exception but the three kinds passes through."""
    good, worked = path.read_bytes(), []
    there = sorted(path.parent.rglob("*"))
    for case in range(CASES):
        path.write_bytes(damaged(good, np.random.default_rng([case, len(good)])))
        try:
            use()
            worked.append(True)
        except (SourceError, CardError, DataMissing) as error:
            assert named in str(error), f"case {case} does not name {named}: {error}"
            worked.append(False)
        assert sorted(path.parent.rglob("*")) == there, f"case {case} left something behind"
    path.write_bytes(good)
    use()  # the file itself is sound
    return worked


def write_tiff(path: Path, pixels: np.ndarray, **more) -> Path:
    grid = {"crs": "EPSG:32618", "transform": rasterio.Affine(1, 0, 5e5, 0, -1, 4e6)}
    profile = {"driver": "GTiff", "count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}
    with rasterio.open(path, "w", dtype=pixels.dtype, **profile, **grid, **more) as data:
        data.write(pixels)
    return path


def cog(path: Path) -> Path:
    rasterio.shutil.copy(write_tiff(path.with_name("plain.tif"), PIXELS.astype(np.uint16)), path, driver="COG")
    path.with_name("plain.tif").unlink()
    return path


def picture(path: Path, values: np.ndarray, palette: bool = False) -> Path:
    image = Image.fromarray(values)
    (image.quantize(8) if palette else image).save(path)
    return path


IMAGES = {
    "deflate.tif": lambda path: write_tiff(path, PIXELS, compress="deflate"),
    "float.tif": lambda path: write_tiff(path, PIXELS.astype(np.float32), nodata=0),
    "jpeg.tif": lambda path: write_tiff(path, PIXELS[:3], compress="jpeg", tiled=True, blockxsize=32, blockysize=32),
    "cog.tif": cog,
    "image.jpg": lambda path: picture(path, PIXELS[:3].transpose(1, 2, 0)),
    "image.png": lambda path: picture(path, PIXELS.transpose(1, 2, 0)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_damaged_images(tmp_path, name):
    path = IMAGES[name](tmp_path / name)

    def use():
        with sources.open_raster(path) as raster:
            raster.read((slice(0, 1), slice(0, 1)))
        sources.read_image(path)
        sources.read_valid(path)

    assert 0 < outcomes(path, use, str(path)).count(False)


MASKS = {
    "cog.tif": ("index", lambda path: sources.write_mask(path, MASK, None, AUTOGEO)),
    "grey.png": ("index", lambda path: picture(path, MASK)),
    "palette.png": ("colour", lambda path: picture(path, AUTOGEO.to_rgb(MASK), palette=True)),
    "void.jpg": ("colour", lambda path: picture(path, np.full((96, 80, 3), 128, np.uint8))),
}


@pytest.mark.parametrize("name", MASKS)
def test_damaged_masks(tmp_path, name):
    coding, write = MASKS[name]
    path, results = write(tmp_path / name), []
    spec = Masks(glob="*", coding=coding, legend="autogeo4", void=[(128, 128, 128)] if coding == "colour" else [])
    worked = outcomes(path, lambda: results.append(sources.read_mask(path, spec, AUTOGEO)), str(path))
    assert 0 < worked.count(False)
    assert all(set(np.unique(mask)) <= {0, 1, 2, 3, 255} for mask in results), "no class beyond the legend"


@pytest.fixture
def world(tmp_path) -> Path:
    """Three scenes as a static catalogue, and a card."""
    root = tmp_path / "world"
    catalog = pystac.Catalog("world", "a small world")
    when = {"start_datetime": "2024-01-01T00:00:00Z", "end_datetime": "2024-01-01T00:00:00Z"}
    for number, name in enumerate("abc"):
        (root / name).mkdir(parents=True)
        item = pystac.Item(name, None, None, None, when)
        for asset, pixels in (("image", PIXELS[number]), ("exact", MASK)):
            item.add_asset(asset, pystac.Asset(str(picture(root / name / f"{asset}.png", pixels))))
        catalog.add_item(item)
    catalog.normalize_hrefs(str(root))
    for item in catalog.get_items():
        item.make_asset_hrefs_relative()
    catalog.save(pystac.CatalogType.SELF_CONTAINED)
    card = {
        "name": "small",
        "licence": "CC0",
        "get": "make it",
        "root": str(root),
        "catalog": "catalog.json",
        "images": {"asset": "image", "bands": ["grey"]},
        "exact": {"asset": "exact", "coding": "index", "legend": "autogeo4"},
        "noisy": {"from": "inject", "recipe": "map-like"},
        "split": {"test": ["a"], "validation": ["b"]},
    }
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    return tmp_path


@pytest.mark.parametrize("part", ["catalog.json", "b/b.json"])
def test_damaged_catalogues(world, part):
    worked = outcomes(
        world / "world" / part, lambda: sources.read_dataset(world / "card.yaml"), str(world)
    )  # a wrong name in the catalogue is told with the card that asks for the right one
    assert 0 < worked.count(False)


def test_catalogues_in_circles_and_on_other_machines_are_refused(world):
    path = world / "world/catalog.json"
    content = json.loads(path.read_text())
    content["links"].append({"rel": "child", "href": "./catalog.json", "type": "application/json"})
    path.write_text(json.dumps(content))
    with pytest.raises(SourceError, match=r"world/catalog.json: is no sound STAC catalogue"):
        sources.read_dataset(world / "card.yaml")
    content["links"][-1] |= {"rel": "item", "href": "https://example.invalid/b.json"}
    path.write_text(json.dumps(content))
    with pytest.raises(SourceError, match=r"is no sound STAC catalogue: .*https://example.invalid/b.json"):
        sources.read_dataset(world / "card.yaml")


def test_damaged_cards(world):
    path = world / "card.yaml"
    worked = outcomes(path, lambda: sources.read_dataset(path), "")
    assert 0 < worked.count(False)
    good = path.read_bytes()
    for case in range(CASES):  # the card alone, whose faults always name it
        path.write_bytes(damaged(good, np.random.default_rng([case, len(good)])))
        try:
            sources.load_card(path)
        except CardError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    "key, value",
    [
        ("root", "~nobody-of-that-name/data"),
        ("root", "a\0b"),
        ("glob", "/images/*.png"),
        ("glob", "**.png/**x"),
        ("glob", ""),
        ("scene", "(a{99999999999})"),
    ],
)
def test_values_that_only_the_file_system_refuses(world, key, value):
    card = yaml.safe_load((world / "card.yaml").read_text())
    place = {"glob": "*/image.png", "scene": r"(\w)/image"}
    card["images"] = {"bands": ["grey"], **place}
    card["exact"] = {"glob": "*/exact.png", "key": r"(exac)t", "coding": "index", "legend": "autogeo4"}
    card["images"]["key"] = r"(imag)e"
    del card["catalog"]
    (card if key == "root" else card["images"])[key] = value
    (world / "card.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises((CardError, DataMissing), match="card.yaml|data are not here"):
        sources.read_dataset(world / "card.yaml")
