"""Cards and files: what is right reads back as written, what is wrong is named."""

import shutil
from pathlib import Path

import laspy
import numpy as np
import pyproj
import pystac
import pytest
import rasterio
import yaml
from odc.geo.geobox import GeoBox
from PIL import Image

from nbutils import ROOT, cards, files, legend, sources
from nbutils.legend import VOID
from nbutils.sources import CardError, DataMissing, Masks, SourceError

DUBAI = legend.get("dubai5")
AUTOGEO = legend.get("autogeo4")
GRID = GeoBox.from_bbox((500000, 4000000, 500040, 4000030), "EPSG:32618", resolution=1)  # 30 rows, 40 columns


def a_mask(seed: int = 0, shape: tuple[int, int] = (30, 40), k: int = 4) -> np.ndarray:
    mask = np.random.default_rng(seed).integers(0, k, shape, dtype=np.uint8)
    mask[0, :3] = VOID
    return mask


@pytest.fixture
def card(tmp_path):
    """A small data set on disk, two images in each of scenes a, b, c, and its card as a dictionary."""
    for scene in "abc":
        for part in ("images", "masks"):
            (tmp_path / "data" / f"scene {scene}" / part).mkdir(parents=True)
        for i in range(2):
            mask = a_mask(i)
            folder = tmp_path / "data" / f"scene {scene}"
            rgb = np.random.default_rng([i, ord(scene)]).integers(0, 255, (*mask.shape, 3), dtype=np.uint8)
            Image.fromarray(rgb).save(folder / f"images/part{i}.png")
            Image.fromarray(DUBAI.to_rgb(mask)).save(folder / f"masks/part{i}.png")
    return {
        "name": "small",
        "licence": "CC0",
        "get": "make it",
        "root": str(tmp_path / "data"),
        "images": {"glob": "*/images/*.png", "bands": ["red", "green", "blue"], "scene": r"scene (\w)"},
        "exact": {"glob": "*/masks/*.png", "coding": "colour", "legend": "dubai5", "void": [[200, 200, 200]]},
        "noisy": {"from": "inject", "recipe": "map-like"},
        "split": {"test": ["c"], "validation": ["b"]},
    }


@pytest.fixture
def write(tmp_path):
    def _write(content) -> Path:
        path = tmp_path / "card.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return _write


# --- cards


def test_files_of_other_names_are_paired_where_every_scene_has_one_of_each(card, write):
    folder = Path(card["root"])
    for scene in "abc":
        for part, name in (("images", "photo"), ("masks", "truth")):
            (folder / f"scene {scene}/{part}/part1.png").unlink()
            (folder / f"scene {scene}/{part}/part0.png").rename(folder / f"scene {scene}/{part}/{name}.png")
    tiles = sources.list_tiles(sources.load_card(write(card)))
    assert [(tile.image.parts[-3:], tile.exact.parts[-3:]) for tile in tiles] == [
        ((f"scene {s}", "images", "photo.png"), (f"scene {s}", "masks", "truth.png")) for s in "abc"
    ]
    (folder / "scene a/masks/another.png").write_bytes((folder / "scene a/masks/truth.png").read_bytes())
    with pytest.raises(sources.CardError, match="4 file.s. have no image of the same scene and key.*set `key`"):
        sources.list_tiles(sources.load_card(write(card)))


def test_a_card_need_not_say_how_to_get_the_data_and_is_told_where_they_are_missed(card, write, tmp_path):
    del card["get"]
    assert len(sources.list_tiles(sources.load_card(write(card)))) == 6
    with pytest.raises(sources.DataMissing, match="the card does not say; correct its `root`, or add `get`"):
        sources.list_tiles(sources.load_card(write(card | {"root": str(tmp_path / "nowhere")})))


