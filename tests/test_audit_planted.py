"""Planted noise is recovered, and intervals cover it as often as they say; the planting is written here."""

import numpy as np
import pytest

from nbutils import audit
from nbutils.audit.intervals import mean_intervals, share_intervals, spread_interval

K, SIDE, CELLS = 4, 40, 3


def scene(rng: np.random.Generator) -> np.ndarray:
    """Nine rectangles of classes 1..3, 5 to 10 px a side, on background 0; none touches another."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for y, x in np.ndindex(CELLS, CELLS):
        height, width = rng.integers(5, 11, 2)
        mask[2 + 13 * y :, 2 + 13 * x :][:height, :width] = rng.integers(1, K)
    return mask


def area_shares() -> np.ndarray:
    """Expected share of the ground per class in `scene`."""
    objects = CELLS**2 * 7.5**2 / SIDE**2
    return np.array([1 - objects, *[objects / (K - 1)] * (K - 1)])


def plant(exact: np.ndarray, omitted: float, matrix: np.ndarray, patch_px: int, rng: np.random.Generator) -> np.ndarray:
    """Replace objects by background with probability `omitted`, then classes as the matrix says, patch by patch."""
    noisy = exact.copy()
    for y, x in np.ndindex(CELLS, CELLS):
        if rng.random() < omitted:
            noisy[2 + 13 * y :, 2 + 13 * x :][:10, :10] = 0
    draw = np.kron(rng.random((SIDE // patch_px,) * 2), np.ones((patch_px, patch_px)))
    return (draw[..., None] > matrix.cumsum(axis=1)[noisy][..., :-1]).sum(axis=-1).astype(np.uint8)


def around(mean: float, concentration: float, n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.beta(mean * concentration, (1 - mean) * concentration, n) if mean else np.zeros(n)


def planted_case(case: int, n_images: int, rng: np.random.Generator) -> tuple[list, list, dict]:
    """Images of one ground truth: rates differ from image to image around the planted ones."""
    omitted = (0.1, 0.25, 0.4)[case % 3]
    rate, patch_px = (0.05, 0.15)[case // 3 % 2], (1, 4)[case // 6 % 2]
    others = rng.dirichlet(np.full(K - 1, 2.0), K)
    confused = np.zeros((K, K))
    confused[~np.eye(K, dtype=bool)] = others.ravel()
    matrices = lambda q: (1 - q) * np.eye(K) + q * confused  # noqa: E731
    exact = [scene(rng) for _ in range(n_images)]
    rates, shares = around(rate, 20, n_images, rng), around(omitted, 10, n_images, rng)
    noisy = [plant(e, p, matrices(q), patch_px, rng) for e, q, p in zip(exact, rates, shares, strict=True)]
    left = np.eye(K) * (1 - omitted)
    left[:, 0] += omitted
    left[0] = np.eye(K)[0]
    matrix = left @ matrices(rate)
    truth = {("transition", f"{i} -> {j}"): matrix[i, j] for i in range(K) for j in range(K)}
    truth["rate", "all"] = 1 - area_shares() @ np.diagonal(matrix)
    truth |= {("omission", f"{c}, all"): omitted for c in range(1, K)}
    return noisy, exact, truth


@pytest.mark.parametrize("n_images, cases, least", [(24, 204, 0.93), (6, 48, 0.92)])
def test_planted_rates_matrices_and_omissions_lie_in_their_intervals(n_images, cases, least, capsys):
    rng = np.random.default_rng(n_images)
    inside: dict[str, list[bool]] = {}
    for case in range(cases):
        noisy, exact, truth = planted_case(case, n_images, rng)
        table = audit.examine(noisy, exact, K, rng=rng, n_draws=400).table().set_index(["statistic", "key"])
        for (statistic, key), value in truth.items():
            low, high = table.loc[(statistic, key), ["low", "high"]]
            inside.setdefault(statistic, []).append(low <= value <= high)
    coverage = {statistic: float(np.mean(hits)) for statistic, hits in inside.items()}
    with capsys.disabled():
        told = ", ".join(f"{s} {c:.1%} of {len(inside[s])}" for s, c in coverage.items())
        print(f"\n95 % intervals from {n_images} images hold what was planted, {cases} cases: {told}")
    assert min(coverage.values()) >= least and max(coverage.values()) <= 0.995


# --- displacement


def vector_scene(rng: np.random.Generator, size: int) -> np.ndarray:
    """Rectangles and discs of classes 1..3 over one another, 6 to 30 units of eight."""
    mask = np.zeros((size, size), np.uint8)
    rows, columns = np.ogrid[:size, :size]
    for _ in range(size * size // 20000):
        y, x = rng.integers(0, size, 2)
        height, width = rng.integers(48, 200, 2)
        if rng.random() < 0.5:
            mask[y : y + height, x : x + width] = rng.integers(1, K)
        else:
            mask[(rows - y) ** 2 + (columns - x) ** 2 < (height // 2) ** 2] = rng.integers(1, K)
    return mask


def test_planted_displacements_are_found_to_a_quarter_of_a_pixel(capsys):
    rng, side, margin, over = np.random.default_rng(0), 64, 6, 8
    errors, inside = [], []
    for case in range(60):
        eighths = rng.integers(-5 * over, 5 * over + 1, 2)
        exact, noisy = [], []
        for _ in range(4):
            ground = vector_scene(rng, (side + 2 * margin) * over)
            start = margin * over + over // 2
            cut = [slice(s, s + side * over, over) for s in (start, start, *(start - eighths))]
            exact.append(ground[cut[0], cut[1]].copy())
            moved = ground[cut[2], cut[3]]
            wrong = rng.random(moved.shape) < (0, 0.1, 0.3)[case % 3]
            noisy.append(np.where(wrong, rng.integers(0, K, moved.shape), moved).astype(np.uint8))
        found = audit.examine(noisy, exact, K, rng=rng, n_draws=100)
        errors.append(found.shift_px - eighths / over)
        low, high = found.table().set_index(["statistic", "key"]).loc["shift", ["low", "high"]].to_numpy()[:2].T
        inside += ((low <= eighths / over) & (eighths / over <= high)).tolist()
    errors = np.abs(errors)
    with capsys.disabled():
        print(f"\n60 displacements: off by {errors.mean():.3f} px, at most {errors.max():.3f} px; ", end="")
        print(f"{np.mean(inside):.1%} within their intervals from 4 images")
    assert errors.max() <= 0.25 and np.mean(inside) >= 0.85


# --- intervals by themselves


def test_intervals_hold_their_value_and_narrow_with_images():
    rng = np.random.default_rng(0)
    width = []
    for n in (5, 20, 80):
        whole = rng.integers(50, 2000, (n, 6)).astype(float)
        part = rng.binomial(whole.astype(int), rng.beta(2, 8, (n, 6))).astype(float)
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=500).astype(float)
        low, high = share_intervals(part, whole, drawn, 0.95).T
        share = part.sum(axis=0) / whole.sum(axis=0)
        assert (low >= 0).all() and (low < share).all() and (share < high).all() and (high <= 1).all()
        narrower = share_intervals(part, whole, drawn, 0.5)
        assert (narrower[:, 0] > low).all() and (narrower[:, 1] < high).all()
        width.append((high - low).mean())
    assert width == sorted(width, reverse=True)


def test_intervals_of_what_never_varies():
    drawn = np.random.default_rng(0).multinomial(10, np.full(10, 0.1), size=200).astype(float)
    whole = np.tile([100.0, 100, 100, 0], (10, 1))
    part = np.tile([0.0, 100, 25, 0], (10, 1))
    limits = share_intervals(part, whole, drawn, 0.95)
    assert limits[0, 0] == 0 and limits[1, 1] == 1 and 0.05 < limits[0, 1] < 0.4, "none of ten images is not never"
    assert limits[0, 1] == pytest.approx(1 - limits[1, 0])
    assert limits[2] == pytest.approx([0.25, 0.25]) and np.isnan(limits[3]).all()


def test_intervals_of_means_are_students():
    values = np.array([1.0, 2, 4, 7])
    low, high = mean_intervals(values[:, None], np.ones((4, 1)), 0.95)[0]
    half = 3.182446 * values.std(ddof=1) / 2  # t of 3 degrees of freedom, from tables
    assert (low, high) == pytest.approx((3.5 - half, 3.5 + half), rel=1e-6)
    assert np.isnan(mean_intervals(values[:1, None], np.ones((1, 1)), 0.95)).all()
    assert np.isnan(spread_interval(3.0, np.array([3.0, 3.0]), 1, 0.95)).all()
    low, high = spread_interval(3.0, np.array([2.0, 3, 4.5]), 10, 0.95)
    assert low * high == pytest.approx(9) and low < 3
    with pytest.raises(ValueError, match=r"\(0, 1\), got 95"):
        mean_intervals(values[:, None], np.ones((4, 1)), 95)
