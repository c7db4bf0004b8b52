"""Correction of noisy masks by a teacher, begun when the network stops learning what the labels have in common.

After AIO2 (Liu et al., TGRS 2024): the teacher is the moving average of the network, the moment is told by the training
accuracy against the noisy labels (`memorisation.transition`), and labels are corrected pixel by pixel or object by
object. AIO2 has one class of objects (buildings) that labels miss, and only adds objects; that objects of any class may
also be replaced is our extension, and so is that the correction starts on the spot: AIO2 goes back to a checkpoint.
"""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from skimage import measure
from torch import Tensor, nn

from nbutils import memorisation
from nbutils.legend import VOID
from nbutils.objectives.masks import cross_entropy, soft_dice
from nbutils.objectives.objective import Objective

POINTS = 50  # of the accuracy curve over the whole training, however many steps it has


def confident_classes(logits: Tensor, confidence: float) -> Tensor:
    """Return the teacher's class where its probability exceeds `confidence`, else 255: (N, H, W) uint8.

    Args:
        logits: (N, K, H, W) float, K at most 255.
        confidence: In [0, 1).
    """
    probability, label = logits.float().softmax(dim=1).max(dim=1)
    return torch.where(probability > confidence, label, VOID).to(torch.uint8)


def correct_pixels(target: Tensor, seen: Tensor) -> Tensor:
    """Replace each valid label by what the teacher saw there, if anything; void stays void.

    Args:
        target: (N, H, W) uint8, 255 = void.
        seen: (N, H, W) uint8 as `confident_classes` returns it, 255 = undecided.
    """
    return torch.where((target == VOID) | (seen == VOID), target, seen)


def correct_objects(
    target: NDArray[np.uint8], seen: NDArray[np.uint8], *, vote: float = 0.7, min_px: int = 4
) -> NDArray[np.uint8]:
    """Keep, replace and add whole objects: 4-connected regions of one class within a patch.

    An object of the labels takes the class that the teacher saw on more than `vote` of its pixels, whatever it saw
    elsewhere in it; otherwise it keeps its own. An object that the teacher saw, of `min_px` valid pixels or more, none
    of which is labelled with its class, is then added (so is AIO2's O2C, which leaves alone what touches a label). An
    object that is partly labelled keeps its labelled shape: void stays void, and undecided pixels have no vote.

    Args:
        target: (N, H, W) labels, 255 = void.
        seen: (N, H, W) what the teacher saw, 255 = undecided.
        vote: Share of an object's pixels in [0.5, 1).
        min_px: Smallest object added, in pixels.

    Returns:
        (N, H, W) corrected labels, void where `target` is.

    Raises:
        ValueError: Shapes differ or `vote` is out of range.
    """
    if target.shape != seen.shape or not 0.5 <= vote < 1:
        raise ValueError(f"need masks of one shape and vote in [0.5, 1), got {target.shape}, {seen.shape} and {vote}")
    valid = target != VOID
    seen = np.where(valid, seen, VOID)
    corrected = _replaced(target, seen, vote)
    number, sizes = _objects(seen)
    touched = np.zeros(len(sizes), bool)
    touched[number[seen == target]] = True  # the label has something of this object
    add = (sizes >= min_px) & ~touched
    add[0] = False
    return np.where(add[number], seen, corrected)


def _replaced(target: NDArray[np.uint8], seen: NDArray[np.uint8], vote: float) -> NDArray[np.uint8]:
    """Give every object of the labels the class that has more than `vote` of its pixels, if one has."""
    number, sizes = _objects(target)
    kinds = VOID + 1
    votes = np.bincount(number.ravel() * kinds + seen.ravel(), minlength=len(sizes) * kinds).reshape(-1, kinds)
    votes = votes[:, :VOID]  # undecided pixels do not vote, and on void, number 0, all are undecided
    winner = votes.argmax(axis=1)
    wins = votes.max(axis=1) > vote * sizes
    return np.where(wins[number], winner[number], target).astype(np.uint8)


