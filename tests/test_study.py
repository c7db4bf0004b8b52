"""Runs: keys, whole-or-absent results, the same bits however many workers, and what an interruption leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import rates
import torch
from threadpoolctl import threadpool_limits
from toy import toy_patches

from nbutils import ROOT, evaluation, objectives, patches, store, study

COMMON = dict(encoder="tu-test_resnet", width="slim", steps=3, batch_size=4, precision="fp32")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = toy_patches()
    patches.store(data)  # workers find it by its fingerprint
    yield data
    for path in (patches.CACHE / data.fingerprint).iterdir():
        path.unlink()
    (patches.CACHE / data.fingerprint).rmdir()


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def own_cache(data, tmp_path, monkeypatch):
    """Patches made on the way leave nothing behind; for what runs in this process."""
    monkeypatch.setattr(patches, "CACHE", tmp_path / "patches")
    patches.store(data)


def _pretraining(data, arm="noisy", seed=0):
    return study.pretraining(data, arm, seed=seed, **COMMON)


def _finetuning(data, parent, **changes):
    settings = {**COMMON, "decoder": "fpn", "budget": 5, "frozen": True, "seed": 0, **changes}
    return study.finetuning(data, parent, **settings)


def test_every_field_of_a_run_changes_its_key(data):
    run = _finetuning(data, _pretraining(data))
    changed = {"budget": 6, "frozen": False, "steps": 9, "batch_size": 9, "learning_rate": 0.5, "seed": 9, "classes": 9}
    changed["parent"] = None
    keys = {replace(run, **{f.name: changed.get(f.name, "other")}).key for f in fields(run)}
    assert len(keys | {run.key}) == len(fields(run)) + 1


def test_arms_see_the_same_images_for_the_same_number_of_passes(data):
    passes = {arm: _pretraining(data, arm).image_passes for arm in study.ARMS[1:]}
    assert len(set(passes.values())) == 1


def test_unknown_arm_is_refused(data):
    with pytest.raises(ValueError, match="moco, .*noisy, .*exact"):
        _pretraining(data, "noisey")


def test_same_bits_with_one_worker_and_with_two(data, runs):
    asked = [_finetuning(data, parent) for parent in (_pretraining(data), _pretraining(data, "moco"), None)]
    one = study.run_many(asked, workers=1, store=runs / "one")
    two = study.run_many(asked[::-1], workers=2, store=runs / "two")[::-1]
    for a, b in zip(one, two, strict=True):
        assert a.run == b.run and a.counts == b.counts and a.curve == b.curve
        assert (a.folder / "weights.safetensors").read_bytes() == (b.folder / "weights.safetensors").read_bytes()


def test_same_bits_whatever_threads_the_process_has(data, tmp_path, monkeypatch):
    probed, usual = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        monkeypatch.setattr(store, "MEASURED", tmp_path / f"measured{threads}")
        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            (result,) = study.run_many([_pretraining(data)], workers=1, store=tmp_path / f"runs{threads}")
            found = study.probe_layers(result, data, encoder=COMMON["encoder"], n_pixels=200, seed=0)
            assert torch.get_num_threads() == threads, "as before"
        counts = {(split, layer): table.tolist() for split, each in found.items() for layer, table in each.items()}
        probed.append((result.counts, result.curve, (result.folder / "weights.safetensors").read_bytes(), counts))
    torch.set_num_threads(usual)
    assert probed[0] == probed[1] == probed[2]


def test_a_stored_run_is_read_not_computed(data, runs, monkeypatch):
    run = _pretraining(data)
    first = study.execute(run, runs)
    monkeypatch.setattr(study.execution, "_train", None)
    assert study.run_many([run, run], store=runs) == [first, first]


def test_a_result_can_be_used_again(data, runs):
    result = study.execute(_pretraining(data), runs)
    part = data.split("test")
    tallies = evaluation.evaluate(study.network_of(result, data), part, part.exact_as_noisy(), 4)
    for at, name in enumerate(("counts", "boundary", "calibration")):
        assert {scene: each[at].tolist() for scene, each in tallies.items()} == getattr(result, name)["test"]
        own = result.scene_counts("test", name)
        assert np.array_equal(own[..., :2] if at == 1 else own, [each[at] for each in tallies.values()])
        assert at != 1 or np.array_equal(own[..., 2], [each.confusion.sum(axis=1) for each in tallies.values()])
    card = json.loads((result.folder / "card.json").read_text())
    assert (card["bands"], card["legend"], card["run"]) == (list(data.bands), "autogeo4", result.run.key)


def test_a_frozen_encoder_keeps_the_parents_bits(data, runs):
    parent = study.execute(_pretraining(data), runs)
    child = study.execute(_finetuning(data, parent.run), runs)
    loose = study.execute(_finetuning(data, parent.run, frozen=False), runs)
    states = [study.encoder_weights(result.folder, data) for result in (parent, child, loose)]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    assert any((states[0][name] != states[2][name]).any() for name in states[0])


def test_a_child_without_its_parent_is_an_error(data, runs):
    from nbutils.networks import WeightsError

    with pytest.raises(WeightsError, match="redo the run"):
        study.execute(_finetuning(data, _pretraining(data)), runs)


@pytest.mark.parametrize("damage", ["empty", "half", "other run", "gone"])
def test_damaged_results_are_named(data, runs, damage):
    result = study.execute(_pretraining(data), runs)
    path = result.folder / "run.json"
    content = path.read_text()
    path.unlink()
    if damage != "gone":
        other = content.replace('"seed": 0', '"seed": 1')
        path.write_text({"empty": "", "half": content[: len(content) // 2], "other run": other}[damage])
    with pytest.raises(store.StoreError, match=result.run.key):
        study.run_many([result.run], store=runs)


def test_a_failed_run_leaves_nothing(data, runs):
    from nbutils.training import TrainingError

    with pytest.raises(TrainingError):
        study.execute(replace(_pretraining(data), learning_rate=1e30, steps=6), runs)
    assert not runs.exists() or not list(runs.iterdir())


def test_table_and_stack(data, runs):
    asked = [_pretraining(data, seed=seed) for seed in (1, 0)]
    results = study.run_many(asked, workers=1, store=runs)
    table = study.table(results)
    assert table["run"].tolist() == [run.key for run in asked] and table["miou"].between(0, 1).all()
    stacked = study.stack(results, arm="noisy")
    assert stacked.shape == (2, 2, 4, 4) and np.array_equal(stacked[0], results[1].scene_counts())
    with pytest.raises(ValueError, match="no result"):
        study.stack(results, arm="exact")


SCRIPT = """
from pathlib import Path
import sys
sys.path.insert(0, {tests!r})
from toy import toy_patches
from nbutils import study
runs = [study.pretraining(toy_patches(), "noisy", seed=seed, **{common!r}) for seed in range(6)]
if __name__ == "__main__":
    print("ready", flush=True)
    study.run_many(runs, workers=1, store=Path({store!r}))
