"""Agreement of a noisy map with exact masks of the same ground.

One number, the noise rate, hides what matters for training: which classes are taken for which, and where. The
confusion matrix answers the first, the boundary profile the second. Void in either mask never counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import special

from nbutils.audit.intervals import share_intervals
from nbutils.distance import boundary_distance
from nbutils.legend import VOID

Mask = NDArray[np.uint8]
STRIP_PX = 1 << 18  # pixels compared at a time; their pairs stay in a core's cache


@dataclass(frozen=True)
class Audit:
    """Agreement of a noisy map with exact masks.

    Args:
        confusion: Pixel counts, shape (K, K); rows are exact classes, columns noisy ones.
        per_image: The same for every image, shape (N, K, K), for intervals over images.
    """

    confusion: NDArray[np.int64]
    per_image: NDArray[np.int64] = field(repr=False)

    @property
    def n_valid(self) -> int:
        """Pixels that are valid in both masks."""
        return int(self.confusion.sum())

    @property
    def rate(self) -> float:
        """Noise rate: share of valid pixels whose class is wrong; nan without valid pixels."""
        return _ratio(self.n_valid - np.trace(self.confusion), self.n_valid)

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement beyond what the maps' class shares give by chance, at most 1, 0 by chance.

        nan without valid pixels, and where both maps hold one and the same class.
        """
        n = float(self.n_valid)
        given, true = (self.confusion.sum(axis=axis).astype(np.float64) for axis in (0, 1))
        by_chance = float(given @ true) / n**2 if n else 1.0
        return _ratio(1 - self.rate - by_chance, 1 - by_chance)

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union per class, shape (K,); nan for a class in neither map."""
        both = np.diagonal(self.confusion)
        return _ratios(both, self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - both)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur in either map."""
        iou = self.iou[~np.isnan(self.iou)]
        return float(iou.mean()) if len(iou) else float("nan")

    @property
    def omission(self) -> NDArray[np.float64]:
        """Share of a class's exact pixels that the noisy map gives to others, shape (K,); nan: no such pixel."""
        exact = self.confusion.sum(axis=1)
        return _ratios(exact - np.diagonal(self.confusion), exact)

    @property
    def commission(self) -> NDArray[np.float64]:
        """Share of a class's noisy pixels that belong to others, shape (K,); nan: no such pixel."""
        noisy = self.confusion.sum(axis=0)
        return _ratios(noisy - np.diagonal(self.confusion), noisy)

    @property
    def transition(self) -> NDArray[np.float64]:
        """P(noisy class | exact class), shape (K, K), rows sum to 1; nan rows for classes without exact pixels."""
        return _ratios(self.confusion, self.confusion.sum(axis=1, keepdims=True))

    def interval(
        self, *, rng: np.random.Generator, confidence: float = 0.95, n_draws: int = 1000
    ) -> tuple[float, float]:
        """Interval of the noise rate over images (see `intervals.share_intervals`).

        Pixels of one image err together, so images are the independent units; with fewer than two images that
        have valid pixels nothing can be told and the interval is [nan, nan].
        """
        valid = self.per_image.sum(axis=(1, 2))
        bears = valid > 0
        wrong, valid = (valid - np.trace(self.per_image, axis1=1, axis2=2))[bears, None], valid[bears, None]
        n = max(len(valid), 1)
        drawn = rng.multinomial(len(valid), np.full(n, 1 / n), size=n_draws)[:, : len(valid)]
        low, high = share_intervals(*(a.astype(np.float64) for a in (wrong, valid, drawn)), confidence)[0]
        return float(low), float(high)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _ratios(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _images(noisy: Mask | Sequence[Mask], exact: Mask | Sequence[Mask]) -> list[tuple[Mask, Mask]]:
    """Pairs of (H, W) masks from a mask, a stack or a list of masks of any sizes."""
    pair = [[m] if isinstance(m, np.ndarray) and m.ndim == 2 else list(m) for m in (noisy, exact)]
    if len(pair[0]) != len(pair[1]):
        raise ValueError(f"{len(pair[0])} noisy masks but {len(pair[1])} exact ones")
    for i, (a, b) in enumerate(zip(*pair, strict=True)):
        if a.shape != b.shape or a.ndim != 2:
            raise ValueError(f"image {i}: noisy mask {a.shape} and exact mask {b.shape} must be one (H, W)")
        if a.dtype != np.uint8 or b.dtype != np.uint8:
            raise TypeError(f"image {i}: masks are uint8, got {a.dtype} and {b.dtype}")
    return list(zip(*pair, strict=True))


def compare(noisy: Mask | Sequence[Mask], exact: Mask | Sequence[Mask], n_classes: int) -> Audit:
    """Count which exact class the noisy map took for which.

    Args:
        noisy: Class ids: (H, W), (N, H, W), or a list of (H, W) masks of different sizes; uint8.
        exact: The same ground, exactly; same shapes.
        n_classes: Number of classes K; both masks use the same legend.

    Raises:
        ValueError: shapes differ, or an id is neither a class nor void.
    """
    counts = np.zeros((0, n_classes, n_classes), dtype=np.int64)
    rows = [_confusion(a, b, n_classes) for a, b in _images(noisy, exact)]
    counts = np.stack(rows) if rows else counts
    return Audit(counts.sum(axis=0), counts)


def _confusion(noisy: Mask, exact: Mask, k: int) -> NDArray[np.int64]:
    table, rows = np.zeros((256, 256), np.int64), max(STRIP_PX // max(exact.shape[1], 1), 1)
    for start in range(0, len(exact), rows):  # strips stay in the processor's cache
        pairs = (exact[start : start + rows].astype(np.uint16) << 8) | noisy[start : start + rows]
        table += np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)
    legal = [*range(k), VOID]
    if table.sum() != table[np.ix_(legal, legal)].sum():
        wrong = sorted({*np.flatnonzero(table.any(axis=1)), *np.flatnonzero(table.any(axis=0))} - set(legal))
        raise ValueError(f"masks hold class ids {', '.join(map(str, wrong[:5]))}; with {k} classes they are 0..{k - 1}")
    return table[:k, :k]


def wilson_interval(errors: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson interval of a share: right for points drawn independently, too narrow for pixels of one image.

    Args:
        errors: Number of wrong points.
        n: Number of points; 0 gives [0, 1].
        confidence: Two-sided, in (0, 1).
    """
    if not 0 <= errors <= n:
        raise ValueError(f"errors is 0..n, got {errors} of {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is in (0, 1), got {confidence}")
    if n == 0:
        return 0.0, 1.0
    z2 = float(special.ndtri(0.5 + confidence / 2)) ** 2
    share = errors / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low, high = float(middle - half), float(middle + half)
    return (0.0 if errors == 0 else max(0.0, low)), (1.0 if errors == n else min(1.0, high))


@dataclass(frozen=True)
class Profile:
    """Error rate against distance to the nearest exact class boundary.

    Args:
        edges_px: Bin edges in pixels, shape (B + 1,); bin i is edges[i] <= distance < edges[i + 1].
        rate: Share of wrong pixels per bin, shape (B,); nan in an empty bin.
        count: Valid pixels per bin, shape (B,).
    """

    edges_px: NDArray[np.float64]
    rate: NDArray[np.float64]
    count: NDArray[np.int64]

    @property
    def contrast(self) -> float:
        """Error rate at the boundary (the first bin) over the whole error rate; 1 for noise that ignores boundaries."""
        wrong = np.nansum(self.rate * self.count)
        return float(self.rate[0] * self.count.sum() / wrong) if wrong else float("nan")


def boundary_profile(
    noisy: Mask | Sequence[Mask],
    exact: Mask | Sequence[Mask],
    edges_px: Sequence[float] = (1, 2, 3, 5, 8, 13, 21, np.inf),
) -> Profile:
    """Measure the error rate in bands of distance to the nearest exact class boundary.

    Args:
        noisy: Class ids: (H, W), (N, H, W), or a list of (H, W) masks; uint8.
        exact: The same ground, exactly; same shapes.
        edges_px: Increasing bin edges in pixels; the pixels at a boundary have distance 1. Let the last be
            inf to count everything farther away, pixels of images with a single class included.

    Raises:
        ValueError: shapes differ or `edges_px` does not increase.
    """
    edges = np.asarray(edges_px, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"edges_px are at least two increasing distances, got {list(edges_px)}")
    count, wrong = np.zeros((2, len(edges) - 1), dtype=np.int64)
    reach = float(edges[np.isfinite(edges)][-1])
    for a, b in _images(noisy, exact):
        valid = (a != VOID) & (b != VOID)
        distance = boundary_distance(b, reach)[valid]
        bins = np.searchsorted(edges[:-1], distance, side="right")  # 0: before the first edge
        if np.isfinite(edges[-1]):
            bins[distance >= edges[-1]] = 0
        count += np.bincount(bins, minlength=len(edges))[1:]
        wrong += np.bincount(bins[(a != b)[valid]], minlength=len(edges))[1:]
    return Profile(edges, _ratios(wrong, count), count)
