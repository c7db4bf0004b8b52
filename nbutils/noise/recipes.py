"""Recipes: operators in a row, at a strength, and the count of what they changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from nbutils.legend import VOID, Legend
from nbutils.noise.fields import Mask, Noisy, check_mask, check_rate
from nbutils.noise.geometry import move_boundaries, shift_mask
from nbutils.noise.objects import omit_objects
from nbutils.noise.pixels import confuse_classes, confusion_matrix


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
        check_mask(mask, legend if isinstance(legend, int) else len(legend))
        noisy = mask
        for step, settings in self.steps:
            noisy = _step(step, noisy, legend, rng, strength, **settings)
        return noisy, noisy != mask

    def strength_for(self, masks: Sequence[Mask], legend: Legend | int, rate: float, seed: int = 0) -> float:
        """Find the strength at which this recipe changes `rate` of the valid pixels of `masks`, by bisection.

        Raises:
            ValueError: no strength up to 16 gets there; the message says how far it gets.
        """
        check_rate(rate)

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
