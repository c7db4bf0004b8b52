"""The planner of an audit: how many pixels or patches to check for an interval of a wanted width.

`sampling.draw` then says which pixels, and `sampling.estimate` what they tell. Whole patches are drawn from a list of
all with `rng.choice(n, size, replace=False)` and told by `examine`, whose intervals are over patches.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from nbutils.audit import sampling

LEAST_EFFECT = 0.1


@dataclass(frozen=True)
class Plan:
    """How much to check for a wanted half-width.

    Attributes:
        half_width: What was wanted, in shares.
        n_pixels: Pixels to check if they are drawn at random over the whole map.
        n_patches: Patches to check, drawn at random; None where no patch size was given.
        pixels_per_patch: Pixels checked in each of them.
        design_effect: Variance over that of as many independent pixels; 1 without patches.
        spacing_px: Distance from which the correlation stays at or below 0.05; inf where the measured curve ends above.
        known_px: Longest distance the correlation is known at; inf where only its 1/e length was given.
    """

    half_width: float
    n_pixels: int
    n_patches: int | None
    pixels_per_patch: int | None
    design_effect: float
    spacing_px: float
    known_px: float = np.inf

    @property
    def advice(self) -> str:
        """The plan in words."""
        wanted = f"for ± {100 * self.half_width:.3g} points"
        words = f"Check {self.n_pixels:,} pixels drawn at random over the whole map {wanted}"
        if self.n_patches is None or self.pixels_per_patch is None:
            return f"{words}."
        checked = self.n_patches * self.pixels_per_patch
        return (
            f"{words}, or {self.n_patches:,} patches drawn at random with {self.pixels_per_patch:,} pixels each "
            f"({checked:,} in all, worth {checked / self.design_effect:,.0f} independent ones: "
            f"design effect {self.design_effect:.3g}). "
            f"Within a patch, {self._spacing_in_words}. Differences between scenes come on top."
        )

    @property
    def _spacing_in_words(self) -> str:
        if np.isinf(self.spacing_px):
            return f"errors stay correlated (above 0.05) over more than {self.known_px:.0f} px"
        return f"pixels {self.spacing_px:.0f} px apart err independently (correlation 0.05 at most)"


def plan(
    half_width: float,
    *,
    rate: float,
    class_share: float = 1.0,
    correlation_px: ArrayLike = 0.0,
    patch_px: int | None = None,
    pixels_per_patch: int | None = None,
    confidence: float = 0.95,
) -> Plan:
    """Say how many pixels or patches give an interval of a wanted half-width.

    Pixels drawn at random over the whole map are independent whatever the correlation of the errors: it is only
    when whole patches are drawn that their pixels repeat one another. Strata of very different rates need fewer.

    Give `Findings.correlogram` as `correlation_px`. The 1/e length alone understates the patches needed several times
    where errors are ragged or long-ranged, as those of real maps are, for it misses how slowly the rest of the
    correlation falls. Scenes that differ in their rates need more patches still; neither knows of them.

    Args:
        half_width: Wanted half-width of the interval, a share in (0, 0.5).
        rate: Guessed noise rate, or entry of the transition matrix; 0.5 is the worst case.
        class_share: Share of the ground the row's class has, for a row of the matrix; 1 for the noise rate.
        correlation_px: Of the errors, as in `design_effect`; best `Findings.correlogram`.
        patch_px: Side of the patches; None to plan pixels only.
        pixels_per_patch: Pixels checked in each, drawn at random within it; all if None.
        confidence: Two-sided, in (0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(
        half_width=(half_width, 0.5), rate=(rate, 1), confidence=(confidence, 1), class_share=(class_share, 1 + 1e-9)
    )
    z = float(special.ndtri(0.5 + confidence / 2))
    n = _least(lambda n: _wilson_half(rate, n, z) <= half_width)
    n_pixels = int(np.ceil(n / class_share))
    correlation = _checked(correlation_px)
    spacing, known = _spacing(correlation), float(len(correlation) - 1) if correlation.ndim else np.inf
    if patch_px is None:
        return Plan(half_width, n_pixels, None, None, 1.0, spacing, known)
    each = patch_px**2 if pixels_per_patch is None else pixels_per_patch
    if not 1 <= each <= patch_px**2:
        raise ValueError(f"pixels_per_patch is 1..{patch_px**2} for patches of {patch_px} px, got {each}")
    deff = design_effect(correlation_px, patch_px, each)

    def enough(patches: int) -> bool:
        size = patches * each * class_share / deff
        t = float(special.stdtrit(max(patches - 1, 1), 0.5 + confidence / 2))  # few patches: the variance is a guess
        return patches > 1 and t * np.sqrt(rate * (1 - rate) / size) <= half_width

    return Plan(half_width, n_pixels, _least(enough), each, deff, spacing, known)


def plan_strata(
    half_width: float,
    sizes: ArrayLike,
    error_rates: ArrayLike,
    *,
    allocation: sampling.Allocation = "neyman",
    confidence: float = 0.95,
) -> NDArray[np.int64]:
    """Say how many pixels of every stratum give the noise rate to a wanted half-width.

    With Neyman's allocation it is Cochran's (1977, 5.25) number, eq. 13 of Olofsson et al. (2014), but for rounding,
    the correction for finite strata and the two pixels that every stratum gets at least.

    Args:
        half_width: Wanted half-width of the interval, a share in (0, 0.5).
        sizes: Pixels in every stratum, shape (L,); e.g. of the map's classes.
        error_rates: Guessed noise rate of every stratum, shape (L,).
        allocation: As in `sampling.draw`; give it the sum of what comes back and the same rates.
        confidence: Two-sided, in (0, 1).

    Returns:
        Pixels to check in every stratum, shape (L,).

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(half_width=(half_width, 0.5), confidence=(confidence, 1))
    sizes, rates = np.asarray(sizes, dtype=np.int64), np.asarray(error_rates, dtype=np.float64)
    if rates.shape != sizes.shape or not ((rates >= 0) & (rates <= 1) | (sizes == 0)).all():
        raise ValueError(f"error_rates are in [0, 1] for each of {sizes.size} strata, got {error_rates}")
    rates = np.where(sizes > 0, rates, 0)
    z = float(special.ndtri(0.5 + confidence / 2))
    fewest, most = int(np.minimum(2, sizes).sum()), int(sizes.sum())
    pixels = sizes.astype(np.float64)  # squares of whole countries do not fit in 64 bits

    def enough(n: int) -> bool:
        n = min(max(n, fewest), most)
        number = sampling.allocate(sizes, n, allocation, rates)
        left = np.divide(pixels - number, pixels * number, out=np.zeros(sizes.shape), where=number > 0)
        return z * np.sqrt(((pixels / most) ** 2 * rates * (1 - rates) * left).sum()) <= half_width

    return sampling.allocate(sizes, min(max(_least(enough), fewest), most), allocation, rates)


def design_effect(correlation_px: ArrayLike, patch_px: int, pixels: int | None = None) -> float:
    """Variance of the share of wrong pixels of a patch, over that of as many independent pixels (Kish 1965).

    The sum runs over all pairs of pixels. The 1/e length alone understates it several times for errors that are ragged
    (the correlation falls fast at first and then slowly) or long-ranged: give the measured curve. Patches whose rates
    differ for other reasons (another scene, another class) have more: that comes on top.

    Args:
        correlation_px: 1/e length of the correlation of the error indicator, which is then taken as exp(-d / length);
            0 for independent pixels. Or, better, the correlation as measured at distances 0, 1, 2, ... px, shape
            (L,), in [-1, 1], taken for 0 beyond: `Findings.correlogram`.
        patch_px: Side of the patch, m.
        pixels: Pixels checked at random in the patch; all m * m if None.

    Returns:
        1 + (pixels - 1) * the mean correlation of two different pixels of a patch; at least 0.1, for a measured curve
        that is negative is mostly chance.

    Raises:
        ValueError: an argument is out of its range.
    """
    correlation_px = _checked(correlation_px)
    if patch_px < 1:
        raise ValueError(f"patch_px is a number of pixels >= 1, got {patch_px}")
    pixels = patch_px**2 if pixels is None else pixels
    if patch_px == 1:
        return 1.0
    lag = np.arange(1 - patch_px, patch_px)
    pairs = np.outer(patch_px - abs(lag), patch_px - abs(lag))  # how many pairs of pixels have this offset
    pairs[patch_px - 1, patch_px - 1] = 0
    correlation = _correlation(correlation_px, np.hypot(lag[:, None], lag))
    return max(float(1 + (pixels - 1) * (pairs * correlation).sum() / pairs.sum()), LEAST_EFFECT)


def _checked(correlation_px: ArrayLike) -> NDArray[np.float64]:
    """A 1/e length or a measured curve, as an array of no or one dimension."""
    found = np.asarray(correlation_px, dtype=np.float64)
    if found.ndim == 0 and not 0 <= found < np.inf:
        raise ValueError(f"correlation_px is a length >= 0 or the correlation at 0, 1, 2, ... px, got {found}")
    if found.ndim and (found.ndim > 1 or not found.size or not (np.abs(found) <= 1 + 1e-6).all()):
        raise ValueError(
            f"correlation_px holds correlations in [-1, 1] at 0, 1, 2, ... px, got shape {found.shape} with values "
            f"{found.min(initial=np.inf):.3g}..{found.max(initial=-np.inf):.3g}; without wrong pixels there is none"
        )
    return found


def _correlation(measured: NDArray[np.float64], distance: NDArray[np.float64]) -> NDArray[np.float64]:
    if measured.ndim:
        return np.interp(distance, np.arange(len(measured)), measured, right=0.0)
    return np.exp(-distance / measured) if measured > 1e-3 else (distance == 0).astype(np.float64)


def _spacing(correlation: NDArray[np.float64]) -> float:
    """Distance from which the correlation stays at or below 0.05; inf where a measured curve ends above."""
    if not correlation.ndim:
        return float(np.log(20) * correlation)
    after = np.flatnonzero(correlation > 0.05).max(initial=-1) + 1
    return float(after) if after < len(correlation) else np.inf


def _check(**values: tuple[float, float]) -> None:
    """Refuse a value that is not above 0 and below its limit."""
    for name, (value, high) in values.items():
        if not 0 < value < high:
            raise ValueError(f"{name} is in (0, {high:g}), got {value}")


def _wilson_half(share: float, n: int, z: float) -> float:
    return z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)


def _least(enough: Callable[[int], bool]) -> int:
    """Smallest positive integer that is enough, where all larger ones are too."""
    high = 1
    while not enough(high):
        high *= 2
    return bisect_left(range(high + 1), True, lo=1, key=enough)
