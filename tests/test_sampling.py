"""Estimates from samples: the published example, an independent oracle, coverage over repeated sampling; and plans."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from nbutils import audit
from nbutils.audit import planning, sampling
from nbutils.legend import VOID

# Olofsson et al. 2014, table 8: rows map classes, columns reference; deforestation, forest gain, stable forest, other
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
SIZES = np.array([200_000, 150_000, 3_200_000, 6_450_000])


def _sample(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    noisy, exact = np.indices(counts.shape)
    return np.repeat(noisy.ravel(), counts.ravel()), np.repeat(exact.ravel(), counts.ravel())


def test_the_worked_example_of_olofsson_2014():
    found = sampling.estimate(SIZES, *_sample(COUNTS), 4)
    assert 1 - found.rate.value == pytest.approx(0.947, abs=5e-4)
    assert found.users.value[0] == pytest.approx(0.88, abs=0.005)
    assert 1.96 * found.users.error[0] == pytest.approx(0.07, abs=0.005)
    assert found.producers.value[0] == pytest.approx(0.75, abs=0.005)
    assert 1.96 * found.producers.error[0] == pytest.approx(0.21, abs=0.005)
    assert found.area.value[0] * SIZES.sum() == pytest.approx(235_086, abs=1)
    assert 1.96 * found.area.error[0] * SIZES.sum() == pytest.approx(68_418, rel=1e-3)  # no finite strata there
    assert found.rate.n == 640 and found.users.n.tolist() == [75, 75, 165, 325]


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=3, max_size=3))
def test_strata_of_classes_agree_with_the_equations_of_olofsson_2014(rows):
    counts = np.array(rows) + 2 * np.eye(3, dtype=int)
    sizes = np.array([3, 50, 800]) * 1e7  # so large that the correction for finite strata is nothing
    found = sampling.estimate(sizes, *_sample(counts), 3)
    n, weight = counts.sum(axis=1), sizes / sizes.sum()
    share = counts / n[:, None]
    joint = weight[:, None] * share  # eq. 4
    users, producers = np.diag(share), np.diag(joint) / joint.sum(axis=0)  # eq. 2, 3
    assert found.rate.value == pytest.approx(1 - np.trace(joint))
    assert found.users.value == pytest.approx(users) and found.producers.value == pytest.approx(producers)
    assert found.area.value == pytest.approx(joint.sum(axis=0))
    assert found.transition.value == pytest.approx((joint / joint.sum(axis=0)).T)
    assert found.rate.error == pytest.approx(np.sqrt((weight**2 * users * (1 - users) / (n - 1)).sum()), rel=1e-4)
    assert found.users.error == pytest.approx(np.sqrt(users * (1 - users) / (n - 1)), rel=1e-4)  # eq. 6
    total, spread = joint.sum(axis=0) * sizes.sum(), share * (1 - share) / (n - 1)[:, None]
    off = (sizes[:, None] ** 2 * spread * (1 - np.eye(3))).sum(axis=0)
    own = sizes**2 * (1 - producers) ** 2 * np.diag(spread)
    assert found.producers.error == pytest.approx(np.sqrt(own + producers**2 * off) / total, rel=1e-4, abs=1e-9)  # 7
    area_error = np.sqrt((weight[:, None] ** 2 * spread).sum(axis=0))  # eq. 10
    assert found.area.error == pytest.approx(area_error, rel=1e-4, abs=1e-9)


def test_the_worked_example_of_stehman_2014_with_strata_that_are_no_classes():
    letters = {letter: i for i, letter in enumerate("ABCD")}
    strata = "A" * 10 + "B" * 10 + "C" * 10 + "D" * 10
    noisy = "AAAAAAABBB" + "A" + "B" * 9 + "BB" + "C" * 6 + "BB" + "D" * 10
    exact = "AAAAACBABC" + "ABBBBBAABB" + "CCCCCDDBBA" + "DDDDDDDCCB"
    ids = [np.array([letters[c] for c in text]) for text in (noisy, exact, strata)]
    found = sampling.estimate(np.array([4, 3, 2, 1]) * 10**7, ids[0], ids[1], 4, strata=ids[2], names="ABCD")
    assert found.area.value[[0, 2]] == pytest.approx([0.35, 0.20])
    assert found.area.error[[0, 2]] == pytest.approx([0.082, 0.064], abs=5e-4)
    assert 1 - found.rate.value == pytest.approx(0.63) and found.rate.error == pytest.approx(0.085, abs=5e-4)
    assert found.users.value[1] == pytest.approx(0.574, abs=5e-4)
    assert found.users.error[1] == pytest.approx(0.125, abs=5e-4)
    assert found.producers.value[1] == pytest.approx(0.794, abs=5e-4)
    assert found.producers.error[1] == pytest.approx(0.116, abs=1e-3)


def _map(rng: np.random.Generator, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Patches of four classes, one rare, taken for one another at rates of 5 to 30 %; some void."""
    field = ndimage.gaussian_filter(rng.normal(size=(size, size)), 6)
    exact = np.digitize(field, np.quantile(field, [0.5, 0.85, 0.96])).astype(np.uint8)
    chances = np.array(
        [[0.9, 0.05, 0.04, 0.01], [0.1, 0.85, 0.04, 0.01], [0.05, 0.1, 0.8, 0.05], [0.2, 0.02, 0.08, 0.7]]
    )
    noisy = (rng.random((size, size, 1)) > chances.cumsum(axis=1)[exact]).sum(axis=-1).clip(0, 3).astype(np.uint8)
    noisy[:20], exact[:, :10] = VOID, VOID
    return noisy, exact


