"""Regularisation: views of one place are described alike, and no two parts of the description say the same."""

from collections.abc import Sequence

import torch
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor, nn
from torch.nn import functional as F

from nbutils.objectives.selfsupervised import SelfSupervised, full_precision, pooled
from nbutils.objectives.views import cut, places, random_crops, recolour, within


class VICRegL(SelfSupervised):
    """VICRegL (Bardes et al. 2022): the same ground is described alike in two views, cell by cell and as a whole.

    Features of a stage are projected cell by cell, matched by where they lie on the ground, and compared by VICReg:
    matches attract, while every channel must vary over cells and be uncorrelated with the others. A second term
    compares the pooled features of the deepest stage.

    What differs from the paper, since a batch here has a dozen images and segmentation is what the features are for:
    variance and covariance of cells are taken over all images, not place by place (16 samples estimate no 128 x 128
    covariance); cells of middle stages are compared, since the deepest are too coarse; the local term has the larger
    share; cells are not matched by similarity as well; every cell that both views show is used, against the other
    view's features interpolated at its place; views cover half the image or more, so that there are such cells.

    Args:
        encoder: Trained in place.
        seed: Of the heads and the views.
        stages: Whose cells are compared, as indices into the encoder's `out_channels`.
        whole: Share of the term on pooled features in the loss, in [0, 1).
        hidden: Width of the heads.
        dimensions: Of the space in which descriptions are compared.
        min_area: Smallest share of the image that a view covers; two views of 0.5 or more always overlap.
        jitter: Strength of the change of colour, see `views.recolour`.
        weights: Of invariance, variance and covariance.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        seed: int,
        stages: Sequence[int] = (3, 4),
        whole: float = 0.2,
        hidden: int = 256,
        dimensions: int = 128,
        min_area: float = 0.5,
        jitter: float = 0.1,
        weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
    ) -> None:
        super().__init__(encoder, seed=seed)
        channels = [encoder.out_channels[stage] for stage in (*stages, -1)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads = [VICRegProjectionHead(each, hidden, dimensions, num_layers=2) for each in channels]
        *local, self.whole_head = heads
        self.heads = nn.ModuleList(local)
        self.distance = VICRegLoss(*weights)
        self.stages, self.whole, self.min_area, self.jitter = tuple(stages), whole, min_area, jitter

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the loss of a view of each of two (2, N, B, H, W) images of a place; masks are not used.

        Raises:
            ValueError: There are fewer than two images, or these are too small for a stage to have shared cells.
        """
        self._check(images, 2)
        crops = [random_crops(len(each), self.generator, min_area=self.min_area) for each in images]
        views = [
            recolour(cut(each, crop), self.generator, jitter=self.jitter)
            for each, crop in zip(images, crops, strict=True)
        ]
        features = self.encoder(torch.cat(views))
        local = [
            self._compare(head, *self._shared(features[stage], stage, crops))
            for head, stage in zip(self.heads, self.stages, strict=True)
        ]
        whole = self._compare(self.whole_head, *pooled(features).chunk(2))
        return (1 - self.whole) * torch.stack(local).mean() + self.whole * whole

    def _shared(self, features: Tensor, stage: int, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        here, there = shared_cells(features.float(), *crops)  # places need more digits than bf16 has
        if len(here) < 2:
            raise ValueError(
                f"the two views share {len(here)} cells of stage {stage}, which has {tuple(features.shape[-2:])}; "
                "VICRegL needs 2 or more: choose earlier stages or larger patches"
            )
        return here, there

    def _compare(self, head: nn.Module, here: Tensor, there: Tensor) -> Tensor:
        described = head(torch.cat([here, there])).float()
        with full_precision(described):
            return self.distance(*described.chunk(2))


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
    inside = (at.abs() <= 1).all(dim=-1).to(features.device)
    at = at.to(features).unsqueeze(2)
    sampled = F.grid_sample(theirs, at, padding_mode="border", align_corners=False).squeeze(3)  # (N, C, h w)
    return ours.flatten(2).transpose(1, 2)[inside], sampled.transpose(1, 2)[inside]
