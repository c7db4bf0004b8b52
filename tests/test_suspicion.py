"""Suspicion: planted errors rank first, void never does, planted shifts come back; folds never see their own scene."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from toy import toy_patches

from nbutils import ROOT, folds, sources, training
from nbutils.audit import suspicion
from nbutils.legend import VOID

K = 4
DUBAI = ROOT / "../shared/data/dubai"


def _blocks(rng: np.random.Generator, n: int, size: int = 32) -> np.ndarray:
    return np.kron(rng.integers(0, K, (n, 4, 4)), np.ones((size // 4, size // 4))).astype(np.uint8)


def _believed(rng: np.random.Generator, truth: np.ndarray, sure: float = 2.5) -> np.ndarray:
    """Probabilities of a network that mostly knows the truth, surer here and there than elsewhere."""
    logits = rng.normal(size=(len(truth), K, *truth.shape[1:]))
    logits += sure * (np.arange(K)[:, None, None] == truth[:, None])
    chances = np.exp(logits)
    return chances / chances.sum(axis=1, keepdims=True)


def test_planted_pixels_and_patches_rank_first_and_void_never():
    rng = np.random.default_rng(0)
    truth = _blocks(rng, 40)
    chances = _believed(rng, truth)
    bad_patch = np.arange(40) < 8
    wrong = rng.random(truth.shape) < np.where(bad_patch, 0.3, 0.01)[:, None, None]
    noisy = np.where(wrong, (truth + rng.integers(1, K, truth.shape)) % K, truth).astype(np.uint8)
    noisy[:, :, :5] = VOID
    noisy[12] = VOID
    found = suspicion.rank(chances.astype(np.float16), noisy)
    valid = noisy != VOID
    assert np.isnan(found.quality[~valid]).all() and not np.isnan(found.quality[valid]).any()
    assert not found.suspected[~valid].any() and np.isnan(found.score[12]) and 12 not in found.order
    assert roc_auc_score(wrong[valid], -found.quality[valid]) > 0.95
    kept = np.arange(40) != 12
    assert roc_auc_score(bad_patch[kept], -found.score[kept]) > 0.99 and set(found.order[:8]) == set(range(8))
    rate = found.suspected.sum() / valid.sum()
    assert 0.5 * wrong[valid].mean() < rate < 1.5 * wrong[valid].mean()
    assert wrong[found.suspected].mean() > 0.6
    worst = found.pixels(100)
    values = found.quality[tuple(worst.T)]
    assert (np.diff(values) >= 0).all() and values.max() <= np.nanquantile(found.quality, 0.02)
    assert valid[tuple(worst.T)].all() and wrong[tuple(worst.T)].mean() > 0.8
    table = found.table()
    assert len(table) == 39 and table["score"].is_monotonic_increasing and table.loc[0, "n"] == 32 * 27


def test_without_void_it_is_what_cleanlab_says_of_whole_images():
    from cleanlab.segmentation.filter import find_label_issues
    from cleanlab.segmentation.rank import get_label_quality_scores

    rng = np.random.default_rng(1)
    truth = _blocks(rng, 6)
    chances = _believed(rng, truth, sure=1.5)
    noisy = np.where(rng.random(truth.shape) < 0.1, rng.integers(0, K, truth.shape), truth).astype(np.uint8)
    found = suspicion.rank(chances, noisy)
    score, quality = get_label_quality_scores(noisy.astype(int), chances, verbose=False)
    assert found.score == pytest.approx(score) and found.quality == pytest.approx(quality, abs=1e-6)
    said = find_label_issues(noisy.astype(int), chances, downsample=1, n_jobs=1, verbose=False)
    assert (said != found.suspected).mean() < 0.001  # equal qualities may be ordered otherwise


@settings(max_examples=20)
@given(st.integers(0, 99), st.floats(0.0, 0.9))
def test_void_changes_nothing_for_the_pixels_that_stay(seed, share):
    rng = np.random.default_rng(seed)
    noisy, chances = _blocks(rng, 3, 8), _believed(rng, _blocks(rng, 3, 8))
    hole = rng.random(noisy.shape) < share
    chances_with_rubbish = np.where(hole[:, None], 0.25, chances)
    holed = np.where(hole, VOID, noisy).astype(np.uint8)
    whole, part = suspicion.rank(chances, noisy), suspicion.rank(chances_with_rubbish, holed)
    assert np.array_equal(part.quality[~hole], whole.quality[~hole])
    valid = ~hole.all(axis=(1, 2))
    weight = [np.exp((1 - whole.quality[i][~hole[i]].astype(float)) / 0.1) for i in np.flatnonzero(valid)]
    soft = [w @ whole.quality[i][~hole[i]] / w.sum() for w, i in zip(weight, np.flatnonzero(valid), strict=True)]
    assert part.score[valid] == pytest.approx(soft, rel=1e-4)  # the soft minimum, over valid pixels only


def test_all_void_ranks_nothing():
    found = suspicion.rank(np.full((2, K, 4, 4), 0.25), np.full((2, 4, 4), VOID, np.uint8))
    assert len(found.order) == 0 and len(found.pixels(5)) == 0 and found.table().empty


def test_ranking_refuses_what_is_no_probability():
    noisy = np.zeros((1, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="patch 0: probabilities sum to .* use softmax"):
        suspicion.rank(np.ones((1, 2, 4, 4)), noisy)
    with pytest.raises(ValueError, match=r"patch 0 holds class 3; probabilities are of 0..1"):
        suspicion.rank(np.full((1, 2, 4, 4), 0.5), noisy + 3)
    with pytest.raises(ValueError, match=r"are of masks \(1, 4, 4\), got \(1, 4, 5\)"):
        suspicion.rank(np.full((1, 2, 4, 4), 0.5), np.zeros((1, 4, 5), np.uint8))


def test_ranges_are_checked_and_the_suspected_share_is_of_valid_pixels():
    rng = np.random.default_rng(0)
    noisy, chances = _blocks(rng, 3, 8), _believed(rng, _blocks(rng, 3, 8))
    noisy[:, :4] = VOID
    found = suspicion.rank(chances, noisy)
    assert found.suspected.any() and found.suspected_share == found.suspected.sum() / (3 * 4 * 8)
    assert np.isnan(suspicion.rank(chances, np.full_like(noisy, VOID)).suspected_share)
    with pytest.raises(ValueError, match="n is a number of pixels >= 0, got -1"):
        found.pixels(-1)
    for wrong in (0, -1, np.nan):
        with pytest.raises(ValueError, match="temperature is above 0"):
            suspicion.rank(chances, noisy, temperature=wrong)
    chances[1, :2] += np.array([-2.0, 2])[:, None, None]  # sums to 1 still
    with pytest.raises(ValueError, match="patch 1: probabilities are at least -"):
        suspicion.rank(chances, noisy)


def test_shifts_need_a_reach_and_finite_pixels():
    image, half = np.random.default_rng(0).normal(size=(2, 40, 40)), np.zeros((40, 40), np.uint8)
    half[:, 20:] = 1
    with pytest.raises(ValueError, match="max_px is at least 1, got 0"):
        suspicion.label_shift([image], [half], max_px=0, rng=np.random.default_rng(0))
    hole = image.copy()
    hole[0, :2, :2] = np.nan
    with pytest.raises(ValueError, match="image 1: 4 values are not finite"):
        suspicion.label_shift([image, hole], [half, half], rng=np.random.default_rng(0))


FINE, PAD, SIZE = 8, 10, 64  # scenes are drawn at an eighth of a pixel


def _scene(rng: np.random.Generator) -> np.ndarray:
    """Turned rectangles and discs of three classes on a fourth."""
    side = (SIZE + 2 * PAD) * FINE
    scene = np.zeros((side, side), np.uint8)
    rows, columns = np.indices(scene.shape, dtype=np.float32)
    for _ in range(14):
        (row, column), angle, half = rng.uniform(0, side, 2), rng.uniform(0, np.pi), rng.uniform(16, 56, 2)
        along = (rows - row) * np.cos(angle) + (columns - column) * np.sin(angle)
        across = (columns - column) * np.cos(angle) - (rows - row) * np.sin(angle)
        kind = rng.integers(1, K)
        inside = (abs(along) < half[0]) & (abs(across) < half[1]) if kind < 3 else np.hypot(along, across) < half[0]
        scene[inside] = kind
    return scene


def _blocked(fine: np.ndarray) -> np.ndarray:
    n = SIZE + 2 * PAD
    return fine.reshape(n, FINE, n, FINE)[PAD:-PAD, :, PAD:-PAD]


def _image(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Four bands of random colours, averaged over the pixel, with texture and noise."""
    bands = np.stack([_blocked(rng.uniform(0, 255, K)[scene]).mean(axis=(1, 3)) for _ in range(4)])
    texture = ndimage.gaussian_filter(rng.normal(size=bands.shape), (0, 1, 1)) * 30
    return bands + texture + rng.normal(0, 12, bands.shape)


