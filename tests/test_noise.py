"""Noise operators: the promises every one keeps, closed forms, and the rates asked and achieved."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nbutils import legend, noise
from nbutils.legend import VOID

K = 5
SHAPES = hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=24)
MASKS = hnp.arrays(np.uint8, SHAPES, elements=st.sampled_from([*range(K), VOID]))
MATRIX = noise.confusion_matrix(legend.get("dubai5"), 0.4)

OPERATORS = {
    "flip": lambda mask, rng: noise.flip_labels(mask, 0.5, K, rng=rng),
    "confuse": lambda mask, rng: noise.confuse_classes(mask, MATRIX, rng=rng),
    "confuse in patches": lambda mask, rng: noise.confuse_classes(mask, MATRIX, rng=rng, correlation_px=6),
    "shift": lambda mask, rng: noise.shift_mask(mask, 5, rng=rng),
    "move": lambda mask, rng: noise.move_boundaries(mask, 3, rng=rng),
    "omit": lambda mask, rng: noise.omit_objects(mask, 0.7, rng=rng),
} | {
    name: lambda mask, rng, recipe=recipe: recipe.apply(mask, legend.get("dubai5"), rng)
    for name, recipe in noise.RECIPES.items()
}

IDENTITIES = {
    "flip": lambda mask, rng: noise.flip_labels(mask, 0.0, K, rng=rng),
    "confuse": lambda mask, rng: noise.confuse_classes(mask, np.eye(K), rng=rng),
    "confuse in patches": lambda mask, rng: noise.confuse_classes(mask, np.eye(K), rng=rng, correlation_px=4),
    "shift": lambda mask, rng: noise.shift_mask(mask, 0, rng=rng),
    "move": lambda mask, rng: noise.move_boundaries(mask, 0, rng=rng),
    "omit": lambda mask, rng: noise.omit_objects(mask, 0, rng=rng),
} | {
    name: lambda mask, rng, recipe=recipe: recipe.apply(mask, K, rng, strength=0)
    for name, recipe in noise.RECIPES.items()
}


def blocks(n: int = 8, side: int = 16, k: int = K, seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(0, k, (n, n), dtype=np.uint8)
    return np.kron(ids, np.ones((side, side), np.uint8))


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@settings(max_examples=40, deadline=None)
@given(mask=MASKS, seed=st.integers(0, 2**32 - 1))
def test_every_operator_keeps_its_promises(operator, mask, seed):
    before = mask.copy()
    noisy, changed = operator(mask, np.random.default_rng(seed))
    assert np.array_equal(mask, before), "the input is left alone"
    assert noisy.shape == changed.shape == mask.shape and noisy.dtype == np.uint8 and changed.dtype == bool
    assert np.array_equal(noisy == VOID, mask == VOID), "void neither moves nor spreads"
    assert set(np.unique(noisy)) <= {*range(K), VOID}, "legal classes only"
    assert np.array_equal(changed, noisy != mask)
    again, _ = operator(mask, np.random.default_rng(seed))
    assert np.array_equal(noisy, again), "the same seed gives the same noise"


@pytest.mark.parametrize("operator", IDENTITIES.values(), ids=IDENTITIES)
@settings(max_examples=25, deadline=None)
@given(mask=MASKS)
def test_strength_zero_changes_nothing(operator, mask):
    noisy, changed = operator(mask, np.random.default_rng(1))
    assert np.array_equal(noisy, mask) and not changed.any()


@pytest.mark.parametrize("name", ["shift", "move", "omit"])
@settings(max_examples=25, deadline=None)
@given(mask=MASKS)
def test_geometric_operators_never_bring_a_new_class(name, mask):
    noisy, _ = OPERATORS[name](mask, np.random.default_rng(2))
    images = [(mask, noisy)] if mask.ndim == 2 else zip(mask, noisy, strict=True)
    assert all(set(np.unique(b)) <= set(np.unique(a)) for a, b in images)


@pytest.mark.parametrize("name", ["flip", "confuse in patches", "shift", "move"])
def test_images_of_a_stack_are_broken_independently(name):
    noisy, changed = OPERATORS[name](np.stack([blocks()] * 3), np.random.default_rng(3))
    assert changed.any() and not np.array_equal(noisy[0], noisy[1]) and not np.array_equal(noisy[1], noisy[2])


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3, 0.9, 1.0])
def test_flips_achieve_the_rate_asked_and_choose_evenly(rate):
    mask = np.random.default_rng(0).integers(0, K, (400, 500), dtype=np.uint8)
    mask[:40] = VOID
    noisy, changed = noise.flip_labels(mask, rate, K, rng=np.random.default_rng(1))
    done = noise.report(mask, noisy, rate)
    assert done.valid == 180_000 and done.changed == changed.sum()
    assert abs(done.achieved - rate) <= 5 * np.sqrt(rate * (1 - rate) / done.valid)
    if rate:
        steps = (noisy[changed].astype(int) - mask[changed]) % K
        assert np.allclose(np.bincount(steps, minlength=K) / changed.sum(), [0, *[1 / (K - 1)] * (K - 1)], atol=0.02)


def test_flipping_two_classes_entirely_swaps_them():
    mask = np.array([[0, 1, VOID]], np.uint8)
    assert noise.flip_labels(mask, 1.0, 2, rng=np.random.default_rng(0))[0].tolist() == [[1, 0, VOID]]


@pytest.mark.parametrize("correlation_px", [0, 3])
def test_confusion_follows_the_matrix(correlation_px):
    matrix = np.array([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.1, 0.2, 0.7]])
    mask = np.random.default_rng(0).integers(0, 3, (20, 200, 200), dtype=np.uint8)
    noisy, _ = noise.confuse_classes(mask, matrix, rng=np.random.default_rng(1), correlation_px=correlation_px)
    found = np.array([np.bincount(noisy[mask == i], minlength=3) / (mask == i).sum() for i in range(3)])
    assert np.allclose(found, matrix, atol=0.02)
    assert (found[matrix == 0] == 0).all(), "what the matrix excludes never happens"


def test_confusion_in_patches_is_correlated_and_single_pixels_are_not():
    mask = np.zeros((300, 300), np.uint8)
    agreement = []
    for correlation_px in (0, 12):
        _, changed = noise.confuse_classes(
            mask, np.array([[0.8, 0.2], [0, 1]]), rng=np.random.default_rng(0), correlation_px=correlation_px
        )
        agreement.append(np.corrcoef(changed[:, 1:].ravel(), changed[:, :-1].ravel())[0, 1])
    assert abs(agreement[0]) < 0.02 and agreement[1] > 0.7


def test_smooth_field_has_unit_variance_everywhere_and_the_length_asked():
    rng = np.random.default_rng(0)
    fields = np.stack([noise.smooth_field((60, 80), 10, rng) for _ in range(800)])
    assert abs(fields.mean()) < 0.03 and np.allclose(fields.std(axis=0), 1, atol=0.15)
    assert abs(fields.var() - 1) < 0.03
    at_length = (fields[:, :, 10:] * fields[:, :, :-10]).mean()
    assert abs(at_length - np.exp(-1)) < 0.06


def test_shift_moves_the_whole_mask_and_replicates_the_edge():
    mask = np.arange(100, dtype=np.uint8).reshape(10, 10)
    lengths = set()
    for seed in range(60):
        noisy, _ = noise.shift_mask(mask, 3, rng=np.random.default_rng(seed))
        hits = [
            (dy, dx)
            for dy in range(-3, 4)
            for dx in range(-3, 4)
            if np.array_equal(noisy, np.pad(mask, 3, mode="edge")[3 - dy : 13 - dy, 3 - dx : 13 - dx])
        ]
        assert len(hits) == 1 and np.hypot(*hits[0]) <= 3 + np.sqrt(0.5)
        lengths.add(hits[0])
    assert len(lengths) > 15


def test_moved_boundaries_stray_by_the_distance_asked():
    mask = np.zeros((600, 600), np.uint8)
    mask[:, 300:] = 1
    noisy, changed = noise.move_boundaries(mask, 6, rng=np.random.default_rng(0))
    columns = np.flatnonzero(changed.any(axis=0))
    assert 300 - 5 * 6 <= columns.min() < columns.max() < 300 + 5 * 6
    width = (noisy == 0).sum(axis=1) - 300  # where the boundary of each row went
    assert 3 < width.std() < 9 and width.min() < 0 < width.max(), "erosion here, dilation there"


def test_omitted_objects_vanish_whole_into_their_surroundings():
    mask = np.ones((40, 40), np.uint8)
    mask[5:9, 5:9] = 0  # inside class 1
    mask[20:, :] = 2
    mask[30:34, 30:34] = 0  # inside class 2
    noisy, changed = noise.omit_objects(mask, 1.0, [0], rng=np.random.default_rng(0))
    assert (noisy[5:9, 5:9] == 1).all() and (noisy[30:34, 30:34] == 2).all() and changed.sum() == 32


def test_omission_takes_objects_at_the_rate_asked_and_spares_large_ones():
    mask = np.ones((300, 300), np.uint8)
    for i in range(0, 300, 6):
        for j in range(0, 300, 6):
            mask[i : i + 3, j : j + 3] = 0
    noisy, _ = noise.omit_objects(mask, 0.3, [0], rng=np.random.default_rng(0))
    gone = (noisy[::6, ::6] == 1).mean()
    assert abs(gone - 0.3) < 0.05
    kept, _ = noise.omit_objects(mask, 1.0, rng=np.random.default_rng(0), max_share=8 / mask.size)
    assert np.array_equal(kept, mask), "nine pixels are more than the largest share"


def test_an_object_without_surroundings_stays():
    alone = np.full((8, 8), VOID, np.uint8)
    alone[2:5, 2:5] = 3
    for mask in (alone, np.zeros((8, 8), np.uint8)):
        assert np.array_equal(noise.omit_objects(mask, 1.0, rng=np.random.default_rng(0))[0], mask)


@pytest.mark.parametrize("target", [*legend.LEGENDS, 2, 7])
@pytest.mark.parametrize("rate", [0, 0.25, 1])
def test_confusion_matrices_are_stochastic(target, rate):
    matrix = noise.confusion_matrix(target if isinstance(target, int) else legend.get(target), rate)
    assert (matrix >= 0).all() and np.allclose(matrix.sum(axis=1), 1) and np.allclose(np.diagonal(matrix), 1 - rate)


def test_confused_pairs_are_classes_of_shipped_legends():
    names = [set(one.names) for one in legend.LEGENDS.values()]
    assert all(any({a, b} <= known for known in names) for a, b, _ in noise.CONFUSED_PAIRS)


def test_recipes_get_worse_with_strength():
    mask = blocks(12, 20)
    for recipe in noise.RECIPES.values():
        rates = [
            np.mean([recipe.apply(mask, K, np.random.default_rng(s), strength)[1].mean() for s in range(8)])
            for strength in (0, 0.5, 1, 2)
        ]
        assert rates == sorted(rates) and rates[0] == 0 and rates[-1] > rates[1] > 0.01, (recipe.name, rates)


@pytest.mark.parametrize("recipe", noise.RECIPES.values(), ids=noise.RECIPES)
def test_a_recipe_is_tuned_to_a_rate(recipe):
    masks = [blocks(12, 12, seed=1), blocks(8, 20, seed=2)]
    masks[0][:20] = VOID
    strength = recipe.strength_for(masks, K, 0.15)
    done = [noise.report(m, recipe.apply(m, K, np.random.default_rng(0), strength)[0]) for m in masks]
    assert abs(sum(d.changed for d in done) / sum(d.valid for d in done) - 0.15) < 0.03
    assert recipe.strength_for(masks, K, 0) < 0.01
    with pytest.raises(ValueError, match=f"recipe '{recipe.name}' changes at most .* asked for 100.0%"):
        recipe.strength_for([np.zeros((20, 20), np.uint8), *masks], K, 1.0)


def test_report_counts_valid_pixels_only():
    mask, noisy = np.array([[0, 1, VOID, 2]], np.uint8), np.array([[0, 2, 1, VOID]], np.uint8)
    done = noise.report(mask, noisy, asked=0.4)
    assert (done.changed, done.valid, done.achieved) == (1, 2, 0.5)
    assert str(done) == "asked 40.0%, achieved 50.0% (1 of 2 valid pixels)"
    assert np.isnan(noise.report(np.full((2, 2), VOID, np.uint8), np.zeros((2, 2), np.uint8)).achieved)
    with pytest.raises(ValueError, match="differ in shape"):
        noise.report(mask, noisy[:, :2])


MASK = np.zeros((4, 4), np.uint8)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: noise.flip_labels(MASK, 30, 2, rng=RNG), ValueError, r"fraction in \[0, 1\], got 30"),
        (lambda: noise.flip_labels(MASK, float("nan"), 2, rng=RNG), ValueError, "got nan"),
        (lambda: noise.flip_labels(MASK, 0.3, 1, rng=RNG), ValueError, r"n_classes is 2..254, got 1"),
        (lambda: noise.flip_labels(MASK + 7, 0.3, 5, rng=RNG), ValueError, "class ids 7; with 5 classes"),
        (lambda: noise.flip_labels(MASK.astype(int), 0.3, 5, rng=RNG), TypeError, "uint8 array, got int64"),
        (lambda: noise.flip_labels(MASK[0], 0.3, 5, rng=RNG), ValueError, r"\(H, W\) or \(N, H, W\), got shape"),
        (lambda: noise.confuse_classes(MASK, np.ones((2, 3)), rng=RNG), ValueError, r"matrix is \(K, K\)"),
        (lambda: noise.confuse_classes(MASK, np.ones((2, 2)), rng=RNG), ValueError, "sum to 1; rows sum to"),
        (lambda: noise.shift_mask(MASK, -1, rng=RNG), ValueError, "max_px is a number of pixels >= 0, got -1"),
        (lambda: noise.move_boundaries(MASK, np.inf, rng=RNG), ValueError, "distance_px"),
        (lambda: noise.omit_objects(MASK, 1.5, rng=RNG), ValueError, "got 1.5"),
        (lambda: noise.omit_objects(MASK, 0.5, [-1], rng=RNG), ValueError, r"ids 0..254, got \[-1\]"),
        (lambda: noise.omit_objects(MASK, 0.5, rng=RNG, max_share=2), ValueError, "max_share"),
        (lambda: noise.RECIPES["map-like"].apply(MASK, 5, RNG, -1), ValueError, "strength is a factor >= 0, got -1"),
        (lambda: noise.RECIPES["map-like"].apply(MASK + 9, 5, RNG), ValueError, "class ids 9"),
        (lambda: noise.Recipe("x", "", (("flop", {}),)), ValueError, "unknown step.*flop.*omit, shift, move"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
