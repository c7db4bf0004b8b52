"""Whole objects that a map misses."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage import measure

from nbutils.legend import VOID
from nbutils.noise.fields import Mask, Noisy, check_rate, per_image


def omit_objects(
    mask: Mask, rate: float, classes: Sequence[int] | None = None, *, rng: np.random.Generator, max_share: float = 1.0
) -> Noisy:
    """Remove whole objects: the map does not know them; what surrounds an object fills its place.

    An object is a connected area of one class. It is filled with the class most of its neighbouring pixels have.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        rate: Probability that an object is removed, in [0, 1]; the share of changed pixels depends on the sizes.
        classes: Class ids whose objects may be removed; all when left out.
        rng: Source of randomness.
        max_share: Only objects of at most this share of the image are removed: maps miss sheds, not rivers.

    Returns: noisy, changed as `flip_labels`. An object without a neighbour of another class is kept.
    """
    check_rate(rate)
    check_rate(max_share, "max_share")
    if classes is not None and (wrong := [c for c in classes if not 0 <= c < VOID]):
        raise ValueError(f"classes are ids 0..254, got {wrong}")
    return _omit(mask, rate, classes, max_share, rng=rng)


@per_image
def _omit(
    mask: Mask, rate: float, classes: Sequence[int] | None, max_share: float, *, rng: np.random.Generator
) -> Mask:
    objects, n = measure.label(mask, background=VOID, connectivity=1, return_num=True)  # all classes in one pass
    gone = rng.random(n + 1) < rate
    gone[0] = False  # void
    gone &= np.bincount(objects.ravel(), minlength=n + 1) <= max_share * mask.size
    if classes is not None:
        class_of = np.zeros(n + 1, dtype=np.uint8)
        class_of[objects] = mask
        gone &= np.isin(class_of, classes)
    if not gone.any():
        return mask
    fill = _surroundings(mask, objects, gone)[objects]
    return np.where(fill == VOID, mask, fill)


def _surroundings(mask: Mask, objects: NDArray[np.integer], gone: NDArray[np.bool_]) -> Mask:
    """Most frequent class among the 4-neighbours outside each object, per object id; void where kept or alone."""
    size = int(mask[mask != VOID].max(initial=0)) + 1
    votes = np.zeros(len(gone) * size, dtype=np.int64)
    for one, other in ((np.s_[1:, :], np.s_[:-1, :]), (np.s_[:, 1:], np.s_[:, :-1])):
        edge = np.flatnonzero(objects[one] != objects[other])
        for inside, outside in ((one, other), (other, one)):
            ids, near = objects[inside].ravel()[edge], mask[outside].ravel()[edge]
            counted = gone[ids] & (near != VOID)
            votes += np.bincount(ids[counted].astype(np.int64) * size + near[counted], minlength=len(votes))
    votes = votes.reshape(-1, size)
    return np.where(votes.any(axis=1), votes.argmax(axis=1), VOID).astype(np.uint8)