def _mask(scene: np.ndarray, shift_px: np.ndarray) -> np.ndarray:
    moved = np.roll(scene, np.rint(shift_px * FINE).astype(int), axis=(0, 1))
    return np.stack([_blocked(moved == k).sum(axis=(1, 3)) for k in range(K)]).argmax(axis=0).astype(np.uint8)


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    made = [_scene(rng) for _ in range(16)]
    return [(scene, _image(scene, rng)) for scene in made]


def test_planted_shifts_come_back_to_a_quarter_of_a_pixel(scenes, capsys):
    rng, wrong, covered = np.random.default_rng(1), [], []
    for _ in range(20):
        shift = np.rint(rng.uniform(-6, 6, 2) * FINE) / FINE
        chosen = rng.choice(len(scenes), 8, replace=False)
        masks = np.stack([_mask(scenes[i][0], shift) for i in chosen])
        masks[:, :6, :20] = VOID
        found = suspicion.label_shift([scenes[i][1] for i in chosen], masks, rng=rng)
        wrong.append(np.subtract(found.shift_px, shift))
        covered.append((found.low <= shift) & (shift <= found.high))
        assert found.means_something and found.strength > 2 and found.n == 8
    with capsys.disabled():
        print(f"\nshift: worst error {np.abs(wrong).max():.3f} px, 95 % limits cover {np.mean(covered):.2f}")
    assert np.abs(wrong).max() < 0.25 and np.mean(covered) > 0.85
    assert abs(np.mean(wrong)) < 0.05


