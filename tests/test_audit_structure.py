"""Where and how a map errs: against counting by hand and against noise planted here, without nbutils.noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage import measure

from nbutils import audit, legend
from nbutils.audit import findings, objects, structure
from nbutils.legend import VOID

K = 3
IDS = st.sampled_from([*range(K), VOID])
PAIRS = hnp.array_shapes(min_dims=2, max_dims=2, max_side=14).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=IDS)] * 2)
)
EDGES, SIZES = audit.EDGES_PX, audit.SIZES_PX


def band_of(distance: float, edges: tuple[float, ...]) -> int:
    return int(np.searchsorted(edges, distance, side="right")) - 1


# --- objects


@settings(deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30), elements=IDS), st.booleans())
def test_objects_are_the_connected_areas_of_one_class(mask, ragged):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "RAGGED", 10**9 if ragged else 0)
        found = objects.find_objects(mask)
    truth = measure.label(mask.astype(int), background=-1, connectivity=1)
    image = np.repeat(found.of_run, found.lengths).reshape(mask.shape)
    pairs = np.unique(np.stack([truth[mask != VOID], image[mask != VOID]]), axis=1)
    areas = len(np.unique(truth[mask != VOID]))
    assert pairs.shape[1] == areas == len(np.unique(pairs[1])), "one number per area, whichever way they are found"
    assert (found.class_of[image] == mask).all() and found.area.sum() == mask.size
    flags = np.random.default_rng(0).random(mask.shape) < 0.5
    assert found.count(flags)[image].tolist() == [[int(flags[image == i].sum()) for i in row] for row in image], (
        "pixels are counted within each object"
    )
    chosen = np.arange(len(found)) % 2 == 0
    assert (found.paint(chosen) == chosen[image]).all()


def test_classes_beside_an_object():
    mask = np.array([[0, 0, 1, 2], [1, 1, 1, 2], [2, 2, 2, VOID]], np.uint8)
    found = objects.find_objects(mask)
    ones = found.class_of == 1
    assert np.flatnonzero(found.beside(ones)[0]).tolist() == [0, 2], "a new row is not beside the end of the last"
    others = [np.flatnonzero(row).tolist() for row in found.beside(~ones)]
    assert sorted(others) == [[1], [1], [2], [VOID]]


# --- counts against counting by hand


@settings(deadline=None, max_examples=60)
@given(PAIRS)
def test_bands_and_commission_by_distance_agree_with_the_whole_transform(pair):
    noisy, exact = pair
    found = structure.count(noisy, exact, K)
    joint, outside = np.zeros_like(found.joint), np.zeros_like(found.outside)
    to_boundary = audit.boundary_distance(exact)
    to_class = [ndimage.distance_transform_edt(exact != c) if (exact == c).any() else None for c in range(K)]
    for (y, x), here in np.ndenumerate(exact):
        if here == VOID or noisy[y, x] == VOID:
            continue
        joint[band_of(min(to_boundary[y, x], 99), EDGES), here, noisy[y, x]] += 1
        for c in range(K):
            if c != here:
                away = 99 if to_class[c] is None else to_class[c][y, x]
                outside[band_of(away, EDGES), c] += [1, noisy[y, x] == c]
    assert (found.joint == joint).all() and (found.outside == outside).all()
    assert found.kinds.sum() == joint.sum() - np.trace(joint.sum(axis=0)), "every wrong pixel has one kind"


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 9999))
def test_a_boundary_explains_what_lies_within_its_reach(seed):
    rng = np.random.default_rng(seed)
    exact = np.where(rng.random((17, 19)) < 0.03, rng.integers(1, K, (17, 19)), 0).astype(np.uint8)
    noisy = rng.integers(0, K, exact.shape).astype(np.uint8)
    wrong = np.flatnonzero(noisy != exact)
    found = structure._beyond_boundary(exact, noisy.ravel(), np.zeros(exact.shape, np.uint8), wrong)
    far = np.full(exact.shape, np.inf)
    away = [ndimage.distance_transform_edt(exact != c) if (exact == c).any() else far for c in range(K)]
    near = np.choose(noisy, away).ravel()[wrong] <= structure.BOUNDARY_PX
    assert np.array_equal(found, near)


@settings(max_examples=60)
@given(st.tuples(*[st.floats(-0.9, 0.9)] * 2), st.tuples(*[st.floats(0.01, 3)] * 2), st.floats(-0.9, 0.9))
def test_the_summit_of_a_paraboloid_is_its_top(top, bent, twist):
    rows, columns = np.indices((3, 3)) - 1.0 - np.reshape(top, (2, 1, 1))
    mixed = 2 * twist * np.sqrt(bent[0] * bent[1])
    dome = -(bent[0] * rows**2 + bent[1] * columns**2 + mixed * rows * columns)
    assert structure._summit(dome) == pytest.approx(np.array(top), abs=1e-6)
    assert structure._summit(-dome).tolist() == [0, 0], "a hollow has no top"


@settings(deadline=None, max_examples=60)
@given(PAIRS)
def test_pairs_of_errors_agree_with_counting(pair):
    noisy, exact = pair
    known = (noisy != VOID) & (exact != VOID)
    wrong = known & (noisy != exact)
    expected = np.zeros((len(structure.LAGS_PX), 4), int)
    for i, lag in enumerate(structure.LAGS_PX):
        for (y, x), a in np.ndenumerate(wrong):
            for other in ((y + lag, x), (y, x + lag)):
                if other[0] < wrong.shape[0] and other[1] < wrong.shape[1] and known[y, x] and known[other]:
                    expected[i] += [a and wrong[other], wrong[other], a, 1]
    assert (structure._lags(noisy, exact)[1:] == expected).all()


def test_objects_by_class_and_size():
    exact = np.zeros((20, 30), np.uint8)
    exact[2:4, 2:4], exact[8:13, 2:7], exact[2:6, 12:16] = 1, 1, 2
    noisy = exact.copy()
    noisy[2:4, 2:4] = 0  # omitted, 4 px
    noisy[8:10, 2:7] = 0  # 15 of 25 px remain: not omitted
    noisy[15:17, 20:28] = 2  # committed, 16 px
    noisy[2:4, 12:15] = 0  # 10 of 16 px remain
    table = audit.statistics_of(noisy, exact, 3).table().set_index(["statistic", "key"])
    share = table.value
    assert share["omission", "1, 4-15 px"] == 1 and share["omission", "1, 16-63 px"] == 0
    assert share["omission", "1, all"] == 0.5 and share["omission", "2, all"] == 0 and share["omission", "all"] == 0.25
    assert share["commission", "2, 16-63 px"] == 1 and share["commission", "1, all"] == 0
    assert np.isnan(share["commission", "1, 16-63 px"]) and table.n["omission", "all"] == 4


def scene_of_squares() -> np.ndarray:
    exact = np.zeros((120, 120), np.uint8)
    for i, (y, x) in enumerate(np.ndindex(5, 5)):
        exact[10 + 21 * y :, 10 + 21 * x :][:10, :10] = 1 + i % 2
    return exact


def test_each_kind_is_recognised():
    exact = scene_of_squares()
    planted = {kind: exact.copy() for kind in audit.KINDS}
    planted["shift"] = np.pad(exact, ((3, 0), (2, 0)))[:-3, :-2]
    planted["omission"][10:20, 10:20] = planted["omission"][52:62, 31:41] = 0
    planted["commission"][21:30, 21:30] = 2
    planted["boundary"] = np.where(ndimage.binary_erosion(exact > 0) | (exact == 0), exact, 0).astype(np.uint8)
    planted["speckle"][5:100:7, 0] = 1
    planted["confusion"][10:20, 10:20] = 2  # wholly another class that is not beside it
    for kind, noisy in planted.items():
        found = audit.statistics_of(noisy, exact, 3)
        assert found.kinds[kind] == 1, kind
    assert audit.statistics_of(planted["shift"], exact, 3).shift_px == pytest.approx([3, 2], abs=0.05)
    assert all(np.isnan(list(audit.statistics_of(exact, exact, 3).kinds.values())))


def test_correlation_length_of_known_fields():
    rng = np.random.default_rng(0)
    exact = np.zeros((4, 256, 256), np.uint8)
    for sigma in (0.0, 3.0, 8.0):
        field = rng.standard_normal(exact.shape)
        field = ndimage.gaussian_filter(field, (0, sigma, sigma), mode="wrap")
        noisy = (field > np.quantile(field, 0.8)).astype(np.uint8)
        rows = np.fft.irfft(np.abs(np.fft.rfft(noisy - noisy.mean(), axis=2)) ** 2, axis=2).sum(axis=(0, 1))
        at = int((rows / rows[0] < np.exp(-1)).argmax())  # the whole autocorrelation along rows
        found = audit.statistics_of(noisy, exact, 2).correlation_px
        assert at - 1 <= found * 1.08 and found * 0.92 <= at, sigma
    assert np.isnan(audit.statistics_of(exact, exact, 2).correlation_px)
    blobs = np.zeros((1, 200, 200), np.uint8)
    blobs[:, :, :150] = 1
    assert audit.statistics_of(blobs, np.zeros_like(blobs), 2).correlation_px > 20


def test_large_images_are_sampled_evenly(monkeypatch):
    exact = np.tile(scene_of_squares(), (4, 4))
    rng = np.random.default_rng(0)
    noisy = np.where(rng.random(exact.shape) < 0.3, rng.integers(0, 3, exact.shape), exact).astype(np.uint8)
    noisy = np.pad(noisy, ((2, 0), (1, 0)))[:-2, :-1]
    whole = audit.statistics_of(noisy, exact, 3)
    monkeypatch.setattr(structure, "SAMPLE", (1 << 10, 100, 16))
    monkeypatch.setattr(structure, "LARGER", (1 << 10, 200, 4))
    sampled = audit.statistics_of(noisy, exact, 3)
    assert sampled.kinds == pytest.approx(whole.kinds, abs=0.02)
    assert 0.6 < sampled.counts.kinds.sum() / whole.counts.kinds.sum() * exact.size / (4 * 200**2) < 1.4
    assert sampled.counts.lags[0, 0, 3] == 2 * 16 * 100**2 and sampled.confusion.rate == whole.confusion.rate
    assert sampled.shift_px == pytest.approx(whole.shift_px, abs=0.1)
    near = np.s_[:, 6:10]
    assert sampled.signed[near] == pytest.approx(whole.signed[near], abs=0.05, nan_ok=True)


# --- no crash, the same rows


@pytest.mark.parametrize("ids", [[VOID], [0], [1], [0, 1, 2, VOID]])
@pytest.mark.parametrize("shapes", [[], [(1, 1)], [(1, 1)] * 3, [(5, 90), (40, 50), (3, 3)], [(0, 4), (7, 1)]])
@pytest.mark.filterwarnings("error")
def test_nothing_to_see_is_no_crash(ids, shapes):
    rng = np.random.default_rng(0)
    exact, noisy = ([rng.choice(np.array(ids, np.uint8), shape) for shape in shapes] for _ in range(2))
    found = audit.examine(noisy, exact, 3, rng=rng, n_draws=50)
    table = found.table()
    assert list(table) == ["statistic", "key", "value", "low", "high", "n"] and len(found.counts.lags) == len(shapes)
    assert not table.duplicated(["statistic", "key"]).any()
    assert (table.key == audit.statistics_of(exact, exact, 3).table().key).all()
    if len(shapes) < 2:
        assert table[["low", "high"]].isna().all(axis=None)
    known = table.dropna()
    assert ((known.low <= known.value + 1e-12) & (known.value <= known.high + 1e-12)).all()


def test_names_units_and_parts():
    names = legend.get("autogeo4")
    rng = np.random.default_rng(0)
    exact = np.kron(rng.integers(0, 4, (3, 6, 6), dtype=np.uint8), np.ones((1, 12, 12), np.uint8))
    noisy = np.roll(exact, (2, 1), (1, 2))
    found = audit.examine(noisy, exact, names, gsd_m=0.5, rng=rng, n_draws=100)
    table = found.table()
    assert f"{names.names[0]} -> {names.names[1]}" in set(table.key)
    assert found.shift_m == pytest.approx(found.shift_px / 2) and found.correlation_m == found.correlation_px / 2
    by = table.set_index(["statistic", "key"]).value
    told = ["rate", "transition", "iou", "profile", "signed", "omission", "commission", "shift", "kinds", "correlation"]
    assert list(table.statistic.unique()) == told
    assert list(by["profile"].index) == ["1-2 px", "2-3 px", "3-6 px", "6-9 px", "9-13 px", "13+ px"]
    assert by["shift"].to_dict() == pytest.approx(
        {"down": found.shift_px[0], "right": found.shift_px[1], "length": np.hypot(*found.counts.shift.T).mean()},
        rel=0.05,
    )
    compared, profile = audit.compare(noisy, exact, 4), audit.boundary_profile(noisy, exact, EDGES)
    assert by["rate", "all"] == compared.rate and (found.confusion.confusion == compared.confusion).all()
    assert by["iou"].to_numpy() == pytest.approx(compared.iou)
    assert by["transition"].to_numpy() == pytest.approx(compared.transition.ravel())
    assert by["profile"].to_numpy() == pytest.approx(found.profile.rate)
    assert found.profile.rate == pytest.approx(profile.rate) and (found.profile.count == profile.count).all()
    assert by["signed"].to_numpy() == pytest.approx(found.signed.ravel(), nan_ok=True)
    assert sum(found.kinds.values()) == pytest.approx(1)
    rows = findings._ratios_of(found)
    assert {name for (name, _), share in zip(rows.names, rows.share, strict=True) if not share} == {"shift"}
    assert audit.examine(noisy, exact, names, rng=rng, n_draws=9).gsd_m == 1
    again = audit.examine(noisy, exact, names, rng=np.random.default_rng(1), n_draws=100).table()
    twice = audit.examine(noisy, exact, names, rng=np.random.default_rng(1), n_draws=100).table()
    assert again.equals(twice), "the generator decides"
    with pytest.raises(ValueError, match="class ids 3; with 3 classes they are 0..2"):
        audit.statistics_of(noisy, exact, 3)


def test_a_displacement_takes_no_part_of_empty_images():
    square = np.zeros((40, 40), np.uint8)
    square[10:30, 12:25] = 1
    empty = np.zeros_like(square)
    found = audit.statistics_of([np.roll(square, (2, -3), (0, 1)), empty], [square, empty], 2)
    assert found.shift_px == pytest.approx([2, -3], abs=0.1) and np.isnan(found.counts.shift[1]).all()
    assert findings.correlation_length(found.counts.lags).shape == (2,)


def test_omitted_objects_are_no_displacement():
    """On 64-px masks, one object laid on another's place gained agreement in 40 % of the trials."""
    rng, moved, untold = np.random.default_rng(0), [], []
    for _ in range(80):
        exact, noisy = np.zeros((2, 64, 64), np.uint8)
        for _ in range(12):
            (y, x), (height, width) = rng.integers(0, 60, 2), rng.integers(4, 18, 2)
            one = np.s_[y : y + height, x : x + width]
            exact[one] = rng.integers(1, 4)
            noisy[one] = exact[one] * (rng.random() < 0.5)
        found, step, _ = structure.displacement([(noisy, exact)])
        moved.append(any(step))
        untold.append(np.isnan(found).any())
    assert np.mean(moved) < 0.1 and np.mean(untold) < 0.3


