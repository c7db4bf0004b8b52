"""Where early learning ends: known transitions under noise, curves without one, no look ahead."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbutils import memorisation


def _three_stages(n: int, end: int, onset: int) -> np.ndarray:
    """Accuracy against noisy labels: a straight rise to 0.7 at `end`, flat to `onset`, then 0.1 more."""
    return np.interp(np.arange(n), [0, end, onset, n - 1], [0.2, 0.7, 0.7, 0.8])


@pytest.mark.parametrize(("n", "end"), [(20, 6), (50, 12), (50, 25), (100, 30), (100, 60)])
@pytest.mark.parametrize("sigma", [0.0, 0.005, 0.02])
def test_a_planted_transition_is_found_soon_after_it_happened(n, end, sigma):
    """The delay is what the longest window needs to be flat; noise must bring no early call and little delay."""
    curve = _three_stages(n, end, n - 5)
    delays = []
    for seed in range(60 if sigma else 1):
        noisy = curve + np.random.default_rng(seed).normal(0, sigma, n)
        found = memorisation.transition(np.arange(n), noisy)
        assert found is not None
        delays.append(found - end)
    early = np.mean(np.array(delays) < 0)
    assert early <= (0.05 if sigma == 0.02 else 0)
    assert 2 <= np.median(delays) <= 10
    assert np.quantile(delays, 0.9) <= 14


def test_a_saturating_curve_is_called_where_its_slope_is_the_stated_share_of_the_mean():
    """1 - exp(-x) has slope x / (exp(x) - 1) over mean slope: 0.3 at x = 2.06; a window adds half of itself."""
    t, tau = np.arange(400), 60.0
    found = memorisation.transition(t, 0.2 + 0.6 * (1 - np.exp(-t / tau)))
    assert (found - max(memorisation.WINDOWS) / 2) / tau == pytest.approx(2.06, abs=0.06)


@pytest.mark.parametrize(
    "curve",
    [
        np.linspace(0.2, 0.9, 60),
        np.linspace(0.2, 0.9, 60) ** 2,  # ever steeper
        np.linspace(0.9, 0.2, 60),
        np.full(60, 0.5),
        np.full(60, 0.0),
        0.5 + 0.009 * np.minimum(np.arange(60) / 5, 2),  # rises by less than MIN_RISE
    ],
)
def test_curves_without_a_transition(curve):
    assert memorisation.transition(np.arange(len(curve)), curve) is None


def test_noise_alone_is_not_called_learning():
    found = [
        memorisation.transition(np.arange(100), 0.5 + np.random.default_rng(seed).normal(0, 0.02, 100))
        for seed in range(100)
    ]
    assert sum(step is not None for step in found) <= 1


def test_short_curves_have_no_transition():
    longest = max(memorisation.WINDOWS)
    curve = np.r_[0.1, np.full(longest - 2, 0.9)]
    assert memorisation.transition(np.arange(len(curve)), curve) is None
    assert memorisation.transition([], []) is None


@settings(max_examples=10)
@given(st.integers(0, 2**16), st.integers(10, 60), st.floats(0, 0.02))
def test_the_call_at_a_step_uses_no_later_point(seed, end, sigma):
    curve = _three_stages(80, end, 75) + np.random.default_rng(seed).normal(0, sigma, 80)
    steps = 10 * np.arange(80) + 3
    whole = memorisation.transition(steps, curve)
    online = [memorisation.transition(steps[:n], curve[:n]) for n in range(1, 81)]
    called = [n for n, step in enumerate(online) if step is not None]
    if whole is None:
        assert not called
    else:
        assert called == list(range(called[0], 80))
        assert {online[n] for n in called} == {whole} == {steps[called[0]]}


def test_what_comes_after_the_call_does_not_change_it():
    curve = _three_stages(60, 20, 55) + np.random.default_rng(0).normal(0, 0.005, 60)
    found = memorisation.transition(np.arange(60), curve)
    for wild in (np.tile([0.0, 1.0], 20), np.zeros(40), np.linspace(0.7, 1, 40)):
        changed = np.r_[curve[: found + 1], wild]
        assert memorisation.transition(np.arange(len(changed)), changed) == found


@given(st.floats(0.01, 1000), st.integers(-1000, 1000))
def test_the_unit_of_the_steps_does_not_matter(scale, offset):
    curve = _three_stages(50, 20, 45) + np.random.default_rng(0).normal(0, 0.005, 50)
    point = memorisation.transition(np.arange(50), curve)
    assert memorisation.transition(offset + np.arange(50) * 1000, curve) == offset + point * 1000
    found = memorisation.transition(np.arange(50) * scale, curve)
    assert found == int(point * scale)


def test_all_windows_must_be_flat():
    """A plateau of 8 points flattens a window of 4, not one of 16."""
    curve = np.interp(np.arange(60), [0, 20, 28, 59], [0.1, 0.5, 0.5, 0.9])
    assert 20 < memorisation.transition(np.arange(60), curve, windows=(4,)) <= 28
    assert memorisation.transition(np.arange(60), curve, windows=(4, 16)) is None


def test_noise_is_measured_beside_a_trend():
    rng = np.random.default_rng(0)
    values = np.linspace(0, 5, 2000) ** 2 + rng.normal(0, 0.03, 2000)
    assert memorisation.noise(values) == pytest.approx(0.03, rel=0.1)
    assert memorisation.noise(np.linspace(0, 1, 50)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 0.01])
def test_stages_of_a_training_that_memorises(sigma):
    """Accuracy on the truth peaks at 40 and is lost from 50 on."""
    steps = np.arange(100)
    for seed in range(50 if sigma else 1):
        rng = np.random.default_rng(seed)
        noisy = _three_stages(100, 25, 50) + rng.normal(0, sigma / 2, 100)
        exact = np.interp(steps, [0, 25, 40, 50, 99], [0.2, 0.7, 0.78, 0.77, 0.5]) + rng.normal(0, sigma, 100)
        found = memorisation.stages(steps, noisy, exact)
        assert abs(found.best - 40) <= (12 if sigma else 0)
        assert 45 <= found.memorisation <= (65 if sigma else 53)
        assert 25 < found.transition < 40
        borders = found.borders()
        assert list(borders) == ["early learning", "transition", "memorisation"]
        assert borders["early learning"][0] == 0 and borders["memorisation"][1] == 99
        assert borders["early learning"][1] == borders["transition"][0] == found.transition
        assert borders["transition"][1] == borders["memorisation"][0] == found.memorisation


def test_a_training_that_keeps_learning_has_one_stage():
    steps = np.arange(40)
    found = memorisation.stages(steps, np.linspace(0.1, 0.8, 40), np.linspace(0.1, 0.7, 40))
    assert (found.transition, found.best, found.memorisation) == (None, 39, None)
    assert found.borders() == {"early learning": (0, 39)}


def test_one_lucky_point_is_no_peak():
    exact = np.interp(np.arange(50), [0, 20, 49], [0.1, 0.6, 0.6])
    exact[5] = 0.95
    found = memorisation.stages(np.arange(50), exact, exact)
    assert found.best >= 20 and found.memorisation is None
    assert memorisation.stages(np.arange(50), exact, exact, smooth=1).best == 5, "nothing is smoothed"


@pytest.mark.parametrize("smooth", [1, 3, 5, 9])
def test_the_peak_is_that_of_the_running_median(smooth):
    exact = np.random.default_rng(1).random(50)
    around = np.arange(50)[:, None] + np.arange(smooth) - smooth // 2
    expected = int(np.median(exact[around.clip(0, 49)], axis=1).argmax())
    assert memorisation.stages(np.arange(50), exact, exact, smooth=smooth).best == expected


def test_two_points_show_no_noise():
    assert memorisation.noise(np.array([0.1, 0.9])) == 0


def test_errors_learnt_before_the_call_leave_no_transition_between():
    found = memorisation.Stages(first=0, last=50, transition=30, best=10, memorisation=20)
    assert found.borders() == {"early learning": (0, 20), "memorisation": (20, 50)}


def test_what_is_no_curve_is_refused():
    with pytest.raises(ValueError, match="one length"):
        memorisation.transition([1, 2, 3], [0.1, 0.2])
    with pytest.raises(ValueError, match="increase"):
        memorisation.transition([1, 3, 2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="finite"):
        memorisation.transition([1, 2, 3], [0.1, np.nan, 0.3])
    with pytest.raises(ValueError, match="3 or more"):
        memorisation.transition([1, 2, 3], [0.1, 0.2, 0.3], windows=(2,))
    for flat in (0, 1, -0.5):
        with pytest.raises(ValueError, match="0 < flat < 1"):
            memorisation.transition([1, 2, 3], [0.1, 0.2, 0.3], flat=flat)
    with pytest.raises(ValueError, match="odd"):
        memorisation.stages([1, 2, 3], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3], smooth=2)
    with pytest.raises(ValueError, match="one point or more"):
        memorisation.stages([], [], [])