@pytest.mark.parametrize("design", ["one stratum", "proportional", "equal", "neyman"])
def test_intervals_cover_and_means_are_right_over_repeated_sampling(design, capsys):
    rng = np.random.default_rng(3)
    noisy, exact = _map(rng)
    truth = audit.compare(noisy, exact, 4)
    users = 1 - truth.commission
    known = {"rate": truth.rate, "users": users, "producers": 1 - truth.omission, "transition": truth.transition}
    known |= {"iou": truth.iou, "area": truth.confusion.sum(axis=1) / truth.n_valid}
    strata = np.where(noisy == VOID, VOID, 0).astype(np.uint8) if design == "one stratum" else noisy
    allocation = "proportional" if design == "one stratum" else design
    guessed = [0.1, 0.2, 0.3, 0.4] if design == "neyman" else None
    values, covered = {name: [] for name in known}, {name: [] for name in known}
    for _ in range(250):
        drawn = sampling.draw(strata, 200, rng=rng, allocation=allocation, error_rates=guessed)
        found = sampling.estimate(drawn.sizes, drawn.take(noisy), drawn.take(exact), 4, strata=drawn.strata)
        for name, value in known.items():
            one = getattr(found, name)
            values[name].append(one.value)
            covered[name].append((one.low <= value) & (value <= one.high))
    share = {name: float(np.mean(hits)) for name, hits in covered.items()}
    with capsys.disabled():
        print(f"\n{design}: 95 % intervals cover", {name: round(value, 3) for name, value in share.items()})
    assert 0.92 < share["rate"] and all(0.93 < value for value in share.values())
    assert min(np.mean(hits, axis=0).min() for hits in covered.values()) > 0.85
    spread = np.std(values["rate"]) / np.sqrt(250)
    assert np.mean(values["rate"]) == pytest.approx(truth.rate, abs=4 * spread)
    error = np.std(values["area"], axis=0) / np.sqrt(250)
    assert (abs(np.mean(values["area"], axis=0) - known["area"]) < 4 * error).all()


@given(st.floats(0.01, 0.99), st.floats(2, 500), st.sampled_from([2, 3, 9, 200]))
def test_limits_solve_wilsons_equation_with_students_quantile(share, size, seen):
    for limit in sampling._wilson(np.array(share), np.array(size), np.array(seen), 0.95):
        away = stats.t.ppf(0.975, seen - 1) ** 2 * limit * (1 - limit) / size
        assert (limit - share) ** 2 == pytest.approx(away, rel=1e-6, abs=1e-12)


