"""A short campaign of `tools/fuzz.py`, what the long ones found, and that a campaign sees every kind of fault."""

import json
import os
import re
import signal
import textwrap
from pathlib import Path

import fuzz
import fuzz_damage
import fuzz_formats
import measured
import numpy as np
import pytest
import study
import yaml
from fuzz_formats import FORMATS, Format

from nbutils import store, weights
from nbutils.cards import CardError, load_card
from nbutils.sources import SourceError, read_dataset

# rasterio logs what GDAL says, and cannot log what is no text
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
CASES = 24


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what GDAL says of damage that it reads past
def test_damaged_files_are_read_or_refused_by_name(tmp_path, form):
    bench = fuzz.Bench(form, tmp_path / "x")
    cases = [fuzz.Case(form, number, 1) for number in range(CASES)]
    outcomes = [bench.attempt(case) for case in cases]
    assert not [(case, told) for case, (kind, told, _) in zip(cases, outcomes, strict=True) if kind == "fault"]
    assert sum(outcome.kind == "refused" for outcome in outcomes) > CASES // 8
    assert len({bench.damaged(case)[1] for case in cases}) > CASES * 0.8, "cases differ"
    assert bench.damaged(cases[3]) == bench.damaged(cases[3]), "and repeat"


# ---- what the campaigns found ---------------------------------------------------------------------------------------
@pytest.fixture
def card(tmp_path):
    """Write the card of the campaign, changed at some keys; anything that is no mapping replaces the whole text."""
    (tmp_path / "data").mkdir()
    (path,) = fuzz_formats.write_card(tmp_path / "data")
    sound = yaml.safe_load(path.read_text())

    def write(changes) -> Path:
        if isinstance(changes, dict):
            tree = sound
            for key in (keys := list(changes))[0].split(".")[:-1]:
                tree = tree[key]
            tree[keys[0].split(".")[-1]] = changes[keys[0]]
        path.write_text(yaml.safe_dump(sound) if isinstance(changes, dict) else changes)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"name: [{fuzz_damage.LAUGHS}]", "it holds more than 20000 values"),
        ("name: &loop [*loop]", "an alias lies within what it repeats"),
        ("name: !!python/object/apply:os.system ['exit 7']", "python/object/apply:os.system'.*; correct the file"),
        ("name: {<<: 1}", "merg.*; correct the file"),
        ("name: " + "[" * 5000, "nested more than 50 deep"),
        ("name: 0x" + "f" * 100_000, "an integer of more than 64 bits"),
        ("name: " + "1" + ":59" * 2000, "an integer of more than 64 bits"),
        ("a" * 300_000, "has 300000 bytes, at most 262144 are read"),
        ("name: [" + "x, " * 30_000 + "]", "it holds more than 20000 values"),
    ],
    ids=["laughs", "loop", "python", "merge", "deep", "hexadecimal", "sexagesimal", "large", "many"],
)
def test_yaml_that_grows_runs_or_never_ends_is_refused(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(CardError, match=rf"mine\.yaml: .*{message}") as error:
        load_card(tmp_path / "mine.yaml")
    assert len(str(error.value)) < 1000
    with pytest.raises(study.StudyError, match=rf"mine\.yaml: .*{message}"):
        study.read_profile("mine", tmp_path)


def test_an_alias_that_repeats_little_is_read(tmp_path):
    """PyYAML itself writes them for a list that stands in two places."""
    tree = {"a": (void := [[9, 9, 9]]), "b": {"void": void, "c": [void, void]}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    assert "*id001" in (tmp_path / "mine.yaml").read_text()
    assert study.read_profile("mine", tmp_path) == tree


@pytest.mark.parametrize("text", ["{1: a}", "{null: a, seeds: [0]}", "[seeds]", "seeds", "seeds: [0", "\0", "\udcff"])
def test_a_profile_that_is_none_is_named(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(study.StudyError, match=r"mine\.yaml: "):
        study.read_profile("mine", tmp_path)


def test_what_is_wrong_is_told_in_bounds(card):
    for changes in ({"tasks": "x" * 100_000}, {"exact.void": ["x"] * 5000}, {"name": ["x" * 9] * 9000}):
        with pytest.raises(CardError, match="fault") as error:
            load_card(card(changes))
        assert len(str(error.value)) < 5000 and str(error.value).count("\n") <= 21


def test_what_is_cut_short_still_says_what_to_do(card):
    with pytest.raises(CardError, match=r"split\.test: 'x{150,}\.\.\. \(.*; there are a, b, c$"):
        read_dataset(card({"split.test": ["x" * 100_000]}))
    with pytest.raises(CardError, match=r"images\.glob: got .{200,900}; give a pattern below root$"):
        read_dataset(card({"images.glob": "x" * 100_000 + "/../*"}))


def test_a_legend_of_infinite_colours_is_refused(card):
    with pytest.raises(CardError, match="OverflowError: cannot convert float infinity"):
        load_card(card({"exact.legend.classes.land": [float("inf"), 0, 0]}))


def test_masks_without_images_come_with_what_to_do(card):
    with pytest.raises(CardError, match="have no image of the same scene and key: .*; set `key` on images and exact"):
        read_dataset(card({"exact.key": "(exact)"}))


def test_a_catalogue_of_a_very_long_kind_is_told_in_short(tmp_path):
    catalog, _ = fuzz_formats.write_catalogue(tmp_path)
    catalog.write_text(json.dumps({**json.loads(catalog.read_text()), "type": "x" * 100_000}))
    with pytest.raises(SourceError, match="no sound STAC catalogue.*characters.*; write it again") as error:
        read_dataset(tmp_path / "card.yaml")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("text", ["[" * 100_000, "3", "null", '"x"', "[]"])
def test_records_that_are_no_mapping_are_refused(tmp_path, text):
    (path,) = fuzz_formats.write_run(tmp_path)
    path.write_text(text)
    with pytest.raises(store.StoreError, match=r"run\.json cannot be read .*; delete the folder and run again"):
        store.read(fuzz_formats.RUN, tmp_path)
    _, path = fuzz_formats.write_weights(tmp_path)
    path.write_text(text)
    with pytest.raises(weights.WeightsError, match=r"card\.json: cannot be read .*; delete the folder and redo"):
        weights.load(tmp_path)


@pytest.mark.parametrize(("old", "new"), [("5,", "6,"), ("0.5", "0.6"), ('"torch": "2"', '"torch": "3"')])
def test_another_number_in_a_record_is_seen(tmp_path, old, new):
    (path,) = fuzz_formats.write_run(tmp_path)
    assert (text := path.read_text()).count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(store.StoreError, match="its content is not what its SHA-256 says"):
        store.read(fuzz_formats.RUN, tmp_path)


def test_records_from_before_there_were_checksums_are_read(tmp_path):
    (path,) = fuzz_formats.write_run(tmp_path)
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps(record))
    assert store.read(fuzz_formats.RUN, tmp_path).counts == record["counts"]


def test_another_number_in_a_kept_answer_is_seen(tmp_path):
    key = {"what": "x"}
    assert store.cached(key, lambda: [0.25, {"a": 1}], folder=tmp_path) == [0.25, {"a": 1}]
    assert store.cached(key, lambda: pytest.fail("computed again"), folder=tmp_path) == [0.25, {"a": 1}]
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace("0.25", "0.26"))
    with pytest.raises(store.StoreError, match="not what its SHA-256 says.*delete it and run again"):
        store.cached(key, lambda: 0, folder=tmp_path)


# ---- the campaign itself --------------------------------------------------------------------------------------------
def write_one(folder: Path) -> list[Path]:
    (folder / "a.txt").write_text("sound")
    return [folder / "a.txt"]


def broken(what):
    """A reader that is right about the sound file and wrong about any other."""

    def read(paths):
        if (text := paths[0].read_text()) != "sound":
            what(paths[0])
        return text

    return Format(write_one, (lambda raw, rng: b"damaged",), read, summed=True)


def refuse(message):
    def read(path):
        raise SourceError(message.format(path=path))

    return read


def hang(path):
    signal.pause()


FAKES = {
    "refuses": (broken(refuse("{path}: is damaged; fetch it again")), "refused", ""),
    "names nothing": (broken(refuse("is damaged; fetch it again")), "fault", "does not name the file"),
    "has no remedy": (broken(refuse("{path} is damaged")), "fault", "has no remedy"),
    "tells too much": (broken(refuse("{path}; " + "x" * 9000)), "fault", "tells 9"),
    "says nothing": (broken(lambda path: None), "fault", "reads something else"),
    "lets through": (broken(lambda path: [][0]), "fault", r"IndexError.*test_fuzz\.py"),
    "takes memory": (broken(lambda path: np.ones(2 * fuzz.LIMIT_BYTES, np.uint8)), "fault", "asks for more than 2 GiB"),
    "leaves a file": (broken(lambda path: path.with_name("b.txt").write_text("b")), "fault", r"leaves.*b\.txt"),
    "crashes": (broken(lambda path: os.kill(os.getpid(), signal.SIGKILL)), "fault", "status -9"),
    "hangs": (broken(hang), "fault", "hangs"),
}


def test_a_campaign_sees_every_kind_of_fault_and_goes_on(monkeypatch):
    monkeypatch.setattr(fuzz, "START", "fork")  # so that the processes have these formats
    monkeypatch.setattr(fuzz, "LIMIT_S", 5)
    monkeypatch.setattr(fuzz_formats, "FORMATS", {name: form for name, (form, *_) in FAKES.items()})
    found = list(fuzz.campaign([fuzz.Case(name, 0, 0) for name in FAKES], workers=1))
    for case, outcome in found:
        _, kind, told = FAKES[case.form]
        assert outcome.kind == kind and re.search(told, outcome.told), (case, outcome)
    rows = fuzz.section(found, list(FAKES), 0)["rows"]
    assert rows[0] == {"format": "refuses", "cases": 1, "succeeded": 0, "refused": 1, "faults": 0}
    assert all(list(row.values())[1:] == [1, 0, 0, 1] for row in rows[1:])


def test_a_section_is_put_beside_those_of_others(tmp_path):
    path = tmp_path / "build/reliability.json"
    measured.keep("fuzz", {"rows": [1]}, path)
    path.write_text(json.dumps({"other": {"rows": []}, "fuzz": {"rows": [1]}}))
    measured.keep("fuzz", {"rows": [2]}, path)
    assert json.loads(path.read_text()) == {"other": {"rows": []}, "fuzz": {"rows": [2]}}
    assert [each.name for each in path.parent.iterdir()] == ["reliability.json"]


def test_an_unknown_format_is_named(capsys):
    with pytest.raises(SystemExit):
        fuzz.main(["--only", "GeoTIF"])
    assert "no format 'GeoTIF'; there are card (YAML), " in capsys.readouterr().err


def test_damage_to_text_stays_parseable_often_enough_to_go_deep():
    raw = textwrap.dedent(fuzz_formats.CARD.format(root="/nowhere")).encode()
    parsed = 0
    for case in range(200):
        try:
            yaml.safe_load(fuzz_damage.of_yaml(raw, np.random.default_rng(case)))
            parsed += 1
        except (yaml.YAMLError, ValueError, RecursionError, AttributeError):
            pass  # what the plain loader makes of it
    assert 120 < parsed < 200
