"""Evaluation: every valid pixel counted once, boundaries as defined, void nowhere, confidence in its bin."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special
from toy import toy_patches

from nbutils import batches, evaluation, networks
from nbutils.legend import VOID

DATA = toy_patches()
MASKS = hnp.arrays(np.uint8, (2, 7, 9), elements=st.sampled_from([0, 1, 2, 2, VOID]))
CLASSES = hnp.arrays(np.uint8, (2, 7, 9), elements=st.integers(0, 2))


def _slowly(mask, width):
    """Boundary pixels by the definition, pixel by pixel."""
    found = np.zeros(mask.shape, bool)
    for n, row, column in np.ndindex(mask.shape):
        near = mask[n, max(row - width, 0) : row + width + 1, max(column - width, 0) : column + width + 1]
        own = mask[n, row, column]
        found[n, row, column] = own != VOID and ((near != own) & (near != VOID)).any()
    return found


@settings(deadline=None, max_examples=40)
@given(CLASSES, MASKS, st.integers(1, 3))
def test_boundaries_are_those_of_the_definition(prediction, target, width):
    said = np.where(target == VOID, VOID, prediction)
    there, here = _slowly(target, width), _slowly(said, width)
    expected = [
        [(there & here & (target == k) & (said == k)).sum(), ((there & (target == k)) | (here & (said == k))).sum()]
        for k in range(3)
    ]
    assert evaluation.boundary_counts(prediction, target, 3, width_px=width).tolist() == expected


@settings(deadline=None, max_examples=20)
@given(CLASSES, MASKS)
def test_nothing_that_is_predicted_on_void_counts(prediction, target):
    other = np.where(target == VOID, (prediction + 1) % 3, prediction).astype(np.uint8)
    confidence = np.full(target.shape, 0.5, np.float32)
    for count in (
        lambda said: evaluation.boundary_counts(said, target, 3),
        lambda said: evaluation.calibration_counts(confidence, said, target),
    ):
        assert np.array_equal(count(prediction), count(other))


def test_the_rim_and_the_border_to_void_are_no_boundary():
    target = np.zeros((1, 8, 8), np.uint8)
    target[0, :, 4:] = VOID
    assert evaluation.boundary_counts(np.zeros_like(target), target, 2).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match="at least 1 pixel wide"):
        evaluation.boundary_counts(target, target, 2, width_px=0)


def test_a_mask_agrees_with_itself_on_every_boundary():
    exact = DATA.masks["exact"]
    both, either = evaluation.boundary_counts(np.where(exact == VOID, 0, exact), exact, 8).T
    assert np.array_equal(both, either) and (both > 0).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**16))
def test_bins_give_the_calibration_error_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    scores = torch.softmax(torch.as_tensor(rng.normal(size=(300, 4)) * 2), dim=1)
    confidence, said = scores.max(dim=1)
    truth = np.where(rng.random(300) < 0.7, said, rng.integers(0, 4, 300)).astype(np.uint8)  # too sure, and not enough
    truth[:20] = VOID
    bins = evaluation.calibration_counts(confidence.numpy(), said.numpy().astype(np.uint8), truth)
    pixels, sure, right = bins.T
    valid = truth != VOID
    assert pixels.sum() == valid.sum() and sure.sum() == pytest.approx(confidence.numpy()[valid].sum())
    expected = 0.0
    for i, low in enumerate(np.arange(15) / 15):
        inside = valid & (confidence.numpy() > low) & (confidence.numpy() <= low + 1 / 15)
        assert pixels[i] == inside.sum()
        if inside.any():
            gap = (said.numpy() == truth)[inside].mean() - confidence.numpy()[inside].mean()
            expected += abs(gap) * inside.sum() / valid.sum()
    assert np.abs(sure - right).sum() / pixels.sum() == pytest.approx(expected, abs=1e-9)


def test_every_valid_pixel_of_every_scene_is_counted_once():
    part = DATA.split("test")
    network = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=4, seed=0, width="slim")
    tallies = evaluation.evaluate(network, part, part.masks["noisy"], 4)
    predicted = evaluation.predict(network, part, batch_size=3)
    assert sorted(tallies) == ["scene-8", "scene-9"]
    for scene, tally in tallies.items():
        own = part.scenes == scene
        valid = part.masks["noisy"][own] != VOID
        assert tally.confusion.sum() == tally.calibration[:, 0].sum() == valid.sum()
        assert np.array_equal(tally.confusion.sum(axis=0), np.bincount(predicted[own][valid], minlength=4))
        assert tally.calibration[:, 2].sum() == tally.confusion.trace()
        with torch.no_grad():
            logits = network(batches.normalise(torch.as_tensor(part.images[own]), part)).numpy()
        sure = special.softmax(logits, axis=1).max(axis=1)[valid]
        assert tally.calibration[:, 1].sum() == pytest.approx(sure.sum(), rel=1e-5)
