"""Patches: windows, splits by scene, budgets, fingerprints, whole-or-absent storage."""

import json
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from PIL import Image
from toy import toy_patches

from nbutils import batches, disk, legend, patches, shards, sources, study, windows

DATA = toy_patches()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9))
def test_windows_are_the_whole_cells_of_a_grid(height, width, size):
    array = np.arange(2 * height * width).reshape(2, height, width)
    found = windows.squares(array, size)
    assert found.shape == ((height // size) * (width // size), 2, size, size)
    for i, window in enumerate(found):
        row, column = divmod(i, width // size)
        block = array[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
        assert np.array_equal(window, block)


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(1, 20))
def test_budgets_nest_and_spread_over_scenes(seed, n):
    part = DATA.split("pretrain")
    small, large = part.budget(n, seed), part.budget(20, seed)
    assert np.array_equal(small.images, large.images[:n])
    each = [np.sum(small.scenes == scene) for scene in np.unique(part.scenes)]
    assert max(each) - min(each) <= 1


def test_a_budget_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="500 patches was asked for, there are 20"):
        DATA.split("pretrain").budget(500, 0)


def test_splits_share_no_scene():
    scenes = {name: set(DATA.split(name).scenes) for name in patches.SPLITS}
    assert not scenes["test"] & (scenes["pretrain"] | scenes["finetune"] | scenes["validation"])


def test_exact_masks_in_the_noisy_legend_keep_void():
    mapped = DATA.exact_as_noisy()
    assert np.array_equal(mapped == legend.VOID, DATA.masks["exact"] == legend.VOID)
    buildings = DATA.masks["exact"] == DATA.exact_legend.index("buildings")
    assert (mapped[buildings] == DATA.noisy_legend.index("building")).all()


def test_store_and_load_are_inverse_and_repeatable(cache):
    patches.store(DATA)
    patches.store(DATA)
    back = patches.load(DATA.fingerprint)
    assert patches.content_hash(back) == DATA.fingerprint
    assert [p.name for p in cache.iterdir()] == [DATA.fingerprint]
    assert (back.bands, back.mean, back.noisy_legend) == (DATA.bands, DATA.mean, DATA.noisy_legend)


def test_the_fingerprint_does_not_depend_on_where_and_how_arrays_lie(cache, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK_BYTES", 3 * DATA.images[0].nbytes)
    assert patches.content_hash(DATA) == DATA.fingerprint
    turned = replace(DATA, images=np.asfortranarray(DATA.images), masks={k: m.copy("F") for k, m in DATA.masks.items()})
    patches.store(turned)
    for data in (turned, patches.load(DATA.fingerprint)):
        assert patches.content_hash(data) == DATA.fingerprint


@pytest.mark.parametrize("part", ["images", "noisy", "exact", "scenes", "member"])
def test_the_fingerprint_sees_every_change(part):
    if part == "images":
        changed = replace(DATA, images=DATA.images ^ 1)
    elif part in ("noisy", "exact"):
        changed = replace(DATA, masks={**DATA.masks, part: np.roll(DATA.masks[part], 1)})
    elif part == "scenes":
        changed = replace(DATA, scenes=DATA.scenes[::-1])
    else:
        changed = replace(DATA, member={**DATA.member, "test": DATA.member["validation"]})
    assert patches.content_hash(changed) != DATA.fingerprint


def test_another_noisy_map_gets_its_own_fingerprint(cache):
    flipped = np.where(DATA.masks["noisy"] == legend.VOID, legend.VOID, 3 - DATA.masks["noisy"]).astype(np.uint8)
    other = patches.with_noisy(DATA, flipped, DATA.noisy_legend)
    assert other.fingerprint != DATA.fingerprint
    assert np.array_equal(patches.load(other.fingerprint).masks["noisy"], flipped)
    with pytest.raises(ValueError, match="noisy must be uint8"):
        patches.with_noisy(DATA, flipped[:3], DATA.noisy_legend)


def test_a_patch_set_that_is_not_stored_is_named(cache):
    with pytest.raises(FileNotFoundError, match="0123456789abcdef"):
        patches.load("0123456789abcdef0123")


def test_code_digest_ignores_comments_and_docstrings_only():
    def one(x):
        """Say it."""
        return x + 1  # why

    digest = disk.code_digest(legend)
    assert digest == disk.code_digest(legend) != disk.code_digest(patches)


CARD = """
    name: folder
    title: A folder of pictures
    licence: CC0
    get: made by the test
    root: {root}
    images: {{glob: "images/*/*.png", bands: [red, green, blue], scale: 255, scene: "(\\\\w+)/\\\\d.png"}}
    exact: {{glob: "masks/*/*.png", coding: index, legend: dubai5}}
    noisy: {{from: inject, recipe: map-like}}
    split: {{test: [c], validation: [b]}}
"""


NOISY = '{from: mask, glob: "noisy/*/*.png", coding: index, legend: dubai5}'


@pytest.fixture
def folder_card(tmp_path):
    """A card on a folder of four pictures in each of three scenes, one mask of one of them wholly void."""
    rng = np.random.default_rng(0)
    for scene in "abc":
        for i in range(2):
            for kind in ("images", "masks"):
                (tmp_path / kind / scene).mkdir(parents=True, exist_ok=True)
            mask = np.kron(rng.integers(0, 5, (4, 6)), np.ones((16, 16))).astype(np.uint8)
            mask[:32, :32] = 255
            Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(
                tmp_path / f"images/{scene}/{i}.png"
            )
            Image.fromarray(mask).save(tmp_path / f"masks/{scene}/{i}.png")
    card = tmp_path / "folder.yaml"
    card.write_text(textwrap.dedent(CARD.format(root=tmp_path)))
    return card


def test_a_folder_of_pictures_is_cut_once(cache, folder_card, monkeypatch):
    dataset = patches.open_dataset(folder_card)
    cut = patches.cut(dataset, size_px=32, max_patches=100, workers=1)
    assert cut.images.shape == (3 * 2 * 5, 3, 32, 32)  # six windows an image, less the void one
    assert [int(cut.member[name].sum()) for name in patches.SPLITS] == [10, 10, 10, 10]
    monkeypatch.setattr(patches, "_cut", None)  # a second reading of the files would fail
    again = patches.cut(dataset, size_px=32, max_patches=100, workers=1)
    assert again.fingerprint == cut.fingerprint


def test_scenes_with_a_noisy_map_alone_are_good_for_pretraining(cache, folder_card, tmp_path):
    text = folder_card.read_text().replace("{from: inject, recipe: map-like}", NOISY)
    folder_card.write_text(text)
    for path in (tmp_path / "masks").rglob("*.png"):
        copy = tmp_path / "noisy" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "masks/a/1.png").rename(tmp_path / "elsewhere.png")  # a pretraining scene without its exact mask
    (tmp_path / "masks/a/0.png").unlink()
    text = text.replace("validation: [b]", "validation: [b], pretrain: [a], finetune: [d]")
    for kind in ("images", "masks", "noisy"):
        (tmp_path / kind / "d").mkdir()
        Image.open(tmp_path / kind / "b/0.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
            tmp_path / kind / "d/0.png"
        )
    (tmp_path / "noisy/d/0.png").unlink()  # a fine-tuning scene without a noisy map
    folder_card.write_text(text)
    cut = patches.cut(patches.open_dataset(folder_card), size_px=32, max_patches=100, workers=1)
    assert int(cut.member["pretrain"].sum()) == 10 and int(cut.member["finetune"].sum()) == 5
    assert (cut.split("pretrain").masks["exact"] == legend.VOID).all()
    assert (cut.split("finetune").masks["noisy"] == legend.VOID).all()
    assert study.arms_of(cut, ["moco", "noisy", "exact"]) == ["random", "moco", "noisy"]


def test_thinning_keeps_the_asked_number_and_every_scene(cache, folder_card):
    cut = patches.cut(patches.open_dataset(folder_card), size_px=32, max_patches=4, workers=1)
    assert [int(cut.member[name].sum()) for name in patches.SPLITS] == [4, 4, 4, 4] and len(cut) == 12


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_sixteen_bit_images_can_be_trained_on(cache, folder_card, tmp_path):
    rng = np.random.default_rng(0)
    for path in list((tmp_path / "images").rglob("*.png")):
        profile = dict(driver="GTiff", width=96, height=64, count=3, dtype="uint16")
        with rasterio.open(path.with_suffix(".tif"), "w", **profile) as file:
            file.write(rng.integers(0, 60000, (3, 64, 96), dtype=np.uint16))
        path.unlink()
    text = folder_card.read_text().replace("images/*/*.png", "images/*/*.tif").replace("scale: 255", "scale: 10000")
    folder_card.write_text(text.replace("\\\\d.png", "\\\\d"))
    cut = patches.cut(patches.open_dataset(folder_card), size_px=32, max_patches=100, workers=1)
    images, _, _ = next(batches.Batches(cut.split("pretrain"), "exact", batch_size=2, seed=0))
    assert cut.images.max() > 2**15 and abs(images.mean()) < 1


def test_patches_larger_than_every_image_are_refused(cache, folder_card):
    with pytest.raises(ValueError, match="smaller patch size"):
        patches.cut(patches.open_dataset(folder_card), size_px=128, max_patches=4, workers=1)


# --- dates

DATES = ("summer", "winter", "spring")
SCENES = ("p0", "p1", "f0", "v0", "t0")  # f0 is for pretraining and fine-tuning
HIGH, WIDE, SIZE = 48, 64, 16
GRID = GeoBox.from_bbox((500000, 4000000, 500000 + WIDE, 4000000 + HIGH), "EPSG:32618", resolution=1)
DATED = """
name: dated
licence: CC0
get: made by the test
root: {root}
catalog: catalog.json
images: {{asset: summer, dates: [winter, spring], bands: [ground, date], scale: 100}}
exact: {{asset: exact, coding: index, legend: autogeo4}}
noisy: {{from: mask, asset: noisy, coding: index, legend: autogeo4}}
split: {{pretrain: ["p*", "f*"], finetune: ["f*"], validation: ["v*"], test: ["t*"]}}
"""


def pixels_of(scene: str, date: str) -> np.ndarray:
    """Pixels that tell where and when: a number for each place on the ground, and the date's; 0 is no data."""
    ground = np.arange(HIGH * WIDE).reshape(HIGH, WIDE) + 1 + SCENES.index(scene) * HIGH * WIDE
    image = np.stack([ground, np.full_like(ground, 10 + DATES.index(date))])
    if (scene, date) == ("p0", "spring"):
        image[:, :SIZE, :SIZE] = 0  # a window without any data
        image[:, :SIZE, SIZE : SIZE + 5] = 0
    if (scene, date) == ("p0", "summer"):
        image[:, 2 * SIZE :, -3:] = 0
    return image.astype(np.uint16)


def write_image(path: Path, image: np.ndarray, grid: GeoBox = GRID) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = dict(zip(("count", "height", "width"), image.shape, strict=True))
    where = dict(transform=grid.transform, crs=str(grid.crs))
    with rasterio.open(path, "w", driver="GTiff", dtype=image.dtype, nodata=0, **size, **where) as file:
        file.write(image)
    return path


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> Path:
    """A catalogue of five scenes on three dates; p1 has no exact mask, later dates are only where needed."""
    root, rng = tmp_path_factory.mktemp("dates") / "dated", np.random.default_rng(0)
    catalog = pystac.Catalog("dated", "five scenes")
    for scene in SCENES:
        day = {"start_datetime": "2024-01-01T00:00:00Z", "end_datetime": "2024-12-31T00:00:00Z"}
        item = pystac.Item(scene, None, None, None, day)
        for date in DATES if scene[0] in "pf" else DATES[:1]:
            path = write_image(root / scene / f"{date}.tif", pixels_of(scene, date))
            item.add_asset(date, pystac.Asset(str(path)))
        for name in ("exact", "noisy") if scene != "p1" else ("noisy",):
            mask = rng.integers(0, 4, (HIGH, WIDE), dtype=np.uint8)
            path = sources.write_mask(root / scene / f"{name}.tif", mask, GRID, legend.get("autogeo4"))
            item.add_asset(name, pystac.Asset(str(path)))
        catalog.add_item(item)
    catalog.normalize_hrefs(str(root))
    for item in catalog.get_items():
        item.make_asset_hrefs_relative()
    catalog.save(pystac.CatalogType.SELF_CONTAINED)
    return root


@pytest.fixture
def dated(cache, catalogue, tmp_path) -> Path:
    """A card on a copy of the catalogue."""
    card, root = tmp_path / "dated.yaml", shutil.copytree(catalogue, tmp_path / "dated")
    card.write_text(DATED.format(root=root))
    return card


@pytest.fixture(scope="module")
def found(catalogue) -> patches.PatchSet:
    """All its patches."""
    card = catalogue.parent / "dated.yaml"
    card.write_text(DATED.format(root=catalogue))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "CACHE", catalogue.parent / "cache")
        return cut_dated(card)


def cut_dated(card: Path, **more) -> patches.PatchSet:
    return patches.cut(patches.open_dataset(card), **{"size_px": SIZE, "max_patches": 1000, "workers": 1} | more)


def shown_by(image: np.ndarray) -> tuple[str, int, int, str]:
    """Scene, row, column and date of a patch of `pixels_of`."""
    at = np.argwhere(image[0])[-1]  # the last pixel with data
    scene, ground = divmod(int(image[0][tuple(at)]) - 1, HIGH * WIDE)
    row, column = np.subtract(divmod(ground, WIDE), at)
    return SCENES[scene], int(row), int(column), DATES[int(image[1][tuple(at)]) - 10]


def test_a_window_for_pretraining_is_cut_on_every_date(found, catalogue):
    told = [shown_by(image) for image in found.images]
    for (scene, row, column, date), image, noisy, exact in zip(told, found.images, *found.masks.values(), strict=True):
        window = (slice(row, row + SIZE), slice(column, column + SIZE))
        of_file = pixels_of(scene, date)[(slice(None), *window)]
        assert np.array_equal(image, of_file)
        for name, mask in (("noisy", noisy), ("exact", exact)):
            path = catalogue / f"{scene}/{name}.tif"
            want = sources.read_image(path)[0][0][window] if path.exists() else np.full((SIZE, SIZE), legend.VOID)
            assert np.array_equal(mask, np.where(of_file[0] == 0, legend.VOID, want)), "void where that date is"
    every = {(s, r, c) for s in SCENES for r in range(0, HIGH, SIZE) for c in range(0, WIDE, SIZE)}
    want = {(*at, date) for at in every for date in (DATES if at[0][0] in "pf" else DATES[:1])}
    assert len(told) == len(set(told)) and set(told) == want - {("p0", 0, 0, "spring")}
    assert found.scenes.tolist() == [scene for scene, *_ in told]
    assert found.mean[1] == pytest.approx(np.mean(found.split("pretrain").images[:, 1] / 100))


def test_places_number_the_ground(found):
    grounds = [shown_by(image)[:3] for image in found.images]
    assert found.places.dtype == np.int64
    assert len(set(grounds)) == len(set(zip(found.places.tolist(), grounds, strict=True))) == found.places.max() + 1
    pretrain = found.split("pretrain")
    noisy = {k: pretrain.masks["noisy"][pretrain.places == k] for k in np.unique(pretrain.places)}
    lengths = [len(masks) for masks in noisy.values()]
    assert sorted(lengths) == [2] + [3] * 35, "of one window one date is nothing but holes"
    whole = [masks for masks in noisy.values() if not (masks == legend.VOID).any()]
    assert len(whole) == 34 and all((masks == masks[0]).all() for masks in whole)


def test_other_dates_are_for_pretraining_only_and_splits_share_no_scene(found):
    for name in ("finetune", "validation", "test"):
        part = found.split(name)
        assert {shown_by(image)[3] for image in part.images} == {"summer"} and len(part) == 12
    assert set(found.split("finetune").places) < set(found.split("pretrain").places), "scene f0 is in both"
    held = set(found.split("test").scenes) | set(found.split("validation").scenes)
    assert held == {"v0", "t0"} and not held & set(found.split("pretrain").scenes)


@pytest.mark.parametrize("most, windows_drawn", [(1, 1), (3, 1), (8, 2), (20, 6)])
def test_dates_share_the_number_of_patches(dated, most, windows_drawn):
    found = cut_dated(dated, max_patches=most)
    pretrain = found.split("pretrain")
    assert len(np.unique(pretrain.places)) == windows_drawn and 3 * windows_drawn - 1 <= len(pretrain)
    assert len(pretrain) <= max(most, 3) and len(found.split("test")) == min(most, 12)
    assert len(set(pretrain.scenes)) == min(windows_drawn, 3), "spread over the scenes"


def test_places_survive_whatever_is_done_to_patches(found, cache):
    part = found.take(np.arange(len(found))[::-3])
    assert np.array_equal(part.places, found.places[::-3])
    drawn = found.split("pretrain").budget(9, seed=1)
    ground = {place: shown_by(image)[:3] for place, image in zip(found.places, found.images, strict=True)}
    assert all(ground[k] == shown_by(image)[:3] for k, image in zip(drawn.places, drawn.images, strict=True))
    other = patches.with_noisy(found, np.zeros_like(found.masks["noisy"]), found.noisy_legend)
    back = patches.load(other.fingerprint)
    assert np.array_equal(back.places, found.places) and back.places.dtype == np.int64
    assert patches.content_hash(back) == other.fingerprint != found.fingerprint


@pytest.mark.parametrize("change", [{"bands": DATA.bands[::-1]}, {"scale": 1.0}, {"gsd_m": 3.0}], ids=str)
def test_the_same_pixels_described_otherwise_are_other_patches(cache, change):
    other = replace(DATA, **change)
    other = replace(other, fingerprint=patches.content_hash(other))
    assert other.fingerprint != DATA.fingerprint == patches.content_hash(DATA)
    for each in (DATA, other):
        patches.store(each)
        (name,) = change
        assert getattr(patches.load(each.fingerprint), name) == getattr(each, name)


def test_the_fingerprint_sees_what_the_mapping_between_the_legends_says(cache, monkeypatch):
    between = (DATA.exact_legend.name, DATA.noisy_legend.name)
    changed = {**legend.CROSSWALKS[between], DATA.exact_legend.names[0]: None}
    monkeypatch.setitem(legend.CROSSWALKS, between, changed)
    assert patches.content_hash(DATA) != DATA.fingerprint


def test_exact_masks_in_other_classes_are_other_patches(cache):
    coarse = patches.in_legend(DATA, DATA.noisy_legend)
    assert np.array_equal(coarse.masks["exact"], DATA.exact_as_noisy()) and coarse.fingerprint != DATA.fingerprint
    assert np.array_equal(coarse.exact_as_noisy(), coarse.masks["exact"])
    assert np.array_equal(patches.load(coarse.fingerprint).masks["exact"], coarse.masks["exact"])
    own = {name: None for name in DATA.exact_legend.names} | {DATA.exact_legend.names[0]: "tree"}
    single = patches.in_legend(DATA, DATA.noisy_legend, own).masks["exact"]
    assert set(np.unique(single)) == {DATA.noisy_legend.index("tree"), legend.VOID}
    with pytest.raises(ValueError, match="no mapping from 'nyc8' to 'osm13'"):
        patches.in_legend(DATA, legend.get("osm13"))


def test_one_of_each_place_counts_no_mask_twice(found):
    once = found.one_of_each_place()
    assert sorted(once.places) == sorted(set(found.places.tolist())) and len(once) < len(found)
    assert DATA.one_of_each_place() is DATA


def test_the_fingerprint_sees_places_where_there_are_some(found, dated):
    hashes = [patches.content_hash(replace(found, places=p)) for p in (found.places, found.places[::-1], None)]
    assert hashes[0] == found.fingerprint and len(set(hashes)) == 3
    dated.write_text(dated.read_text().replace("dates: [winter, spring], ", ""))
    plain = cut_dated(dated)
    assert plain.places is None and len(plain) == 5 * 12
    assert json.loads((patches.CACHE / plain.fingerprint / "patches.json").read_text())["places"] is None


def test_dated_patches_are_read_back_until_a_date_changes(found, dated, monkeypatch):
    first = cut_dated(dated)
    assert first.fingerprint == found.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(patches, "_cut", None)  # a second reading of the files would fail
        again = cut_dated(dated)
    assert again.fingerprint == first.fingerprint and np.array_equal(again.places, first.places)
    write_image(dated.parent / "dated/p1/winter.tif", pixels_of("p1", "winter") + 1)
    assert cut_dated(dated).fingerprint != first.fingerprint


def test_strips_do_not_change_dated_patches(found, dated, monkeypatch):
    monkeypatch.setattr(patches.files, "STRIP_PX", 1)
    assert cut_dated(dated).fingerprint == found.fingerprint


def test_a_date_that_does_not_fit_its_image_is_named(dated):
    path = dated.parent / "dated/p1/spring.tif"
    image, raw = pixels_of("p1", "spring"), path.read_bytes()
    moved = GeoBox.from_bbox((500003, 4000000, 500003 + WIDE, 4000000 + HIGH), GRID.crs, resolution=1)
    wrong = [
        (lambda: write_image(path, image, moved), "lies up to 3.0 pixels off its image"),
        (lambda: write_image(path, image[:, 1:]), r"is \(47, 64\) \(rows, columns\), its image is \(48, 64\)"),
        (lambda: write_image(path, image[:1]), "has 1 bands, the card names 2"),
        (lambda: path.write_bytes(raw[:-3000]), "cannot be read"),
    ]
    for damage, message in wrong:
        damage()
        with pytest.raises(sources.SourceError, match=f"p1/spring.tif: {message}"):
            cut_dated(dated)
    path.unlink()
    with pytest.raises(sources.DataMissing, match="p1/spring.tif of item 'p1' is missing"):
        cut_dated(dated)
    assert not list(patches.CACHE.glob("*")), "nothing half written"


def test_a_date_that_an_item_lacks_is_named(dated):
    path = dated.parent / "dated/p1/p1.json"
    item = json.loads(path.read_text())
    del item["assets"]["winter"]
    path.write_text(json.dumps(item))
    with pytest.raises(sources.CardError, match=r"images.dates 'winter': 1 image\(s\) have no file: .*p1/summer.tif"):
        patches.open_dataset(dated)
