"""Several processes that train one network: the result of one process, the same weights in all, and no less safe."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pretrain
import pytest
import safetensors.torch
import torch
from torch import nn
from toy import toy_patches

from nbutils import ROOT, arms, networks, objectives, study, training
from nbutils.batches import Batches
from nbutils.objectives import together

SCRIPT = Path(__file__).with_name("together.py")


def trained(out: Path, devices: int, arm: str = "noisy", steps: int = 12, word: str = "live") -> int:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(SCRIPT.parent)]), "OMP_NUM_THREADS": "1"}
    for name in [name for name in environment if name.startswith(("MASTER_", "NODE_RANK", "LOCAL_RANK", "PYTEST_"))]:
        del environment[name]
    command = [sys.executable, SCRIPT, out, str(devices), arm, str(steps), word]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0 or word == "die", ran.stderr
    return ran.returncode


def read(out: Path, rank: int = 0) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    own = out.with_name(f"{out.name}-{rank}")
    curve = json.loads(own.with_suffix(".json").read_text())
    return curve, safetensors.torch.load_file(own.with_suffix(".safetensors"))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["noisy", "noisy+smooth"])
def test_two_processes_learn_what_one_learns(arm, tmp_path):
    for devices in (1, 2):
        trained(tmp_path / str(devices), devices, arm)
    (alone, weights), (shared, first), (_, second) = (
        read(tmp_path / out, rank) for out, rank in (("1", 0), ("2", 0), ("2", 1))
    )
    assert same(first, second) and first.keys() == weights.keys()
    assert shared[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-6)  # from the same weights and patches
    for one, other in zip(alone, shared, strict=True):
        assert one.keys() == other.keys() and one["step"] == other["step"]
        assert other["loss"] == pytest.approx(one["loss"], rel=0.01)  # rounding, which each step makes larger
        assert other["accuracy"] == pytest.approx(one["accuracy"], abs=0.02)
        assert other["truth_accuracy"] == pytest.approx(one["truth_accuracy"], abs=0.02)
    learnt = {name: value for name, value in weights.items() if value.is_floating_point()}
    flat, other = (torch.cat([each[name].flatten() for name in learnt]) for each in (weights, first))
    assert (flat - other).norm() < 0.05 * flat.norm()


@pytest.mark.slow
def test_what_died_half_way_goes_on_to_the_same_bits(tmp_path):
    trained(tmp_path / "whole", 2)
    assert trained(tmp_path / "died", 2, word="die") == 9
    assert not (tmp_path / "died-0.json").exists() and (tmp_path / "died.checkpoint").exists()
    trained(tmp_path / "died", 2)
    (whole, weights), (again, others) = read(tmp_path / "whole"), read(tmp_path / "died")
    assert again == whole and same(weights, others)


def test_the_shares_of_a_batch_are_the_batch():
    data, about = toy_patches(n=20), dict(batch_size=6, seed=3, truth=toy_patches(n=20).exact_as_noisy())
    for paired in (False, True):
        whole = Batches(data, "noisy", paired=paired, **about)
        parts = [Batches(data, "noisy", paired=paired, share=(rank, 3), **about) for rank in range(3)]
        for _ in range(5):
            expected, shares = next(whole), [next(part) for part in parts]
            for name in ("images", "masks", "truth"):
                every = [getattr(share, name) for share in shares]
                axis = int(paired and name == "images")
                assert all(each.shape[axis] == 2 for each in every)
                for rank, each in enumerate(every):
                    own = getattr(expected, name).index_select(axis, torch.arange(rank, 6, 3))
                    assert torch.equal(each, own)


# ---- what needs its batch whole


@pytest.mark.parametrize("arm", arms.ARMS[1:])
def test_objectives_say_whether_batches_can_be_shared(arm):
    network = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=4, seed=0, width="slim")
    learner = network if arms.target_of(arm) else network.encoder
    objective = arms.objective_of(arm, learner, seed=0, n_places=40, batch_size=8)
    plan = training.Plan(4, batch_size=8, learning_rate=1e-3, precision="fp32", seed=0)
    if arm in ("noisy", "exact", "noisy+gce", "noisy+sce", "noisy+bootstrap", "noisy+smooth"):
        training._share(objective, plan, 2)
        kinds = {type(each) for each in objective.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)}
        assert kinds == {together.BatchNorm}
        with pytest.raises(ValueError, match="3 processes cannot share batches of 8"):
            training._share(objective, plan, 3)
    else:
        with pytest.raises(ValueError, match="needs its whole batch in one process"):
            training._share(objective, plan, 2)


def test_a_network_with_shared_statistics_keeps_its_weights_their_names_and_what_it_says():
    network = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=4, seed=0, width="slim")
    state, images = {name: value.clone() for name, value in network.state_dict().items()}, torch.rand(3, 4, 32, 32)
    own = [id(parameter) for parameter in network.parameters()]
    said = network.eval()(images)
    objectives.share_statistics(network)
    assert same(dict(network.state_dict()), state) and [id(each) for each in network.parameters()] == own
    assert torch.equal(network(images), said)
    assert not any(type(each) is nn.BatchNorm2d for each in network.modules()) and not network.training


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3, momentum=None)])
def test_statistics_that_cannot_be_shared_are_refused(norm):
    with pytest.raises(ValueError, match="cannot be trained by several processes"):
        objectives.share_statistics(nn.Sequential(nn.Linear(2, 2), norm))


def test_shared_statistics_are_those_of_torch(monkeypatch):
    """Two processes with the same share: what either knows of the batch is twice its own; torch is given both."""
    monkeypatch.setattr(together, "size", lambda: 2)
    monkeypatch.setattr(together, "total", lambda value: 2 * value)
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)  # as exact as the oracle
    ours, theirs = together.BatchNorm(5).double(), nn.BatchNorm2d(5).double()
    images = torch.rand(4, 5, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 9
    own, here, there = (images.clone().requires_grad_() for _ in range(3))
    for norm, given in ((ours, own), (theirs, torch.cat([here, there]))):
        for parameter in norm.parameters():
            parameter.data.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
        (norm(given) ** 3).sum().backward()
    assert torch.allclose(own.grad, here.grad) and torch.allclose(2 * ours.weight.grad, theirs.weight.grad)
    assert torch.allclose(2 * ours.bias.grad, theirs.bias.grad)
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name].double(), value.double()), name


def test_a_process_shares_nothing_but_what_all_do_together():
    """The first looks at the network, or evaluates it, while the others wait: no sum over all of them may be asked."""
    assert together.size() == 1
    with pytest.raises(ValueError, match="process group"), together.sharing(2):
        together.size()
    assert together.size() == 1


def test_a_fabric_of_another_precision_is_refused():
    data, plan = toy_patches(n=20), training.Plan(2, 4, 1e-3, "bf16", 0)
    network = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=4, seed=0, width="slim")
    with pytest.raises(ValueError, match="precision"):
        training.fit(objectives.Supervised(network), data, "noisy", plan, fabric=training.alone_on("fp32"))


# ---- the command


def test_what_the_command_trains_is_what_the_notebooks_ask_for():
    asked, data = pretrain.parameters("smoke"), toy_patches(n=20)
    assert asked["pretrain_steps"] == 2 and asked["pretrain_batch"] == 16
    recipe = dict(encoder="tu-test_resnet", width="slim", precision="fp32")
    wanted = study.pretraining(data, "noisy", steps=2, batch_size=16, seed=1, **recipe)
    assert pretrain.described(data, "noisy", 1, asked) == wanted
    for number in ("03", "04", "05"):
        text = next((ROOT / "notebooks").glob(f"{number}_*.ipynb")).read_text()
        assert "steps=pretrain_steps, batch_size=pretrain_batch" in text


@pytest.mark.parametrize(
    ("arguments", "told", "status"),
    [
        (["--arm", "noisy", "--profile", "none"], "no profile 'none'", 2),
        (["--arm", "noisy", "--dataset", "none.yaml"], "no data set card", 2),
    ],
)
def test_wrong_input_is_told(arguments, told, status, capsys):
    assert pretrain.main(arguments) == status and told in capsys.readouterr().err


def test_an_unknown_arm_is_told(capsys):
    assert pretrain.main(["--arm", "noisier", "--profile", "smoke"]) == 2
    assert "unknown arm 'noisier'" in capsys.readouterr().err


def test_a_result_is_stored_once_and_found(monkeypatch, tmp_path, capsys):
    data = toy_patches(n=20)
    monkeypatch.setattr(pretrain, "cut", lambda *_: data)
    monkeypatch.setattr(pretrain, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(study.execution.patches, "load", lambda _: data)
    for _ in range(2):
        assert pretrain.main(["--arm", "exact", "--profile", "smoke"]) == 0
        assert "in 1 processes" in capsys.readouterr().out
    (stored,) = [path for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")]
    result = study.read(pretrain.described(data, "exact", 0, pretrain.parameters("smoke")), tmp_path / "runs")
    assert np.isfinite(result.curve[-1]["loss"]) and stored == result.folder and result.provenance["processes"] == 1
