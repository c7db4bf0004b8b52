"""What the networks learn from: masks (cross-entropy + Dice) or the images alone (MoCo v2).

Every objective is a module whose ``forward(images, masks)`` returns the loss, so that the training loop is the same
for all arms. Void pixels (255) never count.
"""

import copy

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn
from torch.nn import functional as F

from nbutils.legend import VOID


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over valid pixels; 0, with a gradient of 0, where every pixel is void.

    Args:
        logits: (N, K, H, W) float.
        target: (N, H, W) integer class ids, 255 = void.
    """
    total = F.cross_entropy(logits.float(), target.long(), ignore_index=VOID, reduction="sum")
    return total / (target != VOID).sum().clamp(min=1)


def soft_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Mean soft Dice loss over the classes present in the batch's valid pixels.

    One minus twice the soft intersection over the sum of soft areas (Milletari et al. 2016), each class pooled over the
    batch. A class absent from the target is left out: its Dice score would be 0 whatever is predicted.

    Args:
        logits: (N, K, H, W) float.
        target: (N, H, W) integer class ids, 255 = void.
    """
    valid = (target != VOID).unsqueeze(1)  # (N, 1, H, W)
    probability = logits.float().softmax(dim=1) * valid
    ids = torch.where(target == VOID, 0, target).long()
    truth = F.one_hot(ids, logits.shape[1]).permute(0, 3, 1, 2) * valid  # (N, K, H, W)
    overlap = (probability * truth).sum(dim=(0, 2, 3))
    area = probability.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    present = truth.sum(dim=(0, 2, 3)) > 0
    loss = (1 - 2 * overlap / area.clamp(min=1e-6)) * present
    return loss.sum() / present.sum().clamp(min=1)


class Supervised(nn.Module):
    """Segmentation from masks: cross-entropy + Dice, as in Liu et al. (IGARSS 2024)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return the loss of (N, B, H, W) images against (N, H, W) masks."""
        logits = self.network(images)
        return cross_entropy(logits, masks) + soft_dice(logits, masks)


class MoCo(nn.Module):
    """MoCo v2 (Chen et al. 2020): two views of an image attract, a queue of other images repels.

    The momentum is smaller than SSL4EO-S12's 0.999, which suits 100 epochs of 250,000 images: at a few hundred steps
    such a key encoder would still be its initial self. The queue must be shorter than an epoch, or an image is repelled
    by its own key of the epoch before.

    BatchNorm would let a network find its positive by the statistics that query and key share. As in the paper
    ("shuffling BN") keys are normalised in other company than queries: both in groups, the keys' drawn at random.

    Args:
        encoder: Trained in place.
        seed: Of the heads, the views and the shuffling.
        queue: Number of keys kept; less than the number of images.
        groups: Groups of a batch that are normalised apart.
        temperature: Of the softmax over similarities.
        momentum: Share of the key encoder that a step keeps.
        dimensions: Of the space in which views are compared.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        seed: int,
        queue: int = 256,
        groups: int = 2,
        temperature: float = 0.2,
        momentum: float = 0.99,
        dimensions: int = 128,
    ) -> None:
        super().__init__()
        features = encoder.out_channels[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = MoCoProjectionHead(features, features, dimensions)
            self.contrast = NTXentLoss(temperature=temperature, memory_bank_size=(queue, dimensions))
        self.encoder = encoder
        self.key_encoder, self.key_head = copy.deepcopy(encoder), copy.deepcopy(self.head)
        deactivate_requires_grad(self.key_encoder)
        deactivate_requires_grad(self.key_head)
        self.momentum, self.groups = momentum, groups
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the contrastive loss of two random views of (N, B, H, W) images; masks are not looked at.

        Raises:
            ValueError: There are fewer than two images for each of the groups that BatchNorm sees.
        """
        if len(images) < 2 * self.groups:
            need = 2 * self.groups
            raise ValueError(f"MoCo compares batches of {need} images or more, got {len(images)}; raise the batch size")
        query = self.head(_pooled(self.encoder, random_view(images, self.generator), self.groups))
        with torch.no_grad():
            update_momentum(self.encoder, self.key_encoder, self.momentum)
            update_momentum(self.head, self.key_head, self.momentum)
            view, order = random_view(images, self.generator), torch.randperm(len(images), generator=self.generator)
            shuffled = _pooled(self.key_encoder, view[order.to(view.device)], self.groups)
            key = self.key_head(shuffled[order.argsort().to(view.device)])
        return self.contrast(query.float(), key.float())


def _pooled(encoder: nn.Module, images: Tensor, groups: int) -> Tensor:
    """Mean of the deepest features of every image, (N, C); BatchNorm sees one group of images at a time."""
    return torch.cat([encoder(group)[-1].mean(dim=(2, 3)) for group in images.chunk(groups)])


def random_view(images: Tensor, generator: torch.Generator, *, min_area: float = 0.2) -> Tensor:
    """Draw one augmented view per image: crop of random area, rotation, flip, band gain and offset, grey level.

    One affine resampling does crop, rotation by any angle and flip at once, for any number of bands; colour is
    jittered per band, since remote sensing bands have no hue, and mildly: the ratio of bands is what tells vegetation
    from roofs, and features that do not change with it lose the classes. The crop area follows SSL4EO-S12 (0.2 to 1).

    Args:
        images: (N, B, H, W) normalised float images.
        generator: Source of randomness.
        min_area: Smallest share of the image's area that a crop covers, in (0, 1].

    Returns:
        (N, B, H, W) views.
    """
    n, bands = images.shape[:2]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    side = uniform(min_area, 1.0, n).sqrt()
    angle = uniform(0.0, 2 * torch.pi, n)
    flip = torch.where(uniform(0.0, 1.0, n) < 0.5, -1.0, 1.0)
    cos, sin = side * angle.cos(), side * angle.sin()
    slack = 1 - side
    theta = torch.stack(
        [
            torch.stack([cos * flip, -sin, slack * uniform(-1, 1, n)], dim=1),
            torch.stack([sin * flip, cos, slack * uniform(-1, 1, n)], dim=1),
        ],
        dim=1,
    ).to(images)  # (N, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    view = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    gain = uniform(0.9, 1.1, n, bands, 1, 1).to(images) * uniform(0.9, 1.1, n, 1, 1, 1).to(images)
    offset = uniform(-0.1, 0.1, n, bands, 1, 1).to(images)
    view = view * gain + offset
    grey = (uniform(0.0, 1.0, n, 1, 1, 1) < 0.2).to(images)
    return view * (1 - grey) + view.mean(dim=1, keepdim=True) * grey
