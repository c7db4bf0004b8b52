"""Calibration: a noise model fitted to audited scenes breaks other scenes as they are broken, or is seen not to."""

import numpy as np
import pytest
from scipy import ndimage

from nbutils import legend, noise
from nbutils.audit import calibrate, statistics_of
from nbutils.legend import VOID

SIDE, K = 160, 3
SAME = np.arange(K)


def scene(seed: int) -> np.ndarray:
    """Background, round things of class 1 of many sizes, streets of class 2."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for at in rng.integers(0, SIDE, 3):
        mask[at : at + 9] = 2
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for _ in range(60):
        y, x = rng.integers(0, SIDE, 2)
        mask[(rows - y) ** 2 + (columns - x) ** 2 < rng.choice([2, 3, 5, 8]) ** 2] = 1
    return mask


def broken(mask: np.ndarray, seed: int, length_px: float = 8.0) -> np.ndarray:
    """A map of its own making: small things missing, streets wider, patches of background called street, all moved."""
    rng = np.random.default_rng(1000 + seed)
    noisy = mask.copy()
    things, n = ndimage.label(mask == 1)
    sizes = np.bincount(things.ravel(), minlength=n + 1)
    noisy[np.isin(things, 1 + np.flatnonzero((rng.random(n) < 0.5) & (sizes[1:] < 60)))] = 0
    noisy[ndimage.binary_dilation(mask == 2, iterations=1) & (noisy == 0)] = 2
    field = ndimage.gaussian_filter(rng.standard_normal(mask.shape), length_px / 2)
    noisy[(field > np.quantile(field, 0.93)) & (noisy == 0)] = 2
    return np.roll(noisy, (2, -1), axis=(0, 1))


EXACT = [scene(seed) for seed in range(24)]
NOISY = [broken(mask, seed) for seed, mask in enumerate(EXACT)]


@pytest.fixture(scope="module")
def made() -> calibrate.Calibrated:
    return calibrate.fit(NOISY[:12], EXACT[:12], SAME, K, rng=np.random.default_rng(0))


def within(simulate, statistic: str, rng: int = 1) -> float:
    """Share of the rows of a statistic that lie in the intervals of twelve scenes the model never saw."""
    table = calibrate.goodness(simulate, NOISY[12:], EXACT[12:], K, rng=np.random.default_rng(rng), n_draws=3)
    rows = table[(table.statistic == statistic) & table.inside.notna()]
    assert len(rows)
    return rows.inside.astype(bool).mean()


def test_fitted_noise_looks_like_the_audited_on_scenes_not_seen(made):
    simulate = lambda rng: made.apply(EXACT[12:], rng)[0]  # noqa: E731
    assert within(simulate, "rate") == 1
    lengths = [statistics_of(m, EXACT[12:], K).correlation_px for m in (NOISY[12:], simulate(np.random.default_rng(2)))]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.15)
    assert min(within(simulate, name) for name in ("transition", "profile", "omission")) >= 0.8


def test_flips_of_the_same_rate_are_seen_not_to(made):
    rate = statistics_of(NOISY[12:], EXACT[12:], K).confusion.rate
    simulate = lambda rng: [noise.flip_labels(mask, rate, K, rng=rng)[0] for mask in EXACT[12:]]  # noqa: E731
    assert within(simulate, "rate") == 1
    assert within(simulate, "correlation") == 0 and within(simulate, "profile") < 0.5
    assert within(simulate, "transition") < 0.5


def test_the_shift_is_that_of_each_scene(made):
    assert np.array_equal(np.unique(made.shifts_px, axis=0), [[2, -1]]) and len(made.shifts_px) == 12
    names = [f"{i // 2}" for i in range(12)]
    grouped = calibrate.fit(NOISY[:12], EXACT[:12], SAME, K, rng=np.random.default_rng(0), groups=names, rounds=0)
    assert len(grouped.shifts_px) == 6


def test_masks_of_one_scene_are_displaced_alike():
    """Of a map that is right but for its place, only the place is left, one for each scene."""
    places = [(3, 0), (0, -4)]
    moved = [np.roll(mask, place, axis=(0, 1)) for mask, place in zip(EXACT[:2], places, strict=True)]
    inner = np.s_[8:-8, 8:-8]
    made = calibrate.fit(moved, EXACT[:2], SAME, K, rng=np.random.default_rng(0))
    assert sorted(map(tuple, made.shifts_px.tolist())) == sorted(places)
    stack = np.stack(EXACT[4:8])
    noisy, _ = made.apply(stack, np.random.default_rng(1), groups=["a", "b", "a", "b"])
    found = [
        [place for place in places if (n == np.roll(m, place, axis=(0, 1)))[inner].mean() > 0.9]
        for n, m in zip(noisy, stack, strict=True)
    ]
    assert found[0] == found[2] and found[1] == found[3] and found[0] != found[1] and all(map(len, found))


def test_a_map_without_errors_teaches_none():
    made = calibrate.fit(EXACT[:4], EXACT[:4], SAME, K, rng=np.random.default_rng(0))
    noisy, changed = made.apply(EXACT[5], np.random.default_rng(0))
    assert changed.mean() < 0.001 and (noisy == EXACT[5]).mean() > 0.999


@pytest.mark.parametrize("length_px", [3.0, 16.0])
def test_errors_come_in_patches_of_the_audited_size(length_px):
    noisy = [broken(mask, seed, length_px) for seed, mask in enumerate(EXACT)]
    made = calibrate.fit(noisy[:12], EXACT[:12], SAME, K, rng=np.random.default_rng(0))
    simulated = made.apply(EXACT[12:], np.random.default_rng(1))[0]
    found, wanted = (statistics_of(maps, EXACT[12:], K).correlation_px for maps in (simulated, noisy[12:]))
    assert found == pytest.approx(wanted, rel=0.4)


def test_classes_the_map_does_not_know_err_each_in_its_own_way():
    """Class 3 (a car park) and class 0 (a lawn) are background to the map, but one of them it takes for a street."""
    rng = np.random.default_rng(0)
    rich = [np.where((mask == 0) & (np.arange(SIDE) < 80), 3, mask).astype(np.uint8) for mask in EXACT]
    to_noisy = np.array([0, 1, 2, 0])
    maps = []
    for mask in rich:
        noisy = to_noisy[mask].astype(np.uint8)
        noisy[(mask == 3) & (noise.smooth_field(mask.shape, 6, rng) < -0.5)] = 2
        maps.append(noisy)
    made = calibrate.fit(maps[:12], rich[:12], to_noisy, K, rng=rng)
    simulated = made.apply(rich[12:], rng)[0]
    truth = np.stack(rich[12:])
    share = [[(np.stack(masks) == 2)[truth == k].mean() for k in (0, 3)] for masks in (simulated, maps[12:])]
    assert share[0][0] < 0.01 and share[0][1] == pytest.approx(share[1][1], abs=0.05)


def test_a_class_without_counterpart_becomes_what_the_map_calls_it_most():
    to_noisy = np.array([0, VOID, 2])
    noisy = [np.where(mask == 1, 2, mask).astype(np.uint8) for mask in EXACT[:3]]
    assert calibrate.fit(noisy, EXACT[:3], to_noisy, K, rng=np.random.default_rng(0), rounds=0).to_noisy.tolist() == [
        0,
        2,
        2,
    ]


def test_a_class_that_was_not_audited_errs_like_the_rest():
    few = [np.where(mask == 2, 0, mask).astype(np.uint8) for mask in EXACT[:4]]
    right = calibrate.fit(few, few, SAME, K, rng=np.random.default_rng(0))
    assert right.apply(EXACT[5], np.random.default_rng(1))[1].mean() < 0.01
    wrong = [noise.flip_labels(mask, 0.2, 2, rng=np.random.default_rng(i))[0] for i, mask in enumerate(few)]
    noisy, changed = calibrate.fit(wrong, few, SAME, K, rng=np.random.default_rng(0)).apply(
        EXACT[5], np.random.default_rng(1)
    )
    assert 0.05 < changed[EXACT[5] == 2].mean() < 0.5
    unseen = calibrate.fit(few, few, [0, 1, 2, VOID], K, rng=np.random.default_rng(0), rounds=0)
    assert unseen.to_noisy.tolist() == [0, 1, 2, VOID]
    assert (unseen.apply(np.full((9, 9), 3, np.uint8), np.random.default_rng(0))[0] == VOID).all()


def test_the_map_shows_about_as_many_areas_as_the_audited_one(made):
    """Errors do not crumble into specks."""
    count = lambda maps: sum(ndimage.label(m == k)[1] for m in maps for k in range(K))  # noqa: E731
    simulated = made.apply(EXACT[12:], np.random.default_rng(0))[0]
    assert count(simulated) < 1.6 * count(NOISY[12:])


def test_void_stays_classes_are_legal_and_the_seed_decides(made):
    mask = EXACT[13].copy()
    mask[:40] = VOID
    noisy, changed = made.apply(mask, np.random.default_rng(3))
    again, _ = made.apply(mask, np.random.default_rng(3))
    assert np.array_equal(noisy == VOID, mask == VOID) and noisy[mask != VOID].max() < K
    assert np.array_equal(noisy, again) and not changed[:40].any()
    assert np.array_equal(changed, noisy != mask)
    assert (made.apply(np.full((20, 20), VOID, np.uint8), np.random.default_rng(0))[0] == VOID).all()
    stack = made.apply(np.stack(EXACT[:2]), np.random.default_rng(3))[0]
    listed = made.apply(EXACT[:2], np.random.default_rng(3))[0]
    assert isinstance(stack, np.ndarray) and all(np.array_equal(a, b) for a, b in zip(stack, listed, strict=True))


def test_images_of_one_scene_are_pooled_on_both_sides():
    """Masks compared with themselves agree in every number, however they are grouped."""
    names = ["a", "a", "b", "b"]
    same = lambda rng: NOISY[:4]  # noqa: E731
    table = calibrate.goodness(same, NOISY[:4], EXACT[:4], K, rng=np.random.default_rng(0), groups=names, n_draws=1)
    assert np.allclose(table.simulated, table.value, equal_nan=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibrate.fit(NOISY[:2], EXACT[:3], SAME, K, rng=None), "2 noisy masks, 3 exact ones"),
        (lambda: calibrate.fit([NOISY[0][:9]], EXACT[:1], SAME, K, rng=None), "image 0.*differ in shape"),
        (
            lambda: calibrate.fit(NOISY[:1], EXACT[:1], [0, 1, 0], 2, rng=None),
            r"image 0: the noisy mask holds classes \[2\]",
        ),
        (lambda: calibrate.fit(NOISY[:1], EXACT[:1], SAME[:2], K, rng=None), r"image 0: the exact mask holds classes"),
        (lambda: calibrate.fit(NOISY[:1], EXACT[:1], [0, 1, 7], K, rng=None), r"to_noisy gives .* 0..2 or void"),
        (lambda: calibrate.fit([EXACT[0] * 0 + VOID], EXACT[:1], SAME, K, rng=None), "no pixel is valid in both"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_names_of_a_legend_are_keys(made):
    own = legend.Legend("three", ("ground", "thing", "street"), ("#888888", "#00aa00", "#aa0000"))
    table = calibrate.goodness(
        lambda rng: NOISY[:4], NOISY[:4], EXACT[:4], own, rng=np.random.default_rng(0), n_draws=1
    )
    assert "ground -> street" in set(table.key)
    assert np.allclose(table.simulated, table.value, equal_nan=True) and table.inside.dropna().astype(bool).all()
