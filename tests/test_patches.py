"""Patches: windows, splits by scene, budgets, fingerprints, whole-or-absent storage."""

import textwrap
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toy import toy_patches

from nbutils import batches, legend, patches, study, windows

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
    monkeypatch.setattr(patches, "BLOCK_BYTES", 3 * DATA.images[0].nbytes)
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

    digest = patches.code_digest(legend)
    assert digest == patches.code_digest(legend) != patches.code_digest(patches)


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
        (tmp_path / kind / "d/0.png").write_bytes((tmp_path / kind / "b/0.png").read_bytes())
    (tmp_path / "noisy/d/0.png").unlink()  # a fine-tuning scene without a noisy map
    folder_card.write_text(text)
    cut = patches.cut(patches.open_dataset(folder_card), size_px=32, max_patches=100, workers=1)
    assert int(cut.member["pretrain"].sum()) == 10 and int(cut.member["finetune"].sum()) == 5
    assert (cut.split("pretrain").masks["exact"] == legend.VOID).all()
    assert (cut.split("finetune").masks["noisy"] == legend.VOID).all()
    assert study.arms_of(cut) == ["random", "moco", "noisy"]


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