def test_a_table_of_estimates_has_its_columns_in_order():
    table = sampling.estimate(SIZES, *_sample(COUNTS), 4).table()
    assert list(table) == ["statistic", "key", "value", "error", "low", "high", "n"]
    assert list(table.statistic.unique()) == ["rate", "users", "producers", "area", "transition", "iou"]


def test_a_full_count_leaves_no_error_and_the_numbers_of_the_audit():
    noisy, exact = _map(np.random.default_rng(0), 40)
    drawn = sampling.draw(noisy, int((noisy != VOID).sum()), rng=np.random.default_rng(0))
    found = sampling.estimate(drawn.sizes, drawn.take(noisy), drawn.take(exact), 4, names=("a", "b", "c", "d"))
    truth = audit.compare(noisy, exact, 4)
    assert found.rate.value == pytest.approx(truth.rate) and found.rate.error == 0
    assert found.rate.low == found.rate.high == found.rate.value  # nothing is left to chance
    assert found.transition.value == pytest.approx(truth.transition) and found.iou.value == pytest.approx(truth.iou)
    table = found.table().set_index(["statistic", "key"])
    assert table.loc[("transition", "a -> b"), "value"] == pytest.approx(truth.transition[0, 1])
    assert table.loc[("rate", "all"), "n"] == truth.n_valid and len(table) == 1 + 4 * 4 + 16
    whole = audit.statistics_of(noisy, exact, 4).table().set_index(["statistic", "key"])["value"]
    ours = sampling.estimate(drawn.sizes, drawn.take(noisy), drawn.take(exact), 4).table()
    ours = ours.set_index(["statistic", "key"])["value"]
    both = ours.index.intersection(whole.index)
    assert len(both) == 1 + 16 + 4 and ours[both].tolist() == pytest.approx(whole[both].tolist())  # same keys


def test_a_class_without_samples_is_nan_and_no_error_seen_is_not_no_error():
    with np.errstate(all="raise"):
        found = sampling.estimate(1000, [0] * 30, [0] * 30, 3)
        by_class = sampling.estimate([1000, 0, 10], [0] * 30 + [2, 2], [0] * 30 + [2, VOID], 3)
    assert by_class.rate.n == 31 and np.isnan(by_class.users.low[1]) and by_class.producers.value[2] == 1
    assert np.isnan(found.users.value[1:]).all() and np.isnan(found.transition.high[1:]).all()
    assert found.rate.value == 0 and 0.05 < found.rate.high < 0.2


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=6).filter(any),
    st.sampled_from(["proportional", "equal", "neyman"]),
    st.floats(0, 1),
)
def test_allocations_are_whole_and_within_the_strata(sizes, allocation, part):
    sizes = np.array(sizes)
    least = int(np.minimum(2, sizes).sum())
    n = least + int(part * (sizes.sum() - least))
    given_out = sampling.allocate(sizes, n, allocation, np.linspace(0, 1, len(sizes)))
    assert given_out.sum() == n and (given_out <= sizes).all() and (given_out >= np.minimum(2, sizes)).all()


def test_allocations_follow_their_rule():
    sizes = np.array([8000, 1500, 500])
    assert sampling.allocate(sizes, 100).tolist() == [80, 15, 5]
    assert sampling.allocate(sizes, 99, "equal").tolist() == [33, 33, 33]
    wanted = sizes * np.sqrt([0.09, 0.25, 0.25])
    assert sampling.allocate(sizes, 340, "neyman", [0.1, 0.5, 0.5]) == pytest.approx(340 * wanted / wanted.sum(), abs=1)
    assert sampling.allocate([5, 1000], 100, "equal").tolist() == [5, 95]


