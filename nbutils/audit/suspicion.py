"""Audit without a single exact label: which pixels and patches look wrong, and do masks lie where their images are.

`rank` asks a network that never saw a patch what it would have said (confident learning, Northcutt et al. 2021, by
cleanlab; for segmentation Lad and Mueller 2023), and `label_shift` correlates the edges of images with the boundaries
of masks. Both point at what to look at; neither measures a noise rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage, signal, special

from nbutils.distance import boundaries as boundaries_of
from nbutils.legend import VOID

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Suspicion:
    """What looks wrong.

    Attributes:
        quality: Label quality per pixel, the held-out probability of the given class, shape (N, H, W) float32 in
            [0, 1]; nan at void.
        suspected: Pixels whose label confident learning takes for an error, shape (N, H, W).
        score: Label quality per patch, shape (N,): the soft minimum over its pixels; nan where all are void.
    """

    quality: NDArray[np.float32] = field(repr=False)
    suspected: NDArray[np.bool_] = field(repr=False)
    score: NDArray[np.float64]

    @property
    def order(self) -> NDArray[np.intp]:
        """Patches with valid pixels, the most suspicious first."""
        return np.argsort(self.score, kind="stable")[: np.count_nonzero(~np.isnan(self.score))]

    @property
    def suspected_share(self) -> float:
        """Share of the valid pixels whose label is suspected; nan without valid pixels."""
        valid = int(np.count_nonzero(~np.isnan(self.quality)))
        return float(self.suspected.sum() / valid) if valid else float("nan")

    def pixels(self, n: int) -> NDArray[np.intp]:
        """Return patch, row and column of the `n` most suspicious valid pixels (or all), shape (n, 3)."""
        if n < 0:
            raise ValueError(f"n is a number of pixels >= 0, got {n}")
        flat = self.quality.ravel()
        n = min(n, int(np.count_nonzero(~np.isnan(flat))))
        worst = np.argpartition(flat, n - 1)[:n] if n else np.empty(0, np.intp)  # nan sorts last
        worst = worst[np.argsort(flat[worst], kind="stable")]
        return np.stack(np.unravel_index(worst, self.quality.shape), axis=1)

    def table(self) -> pd.DataFrame:
        """One row per patch with valid pixels, most suspicious first: patch, score, share of suspected pixels, n."""
        valid = (~np.isnan(self.quality)).sum(axis=(1, 2))
        share = self.suspected.sum(axis=(1, 2)) / np.maximum(valid, 1)
        columns = {"patch": np.arange(len(valid)), "score": self.score, "suspected": share, "n": valid}
        return pd.DataFrame(columns).iloc[self.order].reset_index(drop=True)


def rank(probabilities: NDArray[np.floating], noisy: Mask, *, temperature: float = 0.1) -> Suspicion:
    """Rank pixels and patches by how little a network that did not learn from them believes their labels.

    One patch after the other is read, so `probabilities` may be a memory map.

    Args:
        probabilities: Out-of-fold class probabilities, (N, K, H, W); from `folds.out_of_fold`.
        noisy: Class ids 0..K-1 and 255 = void, (N, H, W) uint8.
        temperature: Of the soft minimum, above 0: towards 0 the worst pixel of a patch decides, with larger ones their
            mean.

    Raises:
        ValueError: shapes do not fit, an id is no class, probabilities are negative or do not sum to 1, or
            `temperature` is not above 0.
    """
    from cleanlab.experimental.label_issues_batched import LabelInspector  # here: its import takes a while
    from cleanlab.segmentation.rank import get_label_quality_scores

    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature is above 0, got {temperature}")
    n, k, *square = probabilities.shape
    if noisy.shape != (n, *square):
        raise ValueError(f"probabilities {probabilities.shape} are of masks {(n, *square)}, got {noisy.shape}")
    inspector = LabelInspector(num_class=k, store_results=False, verbose=False)
    filled = [i for i in range(n) if (noisy[i] != VOID).any()]
    for i in filled:
        inspector.update_confident_thresholds(*_valid(probabilities[i], noisy[i], i))
    quality = np.full(noisy.shape, np.nan, dtype=np.float32)
    unlike = np.zeros(noisy.shape, dtype=bool)
    score = np.full(n, np.nan)
    for i in filled:
        labels, chances = _valid(probabilities[i], noisy[i], i)
        inspector.score_label_quality(labels, chances)  # counts the errors it expects
        # cleanlab knows no void: its valid pixels alone are an image of one row
        found = get_label_quality_scores(
            labels[None, None], chances.T[None, :, None], temperature=temperature, verbose=False
        )
        score[i], quality[i][noisy[i] != VOID] = found[0][0], found[1][0, 0]
        unlike[i][noisy[i] != VOID] = chances.argmax(axis=1) != labels
    found = Suspicion(quality, np.zeros_like(unlike), score)
    worst = found.pixels(int(inspector.get_num_issues()) if filled else 0)
    found.suspected[tuple(worst.T)] = unlike[tuple(worst.T)]
    return found


def _valid(probabilities: NDArray, noisy: Mask, patch: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels (n,) and probabilities (n, K) of a patch's valid pixels."""
    valid = noisy != VOID
    labels, chances = noisy[valid].astype(np.int64), probabilities[:, valid].T.astype(np.float64)
    if labels.max() >= chances.shape[1]:
        raise ValueError(f"patch {patch} holds class {labels.max()}; probabilities are of 0..{chances.shape[1] - 1}")
    if (chances < 0).any():
        raise ValueError(f"patch {patch}: probabilities are at least {chances.min():.3g}, not in [0, 1]; use softmax")
    total = chances.sum(axis=1, keepdims=True)
    if not (abs(total - 1) < 0.02).all():  # half precision is good to 0.001 per class
        raise ValueError(
            f"patch {patch}: probabilities sum to {total.min():.3g}..{total.max():.3g}, not 1; use softmax"
        )
    return labels, chances / total


