"""A study killed at random moments, a quick part of `tools/reliability.py`; what that sees of torn stores; its page."""

import json
import multiprocessing
import os
import shutil
import sys
import time
from dataclasses import replace

import kills
import measured
import numpy as np
import psutil
import pytest
import reliability
import small_study
from toy import toy_patches

from nbutils import ROOT, disk, patches, study, training


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "CACHE", tmp_path / "patches")
    data = toy_patches(n=20)
    patches.store(data)
    return data


def test_a_study_killed_five_times_comes_to_the_bits_of_one_left_alone(data, tmp_path, monkeypatch):
    asked, rng = small_study.runs(data, ["noisy"]), np.random.default_rng(0)
    monkeypatch.setattr(training, "fit", training.fit)  # to be put back
    small_study.save_often()
    start = time.monotonic()
    study.run_many(asked, workers=1, store=tmp_path / "reference")
    seconds = time.monotonic() - start
    runs, times = tmp_path / "runs", []
    while len(times) < 5:
        process = multiprocessing.get_context("fork").Process(target=study.run_many, args=(asked,),
                                                              kwargs={"workers": 1, "store": runs})  # fmt: skip
        process.start()
        process.join(rng.uniform(0, seconds / 2))
        if process.is_alive():
            process.kill()
            process.join()
            times.append(len(list(runs.glob("[0-9a-f]*"))))
        else:
            assert process.exitcode == 0
            shutil.rmtree(runs)  # it was through: another one
        assert not runs.exists() or kills.unlike(runs, tmp_path / "reference", ended=False) == []
    study.run_many(asked, workers=1, store=runs)
    assert kills.unlike(runs, tmp_path / "reference", ended=True) == []


# ---- the campaign, on a study of no more than files

WRITES = """
import json, os, pathlib, sys, time
store = pathlib.Path(sys.argv[1])
store.mkdir(parents=True, exist_ok=True)
if sys.argv[2] == "torn" and not (store / "0").exists():  # from its first moment to its last
    for i in range(8):
        (store / f"{i:x}").mkdir()
    missing = range(8)
else:
    missing = [i for i in range(8) if not (store / f"{i:x}").exists()]
for i in missing:
    folder = store / f"{i:x}"
    scratch = folder if sys.argv[2] == "torn" else store / ".writing"
    scratch.mkdir(exist_ok=True)
    for name in ("card.json", "weights.safetensors", "run.json"):
        time.sleep(0.05)
        (scratch / name).write_text(json.dumps({"seconds": time.time(), "provenance": 0, "sha256": 0, "n": i}
                                               if name == "run.json" else i))
    os.rename(scratch, folder)
"""


def writer(how):
    return lambda folder: kills.Study([sys.executable, "-c", WRITES, folder / "runs", how], folder / "runs")


def test_a_part_is_measured_anew_or_added_to_and_others_stay(tmp_path, monkeypatch):
    for name in ("DOCS", "FOLDER", "ROOT"):
        monkeypatch.setattr(reliability, name, tmp_path)
    monkeypatch.setattr(measured, "PATH", tmp_path / "build.json")
    row = {"injected": "SIGKILL", "survived": "yes", "seconds": 1.0}
    told = [{"what": what, **row} for what in ("a: driver", "b: driver")]
    measured.keep("kills", {"title": "", "text": "", "rows": told}, tmp_path / "reliability.json")  # nothing in build/
    for add, expected in ((True, ["a: driver", "b: driver", "b: new"]), (False, ["a: driver", "b: new"])):
        assert reliability.measure("kills", "", "", [{"what": "b: new", **row}], "b", add=add) == 0
        assert [row["what"] for row in measured.read()["kills"]["rows"]] == expected
    with pytest.raises(SystemExit):
        reliability.main(["kills", "--only", "notebook", "--add"])


