"""Layers: every entry of the state belongs to one, none depends on a later one, and features are their own."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_patches

from nbutils import networks, probing
from nbutils.batches import normalise
from nbutils.legend import VOID
from nbutils.probing.layers import layers_of

DATA = toy_patches()
LARGE = toy_patches(n=10, size_px=128).take(np.arange(2))
ENCODER_LAYERS = ("stem", "stage1", "stage2", "stage3", "stage4")
# Decoder -> settings, number of its layers (0: one layer called "decoder").
DECODERS = {
    "Unet": ({}, 5),
    "UnetPlusPlus": ({}, 0),
    "MAnet": ({}, 5),
    "Linknet": ({}, 5),
    "FPN": ({}, 5),
    "PSPNet": ({"encoder_depth": 5}, 2),
    "PAN": ({}, 4),
    "DeepLabV3": ({}, 2),
    "DeepLabV3Plus": ({}, 3),
    "UPerNet": ({"decoder_channels": 64}, 5),
    "Segformer": ({}, 0),
}


def _network(decoder, encoder="tu-test_resnet", **settings):
    torch.manual_seed(0)
    return getattr(smp, decoder)(encoder, encoder_weights=None, in_channels=4, classes=3, **settings).eval()


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_entry_of_the_state_belongs_to_exactly_one_layer(decoder):
    settings, n_layers = DECODERS[decoder]
    network = _network(decoder, **settings)
    own = tuple(f"decoder{i}" for i in range(1, n_layers + 1)) or ("decoder",)
    assert probing.layer_names(network) == (*ENCODER_LAYERS, *own, "head")
    listed = [name for layer in probing.layer_names(network) for name in probing.state_of(network, layer)]
    assert sorted(listed) == sorted(network.state_dict())
    weights = [name for layer in probing.layer_names(network) for name in probing.parameters_of(network, layer)]
    assert sorted(weights) == sorted(name for name, _ in network.named_parameters())


@pytest.mark.parametrize("decoder", [*DECODERS, "linear", "pspnet"])
def test_a_layer_moves_its_own_feature_and_none_before_it(decoder):
    if decoder in networks.DECODERS:  # what the study has of its own
        network = networks.build("tu-test_resnet", decoder, in_channels=4, n_classes=3, seed=0, width="slim").eval()
    else:
        network = _network(decoder, **DECODERS[decoder][0])
    pixels = probing.sample_pixels(LARGE.masks["exact"], 40, np.random.default_rng(0))
    before, names = probing.features(network, LARGE, pixels), probing.layer_names(network)
    for i, layer in enumerate(names):
        saved = {name: value.clone() for name, value in probing.state_of(network, layer).items()}
        with torch.no_grad():
            for value in probing.parameters_of(network, layer).values():
                value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(i)))
        after = probing.features(network, LARGE, pixels)
        with torch.no_grad():
            for name, value in probing.state_of(network, layer).items():
                value.copy_(saved[name])
        assert all(np.array_equal(before[name], after[name]) for name in names[:i])
        assert not np.allclose(before[layer], after[layer])


@pytest.mark.parametrize("decoder", networks.DECODERS)
@pytest.mark.parametrize("encoder", ["resnet18", "tu-test_resnet", "tu-resnet10t"])
def test_networks_of_the_study_are_layers_from_end_to_end(encoder, decoder):
    network = networks.build(encoder, decoder, in_channels=4, n_classes=3, seed=0, width="slim").eval()
    names = probing.layer_names(network)
    assert names[:5] == ENCODER_LAYERS and names[-1] == "head"
    assert sorted(n for x in names for n in probing.state_of(network, x)) == sorted(network.state_dict())
    found = probing.features(network, LARGE, np.array([[0, 9, 70], [1, 0, 0]]))
    assert list(found) == list(names) and all(len(each) == 2 for each in found.values())
    assert found["head"].shape == (2, 3)


@pytest.mark.parametrize("encoder", ["resnet18", "tu-test_resnet", "tu-resnet10t"])
def test_the_layers_of_an_encoder_alone_are_those_it_has_in_a_network(encoder):
    network = networks.build(encoder, "unet", in_channels=4, n_classes=3, seed=0, width="slim").eval()
    assert probing.layer_names(network.encoder) == ENCODER_LAYERS
    pixels = probing.sample_pixels(DATA.masks["exact"], 50, np.random.default_rng(0))
    alone = probing.features(network.encoder, DATA, pixels)
    whole = probing.features(network, DATA, pixels, ENCODER_LAYERS)
    for layer, channels in zip(ENCODER_LAYERS, network.encoder.out_channels[1:], strict=True):
        assert alone[layer].shape == (50, channels) and np.array_equal(alone[layer], whole[layer])
        inside = probing.state_of(network.encoder, layer)
        assert [f"encoder.{name}" for name in inside] == list(probing.state_of(network, layer))


def test_stages_that_a_decoder_never_runs_are_no_layers():
    network = _network("PSPNet", "resnet18", encoder_depth=3)
    assert probing.layer_names(network) == ("stem", "stage1", "stage2", "decoder1", "decoder2", "head")
    unused = set(network.state_dict()) - {n for x in layers_of(network) for n in probing.state_of(network, x)}
    assert unused and all(name.startswith(("encoder.layer3.", "encoder.layer4.")) for name in unused)


def test_encoders_that_begin_at_a_quarter_have_no_stem():
    encoder = smp.encoders.get_encoder("tu-convnext_atto", in_channels=4, weights=None).eval()
    assert probing.layer_names(encoder) == ENCODER_LAYERS[1:]
    assert sorted(n for x in layers_of(encoder) for n in probing.state_of(encoder, x)) == sorted(encoder.state_dict())
    with torch.no_grad():
        maps = encoder(normalise(torch.as_tensor(LARGE.images[:1]), LARGE))
    found = probing.features(encoder, LARGE, np.array([[0, 9, 70]]))
    for layer, expected in zip(ENCODER_LAYERS[1:], maps[2:], strict=True):
        side = 128 // expected.shape[2]
        np.testing.assert_allclose(found[layer][0], expected[0, :, 9 // side, 70 // side].numpy(), atol=1e-4)


def test_encoders_whose_stages_are_unknown_are_named():
    with pytest.raises(ValueError, match="MobileNetV2Encoder: no module 'relu'"):
        probing.layer_names(smp.encoders.get_encoder("mobilenet_v2", in_channels=4, weights=None))


def test_head_features_are_the_logits_before_upsampling():
    network = _network("FPN")
    with torch.no_grad():
        images = normalise(torch.as_tensor(DATA.images[:2]), DATA)
        expected = network.segmentation_head[0](network.decoder(network.encoder(images)))
    found = probing.features_at(network, DATA, "head", np.array([[0, 5, 30], [1, 31, 0]]))
    assert expected.shape[2] == 8  # a quarter of the resolution
    np.testing.assert_allclose(found, [expected[0, :, 1, 7].numpy(), expected[1, :, 7, 0].numpy()], atol=1e-5)


def test_features_are_those_of_the_cell_a_pixel_lies_in():
    encoder = _network("Unet").encoder
    pixels = np.array([[0, 0, 0], [0, 31, 31], [3, 17, 2]])
    with torch.no_grad():
        maps = encoder(normalise(torch.as_tensor(DATA.images[:4]), DATA))[2]  # stage1, a quarter of the size
    expected = [maps[p, :, r // 4, c // 4].numpy() for p, r, c in pixels]
    np.testing.assert_allclose(probing.features_at(encoder, DATA, "stage1", pixels, batch_size=3), expected, atol=1e-5)


@settings(max_examples=10)
@given(st.integers(1, 40), st.integers(0, 2**16))
def test_batches_leave_no_trace_in_features(batch_size, seed):
    encoder = _network("Unet").encoder
    pixels = probing.sample_pixels(DATA.masks["exact"], 30, np.random.default_rng(seed))
    whole = probing.features_at(encoder, DATA, "stage2", pixels, batch_size=40)
    found = probing.features_at(encoder, DATA, "stage2", pixels, batch_size=batch_size)
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_reading_leaves_the_network_as_it_was():
    network = _network("Unet")
    probing.features_at(network, DATA, "decoder2", np.array([[0, 3, 3]]))
    assert not any(module._forward_hooks for module in network.modules())
    network.decoder.blocks[3] = torch.nn.Conv2d(1, 1, 1)  # does not fit, so that a pass fails halfway
    with pytest.raises((RuntimeError, TypeError)):
        probing.features(network, DATA, np.array([[0, 3, 3]]), ["stem", "head"])
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("read", [probing.parameters_of, probing.state_of])
def test_unknown_layers_list_the_known(read):
    with pytest.raises(ValueError, match="unknown layer 'stage9'.*stem, stage1, .*decoder5, head"):
        read(_network("Unet"), "stage9")


def test_features_of_unknown_layers_and_unsorted_pixels_are_refused():
    network = _network("Unet")
    with pytest.raises(ValueError, match="has stem, stage1, stage2, stage3, stage4$"):
        probing.features_at(network.encoder, DATA, "decoder1", np.zeros((1, 3), int))
    for pixels in (np.array([[1, 0, 0], [0, 0, 0]]), np.zeros((0, 3), int)):
        with pytest.raises(ValueError, match="sorted by patch"):
            probing.features_at(network, DATA, "stem", pixels)


@given(st.integers(0, 2**16), st.integers(1, 400))
def test_sampled_pixels_are_valid_distinct_and_sorted(seed, n):
    where = np.random.default_rng(seed).random(DATA.masks["exact"].shape) < 0.5
    pixels = probing.sample_pixels(DATA.masks["exact"], n, np.random.default_rng(seed), where)
    assert len({tuple(p) for p in pixels.tolist()}) == n and (np.diff(pixels[:, 0]) >= 0).all()
    assert (DATA.masks["exact"][tuple(pixels.T)] != VOID).all() and where[tuple(pixels.T)].all()
