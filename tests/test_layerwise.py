"""Questions about stored networks: answered once, by the measures they name, and named after all that decides them."""

from dataclasses import replace

import numpy as np
import pytest
from toy import toy_patches

from nbutils import layerwise, patches, probing, store, study

JUDGES = ("validation", "test")
COMMON = dict(encoder="tu-test_resnet", width="slim", steps=3, batch_size=4, precision="fp32")


@pytest.fixture(scope="module")
def same(tmp_path_factory):
    """Toy patches whose exact masks are in the noisy map's classes, and whose map errs here and there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "CACHE", tmp_path_factory.mktemp("patches"))
        patch.setattr(store, "MEASURED", tmp_path_factory.mktemp("measured"))
        data = patches.in_legend(toy_patches(), toy_patches().noisy_legend)
        wrong = np.random.default_rng(0).random(data.masks["noisy"].shape) < 0.2
        flipped = np.where(wrong & (data.masks["noisy"] != 255), (data.masks["noisy"] + 1) % 4, data.masks["noisy"])
        yield patches.with_noisy(data, flipped.astype(np.uint8), data.noisy_legend)


@pytest.fixture(scope="module")
def results(same, tmp_path_factory):
    runs = [study.pretraining(same, arm, seed=0, **COMMON) for arm in ("noisy", "exact")]
    return dict(
        zip(("noisy", "exact"), study.run_many(runs, workers=1, store=tmp_path_factory.mktemp("runs")), strict=True)
    )


def _questions(same, results):
    noisy, exact = results["noisy"], results["exact"]
    return {
        "probes": layerwise.probes(noisy, same, n_pixels=200, seed=0),
        "errors": layerwise.errors(noisy, same, n_pixels=200, seed=0),
        "similarity": layerwise.similarity(noisy, exact, same, n_pixels=100, seed=0),
        "swaps": layerwise.swaps(exact, noisy, same, n_patches=8),
        "retrained": layerwise.retrained(noisy, same, budget=4, steps=2, batch_size=2, seed=0),
    }


@pytest.fixture(scope="module")
def answers(same, results):
    return layerwise.ask(_questions(same, results), workers=1)


def test_every_measure_answers_for_every_layer(same, results, answers):
    layers = list(probing.layer_names(study.network_of(results["noisy"], same)))
    shapes = {"probes": (2, 4, 4), "errors": (5, 3), "similarity": (), "swaps": (2, 4, 4), "retrained": (2, 4, 4)}
    for what, answer in answers.items():
        assert list(answer) == layers
        assert {value.shape for value in answer.values()} == {shapes[what]}, what
    valid = (same.split("test").masks["exact"] != 255).sum()
    assert all(table.sum() == valid for what in ("swaps", "retrained") for table in answers[what].values())


def test_answers_are_those_of_the_measures_themselves(same, results, answers):
    networks = [study.network_of(results[name], same) for name in ("noisy", "exact")]
    rng = np.random.default_rng
    direct = probing.probe_layers(
        networks[0], same.split("finetune"), {"test": same.split("test")}, "exact", n_pixels=200, rng=rng(0)
    )["test"]
    assert all(np.array_equal(direct[layer], table) for layer, table in answers["probes"].items())
    errors = probing.probe_errors(networks[0], same.split("pretrain"), n_pixels=200, rng=rng(0))
    assert all(np.array_equal(errors[layer], table) for layer, table in answers["errors"].items())
    alike = probing.cka_layers(*networks, same.split("test"), n_pixels=100, rng=rng(0))
    assert {layer: float(value) for layer, value in answers["similarity"].items()} == pytest.approx(alike)


def test_a_network_that_gives_to_itself_maps_as_before(same, results):
    question = layerwise.swaps(results["exact"], results["exact"], same, n_patches=8)
    for table in layerwise.ask({"itself": question}, workers=1)["itself"].values():
        assert np.array_equal(table, results["exact"].scene_counts())


def test_what_is_known_is_read_and_nothing_is_computed(same, results, answers, monkeypatch):
    monkeypatch.setattr(layerwise.study, "network_of", None)
    again = layerwise.ask(_questions(same, results), workers=1)
    assert list(again) == list(answers)
    for what, answer in answers.items():
        assert all(np.array_equal(answer[layer], again[what][layer]) for layer in answer)


def test_a_network_of_few_patches_is_asked_about_the_errors_of_these_alone(same, results, tmp_path):
    run = study.pretraining(same, "noisy", seed=0, budget=6, **COMMON)
    (few,) = study.run_many([run], workers=1, store=tmp_path)
    seen = same.split("pretrain").budget(6, 0)
    told = layerwise.ask({"few": layerwise.errors(few, same, n_pixels=200, seed=0)}, workers=1)["few"]
    direct = probing.probe_errors(study.network_of(few, same), seen, n_pixels=200, rng=np.random.default_rng(0))
    assert list(told) == list(direct) and all(np.array_equal(told[layer], direct[layer]) for layer in direct)
    assert len(told["head"]) == len(np.unique(seen.scenes))


def test_probes_are_judged_on_the_scenes_asked_for(same, results):
    asked = {split: layerwise.probes(results["noisy"], same, n_pixels=200, seed=0, split=split) for split in JUDGES}
    told = layerwise.ask(asked, workers=1)
    for split, answer in told.items():
        scenes = np.unique(same.split(split).scenes)
        assert {table.shape for table in answer.values()} == {(len(scenes), 4, 4)}, split
        drawn = min(200, int((same.split(split).masks["exact"] != 255).sum()))
        assert all(table.sum() == drawn for table in answer.values())
    first, second = (answer["stage1"].sum(axis=0) for answer in told.values())
    assert not np.array_equal(first, second), "other scenes, other pixels"


def test_a_question_is_named_after_all_that_decides_its_answer(same, results):
    asked = _questions(same, results)
    keys = [question.key for question in asked.values()]
    one = asked["probes"]
    keys.append(replace(one, runs=asked["swaps"].runs[:1]).key)
    keys.append(replace(one, fingerprint="another").key)
    keys.append(layerwise.probes(results["noisy"], same, n_pixels=200, seed=1).key)
    keys.append(layerwise.probes(results["noisy"], same, n_pixels=200, seed=0, split="validation").key)
    assert len({str(key) for key in keys}) == len(keys)
    assert replace(one, store=one.store / "elsewhere").key == one.key


def test_a_network_that_is_not_stored_is_an_error(same, results):
    question = layerwise.probes(results["noisy"], same, n_pixels=150, seed=3)
    lost = replace(question, runs=(replace(question.runs[0], seed=77),))
    with pytest.raises(store.StoreError, match="cannot be read"):
        layerwise.ask({"lost": lost}, workers=1)
    assert not store.is_cached(lost.key)
