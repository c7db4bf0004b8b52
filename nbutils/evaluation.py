"""Evaluation: what a network predicts, counted against masks, scene by scene, so that every score can be had later."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from nbutils import statistics
from nbutils.batches import normalise
from nbutils.legend import VOID
from nbutils.patches import PatchSet
from nbutils.shards import Shards

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
BOUNDARY_PX = 2  # width of a boundary; Cheng et al. take 2 % of the diagonal, which is 1.8 px at 64 px, 2.7 at 96
BINS = 15  # of confidence, as Guo et al. have them


class Tally(NamedTuple):
    """Counts of one scene.

    Attributes:
        confusion: (K, K) int64 pixels, rows the target's class, columns the predicted one.
        boundary: (K, 2) int64 pixels on the boundary of a class in both masks, and in either of them.
        calibration: (15, 3) float64 for each bin of confidence: pixels, sum of their confidence, pixels that are right.
    """

    confusion: NDArray[np.int64]
    boundary: NDArray[np.int64]
    calibration: NDArray[np.float64]


def predict(
    network: nn.Module, patches: PatchSet, *, precision: str = "fp32", batch_size: int = 64
) -> NDArray[np.uint8]:
    """Return the most probable class of every pixel, (N, h, w) uint8, from the network in evaluation mode."""
    return np.concatenate([classes for classes, _ in _classified(network, patches, precision, batch_size)])


def evaluate(
    network: nn.Module,
    patches: PatchSet,
    target: NDArray[np.uint8] | Shards,
    n_classes: int,
    *,
    precision: str = "fp32",
) -> dict[str, Tally]:
    """Count predictions against a target, scene by scene; void counts nowhere.

    A scene is counted when its last patch is predicted, so that no more is held than scenes that are not whole.

    Args:
        network: Predicts `n_classes` classes.
        patches: The images, with their scenes.
        target: (N, h, w) uint8 masks to compare with, 255 = void.
        n_classes: K.
        precision: ``fp32`` or ``bf16``.
    """
    waiting: dict[int, tuple[NDArray, NDArray]] = {}  # of scenes that are not seen whole yet
    scenes, scene, missing = np.unique(patches.scenes, return_inverse=True, return_counts=True)
    tallies, start = {}, 0
    for prediction, confidence in _classified(network, patches, precision, batch_size=64):
        waiting |= {start + i: pair for i, pair in enumerate(zip(prediction, confidence, strict=True))}
        own = scene[start : start + len(prediction)]
        missing -= np.bincount(own, minlength=len(scenes))
        start += len(prediction)
        for seen in (each for each in np.unique(own) if not missing[each]):
            index = np.flatnonzero(scene == seen)
            said, sure = (np.stack(each) for each in zip(*map(waiting.pop, index.tolist()), strict=True))
            truth = np.asarray(target[index])
            tallies[str(scenes[seen])] = Tally(
                statistics.confusion_counts(said, truth, n_classes),
                boundary_counts(said, truth, n_classes),
                calibration_counts(sure, said, truth),
            )
    return {name: tallies[name] for name in map(str, scenes)}


def boundary_counts(
    prediction: NDArray[np.uint8], target: NDArray[np.uint8], n_classes: int, *, width_px: int = BOUNDARY_PX
) -> NDArray[np.int64]:
    """Count the pixels behind boundary IoU (Cheng et al. 2021), class by class.

    A pixel lies on the boundary of its class where another class is within `width_px` of it, diagonally too. Void is no
    class: it has no boundary, where the target is void the prediction counts as void, and neither the border to void
    nor the rim of a patch is a boundary.

    Args:
        prediction: (N, h, w) uint8 class ids.
        target: (N, h, w) uint8, 255 = void.
        n_classes: K.
        width_px: At least 1.

    Returns:
        (K, 2) pixels on the boundary of the class in both masks, and in either.
    """
    if width_px < 1:
        raise ValueError(f"a boundary is at least 1 pixel wide, got {width_px}")
    target = np.asarray(target)
    prediction = np.where(target == VOID, np.uint8(VOID), prediction)
    there, here = (_near_another(mask, width_px) for mask in (target, prediction))
    both = np.bincount(target[there & here & (target == prediction)], minlength=n_classes)
    either = np.bincount(target[there], minlength=n_classes) + np.bincount(prediction[here], minlength=n_classes) - both
    return np.stack([both, either], axis=1)


def calibration_counts(
    confidence: NDArray[np.float32], prediction: NDArray[np.uint8], target: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Count the pixels behind the calibration error (Guo et al. 2017), in bins of equal width.

    Args:
        confidence: Probability of the predicted class, in (0, 1], any shape.
        prediction: Class ids, of the same shape.
        target: Class ids, of the same shape, 255 = void.

    Returns:
        (15, 3) for each bin its valid pixels, the sum of their confidence, and how many of them were predicted right.
    """
    valid = target != VOID
    sure, right = confidence[valid].astype(np.float64), (prediction == target)[valid]
    bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)  # (0, 1/15] is the first
    weights = (None, sure, right.astype(np.float64))
    return np.stack([np.bincount(bins, each, minlength=BINS).astype(np.float64) for each in weights], axis=1)


@torch.no_grad()
def _classified(
    network: nn.Module, patches: PatchSet, precision: str, batch_size: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Yield the most probable class of every pixel of a batch, and its probability."""
    fabric = Fabric(accelerator="auto", devices=1, precision=PRECISIONS[precision])
    network = network.to(fabric.device, memory_format=torch.channels_last).eval()
    for start in range(0, len(patches), batch_size):
        raw = torch.as_tensor(np.ascontiguousarray(patches.images[start : start + batch_size]), device=fabric.device)
        with fabric.autocast():
            logits = network(normalise(raw, patches))
        best, classes = logits.float().softmax(dim=1).max(dim=1)
        yield classes.to("cpu", torch.uint8).numpy(), best.cpu().numpy()


def _near_another(mask: NDArray[np.uint8], width_px: int) -> NDArray[np.bool_]:
    """Find valid pixels of (N, h, w) masks that have a valid pixel of another class within `width_px`."""
    size = (1, 2 * width_px + 1, 2 * width_px + 1)
    valid = mask != VOID  # void is 0 where the greatest id is sought and 255 where the least: it never wins
    greatest = ndimage.maximum_filter(np.where(valid, mask, 0), size, mode="nearest")
    least = ndimage.minimum_filter(mask, size, mode="nearest")
    return valid & ((greatest != mask) | (least != mask))
