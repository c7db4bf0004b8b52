"""Noise operators: the promises every one keeps, closed forms, and the rates asked and achieved."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.interpolate import BSpline

from nbutils import legend, noise
from nbutils.legend import VOID
from nbutils.noise import fields, pixels

K = 5
SHAPES = hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=24)
MASKS = hnp.arrays(np.uint8, SHAPES, elements=st.sampled_from([*range(K), VOID]))
MAP_LIKE = noise.RECIPES["map-like"]
MATRIX = noise.confusion_matrix(legend.get("dubai5"), 0.4)

OPERATORS = {
    "flip": lambda mask, rng: noise.flip_labels(mask, 0.5, K, rng=rng),
    "confuse": lambda mask, rng: noise.confuse_classes(mask, MATRIX, rng=rng),
    "confuse in patches": lambda mask, rng: noise.confuse_classes(mask, MATRIX, rng=rng, correlation_px=6),
    "confuse at edges": lambda mask, rng: noise.confuse_classes(mask, MATRIX, rng=rng, edge_px=2),
    "shift": lambda mask, rng: noise.shift_mask(mask, 5, rng=rng),
    "rotate": lambda mask, rng: noise.rotate_mask(mask, 20, rng=rng),
    "move": lambda mask, rng: noise.move_boundaries(mask, 3, rng=rng),
    "resize": lambda mask, rng: noise.resize_classes(mask, {0: 1.5, 1: -2, 3: 1}, rng=rng),
    "simplify": lambda mask, rng: noise.simplify_outlines(mask, 3, rng=rng, gsd_m=1.5),
    "coarsen": lambda mask, rng: noise.coarsen(mask, 3.3, rng=rng, least_px=30),
    "omit": lambda mask, rng: noise.omit_objects(mask, 0.7, rng=rng),
    "add": lambda mask, rng: noise.add_objects(mask, 0.7, rng=rng, max_share=0.5),
    "add others": lambda mask, rng: noise.add_objects(mask, 0.7, rng=rng, source=blocks(4, 5), max_share=0.5),
    "shift objects": lambda mask, rng: noise.shift_objects(mask, 4.5, 0.8, rng=rng, max_share=0.5),
    "rotate objects": lambda mask, rng: noise.rotate_objects(mask, 60, rng=rng, max_share=0.5),
    "age": lambda mask, rng: noise.age_map(mask, 0.7, rng=rng, max_share=0.5),
    "age to earlier": lambda mask, rng: noise.age_map(mask, 0.7, rng=rng, earlier=mask[..., ::-1].copy()),
}

RECIPES = {
    name: lambda mask, rng, recipe=recipe: recipe.apply(mask, legend.get("dubai5"), rng)
    for name, recipe in noise.RECIPES.items()
} | {
    "to a rate": lambda mask, rng: MAP_LIKE.apply(mask, K, rng, rate=(0.0, 0.6), gsd_m=0.5),
    "two recipes": lambda mask, rng: (MAP_LIKE + noise.RECIPES["lidar-like"]).apply(mask, K, rng),
}

IDENTITIES = (
    {
        "flip": lambda mask, rng: noise.flip_labels(mask, 0.0, K, rng=rng),
        "confuse": lambda mask, rng: noise.confuse_classes(mask, np.eye(K), rng=rng),
        "confuse in patches": lambda mask, rng: noise.confuse_classes(mask, np.eye(K), rng=rng, correlation_px=4),
        "shift": lambda mask, rng: noise.shift_mask(mask, 0, rng=rng),
        "no vector": lambda mask, rng: noise.shift_mask(mask, rng=rng, vector_px=(0.0, 0.0)),
        "rotate": lambda mask, rng: noise.rotate_mask(mask, 0, rng=rng),
        "move": lambda mask, rng: noise.move_boundaries(mask, 0, rng=rng),
        "resize": lambda mask, rng: noise.resize_classes(mask, {1: 0.0}, rng=rng),
        "resize all": lambda mask, rng: noise.resize_classes(mask, dict.fromkeys(range(K), 2.5), rng=rng),
        "simplify": lambda mask, rng: noise.simplify_outlines(mask, 0, rng=rng),
        "coarsen": lambda mask, rng: noise.coarsen(mask, 1, rng=rng),
        "omit": lambda mask, rng: noise.omit_objects(mask, 0, rng=rng),
        "add": lambda mask, rng: noise.add_objects(mask, 0, rng=rng),
        "shift objects": lambda mask, rng: noise.shift_objects(mask, 0, rng=rng),
        "shift no objects": lambda mask, rng: noise.shift_objects(mask, 5, 0, rng=rng),
        "rotate objects": lambda mask, rng: noise.rotate_objects(mask, 0, rng=rng),
        "age": lambda mask, rng: noise.age_map(mask, 0, rng=rng),
        "no change since": lambda mask, rng: noise.age_map(mask, 1, rng=rng, earlier=mask),
    }
    | {
        name: lambda mask, rng, recipe=recipe: recipe.apply(mask, K, rng, strength=0)
        for name, recipe in noise.RECIPES.items()
    }
    | {
        f"{name} to 0": lambda mask, rng, recipe=recipe: recipe.apply(mask, K, rng, rate=0)
        for name, recipe in noise.RECIPES.items()
    }
)


def blocks(n: int = 8, side: int = 16, k: int = K, seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(0, k, (n, n), dtype=np.uint8)
    return np.kron(ids, np.ones((side, side), np.uint8))


def keeps_its_promises(operator, mask, seed):
    before = mask.copy()
    noisy, changed = operator(mask, np.random.default_rng(seed))
    assert np.array_equal(mask, before), "the input is left alone"
    assert noisy.shape == changed.shape == mask.shape and noisy.dtype == np.uint8 and changed.dtype == bool
    assert np.array_equal(noisy == VOID, mask == VOID), "void neither moves nor spreads"
    assert set(np.unique(noisy)) <= {*range(K), VOID}, "legal classes only"
    assert np.array_equal(changed, noisy != mask)
    again, _ = operator(mask, np.random.default_rng(seed))
    assert np.array_equal(noisy, again), "the same seed gives the same noise"


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@settings(max_examples=40, deadline=None)
@given(mask=MASKS, seed=st.integers(0, 2**32 - 1))
def test_every_operator_keeps_its_promises(operator, mask, seed):
    keeps_its_promises(operator, mask, seed)


@pytest.mark.parametrize("operator", RECIPES.values(), ids=RECIPES)
@settings(max_examples=8, deadline=None)
@given(mask=MASKS, seed=st.integers(0, 2**32 - 1))
def test_every_recipe_keeps_its_promises(operator, mask, seed):
    keeps_its_promises(operator, mask, seed)


@pytest.mark.parametrize("operator", IDENTITIES.values(), ids=IDENTITIES)
@settings(max_examples=15, deadline=None)
@given(mask=MASKS)
def test_strength_zero_changes_nothing(operator, mask):
    noisy, changed = operator(mask, np.random.default_rng(1))
    assert np.array_equal(noisy, mask) and not changed.any()


GEOMETRIC = ("shift", "rotate", "move", "resize", "simplify", "coarsen", "omit", "add", "shift objects", "age")


@pytest.mark.parametrize("name", GEOMETRIC)
@settings(max_examples=20, deadline=None)
@given(mask=MASKS)
def test_geometric_operators_never_bring_a_new_class(name, mask):
    noisy, _ = OPERATORS[name](mask, np.random.default_rng(2))
    images = [(mask, noisy)] if mask.ndim == 2 else zip(mask, noisy, strict=True)
    assert all(set(np.unique(b)) <= set(np.unique(a)) for a, b in images)


@pytest.mark.parametrize("name", ["flip", "confuse in patches", "shift", "rotate", "move", "omit", "add", "to a rate"])
def test_images_of_a_stack_are_broken_independently(name):
    noisy, changed = (OPERATORS | RECIPES)[name](np.stack([blocks()] * 3), np.random.default_rng(3))
    assert changed.any() and not np.array_equal(noisy[0], noisy[1]) and not np.array_equal(noisy[1], noisy[2])


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3, 0.9, 1.0])
def test_flips_achieve_the_rate_asked_and_choose_evenly(rate):
    mask = np.random.default_rng(0).integers(0, K, (400, 500), dtype=np.uint8)
    mask[:40] = VOID
    noisy, changed = noise.flip_labels(mask, rate, K, rng=np.random.default_rng(1))
    done = noise.report(mask, noisy, rate)
    assert done.valid == 180_000 and done.changed == changed.sum()
    assert abs(done.changed - rate * done.valid) < 1, "exact to the pixel"
    if rate:
        steps = (noisy[changed].astype(int) - mask[changed]) % K
        assert np.allclose(np.bincount(steps, minlength=K) / changed.sum(), [0, *[1 / (K - 1)] * (K - 1)], atol=0.02)


def test_flipping_two_classes_entirely_swaps_them():
    mask = np.array([[0, 1, VOID]], np.uint8)
    assert noise.flip_labels(mask, 1.0, 2, rng=np.random.default_rng(0))[0].tolist() == [[1, 0, VOID]]


@pytest.mark.parametrize("correlation_px", [0, 3, 40])
@settings(max_examples=30, deadline=None)
@given(mask=MASKS, seed=st.integers(0, 99))
def test_confusion_meets_the_matrix_in_every_image(correlation_px, mask, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.dirichlet(np.full(K, 0.5), size=K)
    matrix[0], matrix[1, 2:] = np.eye(K)[0], 0
    matrix /= matrix.sum(axis=1, keepdims=True)
    noisy, _ = noise.confuse_classes(mask, matrix, rng=rng, correlation_px=correlation_px)
    for before, after in zip(mask.reshape(-1, *mask.shape[-2:]), noisy.reshape(-1, *mask.shape[-2:]), strict=True):
        found = np.array([np.bincount(after[before == i], minlength=K)[:K] for i in range(K)])
        assert np.abs(found - matrix * found.sum(axis=1, keepdims=True)).max() < 2, "one for the loss, one for its kind"
        assert (found[matrix == 0] == 0).all(), "what the matrix excludes never happens"


def test_confusion_at_edges_stays_there_at_the_rate_asked():
    mask = np.zeros((120, 120), np.uint8)
    mask[:, 60:] = 1
    matrix = np.array([[0.6, 0.4], [0.2, 0.8]])
    noisy, changed = noise.confuse_classes(mask, matrix, rng=np.random.default_rng(0), correlation_px=4, edge_px=2)
    assert not changed[:, :57].any() and not changed[:, 63:].any()
    assert changed[:, 57:60].sum() == 0.4 * 360 and changed[:, 60:63].sum() == 0.2 * 360


def test_images_large_enough_to_be_sampled_are_met_exactly_too():
    """Thresholds come from a part of the pixels there; rare classes have few in it, or none."""
    mask = np.zeros((700, 601), np.uint8)
    mask[200:], mask[3, 5], mask[7:9, 301:304], mask[:, :9] = 1, 2, 3, VOID
    matrix = np.array([[0.5, 0.5, 0, 0], [0, 0.99, 0.01, 0], [1, 0, 0, 0], [0, 0.5, 0.5, 0]])
    for correlation_px in (0, 2, 30, 500):
        rng = np.random.default_rng(1)
        noisy, _ = noise.confuse_classes(mask, matrix, rng=rng, correlation_px=correlation_px)
        for i, row in enumerate(matrix):
            found = np.bincount(noisy[mask == i], minlength=4)
            assert np.abs(found - row * (mask == i).sum()).max() < 2


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


def test_splines_are_weighed_by_their_basis():
    spacing, phase = 7.0, 0.3
    weights = fields._spline_weights(40, spacing, phase).toarray()
    basis = BSpline.basis_element(np.arange(-2, 3))  # cubic, its middle at 0
    at = np.arange(40) / spacing + phase
    expected = basis(at[:, None] - np.arange(-1, weights.shape[1] - 1), extrapolate=False)
    expected = np.nan_to_num(expected)
    assert weights == pytest.approx(expected / np.linalg.norm(expected, axis=1, keepdims=True), abs=1e-6)


@given(st.integers(0, 9999), st.sampled_from([np.uint16, np.float32]))
@settings(max_examples=60)
def test_the_lowest_of_each_group_are_those_of_a_sort(seed, dtype):
    rng = np.random.default_rng(seed)
    shape = (12, 15) if seed % 2 else (70, 90)  # large enough not to be sorted whole
    field, groups = rng.integers(0, 500, shape).astype(dtype), rng.integers(0, 3, shape).astype(np.uint8)
    sizes = np.bincount(groups.ravel(), minlength=3)
    wanted = rng.integers(0, sizes + 1)
    for group, places in enumerate(fields.lowest(field, groups, wanted, sizes)):
        own = np.flatnonzero(groups == group)
        ranked = own[np.argsort(field.ravel()[own], kind="stable")]
        assert sorted(places) == sorted(ranked[: wanted[group]])


@given(st.integers(0, 9999))
@settings(max_examples=60)
def test_classes_are_shared_out_by_rank(seed):
    rng = np.random.default_rng(seed)
    levels, weights = rng.integers(0, 30, 200).astype(np.uint16), rng.random(4) * (rng.random(4) < 0.7) + [0, 0.1, 0, 0]
    labels = pixels._share_out(levels, weights, np.random.default_rng(seed))
    ends = 200 * np.cumsum(weights) / weights.sum() + np.random.default_rng(seed).random()
    of_rank = np.minimum(np.searchsorted(np.floor(ends), np.arange(200), side="right"), np.flatnonzero(weights)[-1])
    assert np.array_equal(labels[np.argsort(levels, kind="stable")], of_rank)


@pytest.mark.parametrize("target", [*legend.LEGENDS, 2, 7])
@pytest.mark.parametrize("rate", [0, 0.25, 1])
def test_confusion_matrices_are_stochastic(target, rate):
    matrix = noise.confusion_matrix(target if isinstance(target, int) else legend.get(target), rate)
    assert (matrix >= 0).all() and np.allclose(matrix.sum(axis=1), 1) and np.allclose(np.diagonal(matrix), 1 - rate)


def test_confused_pairs_are_classes_of_shipped_legends():
    names = [set(one.names) for one in legend.LEGENDS.values()]
    assert all(any({a, b} <= known for known in names) for a, b, _ in noise.CONFUSED_PAIRS)


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
        (lambda: noise.shift_mask(MASK, rng=RNG, vector_px=(0, np.nan)), ValueError, r"vector_px is \(down, right\)"),
        (lambda: noise.rotate_mask(MASK, rng=RNG, degrees=np.inf), ValueError, "degrees is an angle, got inf"),
        (lambda: noise.resize_classes(MASK, {300: 1}, rng=RNG), ValueError, r"class id 0..254, got \[\(300, 1\)\]"),
        (lambda: noise.simplify_outlines(MASK, 2, rng=RNG, gsd_m=0), ValueError, "gsd_m is the size of a pixel"),
        (lambda: noise.coarsen(MASK, 0.5, rng=RNG), ValueError, "block_px is a number of pixels >= 1, got 0.5"),
        (lambda: noise.add_objects(MASK, 0.5, rng=RNG, size_px=(9, 3)), ValueError, r"size_px is \(least, most\)"),
        (lambda: noise.age_map(MASK, 1, rng=RNG, earlier=MASK[1:]), ValueError, "masks of two dates have one shape"),
        (lambda: noise.RECIPES["map-like"].apply(MASK, 5, RNG, rate=(0.1, 1.2)), ValueError, "got 1.2"),
        (lambda: noise.Recipe("x", "", (("omit", {"rat": 1}),)), ValueError, r"'omit' has no setting.*it has rate, cl"),
        (
            lambda: noise.Recipe("x", "", (("flop", {}),)),
            ValueError,
            "unknown step.*flop.*known are flip, confuse",
        ),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_rows_of_a_matrix_sum_to_one_or_are_refused():
    mask = np.zeros((1000, 1000), np.uint8)
    with pytest.raises(ValueError, match="sum to 1; rows sum to"):
        noise.confuse_classes(mask, np.array([[0, 1.00001], [0, 1]]), rng=np.random.default_rng(0))
    for off in (-9e-7, 9e-7):
        done, _ = noise.confuse_classes(mask, np.array([[0, 1 + off], [0, 1]]), rng=np.random.default_rng(0))
        assert (done == 1).all(), "what rounding leaves is made up for"
