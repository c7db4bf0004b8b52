"""Label noise: operators that break an exact mask in the ways maps are wrong, and recipes that combine them.

Every operator takes masks of shape (H, W), or (N, H, W) for N independent ones, and returns the noisy copy and where
it differs. Void (255) stays where it is and never spreads; only classes of the mask's legend come out; the caller
passes the random generator. Strength 0 changes nothing.

Where the operators come from: pixels flipped independently are the textbook noise and the easiest one; removing and
displacing whole objects follows AIO2 (Liu et al., TGRS 2024), which also erodes and dilates object by object, where
`move_boundaries` does both along one smooth field. Confusion between classes in patches is our own stand-in for
what product comparisons report (grass, shrub and bare soil are confused often, water seldom).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special
from skimage import measure

from nbutils.legend import VOID, Legend

Mask = NDArray[np.uint8]
Noisy = tuple[Mask, NDArray[np.bool_]]


def _check_mask(mask: Mask, n_classes: int | None = None) -> None:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8:
        raise TypeError(f"a mask is a uint8 array, got {getattr(mask, 'dtype', type(mask).__name__)}")
    if mask.ndim not in (2, 3):
        raise ValueError(f"a mask is (H, W) or (N, H, W), got shape {mask.shape}")
    if n_classes is None:
        return
    if not 2 <= n_classes < VOID:
        raise ValueError(f"n_classes is 2..254, got {n_classes}")
    if (wrong := (mask >= n_classes) & (mask != VOID)).any():
        ids = ", ".join(map(str, np.unique(mask[wrong])[:5]))
        raise ValueError(
            f"mask holds class ids {ids}; with {n_classes} classes they are 0..{n_classes - 1} or void {VOID}"
        )


def _check_rate(rate: float, name: str = "rate") -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"{name} is a fraction in [0, 1], got {rate}")


def _check_pixels(name: str, value: float) -> None:
    if not (np.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is a number of pixels >= 0, got {value}")


def _per_image(operator: Callable[..., Mask]) -> Callable[..., Noisy]:
    """Let an operator on one (H, W) mask take (N, H, W) too, keep void as it was, and say what changed."""

    @wraps(operator)
    def whole(mask: Mask, *args: Any, **settings: Any) -> Noisy:
        _check_mask(mask)
        if mask.ndim == 3:
            noisy = np.empty_like(mask)
            for i, image in enumerate(mask):
                noisy[i] = operator(image, *args, **settings)
        else:
            noisy = operator(mask, *args, **settings) if mask.size else mask.copy()
        noisy = np.where((mask == VOID) | (noisy == VOID), mask, noisy)  # void neither moves nor spreads
        return noisy, noisy != mask

    return whole


def smooth_field(shape: tuple[int, int], correlation_px: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a smooth random field: normal, mean 0 and variance 1 at every pixel.

    Random numbers on a coarse grid, interpolated with cubic B-splines whose weights are scaled to unit variance.

    Args:
        shape: (H, W) in pixels.
        correlation_px: Distance at which the correlation of two pixels has fallen to about 1/e; 0: independent.
        rng: Source of randomness.
    """
    if correlation_px <= 1:
        return rng.standard_normal(shape, dtype=np.float32)
    spacing = correlation_px / 1.155  # a cubic B-spline is a Gaussian of sigma = spacing / sqrt(3); 1/e at 2 sigma
    weights = [_spline_weights(size, spacing, rng.random()) for size in shape]
    coarse = rng.standard_normal((weights[0].shape[1], weights[1].shape[1]), dtype=np.float32)
    rows = weights[0] @ coarse  # (H, coarse columns)
    return np.ascontiguousarray((weights[1] @ np.ascontiguousarray(rows.T)).T)


def _spline_weights(size: int, spacing: float, phase: float) -> sparse.csr_array:
    """Weights (size, knots) of the four nearest knots per pixel, each row of unit length."""
    at = np.arange(size) / spacing + phase
    first, t = np.floor(at).astype(np.int64), (at - np.floor(at))
    taps = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1)
    taps /= np.linalg.norm(taps, axis=1, keepdims=True)
    columns = first[:, None] + np.arange(4)
    starts = np.arange(0, 4 * size + 1, 4)
    shape = (size, int(first[-1]) + 4)
    return sparse.csr_array((taps.ravel().astype(np.float32), columns.ravel(), starts), shape=shape)


