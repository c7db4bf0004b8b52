"""The monitor: it leaves no trace, agrees with its definition, and tells a memoriser from a learner."""

import copy
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_patches

from nbutils import networks, probing, training
from nbutils.legend import VOID
from nbutils.objectives import Supervised, cross_entropy, soft_dice

DATA = toy_patches(n=20)
TRAIN, UNSEEN = DATA.split("pretrain"), toy_patches(n=16, seed=9)
BUILD = partial(networks.build, "tu-test_resnet", "unet", in_channels=4, n_classes=4, width="slim")
LAYERS = probing.layer_names(BUILD(seed=0))


def _monitor(network, train=TRAIN, unseen=UNSEEN, **settings):
    settings = {"rng": np.random.default_rng(1), "block_px": 8, **settings}
    return probing.Monitor(network, train, "noisy", unseen=unseen, **settings)


@pytest.mark.parametrize("decoder", ["unet", "deeplabv3plus"])  # without and with dropout
def test_training_with_the_monitor_gives_the_same_bits(decoder):
    plan = training.Plan(steps=6, batch_size=4, learning_rate=1e-3, precision="fp32", seed=0)
    states, curves = [], []
    for watched in (False, True):
        network = networks.build("tu-test_resnet", decoder, in_channels=4, n_classes=4, seed=0, width="slim")
        judge = _monitor(network, n_patches=4) if watched else None
        curves.append(training.fit(Supervised(network), TRAIN, "noisy", plan, judge=judge, looks=3))
        states.append(network.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    seen = [point for point in curves[1] if "susceptibility_stem" in point]
    assert len(seen) == 3 and all(np.isfinite(list(point.values())).all() for point in seen)
    assert set(seen[0]) - set(curves[0][0]) == {f"{k}_{x}" for k in ("susceptibility", "gradient_snr") for x in (
        probing.layer_names(network))}  # fmt: skip


def test_asking_leaves_weights_gradients_modes_and_random_states():
    network = BUILD(seed=0).train()
    network.encoder.eval()
    network.segmentation_head.requires_grad_(False)
    network.decoder(network.encoder(torch.rand(2, 4, 32, 32))).sum().backward()
    found = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in network.named_parameters()}
    about = [(module.training, [p.requires_grad for p in module.parameters()]) for module in network.modules()]
    monitor, states = _monitor(network, n_patches=4), (torch.get_rng_state(), np.random.get_state()[1].copy())
    first, second = monitor(), monitor()
    assert first == second
    assert all(torch.equal(value, found[name]) for name, value in network.state_dict().items())
    for name, value in network.named_parameters():
        assert gradients[name] is None and value.grad is None or torch.equal(value.grad, gradients[name])
    assert about == [(module.training, [p.requires_grad for p in module.parameters()]) for module in network.modules()]
    assert torch.equal(torch.get_rng_state(), states[0]) and np.array_equal(np.random.get_state()[1], states[1])


@cache
def _fitted(labels):
    """A network that has fitted true labels, or random blocks, on its ten patches: nearly all of them."""
    masks = {"true": DATA.masks["noisy"], "random": probing.random_blocks(DATA.masks["noisy"], 8, _rng(5))}
    seen = replace(DATA, masks={**DATA.masks, "noisy": masks[labels]}).split("pretrain")
    network = BUILD(seed=0)
    plan = training.Plan(steps=240, batch_size=5, learning_rate=3e-3, precision="fp32", seed=0)
    curve = training.fit(Supervised(network), seen, "noisy", plan)
    return network, curve[-1]["accuracy"]


def _rng(seed):
    return np.random.default_rng(seed)


def test_who_memorised_random_labels_follows_others_more_than_who_learned_true_ones():
    (learner, learned), (memoriser, memorised) = _fitted("true"), _fitted("random")
    assert learned > 0.9 and memorised > 0.75
    ours, theirs = (
        np.mean([list(_monitor(network, rng=_rng(seed))().values())[: len(LAYERS)] for seed in range(2)], axis=0)
        for network in (learner, memoriser)
    )
    assert (theirs > ours).mean() > 0.8 and theirs.mean() > 3 * ours.mean()  # measured: all, 12 to 31 times


