"""What a record tells of where it comes from, what it keeps to itself, and results that must not be compared."""

import getpass
import json
import platform
import subprocess
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
from safetensors import SafetensorError
from toy import toy_patches

from nbutils import ROOT, checkpoint, contrasts, disk, legend, patches, provenance, store, study, training
from nbutils.study import Cell

COMMON = dict(encoder="tu-test_resnet", width="slim", steps=2, batch_size=4, precision="fp32", seed=0)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "CACHE", tmp_path / "patches")
    data = toy_patches()
    patches.store(data)
    return data


@pytest.fixture
def stored(data, tmp_path):
    """A stored pretraining and a fine-tuning from it."""
    runs = tmp_path / "runs"
    parent = study.execute(study.pretraining(data, "noisy", **COMMON), runs)
    tuned = study.finetuning(data, parent.run, decoder="unet", budget=4, frozen=True, **COMMON)
    return parent, study.execute(tuned, runs)


def test_a_record_names_every_package_and_the_code_once_for_all_runs(stored):
    parent, child = stored
    runs = parent.folder.parent
    assert parent.provenance["environment"] == child.provenance["environment"]
    (file,) = (runs / provenance.ENVIRONMENTS).iterdir()
    lock = json.loads(file.read_text())
    assert provenance.read(runs, child.provenance) == lock and file.stem == provenance.digest_of(lock)
    for name in ("numpy", "safetensors", "noisy-maps", "pytest"):
        assert lock["packages"][name] == version(name)
    assert lock["code"]["nbutils.legend"] == disk.code_digest(legend) and "nbutils" in lock["code"]
    assert {"python", "platform", "processor", "finished", "torch"} <= set(child.provenance)
    assert child.provenance["threads"] == 1  # however many this process has


def test_a_record_tells_nothing_of_who_or_where(stored):
    told = "".join(path.read_text() for path in stored[1].folder.parent.rglob("*.json"))
    private = [str(Path.home()), str(ROOT), platform.node(), getpass.getuser()]
    assert not [word for word in private if len(word) > 4 and word in told]  # "root" is a word of other things too
    assert f'"{getpass.getuser()}"' not in told and f"/{getpass.getuser()}/" not in told


