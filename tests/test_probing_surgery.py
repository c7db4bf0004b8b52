"""Surgery: swapping with oneself is nothing, statistics are re-estimated as by hand, one layer learns alone."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.swa_utils import update_bn
from toy import toy_patches

from nbutils import evaluation, networks, probing, training
from nbutils.batches import normalise

DATA = toy_patches().split("pretrain")
BUILD = partial(networks.build, "tu-test_resnet", "unet", in_channels=4, n_classes=4, width="slim")
LAYERS = probing.layer_names(BUILD(seed=0))
PLAN = training.Plan(steps=3, batch_size=4, learning_rate=1e-3, precision="fp32", seed=5)


def _lived_in(seed):
    """A network whose statistics of BatchNorm are not the initial ones."""
    network = BUILD(seed=seed)
    probing.reestimate(network, DATA, "stem")
    return network


NETWORK, DONOR = _lived_in(0), _lived_in(1)


def _state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def _same(a, b, names=None):
    return all(torch.equal(a[name], b[name]) for name in (a if names is None else names))


@pytest.mark.parametrize("layer", LAYERS)
def test_swapping_a_layer_with_itself_changes_nothing(layer):
    twin = probing.swap(NETWORK, NETWORK, layer, DATA)
    assert twin is not NETWORK and _same(_state(twin), _state(NETWORK))
    assert np.array_equal(evaluation.predict(twin, DATA), evaluation.predict(NETWORK, DATA))


@settings(max_examples=11)
@given(st.sampled_from(LAYERS))
def test_a_swap_takes_one_layer_and_leaves_both_networks_alone(layer):
    before, given_ = _state(NETWORK), _state(DONOR)
    swapped = probing.swap(NETWORK, DONOR, layer, DATA)
    again = probing.swap(NETWORK, DONOR, layer, DATA)
    after, own = _state(swapped), set(probing.parameters_of(NETWORK, layer))
    assert _same(_state(NETWORK), before) and _same(_state(DONOR), given_) and _same(after, _state(again))
    weights = {name for name, _ in NETWORK.named_parameters()}
    assert _same(after, given_, own) and _same(after, before, weights - own)
    earlier = {name for each in LAYERS[: LAYERS.index(layer)] for name in probing.state_of(NETWORK, each)}
    assert _same(after, before, earlier) and not swapped.training


def test_swapping_every_layer_gives_the_donor():
    network = NETWORK
    for layer in LAYERS:
        network = probing.swap(network, DONOR, layer, DATA)
    assert _same(_state(network), _state(DONOR), [name for name, _ in DONOR.named_parameters()])


@pytest.mark.parametrize("last", ["stem", "stage4", "decoder3", "head"])
def test_carried_are_all_layers_up_to_the_last(last):
    network, carried = BUILD(seed=7), LAYERS[: LAYERS.index(last) + 1]
    probing.carry(network, DONOR.state_dict(), last)
    inside = {name for layer in carried for name in probing.state_of(network, layer)}
    assert _same(_state(network), _state(DONOR), inside)
    assert _same(_state(network), _state(BUILD(seed=7)), set(_state(network)) - inside)
    with pytest.raises(ValueError, match="'stage1' of the stored weights does not fit: only one"):
        probing.carry(network, probing.state_of(DONOR, "stem"), "stage1")


def test_statistics_of_the_first_norm_are_those_computed_by_hand():
    """The first convolution sees the images themselves: mean and unbiased variance of what it makes of each batch."""
    swapped = probing.swap(NETWORK, DONOR, "stem", DATA, batch_size=10)  # 20 patches: two batches
    images = normalise(torch.as_tensor(DATA.images), DATA)
    with torch.no_grad():
        maps = DONOR.encoder.model.conv1[0](images)
    norm = swapped.encoder.model.conv1[1]
    values = [half.transpose(0, 1).flatten(1).double().numpy() for half in maps.split(10)]
    mean, variance = (np.mean([each(v, axis=1) for v in values], axis=0) for each in (np.mean, partial(np.var, ddof=1)))
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, atol=1e-5)
    np.testing.assert_allclose(norm.running_var.numpy(), variance, rtol=1e-4)
    assert norm.momentum == BUILD(seed=0).encoder.model.conv1[1].momentum == 0.1  # as before


@pytest.mark.parametrize("batch_size", [7, 20, 64])
def test_reestimating_all_agrees_with_pytorch(batch_size):
    """On a network without dropout, from the first layer on."""
    ours, theirs = _lived_in(0), _lived_in(0)
    probing.reestimate(ours, DATA, "stem", batch_size=batch_size)
    images = normalise(torch.as_tensor(DATA.images), DATA)
    update_bn(torch.tensor_split(images, -(-len(images) // batch_size)), theirs)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name])


def test_reestimation_has_no_dropout_in_it():
    network = networks.build("tu-test_resnet", "deeplabv3plus", in_channels=4, n_classes=4, seed=0, width="slim")
    assert any(isinstance(m, torch.nn.Dropout) for m in network.modules())
    torch.manual_seed(0)
    probing.reestimate(network, DATA, "stem")
    first, state = _state(network), torch.get_rng_state()
    probing.reestimate(network, DATA, "stem")
    assert _same(_state(network), first) and torch.equal(torch.get_rng_state(), state)


def test_a_donor_must_fit():
    wide = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=7, seed=0, width="slim")
    assert not _same(_state(probing.swap(NETWORK, wide, "stem", DATA)), _state(NETWORK))  # other heads do not matter
    with pytest.raises(ValueError, match=r"'head'.*segmentation_head.0.weight has shape \(4, .*\(7, "):
        probing.swap(NETWORK, wide, "head", DATA)
    with pytest.raises(ValueError, match="'decoder1' .*only one of the two has decoder"):
        fpn = networks.build("tu-test_resnet", "fpn", in_channels=4, n_classes=4, seed=0, width="slim")
        probing.swap(NETWORK, fpn, "decoder1", DATA)
    with pytest.raises(ValueError, match="unknown layer 'stage9'"):
        probing.swap(NETWORK, DONOR, "stage9", DATA)


@pytest.mark.parametrize("layer", ["stem", "stage3", "decoder2", "head"])
def test_a_reinitialised_layer_is_back_at_its_seed(layer):
    fresh, own = _state(BUILD(seed=0)), set(probing.state_of(NETWORK, layer))
    rewound = _state(probing.reinitialised(NETWORK, layer, 0, build=BUILD))
    assert _same(rewound, fresh, own) and _same(rewound, _state(NETWORK), set(fresh) - own)
    used = probing.reinitialised(NETWORK, layer, 3, build=BUILD, patches=DATA)
    assert _same(_state(used), _state(BUILD(seed=3)), probing.parameters_of(used, layer))


@pytest.mark.parametrize("layer", ["stem", "stage4", "decoder5", "head"])
def test_retraining_moves_one_layer_and_no_statistics_of_others(layer):
    trained, curve = probing.retrain_layer(NETWORK, layer, DATA, "noisy", PLAN, build=BUILD)
    after, fresh, own = _state(trained), _state(BUILD(seed=5)), set(probing.state_of(NETWORK, layer))
    assert curve[-1]["step"] == 3 and not trained.training
    assert _same(after, _state(NETWORK), set(after) - own)
    assert not any(torch.equal(after[name], fresh[name]) for name in own)  # statistics among them
    assert all(value.requires_grad for value in trained.parameters())
    trained.train()
    assert all(module.training for module in trained.modules())


def test_a_frozen_network_is_copied_without_its_chains():
    frozen = BUILD(seed=0)
    networks.freeze_encoder(frozen)
    trained, _ = probing.retrain_layer(frozen, "stage1", DATA, "noisy", PLAN, build=BUILD)
    own = probing.parameters_of(trained, "stage1")
    assert not any(torch.equal(value, BUILD(seed=5).get_parameter(name)) for name, value in own.items())
    assert all(module.training for module in trained.train().modules())
    assert not any(module.training for module in frozen.train().encoder.modules())  # the original stays frozen


def test_retraining_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match="unknown layer 'neck'"):
        probing.retrain_layer(NETWORK, "neck", DATA, "noisy", PLAN, build=BUILD)


@given(st.floats(-0.9, 3))
@settings(max_examples=15)
def test_weight_distance_of_scaled_weights_is_the_scale(scale):
    twin = BUILD(seed=0)
    with torch.no_grad():
        for value in twin.parameters():
            value.mul_(1 + scale)
        for name, value in twin.named_buffers():
            if "running" in name:
                value.add_(100)  # statistics do not count
    distance = probing.weight_distance(twin, NETWORK)
    assert list(distance) == list(LAYERS)
    assert all(value == pytest.approx(abs(scale), abs=1e-6) for value in distance.values())


def test_weight_distance_agrees_with_the_definition_and_names_what_differs():
    distance = probing.weight_distance(NETWORK, DONOR)
    a, b = (torch.cat([p.flatten() for p in n.segmentation_head.parameters()]) for n in (NETWORK, DONOR))
    assert distance["head"] == pytest.approx(((a - b).norm() / b.norm()).item(), rel=1e-5)
    wide = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=7, seed=0, width="slim")
    assert np.isnan(probing.weight_distance(NETWORK, wide)["head"])
    assert probing.weight_distance(NETWORK, wide)["stem"] == 0
    with pytest.raises(ValueError, match="layers differ: stem.*head and stem"):
        probing.weight_distance(NETWORK, NETWORK.encoder)
    full = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=4, seed=0, width="full")
    with pytest.raises(ValueError, match="'decoder1' differ"):
        probing.weight_distance(NETWORK, full)