@dataclass(frozen=True)
class LabelShift:
    """Where masks lie relative to their images.

    Attributes:
        shift_px: Down and right, of masks relative to images; nan without boundaries.
        low, high: 95 % limits of each over patches; nan with fewer than two patches.
        peak: Correlation of boundaries and edges at the shift, in [-1, 1].
        strength: The peak over the best correlation found when masks are turned over, so that they do not belong to
            their images; about 1 where boundaries and edges have nothing to do with one another.
        at_rim: The best shift is the largest looked for: look farther.
        n: Patches with boundaries.
    """

    shift_px: tuple[float, float]
    low: tuple[float, float]
    high: tuple[float, float]
    peak: float
    strength: float
    at_rim: bool
    n: int

    @property
    def means_something(self) -> bool:
        """Whether the correlation is well above chance, its peak within reach and the same in all patches.

        With one patch nothing is known of the last.
        """
        half = np.subtract(self.high, self.low) / 2
        return self.strength >= MIN_STRENGTH and not self.at_rim and not (half > MAX_HALF_PX).any()


MIN_STRENGTH = 1.5  # masks of other scenes reached 1.4 (30 trials of 6 to 20 patches), masks of the same ones 3.8 to 16
MAX_HALF_PX = 2.0
_PARABOLA_PX = 0.03  # how far a parabola puts the peak from its place


def label_shift(
    images: Sequence[NDArray] | NDArray,
    masks: Sequence[Mask] | Mask,
    *,
    max_px: int = 8,
    rng: np.random.Generator,
    n_draws: int = 300,
) -> LabelShift:
    """Estimate how far masks are displaced from their images, without any exact label.

    The class boundaries of every mask are correlated with the gradient magnitude of its image at every displacement
    up to `max_px` (normalised cross-correlation that leaves void out, after Padfield 2012), the correlations are
    averaged over patches, weighted by their boundary pixels, and the peak is interpolated by a parabola. Trees whose
    shadows lie to one side and buildings that lean in the image displace edges too.

    Args:
        images: (N, B, H, W), or a list of (B, H, W) of any sizes above 4 * max_px; finite, at void too.
        masks: Class ids, 255 = void, (N, H, W) or a list of (H, W); uint8.
        max_px: Largest displacement looked for, either way; at least 1.
        rng: Draws patches with replacement for the limits.
        n_draws: How often.

    Raises:
        ValueError: shapes do not fit, an image is too small or not finite, or `max_px` is below 1.
    """
    if len(images) != len(masks):
        raise ValueError(f"{len(images)} images but {len(masks)} masks")
    if max_px < 1:
        raise ValueError(f"max_px is at least 1, got {max_px}")
    found = [_surfaces(image, mask, max_px, i) for i, (image, mask) in enumerate(zip(images, masks, strict=True))]
    found = [(surfaces, weight) for surfaces, weight in found if weight > 0]
    if not found:
        nothing = (float("nan"),) * 2
        return LabelShift(nothing, nothing, nothing, float("nan"), float("nan"), False, 0)
    surfaces = np.stack([surfaces for surfaces, _ in found])  # (n, 1 + 3, D, D): as they lie, and turned over
    weight = np.array([weight for _, weight in found])
    pooled = np.tensordot(weight / weight.sum(), surfaces, axes=1)
    shift, at_rim = _peak(pooled[0])
    by_chance = max(float(pooled[1:].max()), 1e-6)
    peak = float(pooled[0].max())
    low, high = _limits(surfaces[:, 0], weight, shift, rng, n_draws)
    return LabelShift(tuple(shift.tolist()), low, high, peak, peak / by_chance, at_rim, len(found))


def _limits(
    surfaces: NDArray, weight: NDArray, shift: NDArray, rng: np.random.Generator, n_draws: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Student's limits from the spread over draws of patches: percentiles are too narrow with few patches."""
    n = len(weight)
    if n < 2:
        return (float("nan"),) * 2, (float("nan"),) * 2
    often = rng.multinomial(n, np.full(n, 1 / n), size=n_draws) * weight
    drawn = np.tensordot(often / often.sum(axis=1, keepdims=True), surfaces, axes=1)
    spread = np.std([_peak(surface)[0] for surface in drawn], axis=0) * np.sqrt(n / (n - 1))
    half = special.stdtrit(n - 1, 0.975) * np.hypot(spread, _PARABOLA_PX)
    return tuple((shift - half).tolist()), tuple((shift + half).tolist())


def _surfaces(image: NDArray, mask: Mask, reach: int, number: int) -> tuple[NDArray[np.float64], float]:
    """Correlation at every displacement of the mask, (4, 2 reach + 1, 2 reach + 1), and how many boundary pixels."""
    if image.ndim != 3 or image.shape[1:] != mask.shape:
        raise ValueError(f"image {number}: expected (B, {mask.shape[0]}, {mask.shape[1]}), got {image.shape}")
    if min(mask.shape) <= 4 * reach:
        raise ValueError(f"image {number}: {mask.shape} is too small for shifts up to {reach} px; use larger patches")
    if unknown := int(np.count_nonzero(~np.isfinite(image))):
        raise ValueError(f"image {number}: {unknown} values are not finite; fill them and make their mask void")
    valid = ~ndimage.binary_dilation(mask == VOID, iterations=2)
    edges = _edges(image)
    known = edges[valid]
    edges = np.where(valid, edges, known.mean() if known.size else 0)  # what lies at the rim of void says nothing
    boundaries = ndimage.gaussian_filter(boundaries_of(mask).astype(np.float64), 1.0)
    if not (boundaries * valid)[reach:-reach, reach:-reach].any():
        return np.zeros((4, 2 * reach + 1, 2 * reach + 1)), 0.0
    turned = [np.s_[:, :], np.s_[::-1, :], np.s_[:, ::-1], np.s_[::-1, ::-1]]
    pairs = [(boundaries[turn], valid[turn]) for turn in turned]
    surfaces = np.stack([_correlate(edges, *pair, reach) for pair in pairs])
    return surfaces, float((boundaries * valid)[reach:-reach, reach:-reach].sum())


def _edges(image: NDArray) -> NDArray[np.float64]:
    """Gradient magnitude, each band by its own spread, (H, W)."""
    total = np.zeros(image.shape[1:])
    for band in image.astype(np.float64):
        magnitude = ndimage.gaussian_gradient_magnitude(band, 1.0)
        total += magnitude / max(magnitude.std(), 1e-12)
    return total


def _correlate(edges: NDArray, boundaries: NDArray, valid: NDArray, reach: int) -> NDArray[np.float64]:
    """Normalised cross-correlation of the inner part of `boundaries` with `edges`; rows and columns: its shift."""
    inner = np.s_[reach:-reach, reach:-reach]
    weight = valid[inner].astype(np.float64)
    n = max(weight.sum(), 1)
    template = boundaries[inner] * weight
    template = (template - template.sum() / n) * weight
    slide = lambda kernel, over: signal.fftconvolve(over, kernel[::-1, ::-1], mode="valid")  # noqa: E731
    mean = slide(weight, edges) / n
    variance = (slide(weight, edges**2) / n - mean**2).clip(min=0)
    norm = np.sqrt((template**2).sum() * n * variance)
    surface = np.divide(slide(template, edges), norm, out=np.zeros(mean.shape), where=norm > 1e-9)
    return surface[::-1, ::-1]  # boundaries found at -d in the image lie displaced by d


def _peak(surface: NDArray) -> tuple[NDArray[np.float64], bool]:
    """Displacement (down, right) of the highest point, between pixels by a parabola per axis; whether at the rim."""
    reach = len(surface) // 2
    top = np.unravel_index(surface.argmax(), surface.shape)
    place = np.array(top, dtype=np.float64) - reach
    at_rim = any(i in (0, 2 * reach) for i in top)
    for axis in (0, 1):
        line = np.moveaxis(surface, axis, 0)[:, top[1 - axis]]
        i = top[axis]
        if 0 < i < 2 * reach:
            bend = line[i - 1] - 2 * line[i] + line[i + 1]
            place[axis] += 0.5 * (line[i - 1] - line[i + 1]) / bend if bend < 0 else 0
    return place, at_rim