def test_the_commit_is_told_where_this_is_a_checkout_and_a_change_makes_it_dirty(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=b", *words], check=True)

    def told():
        provenance._checkout.cache_clear()
        return provenance._checkout()

    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    try:
        assert told() == {"commit": None, "dirty": None}
        git("init", "-q")
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner/a.py").write_text("a = 1\n")
        git("add", ".")
        git("commit", "-qm", "one")
        clean = told()
        assert len(clean["commit"]) == 40 and clean["dirty"] is False
        (tmp_path / "inner/a.py").write_text("a = 2\n")
        assert told() == {**clean, "dirty": True}
        monkeypatch.setattr(provenance, "ROOT", tmp_path / "inner")  # installed in a checkout of something else
        assert told() == {"commit": None, "dirty": None}
        monkeypatch.setenv("PATH", str(tmp_path))  # no git
        assert told() == {"commit": None, "dirty": None}
    finally:
        provenance._checkout.cache_clear()


def test_records_of_before_and_damaged_locks_are_read_as_far_as_they_go(stored):
    result = stored[0]
    runs, path = result.folder.parent, result.folder / "run.json"
    record = json.loads(path.read_text())
    del record["sha256"]
    record["provenance"] = {"finished": "2026-01-01T00:00:00+00:00", "python": "3.11.0", "torch": "2.13.0"}
    path.write_text(json.dumps(record))
    assert study.read(result.run, runs).provenance == record["provenance"]
    assert provenance.read(runs, record["provenance"]) is None
    lock = runs / provenance.ENVIRONMENTS / f"{result.provenance['environment']}.json"
    lock.write_text(lock.read_text().replace(version("numpy"), "0.0.1"))
    assert provenance.read(runs, result.provenance) is None


def test_a_number_that_was_changed_is_refused(stored):
    result = stored[1]
    path = result.folder / "run.json"
    record = json.loads(path.read_text())
    next(iter(record["counts"]["test"].values()))[0][0] += 1
    path.write_text(json.dumps(record))
    with pytest.raises(store.StoreError, match="not what its SHA-256 says.*delete the folder"):
        study.read(result.run, result.folder.parent)


def test_a_run_is_described_by_its_own_record(stored):
    parent, child = stored
    runs = child.folder.parent
    for result in stored:
        assert store.recall(result.run.key, runs) == result.run
    path = child.folder / "run.json"
    whole = path.read_text()
    path.write_text(whole.replace('"budget": 4', '"budget": 5'))
    with pytest.raises(store.StoreError, match="it was changed"):
        store.recall(child.run.key, runs)
    for damaged in ("", whole[:100], "[]", "{}", '{"run": {"parent": null, "colour": "red"}}'):
        path.write_text(damaged)
        with pytest.raises(store.StoreError, match="cannot be read"):
            store.recall(child.run.key, runs)
    with pytest.raises(store.StoreError, match="cannot be read.*give the key"):
        store.recall("0" * 20, runs)


def test_code_of_a_run_is_that_of_now_and_its_modules_hold_it(stored, data):
    monitored = study.pretraining(data, "noisy", looks=1, monitored=True, **COMMON)
    whole = stored[1].run
    carried = study.finetuning(data, whole.parent, decoder="unet", budget=4, frozen=False, carried="decoder2", **COMMON)
    for run in (whole, whole.parent, monitored, carried):
        assert study.code_of(run) == run.code and "nbutils.training" in study.modules_of(run)
        assert set(study.modules_of(run)) <= set(provenance.environment()["code"])
    assert "nbutils.probing.susceptibility" in set(study.modules_of(monitored)) - set(study.modules_of(whole))
    assert "nbutils.objectives.contrast" in study.modules_of(study.pretraining(data, "moco", **COMMON))


# ---- versions of the code


def older(result, **changes):
    return replace(result, run=replace(result.run, code="0123456789abcdef", **changes))


def test_results_of_two_versions_of_the_code_are_not_compared(stored):
    parent, child = stored
    for results in ([child, older(child, seed=1)], [child, older(child, seed=1, arm="moco")], [parent, older(parent)]):
        for compare in (study.table, lambda some: study.stack(some, seed=0)):
            with pytest.raises(ValueError) as told:
                compare(results)
            assert all(word in str(told.value) for each in results for word in (each.run.code, each.run.key))
            assert "run_many" in str(told.value)
    cells = {(Cell(), arm, 0): result for arm, result in (("noisy", child), ("moco", older(child, arm="moco")))}
    with pytest.raises(ValueError, match="different versions of the code"):
        contrasts.claim(cells, contrasts.gain([Cell()], "noisy", "moco"), id="a", text="b", world="c")


def test_parents_of_two_versions_are_not_compared_either(stored):
    _, child = stored
    other = replace(child.run, seed=1, parent=replace(child.run.parent, seed=1, code="0123456789abcdef"))
    with pytest.raises(ValueError, match="pretrain toy noisy unet seed 1"):
        study.table([child, replace(child, run=other)])


def test_arms_and_carried_layers_have_code_of_their_own_by_right(stored):
    parent, child = stored
    several = [parent, older(parent, arm="moco"), child, older(child, carried="stage2"), older(parent, monitored=True)]
    assert len(study.table(several)) == len(several)


# ---- scratch folders


def test_what_a_killed_process_was_writing_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    left = tmp_path / ".writing-left"
    left.mkdir()
    (left / "half").touch()
    with disk.scratch_folder(tmp_path) as living:
        assert not left.exists()
        (living / "half").touch()
        with disk.scratch_folder(tmp_path) as another:
            assert (living / "half").exists() and another != living
    assert list(tmp_path.iterdir()) == []


def test_a_folder_taken_for_left_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    locked, taken = disk._lock, []

    def late(folder):
        if not taken:
            taken.append(folder)
            folder.rmdir()  # another process was quicker
        return locked(folder)

    monkeypatch.setattr(disk, "_lock", late)
    with disk.scratch_folder(tmp_path) as folder:
        assert folder.is_dir() and folder != taken[0]


def test_json_that_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    disk.write_json(path, {"a": 1})
    monkeypatch.setattr(disk.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        disk.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_a_store_that_cannot_be_written_is_named(stored, tmp_path, monkeypatch):
    run = replace(stored[0].run, seed=1)
    (tmp_path / "file").touch()
    with pytest.raises(store.StoreError, match="file.*cannot be written"):
        study.run_many([run], workers=1, store=tmp_path / "file/runs")
    state, card = study.weights.load(stored[0].folder)
    monkeypatch.setattr(disk.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(store.StoreError, match=f"{run.key} cannot be written .*No space left.*make room"):
        store.write(tmp_path / "runs", run.key, {"run": asdict(run)}, state, card)
    assert not list((tmp_path / "runs").glob(".writing-*")) and not (tmp_path / "runs" / run.key).exists()


def test_a_checkpoint_that_cannot_be_written_is_named_and_half_of_it_is_taken_away(data, tmp_path, monkeypatch):
    def full(tensors, scratch, metadata):
        scratch.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(training, "fit", partial(training.fit, save_every_s=0))
    run = study.pretraining(data, "noisy", **COMMON)
    with pytest.raises(store.StoreError, match=f"{run.key}.training/checkpoint cannot be written .*No space left"):
        study.execute(run, tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []
