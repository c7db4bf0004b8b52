"""Memorisation watched layer by layer while a network learns, without a clean label.

**Susceptibility** (Forouzesh, Sedghi and Thiran, "Leveraging Unlabeled Data to Track Memorization", ICLR 2023): give
random labels to images that nobody has labelled, take one gradient step on them, and see how far the network follows;
one that readily follows random labels memorises. There all weights step, with the rate of the training, the fall of
the loss is measured, and the score is averaged over the training so far. Ours differs, for these reasons:

- One layer steps at a time, by a length relative to its weights; with a rate, the score would be little else than the
  size of the layer's gradient.
- Not the loss but the mean probability of the labels is measured. A loss has no bound: the more confident a network is
  in the truth, the more any step takes from its loss on random labels. Of two toy networks, that fitted to true labels
  then scored higher than that fitted to random ones in the stem, in the last layers, and with all weights at once.
- The rise for other random labels of the same images is taken off. What all labels gain comes from lost confidence and
  from class frequencies; what these gain over others is following.
- Each look gives its own value, as the curve shows all of them.

Random labels are drawn for square blocks, each a class with the share that it has in the masks. One label per pixel
would be noise that no convolution can follow and no map contains, one per patch would hardly tell places apart; blocks
are of the size of objects. The images should be ones that the network does not learn from: on images that it has
memorised, it resists other labels as well.

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
    are in evaluation mode throughout. A look costs two forward and backward passes over `n_patches` images and one
    forward pass for each layer.

    Args:
        network: Segmentation network that learns, the objective's own.
        train: Patches it learns from, for the gradients.
        target: Masks, ``noisy`` or ``exact``, of all patches.
        rng: Source of randomness.
        unseen: Patches it does not learn from, such as those for validation, for random labels; of their masks only
            void and class shares count. Those of `train` when left out, on which the memoriser resists: late in a
            training, that hides what is asked for.
        n_patches: Images drawn from each.
        minibatch: Images of one gradient; `n_patches` makes at least two of them.
        step: Length of the gradient step relative to the layer's weights.
        block_px: Side of the blocks in pixels; an eighth of the patch when left out.

    Raises:
        ValueError: The network predicts no masks, or there are too few patches or no valid pixel.
    """

    def __init__(
        self,
        network: nn.Module,
        train: PatchSet,
        target: str,
        *,
        rng: np.random.Generator,
        unseen: PatchSet | None = None,
        n_patches: int = 16,
        minibatch: int = 2,
        step: float = 0.01,
        block_px: int | None = None,
    ) -> None:
        if "head" not in layer_names(network):
            raise ValueError(f"{type(network).__name__} predicts no masks; pass the whole segmentation network")
        if min(n_patches, len(train)) < 2 * minibatch:
            raise ValueError(
                f"{train.name}: gradients need two minibatches of {minibatch} patches, "
                f"got {min(n_patches, len(train))} patches"
            )
        self.network, self.minibatch, self.step = network, minibatch, step
        self.images, masks = _draw(train, target, n_patches, rng)
        self.masks = torch.as_tensor(masks)
        self.unseen, masks = _draw(train if unseen is None else unseen, target, n_patches, rng)
        side = block_px or max(1, train.patch_px // 8)
        self.random, self.others = (torch.as_tensor(random_blocks(masks, side, rng)) for _ in range(2))
        self.layers = [layer for layer in layer_names(network) if parameters_of(network, layer)]

    def __call__(self) -> dict[str, float]:
        """Return ``susceptibility_<layer>`` and ``gradient_snr_<layer>`` for every layer.

        The susceptibility is in [-2, 2]: by how much one step raises the mean probability of the random labels above
        that of other random labels; 0 where the layer follows none.
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
        """Step on copies of the weights: `functional_call` never touches those of the network."""
        weights = self._weights()
        gradients = self._gradients(weights, self.unseen, self.random)
        before, scores = self._preference(weights), {}
        for layer in self.layers:
            own = parameters_of(self.network, layer).keys()
            size, length = (_norm(values[name] for name in own) for values in (weights, gradients))
            rate = self.step * size / length if length > 0 else 0.0
            moved = {name: weights[name] - rate * gradients[name] for name in own}
            scores[layer] = self._preference({**weights, **moved}) - before
        return scores

    @torch.no_grad()
    def _preference(self, weights: dict[str, Tensor]) -> float:
        """Mean probability of the random labels minus that of the others."""
        probability = self._logits(weights, self.unseen).softmax(dim=1)
        valid = (self.random != VOID).to(probability.device)
        means = []
        for labels in (self.random, self.others):
            ids = torch.where(labels == VOID, 0, labels).long().to(probability.device)
            means.append(probability.gather(1, ids.unsqueeze(1)).squeeze(1)[valid].double().mean().item())
        return means[0] - means[1]

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
            for name, gradient in self._gradients(weights, self.images[rows], self.masks[rows]).items():
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

    def _gradients(self, weights: dict[str, Tensor], images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Of cross-entropy + Dice, as in `objectives.Supervised`."""
        logits = self._logits(weights, images)
        masks = masks.to(logits.device)
        loss = cross_entropy(logits, masks) + soft_dice(logits, masks)
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        known = (torch.zeros_like(w) if g is None else g for w, g in zip(weights.values(), found, strict=True))
        return dict(zip(weights, known, strict=True))

    def _logits(self, weights: dict[str, Tensor], images: Tensor) -> Tensor:
        device = next(iter(weights.values())).device
        return functional_call(self.network, weights, (images.to(device),)).float()


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


def _draw(patches: PatchSet, target: str, n: int, rng: np.random.Generator) -> tuple[Tensor, NDArray[np.uint8]]:
    """Draw patches: normalised images and masks."""
    drawn = patches.take(np.sort(rng.choice(len(patches), min(n, len(patches)), replace=False)))
    masks = np.ascontiguousarray(drawn.masks[target])
    if not (masks != VOID).any():
        raise ValueError(f"{patches.name}: no valid pixel in the {target} masks of the {len(masks)} patches drawn")
    return normalise(torch.as_tensor(np.ascontiguousarray(drawn.images)), drawn), masks


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
