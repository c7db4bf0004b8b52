"""Remedies for noisy masks: losses that trust a label less, labels smoothed, pixels weighted.

Void pixels (255) never count, whatever is predicted on them; a batch of void alone has loss 0 and gradient 0. The
objectives replace or weight the cross-entropy of `Supervised`. Dice stays as it is where only the loss of a pixel
changes, so that one thing differs, and is weighted where pixels are. The correction of labels is in `correction`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nbutils.legend import VOID
from nbutils.objectives import together
from nbutils.objectives.masks import cross_entropy, soft_dice
from nbutils.objectives.objective import Objective


def generalised_cross_entropy(logits: Tensor, target: Tensor, *, q: float = 0.7) -> Tensor:
    """Mean of (1 - p^q) / q over valid pixels, p the probability of the label (Zhang & Sabuncu 2018).

    q = 0 is cross-entropy; q = 1 is 1 - p, half the mean absolute error, which learns slowly but tolerates errors.

    Args:
        logits: (N, K, H, W) float.
        target: (N, H, W) integer class ids, 255 = void.
        q: In [0, 1].

    Raises:
        ValueError: `q` is out of range.
    """
    _within("q", q, 0, 1)
    if q == 0:
        return cross_entropy(logits, target)
    log_p = _of_label(_log_probabilities(logits, target), target)
    return _mean(-torch.expm1(q * log_p) / q, target)  # expm1: 1 - p^q would cancel for small q


def symmetric_cross_entropy(
    logits: Tensor, target: Tensor, *, alpha: float = 1.0, beta: float = 1.0, log_zero: float = -4.0
) -> Tensor:
    """`alpha` cross-entropy + `beta` reverse cross-entropy, mean over valid pixels (Wang et al. 2019).

    The reverse, -sum_k p_k log y_k with log 0 clipped to `log_zero`, is -log_zero (1 - p) for a label of probability p.

    Args:
        logits: (N, K, H, W) float.
        target: (N, H, W) integer class ids, 255 = void.
        alpha: Weight of cross-entropy, not negative.
        beta: Weight of the reverse, not negative.
        log_zero: A of the paper, negative.

    Raises:
        ValueError: A weight is negative or `log_zero` is not.
    """
    if alpha < 0 or beta < 0 or log_zero >= 0:
        raise ValueError(f"need alpha, beta >= 0 and log_zero < 0, got {alpha}, {beta} and {log_zero}")
    log_p = _of_label(_log_probabilities(logits, target), target)
    return _mean(-alpha * log_p + beta * log_zero * torch.expm1(log_p), target)


def bootstrapped_cross_entropy(logits: Tensor, target: Tensor, *, beta: float = 0.8, hard: bool = True) -> Tensor:
    """Cross-entropy against `beta` label + (1 - `beta`) prediction, mean over valid pixels (Reed et al. 2015).

    The prediction is the most probable class (`hard`; the paper has beta = 0.8) or the probabilities themselves (0.95),
    through which the gradient then flows: soft bootstrapping is beta cross-entropy + (1 - beta) entropy.

    Args:
        logits: (N, K, H, W) float.
        target: (N, H, W) integer class ids, 255 = void.
        beta: Trust in the label, in [0, 1].
        hard: Which of the two.

    Raises:
        ValueError: `beta` is out of range.
    """
    _within("beta", beta, 0, 1)
    log_p = _log_probabilities(logits, target)
    own = log_p.amax(dim=1) if hard else (log_p.exp() * log_p).sum(dim=1)
    return _mean(-beta * _of_label(log_p, target) - (1 - beta) * own, target)


def spatial_prior(target: Tensor, n_classes: int, *, sigma_px: float = 3.0) -> Tensor:
    """Return how often each class occurs around a pixel: its one-hot mask under a Gaussian, (N, K, H, W) float32.

    Normalised convolution: void and what lies outside the patch have no weight, so the classes sum to 1 wherever a
    valid pixel is in reach of the Gaussian, and to 0 elsewhere. CromSS (TGRS 2025) also averages over the dates of a
    place; here a place has one mask, so the prior is spatial only.

    Args:
        target: (N, H, W) integer class ids, 255 = void.
        n_classes: K.
        sigma_px: Standard deviation of the Gaussian, in pixels, positive.
    """
    if sigma_px <= 0:
        raise ValueError(f"sigma_px must be positive, got {sigma_px}")
    valid = target != VOID
    rows, columns = (_gaussian(size, sigma_px, target.device) for size in target.shape[1:])
    with torch.autocast(target.device.type, enabled=False):  # bf16 products would not sum to 1
        blurred = rows @ _one_hot(target, n_classes) @ columns
        reach = rows @ valid.float() @ columns  # (N, H, W)
    return blurred / reach.unsqueeze(1).clamp(min=1e-12)


def smoothed_cross_entropy(
    logits: Tensor, target: Tensor, *, prior: float = 0.15, uniform: float = 0.05, sigma_px: float = 3.0
) -> Tensor:
    """Cross-entropy against (1 - prior - uniform) label + `prior` spatial prior + `uniform` / K, as CromSS smooths.

    Args:
        logits: (N, K, H, W) float.
        target: (N, H, W) integer class ids, 255 = void.
        prior: Share of the spatial prior, not negative.
        uniform: Share of the uniform distribution, not negative; with `prior` at most 1.
        sigma_px: Of the prior, see `spatial_prior`.

    Raises:
        ValueError: The shares are out of range.
    """
    if min(prior, uniform) < 0 or prior + uniform > 1:
        raise ValueError(f"shares of prior and uniform must be >= 0 and sum to at most 1, got {prior} and {uniform}")
    log_p = _log_probabilities(logits, target)
    around = (spatial_prior(target, logits.shape[1], sigma_px=sigma_px) * log_p).sum(dim=1)
    label = _of_label(log_p, target)
    return _mean(-(1 - prior - uniform) * label - prior * around - uniform * log_p.mean(dim=1), target)


def confident_pixels(logits: Tensor, target: Tensor, *, keep: float) -> Tensor:
    """Weight pixels by how well the network agrees with their label, class by class, as CromSS selects (one modality).

    Of the pixels of each label the share `keep` with the highest probability of that label has weight 1, every other
    pixel its probability over the lowest one kept. So rare classes keep as large a share as frequent ones.

    Args:
        logits: (N, K, H, W) float.
        target: (N, H, W) integer class ids, 255 = void.
        keep: Share in (0, 1]; at least one pixel of each class is kept.

    Returns:
        (N, H, W) float32 weights in [0, 1], 0 on void, without gradient.
    """
    _share("keep", keep)
    confidence = _of_label(_log_probabilities(logits.detach(), target), target).exp()
    weight = (target != VOID).float()
    for label in range(logits.shape[1] if keep < 1 else 0):
        own = target == label
        values = confidence[own]
        if n := len(values):
            threshold = values.kthvalue(n + 1 - max(1, math.ceil(keep * n))).values
            weight[own] = torch.where(values >= threshold, 1.0, values / threshold)  # also where the threshold is 0
    return weight


def weighted_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean cross-entropy over valid pixels; `weight` (N, H, W), not negative; 0 where all weights are."""
    weight = weight * (target != VOID)
    log_p = _of_label(_log_probabilities(logits, target), target)
    return -(weight * log_p).sum() / weight.sum().clamp(min=1e-6)