def test_masks_of_other_scenes_mean_nothing(scenes):
    rng = np.random.default_rng(2)
    believed = []
    for _ in range(15):
        chosen = rng.choice(len(scenes), 8, replace=False)
        masks = [_mask(scenes[i][0], np.zeros(2)) for i in np.roll(chosen, 1)]
        believed.append(suspicion.label_shift([scenes[i][1] for i in chosen], masks, rng=rng).means_something)
    assert sum(believed) <= 1


def test_a_shift_beyond_reach_is_not_believed(scenes):
    images, masks = [image for _, image in scenes[:8]], [_mask(scene, np.array([7.0, 0.0])) for scene, _ in scenes[:8]]
    assert not suspicion.label_shift(images, masks, max_px=4, rng=np.random.default_rng(0)).means_something
    assert suspicion.label_shift(images, masks, max_px=10, rng=np.random.default_rng(0)).means_something


def test_nothing_to_go_by_is_nan_and_faults_are_named():
    rng, image = np.random.default_rng(0), np.zeros((2, 40, 40))
    for mask in (np.zeros((40, 40), np.uint8), np.full((40, 40), VOID, np.uint8)):
        found = suspicion.label_shift([image], [mask], rng=rng)
        assert np.isnan(found.shift_px).all() and found.n == 0 and not found.means_something
    half = np.zeros((40, 40), np.uint8)
    half[:, 20:] = 1
    flat = suspicion.label_shift([image], [half], rng=rng)  # an image without edges
    assert flat.peak == 0 and not flat.means_something and np.isnan(flat.low).all()
    with pytest.raises(ValueError, match=r"image 0: expected \(B, 40, 40\)"):
        suspicion.label_shift([image[:, :39]], [half], rng=rng)
    with pytest.raises(ValueError, match="too small for shifts up to 12 px"):
        suspicion.label_shift([image], [half], max_px=12, rng=rng)
    with pytest.raises(ValueError, match="1 images but 2 masks"):
        suspicion.label_shift([image], [half, half], rng=rng)


