"""Correction of masks by a teacher: planted objects, the trigger, and that nothing of it is exported."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from nbutils import memorisation, networks, objectives
from nbutils.legend import VOID
from nbutils.objectives import correction, cross_entropy, soft_dice


def _network(seed: int = 0, k: int = 4) -> nn.Module:
    return networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=k, seed=seed, width="slim")


def _batches(n: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        masks = torch.randint(4, (4, 2, 2), generator=generator).repeat_interleave(16, 1).repeat_interleave(16, 2)
        images = masks.unsqueeze(1) + torch.randn(4, 4, 32, 32, generator=generator)
        masks = masks.to(torch.uint8)
        masks[:, :4] = VOID
        yield images, masks


def _train(objective, optimizer, batches, first, total):
    losses = []
    for step, (images, masks) in enumerate(batches, start=first):
        objective.done = step / total
        loss = objective(images, masks)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def _start(make):
    objective = make(_network()).train()
    return objective, torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-2)


def test_before_the_trigger_correction_is_plain_training_to_the_bit(monkeypatch):
    monkeypatch.setattr(memorisation, "transition", lambda x, y: None)
    plain, corrected = _start(objectives.Supervised), _start(correction.TeacherCorrection)
    losses = [_train(*pair, _batches(4), 0, 4) for pair in (plain, corrected)]
    assert torch.equal(*losses) and corrected[0].triggered is None
    own, other = (pair[0].network.state_dict() for pair in (plain, corrected))
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_the_history_is_the_accuracy_against_the_labels_as_given(monkeypatch):
    monkeypatch.setattr(memorisation, "transition", lambda x, y: None)
    objective = correction.TeacherCorrection(_network())
    shares = []
    for step, (images, masks) in enumerate(_batches(4)):
        objective.done = step / 4
        objective(images, masks)
        predicted = objective.logits.argmax(dim=1)
        shares.append((predicted == masks)[masks != VOID].double().mean().item())
    points, accuracy = objective.accuracy()
    assert points.tolist() == [0, 12, 25] and accuracy.tolist() == pytest.approx(shares[:3])  # the last is under way


def test_the_trigger_is_the_transition_of_the_history():
    """Planted accuracies that rise and stay: the correction starts at the share at which the curve is called flat."""
    objective = correction.TeacherCorrection(_network())
    _, masks = next(_batches(1))
    rate = np.interp(np.arange(50), [0, 20, 49], [0.2, 0.8, 0.8])
    for point in range(50):
        right = torch.rand(masks.shape, generator=torch.Generator().manual_seed(point)) < rate[point]
        predicted = torch.where(right | (masks == VOID), masks, (masks + 1) % 4).long() % 4
        objective.logits = nn.functional.one_hot(predicted, 4).permute(0, 3, 1, 2).float()
        objective.done = point / 50
        objective._watch(masks)
    called = memorisation.transition(*objective.accuracy())
    assert 20 < called < 32 and objective.triggered == pytest.approx((called + 1) / 50)


def test_teacher_is_the_average_of_weights_and_statistics_and_not_trained():
    objective = correction.TeacherCorrection(_network(), momentum=0.5).train()
    assert not objective.teacher.training and not any(p.requires_grad for p in objective.teacher.parameters())
    before = {name: value.clone() for name, value in objective.teacher.state_dict().items()}
    with torch.no_grad():
        for value in objective.network.parameters():
            value += 1.0
    images, masks = next(_batches(1))
    objective(images, masks)  # also moves the network's BatchNorm statistics
    share, own = 1 - 1 / 11, objective.network.state_dict()
    for name, value in objective.teacher.state_dict().items():
        expected = own[name] if not value.is_floating_point() else before[name].lerp(own[name], share)
        torch.testing.assert_close(value, expected)
    objective.eval()
    after = copy.deepcopy(objective.teacher.state_dict())
    objective(images, masks)
    assert all(torch.equal(value, after[name]) for name, value in objective.teacher.state_dict().items())


def test_what_is_exported_knows_no_teacher():
    objective = correction.TeacherCorrection(_network())
    assert objective.network.state_dict().keys() == _network().state_dict().keys()
    assert {id(p) for p in objective.network.parameters()}.isdisjoint(id(p) for p in objective.teacher.parameters())


@pytest.mark.parametrize("objects", [False, True])
def test_after_the_trigger_the_loss_is_that_of_the_corrected_masks(objects):
    network = _network().eval()
    objective = correction.TeacherCorrection(network, objects=objects, confidence=0.3).eval()
    objective.triggered = 0.5
    images, masks = next(_batches(1))
    seen = correction.confident_classes(network(images), 0.3)
    if objects:
        expected = torch.from_numpy(correction.correct_objects(masks.numpy(), seen.numpy()))
    else:
        expected = correction.correct_pixels(masks, seen)
    assert (expected != masks).any() and torch.equal(expected == VOID, masks == VOID)
    assert torch.equal(
        objective(images, masks), cross_entropy(network(images), expected) + soft_dice(network(images), expected)
    )


@pytest.mark.parametrize("triggered", [None, 0.0, 0.4])
def test_what_a_checkpoint_keeps_comes_back(triggered):
    first, second = (correction.TeacherCorrection(_network()) for _ in range(2))
    first.steps, first.point, first.triggered = 7, 3, triggered
    first.history[2] = torch.tensor([5, 9])
    second.load_state_dict(first.state_dict())
    assert (second.steps, second.point, second.triggered) == (7, 3, triggered)
    assert second.history[2].tolist() == [5, 9]


@pytest.mark.parametrize(("shape", "vote"), [((1, 8, 9), 0.7), ((1, 1, 8), 0.7), ((1, 8, 8), 1.0), ((1, 8, 8), 0.4)])
def test_objects_of_other_shapes_or_votes_are_refused(shape, vote):
    with pytest.raises(ValueError, match="need masks of one shape and vote in"):
        correction.correct_objects(np.zeros((1, 8, 8), np.uint8), np.zeros(shape, np.uint8), vote=vote)


def test_pixels_are_corrected_only_where_the_teacher_is_confident_and_the_label_valid():
    probability = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.7, 0.3], [0.05, 0.95]])
    logits = probability.log().T.reshape(1, 2, 1, 4)
    seen = correction.confident_classes(logits, 0.8)
    assert seen.dtype == torch.uint8 and seen.flatten().tolist() == [0, 1, VOID, 1]
    target = torch.tensor([[[1, 1, 1, VOID]]], dtype=torch.uint8)
    assert correction.correct_pixels(target, seen).flatten().tolist() == [0, 1, 1, VOID]


def _planted():
    """Two patches of class 0 with a house (class 1) of 5 x 5 pixels each in the label."""
    target = np.zeros((2, 16, 16), np.uint8)
    target[:, 2:7, 2:7] = 1
    return target, target.copy()


def test_an_object_the_teacher_agrees_with_stays():
    target, seen = _planted()
    assert np.array_equal(correction.correct_objects(target, seen), target)
    assert np.array_equal(correction.correct_objects(target, np.full_like(seen, VOID)), target)


def test_an_object_the_teacher_does_not_see_is_replaced_as_a_whole():
    target, seen = _planted()
    seen[0] = 0
    seen[0, 2:7, 2:4] = VOID  # undecided on 10 of 25 pixels: 15 votes against
    corrected = correction.correct_objects(target, seen, vote=0.5)
    assert (corrected[0] == 0).all() and np.array_equal(corrected[1], target[1])
    assert np.array_equal(correction.correct_objects(target, seen, vote=0.6), target)  # 15 of 25 is not more than 0.6


def test_a_shifted_object_is_neither_added_nor_lost():
    target, seen = _planted()
    seen[0] = 0
    seen[0, 3:8, 3:8] = 1  # overlaps the label's house in 16 of its 25 pixels
    assert np.array_equal(correction.correct_objects(target, seen), target)


def test_an_object_absent_in_the_label_is_added_but_no_speckle():
    target, seen = _planted()
    seen[1, 10:13, 10:13] = 1
    seen[1, 14, 2] = 1
    expected = target.copy()
    expected[1, 10:13, 10:13] = 1
    assert np.array_equal(correction.correct_objects(target, seen), expected)


def test_objects_of_neighbouring_patches_and_across_void_are_apart():
    target = np.zeros((2, 8, 8), np.uint8)
    target[0, 5:, :] = 1  # touches the lower border of one patch,
    target[1, :3, :] = 1  # and the upper border of the next
    target[0, :, 4] = VOID
    seen = target.copy()
    seen[0, 5:, :4] = 0
    corrected = correction.correct_objects(target, seen)
    assert (corrected[0, 5:, :4] == 0).all() and (corrected[0, 5:, 5:] == 1).all()
    assert np.array_equal(corrected[1], target[1]) and (corrected[0, :, 4] == VOID).all()


def _slow_correct_objects(target, seen, vote, min_px):
    """The rule, object by object."""
    out = target.copy()
    for mask, view, result in zip(target, seen, out, strict=True):
        for label in set(np.unique(mask)) - {VOID}:
            number, n = ndimage.label(mask == label)
            for i in range(1, n + 1):
                votes = view[number == i]
                for other in set(votes.tolist()) - {VOID}:
                    if (votes == other).sum() > vote * len(votes):
                        result[number == i] = other
        for label in set(np.unique(view)) - {VOID}:
            number, n = ndimage.label((view == label) & (mask != VOID))
            for i in range(1, n + 1):
                own = number == i
                if own.sum() >= min_px and not (mask[own] == label).any():
                    result[own] = label
    return out


@given(st.integers(0, 2**16), st.integers(1, 6), st.sampled_from([0.5, 0.7]), st.integers(1, 9))
def test_object_correction_agrees_with_a_loop_over_objects(seed, cell, vote, min_px):
    rng = np.random.default_rng(seed)
    target, seen = (
        np.kron(rng.choice([0, 1, 2, VOID], (3, 4, 4)), np.ones((1, cell, cell))).astype(np.uint8) for _ in range(2)
    )
    seen = np.where(rng.random(seen.shape) < 0.8, target, seen)
    before = target.copy(), seen.copy()
    corrected = correction.correct_objects(target, seen, vote=vote, min_px=min_px)
    assert np.array_equal(corrected, _slow_correct_objects(target, seen, vote, min_px))
    assert np.array_equal(corrected == VOID, target == VOID) and corrected.dtype == np.uint8
    assert np.array_equal(target, before[0]) and np.array_equal(seen, before[1])
