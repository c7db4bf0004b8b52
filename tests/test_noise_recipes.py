"""Recipes: rates asked and achieved, strength, grades and composition."""

import numpy as np
import pytest

from nbutils import legend, noise
from nbutils.legend import VOID
from nbutils.noise import recipes

K = 5
GRADED = ("map-like", "product-like", "lidar-like", "incomplete", "misregistered")
RECIPES = {name: noise.RECIPES[name] for name in GRADED}


def blocks(n: int = 8, side: int = 16, k: int = K, seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(0, k, (n, n), dtype=np.uint8)
    return np.kron(ids, np.ones((side, side), np.uint8))


def scene(rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Smooth areas, boxes on them, and void; odd shapes, two to nine classes."""
    shape, k = tuple(rng.integers(48, 80, 2).tolist()), int(rng.integers(2, 10))
    mask = np.argmax([noise.smooth_field(shape, 15, rng) for _ in range(k)], axis=0).astype(np.uint8)
    for _ in range(rng.integers(0, 20)):
        (row, column), (height, width) = rng.integers(shape), rng.integers(2, 12, 2)
        mask[row : row + height, column : column + width] = rng.integers(k)
    mask[noise.smooth_field(shape, 20, rng) > 1.8] = VOID
    return mask, k


def test_recipes_get_worse_with_strength():
    mask = blocks(12, 20)
    for recipe in RECIPES.values():
        rates = [
            np.mean([recipe.apply(mask, K, np.random.default_rng(s), strength)[1].mean() for s in range(8)])
            for strength in (0, 0.5, 1, 2)
        ]
        assert rates == sorted(rates) and rates[0] == 0 and rates[-1] > rates[1] > 0.01, (recipe.name, rates)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_is_tuned_to_a_rate(recipe):
    masks = [blocks(12, 12, seed=1), blocks(8, 20, seed=2)]
    masks[0][:20] = VOID
    strength = recipe.strength_for(masks, K, 0.15)
    done = [noise.report(m, recipe.apply(m, K, np.random.default_rng(0), strength)[0]) for m in masks]
    assert abs(sum(d.changed for d in done) / sum(d.valid for d in done) - 0.15) < 0.03
    assert recipe.strength_for(masks, K, 0) < 0.01
    with pytest.raises(ValueError, match=f"recipe '{recipe.name}' changes at most .* asked for 100.0%"):
        recipe.strength_for([np.zeros((20, 20), np.uint8), *masks], K, 1.0)


def test_every_recipe_comes_in_grades_that_get_worse():
    assert set(noise.RECIPES) == {f"{name}{grade}" for name in GRADED for grade in ("", "-easy", "-hard")}
    masks = np.stack([blocks(12, 12, seed=i) for i in range(6)])
    for name in GRADED:
        rates = [
            noise.RECIPES[name + grade].apply(masks, K, np.random.default_rng(0))[1].mean()
            for grade in ("-easy", "", "-hard")
        ]
        assert rates == sorted(rates) and rates[2] > 1.3 * rates[0] > 0, (name, rates)


def test_rates_asked_are_achieved_within_a_point_over_a_thousand_masks():
    """Flips, matrices, matrices in patches and recipes in turn; a recipe may miss what it cannot reach."""
    rng, reachable = np.random.default_rng(7), ("map-like", "product-like", "lidar-like", "misregistered")
    worst, missed, tried = 0.0, 0, 0
    for i in range(1000):
        (mask, k), rate = scene(rng), rng.uniform(0, 0.6)
        if i % 10 == 9:
            tried, rate = tried + 1, 0.4 * rate
            recipe = noise.RECIPES[reachable[i // 10 % 4]]
            done = noise.report(mask, recipe.apply(mask, k, rng, rate=rate)[0], rate)
            missed += abs(done.achieved - rate) > 0.01
            assert done.achieved <= rate + 0.01
            continue
        if i % 3 == 0:
            noisy, _ = noise.flip_labels(mask, rate, k, rng=rng)
        else:
            matrix = noise.confusion_matrix(k, rate)
            noisy, _ = noise.confuse_classes(mask, matrix, rng=rng, correlation_px=0 if i % 3 == 1 else 8)
        worst = max(worst, abs(noise.report(mask, noisy).achieved - rate))
    assert worst < 0.01
    assert missed <= 0.05 * tried, (missed, tried)


def test_each_image_of_a_stack_draws_its_own_rate():
    masks = np.stack([blocks(6, 8, seed=i) for i in range(30)])
    recipe = noise.Recipe("bend", "", (("move", {"distance_px": 1.0}),))
    noisy, changed = recipe.apply(masks, K, np.random.default_rng(0), rate=(0.1, 0.4))
    rates = changed.mean(axis=(1, 2))
    assert 0.09 < rates.min() < 0.17 and 0.33 < rates.max() < 0.41 and abs(rates.mean() - 0.25) < 0.04


def test_a_rate_beyond_reach_is_approached_and_the_report_tells():
    mask = np.ones((60, 60), np.uint8)
    mask[10:14, 10:14] = 0
    noisy, _ = noise.RECIPES["incomplete"].apply(mask, 2, np.random.default_rng(0), rate=0.3)
    assert noise.report(mask, noisy, 0.3).changed == 16
    void = np.full((9, 9), VOID, np.uint8)
    assert np.array_equal(noise.RECIPES["map-like"].apply(void, 2, np.random.default_rng(0), rate=0.3)[0], void)


def test_the_search_for_a_rate_begins_anywhere_and_ends_with_about_the_least_strength():
    mask, bend = blocks(6, 12), noise.Recipe("bend", "", (("move", {"distance_px": 1.0}),))
    for strength in (0.0, 0.1, 7.0):
        changed = bend.apply(mask, K, np.random.default_rng(0), strength, rate=0.2)[1]
        assert changed.mean() == pytest.approx(0.2, abs=1 / mask.size)
    for start in (0.01, 1.0, 9.0):
        changed, strength = recipes._least_enough(lambda at: (int(1000 * at), at), 300, start)
        assert 300 <= changed <= 1.03 * 300 + 4 and strength == pytest.approx(changed / 1000, abs=1e-3)


def test_recipes_compose_and_scale():
    mask, both = blocks(10, 8), RECIPES["incomplete"] + RECIPES["misregistered"]
    first, rng = noise.RECIPES["incomplete"], np.random.default_rng(3)
    expected = RECIPES["misregistered"].apply(first.apply(mask, K, rng)[0], K, rng)[0]
    assert np.array_equal(both.apply(mask, K, np.random.default_rng(3))[0], expected)
    for recipe in RECIPES.values():
        half = recipe.scaled(0.5, "half").apply(mask, K, np.random.default_rng(1), 1.0)[0]
        assert np.array_equal(half, recipe.apply(mask, K, np.random.default_rng(1), 0.5)[0])
    assert both.steps == first.steps + RECIPES["misregistered"].steps and "+" in both.name


def test_steps_know_names_of_classes_and_metres():
    mask, own = blocks(8, 10), legend.get("dubai5")
    grown = noise.Recipe("eaves", "", (("resize", {"distance_px": {"building": 2.0, "no such class": 9.0}}),))
    expected, _ = noise.resize_classes(mask, {own.index("building"): 2.0}, rng=np.random.default_rng(0))
    assert np.array_equal(grown.apply(mask, own, np.random.default_rng(0))[0], expected)
    plain = noise.Recipe("plain", "", (("simplify", {"tolerance_m": 4.0}),))
    rough = noise.move_boundaries(mask, 2, rng=np.random.default_rng(0))[0]
    fine, coarse = (plain.apply(rough, K, np.random.default_rng(0), gsd_m=m)[1].sum() for m in (8.0, 1.0))
    assert fine == 0 < coarse


def test_every_step_takes_its_settings_to_nothing():
    for name, step in noise.STEPS.items():
        scaled = {*step.rates, *step.lengths, *step.blocks}
        assert scaled and scaled <= set(step.settings()), name
    assert noise.STEPS["coarsen"].at({"block_px": 9.0, "least_px": 50.0}, 0.5) == {"block_px": 5.0, "least_px": 25.0}
    assert noise.STEPS["omit"].at({"rate": 0.7, "classes": (1,)}, 2) == {"rate": 1.0, "classes": (1,)}


def test_a_step_touches_only_classes_its_legend_has():
    mask, own, rng = blocks(12, 8), legend.get("dubai5"), np.random.default_rng
    building = own.index("building")

    def applied(step: str, known: legend.Legend | int = own, **settings: object) -> np.ndarray:
        return noise.Recipe("one", "", ((step, settings),)).apply(mask, known, rng(0))[0]

    for classes in (["no such class"], "no such class", []):
        noisy = applied("omit", rate=1.0, classes=classes)
        assert np.array_equal(noisy, mask) and noisy is not mask
    assert np.array_equal(applied("resize", distance_px={"no such class": 3.0}), mask)
    assert np.array_equal(applied("resize", K, distance_px={"building": 3.0}), mask)
    expected, _ = noise.omit_objects(mask, 1.0, [building], rng=rng(0))
    for classes in ("building", ["building", "no such class"], [building]):
        assert np.array_equal(applied("omit", rate=1.0, classes=classes), expected)
    everything, _ = noise.omit_objects(mask, 0.5, rng=rng(0))
    assert np.array_equal(applied("omit", K, rate=0.5, classes="building"), everything)


@pytest.mark.parametrize(("step", "key"), [("add", "source"), ("age", "earlier")])
def test_no_class_beyond_the_legend_comes_out(step, key):
    mask, nine = blocks(8, 8, 3), blocks(8, 8, 9)
    copied = noise.Recipe("copied", "", ((step, {"rate": 1.0, key: nine}),))
    message = f"recipe 'copied': {key} of step '{step}': .*with 3 classes they are 0..2"
    for rate in (None, 0.2):
        with pytest.raises(ValueError, match=message):
            copied.apply(mask, 3, np.random.default_rng(0), rate=rate)
    assert copied.apply(mask, 9, np.random.default_rng(0))[0].max() > 2


def test_a_rate_is_a_fraction_or_a_pair_in_order():
    mask, bend = blocks(6, 8), noise.Recipe("bend", "", (("move", {"distance_px": 1.0}),))
    expected = bend.apply(mask, K, np.random.default_rng(0), rate=(0.1, 0.3))[0]
    for pair in ([0.1, 0.3], np.array([0.1, 0.3])):
        assert np.array_equal(bend.apply(mask, K, np.random.default_rng(0), rate=pair)[0], expected)
    for wrong in ((0.3, 0.1), (0.1, 0.2, 0.3), ()):
        with pytest.raises(ValueError, match="least <= most"):
            bend.apply(mask, K, np.random.default_rng(0), rate=wrong)
    with pytest.raises(ValueError, match="rate is a fraction"):
        bend.apply(mask, K, np.random.default_rng(0), rate=(0.1, 1.3))


@pytest.mark.parametrize("rate", [None, 0.1])
def test_a_mask_mapped_from_a_file_gives_plain_arrays(tmp_path, rate):
    np.save(tmp_path / "masks.npy", np.stack([blocks(6, 8)] * 2))
    mapped = np.load(tmp_path / "masks.npy", mmap_mode="r")
    for mask in (mapped, mapped[0]):
        for recipe in (RECIPES["map-like"], noise.Recipe("nothing", "", ())):
            done = recipe.apply(mask, K, np.random.default_rng(0), rate=rate)
            assert [type(one) for one in done] == [np.ndarray] * 2
            assert not np.shares_memory(done[0], mask)
