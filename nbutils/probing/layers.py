"""Layers by name, from the first to the last: ``stem``, ``stage1``, ..., ``decoder1``, ..., ``head``.

No layer depends on a later one. Features are read at the layer's own resolution; a pixel's feature is that of the cell
it lies in, so that probes never see an interpolated class. The head's are the logits before they are upsampled; of the
linear network, whose stages vote at several resolutions, the votes it ends with.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from torch import Tensor, nn

from nbutils.batches import normalise
from nbutils.legend import VOID
from nbutils.networks import Linear
from nbutils.patches import PatchSet

_RESNET = ("relu", "layer1", "layer2", "layer3", "layer4")  # the last child of every stage
_Groups = list[tuple[str, ...]]


@dataclass(frozen=True)
class Layer:
    """Where a layer is in a network.

    Attributes:
        modules: Names of the modules whose state is the layer's.
        read: Name of the module whose output is its feature; empty for the network itself.
        index: Which of the outputs, where `read` returns several; else None.
    """

    modules: tuple[str, ...]
    read: str
    index: int | None = None

    def owns(self, entry: str) -> bool:
        """Whether a parameter or buffer of that name is the layer's."""
        return any(entry.startswith(f"{module}.") for module in self.modules)


def _blocks(decoder: nn.Module) -> _Groups:
    """One layer for every block; what comes before the first belongs to it."""
    first, *others = ((f"blocks.{i}",) for i in range(len(decoder.blocks)))
    return [("center", *first) if hasattr(decoder, "center") else first, *others]


def _pyramid_and_pool(decoder: nn.Module) -> _Groups:
    """UPerNet: norms and pooling, then every level of the pyramid, then their fusion."""
    levels = [(f"fpn_lateral_blocks.{i}", f"fpn_conv_blocks.{i}") for i in range(len(decoder.fpn_conv_blocks))]
    return [("feature_norms", "psp"), *levels, ("fusion_block",)]


def _listed(*groups: tuple[str, ...]) -> Callable[[nn.Module], _Groups]:
    return lambda decoder: list(groups)


# Decoder's class -> modules of its layers in order of execution; the output of a layer's last module is its feature.
# Those not named here, and those whose parts run side by side (U-Net++, SegFormer), are one layer, ``decoder``.
_DECODERS: dict[str, Callable[[nn.Module], _Groups]] = {
    "UnetDecoder": _blocks,
    "LinknetDecoder": _blocks,
    "MAnetDecoder": _blocks,
    "FPNDecoder": _listed(("p5",), ("p4",), ("p3",), ("p2",), ("seg_blocks", "merge")),
    "DeepLabV3Decoder": _listed(("aspp",), ("conv", "bn", "relu")),
    "DeepLabV3PlusDecoder": _listed(("aspp",), ("block1",), ("block2",)),
    "PSPDecoder": _listed(("psp",), ("conv",)),
    "PANDecoder": _listed(("fpa",), ("gau3",), ("gau2",), ("gau1",)),
    "UPerNetDecoder": _pyramid_and_pool,
}


def layers_of(network: nn.Module) -> dict[str, Layer]:
    """Return the layers of an encoder or of a whole segmentation network, from the first to the last.

    State that the network never runs (stages of an encoder that its decoder does not ask for) belongs to no layer.

    Raises:
        ValueError: The encoder's stages are not known.
    """
    whole = hasattr(network, "encoder")
    layers = _encoder_layers(network.encoder if whole else network, "encoder" if whole else "")
    if isinstance(network, Linear):
        return layers | {"head": Layer(("decoder", "segmentation_head"), "")}
    if hasattr(network, "decoder"):
        groups = _DECODERS.get(type(network.decoder).__name__, lambda decoder: [])(network.decoder)
        for i, group in enumerate(groups, start=1):
            layers[f"decoder{i}"] = Layer(tuple(f"decoder.{name}" for name in group), f"decoder.{group[-1]}")
        if not groups:
            layers["decoder"] = Layer(("decoder",), "decoder")
    if hasattr(network, "segmentation_head"):
        layers["head"] = Layer(("segmentation_head",), "segmentation_head.0")
    return layers


def layer_names(network: nn.Module) -> tuple[str, ...]:
    """Return the names of a network's layers from the first to the last; arguments and errors as of `layers_of`."""
    return tuple(layers_of(network))


def layer_of(network: nn.Module, layer: str) -> Layer:
    """Return one layer.

    Raises:
        ValueError: The layer is unknown; the message lists the known ones.
    """
    layers = layers_of(network)
    if layer not in layers:
        raise ValueError(f"unknown layer {layer!r}; this network has {', '.join(layers)}")
    return layers[layer]


def parameters_of(network: nn.Module, layer: str) -> dict[str, nn.Parameter]:
    """Return the parameters of a layer under their names in the network; errors as of `layer_of`."""
    own = layer_of(network, layer)
    return {name: value for name, value in network.named_parameters() if own.owns(name)}


def state_of(network: nn.Module, layer: str) -> dict[str, Tensor]:
    """Return the part of `state_dict` that is the layer's: parameters and buffers; errors as of `layer_of`."""
    own = layer_of(network, layer)
    return {name: value for name, value in network.state_dict().items() if own.owns(name)}


