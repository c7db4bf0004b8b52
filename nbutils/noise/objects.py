"""Whole objects: missed, invented, displaced, turned, or of another date.

An object is a connected area of one class (4-connected). Rates are shares of the objects that may be touched; the
count is rounded up or down at random, so that it is right on average however few there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from skimage import measure

from nbutils.legend import VOID
from nbutils.noise.fields import Mask, Noisy, check_mask, check_pixels, check_rate, per_image, rounded
from nbutils.noise.geometry import draw_vector

Shape = NDArray[np.bool_]
ANY_SIZE = (0.0, float("inf"))


@dataclass(frozen=True)
class Which:
    """Objects an operator may touch: classes (all when None), largest share of the image, pixels at least and most."""

    classes: Sequence[int] | None = None
    max_share: float = 1.0
    size_px: tuple[float, float] = ANY_SIZE

    def __post_init__(self) -> None:
        check_rate(self.max_share, "max_share")
        if self.classes is not None and (wrong := [c for c in self.classes if not 0 <= c < VOID]):
            raise ValueError(f"classes are ids 0..254, got {wrong}")
        if not 0 <= self.size_px[0] <= self.size_px[1]:
            raise ValueError(f"size_px is (least, most) pixels, got {self.size_px}")


@dataclass(frozen=True)
class Objects:
    """The objects of one mask, the id of the object at each pixel (0: none), and the number of pixels by id."""

    mask: Mask
    ids: NDArray[np.integer]
    sizes: NDArray[np.intp]

    @classmethod
    def of(cls, mask: Mask) -> "Objects":
        """Connected areas of one class; void is none."""
        return cls._labelled(mask, mask, VOID)

    @classmethod
    def that_differ(cls, now: Mask, then: Mask, differ: NDArray[np.bool_]) -> "Objects":
        """Connected areas of one change, where two masks differ."""
        return cls._labelled(now, np.where(differ, now * np.int32(256) + then, -1), -1)

    @classmethod
    def _labelled(cls, mask: Mask, kinds: NDArray[np.integer], none: int) -> "Objects":
        ids = measure.label(kinds, background=none, connectivity=1) if mask.size else np.zeros(mask.shape, np.intp)
        return cls(mask, ids, np.bincount(ids.ravel(), minlength=1))

    @property
    def class_of(self) -> Mask:
        """Class by object id; void for id 0."""
        found = np.full(len(self.sizes), VOID, dtype=np.uint8)
        found[self.ids] = self.mask
        found[0] = VOID
        return found

    def some(self, which: Which) -> NDArray[np.intp]:
        """Ids of the objects an operator may touch."""
        fits = (self.sizes <= which.max_share * self.mask.size) & (self.sizes >= which.size_px[0])
        fits &= self.sizes <= which.size_px[1]
        fits[0] = False
        if which.classes is not None:
            fits &= np.isin(self.class_of, which.classes)
        return np.flatnonzero(fits)

    def shapes(self, chosen: NDArray[np.intp]) -> list[tuple[Shape, tuple[int, int], int]]:
        """Each object cut out: its shape, its upper left corner and its class."""
        boxes = ndimage.find_objects(self.ids) if len(chosen) else []
        found = []
        for i in chosen.tolist():
            rows, columns = boxes[i - 1]
            shape = self.ids[rows, columns] == i
            value = self.mask[rows, columns].ravel()[shape.argmax()]
            found.append((shape, (rows.start, columns.start), int(value)))
        return found

    def without(self, chosen: NDArray[np.intp]) -> Mask:
        """The mask in which objects give way to their `surroundings`."""
        if not len(chosen):
            return self.mask.copy()
        gone = np.zeros(len(self.sizes), dtype=bool)
        gone[chosen] = True
        fill = surroundings(self.mask, self.ids, gone)[self.ids]
        return np.where(fill == VOID, self.mask, fill)


def surroundings(mask: Mask, objects: NDArray[np.integer], gone: NDArray[np.bool_]) -> Mask:
    """Class that takes the place of each object that is gone.

    The most frequent class among the 4-neighbours that are kept. Objects that touch none of those are filled after,
    from the ones filled before them, and so on inwards.

    Args:
        mask: Class ids, shape (H, W), uint8.
        objects: Id of the object at each pixel, shape (H, W).
        gone: By object id, whether it is to be filled.

    Returns:
        Class by object id; void for objects that are kept, and for those that not even others connect to a kept one.
    """
    size = int(mask[mask != VOID].max(initial=0)) + 1
    votes, links = np.zeros(len(gone) * size, dtype=np.int64), []
    for one, other in ((np.s_[1:, :], np.s_[:-1, :]), (np.s_[:, 1:], np.s_[:, :-1])):
        edge = np.flatnonzero(objects[one] != objects[other])
        first, second = ((objects[at].ravel()[edge], mask[at].ravel()[edge]) for at in (one, other))
        valid = (first[1] != VOID) & (second[1] != VOID)
        for (ids, _), (beyond, near) in ((first, second), (second, first)):
            counted = gone[ids] & ~gone[beyond] & valid
            votes += np.bincount(ids[counted].astype(np.int64) * size + near[counted], minlength=len(votes))
        both = gone[first[0]] & gone[second[0]] & valid
        links.append(np.stack([first[0][both], second[0][both]]))
    votes = votes.reshape(-1, size)
    fill = np.where(votes.any(axis=1), votes.argmax(axis=1), VOID).astype(np.uint8)
    _fill_inwards(fill, np.concatenate(links, axis=1), size)
    return fill


def _fill_inwards(fill: Mask, links: NDArray[np.integer], size: int) -> None:
    """Fill objects from those filled before them, in place; `links` are pairs of objects, one per pixel they touch."""
    links = np.concatenate([links, links[::-1]], axis=1)
    links = links[:, fill[links[1]] == VOID]
    touch = sparse.csr_array((np.ones(links.shape[1], np.int32), tuple(links)), shape=(len(fill), len(fill)))
    front = np.flatnonzero(fill != VOID)
    while len(front):
        part = touch[front].tocoo()
        still = fill[part.col] == VOID
        source, at, pixels = fill[front[part.row[still]]], part.col[still], part.data[still]
        front, of = np.unique(at, return_inverse=True)
        votes = np.bincount(of * size + source, weights=pixels, minlength=len(front) * size)
        fill[front] = votes.reshape(-1, size).argmax(axis=1)


def _draw(ids: NDArray[np.intp], rate: float, rng: np.random.Generator) -> NDArray[np.intp]:
    """A share of ids; from the same random state, a lower rate draws a part of what a higher one does."""
    count = int(rounded(rate * len(ids), rng))
    return rng.permutation(ids)[:count]


def _paste(mask: Mask, shape: Shape, corner: tuple[int, int], value: int) -> None:
    """Draw a shape into a mask, in place; void and what lies beyond the edge are left out."""
    spans = [(max(0, at), min(size, at + n)) for at, size, n in zip(corner, mask.shape, shape.shape, strict=True)]
    if any(first >= last for first, last in spans):
        return
    part = mask[tuple(slice(*span) for span in spans)]
    inside = shape[tuple(slice(a - at, b - at) for (a, b), at in zip(spans, corner, strict=True))]
    part[inside & (part != VOID)] = value


def omit_objects(
    mask: Mask,
    rate: float,
    classes: Sequence[int] | None = None,
    *,
    rng: np.random.Generator,
    max_share: float = 1.0,
    size_px: tuple[float, float] = ANY_SIZE,
) -> Noisy:
    """Remove whole objects: the map does not know them; what surrounds an object fills its place.

    An object is filled with the class most of its neighbouring pixels have, not counting objects also removed.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        rate: Share of the objects of each image that is removed, in [0, 1].
        classes: Class ids whose objects may be removed; all when left out.
        rng: Source of randomness.
        max_share: Only objects of at most this share of the image are removed: maps miss sheds, not rivers.
        size_px: Least and most pixels of an object that may be removed.

    Returns: noisy, changed as `flip_labels`. Objects that touch nothing but void and one another are kept.
    """
    check_rate(rate)
    return _omit(mask, rate, Which(classes, max_share, size_px), rng=rng)


@per_image
def _omit(mask: Mask, rate: float, which: Which, *, rng: np.random.Generator) -> Mask:
    if rate == 0:
        return mask
    objects = Objects.of(mask)
    return objects.without(_draw(objects.some(which), rate, rng))


def add_objects(
    mask: Mask,
    rate: float,
    classes: Sequence[int] | None = None,
    *,
    rng: np.random.Generator,
    source: Mask | Sequence[Mask] | None = None,
    max_share: float = 0.05,
    size_px: tuple[float, float] = ANY_SIZE,
) -> Noisy:
    """Add objects that are not there: outlines of others, mirrored and turned by right angles, somewhere else.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        rate: Objects added per object there is, in [0, 1]; with `source`, per object of an equal area of that.
        classes: Class ids whose objects may be copied; all when left out.
        rng: Source of randomness.
        source: Masks of the same legend to copy objects from; each image itself when left out. The legend is not
            checked here: classes of the source come out as they are.
        max_share: Only objects of at most this share of their image are copied.
        size_px: Least and most pixels of an object that may be copied.

    Returns: noisy, changed as `flip_labels`. The middle of an added object lies on a pixel of another class.
    """
    check_rate(rate)
    which, stock = Which(classes, max_share, size_px), None
    if source is not None and rate:
        masks = [source] if isinstance(source, np.ndarray) and source.ndim == 2 else list(source)
        for one in masks:
            check_mask(one)
        stock = (sum((_stock(one, which) for one in masks), []), sum(one.size for one in masks))
    return _add(mask, rate, which, stock, rng=rng)


Stock = list[tuple[Shape, tuple[int, int], int]]


def _stock(mask: Mask, which: Which) -> Stock:
    objects = Objects.of(mask)
    return objects.shapes(objects.some(which))


@per_image
def _add(mask: Mask, rate: float, which: Which, stock: tuple[Stock, int] | None, *, rng: np.random.Generator) -> Mask:
    if rate == 0:
        return mask
    if stock is None:
        objects = Objects.of(mask)
        chosen = _draw(objects.some(which), rate, rng)
        shapes = objects.shapes(chosen)
    else:
        there, area = stock
        count = int(rounded(rate * len(there) * mask.size / max(1, area), rng))
        shapes = [there[i] for i in rng.integers(len(there), size=count)] if there else []
    noisy = mask.copy()
    for shape, _, value in shapes:
        shape = np.rot90(shape[:, ::-1] if rng.random() < 0.5 else shape, rng.integers(4))
        for row, column in rng.integers(mask.shape, size=(8, 2)).tolist():  # a few tries, in case most is of its class
            if noisy[row, column] not in (VOID, value):
                _paste(noisy, shape, (row - shape.shape[0] // 2, column - shape.shape[1] // 2), value)
                break
    return noisy


def shift_objects(
    mask: Mask,
    max_px: float,
    rate: float = 1.0,
    classes: Sequence[int] | None = None,
    *,
    rng: np.random.Generator,
    max_share: float = 0.05,
    size_px: tuple[float, float] = ANY_SIZE,
) -> Noisy:
    """Displace objects, each by a vector of its own; what surrounds an object fills the place it left.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        max_px: Longest displacement in pixels; direction and length are drawn evenly, and of a fraction of a pixel
            that share of the objects goes one pixel farther.
        rate: Share of the objects that is displaced.
        classes: Class ids whose objects may be displaced; all when left out.
        rng: Source of randomness.
        max_share: Only objects of at most this share of the image are displaced.
        size_px: Least and most pixels of an object that may be displaced.

    Returns: noisy, changed as `flip_labels`.
    """
    check_rate(rate)
    check_pixels("max_px", max_px)
    return _redraw(mask, rate if max_px else 0.0, Which(classes, max_share, size_px), max_px, 0.0, rng=rng)


def rotate_objects(
    mask: Mask,
    max_degrees: float,
    rate: float = 1.0,
    classes: Sequence[int] | None = None,
    *,
    rng: np.random.Generator,
    max_share: float = 0.05,
    size_px: tuple[float, float] = ANY_SIZE,
) -> Noisy:
    """Turn objects, each about its middle by an angle of its own, up to `max_degrees` either way.

    The other arguments are those of `shift_objects`.
    """
    check_rate(rate)
    check_pixels("max_degrees", max_degrees)
    return _redraw(mask, rate if max_degrees else 0.0, Which(classes, max_share, size_px), 0.0, max_degrees, rng=rng)


@per_image
def _redraw(
    mask: Mask, rate: float, which: Which, max_px: float, max_degrees: float, *, rng: np.random.Generator
) -> Mask:
    """Take objects away, then draw each again, displaced or turned."""
    if rate == 0:
        return mask
    objects = Objects.of(mask)
    chosen = _draw(objects.some(which), rate, rng)
    noisy = objects.without(chosen)
    for shape, corner, value in objects.shapes(chosen):
        down, right = rounded(np.array(draw_vector(max_px, rng)), rng) if max_px else (0, 0)
        turned = _turned(shape, rng.uniform(-max_degrees, max_degrees)) if max_degrees else shape
        grown = [(n - m) // 2 for n, m in zip(turned.shape, shape.shape, strict=True)]
        _paste(noisy, turned, (corner[0] - grown[0] + int(down), corner[1] - grown[1] + int(right)), value)
    return noisy


def _turned(shape: Shape, degrees: float) -> Shape:
    """A shape turned about the middle of its box; the rim lets its outermost pixels turn whole."""
    return ndimage.rotate(np.pad(shape, 1).view(np.uint8), degrees, order=0).view(bool)


def age_map(
    mask: Mask,
    rate: float,
    classes: Sequence[int] | None = None,
    *,
    rng: np.random.Generator,
    earlier: Mask | None = None,
    gone_share: float = 0.4,
    max_share: float = 0.05,
    size_px: tuple[float, float] = ANY_SIZE,
) -> Noisy:
    """Make the map one of another date.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        rate: With `earlier`: share of the areas that changed since which the map shows as they were. Without: objects
            that differ per object there is; they are not on the map yet, or they are on it and since gone.
        classes: Class ids whose objects come and go; all when left out. With `earlier`, classes the areas have now.
        rng: Source of randomness.
        earlier: The exact mask of the other date, of the same shape and legend; the latter is not checked here.
        gone_share: Share of the objects that differ which are since gone, without `earlier`.
        max_share: Only objects (or areas) of at most this share of the image differ.
        size_px: Least and most pixels of an object (or area) that differs.

    Returns: noisy, changed as `flip_labels`.
    """
    check_rate(rate)
    check_rate(gone_share, "gone_share")
    which = Which(classes, max_share, size_px)
    if earlier is None:
        aged, _ = _omit(mask, rate * (1 - gone_share), which, rng=rng)
        aged, _ = _add(aged, rate * gone_share, which, None, rng=rng)
        return aged, aged != mask
    check_mask(mask)
    check_mask(earlier)
    if mask.shape != earlier.shape:
        raise ValueError(f"masks of two dates have one shape, got {mask.shape} and {earlier.shape}")
    pairs = [(mask, earlier)] if mask.ndim == 2 else zip(mask, earlier, strict=True)
    aged = np.array([_restore(now, then, rate, which, rng) for now, then in pairs], np.uint8).reshape(mask.shape)
    return aged, aged != mask


def _restore(now: Mask, then: Mask, rate: float, which: Which, rng: np.random.Generator) -> Mask:
    """Show some of the areas that differ as they were."""
    differ = (now != then) & (now != VOID) & (then != VOID)
    if which.classes is not None:
        differ &= np.isin(now, which.classes)
    areas = Objects.that_differ(now, then, differ)
    back = np.zeros(len(areas.sizes), dtype=bool)
    back[_draw(areas.some(which), rate, rng)] = True
    return np.where(back[areas.ids], then, now)