def test_moments_are_even_over_what_is_left_to_do():
    span, rng = kills.Span(begun=20, whole=300, again=60), np.random.default_rng(0)
    for stored, end in ((0.0, 300), (0.5, 180), (1.0, 60)):
        moments = np.sort([span.moment(stored, rng) for _ in range(2000)])
        assert moments[0] >= 10 and moments[-1] <= end
        assert np.abs(moments - np.linspace(10, end, 2000)).max() < 0.05 * end
    assert kills.Span(begun=50, whole=20, again=10).moment(1.0, rng) == 25


@pytest.mark.parametrize(("how", "survives"), [("whole", True), ("torn", False)])
def test_the_campaign_tells_a_study_that_survives_from_one_that_does_not(how, survives, tmp_path):
    reference = writer("whole")(tmp_path / "reference")
    span = kills.undisturbed(reference)
    span = replace(span, begun=2 * span.begun)  # not while Python starts
    about = {"kills": 6, "span": span, "rng": np.random.default_rng(0)}
    rows = list(kills.campaign(writer(how), reference, tmp_path / "killed", **about))
    assert sum(row["what"] == "driver" for row in rows) == 6 and rows[-1]["what"] == "study"
    if survives:
        assert all(row["survived"] == "yes" for row in rows)
    else:  # torn by whichever kill comes after its start, and then to its end
        assert "differs" in rows[-1]["survived"]


# ---- what the campaign would see


@pytest.fixture
def stores(data, tmp_path):
    """Two stores of the same run, and its folder in the first."""
    how = dict(encoder="tu-test_resnet", width="slim", steps=2, batch_size=4, precision="fp32", seed=0)
    run = study.pretraining(data, "noisy", **how)
    for name in ("one", "other"):
        study.run_many([run], workers=1, store=tmp_path / name)
    return tmp_path / "one", tmp_path / "other", tmp_path / "one" / run.key


def test_stores_of_the_same_study_are_alike(stores):
    assert kills.unlike(stores[0], stores[1], ended=True) == []


@pytest.mark.parametrize("name", ["run.json", "card.json", "weights.safetensors"])
@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
def test_a_torn_or_changed_file_is_seen(stores, name, how):
    one, other, folder = stores
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[:-9])
    elif how == "changed":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    if (name, how) == ("run.json", "changed"):  # a digit of its digest, which differs anyhow: change a count instead
        record = json.loads(content)
        next(iter(record["counts"]["test"].values()))[0][0] += 1
        path.write_text(json.dumps(record))
    assert kills.unlike(one, other, ended=False) == [f"{folder.name} differs"]


