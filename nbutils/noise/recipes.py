"""Recipes: operators in a row, at a strength or to a rate, and the count of what they changed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from types import MappingProxyType
from typing import Any

import numpy as np

from nbutils.legend import VOID, Legend
from nbutils.noise import geometry, objects, pixels
from nbutils.noise.fields import Mask, Noisy, check_mask, check_rate, lowest, rounded, smooth_field
from nbutils.noise.pairs import CONFUSED_PAIRS, HEIGHT_PAIRS, STANDING, THINGS, Pairs

UNDONE_PX = 24.0  # size of the patches in which a surplus of errors is undone
MOST_STRENGTH = 256.0


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


# ----------------------------------------------------------------------------------------------- steps are data


def confuse_alike(
    mask: Mask,
    rate: float,
    legend: Legend | int,
    *,
    rng: np.random.Generator,
    correlation_px: float = 0.0,
    edge_px: float | None = None,
    pairs: Pairs = CONFUSED_PAIRS,
) -> Noisy:
    """Confuse classes by `confusion_matrix`; see there and `confuse_classes` for the arguments."""
    matrix = pixels.confusion_matrix(legend, rate, pairs)
    return pixels.confuse_classes(mask, matrix, rng=rng, correlation_px=correlation_px, edge_px=edge_px)


@dataclass(frozen=True)
class Step:
    """An operator as a step of a recipe, and what strength does to its settings.

    Args:
        operator: Called with the mask, the settings, `rng`, and `legend`, `n_classes` and `gsd_m` where it has them.
        rates: Settings that are shares: times the strength, at most 1.
        lengths: Settings times the strength; of a mapping, its values.
        blocks: Settings that are 1 at strength 0: what exceeds 1 goes times the strength.
    """

    operator: Callable[..., Noisy]
    rates: tuple[str, ...] = ()
    lengths: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()

    def settings(self) -> list[str]:
        """Names of the settings it takes."""
        return [name for name in signature(self.operator).parameters if name not in ("mask", "rng", *_GIVEN)]

    def at(self, settings: Mapping[str, Any], strength: float) -> dict[str, Any]:
        """Settings at a strength."""
        scaled = dict(settings)
        for name in scaled.keys() & {*self.rates}:
            scaled[name] = min(1.0, scaled[name] * strength)
        for name in scaled.keys() & {*self.lengths}:
            value = scaled[name]
            whole = isinstance(value, Mapping)
            scaled[name] = {key: px * strength for key, px in value.items()} if whole else value * strength
        for name in scaled.keys() & {*self.blocks}:
            scaled[name] = 1 + (scaled[name] - 1) * strength
        return scaled


_GIVEN: dict[str, Callable[[Legend | int, float], Any]] = {
    "legend": lambda legend, gsd_m: legend,
    "n_classes": lambda legend, gsd_m: legend if isinstance(legend, int) else len(legend),
    "gsd_m": lambda legend, gsd_m: gsd_m,
}


def _ids(classes: Any, legend: Legend | int) -> Any:
    """Names of classes as ids of a legend, those it has; without names to compare with, all classes (None)."""
    classes = [classes] if isinstance(classes, str) else classes
    if not isinstance(classes, Mapping | Sequence) or not any(isinstance(one, str) for one in classes):
        return classes
    whole = isinstance(classes, Mapping)
    if isinstance(legend, int) and not whole:
        return None
    names = () if isinstance(legend, int) else legend.names
    known = [one for one in classes if one in names or not isinstance(one, str)]
    ids = [names.index(one) if isinstance(one, str) else one for one in known]
    return dict(zip(ids, map(classes.get, known), strict=True)) if whole else ids


def _pair(rate: float | Sequence[float]) -> tuple[float, float]:
    """A rate, or the least and the most of it, as least and most."""
    pair = [float(one) for one in np.ravel(rate)]
    if len(pair) not in (1, 2) or pair[0] > pair[-1]:
        raise ValueError(f"rate is a fraction, or (least, most) with least <= most, got {rate}")
    for one in pair:
        check_rate(one)
    return pair[0], pair[-1]


STEPS: Mapping[str, Step] = MappingProxyType(
    {
        "flip": Step(pixels.flip_labels, rates=("rate",)),
        "confuse": Step(confuse_alike, rates=("rate",)),
        "omit": Step(objects.omit_objects, rates=("rate",)),
        "add": Step(objects.add_objects, rates=("rate",)),
        "age": Step(objects.age_map, rates=("rate",)),
        "shift objects": Step(objects.shift_objects, lengths=("max_px",)),
        "rotate objects": Step(objects.rotate_objects, lengths=("max_degrees",)),
        "shift": Step(geometry.shift_mask, lengths=("max_px",)),
        "rotate": Step(geometry.rotate_mask, lengths=("max_degrees",)),
        "move": Step(geometry.move_boundaries, lengths=("distance_px", "correlation_px")),
        "resize": Step(geometry.resize_classes, lengths=("distance_px",)),
        "simplify": Step(geometry.simplify_outlines, lengths=("tolerance_m",)),
        "coarsen": Step(geometry.coarsen, lengths=("least_px",), blocks=("block_px",)),
    }
)


@dataclass(frozen=True)
class Recipe:
    """A named sequence of noise steps: (name in `STEPS`, settings) pairs, applied in order; `a + b` puts b after a."""

    name: str
    about: str
    steps: tuple[tuple[str, Mapping[str, Any]], ...]

    def __post_init__(self) -> None:
        if unknown := [step for step, _ in self.steps if step not in STEPS]:
            raise ValueError(f"recipe {self.name!r}: unknown step(s) {unknown}; known are {', '.join(STEPS)}")
        for step, settings in self.steps:
            if wrong := [name for name in settings if name not in STEPS[step].settings()]:
                known = ", ".join(STEPS[step].settings())
                raise ValueError(f"recipe {self.name!r}: step {step!r} has no setting(s) {wrong}; it has {known}")
        object.__setattr__(self, "steps", tuple((s, MappingProxyType(dict(v))) for s, v in self.steps))

    def __add__(self, other: "Recipe") -> "Recipe":
        return Recipe(f"{self.name} + {other.name}", f"{self.about}; {other.about}", self.steps + other.steps)

    def scaled(self, strength: float, name: str | None = None) -> "Recipe":
        """The recipe whose strength 1 is `strength` of this one."""
        _check_strength(strength)
        steps = tuple((step, STEPS[step].at(settings, strength)) for step, settings in self.steps)
        return Recipe(name or self.name, self.about, steps)

    def apply(
        self,
        mask: Mask,
        legend: Legend | int,
        rng: np.random.Generator,
        strength: float = 1.0,
        *,
        rate: float | Sequence[float] | None = None,
        gsd_m: float = 1.0,
    ) -> Noisy:
        """Break a mask.

        Args:
            mask: Class ids, shape (H, W) or (N, H, W), uint8.
            legend: The mask's legend, or its number of classes. Classes a step names that the legend lacks are left
                out, and a step left with none is skipped. To a mere number names say nothing: a step that names
                the classes it may touch then touches all, and one with a distance for each name is skipped.
            rng: Source of randomness.
            strength: Factor on every rate and distance; 0 changes nothing. With `rate`, where the search for it begins.
            rate: Share of valid pixels to change in each image, or (least, most), from which each image draws its own
                evenly, as AIO2 does. The least strength that changes so many is searched for, and what is too much is
                undone in smooth patches. A rate the recipe cannot reach, such as missing objects where there are
                none, is missed; `report` tells by how much.
            gsd_m: Size of a pixel in metres, for settings in metres.

        Returns:
            noisy, changed: as `flip_labels`; plain arrays, also of a mask mapped from a file.

        Raises:
            ValueError: a class beyond the legend, in the mask or in one a step copies from; a rate that is no fraction.
        """
        _check_strength(strength)
        n_classes = legend if isinstance(legend, int) else len(legend)
        check_mask(mask, n_classes)
        self._check_sources(n_classes)
        mask = np.asarray(mask)
        if rate is None:
            noisy = self._run(mask, legend, rng, strength, gsd_m)
            noisy = mask.copy() if noisy is mask else noisy
            return noisy, noisy != mask
        rates = _pair(rate)
        images = mask[None] if mask.ndim == 2 else mask
        noisy = np.empty_like(images)
        for i, image in enumerate(images):
            asked = rng.uniform(*rates)
            noisy[i] = self._reach(image, legend, rng, asked, strength or 1.0, gsd_m)
        return (noisy := noisy.reshape(mask.shape)), noisy != mask

    def _check_sources(self, n_classes: int) -> None:
        """Refuse classes beyond the legend in masks that steps copy from."""
        for step, settings in self.steps:
            for key in ("source", "earlier"):
                given = settings.get(key)
                for one in () if given is None else [given] if isinstance(given, np.ndarray) else given:
                    try:
                        check_mask(one, n_classes)
                    except (TypeError, ValueError) as error:
                        raise type(error)(f"recipe {self.name!r}: {key} of step {step!r}: {error}") from None

    def _run(self, mask: Mask, legend: Legend | int, rng: np.random.Generator, strength: float, gsd_m: float) -> Mask:
        for name, settings in self.steps:
            step = STEPS[name]
            takes = signature(step.operator).parameters
            given = {key: get(legend, gsd_m) for key, get in _GIVEN.items() if key in takes}
            scaled = step.at(settings, strength)
            meant = {key: _ids(scaled[key], legend) for key in ("classes", "distance_px") if key in scaled}
            if any(isinstance(ids, Mapping | Sequence) and not ids for ids in meant.values()):
                continue
            scaled |= meant
            mask, _ = step.operator(mask, rng=rng, **given, **scaled)
        return mask

    def _reach(
        self, mask: Mask, legend: Legend | int, rng: np.random.Generator, rate: float, strength: float, gsd_m: float
    ) -> Mask:
        """Change exactly `rate` of the valid pixels of one image, or as nearly as the recipe can."""
        wanted = int(rounded(rate * np.count_nonzero(mask != VOID), rng))
        if not wanted:
            return mask
        seed = int(rng.integers(1 << 63))

        def attempt(at: float) -> tuple[int, Mask]:
            noisy = self._run(mask, legend, np.random.default_rng(seed), at, gsd_m)
            return int(np.count_nonzero(noisy != mask)), noisy

        changed, noisy = _least_enough(attempt, wanted, strength)
        if changed <= wanted:
            return noisy
        kept, surplus = (noisy == mask).view(np.uint8), changed - wanted
        field = smooth_field(mask.shape, UNDONE_PX, rng)
        (undone,) = lowest(field, kept, np.array([surplus]), np.array([changed]))
        noisy = noisy.copy()
        noisy.ravel()[undone] = mask.ravel()[undone]
        return noisy

    def strength_for(
        self, masks: Sequence[Mask], legend: Legend | int, rate: float, seed: int = 0, *, gsd_m: float = 1.0
    ) -> float:
        """Find the strength at which this recipe changes `rate` of the valid pixels of `masks`, by bisection.

        Raises:
            ValueError: no strength up to 16 gets there; the message says how far it gets.
        """
        check_rate(rate)

        def achieved(strength: float) -> float:
            tries = (self.apply(m, legend, np.random.default_rng(seed), strength, gsd_m=gsd_m)[0] for m in masks)
            done = [report(m, noisy) for m, noisy in zip(masks, tries, strict=True)]
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


def _check_strength(strength: float) -> None:
    if not (np.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength is a factor >= 0, got {strength}")


def _least_enough(attempt: Callable[[float], tuple[int, Mask]], wanted: int, strength: float) -> tuple[int, Mask]:
    """The attempt of about the least strength that changes as many pixels as wanted, else the one that changes most."""
    low, best, idle = 0.0, attempt(strength), 0
    while best[0] < wanted and strength < MOST_STRENGTH and idle < 3:
        low, strength = strength, 2 * strength
        more = attempt(strength)
        idle = 0 if more[0] > best[0] else idle + 1
        best = max(best, more, key=lambda one: one[0])
    while best[0] > 1.03 * wanted + 4 and strength - low > 0.01 * strength:
        middle = (low + strength) / 2
        tried = attempt(middle)
        low, strength, best = (middle, strength, best) if tried[0] < wanted else (low, middle, tried)
    return best


# ----------------------------------------------------------------------------------------------- those with a name

GRADES: Mapping[str, float] = MappingProxyType({"easy": 0.5, "medium": 1.0, "hard": 2.0})
"""Strength of each grade; a recipe's plain name is its medium."""

