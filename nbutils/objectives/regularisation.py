"""Regularisation: views of one place are described alike, and no two parts of the description say the same."""

import torch
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor, nn
from torch.nn import functional as F

from nbutils.objectives.selfsupervised import SelfSupervised
from nbutils.objectives.views import cut, places, random_crops, recolour, within


class VICRegL(SelfSupervised):
    """The local term of VICRegL (Bardes et al. 2022): the same ground is described alike in two views, cell by cell.

    Features of a stage are projected cell by cell, matched by where they lie on the ground, and compared by VICReg:
    matches attract, while every channel must vary over cells and be uncorrelated with the others.

    What differs from the paper, since a batch here has a dozen images and segmentation is what features are for:
    variance and covariance are taken over the cells of all images, not over the images place by place (16 samples
    estimate no 128 x 128 covariance); a middle stage is compared, not the deepest, whose cells are too coarse; the term
    on pooled features and the matching by similarity are left out; every cell that both views show is used, with
    the other view's features interpolated at its place.

    Args:
        encoder: Trained in place.
        seed: Of the head and the views.
        stage: Whose features are compared, as an index into the encoder's `out_channels`.
        hidden: Width of the head.
        dimensions: Of the space in which cells are compared.
        min_area: Smallest share of the image that a view covers, at least 0.5, so that two views always overlap.
        jitter: Strength of the change of colour, see `recolour`.
        weights: Of invariance, variance and covariance.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        seed: int,
        stage: int = 3,
        hidden: int = 256,
        dimensions: int = 128,
        min_area: float = 0.5,
        jitter: float = 0.1,
        weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
    ) -> None:
        super().__init__(encoder, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = VICRegProjectionHead(encoder.out_channels[stage], hidden, dimensions, num_layers=2)
        self.distance = VICRegLoss(*weights)
        self.stage, self.min_area, self.jitter = stage, min_area, jitter

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the loss of the cells that a view of each of two (2, N, B, H, W) images share; masks are not used.

        Raises:
            ValueError: There are fewer than two images, or these are too small for the stage to have shared cells.
        """
        self._check(images, 2)
        crops = [random_crops(len(each), self.generator, min_area=self.min_area) for each in images]
        views = [
            recolour(cut(each, crop), self.generator, jitter=self.jitter)
            for each, crop in zip(images, crops, strict=True)
        ]
        here, there = shared_cells(self.encoder(torch.cat(views))[self.stage].float(), *crops)
        if len(here) < 2:
            raise ValueError(
                f"the views of {tuple(images.shape[-2:])} pixels share {len(here)} cells of stage {self.stage}, "
                "VICRegL needs 2 or more; choose an earlier stage or larger patches"
            )
        return self.distance(*self.head(torch.cat([here, there])).chunk(2))


def shared_cells(features: Tensor, here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Match the cells of two views by place.

    Args:
        features: (2 N, C, h, w), of the views `here`, then of the views `there`.
        here: (N, 2, 3) crops, see `random_crops`.
        there: The same of the other views.

    Returns:
        (n, C) features of the cells `here` that lie inside the views `there`, and (n, C) features `there` at their
        places, bilinear between the centres of cells.
    """
    ours, theirs = features.chunk(2)
    height, width = features.shape[-2:]
    at = within(places(here, height, width).flatten(1, 2), there)  # (N, h w, 2)
    margin = 1 - 1 / torch.tensor([width, height])  # beyond the outer centres nothing is known
    inside = (at.abs() <= margin).all(dim=-1).to(features.device)
    sampled = F.grid_sample(theirs, at.to(features).unsqueeze(2), align_corners=False).squeeze(3)  # (N, C, h w)
    return ours.flatten(2).transpose(1, 2)[inside], sampled.transpose(1, 2)[inside]
