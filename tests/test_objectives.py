"""Losses: closed forms, an independent oracle, and void that never counts."""

import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from nbutils import networks, objectives
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


@pytest.mark.parametrize("bands", [1, 4, 13])
def test_views_take_any_number_of_bands_and_follow_the_generator(bands):
    images = torch.rand(6, bands, 32, 32)
    views = [objectives.random_view(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert views[0].shape == images.shape and torch.isfinite(views[0]).all()
    assert torch.equal(views[0], views[1]) and not torch.allclose(views[0], views[2])


def test_moco_learns_the_encoder_and_moves_the_key_slowly():
    encoder = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=2, seed=0).encoder
    moco = objectives.MoCo(encoder, seed=0, queue=32)
    before = [p.clone() for p in moco.key_encoder.parameters()]
    moco(torch.rand(2, 8, 4, 32, 32)).backward()
    assert all(p.grad is None for p in moco.key_encoder.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    after = list(moco.key_encoder.parameters())
    assert all(torch.allclose(a, b) for a, b in zip(before, after, strict=True))  # the two start equal
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1.0)
    moco(torch.rand(2, 8, 4, 32, 32))
    moved = torch.cat([(a - b).flatten() for a, b in zip(moco.key_encoder.parameters(), before, strict=True)])
    assert moved.mean().item() == pytest.approx(1 - moco.momentum, rel=1e-3)


def test_moco_normalises_keys_in_other_company_than_queries():
    """With the same views and weights a key equals its query only where both saw the same group statistics."""
    encoder = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=2, seed=0).encoder.train()
    images = torch.rand(8, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    whole, grouped = (objectives.selfsupervised._pooled(encoder, images, groups) for groups in (1, 2))
    halves = torch.cat([objectives.selfsupervised._pooled(encoder, half, 1) for half in (images[:4], images[4:])])
    assert torch.equal(grouped, halves) and not torch.allclose(grouped, whole)


def test_moco_pairs_each_query_with_its_own_key(monkeypatch):
    """Shuffling must be undone: without augmentation and BatchNorm, queries equal their keys."""
    encoder = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=2, seed=0).encoder.eval()
    moco = objectives.MoCo(encoder, seed=0, queue=32).eval()
    monkeypatch.setattr(objectives.selfsupervised, "random_view", lambda images, generator: images)
    seen = []
    del moco.contrast  # a module's child cannot be replaced by a function
    moco.contrast = lambda query, key: seen.append((query, key)) or query.sum()
    moco(torch.rand(8, 4, 32, 32).expand(2, -1, -1, -1, -1))
    query, key = seen[0]
    torch.testing.assert_close(query, key, atol=1e-4, rtol=1e-4)


def test_moco_refuses_batches_too_small_for_the_groups_of_its_batchnorm():
    encoder = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=2, seed=0).encoder
    with pytest.raises(ValueError, match="4 images or more, got 3"):
        objectives.MoCo(encoder, seed=0)(torch.rand(2, 3, 4, 32, 32))
