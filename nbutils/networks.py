"""Encoders and decoders, and carrying the one to the other.

Encoders and decoders come from segmentation-models-pytorch; this room adds what the study is about: building the same
network from a seed, carrying an encoder from one decoder to another, freezing it honestly.
"""

from collections.abc import Mapping

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbutils.weights import WeightsError


class DilatedPSPNet(smp.PSPNet):
    """PSPNet on a whole encoder whose last stages are dilated to a stride of 8, as Zhao et al. (2017) have it.

    The library's own reads the first stages only, so that the rest of what was pretrained would be left behind.
    """

    def __init__(self, encoder: str, *, in_channels: int, **settings) -> None:
        super().__init__(encoder, in_channels=in_channels, encoder_depth=5, upsampling=8, **settings)
        dilated = smp.encoders.get_encoder(encoder, in_channels=in_channels, weights=None, output_stride=8)
        dilated.load_state_dict(self.encoder.state_dict())
        self.encoder = dilated


class Linear(nn.Module):
    """A linear classifier of every pixel on the encoder's stages, each normalised and brought to one resolution.

    Hypercolumns (Hariharan et al. 2015) with one linear layer: what the encoder has not laid out, no decoder makes up.
    """

    def __init__(self, encoder: str, *, encoder_weights: None, in_channels: int, classes: int) -> None:
        super().__init__()
        self.encoder = smp.encoders.get_encoder(encoder, in_channels=in_channels, weights=encoder_weights)
        stages = self.encoder.out_channels[1:]  # the first is the image itself
        self.decoder = nn.ModuleList(nn.BatchNorm2d(channels) for channels in stages)
        self.segmentation_head = nn.ModuleList(
            nn.Conv2d(channels, classes, 1, bias=not at) for at, channels in enumerate(stages)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, B, H, W) images to (N, K, H, W) logits."""
        features, votes = self.encoder(images)[1:], []
        for stage, norm, head in zip(features, self.decoder, self.segmentation_head, strict=True):
            votes.append(F.interpolate(head(norm(stage)), features[0].shape[2:], mode="bilinear"))
        return F.interpolate(sum(votes), images.shape[2:], mode="bilinear")


# Decoder name -> (class, settings at slim width). "full" keeps the library's defaults, sized for ResNet18 and up.
DECODERS = {
    "unet": (smp.Unet, {"decoder_channels": (32, 32, 16, 16, 16)}),
    "deeplabv3plus": (smp.DeepLabV3Plus, {"decoder_channels": 64}),
    "pspnet": (DilatedPSPNet, {"psp_out_channels": 128}),
    "fpn": (smp.FPN, {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32}),
    "upernet": (smp.UPerNet, {"decoder_channels": 64}),
    "segformer": (smp.Segformer, {"decoder_segmentation_channels": 64}),
    "linear": (Linear, {}),
}
WIDTHS = ("slim", "full")


def build(encoder: str, decoder: str, *, in_channels: int, n_classes: int, seed: int, width: str = "full") -> nn.Module:
    """Build a randomly initialised segmentation network; the same seed gives the same weights.

    Args:
        encoder: Encoder name known to segmentation-models-pytorch, e.g. ``resnet18`` or ``tu-resnet10t``.
        decoder: One of `DECODERS`.
        in_channels: Number of bands B.
        n_classes: Number of classes K.
        seed: Seed of the initial weights.
        width: ``full`` for the library's decoder sizes, ``slim`` for a decoder that suits a small encoder.

    Returns:
        Network mapping (N, B, H, W) float images to (N, K, H, W) logits; it has `.encoder`.

    Raises:
        ValueError: The decoder or the width is unknown.
    """
    if decoder not in DECODERS:
        raise ValueError(f"unknown decoder {decoder!r}; known: {', '.join(DECODERS)}")
    if width not in WIDTHS:
        raise ValueError(f"unknown decoder width {width!r}; known: {', '.join(WIDTHS)}")
    make, slim = DECODERS[decoder]
    settings = slim if width == "slim" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(encoder, encoder_weights=None, in_channels=in_channels, classes=n_classes, **settings)


def freeze_encoder(network: nn.Module) -> None:
    """Freeze the encoder's weights and its BatchNorm statistics, for as long as the network lives.

    `network.train()` would put BatchNorm back to updating its running statistics, so `train` of the encoder is
    replaced by one that stays in evaluation mode.
    """
    encoder = network.encoder
    encoder.requires_grad_(False)
    encoder.eval()
    encoder.train = lambda mode=True: encoder


def encoder_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the encoder's state under plain names, without the ``encoder.`` prefix."""
    return {name: value.detach().clone() for name, value in network.encoder.state_dict().items()}


def load_encoder(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy an encoder's state into the network, name by name and shape by shape.

    Raises:
        WeightsError: Names or shapes differ; the message names the first ones that do.
    """
    own = network.encoder.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise WeightsError(
            f"the weights are of another encoder: missing {missing[:3]}, unexpected {unexpected[:3]} "
            f"({len(missing)} and {len(unexpected)} names); build the network with the encoder named in card.json"
        )
    wrong = [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        name = wrong[0]
        raise WeightsError(
            f"{name} has shape {tuple(state[name].shape)} in the weights and {tuple(own[name].shape)} in the "
            "network; check the number of bands"
        )
    network.encoder.load_state_dict(state)
