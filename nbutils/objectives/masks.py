"""Masks: the losses of segmentation, in which void pixels (255) never count."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbutils.legend import VOID
from nbutils.objectives import together
from nbutils.objectives.objective import Objective


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over valid pixels; 0, with a gradient of 0, where every pixel is void.

    Args:
        logits: (N, K, H, W) float.
        target: (N, H, W) integer class ids, 255 = void.
    """
    total = F.cross_entropy(logits.float(), target.long(), ignore_index=VOID, reduction="sum")
    return total / together.average((target != VOID).sum()).clamp(min=1)


def soft_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Mean soft Dice loss over the classes present in the batch's valid pixels.

    One minus twice the soft intersection over the sum of soft areas (after Milletari et al. 2016, who square terms of
    the areas), each class pooled over the batch. A class absent from the target is left out: its Dice score would be 0
    whatever is predicted.

    Args:
        logits: (N, K, H, W) float.
        target: (N, H, W) integer class ids, 255 = void.
    """
    probability = logits.float().softmax(dim=1)  # (N, K, H, W)
    valid = (target != VOID).unsqueeze(1).to(probability.dtype)
    ids = torch.where(target == VOID, 0, target).long().unsqueeze(1)
    truth = torch.zeros_like(probability).scatter_(1, ids, valid)
    sums = (truth, probability * truth, probability * valid)
    size, overlap, said = (together.total(values.sum(dim=(0, 2, 3))) for values in sums)
    area = said + size
    present = size > 0
    loss = (1 - 2 * overlap / area.clamp(min=1e-6)) * present
    return loss.sum() / present.sum().clamp(min=1)


class Supervised(Objective):
    """Segmentation from masks: cross-entropy + Dice, as in Liu et al. (IGARSS 2024)."""

    shared = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return the loss of (N, B, H, W) images against (N, H, W) masks."""
        logits = self.network(images)
        self.logits = logits.detach()
        logits = logits.to(torch.float32, memory_format=torch.contiguous_format)  # class by class: twice as fast here
        return cross_entropy(logits, masks) + soft_dice(logits, masks)