def test_every_pixel_of_a_stratum_is_drawn_alike_and_void_never():
    first = np.array([[0, 1, VOID], [0, 0, 1]], np.uint8)
    second = np.array([[1, 1], [VOID, 0], [0, 1]], np.uint8)
    rng, often = np.random.default_rng(0), {}
    for _ in range(2000):
        drawn = sampling.draw([first, second], 5, rng=rng, allocation="equal")
        assert len(np.unique(drawn.positions, axis=0)) == 5 and drawn.sizes.tolist() == [5, 5]
        assert drawn.take([first, second]).tolist() == drawn.strata.tolist()
        for place in map(tuple, drawn.positions.tolist()):
            often[place] = often.get(place, 0) + 1
    assert len(often) == 10
    zeros = [count for place, count in often.items() if [first, second][place[0]][place[1:]] == 0]
    assert max(zeros) < 1.15 * min(zeros)
    again = [sampling.draw(first, 4, rng=np.random.default_rng(5)).positions.tolist() for _ in range(2)]
    assert again[0] == again[1]


def _exponential_field(rng: np.random.Generator, size: int, length: float) -> np.ndarray:
    """A periodic Gaussian field of unit variance with correlation exp(-d / length), by its spectrum."""
    lag = np.minimum(np.arange(size), size - np.arange(size))
    spectrum = np.fft.fft2(np.exp(-np.hypot(lag[:, None], lag) / length)).real.clip(min=0)
    return np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) * np.sqrt(spectrum)).real


def _measured(wrong: np.ndarray) -> np.ndarray:
    """Correlation of an indicator, (N, H, W), at 0, 1, 2, ... px along rows."""
    centred = wrong - wrong.mean()
    products = [(centred[:, :, lag:] * centred[:, :, : wrong.shape[2] - lag]).mean() for lag in range(60)]
    return np.array(products) / wrong.var()


def _length(correlation: np.ndarray) -> float:
    return float(np.interp(-np.exp(-1), -correlation, np.arange(len(correlation))))


