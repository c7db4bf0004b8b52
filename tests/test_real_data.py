"""Real data, where they are at hand: the Dubai images read whole, and the numbers of their README come out."""

import numpy as np
import pytest

from nbutils import ROOT, audit, noise, sources
from nbutils.legend import VOID

FOLDER = ROOT / "../shared/data/dubai"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the Dubai images are not at {FOLDER}; see data/README.md")

PLACE = "Semantic segmentation dataset"


@pytest.fixture(scope="module")
def dubai():
    return sources.read_dataset("data/datasets/dubai.yaml")


@pytest.fixture(scope="module")
def masks(dubai):
    return {tile.name: sources.read_exact(dubai, tile) for tile in dubai.tiles}


def test_72_images_in_8_tiles_split_by_tile(dubai):
    assert len(dubai.tiles) == 72 and len({t.scene for t in dubai.tiles}) == 8
    assert dubai.scenes("test") == ("1", "4", "7") and dubai.scenes("validation") == ("5",)
    assert dubai.scenes("pretrain") == dubai.scenes("finetune") == ("2", "3", "6", "8")
    assert all(t.image.parts[-4] == PLACE and t.image.stem == t.exact.stem for t in dubai.tiles)


def test_every_mask_decodes_to_the_shares_of_the_readme(masks):
    counts = sum(np.bincount(mask.ravel(), minlength=256) for mask in masks.values())
    names = dict(zip(("building", "land", "road", "vegetation", "water"), counts[:5], strict=True))
    shares = {name: round(100 * count / counts.sum(), 1) for name, count in names.items()}
    labelled = {name: 100 * count / counts[:5].sum() for name, count in names.items()}
    expected = {"building": 13.4, "land": 52.7, "road": 9.4, "vegetation": 10.4, "water": 13.7}
    assert all(abs(labelled[name] - share) < 0.6 for name, share in expected.items()), (labelled, shares)
    assert counts[5:VOID].sum() == 0 and counts[VOID] > 552_156


def test_black_pixels_are_void_not_a_class(dubai, masks):
    black = next(t for t in dubai.tiles if t.name == "8/image_part_003")
    assert (masks[black.name] == VOID).sum() > 500_000


def test_images_read_at_their_own_sizes(dubai, masks):
    sizes = set()
    for tile in dubai.tiles[::6]:
        image, geobox = dubai.read_image(tile)
        assert image.dtype == np.uint8 and image.shape == (3, *masks[tile.name].shape) and geobox is None
        sizes.add(image.shape)
    assert len(sizes) > 4


def test_map_like_noise_is_a_plausible_map(dubai, masks):
    pairs = []
    for tile in dubai.tiles[::6]:
        exact = masks[tile.name]
        noisy, _ = noise.RECIPES["map-like"].apply(exact, dubai.exact_legend, np.random.default_rng(0))
        pairs.append((noisy, exact))
    noisy, exact = zip(*pairs, strict=True)
    found = audit.compare(noisy, exact, len(dubai.exact_legend))
    assert 0.15 < found.rate < 0.30
    assert audit.boundary_profile(noisy, exact).contrast > 1.5, "errors gather at boundaries"