@pytest.mark.skipif(not DUBAI.is_dir(), reason=f"the Dubai images are not at {DUBAI}; see data/README.md")
def test_real_masks_that_are_moved_are_found_moved():
    dataset = sources.read_dataset("data/datasets/dubai.yaml")
    tiles = [tile for tile in dataset.tiles if tile.scene == "6"][:6]
    images = [dataset.read_image(tile)[0][:, :320, :320] for tile in tiles]
    masks = [sources.read_exact(dataset, tile)[:320, :320] for tile in tiles]
    found = suspicion.label_shift(images, masks, rng=np.random.default_rng(0))
    assert found.means_something and np.abs(found.shift_px).max() < 1
    moved = [np.roll(mask, (3, -2), axis=(0, 1)) for mask in masks]
    for mask in moved:
        mask[:3], mask[:, -2:] = VOID, VOID
    again = suspicion.label_shift(images, moved, rng=np.random.default_rng(0))
    assert np.subtract(again.shift_px, found.shift_px) == pytest.approx([3, -2], abs=0.25)


PLAN = training.Plan(steps=3, batch_size=4, learning_rate=1e-3, precision="fp32", seed=0)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(2, 6), st.integers(0, 9))
def test_folds_keep_scenes_whole_and_are_about_as_large(sizes, k, seed):
    names = np.repeat([f"scene-{i}" for i in range(len(sizes))], sizes)
    if k > len(sizes):
        with pytest.raises(ValueError, match=f"k is 2..{len(sizes)}"):
            folds.by_scene(names, k, rng=np.random.default_rng(seed))
        return
    fold = folds.by_scene(names, k, rng=np.random.default_rng(seed))
    assert all(len(set(fold[names == name])) == 1 for name in set(names))
    load = np.bincount(fold, minlength=k)
    assert load.min() > 0 and load.max() - load.min() <= max(sizes)


def test_out_of_fold_probabilities_are_of_every_patch_and_repeat():
    data = toy_patches(20)
    done = []
    first = folds.out_of_fold(data, 3, PLAN, "tu-test_resnet", progress=done.append)
    assert first.shape == (20, len(data.noisy_legend), 32, 32) and first.dtype == np.float16 and done == [0, 1, 2]
    assert first.astype(float).sum(axis=1) == pytest.approx(1, abs=5e-3)
    again = folds.out_of_fold(data, 3, PLAN, "tu-test_resnet", out=np.zeros_like(first))
    assert np.array_equal(first, again)
    with pytest.raises(ValueError, match="out is of shape"):
        folds.out_of_fold(data, 3, PLAN, "tu-test_resnet", out=first[:5])
    suspicion.rank(first, data.masks["noisy"])


def test_a_patch_is_judged_by_a_network_that_never_saw_its_scene():
    """Changing the labels of one fold's scenes changes nothing in what is predicted for them."""
    data = toy_patches(20)
    fold = folds.by_scene(data.scenes, 2, rng=np.random.default_rng(PLAN.seed))
    other = data.masks["noisy"].copy()
    other[fold == 0] = (other[fold == 0] + 1) % 4
    changed = replace(data, masks={**data.masks, "noisy": other})
    before, after = (folds.out_of_fold(one, 2, PLAN, "tu-test_resnet") for one in (data, changed))
    assert np.array_equal(before[fold == 0], after[fold == 0])
    assert not np.array_equal(before[fold == 1], after[fold == 1])


def test_labels_that_were_planted_wrong_are_found_end_to_end():
    data = toy_patches(40)
    rng = np.random.default_rng(0)
    bad = rng.random(40) < 0.2
    noisy = data.masks["noisy"].copy()
    planted = bad[:, None, None] & (noisy != VOID) & (np.kron(rng.random((40, 4, 4)) < 0.4, np.ones((8, 8))) > 0)
    noisy[planted] = (noisy[planted] + 1) % 4
    plan = training.Plan(steps=40, batch_size=8, learning_rate=5e-3, precision="fp32", seed=0)
    chances = folds.out_of_fold(replace(data, masks={**data.masks, "noisy": noisy}), 2, plan, "tu-test_resnet")
    found = suspicion.rank(chances, noisy)
    valid = noisy != VOID
    assert roc_auc_score(planted[valid], -found.quality[valid]) > 0.8