def flip_labels(mask: Mask, rate: float, n_classes: int, *, rng: np.random.Generator) -> Noisy:
    """Replace a share of pixels by another class, each pixel on its own.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8; void is left alone.
        rate: Expected share of valid pixels to change, in [0, 1].
        n_classes: Number of classes K; the new class is drawn evenly from the K - 1 others.
        rng: Source of randomness.

    Returns:
        noisy: Same shape and type.
        changed: True where the class differs.

    Raises:
        TypeError: `mask` is not uint8.
        ValueError: `rate` outside [0, 1], or an id that is neither a class nor void.
    """
    _check_mask(mask, n_classes)
    _check_rate(rate)
    changed = (mask != VOID) & (rng.random(mask.shape, dtype=np.float32) < rate)
    noisy = mask.copy()
    step = rng.integers(1, n_classes, size=int(changed.sum()))  # 1..K-1: never back to itself
    noisy[changed] = (mask[changed] + step) % n_classes
    return noisy, changed


def confuse_classes(
    mask: Mask, matrix: NDArray[np.floating], *, rng: np.random.Generator, correlation_px: float = 0.0
) -> Noisy:
    """Replace classes by others with class-wise probabilities, pixel by pixel or in patches.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8; void is left alone.
        matrix: Shape (K, K); row i holds the probabilities that class i is mapped as class 0 .. K-1, summing to 1.
        rng: Source of randomness.
        correlation_px: Size of the patches in which errors agree (see `smooth_field`); 0: every pixel on its own.
            The rates of the matrix hold in expectation either way; one image strays more from them in patches.

    Returns:
        noisy, changed: as `flip_labels`.

    Raises:
        ValueError: `matrix` is not square, has negative entries or rows that do not sum to 1.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix is (K, K), got {matrix.shape}")
    if (matrix < 0).any() or not np.allclose(matrix.sum(axis=1), 1, atol=1e-6):
        sums = np.round(matrix.sum(axis=1), 4).tolist()
        raise ValueError(f"rows of matrix are probabilities that sum to 1; rows sum to {sums}, least {matrix.min():g}")
    _check_mask(mask, len(matrix))
    _check_pixels("correlation_px", correlation_px)
    images = mask[None] if mask.ndim == 2 else mask
    noisy = np.stack([_confuse(image, matrix, rng, correlation_px) for image in images]) if images.size else images
    return (noisy := noisy.reshape(mask.shape)), noisy != mask


def _confuse(mask: Mask, matrix: NDArray, rng: np.random.Generator, correlation_px: float) -> Mask:
    """Two independent fields: the first says where a class is lost, the second what it becomes."""
    lost = np.zeros(256, dtype=np.float32)
    lost[: len(matrix)] = 1 - np.diagonal(matrix)
    if correlation_px > 0:
        first = smooth_field(mask.shape, correlation_px, rng)
        threshold = special.ndtri(lost.astype(np.float64)).astype(np.float32)  # -inf at 0: never
        changed = first < threshold[mask]
        second = special.ndtr(smooth_field(mask.shape, 2 * correlation_px, rng)[changed])
    else:
        changed = rng.random(mask.shape, dtype=np.float32) < lost[mask]
        second = rng.random(int(changed.sum()))
    others = matrix * (1 - np.eye(len(matrix)))
    total = others.sum(axis=1, keepdims=True)
    steps = np.cumsum(others / np.where(total > 0, total, 1), axis=1)
    noisy, before = mask.copy(), mask[changed]
    after = before.copy()
    for i in np.flatnonzero(total[:, 0] > 0):
        here = before == i
        last = np.flatnonzero(others[i])[-1]  # rounding in the sum must not reach a class of probability 0
        after[here] = np.minimum(np.searchsorted(steps[i], second[here], side="right"), last)
    noisy[changed] = after
    return noisy


def shift_mask(mask: Mask, max_px: float, *, rng: np.random.Generator) -> Noisy:
    """Displace the whole mask by one vector per image: misregistration.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        max_px: Longest displacement in pixels; direction and length are uniform, rounded to whole pixels.
        rng: Source of randomness.

    Returns: noisy, changed as `flip_labels`; the edge is replicated, and what void would cover keeps its class.
    """
    _check_pixels("max_px", max_px)
    return _shift(mask, max_px, rng=rng)


@_per_image
def _shift(mask: Mask, max_px: float, *, rng: np.random.Generator) -> Mask:
    angle, length = rng.random() * 2 * np.pi, rng.random() * max_px
    down, right = round(length * np.sin(angle)), round(length * np.cos(angle))
    rows = np.clip(np.arange(mask.shape[0]) - down, 0, mask.shape[0] - 1)
    columns = np.clip(np.arange(mask.shape[1]) - right, 0, mask.shape[1] - 1)
    return mask[rows[:, None], columns]


def move_boundaries(
    mask: Mask, distance_px: float, *, rng: np.random.Generator, correlation_px: float | None = None
) -> Noisy:
    """Move boundaries by a smooth random field: objects are eroded here and dilated there, corners go round.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        distance_px: Standard deviation of the displacement across a boundary, in pixels.
        rng: Source of randomness.
        correlation_px: Length over which the displacement changes; 4 x `distance_px` (at least 8) when left out.

    Returns: noisy, changed as `flip_labels`; the edge is replicated, and what void would cover keeps its class.
    """
    _check_pixels("distance_px", distance_px)
    length = max(8.0, 4 * distance_px) if correlation_px is None else correlation_px
    _check_pixels("correlation_px", length)
    return _move(mask, distance_px, length, rng=rng)


@_per_image
def _move(mask: Mask, distance_px: float, correlation_px: float, *, rng: np.random.Generator) -> Mask:
    height, width = mask.shape
    at = []
    for axis, size in enumerate(mask.shape):
        field = smooth_field(mask.shape, correlation_px, rng)
        field *= distance_px
        field += np.arange(size, dtype=np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
        at.append(np.clip(np.rint(field, out=field), 0, size - 1, out=field).astype(np.intp))
    flat = at[0]
    flat *= width
    flat += at[1]
    return mask.ravel().take(flat)


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
    _check_rate(rate)
    _check_rate(max_share, "max_share")
    if classes is not None and (wrong := [c for c in classes if not 0 <= c < VOID]):
        raise ValueError(f"classes are ids 0..254, got {wrong}")
    return _omit(mask, rate, classes, max_share, rng=rng)


@_per_image
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


CONFUSED_PAIRS: tuple[tuple[str, str, float], ...] = (
    *(("land", "vegetation", 3.0), ("land", "road", 2.0), ("land", "building", 1.0)),
    *(("building", "road", 1.0), ("land", "water", 0.3)),
    *(("tree canopy", "grass/shrub", 3.0), ("grass/shrub", "bare soil", 3.0), ("water", "bare soil", 0.3)),
    *(("roads", "other impervious", 3.0), ("buildings", "other impervious", 2.0), ("bare soil", "railroads", 1.0)),
    *(("railroads", "other impervious", 3.0), ("bare soil", "other impervious", 2.0)),
)
"""Pairs of classes a map mixes up, with weights: what looks alike from above. Our choice, not a measurement."""


def confusion_matrix(legend: Legend | int, rate: float) -> NDArray[np.float64]:
    """Make a matrix for `confuse_classes` in which every class is lost at the same rate, to classes alike.

    Args:
        legend: A legend whose names occur in `CONFUSED_PAIRS`; a class of no pair, or a mere number of classes,
            loses to all others evenly.
        rate: Probability that a pixel's class is lost, in [0, 1].

    Returns: Matrix (K, K), rows sum to 1, diagonal 1 - rate.
    """
    _check_rate(rate)
    k = legend if isinstance(legend, int) else len(legend)
    weights = np.zeros((k, k))
    for a, b, weight in () if isinstance(legend, int) else CONFUSED_PAIRS:
        if a in legend.names and b in legend.names:
            i, j = legend.index(a), legend.index(b)
            weights[i, j] = weights[j, i] = weight
    alone = ~weights.any(axis=1)
    weights[alone] = 1
    np.fill_diagonal(weights, 0)
    return rate * weights / weights.sum(axis=1, keepdims=True) + (1 - rate) * np.eye(k)


@dataclass(frozen=True)
class Report:
    """How much of a mask changed: asked and achieved share, and the counts behind."""

    asked: float | None
    achieved: float
    changed: int
    valid: int

    def __str__(self) -> str:
        asked = "" if self.asked is None else f"asked {self.asked:.1%}, "
        return f"{asked}achieved {self.achieved:.1%} ({self.changed} of {self.valid} valid pixels)"


def report(mask: Mask, noisy: Mask, asked: float | None = None) -> Report:
    """Count what changed; pixels void in either mask do not count, and no valid pixel at all gives nan."""
    if mask.shape != noisy.shape:
        raise ValueError(f"masks differ in shape: {mask.shape} and {noisy.shape}")
    valid = (mask != VOID) & (noisy != VOID)
    n, changed = int(valid.sum()), int(((mask != noisy) & valid).sum())
    return Report(asked, changed / n if n else float("nan"), changed, n)


def _step(step: str, mask: Mask, legend: Legend | int, rng: np.random.Generator, strength: float, **at: Any) -> Mask:
    """Apply one recipe step with its rate or distance times `strength`."""
    if step == "omit":
        return omit_objects(mask, min(1.0, at.pop("rate") * strength), rng=rng, **at)[0]
    if step == "shift":
        return shift_mask(mask, at.pop("max_px") * strength, rng=rng, **at)[0]
    if step == "move":
        return move_boundaries(mask, at.pop("distance_px") * strength, rng=rng, **at)[0]
    matrix = confusion_matrix(legend, min(1.0, at.pop("rate") * strength))
    return confuse_classes(mask, matrix, rng=rng, **at)[0]


STEPS = ("omit", "shift", "move", "confuse")


@dataclass(frozen=True)
class Recipe:
    """A named sequence of noise steps: (operator, settings) pairs, applied in order."""

    name: str
    about: str
    steps: tuple[tuple[str, Mapping[str, float]], ...]

    def __post_init__(self) -> None:
        if unknown := [step for step, _ in self.steps if step not in STEPS]:
            raise ValueError(f"recipe {self.name!r}: unknown step(s) {unknown}; known are {', '.join(STEPS)}")
        object.__setattr__(self, "steps", tuple((s, MappingProxyType(dict(v))) for s, v in self.steps))

    def apply(self, mask: Mask, legend: Legend | int, rng: np.random.Generator, strength: float = 1.0) -> Noisy:
        """Break a mask.

        Args:
            mask: Class ids, shape (H, W) or (N, H, W), uint8.
            legend: The mask's legend, or its number of classes.
            rng: Source of randomness.
            strength: Factor on every rate and distance; 0 changes nothing.

        Returns:
            noisy, changed: as `flip_labels`.
        """
        if not (np.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength is a factor >= 0, got {strength}")
        _check_mask(mask, legend if isinstance(legend, int) else len(legend))
        noisy = mask
        for step, settings in self.steps:
            noisy = _step(step, noisy, legend, rng, strength, **settings)
        return noisy, noisy != mask

    def strength_for(self, masks: Sequence[Mask], legend: Legend | int, rate: float, seed: int = 0) -> float:
        """Find the strength at which this recipe changes `rate` of the valid pixels of `masks`, by bisection.

        Raises:
            ValueError: no strength up to 16 gets there; the message says how far it gets.
        """
        _check_rate(rate)

        def achieved(strength: float) -> float:
            done = [report(m, self.apply(m, legend, np.random.default_rng(seed), strength)[0]) for m in masks]
            return sum(d.changed for d in done) / max(1, sum(d.valid for d in done))

        low, high = 0.0, 1.0
        while (most := achieved(high)) < rate:
            if high >= 16:
                raise ValueError(
                    f"recipe {self.name!r} changes at most {most:.1%} of these masks, asked for {rate:.1%}"
                )
            low, high = high, 2 * high
        while high - low > max(0.02 * high, 1e-3):
            middle = (low + high) / 2
            low, high = (middle, high) if achieved(middle) < rate else (low, middle)
        return (low + high) / 2


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "map-like",
            "small objects missing, everything a little off, boundaries drawn loosely, look-alikes mixed up in patches",
            (
                ("omit", {"rate": 0.3, "max_share": 0.02}),
                ("move", {"distance_px": 5.0}),
                ("confuse", {"rate": 0.10, "correlation_px": 40.0}),
                ("shift", {"max_px": 6.0}),
            ),
        ),
        Recipe("incomplete", "an old map: many objects are missing", (("omit", {"rate": 0.7, "max_share": 0.05}),)),
        Recipe(
            "misregistered",
            "a map laid on the image with an offset and a slight bend",
            (("shift", {"max_px": 16.0}), ("move", {"distance_px": 3.0})),
        ),
    )
}
