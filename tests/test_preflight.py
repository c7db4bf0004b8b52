"""The pre-flight forecast: what a gain is taken to mean, how its hits are counted, and the probe itself."""

from functools import partial

import numpy as np
import pandas as pd
import preflight as measuring
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_patches

from nbutils import patches, preflight, study
from nbutils.preflight import AHEAD, BEHIND, OPEN


def known(gains, effects, rival="random", data="one") -> pd.DataFrame:
    n = len(gains)
    names = [f"case {i}" for i in range(n)]
    return pd.DataFrame({"data": data, "case": names, "wrong": 0.2, "rival": rival, "gain": gains, "effect": effects,
                         "low": np.asarray(effects) - 0.02, "high": np.asarray(effects) + 0.02})  # fmt: skip


GAINS = np.linspace(-0.15, 0.15, 12)
TELLING = known(GAINS, GAINS / 2)


def test_far_gains_are_told_and_near_ones_are_not():
    assert preflight.forecast("random", 0.15, TELLING).answer == AHEAD
    assert preflight.forecast("random", -0.15, TELLING).answer == BEHIND
    assert preflight.forecast("random", 0.0, TELLING).answer == OPEN


@given(st.lists(st.floats(-0.3, 0.3), min_size=4, max_size=12), st.integers(0, 2**32 - 1))
def test_the_answer_follows_from_the_probability(gains, seed):
    effects = np.random.default_rng(seed).normal(0, 0.05, len(gains))
    for gain in (-0.2, 0.0, 0.2):
        said = preflight.forecast("random", gain, known(gains, effects))
        assert 0 <= said.probability <= 1
        expected = AHEAD if said.probability >= 0.8 else BEHIND if said.probability <= 0.2 else OPEN
        assert said.answer == expected


def test_where_all_went_one_way_the_gain_tells_nothing():
    always = known([0.01, 0.02, 0.03], [0.1, 0.1, 0.1])
    assert preflight.forecast("random", -9.0, always).probability == pytest.approx(4 / 5)
    assert preflight.forecast("random", 9.0, always.assign(effect=-0.1)).probability == pytest.approx(1 / 5)


def test_other_rivals_say_nothing():
    both = pd.concat([TELLING, known(-GAINS, GAINS / 2, rival="moco")])
    assert preflight.forecast("random", 0.15, both) == preflight.forecast("random", 0.15, TELLING)
    with pytest.raises(ValueError, match="no known case of 'dino'; there are moco, random"):
        preflight.forecast("dino", 0.1, both)


def test_a_gain_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="is nan; do the validation scenes have exact masks"):
        preflight.forecast("random", float("nan"), TELLING)


def test_a_case_does_not_forecast_itself():
    odd = known([*GAINS, 0.2], [*GAINS / 2, -0.5])  # one case that contradicts all others
    judged = preflight.leave_one_out(odd)
    alone = preflight.forecast("random", 0.2, TELLING)
    assert judged.probability.iloc[-1] == pytest.approx(alone.probability) and judged.right.iloc[-1] == 0


def test_leaving_data_out_leaves_all_its_cases_out():
    here, there = known(GAINS, GAINS / 2, data="here"), known(GAINS, -GAINS / 2, data="there")
    judged = preflight.leave_one_out(pd.concat([here, there], ignore_index=True), by="data")
    assert (judged.right.dropna() == 0).all() and judged.right.notna().any()  # each learned the opposite from the other
    with pytest.raises(ValueError, match="takes two, got 1"):
        preflight.leave_one_out(here, by="data")


def test_hits_are_counted_among_the_told():
    judged = TELLING.assign(answer=[AHEAD] * 3 + [OPEN] * 9, right=[1.0, 0.0, 1.0] + [np.nan] * 9)
    row = preflight.hit_rates(judged).loc["random"]
    assert (row.cases, row.told, row.right) == (12, 3, 2) and row.share == pytest.approx(2 / 3)
    assert row.low < 2 / 3 < row.high and row.always == pytest.approx(0.5)
    nothing = preflight.hit_rates(TELLING.assign(answer=OPEN, right=np.nan)).loc["all"]
    assert nothing.told == 0 and np.isnan(nothing.share)


def test_a_case_measured_anew_takes_its_own_place_and_leaves_the_others():
    table = pd.concat([known([0.1, 0.2], [0.0, 0.1], data="one"), known([0.3], [0.2], data="two")], ignore_index=True)
    again = known([0.9], [0.4], data="one").assign(case="case 1")
    found = measuring.with_case(table, again)
    assert found.gain.tolist() == [0.1, 0.9, 0.3] and found.data.tolist() == ["one", "one", "two"]
    added = measuring.with_case(table, again.assign(case="new"))
    assert added.gain.tolist() == [0.1, 0.2, 0.3, 0.9]
    assert measuring.with_case(pd.DataFrame(), again) is again