"""


def test_killed_at_any_moment_the_store_is_whole_and_the_rest_is_done_later(data, runs, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(ROOT / "tests"), common={**COMMON, "steps": 10}, store=str(runs)))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, cwd=tmp_path)
    process.stdout.readline()
    deadline = time.monotonic() + 60
    while not list(runs.glob("[0-9a-f]*/run.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    asked = [study.pretraining(data, "noisy", seed=seed, **{**COMMON, "steps": 10}) for seed in range(6)]
    before = {path.name for path in runs.glob("[0-9a-f]*")}
    assert 1 <= len(before) <= len(asked)
    for run in asked:
        if run.key in before:
            study.read(run, runs)  # whole, or it would raise
    killed = study.run_many(asked, workers=1, store=runs)
    undisturbed = study.run_many(asked, workers=1, store=tmp_path / "undisturbed")
    assert [r.counts for r in killed] == [r.counts for r in undisturbed]


def test_learning_is_watched_against_the_exact_masks_and_changes_nothing(data, runs):
    plain, watched = (study.execute(study.pretraining(data, "noisy", seed=0, looks=n, **COMMON), runs) for n in (0, 2))
    assert plain.run.key != watched.run.key and plain.counts == watched.counts
    assert [point["loss"] for point in plain.curve] == [point["loss"] for point in watched.curve]
    assert sum("validation_miou" in point for point in watched.curve) == 2
    assert watched.curve[-1]["validation_miou"] == pytest.approx(watched.mean_iou("validation"))
    for curve in (plain.curve, watched.curve):
        assert {"accuracy", "truth_accuracy"} <= set(curve[-1])
    alone = study.execute(study.pretraining(data, "moco", seed=0, looks=2, **COMMON), runs)
    assert set(alone.curve[-1]) == {"step", "loss"}


@pytest.mark.parametrize("moment", ["early", "late"])
def test_a_killed_pretraining_goes_on_to_the_same_bits(data, runs, monkeypatch, moment):
    """Stopped after a checkpoint and executed again: the store then holds what an undisturbed run gives."""
    run, saved = _pretraining(data), []

    def stop(path, tag, state, save=study.execution.training.checkpoints.save):
        save(path, tag, state)
        saved.append(path)
        if len(saved) == {"early": 1, "late": 2}[moment]:
            raise KeyboardInterrupt

    monkeypatch.setattr(study.execution.training.checkpoints, "save", stop)
    monkeypatch.setattr(study.execution.training, "fit", partial(study.execution.training.fit, save_every_s=0))
    with pytest.raises(KeyboardInterrupt):
        study.execute(run, runs / "killed")
    assert saved[-1].exists() and not (runs / "killed" / run.key).exists()
    monkeypatch.setattr(study.execution.training.checkpoints, "save", lambda *args: None)
    killed, whole = (study.execute(run, runs / name) for name in ("killed", "whole"))
    assert killed.counts == whole.counts and killed.curve == whole.curve
    assert {path.name for path in (runs / "killed").iterdir()} == {run.key, ".environments"}


def test_weights_of_others_are_fine_tuned_on_their_own_normalisation(data, runs, tmp_path):
    import torchvision
    from safetensors.torch import save_file

    file = tmp_path / "resnet18.safetensors"
    save_file(torchvision.models.resnet18().state_dict(), file)
    settings = COMMON | {"encoder": "resnet18", "steps": 2}
    parent = study.published(data, "imagenet", encoder="resnet18", file=file, store=runs)
    child = study.execute(
        study.finetuning(data, parent, decoder="unet", budget=4, frozen=True, seed=0, **settings), runs
    )
    card = json.loads((child.folder / "card.json").read_text())
    assert child.run.arm == "imagenet" and card["mean"] != list(data.mean)
    assert card["mean"][data.bands.index("red")] == pytest.approx(0.485)
    assert study.prepared(child.folder, data).mean == tuple(card["mean"])
    assert child.parameters == sum(p.numel() for p in study.network_of(child, data).parameters())
    lost = replace(parent, code="sha256:another file")
    with pytest.raises(store.StoreError, match="study.published"):
        study.execute(lost, runs)


def test_cached_computes_once_for_each_key(tmp_path):
    calls = []

    def build():
        calls.append(1)
        return {"counts": [[1, 2], [3, 4]], "n": len(calls)}

    first = store.cached({"a": 1}, build, folder=tmp_path)
    assert store.cached({"a": 1}, build, folder=tmp_path) == first == {"counts": [[1, 2], [3, 4]], "n": 1}
    assert store.cached({"a": 2}, build, folder=tmp_path)["n"] == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_answer_is_named_and_a_failed_one_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        store.cached({"a": 1}, lambda: 1 / 0, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    store.cached({"a": 1}, lambda: 1, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:-5])
    with pytest.raises(store.StoreError, match=path.name):
        store.cached({"a": 1}, lambda: 1, folder=tmp_path)


def test_probes_are_read_back_as_they_were_computed(data, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MEASURED", tmp_path)
    asked = {"encoder": "tu-test_resnet", "n_pixels": 60, "seed": 1}
    computed = study.probe_layers(None, data, **asked)
    monkeypatch.setattr(study.probing, "probe_layers", None)  # a second computation would fail
    again = study.probe_layers(None, data, **asked)
    direct = study.encoder_of(None, data, encoder="tu-test_resnet", seed=1)
    assert set(again) == set(computed) == {"test", "validation"}
    for split, layers in computed.items():
        assert list(layers) == list(again[split]) == list(study.probing.layer_names(direct))
        assert all(np.array_equal(again[split][layer], layers[layer]) for layer in layers)


def test_learning_rates_are_those_that_the_search_chose():
    tried = pd.read_csv(ROOT / "tools" / "rates.csv")
    assert rates.choose(tried) == study.LEARNING_RATES
    first = tried[(tried.arm != "random") & (tried.finetuning_rate == rates.MIDDLE)]
    cells = first.groupby(["arm", "pretraining_rate", "frozen"]).seed.agg(tuple)
    assert (cells == rates.SEEDS).all()  # every arm had the same chances
    assert set(tried[tried.arm != "random"].groupby("arm").pretraining_rate.nunique()) == {len(rates.PRETRAINING)}


def test_the_queue_of_moco_is_shorter_than_an_epoch(data, tmp_path, monkeypatch):
    """Keys of the epoch before would have each image repelled by itself."""
    seen = []
    build = objectives.MoCo
    monkeypatch.setattr(objectives, "MoCo", lambda *args, **named: seen.append(named["queue"]) or build(*args, **named))
    study.execute(study.pretraining(data, "moco", seed=0, **COMMON), tmp_path)
    assert COMMON["batch_size"] <= seen[0] <= max(COMMON["batch_size"], len(data.split("pretrain")) // 3)


@pytest.mark.parametrize("carried", ["stem", "stage2", "decoder2", "head"])
def test_layers_are_carried_up_to_the_one_named(data, runs, own_cache, carried):
    from nbutils import execution, probing

    parent = study.execute(_pretraining(data), runs)
    same = patches.in_legend(data, data.noisy_legend)
    child = _finetuning(same, parent.run, decoder="unet", frozen=False, carried=carried)
    network, fresh = execution.build(child, same, "unet", 4), execution.build(child, same, "unet", 4)
    execution._carry(child, network, parent.folder, same)
    given, names = study.network_of(parent, same), list(probing.layer_names(network))
    for layer in names:
        source = given if names.index(layer) <= names.index(carried) else fresh
        own, expected = probing.state_of(network, layer), probing.state_of(source, layer)
        assert all((own[name] == expected[name]).all() for name in expected), layer
    assert study.execute(child, runs).run.key != _finetuning(same, parent.run, decoder="unet", frozen=False).key


def test_what_cannot_be_carried_is_refused(data, runs):
    parent = study.execute(_pretraining(data), runs)
    with pytest.raises(ValueError, match="'head' of the stored weights does not fit: segmentation_head"):
        study.execute(_finetuning(data, parent.run, decoder="unet", frozen=False, carried="head"), runs)
    with pytest.raises(ValueError, match="unknown layer 'stage9'"):
        study.execute(_finetuning(data, parent.run, frozen=False, carried="stage9"), runs)
    for parent_run, carried in ((None, "stage2"), (parent.run, "stage2")):
        with pytest.raises(ValueError, match="a frozen encoder is carried whole"):
            _finetuning(data, parent_run, carried=carried)


def test_a_monitored_run_learns_the_same_bits_and_tells_of_every_layer(data, runs):
    plain = study.execute(study.pretraining(data, "noisy", seed=0, looks=2, **COMMON), runs)
    watched = study.execute(study.pretraining(data, "noisy", seed=0, looks=2, monitored=True, **COMMON), runs)
    assert plain.run.key != watched.run.key and plain.counts == watched.counts
    assert {"susceptibility_stem", "susceptibility_head", "gradient_snr_decoder3"} <= set(watched.curve[-1])
    for a, b in zip(plain.curve, watched.curve, strict=True):
        assert a == {name: value for name, value in b.items() if name in a}
    for arm, looks in (("moco", 2), ("noisy", 0)):
        with pytest.raises(ValueError, match=f"{arm} cannot be monitored"):
            study.pretraining(data, arm, seed=0, looks=looks, monitored=True, **COMMON)


def test_a_run_that_stops_early_has_its_own_key_and_counts_its_passes(data, runs):
    whole, early = (study.pretraining(data, "noisy", seed=0, stop=stop, **COMMON) for stop in (None, 2))
    assert whole.key != early.key and (whole.image_passes, early.image_passes) == (12, 8)
    short, long = study.execute(early, runs), study.execute(whole, runs)
    assert short.curve == long.curve[:2]


def test_a_random_frozen_encoder_has_the_statistics_of_the_images(data, runs):
    result = study.execute(_finetuning(data, None), runs)
    expected = study.encoder_of(None, data, encoder=COMMON["encoder"], seed=0).state_dict()
    stored = study.encoder_weights(result.folder, data)
    assert all((stored[name] == value).all() for name, value in expected.items())
    assert any((value != 0).any() for name, value in expected.items() if name.endswith("running_mean"))


def test_other_patch_order_same_beginning(data, own_cache):
    again = patches.reordered(data, seed=1)
    assert again.fingerprint != data.fingerprint and sorted(again.scenes) == sorted(data.scenes)
    assert patches.reordered(data, seed=1).fingerprint == again.fingerprint
    assert {image.tobytes() for image in again.images} == {image.tobytes() for image in data.images}
