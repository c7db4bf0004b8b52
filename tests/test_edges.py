"""Images and sets at the edge of what there is, from files through patches to audit and evaluation."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine

from nbutils import audit, evaluation, labelling, legend, networks, patches, sources, statistics
from nbutils.legend import VOID
from nbutils.sources import CardError, SourceError

AUTOGEO = legend.get("autogeo4")
NORTH_UP, SOUTH_UP = Affine(1, 0, 5e5, 0, -1, 4e6), Affine(1, 0, 5e5, 0, 1, 4e6 - 64)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "CACHE", tmp_path / "cache")


def write(path: Path, pixels: np.ndarray, transform: Affine = NORTH_UP, crs: str = "EPSG:32618") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = pixels.shape
    with rasterio.open(path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=pixels.dtype, crs=crs,
                       transform=transform) as data:  # fmt: skip
        data.write(pixels)
    return path


class Made:
    """A data set of scenes a to d (c validates, d tests), whose files a test changes before they are read."""

    def __init__(self, root: Path):
        self.root = root
        for number, scene in enumerate("abcd"):
            self.scene(scene, number)
        self.card = {
            "name": "edges",
            "licence": "CC0",
            "get": "make it",
            "root": str(root),
            "images": {"glob": "*/image.tif", "bands": ["red", "nir"], "scale": 1, "scene": r"(\w)/", "key": r"(\.)"},
            "exact": {"glob": "*/exact.tif", "key": r"(\.)", "coding": "index", "legend": "autogeo4"},
            "noisy": {"from": "mask", "glob": "*/noisy.tif", "key": r"(\.)", "coding": "index", "legend": "autogeo4"},
            "split": {"test": ["d"], "validation": ["c"]},
        }

    def scene(self, name: str, seed: int, shape: tuple[int, int] = (64, 96), **how) -> None:
        rng = np.random.default_rng(seed)
        write(self.root / name / "image.tif", rng.random((2, *shape), np.float32), **how)
        self.masks(name, rng.integers(0, 4, shape, dtype=np.uint8), **how)

    def masks(self, name: str, exact: np.ndarray, noisy: np.ndarray | None = None, **how) -> None:
        write(self.root / name / "exact.tif", exact[None], **how)
        write(self.root / name / "noisy.tif", (exact if noisy is None else noisy)[None], **how)

    def open(self) -> sources.Dataset:
        (self.root / "card.yaml").write_text(yaml.safe_dump(self.card))
        return patches.open_dataset(self.root / "card.yaml")

    def cut(self, size_px: int = 32) -> patches.PatchSet:
        return patches.cut(self.open(), size_px=size_px, max_patches=99, workers=1)


@pytest.fixture
def made(tmp_path) -> Made:
    return Made(tmp_path / "data")


def judged(data: patches.PatchSet, split: str = "test") -> dict[str, evaluation.Tally]:
    """What a network of random weights scores on a split."""
    network = networks.build("tu-test_resnet", "unet", in_channels=2, n_classes=4, seed=0, width="slim")
    part = data.split(split)
    return evaluation.evaluate(network, part, part.masks["exact"], 4)


# ---- pixels ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_in_an_image_is_a_hole_in_every_mask(made, value):
    for number, scene in enumerate("abcd"):
        image = np.random.default_rng(number).random((2, 64, 96), np.float32)
        image[1, 10:50, 5:40] = value
        write(made.root / scene / "image.tif", image)
    data = made.cut()
    hole = np.zeros((64, 96), bool)
    hole[10:50, 5:40] = True
    assert np.isfinite(data.images).all() and np.isfinite([*data.mean, *data.std]).all()
    first = data.split("test")
    windows = [hole[r : r + 32, c : c + 32] for r in (0, 32) for c in (0, 32, 64)]
    for image, exact, noisy, window in zip(
        first.images, first.masks["exact"], first.masks["noisy"], windows, strict=True
    ):
        assert (image[:, window] == 0).all() and ((exact == VOID) == window).all() and ((noisy == VOID) == window).all()
    (tally,) = judged(data).values()
    assert tally.confusion.sum() == (~hole).sum()


def test_an_image_of_holes_alone_teaches_and_judges_nothing(made):
    write(made.root / "a/image.tif", np.full((2, 64, 96), np.nan, np.float32))
    data = made.cut()
    assert set(data.split("pretrain").scenes) == {"b"}
    write(made.root / "d/image.tif", np.full((2, 64, 96), np.nan, np.float32))
    with pytest.raises(ValueError, match="edges: split 'test' has no patch; check the card's split"):
        made.cut().split("test")
    write(made.root / "b/image.tif", np.full((2, 64, 96), np.inf, np.float32))
    with pytest.raises(ValueError, match="edges: no window for pretraining has a label"):
        made.cut()


def test_masks_that_are_wholly_void_count_nowhere(made):
    void = np.full((64, 96), VOID, np.uint8)
    made.masks("a", void)
    data = made.cut()
    assert set(data.split("finetune").scenes) == {"b"}
    found = audit.compare(void, void, 4)
    assert found.n_valid == 0 and np.isnan(found.rate)
    part = data.split("test")
    network = networks.build("tu-test_resnet", "unet", in_channels=2, n_classes=4, seed=0, width="slim")
    tally = evaluation.evaluate(network, part, np.full_like(part.masks["exact"], VOID), 4)["d"]
    assert tally.confusion.sum() == tally.boundary.sum() == tally.calibration.sum() == 0
    assert np.isnan(statistics.mean_iou(tally.confusion))


def test_a_set_of_a_single_class_is_learned_audited_and_judged_without_inventing_others(made):
    for scene in "abcd":
        made.masks(scene, np.full((64, 96), 2, np.uint8))
    data = made.cut()
    assert set(np.unique(data.masks["exact"])) == set(np.unique(data.masks["noisy"])) == {2}
    found = audit.compare(list(data.masks["noisy"]), list(data.masks["exact"]), 4)
    assert found.rate == 0 and found.confusion[2, 2] == found.n_valid
    (tally,) = judged(data).values()
    assert tally.confusion.sum(axis=1).tolist() == [0, 0, 64 * 96, 0] and not tally.boundary[2, 0]
    right = statistics.mean_iou(np.diag([0, 0, 9, 0]))
    assert right == 1, "classes neither there nor predicted are left out"


def test_codes_that_no_legend_has_are_named_with_the_file(made):
    mask = np.zeros((64, 96), np.uint8)
    mask[0, :7] = 9
    made.masks("b", mask)
    with pytest.raises(SourceError, match=r"b/exact\.tif: 7 of 6144 pixels hold values unknown to .*: 9 x 7; add them"):
        made.cut()
    with pytest.raises(ValueError, match="masks hold class ids 9; with 4 classes they are 0..3"):
        audit.compare(mask, mask, 4)


# ---- shapes and grids -----------------------------------------------------------------------------------------------
def test_images_of_one_pixel(made):
    for number, scene in enumerate("abcd"):
        made.scene(scene, number, (1, 1))
    data = made.cut(1)
    assert data.images.shape == (4, 2, 1, 1) and [int(m.sum()) for m in data.member.values()] == [2, 2, 1, 1]
    with pytest.raises(ValueError, match="no window of 32 pixels fits .* has 1 x 1 pixels; choose a smaller patch"):
        made.cut()
    one = np.zeros((1, 1), np.uint8)
    assert audit.compare(one, one, 4).rate == 0
    findings = audit.statistics_of([one, one + 1], [one, one], AUTOGEO)
    assert findings.confusion.rate == 0.5


def test_of_images_that_are_not_square_or_too_small_whole_windows_are_taken(made):
    made.scene("a", 7, (33, 97))
    made.scene("b", 8, (31, 400))  # smaller than a patch in one direction
    data = made.cut()
    assert (data.scenes == "a").sum() == 3 and not (data.scenes == "b").any()
    with rasterio.open(made.root / "a/image.tif") as raster:
        whole = raster.read()
    assert np.array_equal(data.images[data.scenes == "a"][2], whole[:, :32, 64:96])


def test_an_empty_file_is_named(made):
    for name in ("image.tif", "exact.tif", "noisy.tif"):
        path = made.root / "b" / name
        good = path.read_bytes()
        path.write_bytes(b"")
        with pytest.raises(SourceError, match=rf"b/{name}: cannot be read \(0 bytes\).*; fetch or write the file"):
            made.cut()
        path.write_bytes(good)
    assert len(made.cut())


def test_a_mask_in_another_crs_is_refused(made):
    made.masks("c", np.zeros((64, 96), np.uint8), crs="EPSG:32617")
    with pytest.raises(SourceError, match=r"c/exact\.tif: is in EPSG:32617, its image in EPSG:32618; warp it"):
        made.cut()


def test_an_image_from_south_to_north_keeps_its_rows_and_a_mask_the_other_way_is_refused(made):
    straight = made.cut()
    for number, scene in enumerate("abcd"):
        made.scene(scene, number, transform=SOUTH_UP)
    flipped = made.cut()
    for name in ("exact", "noisy"):
        assert np.array_equal(flipped.masks[name], straight.masks[name])
    assert np.array_equal(flipped.images, straight.images)
    made.masks("a", np.zeros((64, 96), np.uint8), transform=NORTH_UP)  # the same ground
    with pytest.raises(SourceError, match=r"a/exact\.tif: lies up to 64\.0 pixels off its image"):
        made.cut()


def test_a_product_is_laid_on_an_image_from_south_to_north_as_it_lies(made):
    """The mask of a flipped image is the flipped mask: rows follow the image, places follow the ground."""
    codes = np.random.default_rng(0).choice([10, 40, 80], (64, 96)).astype(np.uint8)
    write(made.root / "product.tif", codes[None])
    mapping = {name: "background" for name in legend.get("worldcover11").names} | {"tree cover": "tree"}
    made.card["noisy"] = {"from": "product", "file": "product.tif", "legend": "worldcover11", "to": "autogeo4",
                          "mapping": mapping}  # fmt: skip
    straight = labelling.noisy_mask(dataset := made.open(), dataset.tiles[0])
    made.scene("a", 0, transform=SOUTH_UP)
    assert np.array_equal(straight, np.where(codes == 10, 1, 0))
    assert np.array_equal(labelling.noisy_mask(made.open(), dataset.tiles[0]), straight[::-1])


# ---- one image in two splits ----------------------------------------------------------------------------------------
def twin(made: Made, of: str, name: str) -> None:
    """Another scene with the same image and other masks."""
    made.scene(name, 99)
    shutil.copy(made.root / of / "image.tif", made.root / name / "image.tif")


@pytest.mark.parametrize(
    ("of", "split", "told"),
    [
        ("d", {}, "pretrain, finetune"),
        ("c", {}, "pretrain, finetune"),
        ("d", {"validation": ["c", "e"]}, "validation"),
        ("d", {"pretrain": ["a", "e"], "finetune": ["b"]}, "pretrain"),
        ("d", {"pretrain": ["a"], "finetune": ["b", "e"]}, "finetune"),
    ],
)
def test_an_image_that_is_held_out_and_learned_from_under_another_name_is_refused(made, of, split, told):
    twin(made, of, "e")
    made.card["split"] |= split
    with pytest.raises(CardError, match=rf"card\.yaml: split: .*{of}/image\.tif .*the same image; put") as error:
        made.open()
    assert "e/image.tif" in str(error.value)
    assert f"({told})" in str(error.value)


@pytest.mark.parametrize(
    ("of", "split"),
    [("a", {}), ("a", {"pretrain": ["a", "b"], "finetune": ["b", "e"]}), ("d", {"test": ["d", "e"]}),
     ("d", {"pretrain": ["a"], "finetune": ["b"]})],
    ids=["same split", "neither held out", "both tests", "in no split"],
)  # fmt: skip
def test_images_may_repeat_where_nothing_leaks(made, of, split):
    twin(made, of, "e")
    made.card["split"] |= split
    assert len(made.open().tiles) == 5


def test_a_further_date_that_is_a_test_image_is_refused(made):
    for scene in "abcd":
        write(made.root / scene / "winter.tif", np.random.default_rng(ord(scene)).random((2, 64, 96), np.float32))
    made.card["images"]["dates"] = ["*/winter.tif"]
    assert len(made.open().tiles) == 4
    shutil.copy(made.root / "d/image.tif", made.root / "a/winter.tif")
    with pytest.raises(CardError, match=r"a/winter\.tif .*the same image"):
        made.open()


def test_files_of_one_size_are_opened_and_only_those_that_begin_alike_are_read(made, monkeypatch):
    hashed = []
    monkeypatch.setattr(sources.remote, "sha256_of", lambda path: hashed.append(path) or path.read_bytes())
    made.open()
    sizes = {path.stat().st_size for path in made.root.glob("*/image.tif")}
    assert len(sizes) == 1 and not hashed, "equal sizes, other beginnings"
    image = np.random.default_rng(0).random((2, 256, 96), np.float32)
    for number, scene in enumerate("abcd"):
        path = write(made.root / scene / "image.tif", image)
        path.write_bytes(path.read_bytes() + bytes([number]))  # the same for more than 64 KiB, then not
    made.open()
    assert len(hashed) == 4