def test_the_shipped_cases_are_whole_and_can_be_judged():
    table = preflight.read_known()
    assert list(table) == ["data", "case", "wrong", "rival", "gain", "effect", "low", "high"]
    assert all(sorted(rivals) == ["moco", "random"] for _, rivals in table.groupby(["data", "case"]).rival)
    assert table.notna().all(axis=None) and table.wrong.between(0, 1).all()
    assert table[["gain", "effect"]].abs().le(1).all(axis=None) and (table.low <= table.effect).all()


@pytest.mark.parametrize("by", ["case", "data"])
def test_known_cases_can_be_forecast_from_others(by):
    known_cases = preflight.read_known()
    assert not known_cases.duplicated(["data", "case", "rival"]).any()
    assert (known_cases.effect <= known_cases.high).all()
    judged = preflight.leave_one_out(known_cases, by)
    rates = preflight.hit_rates(judged)
    assert rates.loc["all", "cases"] == len(known_cases) and rates.loc["all", "right"] == judged.right.sum()
    assert judged.right.isna().equals(judged.answer == OPEN)


DATA = toy_patches()  # 20 patches for pretraining
RECIPE = dict(encoder="tu-test_resnet", width="slim", precision="fp32")


@pytest.fixture
def short(monkeypatch, tmp_path):
    """A probe of three steps in a store and a cache of its own, and nothing remembered from other tests."""
    monkeypatch.setattr(patches, "CACHE", tmp_path / "patches")
    patches.store(DATA)
    monkeypatch.setattr("nbutils.store.MEASURED", tmp_path / "measured")
    monkeypatch.setattr(study, "run_many", partial(study.run_many, store=tmp_path / "runs"))
    for name, value in {"STEPS": 3, "BATCH": 4, "PATCHES": 8, "PIXELS": 80}.items():
        monkeypatch.setattr(preflight, name, value)


def test_short_runs_are_one_per_seed_on_few_patches_of_equal_passes():
    noisy, moco = (preflight.short_runs(DATA, arm, **RECIPE) for arm in ("noisy", "moco"))
    assert [run.seed for run in noisy] == [run.seed for run in moco] == list(preflight.SEEDS)
    assert {run.budget for run in noisy + moco} == {20}  # all there are, fewer than the probe takes elsewhere
    assert {run.image_passes for run in noisy + moco} == {preflight.STEPS * preflight.BATCH}
    assert len({run.key for run in noisy + moco}) == 4


def counted(right: int, wrong: int) -> np.ndarray:
    """Counts of two scenes where one of two classes is there alone; its IoU over both is right / (right + wrong)."""
    return np.array([[[right, 0], [0, 0]], [[0, wrong], [0, 0]]])


def test_a_score_is_of_the_layer_best_over_seeds_on_validation_scenes(monkeypatch):
    told = {  # by seed: IoU of a is 0.9 and 0.1, of b 0.6 twice
        0: {"a": counted(9, 1), "b": counted(6, 4)},
        1: {"a": counted(1, 9), "b": counted(6, 4)},
    }
    perfect = {"a": counted(1, 0), "b": counted(1, 0)}
    monkeypatch.setattr(study, "probe_layers", lambda *_, seed, **__: {"validation": told[seed], "test": perfect})
    assert preflight.score(DATA, [None, None], encoder="any") == pytest.approx(0.6)


def test_who_is_behind_has_a_negative_gain(monkeypatch):
    scores = {"noisy": 0.3, "moco": 0.5, "random": 0.1}
    monkeypatch.setattr(study, "run_many", lambda runs, **_: [run.arm for run in runs])
    monkeypatch.setattr(preflight, "score", lambda _, results, **__: scores[results[0] or "random"])
    gains = preflight.gains(DATA, **RECIPE)
    assert gains == {"random": pytest.approx(0.2), "moco": pytest.approx(-0.2)}


def test_gains_are_leads_over_every_rival_and_the_same_again(short):
    found = preflight.gains(DATA, workers=1, **RECIPE)
    assert list(found) == ["random", "moco"] and all(-1 <= gain <= 1 for gain in found.values())
    score = {
        arm: preflight.score(
            DATA, study.run_many(preflight.short_runs(DATA, arm, **RECIPE), workers=1), encoder=RECIPE["encoder"]
        )
        for arm in ("noisy", "moco")
    }
    chance = preflight.score(DATA, [None, None], encoder=RECIPE["encoder"])
    assert found == {"random": score["noisy"] - chance, "moco": score["noisy"] - score["moco"]}
    assert found == preflight.gains(DATA, workers=1, **RECIPE)
