"""Memorisation watched layer by layer while a network learns, without a clean label.

**Susceptibility** (Forouzesh, Sedghi and Thiran, "Leveraging Unlabeled Data to Track Memorization", ICLR 2023): give a
batch random labels, take one gradient step on it, and see by how much its loss falls; a network that readily follows
random labels memorises. There all weights step, with the training's rate; the score is averaged over the training so
far; labels are drawn evenly from the classes, one per image. Here one layer steps at a time, so that the score is the
layer's, and each look gives its own value.

Random labels are drawn for square blocks, each a class with the share that it has in the masks. One label per pixel
would be noise that no convolution can follow and no map contains, one per patch would hardly tell places apart; blocks
are of the size of objects. With classes drawn evenly, rare ones would be learned by moving the class frequencies alone.

**Gradient signal-to-noise**: the squared length of the mean gradient over the mean squared deviation of the gradients
of minibatches. It falls as minibatches cease to agree, which is when what is left to learn is particular to each.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from nbutils.batches import normalise
from nbutils.legend import VOID
from nbutils.objectives import cross_entropy, soft_dice
from nbutils.patches import PatchSet
from nbutils.probing.layers import layer_names, parameters_of

_EQUAL = 1e-9  # relative spread of gradients below which they are equal but for rounding


class Monitor:
    """A judge for `training.fit`: scores of every layer of the network that learns.

    Images and random labels are drawn once, so that the scores of one training differ by the weights alone. The network
    is left as it was found: weights, gradients, BatchNorm statistics, modes and random states. BatchNorm and dropout
    are in evaluation mode throughout. A look costs two forward and backward passes over the images and one forward pass
    for each layer.

    Args:
        network: Segmentation network that learns, the objective's own.
        patches: Patches to draw from, such as those it learns from.
        target: Masks, ``noisy`` or ``exact``: what the gradients are of, where random labels are void, and how
            frequent their classes are.
        rng: Source of randomness.
        n_patches: Images drawn.
        minibatch: Images of one gradient; `n_patches` makes at least two of them.
        step: Length of the gradient step relative to the layer's weights. A relative length rather than a rate makes
            layers comparable: with a rate, the score would be little else than the size of a layer's gradient.
        block_px: Side of the blocks in pixels; an eighth of the patch when left out.

    Raises:
        ValueError: The network predicts no masks, or there are too few patches or no valid pixel.
    """

    def __init__(
        self,
        network: nn.Module,
        patches: PatchSet,
        target: str,
        *,
        rng: np.random.Generator,
        n_patches: int = 16,
        minibatch: int = 2,
        step: float = 0.01,
        block_px: int | None = None,
    ) -> None:
        if "head" not in layer_names(network):
            raise ValueError(f"{type(network).__name__} predicts no masks; pass the whole segmentation network")
        n_patches = min(n_patches, len(patches))
        if n_patches < 2 * minibatch:
            raise ValueError(f"need at least two minibatches of {minibatch} patches, got {n_patches} patches")
        drawn = patches.take(np.sort(rng.choice(len(patches), n_patches, replace=False)))
        masks = np.ascontiguousarray(drawn.masks[target])
        if not (masks != VOID).any():
            raise ValueError(f"{patches.name}: no valid pixel in the {target} masks of the {n_patches} patches drawn")
        self.network, self.minibatch, self.step = network, minibatch, step
        self.images = normalise(torch.as_tensor(np.ascontiguousarray(drawn.images)), drawn)
        self.masks = torch.as_tensor(masks)
        self.random = torch.as_tensor(random_blocks(masks, block_px or max(1, drawn.patch_px // 8), rng))
        self.layers = [layer for layer in layer_names(network) if parameters_of(network, layer)]

    def __call__(self) -> dict[str, float]:
        """Return ``susceptibility_<layer>`` and ``gradient_snr_<layer>`` for every layer.

        The susceptibility is the share of the loss on random labels that one step takes away; it is below 0 where the
        step was too long.
        """
        modes = [(module, module.training) for module in self.network.modules()]
        try:
            self.network.eval()
            with torch.enable_grad():
                said = {f"susceptibility_{layer}": value for layer, value in self._susceptibility().items()}
                return said | {f"gradient_snr_{layer}": value for layer, value in self._signal_to_noise().items()}
        finally:
            for module, training in modes:
                module.training = training

    def _susceptibility(self) -> dict[str, float]:
        """Step by step on copies of the weights: `functional_call` never touches those of the network."""
        weights = self._weights()
        before, gradients = self._gradients(weights, slice(None), self.random)
        scores = {}
        for layer in self.layers:
            own = parameters_of(self.network, layer).keys()
            size, length = (_norm(values[name] for name in own) for values in (weights, gradients))
            rate = self.step * size / length if length > 0 else 0.0
            moved = {name: weights[name] - rate * gradients[name] for name in own}
            with torch.no_grad():
                after = self._loss({**weights, **moved}, slice(None), self.random).item()
            scores[layer] = (before - after) / before
        return scores

    def _signal_to_noise(self) -> dict[str, float]:
        """Sums alone are kept: the gradients of all minibatches would be many times the network."""
        weights, n = self._weights(), 0
        sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in weights.items()}
        squares = dict.fromkeys(weights, 0.0)
        for start in range(0, len(self.images) - self.minibatch + 1, self.minibatch):
            rows = slice(start, start + self.minibatch)
            if (self.masks[rows] == VOID).all():
                continue  # nothing to learn has no gradient
            n += 1
            for name, gradient in self._gradients(weights, rows, self.masks)[1].items():
                sums[name] += gradient
                squares[name] += gradient.double().pow(2).sum().item()
        scores = {}
        for layer in self.layers:
            own = parameters_of(self.network, layer).keys()
            signal = _norm(sums[name] for name in own) ** 2 / max(n, 1) ** 2
            scores[layer] = gradient_snr(signal, sum(squares[name] for name in own) / max(n, 1))
        return scores

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone().requires_grad_() for name, value in self.network.named_parameters()}

    def _gradients(self, weights: dict[str, Tensor], rows: slice, masks: Tensor) -> tuple[float, dict[str, Tensor]]:
        loss = self._loss(weights, rows, masks)
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        known = (torch.zeros_like(w) if g is None else g for w, g in zip(weights.values(), found, strict=True))
        return loss.item(), dict(zip(weights, known, strict=True))

    def _loss(self, weights: dict[str, Tensor], rows: slice, masks: Tensor) -> Tensor:
        """Cross-entropy + Dice, as of `objectives.Supervised`."""
        device = next(iter(weights.values())).device
        logits = functional_call(self.network, weights, (self.images[rows].to(device),))
        return cross_entropy(logits, masks[rows].to(device)) + soft_dice(logits, masks[rows].to(device))


def gradient_snr(signal: float, mean_square: float) -> float:
    """Squared length of the mean gradient over the mean squared deviation from it.

    Args:
        signal: Squared length of the mean of m >= 2 gradients.
        mean_square: Mean of their squared lengths; the deviation is what it exceeds the signal by.

    Returns:
        Large where minibatches agree; about 1 / (m - 1) where they have nothing in common. NaN where they are equal.
    """
    spread = mean_square - signal
    return signal / spread if spread > _EQUAL * mean_square else float("nan")


def random_blocks(masks: NDArray[np.uint8], block_px: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw random labels in square blocks, with the class shares of (N, h, w) masks; what is void there stays void."""
    n, height, width = masks.shape
    classes, counts = np.unique(masks[masks != VOID], return_counts=True)
    grid = (n, -(-height // block_px), -(-width // block_px))
    drawn = rng.choice(classes, size=grid, p=counts / counts.sum())
    labels = drawn.repeat(block_px, axis=1).repeat(block_px, axis=2)[:, :height, :width]
    return np.where(masks == VOID, VOID, labels).astype(np.uint8)


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(torch.stack([value.detach().double().pow(2).sum() for value in tensors]).sum().sqrt())
