"""Surgery: put another network's layer, or an untrained one, into a network, and see what it is worth there.

Networks that go in stay as they are; copies come out, in evaluation mode.
"""

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nbutils import training
from nbutils.batches import normalise
from nbutils.objectives import Supervised
from nbutils.patches import PatchSet
from nbutils.probing.layers import Layer, layer_names, layer_of, layers_of, parameters_of, state_of

Build = Callable[..., nn.Module]  # build(seed=...) -> the network with the initial weights of that seed


def swap(network: nn.Module, donor: nn.Module, layer: str, patches: PatchSet, *, batch_size: int = 32) -> nn.Module:
    """Return the network with one layer taken from another network.

    The statistics of BatchNorm in this layer and in those after it are estimated anew, as their inputs have changed;
    layers before it see what they always saw and keep theirs. Where the donor's layer is the network's own, nothing
    changes.

    Args:
        network: Encoder or segmentation network.
        donor: One whose layer has the same entries and shapes.
        layer: One of `layer_names`.
        patches: Images to estimate statistics on, such as those the network was trained on.
        batch_size: Patches per batch of that estimate.

    Raises:
        ValueError: The layer is unknown, or the donor's has other entries or shapes; the message names the first.
    """
    patient = _copy(network)
    own, given = state_of(patient, layer), _fitting(network, donor, layer)
    if all(torch.equal(own[name], given[name]) for name in own):
        return patient
    _put(patient, given)
    reestimate(patient, patches, layer, batch_size=batch_size)
    return patient


@torch.no_grad()
def carry(network: nn.Module, state: Mapping[str, Tensor], last: str) -> None:
    """Copy the layers of stored weights into a network, in place, from the first one to `last`; the rest stays.

    Args:
        network: Encoder or segmentation network.
        state: State of a network of the same kind, by the names it has there.
        last: One of `layer_names`.

    Raises:
        ValueError: The layer is unknown, or an entry is missing or of another shape; the message names it.
    """
    layer_of(network, last)
    for layer in layer_names(network):
        own = state_of(network, layer)
        if unlike := _unlike(own, {name: state[name] for name in own if name in state}):
            raise ValueError(f"layer {layer!r} of the stored weights does not fit: {unlike}")
        _put(network, {name: state[name] for name in own})
        if layer == last:
            return


def reinitialised(
    network: nn.Module, layer: str, seed: int, *, build: Build, patches: PatchSet | None = None, batch_size: int = 32
) -> nn.Module:
    """Return the network with one layer back at its initial weights (Zhang, Bengio and Singer, JMLR 2022).

    Args:
        network: Encoder or segmentation network.
        layer: One of `layer_names`.
        seed: Of the initial weights; the network's own seed rewinds the layer, another one draws it anew.
        build: Makes the untrained network from ``seed=``, such as a `functools.partial` of `networks.build`.
        patches: Images to estimate the statistics of BatchNorm on as in `swap`. Without them the layer's are the
            initial ones (mean 0, variance 1), which is the start of a training and no state to predict with.
        batch_size: Patches per batch of that estimate.

    Raises:
        ValueError: The layer is unknown, or what `build` makes has another one under that name.
    """
    patient = _copy(network)
    _put(patient, _fitting(network, build(seed=seed), layer))
    if patches is not None:
        reestimate(patient, patches, layer, batch_size=batch_size)
    return patient


