"""Self-supervision: what an encoder learns from images alone."""

import copy

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn

from nbutils.objectives.objective import Objective
from nbutils.objectives.views import random_view


class MoCo(Objective):
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

    paired = True

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

    def get_extra_state(self) -> Tensor:
        """Return the state of the generator, so that a checkpoint holds all that the next loss depends on."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Put the generator back."""
        self.generator.set_state(state)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the contrastive loss of a view of each of two (2, N, B, H, W) images of a place; masks are not used.

        Raises:
            ValueError: There are fewer than two images for each of the groups that BatchNorm sees.
        """
        here, there = images
        if len(here) < 2 * self.groups:
            need = 2 * self.groups
            raise ValueError(f"MoCo compares batches of {need} images or more, got {len(here)}; raise the batch size")
        query = self.head(_pooled(self.encoder, random_view(here, self.generator), self.groups))
        with torch.no_grad():
            update_momentum(self.encoder, self.key_encoder, self.momentum)
            update_momentum(self.head, self.key_head, self.momentum)
            view, order = random_view(there, self.generator), torch.randperm(len(there), generator=self.generator)
            shuffled = _pooled(self.key_encoder, view[order.to(view.device)], self.groups)
            key = self.key_head(shuffled[order.argsort().to(view.device)])
        return self.contrast(query.float(), key.float())


def _pooled(encoder: nn.Module, images: Tensor, groups: int) -> Tensor:
    """Mean of the deepest features of every image, (N, C); BatchNorm sees one group of images at a time."""
    return torch.cat([encoder(group)[-1].mean(dim=(2, 3)) for group in images.chunk(groups)])
