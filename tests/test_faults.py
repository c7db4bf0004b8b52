"""Faults that others published are kept out by tests that exist, and by those that stand nowhere else."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import toy_patches

from nbutils import evaluation, networks, patches, study, weights
from nbutils.legend import VOID
from nbutils.objectives import masks as losses

TESTS = Path(__file__).parent
ROWS = re.findall(r"^\| (?!fault|---)(.+?) \| (.+?) \| (.+?) \|$", (TESTS / "faults.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("fault", "where", "tests"), ROWS, ids=[row[0] for row in ROWS])
def test_every_published_fault_has_a_test(fault, where, tests):
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", tests)
    assert named and tests.count("::") == len(named)
    for file, name in named:
        there = [node.name for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)]
        assert name in there, f"{file} has no {name}"


def test_the_table_is_whole():
    assert len(ROWS) == (TESTS / "faults.md").read_text().count("\n| ") - 1 == 19


@pytest.mark.parametrize("n", [1, 7, 33, 65])
def test_no_batch_is_dropped_whatever_the_number_of_patches(n):
    part = toy_patches(65).take(np.arange(n))
    network = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=4, seed=0, width="slim")
    tallies = evaluation.evaluate(network, part, part.masks["noisy"], 4)
    assert sum(tally.confusion.sum() for tally in tallies.values()) == (part.masks["noisy"] != VOID).sum()


def test_half_the_pixels_void_does_not_halve_the_plain_loss():
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    logits[:, :, 4:], target[:, 4:] = logits[:, :, :4], target[:, :4]  # the lower half says what the upper half does
    half = target.clone()
    half[:, 4:] = VOID
    assert torch.allclose(losses.cross_entropy(logits, half), losses.cross_entropy(logits, target))


def test_no_weight_and_no_curve_depends_on_the_test_scenes(tmp_path, monkeypatch):
    """Two sets differ in the images and masks of their test scenes alone: what is learned is the same to the bit."""
    monkeypatch.setattr(patches, "CACHE", tmp_path / "cache")
    data, rng = toy_patches(), np.random.default_rng(9)
    test = data.member["test"]
    images, masks = data.images.copy(), {name: mask.copy() for name, mask in data.masks.items()}
    images[test] = rng.integers(0, 256, images[test].shape)
    for mask in masks.values():
        mask[test] = rng.integers(0, 4, mask[test].shape)
    other = replace(data, images=images, masks=masks)
    learned = []
    for number, each in enumerate((data, other)):
        each = patches.named(each)
        common = {"encoder": "tu-test_resnet", "width": "slim", "batch_size": 4, "precision": "fp32"}
        first = study.pretraining(each, "noisy", seed=0, steps=6, looks=2, **common)
        result = study.execute(first, tmp_path / str(number))
        state, _ = weights.load(result.folder)
        learned.append((state, result.curve, result.counts))
    (mine, curve, counts), (theirs, other_curve, other_counts) = learned
    assert all(torch.equal(mine[name], theirs[name]) for name in mine) and curve == other_curve
    assert counts["validation"] == other_counts["validation"] and counts["test"] != other_counts["test"]