def retrain_layer(
    network: nn.Module, layer: str, patches: PatchSet, target: str, plan: training.Plan, *, build: Build, **fit
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Re-initialise one layer and train it alone; all others stay as they are, BatchNorm statistics included.

    Args:
        network: Segmentation network.
        layer: One of `layer_names`.
        patches: What it learns from.
        target: Which masks, ``noisy`` or ``exact``.
        plan: Of `training.fit`; its seed is also that of the initial weights.
        build: As in `reinitialised`.
        **fit: Further arguments of `training.fit`, such as `truth`.

    Returns:
        The network and its learning curve.

    Raises:
        ValueError: The layer is unknown or has no weights.
    """
    patient = reinitialised(network, layer, plan.seed, build=build)
    learned = parameters_of(patient, layer)
    if not learned:
        raise ValueError(f"layer {layer!r} has no weights to train")
    asked = {name: value.requires_grad for name, value in patient.named_parameters()}
    patient.requires_grad_(False)
    for value in learned.values():
        value.requires_grad_(True)
    curve = training.fit(_OneLayer(patient, layer), patches, target, plan, **fit)
    for name, value in patient.named_parameters():
        value.requires_grad_(asked[name])
    return patient.eval(), curve


def weight_distance(a: nn.Module, b: nn.Module) -> dict[str, float]:
    """Return for each layer how far its weights are apart: ``||a - b|| / ||b||``, BatchNorm statistics left out.

    Args:
        a: Encoder or segmentation network.
        b: One with the same layers, such as the initial network or one trained on exact labels.

    Returns:
        Distance of each layer, >= 0; NaN where `b` is all zeros, and for a head that predicts another number of
        classes.

    Raises:
        ValueError: The layers, or the shapes of one that is not the head, differ.
    """
    if layer_names(a) != layer_names(b):
        raise ValueError(f"layers differ: {', '.join(layer_names(a))} and {', '.join(layer_names(b))}")
    distances = {}
    for layer in layer_names(a):
        ours, theirs = parameters_of(a, layer), parameters_of(b, layer)
        if (unlike := _unlike(ours, theirs)) and layer != "head":
            raise ValueError(f"weights of layer {layer!r} differ in kind: {unlike}")
        distances[layer] = float("nan") if unlike else _distance(ours, theirs)
    return distances


@torch.no_grad()
def reestimate(network: nn.Module, patches: PatchSet, layer: str, *, batch_size: int = 32) -> None:
    """Estimate the BatchNorm statistics of a layer and of all after it anew, in place.

    As `torch.optim.swa_utils.update_bn` does: means of the statistics of batches, each normalised by its own. Unlike
    there, dropout rests, so that nothing is random, and earlier layers keep what they have. Batches are of nearly equal
    size, and each counts as much as the others. As in training, statistics are of whole images.

    Args:
        network: Encoder or segmentation network; in evaluation mode afterwards.
        patches: The images.
        layer: One of `layer_names`.
        batch_size: Most patches per batch.

    Raises:
        ValueError: The layer is unknown.
    """
    layer_of(network, layer)
    layers = layers_of(network)
    later = [layers[name] for name in list(layers)[list(layers).index(layer) :]]
    norms = [module for _, module in _modules(network, later) if isinstance(module, _BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    network.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # an average over all batches
        norm.train()
    device = next(network.parameters()).device
    try:
        for index in np.array_split(np.arange(len(patches)), -(-len(patches) // batch_size)):
            images = np.ascontiguousarray(patches.images[index[0] : index[-1] + 1])
            network(normalise(torch.as_tensor(images, device=device), patches))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()


class _OneLayer(Supervised):
    """Trains one layer: the modules of all others stay in evaluation mode."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__(network)
        self.own = [module for _, module in _modules(network, [layer_of(network, layer)])]

    def train(self, mode: bool = True) -> "_OneLayer":
        """Put the layer, and nothing else, into training mode."""
        super().train(False)
        self.training = mode
        for module in self.own:
            module.training = mode
        return self


def _modules(network: nn.Module, layers: list[Layer]) -> list[tuple[str, nn.Module]]:
    """Return the modules of the layers, with those inside of them."""
    return [(name, m) for name, m in network.named_modules() if any(layer.owns(f"{name}.") for layer in layers)]


def _copy(network: nn.Module) -> nn.Module:
    """Copy a network; one with a frozen encoder thaws, as its frozen `train` would still be the original's."""
    twin = copy.deepcopy(network)
    for module in twin.modules():
        module.__dict__.pop("train", None)
    return twin.eval()


def _fitting(network: nn.Module, donor: nn.Module, layer: str) -> dict[str, Tensor]:
    """Return the donor's state of a layer after checking that it fits."""
    own, given = state_of(network, layer), state_of(donor, layer)
    if unlike := _unlike(own, given):
        raise ValueError(f"layer {layer!r} of the donor does not fit: {unlike}")
    return given


def _unlike(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """Say how the first entry that differs in name or shape differs; empty where none does."""
    if missing := sorted(ours.keys() ^ theirs.keys()):
        return f"only one of the two has {missing[0]}"
    for name, value in ours.items():
        if value.shape != theirs[name].shape:
            return f"{name} has shape {tuple(value.shape)} here and {tuple(theirs[name].shape)} there"
    return ""


@torch.no_grad()
def _put(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = network.state_dict()
    for name, value in state.items():
        own[name].copy_(value)


def _distance(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    first, second = (_flat(each, list(theirs)) for each in (ours, theirs))
    norm = np.linalg.norm(second)
    return float(np.linalg.norm(first - second) / norm) if norm else float("nan")


def _flat(state: Mapping[str, Tensor], names: list[str]) -> NDArray[np.float64]:
    return np.concatenate([state[name].detach().cpu().double().flatten().numpy() for name in names] or [np.zeros(0)])
