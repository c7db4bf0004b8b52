"""The loop: same bits on repeat, equal exposure, no pixel invented, divergence told."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_patches

from nbutils import networks, objectives, training
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


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 30), st.integers(2, 9), st.integers(0, 99))
def test_every_patch_is_seen_equally_often(steps, batch_size, seed):
    marked = toy_patches(n=10, size_px=32)
    images = np.zeros_like(marked.images)
    images += np.arange(len(marked), dtype=np.uint8)[:, None, None, None]
    marked = marked.__class__(**{**vars(marked), "images": images, "mean": (0.0,) * 4, "std": (1.0,) * 4, "scale": 1.0})
    plan = training.Plan(steps=steps, batch_size=batch_size, learning_rate=1e-3, precision="fp32", seed=seed)
    seen = torch.cat([image[:, 0, 0, 0] for image, _ in training.batches(marked, "noisy", plan)]).int()
    often = torch.bincount(seen, minlength=len(marked))
    assert len(seen) == steps * batch_size and often.max() - often.min() <= 1


@given(st.integers(0, 2**16))
def test_turning_moves_image_and_mask_together_and_invents_nothing(seed):
    mask = torch.arange(2 * 6 * 6, dtype=torch.uint8).view(2, 6, 6)
    images = mask.unsqueeze(1).repeat(1, 3, 1, 1)
    turned, turned_mask = training.random_turn(images, mask, torch.Generator().manual_seed(seed))
    assert torch.equal(turned[:, 1], turned_mask)
    assert torch.equal(turned_mask.flatten(1).sort().values, mask.flatten(1).sort().values)


def test_normalised_patches_have_the_cards_mean_and_spread():
    values = training.normalise(torch.full((2, 4, 8, 8), 255.0 * 0.7), DATA)
    assert torch.allclose(values, torch.tensor((0.7 - 0.5) / 0.2))
    assert values.is_contiguous(memory_format=torch.channels_last)


def test_evaluation_counts_every_valid_pixel_of_every_scene_once():
    part = DATA.split("test")
    counts = training.evaluate(_objective().network, part, part.masks["noisy"], 4)
    assert sorted(counts) == ["scene-8", "scene-9"]
    for scene, table in counts.items():
        assert table.sum() == (part.masks["noisy"][part.scenes == scene] != VOID).sum()


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
