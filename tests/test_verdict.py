"""The verdict: which sentence follows from which numbers, and the page it is read on."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from nbutils import audit, verdict
from nbutils.preflight import Forecast
from nbutils.statistics import Difference
from nbutils.worth import Amount, Equivalent

VERDICTS = ("supported", "undecided", "contradicted")


def difference(said: str, seeds: int = 5, scenes: int = 5) -> Difference:
    low, high = {"supported": (0.01, 0.05), "undecided": (-0.02, 0.03), "contradicted": (-0.04, -0.01)}[said]
    return Difference((low + high) / 2, low, high, seeds, scenes, said)


@pytest.mark.parametrize(("random", "moco"), list(itertools.product(VERDICTS, repeat=2)))
def test_a_map_is_recommended_where_it_beats_all_and_refused_where_it_loses_once(random, moco):
    said = verdict.recommend({"random": difference(random), "moco": difference(moco)})
    if random == moco == "supported":
        assert said == "pretrain on this map: it beat random and moco here"
    elif "contradicted" in (random, moco):
        losing = [name for name, each in (("random", random), ("moco", moco)) if each == "contradicted"]
        assert said == f"do not pretrain on this map: {' and '.join(losing)} did better here"
    else:
        open_ones = [name for name, each in (("random", random), ("moco", moco)) if each == "undecided"]
        assert said.startswith(f"cannot tell: the lead over {' and '.join(open_ones)} is undecided")


@pytest.mark.parametrize(("seeds", "scenes"), [(1, 9), (9, 1)])
@pytest.mark.parametrize("said", VERDICTS)
def test_one_seed_or_scene_decides_nothing(seeds, scenes, said):
    few = difference(said, seeds, scenes)
    assert verdict.recommend({"random": few}).startswith("cannot tell")
    assert verdict.carry(few, "").answer == verdict.carry(difference("undecided"), "").answer
    assert verdict.remedy("x", few, "").answer == verdict.remedy("x", difference("undecided"), "").answer


def test_few_seeds_or_scenes_decide_for_the_time_being():
    for few in (difference("supported", 2, 9), difference("supported", 9, 4)):
        assert verdict.recommend({"random": few}).startswith("provisional")
        assert verdict.carry(few, "").answer == "provisional: carry the encoder and the decoder"
    assert verdict.carry(difference("supported"), "").answer == "carry the encoder and the decoder"
    assert "alone" in verdict.carry(difference("contradicted"), "").answer
    assert verdict.remedy("noisy+gce", difference("contradicted"), "").answer.startswith("train plainly: noisy+gce")


def test_a_recommendation_takes_a_rival():
    with pytest.raises(ValueError, match="one rival"):
        verdict.recommend({})


def test_differences_are_told_in_points():
    assert verdict.points(Difference(0.068, 0.009, 0.132, 2, 5, "supported")) == "+6.8 points [+0.9, +13.2]"
    evidence = verdict.pretrain({"random": difference("supported")}, "f").evidence
    assert evidence == "over random +3.0 points [+1.0, +5.0], supported"


def with_errors(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Masks of two scenes whose errors are of one kind."""
    exact = np.zeros((2, 96, 96), np.uint8)
    exact[:, 20:50, 20:50] = 1
    exact[:, 60:80, 60:80] = 2
    noisy = exact.copy()
    if kind == "omission":
        noisy[:, 60:80, 60:80] = 0
    elif kind == "commission":
        noisy[:, 10:16, 70:90] = 1
    elif kind == "shift":
        noisy = np.roll(exact, (5, 5), (1, 2))
    else:
        noisy[:, 20:22, 20:50] = 0
    return noisy, exact


@pytest.mark.parametrize("kind", ["omission", "commission", "shift", "boundary"])
def test_what_to_clean_first_is_what_was_broken(kind):
    table = audit.examine(*with_errors(kind), 3, rng=np.random.default_rng(0)).table()
    said = verdict.clean_first(table, "06_kinds")
    assert said.answer.startswith(verdict.CLEANING[kind]) and said.evidence.startswith(f"{kind}: ")


def test_kinds_that_cannot_be_told_apart_are_both_named():
    rows = [("omission", 0.5, 0.3, 0.7), ("boundary", 0.4, 0.2, 0.6), ("shift", np.nan, np.nan, np.nan)]
    table = pd.DataFrame([("kinds", *row, 4) for row in rows], columns=list(audit.findings.COLUMNS))
    assert verdict.clean_first(table, "").answer.endswith("(closely followed by boundary)")
    table.loc[0, "low"] = 0.61
    assert verdict.clean_first(table, "").answer == verdict.CLEANING["omission"]
    assert verdict.clean_first(table[:1], "").answer == verdict.CLEANING["omission"], "the only kind there is"


