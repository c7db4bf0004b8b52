"""Networks: the same seed gives the same weights, frozen means frozen, encoders travel."""

import pytest
import torch
from torch import nn

from nbutils import networks


def _network(decoder="unet", seed=0, bands=2) -> nn.Module:
    return networks.build("tu-test_resnet", decoder, in_channels=bands, n_classes=3, seed=seed, width="slim")


@pytest.mark.parametrize("width", networks.WIDTHS)
@pytest.mark.parametrize("decoder", networks.DECODERS)
def test_every_decoder_gives_one_logit_per_class_and_pixel(decoder, width):
    network = networks.build("tu-test_resnet", decoder, in_channels=5, n_classes=3, seed=0, width=width)
    assert network.eval()(torch.rand(2, 5, 64, 64)).shape == (2, 3, 64, 64)


def test_seed_decides_the_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    a, b, c = _network(seed=0), _network(seed=0), _network(seed=1)
    assert torch.equal(torch.rand(1), expected)
    first = [next(iter(n.encoder.parameters())) for n in (a, b, c)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_the_random_encoder_is_the_same_under_every_decoder():
    states = [networks.encoder_state(_network(decoder)) for decoder in networks.DECODERS]
    for state in states[1:]:
        assert all(torch.equal(states[0][name], state[name]) for name in states[0])


def test_frozen_means_weights_and_batchnorm_statistics():
    network = _network()
    networks.freeze_encoder(network)
    before = networks.encoder_state(network)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    network(torch.rand(4, 2, 32, 32) * 9).sum().backward()
    optimizer.step()
    after = network.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert network.decoder.training and not any(module.training for module in network.encoder.modules())


def test_an_encoder_travels_from_one_decoder_to_another():
    source, target = _network(seed=0), _network("fpn", seed=1)
    networks.load_encoder(target, networks.encoder_state(source))
    image = torch.rand(1, 2, 32, 32)
    for a, b in zip(source.eval().encoder(image), target.eval().encoder(image), strict=True):
        assert torch.equal(a, b)


def test_weights_of_another_encoder_or_band_count_are_refused():
    with pytest.raises(networks.WeightsError, match="number of bands"):
        networks.load_encoder(_network(), networks.encoder_state(_network(bands=3)))
    with pytest.raises(networks.WeightsError, match="another encoder"):
        networks.load_encoder(_network(), {"conv.weight": torch.zeros(1)})


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="unet, deeplabv3plus, pspnet, fpn, upernet, segformer, linear"):
        _network("unnet")
    with pytest.raises(ValueError, match="slim, full"):
        networks.build("tu-test_resnet", "unet", in_channels=2, n_classes=2, seed=0, width="thin")


def test_a_linear_decoder_is_linear_in_every_pixel_of_its_features():
    network = _network("linear").eval()
    maps = [torch.rand(1, c, max(8 // 2**i, 1), max(8 // 2**i, 1)) for i, c in enumerate((32, 32, 48, 192, 96))]
    assert [f.shape[1] for f in network.encoder(torch.rand(1, 2, 64, 64))[1:]] == [m.shape[1] for m in maps]

    def logits(features):
        network.encoder.forward = lambda images: [images, *features]
        return network(torch.zeros(1, 2, 16, 16))

    none, first, second, both = (logits([m * a for m in maps]) for a in (0, 1, 2, 3))
    assert torch.allclose(both - none, (first - none) + (second - none), atol=1e-4)


def test_pspnet_sees_the_whole_encoder_at_a_stride_of_8():
    network = _network("pspnet")
    assert [f.shape[-1] for f in network.encoder(torch.rand(1, 2, 64, 64))[1:]] == [32, 16, 8, 8, 8]
