"""Stored runs, computed again: the same, changed by hand, damaged, of other code, of another machine, without data."""

import json
import shutil
from dataclasses import replace

import pytest
import verify
from safetensors.torch import load_file
from toy import toy_patches

from nbutils import patches, provenance, store, study, weights

COMMON = dict(encoder="tu-test_resnet", width="slim", steps=2, batch_size=4, precision="fp32", seed=0)


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A store with a fine-tuning and its parent, and the patches they were computed from."""
    folder, data = tmp_path_factory.mktemp("computed"), toy_patches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "CACHE", folder / "patches")
        patches.store(data)
        parent = study.pretraining(data, "noisy", **COMMON)
        tuned = study.finetuning(data, parent, decoder="fpn", budget=4, frozen=False, **COMMON)
        study.run_many([parent, tuned], workers=1, store=folder / "runs")
    return folder, tuned


@pytest.fixture
def child(computed, tmp_path, monkeypatch):
    """The fine-tuning, in a copy of the store to do damage to."""
    folder, run = computed
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(patches, "CACHE", tmp_path / "patches")
    return study.read(run, tmp_path / "runs")


def told(result, capsys, *options):
    """Exit status and all that is said."""
    status = verify.main([result.run.key, "--store", str(result.folder.parent), *options])
    said = capsys.readouterr()
    return status, said.out + said.err


def listing(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(result, **changes):
    """Change the stored record, and its digest with it."""
    path = result.folder / "run.json"
    record = json.loads(path.read_text()) | changes
    told = {name: value for name, value in record.items() if name != "sha256"}
    path.write_text(json.dumps(told | {"sha256": store.digest_of(told)}))


@pytest.mark.parametrize("parents", ["stored", "gone"])
def test_a_run_of_here_and_now_has_the_same_bits_and_the_store_is_left_alone(child, capsys, parents):
    if parents == "gone":
        shutil.rmtree(child.folder.parent / child.run.parent.key)
    before = listing(child.folder.parent)
    status, said = told(child, capsys)
    assert status == 0 and "same bits" in said and "nothing that bits depend on differs" in said
    assert listing(child.folder.parent) == before


def test_a_number_changed_by_hand_is_found(child, capsys):
    counts = json.loads((child.folder / "run.json").read_text())["counts"]
    scene = next(iter(counts["test"]))
    counts["test"][scene][0][0] += 1
    edit(child, counts=counts)
    status, said = told(child, capsys)
    assert status == 1 and "different: counts, from the same weights; the record was changed" in said


def test_what_is_not_a_number_in_a_curve_is_the_same_again(child):
    curve = [{"step": 1, "loss": 0.5, "gradient_snr_head": float("nan")}]
    stored, again = replace(child, curve=curve), replace(child, curve=[dict(curve[0], gradient_snr_head=float("nan"))])
    assert verify.compare(stored, again, 0.0).status == 0
    assert verify.compare(stored, replace(again, curve=[]), 0.0).status == 1


def test_damaged_weights_are_found(child, capsys):
    path = child.folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    status, said = told(child, capsys)
    assert status == 1 and "SHA-256" in said


def changed_weights(child, factor):
    """Store other weights under the run's own card, and what they predict, as another processor would."""
    state, card = weights.load(child.folder)
    name = "segmentation_head.0.weight"
    weights.save(child.folder, {**state, name: state[name] * factor}, card)
    return load_file(child.folder / "weights.safetensors")


def test_other_bits_with_scores_that_agree_are_the_same_to_their_difference(child, capsys):
    changed_weights(child, 1 + 1e-5)
    status, said = told(child, capsys)
    assert status == 0 and "same to 0.0e+00" in said and "weights differ by up to 1.0e-05" in said


@pytest.mark.parametrize(("tolerance", "status"), [("1", 0), ("1e-9", 1)])
def test_scores_further_apart_than_the_tolerance_are_different(child, capsys, tolerance, status):
    changed_weights(child, 1 + 1e-5)
    counts = {split: {s: [[n + 3 for n in row] for row in t] for s, t in each.items()}
              for split, each in child.counts.items()}  # fmt: skip
    edit(child, counts=counts)
    found, said = told(child, capsys, "--tolerance", tolerance)
    assert found == status and ("more than 1e-09" in said) == bool(status)


def test_all_in_which_the_machines_differ_is_named(child, capsys, monkeypatch):
    lock = {**provenance.environment(), "packages": {**provenance.environment()["packages"], "numpy": "0.1"}}
    lock["packages"].pop("pytest")
    lock["packages"]["gone-since"] = "3.0"
    digest = provenance.digest_of(lock)
    (child.folder.parent / provenance.ENVIRONMENTS / f"{digest}.json").write_text(json.dumps(lock))
    edit(child, provenance=child.provenance | {"environment": digest, "processor": "abacus", "threads": 4})
    said = told(child, capsys)[1].splitlines()
    told_of = [line.strip().split(":")[0] for line in said if line.startswith("    ")]
    assert told_of == ["processor", "threads", "gone-since", "numpy", "pytest"]
    assert any(line.strip() == "threads: 4 then, 1 now" for line in said)
    edit(child, provenance={"python": "3.11", "torch": "0.1"})  # as records were before
    said = told(child, capsys)[1]
    assert "torch: 0.1 then" in said and "not told by the record: platform, processor, threads" in said


def test_code_that_changed_is_named_with_the_commit_to_go_back_to(child, capsys, monkeypatch):
    lock = provenance.environment()
    old = {**lock, "code": {**lock["code"], "nbutils.training": "other", "nbutils.maps": "no part of a run"}}
    digest = provenance.digest_of(old)
    (child.folder.parent / provenance.ENVIRONMENTS / f"{digest}.json").write_text(json.dumps(old))
    edit(child, provenance=child.provenance | {"environment": digest, "commit": "c0ffee", "dirty": True})
    monkeypatch.setattr(study, "code_of", lambda run: "of now")
    status, said = told(child, capsys)
    assert status == 2 and "nbutils.training; it was computed at commit c0ffee, with changes" in said
    assert "nbutils.maps" not in said and child.run.code in said
    edit(child, provenance={"python": "3.11"})
    assert "too old to tell which modules" in told(child, capsys)[1]


def test_what_cannot_be_redone_says_why(child, capsys, tmp_path, monkeypatch):
    assert verify.main(["0" * 20, "--store", str(tmp_path / "runs")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    folder = patches.CACHE / child.run.fingerprint
    images = (folder / "images.npy").read_bytes()
    (folder / "images.npy").write_bytes(images[:-1] + bytes([images[-1] ^ 1]))
    status, said = told(child, capsys)
    assert status == 2 and "no longer holds what it is named by" in said
    shutil.rmtree(folder)
    status, said = told(child, capsys)
    assert status == 2 and "the data 'toy' are missing" in said
