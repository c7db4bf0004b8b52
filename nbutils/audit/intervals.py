"""Intervals over images of ratios of sums."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special


@dataclass(frozen=True)
class Estimate:
    """Ratios of sums over N images.

    Args:
        part: Numerators per image, (N, R).
        whole: Denominators per image, (N, R), >= 0.
    """

    part: NDArray[np.float64]
    whole: NDArray[np.float64]


def ratio_intervals(
    estimate: Estimate, share: NDArray[np.bool_], drawn: NDArray[np.float64], confidence: float
) -> NDArray[np.float64]:
    """Percentile."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = (drawn @ estimate.part) / (drawn @ estimate.whole)
    enough = (estimate.whole > 0).sum(axis=0) >= 2
    limits = np.full((estimate.part.shape[1], 2), np.nan)
    if enough.any():
        limits[enough] = np.nanquantile(rates[:, enough], [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0).T
    return limits


def spread_interval(value: float, drawn: NDArray[np.float64], n: int, confidence: float) -> tuple[float, float]:
    """Interval of a positive number from its spread over draws of images, on the scale of logarithms."""
    logs = np.log(drawn[np.isfinite(drawn) & (drawn > 0)])
    if n < 2 or len(logs) < 2 or not value > 0:
        return np.nan, np.nan
    half = float(special.stdtrit(n - 1, 0.5 + confidence / 2) * logs.std() * np.sqrt(n / (n - 1)))
    return value * np.exp(-half), value * np.exp(half)
