"""The loop: same bits on repeat, watched or not; what the curve says, recomputed; divergence told."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toy import toy_patches

from nbutils import evaluation, networks, objectives, training, watching
from nbutils.batches import Batches
from nbutils.legend import VOID

PLAN = training.Plan(steps=4, batch_size=4, learning_rate=1e-3, precision="fp32", seed=0)
DATA = toy_patches()


def _objective(seed=0):
    network = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=4, seed=seed, width="slim")
    return objectives.Supervised(network)


def test_same_plan_same_bits():
    runs = []
    for _ in range(2):
        objective = _objective()
        curve = training.fit(objective, DATA.split("pretrain"), "noisy", PLAN)
        runs.append((curve, objective.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])


@given(st.integers(1, 100_000))
def test_the_curve_has_at_most_fifty_points_evenly_and_the_last_step(steps):
    ends = training.curve_steps(steps)
    gaps = np.diff([0, *ends])
    assert 1 <= len(ends) <= 50 and ends[-1] == steps
    assert (gaps[:-1] == gaps[0]).all() and 1 <= gaps[-1] <= gaps[0]


class _Fixed(objectives.Objective):
    """Predicts the class nearest to what band 0 shows; nothing of it can be learned."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images, masks):
        """Return a loss that depends on the weight alone."""
        shown = (images[:, :1] * 5).round()  # toy classes differ by about 0.4
        self.logits = -(shown - torch.arange(-2.0, 2.0).view(1, 4, 1, 1)).abs()
        return self.weight**2


def _spoiled(masks, rng):
    """Masks with a fifth of the pixels of another class, and other pixels void."""
    truth = np.where(rng.random(masks.shape) < 0.2, (masks + 1) % 4, masks).astype(np.uint8)
    truth[rng.random(masks.shape) < 0.1] = VOID
    return truth


def test_the_curve_says_what_an_explicit_count_says():
    data = DATA.split("pretrain")
    truth = _spoiled(data.masks["noisy"], np.random.default_rng(0))
    plan = training.Plan(steps=60, batch_size=4, learning_rate=1e-9, precision="fp32", seed=5)
    curve = training.fit(_Fixed(), data, "noisy", plan, truth=truth)
    stream = Batches(data, "noisy", batch_size=4, seed=5, truth=truth)
    start = 0
    for point in curve:
        batches = list(islice(stream, point["step"] - start))
        start = point["step"]
        seen, labels, real = (np.concatenate(each) for each in zip(*batches, strict=True))
        predicted = np.abs((seen[:, :1] * 5).round() - np.arange(-2.0, 2.0).reshape(1, 4, 1, 1)).argmin(axis=1)
        wrong = (labels != real) & (labels != VOID) & (real != VOID)
        expected = {
            "step": point["step"],
            "loss": 1.0,
            "accuracy": (predicted == labels)[labels != VOID].mean(),
            "truth_accuracy": (predicted == real)[real != VOID].mean(),
            "wrong_as_labelled": (predicted == labels)[wrong].mean(),
            "wrong_as_truth": (predicted == real)[wrong].mean(),
        }
        assert point == pytest.approx(expected, rel=1e-6) and list(point) == list(expected)


def test_shares_of_nothing_are_left_out():
    logits, void = torch.zeros(2, 3, 4, 4), torch.full((2, 4, 4), VOID, dtype=torch.uint8)
    watch = watching.Watch()
    assert watch.take() == {}
    watch.add(logits, void, None)
    assert watch.take() == {}
    zeros = torch.zeros_like(void)
    watch.add(logits, zeros, zeros)
    assert watch.take() == {"accuracy": 1.0, "truth_accuracy": 1.0}  # no label is wrong
    watch.add(logits, zeros, zeros + 1)
    assert watch.take() == {"accuracy": 1.0, "truth_accuracy": 0.0, "wrong_as_labelled": 1.0, "wrong_as_truth": 0.0}


def test_an_objective_without_masks_has_a_loss_alone():
    encoder = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=4, seed=0, width="slim").encoder
    curve = training.fit(objectives.MoCo(encoder, seed=0, queue=16), DATA.split("pretrain"), "noisy", PLAN)
    assert all(set(point) == {"step", "loss"} for point in curve)


