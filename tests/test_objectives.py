"""Losses: closed forms, an independent oracle, and void that never counts."""

import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from nbutils import objectives
from nbutils.legend import VOID


def _case(seed: int, void_rows: int = 3, k: int = 5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, k, 8, 8, generator=generator)
    target = torch.randint(k, (2, 8, 8), generator=generator).to(torch.uint8)
    target[:, :void_rows] = VOID
    return logits, target


def test_cross_entropy_agrees_with_torch():
    logits, target = _case(0)
    expected = F.cross_entropy(logits, target.long(), ignore_index=VOID)
    torch.testing.assert_close(objectives.cross_entropy(logits, target), expected)


def test_dice_agrees_with_smp():
    logits, target = _case(1)
    expected = smp.losses.DiceLoss("multiclass", ignore_index=VOID)(logits, target.long())
    torch.testing.assert_close(objectives.soft_dice(logits, target), expected)


def test_dice_closed_forms():
    target = torch.tensor([[[0, 0], [1, 1]]], dtype=torch.uint8)
    right = 50.0 * F.one_hot(target.long(), 2).permute(0, 3, 1, 2)
    assert objectives.soft_dice(right, target).item() == pytest.approx(0, abs=1e-6)
    assert objectives.soft_dice(-right, target).item() == pytest.approx(1, abs=1e-6)
    # Uniform probabilities of 1/2: overlap 1, areas 2 + 2, Dice 2/4 for either class.
    assert objectives.soft_dice(torch.zeros(1, 2, 2, 2), target).item() == pytest.approx(0.5)


@given(st.integers(0, 2**16), st.floats(-20, 20))
def test_what_is_predicted_on_void_changes_nothing(seed, value):
    logits, target = _case(seed)
    other = torch.where((target == VOID).unsqueeze(1), torch.tensor(value), logits)
    for loss in (objectives.cross_entropy, objectives.soft_dice):
        torch.testing.assert_close(loss(logits, target), loss(other, target))


def test_all_void_batch_gives_zero_and_no_gradient():
    logits, target = _case(2, void_rows=8)
    logits.requires_grad_()
    loss = objectives.cross_entropy(logits, target) + objectives.soft_dice(logits, target)
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().max() == 0