def test_what_is_missing_left_or_locked_at_the_end_is_seen(stores):
    one, other, folder = stores
    for left in (".writing-x", f".{folder.name}.training", "stray"):
        (one / left).touch()
    shutil.rmtree(folder)
    handle = os.open(one, os.O_RDONLY)
    try:
        kills.fcntl.flock(handle, kills.fcntl.LOCK_EX)
        seen = kills.unlike(one, other, ended=True)
    finally:
        os.close(handle)
    assert seen == [
        f"{folder.name} is missing",
        f".{folder.name}.training is left",
        ".writing-x is left",
        "stray is left",
        "the store is locked",
    ]
    assert kills.unlike(one, other, ended=False) == []


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Folders of figures: of this repository, of a study left alone, of a disturbed one."""
    tables = {"old": "score,seconds\n0.5,9.0\n", "new": "score,seconds\n0.7,8.0\n"}
    folders = [tmp_path / name for name in ("figures", "reference", "disturbed")]
    for folder, what in zip(folders, ("old", "new", "new"), strict=True):
        folder.mkdir()
        (folder / "a.csv").write_text(tables[what])
        (folder / "a.png").write_bytes(what.encode())
    monkeypatch.setattr(kills, "ROOT", tmp_path)
    return folders


def test_figures_may_be_old_before_the_end_and_must_be_new_at_it(published):
    old, reference, disturbed = published
    (disturbed / "a.csv").write_text("score,seconds\n0.7,99.0\n")  # seconds differ from time to time
    for ended in (False, True):
        assert kills.torn(disturbed, reference, ended=ended) == []
    shutil.copy(old / "a.png", disturbed)
    (disturbed / ".writing-1").mkdir()
    assert kills.torn(disturbed, reference, ended=False) == []
    assert kills.torn(disturbed, reference, ended=True) == [".writing-1 is left", "a.png is torn or another"]


def test_torn_missing_and_left_figures_are_seen(published):
    _, reference, disturbed = published
    (disturbed / "a.csv").write_text("")
    (disturbed / "b.png").touch()
    assert kills.torn(disturbed, reference, ended=False) == ["a.csv is torn or another", "b.png is left"]
    (disturbed / "a.csv").unlink()
    assert kills.torn(disturbed, reference, ended=True) == ["b.png is left", "a.csv is missing"]


def test_a_process_that_outlives_its_study_is_found_and_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "ORPHANED_S", 1)
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    life = kills.Life(kills.Study([sys.executable, "-c", child], tmp_path))
    status, left = life.end()
    assert status == 0 and "time.sleep(600)" in left
    psutil.wait_procs(life.family(), timeout=10)
    assert life.family() == []


def test_a_study_that_fails_by_itself_is_no_reference(tmp_path):
    broken = kills.Study([sys.executable, "-c", "raise SystemExit('no disk')"], tmp_path / "runs")
    with pytest.raises(RuntimeError, match="no disk"):
        kills.undisturbed(broken)


# ---- the page


def test_any_section_is_shown_and_faults_are_counted():
    rows = [{"what": "disk", "injected": "a | b", "survived": "yes", "seconds": 1.5},
            {"what": "disk", "injected": "c", "survived": "no: torn", "seconds": 2.0}]  # fmt: skip
    fuzzed = {"title": "Fuzzing", "text": "How.", "rows": [{"reader": "masks", "inputs": 9}]}
    page = reliability.render({"kills": {"title": "Kills", "text": "Told.", "rows": rows}, "fuzzing": fuzzed})
    assert "**1 of 2 survived.** disk 2." in page and "| disk | a \\| b | yes | 1.5 |" in page
    assert page.index("## Kills") < page.index("## Fuzzing") and "| masks | 9 |" in page


def test_the_committed_page_is_that_of_the_committed_rows():
    sections = json.loads((ROOT / "docs/reliability.json").read_text())
    assert (ROOT / "docs/reliability.md").read_text() == reliability.render(sections)
    assert sections and all(section["rows"] for section in sections.values())
    killed = [row["what"] for row in sections["kills"]["rows"] if row["injected"].startswith("SIGKILL")]
    assert len(killed) >= 50 and {name.split(": ")[0] for name in killed} == set(reliability.PARTS)


def test_a_report_keeps_sections_of_before_and_needs_some(tmp_path, monkeypatch):
    monkeypatch.setattr(reliability, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(measured, "PATH", tmp_path / "measured.json")
    assert reliability.report() == 2
    for name in ("kills", "faults"):
        disk.write_json(tmp_path / "measured.json", {name: {"title": name, "text": "", "rows": [{"a": 1}]}})
        assert reliability.report() == 0
    assert set(json.loads((tmp_path / "docs/reliability.json").read_text())) == {"kills", "faults"}
    assert "## faults" in (tmp_path / "docs/reliability.md").read_text()


def test_rooms_that_tests_reach_too_little_are_told_beside_the_sum():
    part = lambda lines, reached: {  # noqa: E731
        "num_statements": lines, "covered_lines": reached, "num_branches": 2, "covered_branches": 2,
        "percent_covered": 100 * (reached + 2) / (lines + 2)}  # fmt: skip
    files = {"nbutils/disk.py": {"summary": part(98, 98)}, "nbutils/noise/pixels.py": {"summary": part(98, 88)}}
    rows = list(reliability.covered({"files": files, "totals": part(198, 188)}))
    assert [(row["room"], row["reached"], row["per cent"]) for row in rows] == [
        ("noise.pixels", 88, 90.0), ("all", 188, 95.0)]  # fmt: skip