def test_watching_changes_no_bit_of_what_is_learned():
    data, runs = DATA.split("pretrain"), []
    for watched in (False, True):
        network = networks.build("tu-test_resnet", "deeplabv3plus", in_channels=4, n_classes=4, seed=0, width="slim")
        networks.freeze_encoder(network)
        objective, asked = objectives.Supervised(network), []

        def judge(objective=objective, network=network, asked=asked):
            asked.append(any(module.training for module in objective.modules()))
            evaluation.evaluate(network, data, data.masks["noisy"], 4)
            return {"drawn": torch.rand(1).item()}  # a careless judge

        more = {"truth": data.masks["noisy"], "judge": judge, "looks": 2} if watched else {}
        curve = training.fit(objective, data, "noisy", PLAN, **more)
        modes = [module.training for module in objective.modules()]
        runs.append((objective.state_dict(), [point["loss"] for point in curve], modes))
    assert asked == [False, False]
    assert [point["step"] for point in curve if "drawn" in point] == [2, 4]
    assert runs[0][1:] == runs[1][1:]
    assert all(torch.equal(runs[0][0][name], runs[1][0][name]) for name in runs[0][0])


@given(st.integers(1, 3000), st.integers(1, 12))
def test_looks_are_spread_evenly_and_end_with_the_last_step(steps, looks):
    ends = training.curve_steps(steps)
    chosen = sorted(training._spaced(ends, looks))
    assert len(chosen) == looks or looks > len(ends) / 2
    assert chosen[-1] == steps and set(chosen) <= set(ends)
    even = steps * np.arange(1, looks + 1) / looks
    assert (np.abs(even[:, None] - chosen).min(axis=1) <= ends[0]).all()


def test_a_truth_of_another_shape_is_refused():
    data = DATA.split("pretrain")
    with pytest.raises(ValueError, match="truth must be uint8"):
        training.fit(_Fixed(), data, "noisy", PLAN, truth=DATA.masks["noisy"])


def test_divergence_is_an_error_not_a_result():
    plan = training.Plan(steps=6, batch_size=4, learning_rate=1e30, precision="fp32", seed=0)
    with pytest.raises(training.TrainingError, match="lower the learning rate"):
        training.fit(_objective(), DATA.split("pretrain"), "noisy", plan)


def test_impossible_plans_are_refused():
    with pytest.raises(ValueError, match="fp32, bf16"):
        training.Plan(steps=1, batch_size=2, learning_rate=1.0, precision="fp16", seed=0)
    with pytest.raises(ValueError, match="batch_size >= 2"):
        training.Plan(steps=1, batch_size=1, learning_rate=1.0, precision="fp32", seed=0)


def test_precision_is_measured_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = []

    def seconds(precision):
        asked.append(precision)
        return {"fp32": 1.0, "bf16": 0.9}[precision]

    monkeypatch.setattr(training, "_seconds_per_step", seconds)
    assert training.fastest_precision() == "fp32"  # a gain of 1.1 is too narrow to rely on
    assert training.fastest_precision() == "fp32"
    assert sorted(set(asked)) == ["bf16", "fp32"] and len(asked) == 6


def test_settling_gives_the_statistics_of_the_images_and_reads_no_label():
    data = DATA.split("pretrain")
    network = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=4, seed=0, width="slim").eval()
    inputs, first = [], next(m for m in network.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d))
    first.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    training.settle(network.encoder, data, n_patches=len(data), batch_size=len(data))
    expected = inputs[0].mean(dim=(0, 2, 3)), inputs[0].var(dim=(0, 2, 3))
    assert torch.allclose(first.running_mean, expected[0], atol=1e-5) and not network.encoder.training
    assert torch.allclose(first.running_var, expected[1], rtol=1e-4)


def test_a_training_that_stops_early_is_the_beginning_of_the_whole():
    data, states, curves = DATA.split("pretrain"), [], []
    plan = training.Plan(steps=6, batch_size=4, learning_rate=1e-3, precision="fp32", seed=0)
    for each in (plan, replace(plan, stop=3)):
        objective, seen = _objective(), []
        keep = lambda: seen.append({k: v.clone() for k, v in objective.state_dict().items()}) or {}  # noqa: B023, E731
        curves.append(training.fit(objective, data, "noisy", each, judge=keep, looks=6))
        states.append(seen[2])
    assert curves[1] == curves[0][:3] and len(curves[0]) == 6
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with pytest.raises(ValueError, match="stop=7"):
        replace(plan, stop=7)
