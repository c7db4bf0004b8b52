"""Distillation: a student that sees a part of a place says what its teacher says of the whole."""

import math
import warnings

import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn

from nbutils.objectives.selfsupervised import SelfSupervised, follower, full_precision, pooled
from nbutils.objectives.views import random_view


class DINO(SelfSupervised):
    """DINO (Caron et al. 2021): the student's view of a place must be classed as the teacher classes another view.

    The teacher sees a global view of each image of the pair, the student these and small local crops, drawn from both
    in turn. The teacher is a moving average of the student, its outputs are centred and sharpened against collapse.

    What differs from SSL4EO-S12, which trains 100 epochs on 250,000 images: 256 prototypes in place of 65,536, since an
    epoch has hundreds of images; a teacher momentum that starts at 0.98 in place of 0.996, which would keep the initial
    teacher for most of the training; two local crops of half the size in place of eight, which together cost half an
    image; larger crops, since patches are small; BatchNorm in the head, as the authors advise for convolutional
    networks; a teacher's temperature without warm-up.

    Args:
        encoder: The student, trained in place.
        seed: Of the heads and the views.
        prototypes: Classes that student and teacher agree on.
        hidden: Width of the head.
        bottleneck: Width of the head before the prototypes.
        local_views: Number of local crops of a place.
        local_scale: Side of a local view over that of the image, in (0, 1].
        local_area: Smallest and largest share of the image that a local crop covers.
        global_area: The same of a global view.
        momentum: Share of the teacher that a step keeps at first; rises to 1 along a cosine.
        temperatures: Of the student and of the teacher.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        seed: int,
        prototypes: int = 256,
        hidden: int = 256,
        bottleneck: int = 64,
        local_views: int = 2,
        local_scale: float = 0.5,
        local_area: tuple[float, float] = (0.05, 0.3),
        global_area: tuple[float, float] = (0.3, 1.0),
        momentum: float = 0.98,
        temperatures: tuple[float, float] = (0.1, 0.04),
    ) -> None:
        super().__init__(encoder, seed=seed)
        features, (student, self.temperature) = encoder.out_channels[-1], temperatures
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = _head(features, hidden, bottleneck, prototypes)
            self.teacher_head = _head(features, hidden, bottleneck, prototypes)
        self.teacher_head.load_state_dict(self.head.state_dict())  # a head with weight norm cannot be copied
        deactivate_requires_grad(self.teacher_head)
        self.teacher = follower(encoder)
        self.distance = DINOLoss(prototypes, student_temp=student)
        self.momentum = momentum
        self.local_views, self.local_scale = local_views, local_scale
        self.local_area, self.global_area = local_area, global_area

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the cross-entropy of student and teacher on different views of (2, N, B, H, W) images of a place.

        Raises:
            ValueError: There are fewer than two images, which BatchNorm needs.
        """
        self._check(images, 2)
        whole, parts = self._global_views(images), self._local_views(images)
        with torch.no_grad():
            kept = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * self.done)) / 2
            update_momentum(self.encoder, self.teacher, kept)
            update_momentum(self.head, self.teacher_head, kept)
            taught = self.teacher_head(pooled(self.teacher(whole)))
        seen = [pooled(self.encoder(views)) for views in (whole, parts) if len(views)]
        said = self.head(torch.cat(seen))
        n = images.shape[1]
        with full_precision(images):
            return self.distance(taught.float().split(n), said.float().split(n), teacher_temp=self.temperature)

    def _global_views(self, images: Tensor) -> Tensor:
        """Draw one view of each image of the pair, (2 N, B, H, W)."""
        least, most = self.global_area
        return torch.cat([random_view(each, self.generator, min_area=least, max_area=most) for each in images])

    def _local_views(self, images: Tensor) -> Tensor:
        """Draw the local crops from the two images in turn, (local_views N, B, h, w)."""
        least, most = self.local_area
        size_px = max(1, round(images.shape[-1] * self.local_scale))
        views = [
            random_view(images[i % 2], self.generator, min_area=least, max_area=most, size_px=size_px)
            for i in range(self.local_views)
        ]
        return torch.cat(views) if views else images.new_empty(0)


def _head(*sizes: int) -> DINOProjectionHead:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # lightly still uses the older weight norm
        return DINOProjectionHead(*sizes, batch_norm=True)