def weighted_dice(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """`soft_dice` in which a pixel counts with its weight (N, H, W), in overlap and areas alike."""
    weight = (weight * (target != VOID)).unsqueeze(1)
    probability = _log_probabilities(logits, target).exp() * weight
    truth = _one_hot(target, logits.shape[1]) * weight
    overlap = torch.where(truth > 0, probability, 0).sum(dim=(0, 2, 3))  # the weight once: it is in `probability`
    area = probability.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    present = truth.sum(dim=(0, 2, 3)) > 0
    loss = (1 - 2 * overlap / area.clamp(min=1e-6)) * present
    return loss.sum() / present.sum().clamp(min=1)


class RobustLoss(Objective):
    """Segmentation with another loss in place of cross-entropy, plus the Dice loss as it is.

    Args:
        network: Maps (N, B, H, W) images to (N, K, H, W) logits; trained in place.
        loss: Function of logits and masks, one of this module.
        settings: Passed on to `loss`.
    """

    shared = True

    def __init__(self, network: nn.Module, loss: Callable[..., Tensor], **settings: float) -> None:
        super().__init__()
        self.network, self.loss, self.settings = network, loss, settings

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return the loss of (N, B, H, W) images against (N, H, W) masks."""
        logits = self.network(images)
        self.logits = logits.detach()
        return self.loss(logits, masks, **self.settings) + soft_dice(logits, masks)


class GeneralisedCrossEntropy(RobustLoss):
    """`generalised_cross_entropy` + Dice; `settings` are its keywords."""

    def __init__(self, network: nn.Module, **settings: float) -> None:
        super().__init__(network, generalised_cross_entropy, **settings)


class SymmetricCrossEntropy(RobustLoss):
    """`symmetric_cross_entropy` + Dice; `settings` are its keywords."""

    def __init__(self, network: nn.Module, **settings: float) -> None:
        super().__init__(network, symmetric_cross_entropy, **settings)


class Bootstrapping(RobustLoss):
    """`bootstrapped_cross_entropy` + Dice; `settings` are its keywords."""

    def __init__(self, network: nn.Module, **settings: float) -> None:
        super().__init__(network, bootstrapped_cross_entropy, **settings)


class LabelSmoothing(RobustLoss):
    """`smoothed_cross_entropy` + Dice against the labels as they are; `settings` are its keywords."""

    def __init__(self, network: nn.Module, **settings: float) -> None:
        super().__init__(network, smoothed_cross_entropy, **settings)


class ConfidentPixels(Objective):
    """Cross-entropy + Dice over pixels weighted by `confident_pixels`.

    The share kept falls linearly from all pixels to `keep` over the first part of the training, as in CromSS, where it
    takes 80 epochs. The ramp is a share of the training here, so that it does not depend on its length.

    Args:
        network: Maps (N, B, H, W) images to (N, K, H, W) logits; trained in place.
        keep: Share of the pixels of each class with weight 1 after the ramp, in (0, 1].
        ramp: Share of the training that the ramp takes, in (0, 1]. Our choice: the longer, the more is learnt before
            hard pixels, many of whose labels are right, lose weight.
    """

    def __init__(self, network: nn.Module, *, keep: float = 0.5, ramp: float = 0.8) -> None:
        super().__init__()
        _share("keep", keep)
        _share("ramp", ramp)
        self.network, self.keep, self.ramp = network, keep, ramp

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return the loss of (N, B, H, W) images against (N, H, W) masks; `done` sets the share of pixels kept."""
        logits = self.network(images)
        self.logits = logits.detach()
        keep = 1 - (1 - self.keep) * min(1.0, self.done / self.ramp)
        weight = confident_pixels(logits, masks, keep=keep)
        return weighted_cross_entropy(logits, masks, weight) + weighted_dice(logits, masks, weight)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")


def _share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {value}")


def _log_probabilities(logits: Tensor, target: Tensor) -> Tensor:
    """Log-softmax in float32, uniform on void: what is predicted there, even NaN, has no value and no gradient."""
    return torch.where((target == VOID).unsqueeze(1), 0.0, logits.float()).log_softmax(dim=1)


def _of_label(values: Tensor, target: Tensor) -> Tensor:
    """Pick each pixel's label from (N, K, H, W), any class on void: (N, H, W)."""
    return values.gather(1, torch.where(target == VOID, 0, target).long().unsqueeze(1)).squeeze(1)


def _one_hot(target: Tensor, n_classes: int) -> Tensor:
    """(N, K, H, W) float32, all 0 on void."""
    return (target.unsqueeze(1) == torch.arange(n_classes, device=target.device).view(-1, 1, 1)).float()


def _mean(losses: Tensor, target: Tensor) -> Tensor:
    valid = target != VOID
    return torch.where(valid, losses, 0).sum() / together.average(valid.sum()).clamp(min=1)


def _gaussian(size: int, sigma_px: float, device: torch.device) -> Tensor:
    """(size, size) float32 matrix whose product with a row is its convolution with a Gaussian, cut at 4 sigma."""
    place = torch.arange(size, device=device, dtype=torch.float32)
    distance = (place - place.unsqueeze(1)) / sigma_px
    return torch.where(distance.abs() <= 4, torch.exp(-0.5 * distance**2), 0)