@settings(deadline=None, max_examples=40)
@given(st.integers(16, 80), st.integers(0, 2**32 - 1))
def test_displacements_lie_within_the_reach(side, seed):
    rng = np.random.default_rng(seed)
    exact, noisy = (np.kron(rng.integers(0, 3, (20, 20)), np.ones((4, 4)))[:side, :side] for _ in range(2))
    found = structure.displacement([(noisy.astype(np.uint8), exact.astype(np.uint8))])[0]
    assert not (np.abs(found) > min(15, side / 4)).any()


@pytest.mark.parametrize("rows, columns", [(64, 64), (20, 20)])
def test_the_correlogram_is_the_correlation_of_the_error_indicator(rows, columns):
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.standard_normal((60, rows, columns)), (0, 4, 4), mode="wrap")
    wrong = field > np.quantile(field, 0.8)
    found = audit.statistics_of(wrong.astype(np.uint8), np.zeros(wrong.shape, np.uint8), 2).correlogram
    away = wrong - wrong.mean()
    lags = [lag for lag in (0, *structure.LAGS_PX) if lag < rows]
    down = [(away[:, lag:] * away[:, : rows - lag]).mean() for lag in lags]
    right = [(away[..., lag:] * away[..., : columns - lag]).mean() for lag in lags]
    expected = np.add(down, right) / 2
    assert len(found) == lags[-1] + 1 and found[0] == 1 and ((found >= 0) & (found <= 1)).all()
    assert found[lags] == pytest.approx(np.clip(expected / wrong.var(), 0, 1), abs=2e-3)
    assert found[5] == pytest.approx((found[4] + found[6]) / 2), "linear between lags"
    nothing = audit.statistics_of(np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8), 2).correlogram
    assert nothing.shape == (structure.LAGS_PX[-1] + 1,) and np.isnan(nothing).all()