def test_a_map_without_errors_needs_no_cleaning():
    exact = with_errors("omission")[1]
    with pytest.raises(ValueError, match="nothing to clean"):
        verdict.clean_first(audit.examine(exact, exact, 3, rng=np.random.default_rng(0)).table(), "")


def test_every_kind_of_error_has_its_remedy():
    assert set(verdict.CLEANING) == set(audit.KINDS)


NONE = "none: with as many exact patches one does as well without the map"


@pytest.mark.parametrize(
    ("equals", "ends", "answer"),
    [
        (Amount(40), (19, 288), "about 24 more than the 16 at hand"),
        (Amount(40), (9, 288), "cannot tell; the best guess is about 24 more than the 16 at hand"),
        (Amount(40), (np.nan, np.nan), "cannot tell; the best guess is about 24 more than the 16 at hand"),
        (Amount(288, "more than"), (19, 288), "more than 272: no budget that was tried gets there"),
        (Amount(4, "fewer than"), (4, 12), NONE),
        (Amount(12), (9, 15), NONE),
        (Amount(12), (9, 40), f"cannot tell; the best guess is {NONE}"),
    ],
)
def test_how_many_more_patches_would_do(equals, ends, answer):
    low, high = map(Amount, ends)
    said = verdict.more_patches(Equivalent(16, 0.5, equals, low, high), "random", "")
    assert said.answer == answer
    assert said.evidence == f"16 patches with the map equal {equals} [{low}, {high}] with random"


def test_a_single_scene_leaves_open_what_to_clean_first():
    rows = [("omission", 0.34, np.nan, np.nan), ("boundary", 0.33, np.nan, np.nan)]
    said = verdict.clean_first(pd.DataFrame([("kinds", *row, 1) for row in rows], columns=audit.findings.COLUMNS), "")
    assert said.answer.endswith("(closely followed by boundary)")
    assert said.evidence == "omission: 34% (one scene, no interval) of the wrong pixels"


@pytest.mark.parametrize(
    ("budget", "equals", "low", "high", "answer"),
    [
        (
            8,
            Amount(16, "fewer than"),
            Amount(16, "fewer than"),
            Amount(40),
            "cannot tell; the best guess is not measured",
        ),
        (64, *[Amount(64, "more than")] * 3, "more than 0: no budget that was tried gets there"),
        (512, *[Amount(256, "more than")] * 3, "cannot tell; the best guess is not measured"),
    ],
)
def test_bounds_that_were_not_reached_are_no_numbers(budget, equals, low, high, answer):
    assert verdict.more_patches(Equivalent(budget, 0.5, equals, low, high), "random", "").answer.startswith(answer)


def test_a_forecast_is_told_with_its_record():
    hits = pd.DataFrame({"cases": [20], "told": [12], "right": [11], "always": [0.7]}, index=["all"])
    forecasts = [Forecast("random", 0.05, 0.93, "ahead"), Forecast("moco", -0.01, 0.4, "cannot tell")]
    said = verdict.foreseen(forecasts, hits)
    assert said.answer == "the map will be ahead of random; against moco it cannot be told"
    record = "so far 11 of 12 answers were right, of 20 forecasts, where always saying ahead would have been right 14 "
    assert said.evidence.endswith(record + "times")
    far = verdict.foreseen([Forecast("moco", -0.5, 0.05, "behind")], hits)
    assert far.answer == "moco will be ahead" and far.evidence.startswith("gain over moco -50.0 points, probability 5%")


def test_the_page_holds_all_it_needs_and_escapes_what_it_is_given(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "06_verdict.png")
    said = [
        verdict.Statement('Why "<b>"?', "because & so", "1 < 2", "06_verdict"),
        verdict.Statement("And?", "no", "3", "06_verdict"),
        verdict.Statement("More?", "no", "4", "06_gone"),
    ]
    html = verdict.page("A <title>", said, {"licence": "CC0 <x>", "nothing": ""}, tmp_path)
    soup = BeautifulSoup(html, "html.parser")
    assert [tag.text for tag in soup.select("h2")] == ['Why "<b>"?', "And?", "More?", "Where this comes from"]
    assert [tag.text for tag in soup.select("p.answer")] == ["because & so.", "no.", "no."]
    assert soup.title.text == "A <title>" and soup.select_one("dd").text == "CC0 <x>" and len(soup.select("dt")) == 1
    (image,) = soup.select("img")  # shown once, and the one that is not there not at all
    assert image["src"].startswith("data:image/png;base64,") and image["alt"] == 'Why "<b>"?'
    assert not re.search(r"(src|href)=\"(?!data:)", html) and not soup.select("script, link")