@pytest.mark.parametrize("path", sorted((ROOT / "data/datasets").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_cards_are_valid_short_and_say_how_to_get_the_data(path):
    one = sources.load_card(path)
    assert one.name == path.stem and one.get and one.licence
    assert len(path.read_text().partition("\ntasks:")[0].splitlines()) <= 25  # tasks are an extra
    assert sources.load_card(path.relative_to(ROOT)) == one, "relative paths are taken from the repository"


def test_a_card_finds_pairs_and_splits(card, write):
    dataset = sources.read_dataset(write(card))
    assert [tile.name for tile in dataset.tiles] == [f"{s}/part{i}" for s in "abc" for i in range(2)]
    assert {split: dataset.scenes(split) for split in sources.SPLITS} == {
        "pretrain": ("a",),
        "finetune": ("a",),
        "validation": ("b",),
        "test": ("c",),
    }
    assert all(t.image.stem == t.exact.stem and t.noisy is None for t in dataset.tiles)
    assert dataset.bands == ("red", "green", "blue") and dataset.noisy_legend is dataset.exact_legend is DUBAI
    assert all(np.array_equal(sources.read_exact(dataset, t), a_mask(int(t.name[-1]))) for t in dataset.tiles)
    assert dataset.read_image(dataset.tiles[0])[0].shape == (3, 30, 40)
    with pytest.raises(ValueError, match="no split 'train'"):
        dataset.tiles_of("train")


FAULTS = [
    (
        ("images", "bandz"),
        ["r"],
        r"images\.bandz: no such key; did you mean 'bands'\? allowed are glob, asset, key, bands",
    ),
    (("licence",), None, r"licence: missing; under what terms .*\"unknown\" is one"),
    (("exact",), None, r"exact: missing; where masks drawn by people are, e\.g\. \{glob: "),
    (("licnce",), "x", r"licnce: no such key; did you mean 'licence'\?"),
    (("exact", "coding"), "color", r"exact\.coding: got 'color'; Input should be 'index', 'code' or 'colour'"),
    (
        ("exact", "legend"),
        "dubai6",
        r"exact\.legend: got 'dubai6'; unknown legend 'dubai6' \(did you mean 'dubai5'\?\)",
    ),
    (("exact", "void"), [0], r"exact: `void` holds \[R, G, B\] triples when coding is colour, got 0"),
    (("exact", "glob"), None, r"exact: give either `glob` .* or `asset`"),
    (("images", "asset"), "image", r"images: give either `glob`"),
    (("images", "scene"), "scene (", r"images\.scene: got 'scene \('; not a regular expression"),
    (("images", "scene"), "scene .", r"images\.scene: .*needs exactly one \(group\), has 0"),
    (("images", "dates"), ["*/images/*.png"], r"images: `dates` are further dates .*got '\*/images/\*.png' twice"),
    (("images", "dates"), "*.png", r"images\.dates: got '\*.png'; Input should be a valid tuple"),
    (("images", "scale"), 0, r"images\.scale: got 0; Input should be greater than 0"),
    (("noisy", "from"), "injct", r"noisy\.from: got 'injct'; allowed are 'inject', 'lidar', 'mask'"),
    (("noisy", "from"), None, r"noisy\.from: got 'nothing'; allowed"),
    (("noisy", "recipe"), "maplike", r"noisy\.recipe: got 'maplike'; unknown recipe 'maplike'; known are map-like"),
    (("noisy", "strenght"), 1, r"noisy\.strenght: no such key; did you mean 'strength'\? allowed are from, recipe"),
    (("noisy", "strength"), -1, r"noisy\.strength: got -1; Input should be greater"),
    (("split", "test"), None, r"split\.test: missing"),
    (("split", "test"), [], r"split\.test: got \[\]; .*at least 1"),
    (("split", "tset"), ["c"], r"split\.tset: no such key; did you mean 'test'\?"),
    (("catalog",), "catalog.json", r"images is a glob but catalog is 'catalog.json': name an `asset`"),
    (("world",), {"generator": "town"}, r"world\.generator: got 'town'"),
    (("gsd_m",), "fine", r"gsd_m: got 'fine'; Input should be a valid number"),
]


@pytest.mark.parametrize("keys, value, message", FAULTS, ids=[f"{'.'.join(k)}={v}" for k, v, _ in FAULTS])
def test_every_fault_of_a_card_is_named(card, write, keys, value, message):
    inside = card
    for key in keys[:-1]:
        inside = inside[key]
    if value is None:
        del inside[keys[-1]]
    else:
        inside[keys[-1]] = value
    with pytest.raises(CardError, match=message) as error:
        sources.load_card(write(card))
    assert "card.yaml" in str(error.value) and "pydantic" not in str(error.value)


def test_all_faults_come_at_once_one_per_line(card, write):
    card["images"]["bandz"] = 1
    card["split"] = {"test": ["c"]}
    card["exact"]["coding"] = "colours"
    with pytest.raises(CardError) as error:
        sources.load_card(write(card))
    lines = str(error.value).splitlines()
    assert "3 fault(s)" in lines[0] and len(lines) == 4


@pytest.mark.parametrize(
    "text, message",
    [
        ("name: [", "cannot be read as YAML"),
        ("- a list", "a card is a mapping of keys to values, this is list"),
        ("", "this is NoneType"),
        ("name: a\nname: b\n", "key 'name' is given 2 times"),
        ("name: !!python/object/apply:os.system ['true']", "cannot be read as YAML.*could not determine a constructor"),
    ],
)
def test_what_is_not_a_card_is_refused(write, text, message):
    with pytest.raises(CardError, match=message):
        sources.load_card(write(text))


def test_a_card_that_is_not_there_lists_those_that_are():
    with pytest.raises(CardError, match=r"no such card; data/datasets holds .*city.yaml, .*dubai.yaml"):
        sources.load_card("data/datasets/paris.yaml")


@pytest.mark.parametrize(
    "split, message",
    [
        ({"test": ["c"], "validation": ["c"]}, r"split.test and split.validation share scene\(s\) c"),
        ({"test": ["c"], "validation": ["b"], "pretrain": ["*"]}, r"split.test and split.pretrain share scene\(s\) c"),
        ({"test": ["c"], "validation": ["b"], "finetune": ["[ab]"]}, r"split.validation and split.finetune share .* b"),
        ({"test": ["d"], "validation": ["b"]}, r"split.test: 'd' matches no scene; there are a, b, c"),
        ({"test": ["c", "a"], "validation": ["b"]}, r"split.pretrain: no scene is left"),
    ],
)
def test_splits_that_share_or_miss_scenes_are_refused(card, write, split, message):
    card["split"] = split
    with pytest.raises(CardError, match="card.yaml: " + message):
        sources.read_dataset(write(card))


def test_pretrain_and_finetune_may_share_scenes_and_numbers_may_name_them(card, write, tmp_path):
    (tmp_path / "data/scene c").rename(tmp_path / "data/scene 7")
    card["split"] = {"test": [7], "validation": ["b"], "pretrain": ["a"], "finetune": ["a"]}
    dataset = sources.read_dataset(write(card))
    assert dataset.scenes("test") == ("7",) and dataset.tiles[2].splits == ("pretrain", "finetune")


def test_files_without_a_partner_are_named(card, write, tmp_path):
    data = tmp_path / "data"
    for i in range(7):
        shutil.copy(data / "scene a/images/part0.png", data / f"scene a/images/extra{i}.png")
    with pytest.raises(CardError, match=r"exact: 7 image\(s\) have no file: .*extra0.png.* and 2 more\n.*set `key`"):
        sources.read_dataset(write(card))
    for i in range(7):
        (data / f"scene a/images/extra{i}.png").rename(data / f"scene a/masks/extra{i}.png")
    with pytest.raises(CardError, match=r"exact: 7 file\(s\) have no image"):
        sources.read_dataset(write(card))


def test_names_are_paired_by_key(card, write, tmp_path):
    for path in (tmp_path / "data").glob("*/masks/*.png"):
        path.rename(path.with_name(path.name.replace("part", "label_")))
    card["images"]["key"], card["exact"]["key"] = r"part(\d+)", r"label_(\d+)"
    assert [t.exact.name[6] == t.image.name[4] for t in sources.read_dataset(write(card)).tiles] == [True] * 6
    card["exact"]["key"] = r"labels_(\d+)"
    with pytest.raises(CardError, match=r"exact.key: .* finds no name in 'scene a/masks/label_0.png'"):
        sources.read_dataset(write(card))
    card["exact"]["key"] = r"(label)_"
    with pytest.raises(CardError, match="have the same scene and key 'label'"):
        sources.read_dataset(write(card))


def test_noisy_masks_in_files_and_pretraining_ground_without_exact_masks(card, write, tmp_path):
    for path in (tmp_path / "data").glob("*/masks/*.png"):
        target = path.parent.parent / "noisy" / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    shutil.rmtree(tmp_path / "data/scene a/masks")
    shutil.copytree(tmp_path / "data/scene b", tmp_path / "data/scene d")
    for path in (tmp_path / "data/scene d/images").iterdir():
        Image.open(path).transpose(Image.Transpose.ROTATE_180).save(path)
    shutil.rmtree(tmp_path / "data/scene c/noisy")
    card["noisy"] = card["exact"] | {"from": "mask", "glob": "*/noisy/*.png"}
    with pytest.raises(CardError, match=r"exact: 2 image\(s\) have no file.*\n.*split.finetune"):
        sources.read_dataset(write(card))
    card["split"] |= {"finetune": ["d"], "pretrain": ["a"]}
    dataset = sources.read_dataset(write(card))
    assert [t.exact is None for t in dataset.tiles_of("pretrain")] == [True, True]
    assert all(t.noisy for t in dataset.tiles_of("pretrain")) and not any(t.noisy for t in dataset.tiles_of("test"))
    assert (sources.read_exact(dataset, dataset.tiles[0]) == VOID).all(), "no exact mask: void, never class 0"


def test_further_dates_are_paired_like_masks(card, write, tmp_path):
    for date in ("may", "june"):
        for scene in "ac":
            folder = tmp_path / f"data/scene {scene}"
            shutil.copytree(folder / "images", folder / date)
    card["images"]["dates"] = ["*/may/*.png", "*/june/*.png"]
    dataset = sources.read_dataset(write(card))
    for tile in dataset.tiles:
        want = [tile.image.parents[1] / date / tile.image.name for date in ("may", "june")]
        assert tile.dates == (tuple(want) if tile.scene == "a" else ()), "for pretraining only"
        assert set(tile.files) == {tile.image, tile.exact, *tile.dates}
    (tmp_path / "data/scene a/june/part1.png").unlink()
    with pytest.raises(
        CardError, match=r"images.dates '\*/june/\*.png': 1 image\(s\) have no file: .*images/part1.png"
    ):
        sources.read_dataset(write(card))
    (tmp_path / "data/scene a/may/part0.png").rename(tmp_path / "data/scene a/may/part7.png")
    with pytest.raises(CardError, match=r"images.dates '\*/may/\*.png': 1 file\(s\) have no image .*may/part7.png"):
        sources.read_dataset(write(card))


def test_missing_data_say_how_to_get_them(card, write, tmp_path):
    card["root"] = str(tmp_path / "nowhere")
    with pytest.raises(DataMissing, match=r"nowhere is missing(.|\n)*get it   : make it\n *licence  : CC0"):
        sources.read_dataset(write(card))
    card["root"], card["images"]["glob"] = str(tmp_path / "data"), "*/pictures/*.png"
    with pytest.raises(DataMissing, match=r"no file matches images.glob '\*/pictures/\*.png' in .*data"):
        sources.read_dataset(write(card))


def test_the_dubai_card_tells_a_stranger_all_they_need(write):
    text = (ROOT / "data/datasets/dubai.yaml").read_text().replace("../shared/data/dubai", "/nowhere/dubai")
    with pytest.raises(DataMissing) as error:
        sources.read_dataset(write(text))
    for part in ("/nowhere/dubai", "https://humansintheloop.org", "Semantic segmentation dataset", "CC BY 4.0", "CC0"):
        assert part in str(error.value)


# --- catalogues


@pytest.fixture
def catalogue(tmp_path, card):
    """A static STAC catalogue with one image, exact mask and noisy mask per scene."""
    root = tmp_path / "world"
    catalog = pystac.Catalog("world", "a small world")
    for number, name in enumerate(("pretrain-00", "finetune-00", "validation-00", "test-00")):
        item = pystac.Item(
            name, None, None, None, {"start_datetime": "2024-01-01T00:00:00Z", "end_datetime": "2024-01-01T00:00:00Z"}
        )
        for asset in ("exact", "noisy"):
            path = sources.write_mask(root / name / f"{asset}.tif", a_mask(), GRID, AUTOGEO)
            item.add_asset(asset, pystac.Asset(str(path)))
        write_image(root / name / "image.tif", np.full((4, 30, 40), number, np.uint8))
        item.add_asset("image", pystac.Asset(str(root / name / "image.tif")))
        catalog.add_item(item)
    catalog.normalize_hrefs(str(root))
    for item in catalog.get_items():
        item.make_asset_hrefs_relative()
    catalog.save(pystac.CatalogType.SELF_CONTAINED)
    masks = {"coding": "index", "legend": "autogeo4"}
    return card | {
        "root": str(root),
        "catalog": "catalog.json",
        "images": {"asset": "image", "bands": ["nir", "red", "green", "blue"]},
        "exact": masks | {"asset": "exact"},
        "noisy": masks | {"from": "mask", "asset": "noisy"},
        "split": {split: [f"{split}-*"] for split in sources.SPLITS},
    }


def write_image(path: Path, pixels: np.ndarray, geobox: GeoBox | None = GRID, **more) -> Path:
    grid = {} if geobox is None else {"transform": geobox.transform, "crs": str(geobox.crs)}
    profile = {"driver": "GTiff", "dtype": pixels.dtype, "count": len(pixels), "height": pixels.shape[1]}
    with rasterio.open(path, "w", width=pixels.shape[2], **profile, **grid, **more) as data:
        data.write(pixels)
    return path


def test_a_catalogue_names_its_scenes(catalogue, write):
    dataset = sources.read_dataset(write(catalogue))
    assert [t.name for t in dataset.tiles_of("test")] == ["test-00/image"]
    assert [t.splits for t in dataset.tiles] == [("finetune",), ("pretrain",), ("test",), ("validation",)]
    image, geobox = dataset.read_image(dataset.tiles[0])
    assert image.shape == (4, 30, 40) and geobox == GRID
    assert np.array_equal(sources.read_exact(dataset, dataset.tiles[0]), a_mask())


def test_a_catalogue_with_holes_is_refused(catalogue, write, tmp_path):
    with pytest.raises(CardError, match=r"images.asset: item 'finetune-00' has no 'imagery', only exact, noisy, image"):
        sources.read_dataset(write(catalogue | {"images": catalogue["images"] | {"asset": "imagery"}}))
    (tmp_path / "world/test-00/exact.tif").unlink()
    with pytest.raises(DataMissing, match=r"test-00/exact.tif of item 'test-00' is missing"):
        sources.read_dataset(write(catalogue))
    (tmp_path / "world/catalog.json").unlink()
    with pytest.raises(DataMissing, match="catalog.json is missing"):
        sources.read_dataset(write(catalogue))
    with pytest.raises(CardError, match="images is an asset but catalog is None: give `catalog`"):
        sources.read_dataset(write({key: value for key, value in catalogue.items() if key != "catalog"}))


# --- images


def test_images_keep_their_type_and_grid(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4000, (4, 30, 40), dtype=np.uint16)
    image, geobox = sources.read_image(write_image(tmp_path / "a.tif", pixels))
    assert image.dtype == np.uint16 and np.array_equal(image, pixels) and geobox == GRID
    assert np.array_equal(sources.read_image(tmp_path / "a.tif", bands=[3, 1])[0], pixels[[2, 0]])
    assert sources.image_shape(tmp_path / "a.tif") == (30, 40)
    plain, no_grid = sources.read_image(write_image(tmp_path / "b.tif", pixels, geobox=None))
    assert np.array_equal(plain, pixels) and no_grid is None


def test_pictures_have_no_grid(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    image, geobox = sources.read_image(tmp_path / "a.png")
    assert np.array_equal(image, rgb.transpose(2, 0, 1)) and geobox is None and image.flags.writeable
    assert sources.image_shape(tmp_path / "a.png") == (30, 40) and sources.read_valid(tmp_path / "a.png").all()
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    assert sources.read_image(tmp_path / "grey.png")[0].shape == (1, 30, 40)
    for asked in ([0], [4]):
        with pytest.raises(SourceError, match=rf"has bands 1..3, asked for \{asked}"):
            sources.read_image(tmp_path / "a.png", bands=asked)


def test_holes_in_images_are_zero_and_not_valid(tmp_path):
    pixels = np.full((2, 30, 40), 7, np.int16)
    pixels[:, 0, 0] = -9999
    path = write_image(tmp_path / "nodata.tif", pixels, nodata=-9999)
    assert sources.read_image(path)[0][:, 0, 0].tolist() == [0, 0]
    assert (~sources.read_valid(path)).sum() == 1 and not sources.read_valid(path)[0, 0]
    reflectance = np.full((2, 30, 40), 0.3, np.float32)
    reflectance[1, 2, 3] = np.nan
    path = write_image(tmp_path / "nan.tif", reflectance)
    assert np.isfinite(sources.read_image(path)[0]).all() and not sources.read_valid(path)[2, 3]
    rgba = np.full((30, 40, 4), 255, np.uint8)
    rgba[4, 5, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    assert sources.read_image(tmp_path / "alpha.png")[0].shape == (3, 30, 40)
    assert np.argwhere(~sources.read_valid(tmp_path / "alpha.png")).tolist() == [[4, 5]]


def test_near_infrared_marked_as_alpha_is_still_a_band(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 30, 40), dtype=np.uint8)
    path = write_image(tmp_path / "rgbn.tif", pixels)
    with rasterio.open(path) as data:
        assert data.colorinterp[3].name == "alpha", "what GDAL makes of four 8-bit bands"
    assert np.array_equal(sources.read_image(path)[0], pixels) and sources.read_valid(path).all()
    pixels[3] = np.where(pixels[3] < 30, 0, 255)
    path = write_image(tmp_path / "rgba.tif", pixels)
    image = sources.read_image(path)[0]
    assert np.array_equal(image, pixels[:3] * (pixels[3] > 0)) and np.array_equal(
        sources.read_valid(path), pixels[3] > 0
    )


@pytest.mark.parametrize("name", ["image.tif", "image.png", "image.jpg", "mask.tif", "mask.png"])
@pytest.mark.parametrize("keep", [0.0, 0.6])
def test_damaged_files_are_named(tmp_path, name, keep):
    path, noise = tmp_path / name, np.random.default_rng(0).integers(0, 255, (3, 200, 200), dtype=np.uint8)
    if name == "mask.tif":
        sources.write_mask(path, a_mask(0, (200, 200)), None, AUTOGEO)
    elif name == "image.tif":
        write_image(path, noise, geobox=None, compress="deflate")
    else:
        Image.fromarray(noise.transpose(1, 2, 0)).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(SourceError, match=rf"{path}: cannot be read \(\d+ bytes\).*fetch or write the file again"):
        if name.startswith("mask"):
            sources.read_mask(path, Masks(glob="*", coding="colour", legend="dubai5"), DUBAI)
        else:
            sources.read_image(path)


def test_files_that_are_not_there_are_named(tmp_path):
    for name in ("none.tif", "none.jpg"):
        with pytest.raises(SourceError, match=f"{name}: no such file"):
            sources.read_image(tmp_path / name)
        with pytest.raises(SourceError, match=f"{name}: no such file"):
            sources.image_shape(tmp_path / name)
    with pytest.raises(SourceError, match="none.laz: no such file"):
        sources.read_points(tmp_path / "none.laz")


# --- masks


def spec(coding: str, name: str = "dubai5", **more) -> Masks:
    return Masks(glob="*", coding=coding, legend=name, **more)


def test_masks_read_back_as_written(tmp_path):
    mask = a_mask()
    for geobox in (GRID, None):
        path = sources.write_mask(tmp_path / "deep/mask.tif", mask, geobox, AUTOGEO)
        assert np.array_equal(sources.read_mask(path, spec("index", "autogeo4"), AUTOGEO), mask)
        assert [p.name for p in path.parent.iterdir()] == ["mask.tif"], "no temporary file is left"
    with rasterio.open(sources.write_mask(tmp_path / "mask.tif", mask, GRID, AUTOGEO)) as data:
        assert data.nodata == VOID and data.colormap(1)[2][:3] == AUTOGEO.colours[2] and data.crs.to_epsg() == 32618
        assert data.tags()["classes"] == "background, tree, building, road"
        assert data.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_what_does_not_fit_is_not_written(tmp_path):
    for mask, geobox in ((a_mask()[:5], GRID), (a_mask().astype(int), GRID), (a_mask(k=8), GRID)):
        with pytest.raises(ValueError, match="mask is|holds ids 4"):
            sources.write_mask(tmp_path / "mask.tif", mask, geobox, AUTOGEO)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = sources.write_mask(tmp_path / "mask.tif", a_mask(), GRID, AUTOGEO)
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(files.rasterio.shutil, "copy", fail)
    with pytest.raises(OSError, match="disk full"):
        sources.write_mask(path, a_mask(1), GRID, AUTOGEO)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["mask.tif"]


def test_colours_come_from_rgb_palette_png_and_geotiff(tmp_path):
    mask = a_mask(k=5)
    rgb = DUBAI.to_rgb(mask)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(rgb).quantize(16, dither=Image.Dither.NONE).save(tmp_path / "palette.png")
    write_image(tmp_path / "rgb.tif", rgb.transpose(2, 0, 1))
    sources.write_mask(tmp_path / "palette.tif", mask, GRID, DUBAI)
    for name in ("rgb.png", "palette.png", "rgb.tif", "palette.tif"):
        found = sources.read_mask(tmp_path / name, spec("colour", void=[(200, 200, 200)]), DUBAI, shape=(30, 40))
        assert np.array_equal(found, mask), name


def test_codes_nodata_and_void(tmp_path):
    cover = legend.get("worldcover11")
    codes = np.array([[10, 20, 0, 100, 77]], np.uint8)
    path = write_image(tmp_path / "a.tif", codes[None], geobox=None, nodata=0)
    assert sources.read_mask(path, spec("code", "worldcover11", void=[77]), cover).tolist() == [[0, 1, VOID, 10, VOID]]
    with pytest.raises(
        SourceError, match=r"a.tif: 1 of 5 pixels hold values unknown to legend 'worldcover11'.*77 x 1.*`void`"
    ):
        sources.read_mask(path, spec("code", "worldcover11"), cover)
    whole = write_image(tmp_path / "float.tif", codes[None].astype(np.float32), geobox=None, nodata=0)
    assert sources.read_mask(whole, spec("code", "worldcover11", void=[77]), cover)[0, 3] == 10
    half = write_image(tmp_path / "half.tif", np.full((1, 2, 2), 0.5, np.float32), geobox=None)
    with pytest.raises(SourceError, match="values are not whole numbers"):
        sources.read_mask(half, spec("code", "worldcover11"), cover)


def test_index_coding_ignores_the_codes_of_the_legend(tmp_path):
    Image.fromarray(np.array([[0, 7, VOID]], np.uint8)).save(tmp_path / "a.png")
    nyc = legend.get("nyc8")
    assert sources.read_mask(tmp_path / "a.png", spec("index", "nyc8"), nyc).tolist() == [[0, 7, VOID]]
    with pytest.raises(SourceError, match="0 x 1"):
        sources.read_mask(tmp_path / "a.png", spec("code", "nyc8", void=[VOID]), nyc)


def test_masks_that_do_not_fit_are_named(tmp_path):
    rgb = DUBAI.to_rgb(a_mask(k=5))
    Image.fromarray(rgb).save(tmp_path / "a.png")
    Image.fromarray(rgb).save(tmp_path / "a.jpg")
    write_image(tmp_path / "a.tif", rgb.transpose(2, 0, 1))
    write_image(tmp_path / "one.tif", a_mask()[None])
    colour, index = spec("colour", void=[(200, 200, 200)]), spec("index")
    with pytest.raises(SourceError, match=r"a.png: is \(30, 40\) .*its image is \(31, 40\)"):
        sources.read_mask(tmp_path / "a.png", colour, DUBAI, shape=(31, 40))
    with pytest.raises(SourceError, match=r"a.png: 3 of 1200 pixels.*\(200, 200, 200\) x 3"):
        sources.read_mask(tmp_path / "a.png", spec("colour"), DUBAI)
    with pytest.raises(SourceError, match="JPEG changes colours, use PNG"):
        sources.read_mask(tmp_path / "a.jpg", colour, DUBAI)
    for name in ("a.png", "a.tif"):
        with pytest.raises(SourceError, match="did you mean coding: colour"):
            sources.read_mask(tmp_path / name, index, DUBAI)
    with pytest.raises(SourceError, match="one band without a palette.*did you mean coding: code"):
        sources.read_mask(tmp_path / "one.tif", colour, DUBAI)


def test_a_mask_of_the_wrong_size_stops_the_data_set(card, write, tmp_path):
    path = tmp_path / "data/scene a/masks/part1.png"
    Image.fromarray(DUBAI.to_rgb(a_mask(shape=(10, 12)))).save(path)
    dataset = sources.read_dataset(write(card))
    with pytest.raises(SourceError, match=r"part1.png: is \(10, 12\).*its image is \(30, 40\)"):
        sources.read_exact(dataset, dataset.tiles[1])
    card["images"]["bands"] = ["nir", "red", "green", "blue"]
    dataset = sources.read_dataset(write(card))
    with pytest.raises(SourceError, match="part0.png: has 3 bands, the card names 4"):
        dataset.read_image(dataset.tiles[0])


# --- points


def write_points(path: Path, crs: str | None, xyz: np.ndarray) -> Path:
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.scales, header.offsets = [0.001] * 3, np.floor(xyz.min(axis=0))
    if crs:
        header.add_crs(pyproj.CRS(crs))
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = xyz.T
    cloud.intensity = np.arange(len(xyz))
    cloud.return_number = np.ones(len(xyz), np.uint8)
    cloud.number_of_returns = np.full(len(xyz), 2, np.uint8)
    cloud.write(path)
    return path


XYZ = np.array([[981000.5, 199000.25, 30.0], [981010.0, 199020.0, 120.0]])
FOOT = 1200 / 3937  # the US survey foot


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_points_in_metres_stay(tmp_path, suffix):
    points = sources.read_points(write_points(tmp_path / f"a{suffix}", "EPSG:32618", XYZ))
    assert np.allclose(np.c_[points.x, points.y, points.z], XYZ) and points.crs.to_epsg() == 32618
    assert len(points) == 2 and points.classification is None and points.number_of_returns.tolist() == [2, 2]
    assert points.intensity.tolist() == [0, 1]


@pytest.mark.parametrize("crs, up", [("EPSG:2263", FOOT), ("EPSG:2263+5703", 1.0), ("EPSG:32618+6360", FOOT)])
def test_feet_become_metres_in_a_crs_that_says_so(tmp_path, crs, up):
    points = sources.read_points(write_points(tmp_path / "a.laz", crs, XYZ))
    across = FOOT if "2263" in crs else 1.0
    assert np.allclose(np.c_[points.x, points.y, points.z], XYZ * [across, across, up], atol=1e-3)
    there = pyproj.Transformer.from_crs(points.crs, 4326, always_xy=True).transform(points.x, points.y)
    here = pyproj.Transformer.from_crs(crs.split("+")[0], 4326, always_xy=True).transform(*XYZ.T[:2])
    assert np.allclose(there, here, atol=1e-9)


def test_points_without_crs_are_metres_and_degrees_are_refused(tmp_path):
    assert sources.read_points(write_points(tmp_path / "a.las", None, XYZ)).crs is None
    degrees = np.array([[-73.9, 40.7, 10.0], [-73.8, 40.8, 11.0]])
    with pytest.raises(SourceError, match="b.las: coordinates are degrees.*reproject"):
        sources.read_points(write_points(tmp_path / "b.las", "EPSG:4326", degrees))


@pytest.mark.parametrize("suffix", [".las", ".laz"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.9])
def test_damaged_points_are_named(tmp_path, suffix, keep):
    path = write_points(tmp_path / f"a{suffix}", "EPSG:32618", np.random.default_rng(0).random((5000, 3)) * 100)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(SourceError, match=rf"a{suffix}: .*fetch"):
        sources.read_points(path)


# --- fingerprint


def test_the_fingerprint_is_of_names_and_contents_not_of_the_place(tmp_path):
    def tree(name: str, first: str = "1", second: str = "2") -> list[Path]:
        paths = [tmp_path / name / "x/a.txt", tmp_path / name / "y/b.txt"]
        for path, text in zip(paths, (first, second), strict=True):
            path.parent.mkdir(parents=True)
            path.write_text(text)
        return paths

    one = sources.fingerprint(tree("one"))
    assert one == sources.fingerprint(tree("two")[::-1]) and len(one) == 64
    assert one != sources.fingerprint(tree("three", "1", "3")) and one != sources.fingerprint(tree("four", "2", "1"))
    assert one != sources.fingerprint(tree("five")[:1])


def test_the_card_in_the_readme_is_valid_and_names_every_key(write):
    text = (ROOT / "data/README.md").read_text()
    assert sources.load_card(write(text.split("```yaml\n")[1].split("```")[0])).name == "mytown"
    parts = (cards.Card, cards.Split, cards.Images, cards.Inject, cards.Product, cards.Vector)
    keys = {key for part in parts for key in part.model_fields}
    assert not [key for key in keys - {"source", "images"} if key not in text]