def test_scores_agree_with_the_definition():
    """One step of a layer by hand, on a copy of the network."""
    network = _fitted("true")[0]
    monitor = _monitor(network, n_patches=4, minibatch=2, step=0.02)
    said, twin = monitor(), copy.deepcopy(network).eval()

    def preference():
        with torch.no_grad():
            probability = twin(monitor.unseen).softmax(1).movedim(1, -1)[monitor.random != VOID]
        shares = [labels[monitor.random != VOID].long() for labels in (monitor.random, monitor.others)]
        return np.subtract(*(probability.gather(1, ids[:, None]).double().mean().item() for ids in shares))

    before = preference()
    logits = twin(monitor.unseen)
    (cross_entropy(logits, monitor.random) + soft_dice(logits, monitor.random)).backward()
    own = list(probing.parameters_of(twin, "stage2").values())
    size, length = (torch.cat([x.flatten() for x in each]).norm() for each in (own, [p.grad for p in own]))
    with torch.no_grad():
        for value in own:
            value.sub_(0.02 * size / length * value.grad)
    assert said["susceptibility_stage2"] == pytest.approx(preference() - before, abs=1e-5)

    twin.load_state_dict(network.state_dict())
    rows = []
    for start in (0, 2):
        twin.zero_grad()
        logits, masks = twin(monitor.images[start : start + 2]), monitor.masks[start : start + 2]
        (cross_entropy(logits, masks) + soft_dice(logits, masks)).backward()
        rows.append(torch.cat([p.grad.flatten() for p in own]).double().numpy())
    mean = np.mean(rows, axis=0)
    expected = (mean**2).sum() / np.mean([((row - mean) ** 2).sum() for row in rows])
    assert said["gradient_snr_stage2"] == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 2**16), st.integers(2, 9))
def test_signal_to_noise_of_gradients_with_nothing_in_common_is_one_in_m_less_one(seed, m):
    rows = np.linalg.qr(_rng(seed).normal(size=(20, 20)))[0][:m]  # of equal length, at right angles
    signal, mean_square = (rows.mean(axis=0) ** 2).sum(), (rows**2).sum(axis=1).mean()
    assert probing.gradient_snr(signal, mean_square) == pytest.approx(1 / (m - 1))
    assert np.isnan(probing.gradient_snr(mean_square, mean_square))


@settings(max_examples=12)
@given(st.integers(0, 2**16), st.integers(2, 16))
def test_random_blocks_are_square_of_known_classes_and_void_where_the_masks_are(seed, side):
    masks = UNSEEN.masks["noisy"]
    labels = probing.random_blocks(masks, side, _rng(seed))
    assert labels.dtype == np.uint8 and np.array_equal(labels == VOID, masks == VOID)
    assert set(np.unique(labels)) <= set(np.unique(masks))
    for y in range(0, 32, side):
        for x in range(0, 32, side):
            block = labels[:, y : y + side, x : x + side].reshape(len(labels), -1)
            assert all(len(set(row[row != VOID].tolist())) <= 1 for row in block)


def test_random_blocks_have_the_shares_of_the_masks():
    masks = np.repeat([0, 0, 0, 2], 4096).astype(np.uint8).reshape(1, 128, 128)
    share = (probing.random_blocks(masks, 1, _rng(0)) == 2).mean()
    assert share == pytest.approx(0.25, abs=0.02)


def test_void_pixels_do_not_count():
    """What their labels were, had they any, changes no score."""
    masks = UNSEEN.masks["noisy"].copy()
    masks[:, :, 16:] = VOID
    network = _fitted("true")[0]
    half = replace(UNSEEN, masks={**UNSEEN.masks, "noisy": masks})
    monitor = _monitor(network, unseen=half)
    said = monitor()
    monitor.others[:, :, 16:] = 3
    assert monitor() == said
    monitor.random[:, :, 16:] = 3
    assert monitor() != said  # the test can tell


def test_what_cannot_be_watched_is_refused():
    network, void = BUILD(seed=0), np.full_like(TRAIN.masks["noisy"], VOID)
    with pytest.raises(ValueError, match="predicts no masks"):
        _monitor(network.encoder)
    with pytest.raises(ValueError, match="two minibatches of 2 patches, got 3"):
        _monitor(network, n_patches=3)
    with pytest.raises(ValueError, match="toy: no valid pixel in the noisy masks"):
        _monitor(network, train=replace(TRAIN, masks={**TRAIN.masks, "noisy": void}))
