"""Contrast: views of one place attract, views of others repel."""

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from nbutils.objectives.selfsupervised import SelfSupervised, follower, full_precision, pooled
from nbutils.objectives.views import random_view


class MoCo(SelfSupervised):
    """MoCo v2 (Chen et al. 2020): two views of an image attract, a queue of other images repels.

    The momentum is smaller than SSL4EO-S12's 0.999, which suits 100 epochs of 250,000 images: at a few hundred steps
    such a key encoder would still be its initial self. The queue must be shorter than an epoch, or an image is repelled
    by its own key of the epoch before.

    BatchNorm would let a network find its positive by the statistics that query and key share. As in the paper
    ("shuffling BN") keys are normalised in other company than queries: both in groups, the keys' drawn at random.

    Args:
        encoder: Trained in place.
        seed: Of the heads, the queue, the views and the shuffling.
        queue: Number of keys kept; less than the number of images.
        groups: Groups of a batch that are normalised apart.
        temperature: Of the softmax over similarities.
        momentum: Share of the key encoder that a step keeps, in [0, 1].
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
        super().__init__(encoder, seed=seed)
        features = encoder.out_channels[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = MoCoProjectionHead(features, features, dimensions)
            self.contrast = NTXentLoss(temperature=temperature, memory_bank_size=(queue, dimensions))
        memory = self.contrast.memory_bank
        for name in ("bank", "bank_ptr"):  # lightly leaves the queue out of the state
            memory.register_buffer(name, getattr(memory, name))
        self.key_encoder, self.key_head = follower(encoder), follower(self.head)
        self.momentum, self.groups = momentum, groups

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the contrastive loss of a view of each of two (2, N, B, H, W) images of a place; masks are not used.

        Raises:
            ValueError: There are fewer than two images for each of the groups that BatchNorm sees.
        """
        self._check(images, 2 * self.groups)
        here, there = images
        query = self.head(self._pooled(self.encoder, random_view(here, self.generator)))
        with torch.no_grad():
            update_momentum(self.encoder, self.key_encoder, self.momentum)
            update_momentum(self.head, self.key_head, self.momentum)
            view, order = random_view(there, self.generator), torch.randperm(len(there), generator=self.generator)
            shuffled = self._pooled(self.key_encoder, view[order.to(view.device)])
            key = self.key_head(shuffled[order.argsort().to(view.device)])
        with full_precision(images):
            return self.contrast(query.float(), key.float())

    def _pooled(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """Pool the features of every image, (N, C); BatchNorm sees one group of images at a time."""
        return torch.cat([pooled(encoder(group)) for group in images.chunk(self.groups)])