_MEDIUM = (
    Recipe(
        "map-like",
        "things missing, each and all a little off, outlines drawn loosely, look-alikes mixed up in patches",
        (
            ("omit", {"rate": 0.3, "classes": THINGS, "max_share": 0.02}),
            ("shift objects", {"max_px": 2.0, "classes": STANDING, "max_share": 0.02}),
            ("move", {"distance_px": 2.0, "correlation_px": 16.0}),
            ("simplify", {"tolerance_m": 1.5}),
            ("confuse", {"rate": 0.10, "correlation_px": 30.0}),
            ("shift", {"max_px": 5.0}),
        ),
    ),
    Recipe(
        "product-like",
        "a land cover product: coarse blocks, small areas merged, look-alikes mixed up over whole neighbourhoods",
        (
            ("confuse", {"rate": 0.12, "correlation_px": 50.0}),
            ("shift", {"max_px": 3.0}),
            ("coarsen", {"block_px": 6.0, "least_px": 150.0}),
        ),
    ),
    Recipe(
        "lidar-like",
        "labels by rules on LiDAR returns: small objects missed, ragged outlines, trees taken for buildings, speckle",
        (
            ("omit", {"rate": 0.4, "classes": THINGS, "size_px": (0.0, 60.0)}),
            ("move", {"distance_px": 0.9, "correlation_px": 4.0}),
            ("confuse", {"rate": 0.12, "correlation_px": 5.0, "edge_px": 4.0, "pairs": HEIGHT_PAIRS}),
            ("confuse", {"rate": 0.015, "correlation_px": 1.5, "pairs": HEIGHT_PAIRS}),
        ),
    ),
    Recipe(
        "incomplete",
        "an old map: many things are missing",
        (("omit", {"rate": 0.45, "classes": THINGS, "max_share": 0.05}),),
    ),
    Recipe(
        "misregistered",
        "a map laid on the image with an offset, a slight turn and a slight bend",
        (
            ("shift", {"max_px": 12.0}),
            ("rotate", {"max_degrees": 0.5}),
            ("move", {"distance_px": 2.0, "correlation_px": 60.0}),
        ),
    ),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _MEDIUM} | {
    f"{recipe.name}-{grade}": recipe.scaled(strength, f"{recipe.name}-{grade}")
    for recipe in _MEDIUM
    for grade, strength in GRADES.items()
    if strength != 1
}