def _seen_effect(fields: np.ndarray, patch: int) -> float:
    n, size = fields.shape[:2]
    cut = fields.reshape(n, size // patch, patch, size // patch, patch)
    return patch**2 * cut.mean(axis=(2, 4)).var() / fields.var()


@pytest.mark.parametrize(("length", "patch"), [(2.0, 16), (5.0, 16), (8.0, 32)])
def test_the_design_effect_is_what_simulated_patches_show(length, patch):
    rng = np.random.default_rng(0)
    fields = np.stack([_exponential_field(rng, 256, length) for _ in range(30)])
    assert _seen_effect(fields, patch) == pytest.approx(planning.design_effect(length, patch), rel=0.08)
    wrong = fields > 1.0  # errors where such a field is high
    assert _seen_effect(wrong, patch) == pytest.approx(planning.design_effect(_measured(wrong), patch), rel=0.12)
    smooth = np.stack([ndimage.gaussian_filter(rng.normal(size=(256, 256)), length, mode="wrap") for _ in range(30)])
    wrong = smooth > np.quantile(smooth, 0.85)
    assert _seen_effect(wrong, patch) == pytest.approx(planning.design_effect(_measured(wrong), patch), rel=0.1)
    by_length = planning.design_effect(_length(_measured(wrong)), patch)
    assert _seen_effect(wrong, patch) == pytest.approx(by_length, rel=0.35)  # its shape is not quite exponential


@given(st.floats(0, 50), st.integers(1, 40))
def test_the_design_effect_lies_between_one_and_the_pixels_of_the_patch(length, patch):
    effect = planning.design_effect(length, patch)
    assert 1 <= effect <= patch**2 + 1e-9
    assert planning.design_effect(length, patch, 1) == 1


@given(st.floats(0.005, 0.2), st.floats(0.02, 0.98))
def test_the_planned_pixels_are_just_enough(half, rate):
    n = planning.plan(half, rate=rate).n_pixels
    width = lambda n: np.subtract(*audit.wilson_interval(round(rate * n), n)[::-1]) / 2  # noqa: E731
    assert width(n) <= half + 0.5 / n
    assert n == 1 or width(max(1, n - 2)) > half - 1 / n


def test_planned_patches_keep_the_promise_they_make():
    """Patches of a correlated field: the spread of the estimated rate is the one planned for."""
    rng, patch, length = np.random.default_rng(0), 16, 6.0
    fields = np.stack([_exponential_field(rng, 256, length) for _ in range(40)]) > 0.84  # about 20 % wrong
    shares = fields.reshape(40, 16, patch, 16, patch).mean(axis=(2, 4)).ravel()
    planned = planning.plan(0.04, rate=0.2, correlation_px=_measured(fields), patch_px=patch)
    means = rng.choice(shares, (4000, planned.n_patches)).mean(axis=1)
    inside = (abs(means - shares.mean()) <= 0.04).mean()
    assert 0.92 <= inside <= 0.99
    assert planned.n_patches * patch**2 > 3 * planned.n_pixels  # what planning by pixels would have hidden


def test_pixels_that_err_independently_have_no_design_effect():
    assert planning.design_effect(0.0, 8) == 1
    lone = planning.plan(0.05, rate=0.2, correlation_px=9.0, patch_px=16, pixels_per_patch=1)
    assert lone.design_effect == 1 and lone.n_patches == pytest.approx(lone.n_pixels, rel=0.05)


def test_advice_says_what_to_do_in_words():
    planned = planning.plan(0.02, rate=0.1, correlation_px=5, patch_px=64, pixels_per_patch=50)
    assert f"{planned.n_pixels:,} pixels drawn at random" in planned.advice
    assert f"{planned.n_patches:,} patches" in planned.advice and "15 px apart" in planned.advice
    rare = planning.plan(0.02, rate=0.1, class_share=0.05)
    assert rare.n_pixels == pytest.approx(20 * planned.n_pixels, rel=0.01) and rare.n_patches is None
    assert "patches" not in rare.advice


def test_the_sample_size_of_olofsson_2014_and_its_promise():
    """Section 5.1: guessed user's accuracies and a standard error of 0.01 ask for 641 pixels."""
    numbers = planning.plan_strata(1.96 * 0.01, SIZES, [0.3, 0.4, 0.1, 0.05])
    assert numbers.sum() == pytest.approx(641, abs=2)
    rng = np.random.default_rng(0)
    noisy, exact = _map(rng)
    truth = audit.compare(noisy, exact, 4)
    sizes = np.bincount(noisy[noisy != VOID], minlength=4)
    for allocation in ("neyman", "equal"):
        numbers = planning.plan_strata(0.04, sizes, truth.commission, allocation=allocation)
        missed = []
        for _ in range(400):
            drawn = sampling.draw(noisy, numbers.sum(), rng=rng, allocation=allocation, error_rates=truth.commission)
            found = sampling.estimate(drawn.sizes, drawn.take(noisy), drawn.take(exact), 4)
            missed.append(abs(found.rate.value - truth.rate) > 0.04)
        assert 0.01 < np.mean(missed) < 0.1
    with pytest.raises(ValueError, match="for each of 2 strata"):
        planning.plan_strata(0.1, [10, 10], [0.5])


def test_the_plan_for_strata_does_not_depend_on_how_large_a_country_is():
    sizes, rates = np.array([4e8, 1e8, 5e7]).astype(np.int64), [0.1, 0.3, 0.5]
    assert np.array_equal(planning.plan_strata(0.02, sizes, rates), planning.plan_strata(0.02, 100 * sizes, rates))


def test_faults_say_what_was_expected():
    with pytest.raises(ValueError, match=r"sample_exact holds \[7\].*0..2"):
        sampling.estimate(100, [0, 1], [0, 7], 3)
    with pytest.raises(ValueError, match="stratum 1 has 50 pixels and 1 samples; draw at least two"):
        sampling.estimate([100, 50], [0, 0, 1], [0, 0, 1], 2)
    with pytest.raises(ValueError, match="stratum 0 has 2 pixels but 3 samples"):
        sampling.estimate(2, [0, 0, 0], [0, 0, 0], 2)
    with pytest.raises(ValueError, match="3 noisy labels, 2 exact ones"):
        sampling.estimate(9, [0, 0, 0], [0, 0], 2)
    with pytest.raises(ValueError, match="n is 4..20"):
        sampling.allocate([10, 10], 3)
    with pytest.raises(ValueError, match="error_rates in .* all 2 strata"):
        sampling.allocate([10, 10], 8, "neyman", [0.1])
    with pytest.raises(ValueError, match="known: proportional"):
        sampling.allocate([10, 10], 8, "random")
    with pytest.raises(TypeError, match="image 1: expected a uint8"):
        sampling.draw([np.zeros((2, 2), np.uint8), np.zeros((2, 2))], 3, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="half_width is in"):
        planning.plan(0.0, rate=0.1)
    with pytest.raises(ValueError, match="pixels_per_patch is 1..64"):
        planning.plan(0.1, rate=0.1, patch_px=8, pixels_per_patch=65)


def test_the_length_alone_understates_ragged_long_ranged_errors_and_the_curve_does_not():
    """Pixels flip on their own, but in some regions more often than in others, as errors of real maps do."""
    rng, patch = np.random.default_rng(0), 32
    field = ndimage.gaussian_filter(rng.standard_normal((30, 256, 256)), (0, 12, 12), mode="wrap")
    chance = np.where(field > np.quantile(field, 0.8), 0.6, 0.03)
    wrong = (rng.random(field.shape) < chance).astype(np.uint8)
    found = audit.statistics_of(wrong, np.zeros_like(wrong), 2)
    seen = _seen_effect(wrong, patch)
    assert planning.design_effect(found.correlogram, patch) == pytest.approx(seen, rel=0.15)
    assert planning.design_effect(found.correlation_px, patch) < seen / 3
    planned = [
        planning.plan(0.02, rate=0.1, correlation_px=given_as, patch_px=patch)
        for given_as in (found.correlogram, found.correlation_px)
    ]
    assert planned[0].n_patches > 3 * planned[1].n_patches


def test_the_spacing_is_where_the_curve_stays_low_or_is_not_known():
    falling = planning.plan(0.05, rate=0.1, correlation_px=[1, 0.5, 0.04, 0.06, 0.05, 0], patch_px=8)
    assert falling.spacing_px == 4 and "pixels 4 px apart" in falling.advice
    lasting = planning.plan(0.05, rate=0.1, correlation_px=np.linspace(1, 0.3, 33), patch_px=8)
    assert lasting.spacing_px == np.inf and "over more than 32 px" in lasting.advice


@pytest.mark.parametrize("wrong", [np.nan, -1.0, np.inf, [1, np.nan], [1, 7.0], [], [[1.0]]])
def test_correlations_that_are_none_are_refused(wrong):
    for patch_px in (None, 64):
        with pytest.raises(ValueError, match="correlation_px"):
            planning.plan(0.05, rate=0.1, correlation_px=wrong, patch_px=patch_px)
    with pytest.raises(ValueError, match="correlation_px"):
        planning.design_effect(wrong, 64)


def test_a_negative_curve_leaves_a_plan():
    curve = [1, *[-0.3] * 60]
    assert 0 < planning.design_effect(curve, 32) < 1
    assert planning.plan(0.05, rate=0.1, correlation_px=curve, patch_px=32).n_patches >= 2


def test_rates_of_all_classes_serve_a_map_that_lacks_some():
    noisy = np.repeat(np.array([[0, 1, 3]], np.uint8), 40, axis=0)
    rates = [0.1, 0.5, np.nan, 0.2, np.nan, 0.3]
    drawn = sampling.draw(noisy, 30, rng=np.random.default_rng(0), allocation="neyman", error_rates=rates)
    numbers = np.bincount(drawn.strata, minlength=4)
    assert numbers.sum() == 30 and numbers[2] == 0 and numbers[1] > numbers[0] and len(drawn.sizes) == 4
    assert planning.plan_strata(0.1, drawn.sizes, rates[:4])[2] == 0
    with pytest.raises(ValueError, match="all 4 strata"):
        sampling.draw(noisy, 30, rng=np.random.default_rng(0), allocation="neyman", error_rates=[0.1, np.nan, 0, 0])