def _objects(masks: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the objects of (N, H, W) masks from 1, void 0; also return the pixels of each number.

    The patches are stacked with a row of void between them, so that one labelling finds the objects of all.
    """
    n, height, width = masks.shape
    apart = np.full((n, height + 1, width), VOID, np.uint8)
    apart[:, :height] = masks
    number = measure.label(apart.reshape(-1, width), background=VOID, connectivity=1)
    number = number.reshape(n, height + 1, width)[:, :height]
    return number, np.bincount(number.ravel(), minlength=1)


class TeacherCorrection(Objective):
    """Cross-entropy + Dice, from the end of early learning on against masks that a teacher corrects.

    The teacher is no part of `network` and predicts in evaluation mode, from averaged BatchNorm statistics. Its
    predictions make a step about a third longer once correction has begun. The accuracy watched is the network's own
    over valid pixels, which costs nothing (AIO2: the teacher's IoU of buildings). A curve that never flattens never
    starts the correction.

    Args:
        network: Maps (N, B, H, W) images to (N, K, H, W) logits; trained in place.
        objects: Whether objects are corrected as wholes, else pixels.
        momentum: Share of the teacher that a step keeps, in [0, 1); less in the first steps, so that the teacher is not
            its random beginning. AIO2 has 0.999 for trainings of many thousand steps.
        confidence: Probability above which the teacher has seen something, in [0, 1). AIO2 has 0.8 for pixels; after
            short training that made the labels worse, as the teacher was then less often right than they were.
        vote: See `correct_objects`.

    Attributes:
        triggered: Share of the training that was over when the correction began, None before.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        objects: bool = True,
        momentum: float = 0.99,
        confidence: float = 0.9,
        vote: float = 0.7,
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1 or not 0 <= confidence < 1 or not 0.5 <= vote < 1:
            raise ValueError(
                f"need momentum and confidence in [0, 1) and vote in [0.5, 1), got {momentum}, {confidence} and {vote}"
            )
        self.network = network
        self.teacher = copy.deepcopy(network).requires_grad_(False).eval()
        self.objects, self.momentum, self.confidence, self.vote = objects, momentum, confidence, vote
        # Right and valid pixels of each share of the training.
        self.register_buffer("history", torch.zeros(POINTS, 2, dtype=torch.int64))
        self.steps, self.point = 0, 0
        self.triggered: float | None = None

    def get_extra_state(self) -> Tensor:
        """Return the number of steps, the point of the history and the trigger (-1: not yet), float64."""
        triggered = -1.0 if self.triggered is None else self.triggered
        return torch.tensor([self.steps, self.point, triggered], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Put them back."""
        steps, point, triggered = state.tolist()
        self.steps, self.point, self.triggered = int(steps), int(point), None if triggered < 0 else triggered

    def train(self, mode: bool = True) -> "TeacherCorrection":
        """Set the mode of the network; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def accuracy(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the training accuracy against the labels as given: the complete points and its value there."""
        right, valid = self.history[: self.point].cpu().numpy().T
        known = valid > 0
        return np.flatnonzero(known).astype(np.float64), right[known] / valid[known]

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return the loss of (N, B, H, W) images against (N, H, W) masks, corrected once early learning is over."""
        logits = self.network(images)
        self.logits = logits.detach()
        if self.training:
            self._follow()
            self._watch(masks)
        target = masks if self.triggered is None else self.corrected(images, masks)
        return cross_entropy(logits, target) + soft_dice(logits, target)

    @torch.no_grad()
    def corrected(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return the masks as the teacher corrects them, (N, H, W) uint8."""
        seen = confident_classes(self.teacher(images), self.confidence)
        if not self.objects:
            return correct_pixels(masks, seen)
        fixed = correct_objects(masks.cpu().numpy(), seen.cpu().numpy(), vote=self.vote)
        return torch.from_numpy(fixed).to(masks.device)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the teacher's weights and statistics towards the network's."""
        self.steps += 1
        share = 1 - min(self.momentum, self.steps / (self.steps + 10))
        own = self.network.state_dict()
        for name, value in self.teacher.state_dict().items():
            if value.is_floating_point():
                value.lerp_(own[name], share)
            else:
                value.copy_(own[name])  # counters

    @torch.no_grad()
    def _watch(self, masks: Tensor) -> None:
        """Record the accuracy against the masks as given; call the end of early learning when a point is complete."""
        if self.triggered is not None:
            return
        point = min(int(self.done * POINTS), POINTS - 1)
        if point > self.point:
            self.point = point
            if memorisation.transition(*self.accuracy()) is not None:
                self.triggered = self.done
                return
        valid = masks != VOID
        right = (self.logits.argmax(dim=1) == masks) & valid
        self.history[point] += torch.stack([right.sum(), valid.sum()])
