"""Encoders, decoders and the weight files that travel between them.

Encoders and decoders come from segmentation-models-pytorch; this room adds what the study is about: building the same
network from a seed, carrying an encoder from one decoder to another, freezing it honestly, and shipping the
preprocessing with every weight file.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

# Decoder name -> (class, settings at slim width). "full" keeps the library's defaults, sized for ResNet18 and up.
DECODERS = {
    "unet": (smp.Unet, {"decoder_channels": (64, 48, 32, 24, 16)}),
    "deeplabv3plus": (smp.DeepLabV3Plus, {"decoder_channels": 64}),
    "fpn": (smp.FPN, {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32}),
}
WIDTHS = ("slim", "full")


class WeightsError(ValueError):
    """A weight file does not fit the network or the images it is to be used with."""


@dataclass(frozen=True)
class WeightCard:
    """What a weight file needs to be used correctly: the images it saw, and how they were prepared.

    Attributes:
        encoder: Name of the encoder in segmentation-models-pytorch.
        arm: What the encoder was trained on: random, moco, noisy or exact.
        bands: Band names in the order of the input channels.
        scale: Divisor applied to the raw digital numbers.
        mean: Mean of each band after `scale`.
        std: Standard deviation of each band after `scale`.
        patch_px: Side length of the training patches, in pixels.
        gsd_m: Ground sampling distance in metres, None where unknown.
        legend: Name of the legend the network predicts, None for an encoder alone.
        run: Key of the run that made the weights.
        licence: Licence of the training data.
    """

    encoder: str
    arm: str
    bands: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch_px: int
    gsd_m: float | None
    legend: str | None
    run: str
    licence: str


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


def save(folder: Path, state: Mapping[str, Tensor], card: WeightCard) -> None:
    """Write ``weights.safetensors`` and ``card.json`` into an existing folder, flushed to disk."""
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "weights.safetensors")
    (folder / "card.json").write_text(json.dumps(asdict(card), indent=1) + "\n")
    for name in ("weights.safetensors", "card.json"):
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())


def load(folder: Path, *, bands: tuple[str, ...] | None = None) -> tuple[dict[str, Tensor], WeightCard]:
    """Read weights and their card.

    Args:
        folder: A run's folder.
        bands: Bands of the images at hand; None to skip the comparison.

    Raises:
        WeightsError: A file is missing or damaged, or the bands differ from the card's.
    """
    try:
        fields = json.loads((folder / "card.json").read_text())
        card = WeightCard(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
        state = load_file(folder / "weights.safetensors")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise WeightsError(
            f"{folder}: weights or card.json cannot be read ({error}); delete and redo the run"
        ) from error
    if bands is not None and tuple(bands) != card.bands:
        raise WeightsError(
            f"{folder}: trained on bands {', '.join(card.bands)}, the images have {', '.join(bands)}; "
            "reorder the bands in the data set card or pretrain again"
        )
    return state, card


def count_parameters(module: nn.Module) -> int:
    """Return the number of weights, trainable or not."""
    return sum(parameter.numel() for parameter in module.parameters())