def features_at(
    network: nn.Module, patches: PatchSet, layer: str, pixels: NDArray[np.intp], *, batch_size: int = 32
) -> NDArray[np.float32]:
    """Read a layer's features at chosen pixels, batch by batch.

    Args:
        network: Encoder or segmentation network, in evaluation mode.
        patches: N patches of (h, w) pixels.
        layer: One of `layer_names`.
        pixels: (n, 3) patch, row, column of each pixel, sorted by patch.
        batch_size: Patches held at a time.

    Returns:
        (n, channels) float32.

    Raises:
        ValueError: The layer is unknown; the message lists the known ones. Pixels are none or not sorted.
    """
    return features(network, patches, pixels, [layer], batch_size=batch_size)[layer]


def features(
    network: nn.Module,
    patches: PatchSet,
    pixels: NDArray[np.intp],
    layers: Sequence[str] | None = None,
    *,
    batch_size: int = 32,
) -> dict[str, NDArray[np.float32]]:
    """Read several layers' features in one pass, all where `layers` is None; the rest as in `features_at`."""
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for _, batch in stream(network, patches, pixels, layers, batch_size=batch_size):
        for name, values in batch.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(each) for name, each in parts.items()}


@torch.no_grad()
def stream(
    network: nn.Module,
    patches: PatchSet,
    pixels: NDArray[np.intp],
    layers: Sequence[str] | None = None,
    *,
    batch_size: int = 32,
) -> Iterator[tuple[slice, dict[str, NDArray[np.float32]]]]:
    """Yield features batch by batch, with the rows of `pixels` that they are of; arguments and errors as of `features`.

    Only what is asked for is kept of a forward pass, and only the encoder runs where no later layer is asked for.
    """
    if not len(pixels) or (np.diff(pixels[:, 0]) < 0).any():
        raise ValueError("need at least one pixel, sorted by patch, as `sample_pixels` draws them")
    wanted = layer_names(network) if layers is None else layers
    places = {name: layer_of(network, name) for name in wanted}
    deep = any(not place.read.startswith("encoder") for place in places.values())
    run = network if deep or not hasattr(network, "encoder") else network.encoder
    device = next(network.parameters()).device
    held, first = np.unique(pixels[:, 0], return_index=True)  # patches without a pixel are not looked at
    ends = [*first[batch_size::batch_size].tolist(), len(pixels)]
    for start, end in zip(range(0, len(held), batch_size), ends, strict=True):
        index, rows = held[start : start + batch_size], slice(int(first[start]), end)
        own = np.column_stack([np.searchsorted(index, pixels[rows, 0]), pixels[rows, 1:]])
        images = torch.as_tensor(np.ascontiguousarray(patches.images[index]), device=device)
        yield rows, _gathered(run, network, places, normalise(images, patches), own)


def _gathered(
    run: nn.Module, network: nn.Module, places: dict[str, Layer], images: Tensor, own: NDArray[np.intp]
) -> dict[str, NDArray[np.float32]]:
    """Run a batch and take the features at its pixels as each layer computes them."""
    found: dict[str, NDArray[np.float32]] = {}
    patch, row, column = torch.as_tensor(own, device=images.device).unbind(1)
    height, width = images.shape[2:]

    def take(name: str, index: int | None) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor | list[Tensor]) -> None:
            maps = output if index is None else output[index]
            at = patch, slice(None), row * maps.shape[2] // height, column * maps.shape[3] // width
            found[name] = maps[at].float().cpu().numpy()

        return hook

    hooks = [
        network.get_submodule(place.read).register_forward_hook(take(name, place.index))
        for name, place in places.items()
    ]
    try:
        run(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found[name] for name in places}


def sample_pixels(
    mask: NDArray[np.uint8], n: int, rng: np.random.Generator, where: NDArray[np.bool_] | None = None
) -> NDArray[np.intp]:
    """Draw up to `n` valid pixels of (N, h, w) masks, without repeats: (n, 3) patch, row, column, sorted."""
    eligible = mask != VOID if where is None else (mask != VOID) & where
    index = np.flatnonzero(eligible)
    chosen = np.sort(rng.choice(index, size=min(n, len(index)), replace=False))
    return np.stack(np.unravel_index(chosen, mask.shape), axis=1)


def _encoder_layers(encoder: nn.Module, name: str) -> dict[str, Layer]:
    """Group an encoder's children by the stage they belong to; its features are what it returns."""
    channels = encoder.out_channels
    names = [f"stage{i}" for i in range(1, len(channels) - 1)]
    if channels[1]:  # encoders that begin with a quarter of the resolution have no stem, and 0 channels there
        names = ["stem", *names]
    children, ends = _children(encoder)
    prefix = f"{name}." if name else ""
    layers, start = {}, 0
    for i, (layer, end) in enumerate(zip(names, ends[-len(names) :], strict=True)):
        stop = children.index(end) + 1
        index = len(channels) - len(names) + i
        layers[layer] = Layer(tuple(f"{prefix}{child}" for child in children[start:stop]), name, index)
        start = stop
    return layers


def _children(encoder: nn.Module) -> tuple[list[str], list[str]]:
    """Return an encoder's children in order of execution and, of those, the last one of every stage."""
    depth = len(encoder.out_channels) - 1
    if isinstance(encoder, TimmUniversalEncoder):
        children = [f"model.{name}" for name, _ in encoder.model.named_children()]
        ends = [f"model.{name.replace('.', '_')}" for name in encoder.model.feature_info.module_name()]
    else:
        children, ends = [name for name, _ in encoder.named_children()], list(_RESNET[:depth])
    if missing := [end for end in ends if end not in children]:
        known = "ResNets, and encoders of timm (`tu-...`) whose stages are modules of their own"
        raise ValueError(f"{type(encoder).__name__}: no module {missing[0]!r} to end a stage; known are {known}")
    return children, ends
