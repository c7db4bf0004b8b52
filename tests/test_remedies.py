"""Remedies for noisy masks: closed forms, loops as oracles, void that never counts, training that resumes."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from nbutils import memorisation, networks, objectives
from nbutils.legend import VOID
from nbutils.objectives import correction, cross_entropy, remedies, soft_dice

LOSSES = {
    "gce": remedies.generalised_cross_entropy,
    "sce": remedies.symmetric_cross_entropy,
    "hard": remedies.bootstrapped_cross_entropy,
    "soft": lambda logits, target: remedies.bootstrapped_cross_entropy(logits, target, beta=0.95, hard=False),
    "smooth": remedies.smoothed_cross_entropy,
    "selected": lambda logits, target: _selected(logits, target, remedies.weighted_cross_entropy),
    "selected dice": lambda logits, target: _selected(logits, target, remedies.weighted_dice),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def _selected(logits, target, loss):
    return loss(logits, target, remedies.confident_pixels(logits, target, keep=0.5))


def _case(seed: int, k: int = 5, void_rows: int = 3, size: int = 8):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, k, size, size, generator=generator)
    target = torch.randint(k, (2, size, size), generator=generator).to(torch.uint8)
    target[:, :void_rows] = VOID
    return logits, target


def _pixels(logits, target):
    """Yield probabilities and label of every valid pixel, in float64."""
    for n, i, j in np.ndindex(*target.shape):
        if target[n, i, j] != VOID:
            scores = logits[n, :, i, j].double().numpy()
            exp = np.exp(scores - scores.max())
            yield exp / exp.sum(), int(target[n, i, j])


@pytest.mark.parametrize("k", [2, 5, 13])
def test_losses_agree_with_loops_over_pixels(k):
    logits, target = _case(k, k=k)
    pixels = list(_pixels(logits, target))

    def mean(of_pixel):
        return pytest.approx(np.mean([of_pixel(p, y) for p, y in pixels]), rel=1e-5)

    def symmetric(p, y):
        label = [0.0 if c == y else -4.0 for c in range(k)]  # log of the one-hot label, clipped
        return -0.5 * math.log(p[y]) - 2.0 * sum(p[c] * label[c] for c in range(k))

    def bootstrapped(p, y, beta, own):
        return -sum((beta * (c == y) + (1 - beta) * own[c]) * math.log(p[c]) for c in range(k))

    assert remedies.generalised_cross_entropy(logits, target, q=0.6).item() == mean(
        lambda p, y: (1 - p[y] ** 0.6) / 0.6
    )
    assert remedies.symmetric_cross_entropy(logits, target, alpha=0.5, beta=2.0).item() == mean(symmetric)
    soft = remedies.bootstrapped_cross_entropy(logits, target, beta=0.7, hard=False)
    assert soft.item() == mean(lambda p, y: bootstrapped(p, y, 0.7, p))
    hard = remedies.bootstrapped_cross_entropy(logits, target, beta=0.7)
    assert hard.item() == mean(lambda p, y: bootstrapped(p, y, 0.7, np.eye(k)[p.argmax()]))


def test_limits_are_cross_entropy_and_the_absolute_error():
    logits, target = _case(0)
    plain = cross_entropy(logits, target)
    assert torch.equal(remedies.generalised_cross_entropy(logits, target, q=0), plain)
    close = torch.testing.assert_close
    close(remedies.generalised_cross_entropy(logits, target, q=1e-6), plain, rtol=1e-4, atol=0)
    missing = torch.tensor(np.mean([1 - p[y] for p, y in _pixels(logits, target)]), dtype=torch.float32)
    close(remedies.generalised_cross_entropy(logits, target, q=1), missing)
    close(remedies.symmetric_cross_entropy(logits, target, beta=0), plain)
    close(remedies.symmetric_cross_entropy(logits, target, alpha=0), 4 * missing)
    for hard in (False, True):
        close(remedies.bootstrapped_cross_entropy(logits, target, beta=1, hard=hard), plain)
    close(remedies.smoothed_cross_entropy(logits, target, prior=0, uniform=0), plain)
    ones = torch.ones(target.shape)
    close(remedies.weighted_cross_entropy(logits, target, ones), plain)
    close(remedies.weighted_dice(logits, target, ones), soft_dice(logits, target))


def test_uniform_predictions_have_closed_losses():
    _, target = _case(1, k=4)
    logits = torch.zeros(2, 4, 8, 8)
    assert remedies.generalised_cross_entropy(logits, target).item() == pytest.approx((1 - 0.25**0.7) / 0.7)
    assert remedies.symmetric_cross_entropy(logits, target).item() == pytest.approx(math.log(4) + 4 * 0.75)
    assert remedies.bootstrapped_cross_entropy(logits, target).item() == pytest.approx(math.log(4))
    assert remedies.smoothed_cross_entropy(logits, target).item() == pytest.approx(math.log(4))


def test_robust_losses_bound_what_one_wrong_label_costs():
    """A label of probability ~0 costs 1/q, where cross-entropy is unbounded, and hardly pulls."""
    logits = torch.tensor([[60.0, 0.0]]).view(1, 2, 1, 1).requires_grad_()
    target = torch.ones(1, 1, 1, dtype=torch.uint8)
    loss = remedies.generalised_cross_entropy(logits, target, q=0.7)
    loss.backward()
    assert loss.item() == pytest.approx(1 / 0.7) and logits.grad.abs().max() < 1e-12
    assert cross_entropy(logits, target).item() == pytest.approx(60)


@every_loss
@settings(max_examples=30)
@given(seed=st.integers(0, 2**16), value=st.sampled_from([-1e4, -20.0, 0.5, 1e4, math.inf, math.nan]))
def test_what_is_predicted_on_void_changes_nothing(loss, seed, value):
    logits, target = _case(seed)
    other = torch.where((target == VOID).unsqueeze(1), torch.tensor(value), logits)
    gradients = []
    for scores in (logits, other):
        scores.requires_grad_()
        loss(scores, target).backward()
        gradients.append(scores.grad)
    assert torch.equal(loss(logits, target), loss(other, target))
    assert torch.equal(*gradients) and gradients[0][:, :, :3].abs().max() == 0


@every_loss
def test_all_void_batch_gives_zero_and_no_gradient(loss):
    logits, target = _case(2, void_rows=8)
    logits.requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert value.item() == 0 and logits.grad.abs().max() == 0


@every_loss
@pytest.mark.parametrize("k", [1, 2, 13])
def test_bf16_and_extreme_predictions_give_a_finite_float32_loss(loss, k):
    logits, target = _case(3, k=k)
    for scores in (logits.bfloat16(), 1e4 * logits):
        scores = scores.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(scores, target)
        value.backward()
        assert value.dtype == torch.float32 and torch.isfinite(value) and torch.isfinite(scores.grad).all()
        if k == 1:  # a single class is never wrong
            assert value.item() == pytest.approx(0, abs=1e-6)


@every_loss
def test_half_the_pixels_void_does_not_halve_the_loss(loss):
    logits, target = _case(4, void_rows=0)
    twice = torch.cat([logits, logits], dim=2)
    void = torch.cat([target, torch.full_like(target, VOID)], dim=1)
    if loss is LOSSES["smooth"]:  # the prior near the border of void is the prior near the border of the patch
        twice, void = torch.cat([logits, 0 * logits], dim=2), void
    torch.testing.assert_close(loss(twice, void), loss(logits, target))


def test_prior_agrees_with_normalised_convolution_of_scipy():
    _, target = _case(5, k=4, size=32)
    target[1, 10:20, 5:9] = VOID
    prior = remedies.spatial_prior(target, 4).numpy()
    for n, mask in enumerate(target.numpy()):
        reach = ndimage.gaussian_filter((mask != VOID).astype(float), 3, mode="constant")
        for c in range(4):
            blurred = ndimage.gaussian_filter((mask == c).astype(float), 3, mode="constant")
            np.testing.assert_allclose(prior[n, c][mask != VOID], (blurred / reach)[mask != VOID], atol=1e-5)


@given(st.integers(0, 2**16), st.integers(0, 8), st.booleans())
def test_prior_sums_to_one_on_valid_pixels(seed, void_rows, autocast):
    _, target = _case(seed, void_rows=void_rows)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        prior = remedies.spatial_prior(target, 5)
    total = prior.sum(dim=1)[target != VOID]
    torch.testing.assert_close(total, torch.ones_like(total))
    assert prior.dtype == torch.float32 and prior.min() >= 0


def test_smoothing_of_a_mask_of_one_class_is_plain_label_smoothing():
    logits, target = _case(6, k=4)
    target[target != VOID] = 2
    expected = np.mean([-0.95 * math.log(p[2]) - 0.05 * np.log(p).mean() for p, _ in _pixels(logits, target)])
    assert remedies.smoothed_cross_entropy(logits, target).item() == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 2**16), st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0]), st.integers(2, 13))
def test_of_each_class_the_stated_share_has_full_weight(seed, keep, k):
    logits, target = _case(seed, k=k)
    weight = remedies.confident_pixels(logits, target, keep=keep)
    assert (weight[target == VOID] == 0).all()
    confidence = logits.softmax(dim=1)
    for label in range(k):
        own = target == label
        values, weights = confidence[:, label][own], weight[own]
        if not own.any():
            continue
        kept = max(1, math.ceil(keep * own.sum().item()))
        assert (weights == 1).sum() == kept
        lowest = values.sort(descending=True).values[kept - 1]
        torch.testing.assert_close(weights, (values / lowest).clamp(max=1), rtol=1e-4, atol=1e-6)


def test_selection_has_no_gradient_through_its_weights():
    logits, target = _case(7)
    assert not remedies.confident_pixels(logits.requires_grad_(), target, keep=0.5).requires_grad


def test_weights_of_zero_and_one_choose_pixels():
    logits, target = _case(8, void_rows=0)
    chosen = torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    as_void = torch.where(chosen, target, VOID)
    for weighted, plain in ((remedies.weighted_cross_entropy, cross_entropy), (remedies.weighted_dice, soft_dice)):
        torch.testing.assert_close(weighted(logits, target, chosen.float()), plain(logits, as_void))


def test_settings_out_of_range_are_refused():
    logits, target = _case(0)
    for call in (
        lambda: remedies.generalised_cross_entropy(logits, target, q=1.5),
        lambda: remedies.symmetric_cross_entropy(logits, target, log_zero=4.0),
        lambda: remedies.bootstrapped_cross_entropy(logits, target, beta=-0.1),
        lambda: remedies.smoothed_cross_entropy(logits, target, prior=0.9, uniform=0.2),
        lambda: remedies.spatial_prior(target, 5, sigma_px=0),
        lambda: remedies.confident_pixels(logits, target, keep=0),
        lambda: remedies.ConfidentPixels(nn.Identity(), ramp=0),
        lambda: correction.TeacherCorrection(nn.Identity(), momentum=1.0),
        lambda: correction.correct_objects(np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 5), np.uint8)),
    ):
        with pytest.raises(ValueError, match="got"):
            call()


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


@pytest.mark.parametrize("name", objectives.REMEDIES)
def test_every_remedy_trains_its_network_and_takes_void(name):
    objective = objectives.REMEDIES[name](_network())
    images, masks = next(_batches(1))
    loss = objective(images, masks)
    loss.backward()
    assert loss.ndim == 0 and torch.isfinite(loss) and objective.logits.shape == (4, 4, 32, 32)
    assert not objective.logits.requires_grad
    assert all(p.grad is not None for p in objective.network.parameters())
    objective.zero_grad()
    objective.done = 0.9
    void = objective(images, torch.full_like(masks, VOID))
    void.backward()
    assert void.item() == 0 and all((p.grad == 0).all() for p in objective.network.parameters())


def test_selection_keeps_every_pixel_at_first_and_half_of_them_after_the_ramp():
    network = _network().eval()
    images, masks = next(_batches(1))
    logits = network(images)
    objective = remedies.ConfidentPixels(network, ramp=0.4)
    torch.testing.assert_close(objective(images, masks), objectives.Supervised(network)(images, masks))
    for done, keep in ((0.2, 0.75), (0.4, 0.5), (0.9, 0.5)):
        objective.done = done
        weight = remedies.confident_pixels(logits, masks, keep=keep)
        expected = remedies.weighted_cross_entropy(logits, masks, weight)
        expected = expected + remedies.weighted_dice(logits, masks, weight)
        torch.testing.assert_close(objective(images, masks), expected)


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


@pytest.mark.parametrize(("name", "trigger"), [*((name, 2) for name in objectives.REMEDIES), ("correct", 5)])
def test_training_resumes_to_the_same_bits(name, trigger, monkeypatch):
    """The correction starts before or behind the checkpoint, from the history alone."""
    monkeypatch.setattr(memorisation, "transition", lambda x, y: 1 if len(x) >= trigger else None)
    batches = list(_batches(8))
    whole, optimizer = _start(objectives.REMEDIES[name])
    losses = _train(whole, optimizer, batches, 0, 8)
    half, optimizer = _start(objectives.REMEDIES[name])
    first = _train(half, optimizer, batches[:4], 0, 8)
    state = copy.deepcopy((half.state_dict(), optimizer.state_dict()))
    resumed, optimizer = _start(objectives.REMEDIES[name])
    resumed.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    rest = _train(resumed, optimizer, batches[4:], 4, 8)
    assert torch.equal(losses, torch.cat([first, rest]))
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in resumed.state_dict().items())
    if name == "correct":
        assert whole.triggered == resumed.triggered == trigger / 8
