"""Every statistic of the audit in one table, with intervals over images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nbutils.audit.agreement import Audit, Mask, Profile, _images, _ratios
from nbutils.audit.intervals import mean_intervals, share_intervals, spread_interval
from nbutils.audit.structure import EDGES_PX, KINDS, LAGS_PX, SIZES_PX, Counts, count, stack
from nbutils.legend import Legend

COLUMNS = ("statistic", "key", "value", "low", "high", "n")


@dataclass(frozen=True)
class Findings:
    """What is wrong with a noisy map, and where.

    The wrong pixels are shared out among kinds; each counts once, for the first of these that explains it:

    - shift: right once the image's estimated displacement is undone, in whole pixels;
    - omission: in an object of the exact map that is absent from the noisy one, where the noisy map shows a class
      that lies beside the object;
    - commission: the same with the maps exchanged;
    - speckle: in an area of the noisy map smaller than 4 px;
    - boundary: the exact map has the pixel's noisy class within 4 px;
    - confusion: the rest.

    An object is a 4-connected area of one class, of at least 4 px among the kinds; it is absent where less than half
    of its valid pixels have its class in the other map, after undoing the displacement. A displacement below half a
    pixel is not undone: its errors count as boundary.

    Args:
        counts: Sums per image that everything is computed from.
        classes: Names of the classes, or their ids where no legend was given.
        gsd_m: Metres per pixel.
        intervals: Lower and upper limit per row of the table, (rows, 2); None: not computed.
    """

    counts: Counts = field(repr=False)
    classes: tuple[str, ...]
    gsd_m: float = 1.0
    intervals: NDArray[np.float64] | None = field(default=None, repr=False)

    @property
    def confusion(self) -> Audit:
        """Agreement by class."""
        per_image = self.counts.joint.sum(axis=1)
        return Audit(per_image.sum(axis=0), per_image)

    @property
    def profile(self) -> Profile:
        """Error rate by distance to the nearest exact boundary."""
        joint = self.counts.joint.sum(axis=0)
        total = joint.sum(axis=(1, 2))
        return Profile(np.array(EDGES_PX, float), _ratios(total - np.trace(joint, axis1=1, axis2=2), total), total)

    @property
    def signed(self) -> NDArray[np.float64]:
        """Error rate per class by signed distance to its boundary, (K, 2 B), from deepest inside to farthest outside.

        The first B columns are omission inside the class, the last B commission outside; bands are `EDGES_PX`.
        """
        joint, outside = self.counts.joint.sum(axis=0), self.counts.outside.sum(axis=0)
        inside = joint.sum(axis=2)
        omission = _ratios(inside - np.diagonal(joint, axis1=1, axis2=2), inside)
        return np.concatenate([omission[::-1], _ratios(outside[..., 1], outside[..., 0])]).T

    @property
    def objects(self) -> NDArray[np.float64]:
        """Share of absent objects by class and size, (2, K, S): omission, then commission; sizes are `SIZES_PX`."""
        total = self.counts.objects.sum(axis=0)
        return _ratios(total[..., 1], total[..., 0])

    @property
    def shift_px(self) -> NDArray[np.float64]:
        """Displacement of the noisy map against the exact one, pixels (down, right), mean over images, (2,).

        Looked for up to 15 px, a quarter of the image's side at most. Images weigh by their boundary pixels;
        `counts.shift` holds each image's own, (N, 2).
        """
        weight = self.counts.shift_weight
        return _ratios((np.nan_to_num(self.counts.shift) * weight[:, None]).sum(axis=0), weight.sum())

    @property
    def shift_m(self) -> NDArray[np.float64]:
        """The same in metres."""
        return self.shift_px * self.gsd_m

    @property
    def correlation_px(self) -> float:
        """Distance at which the autocorrelation of errors has fallen to 1/e, in pixels; below 1 for lone pixels.

        It says nothing of how slowly the rest falls; `correlogram` does.
        """
        return float(correlation_length(self.counts.lags.sum(axis=0)))

    @property
    def correlogram(self) -> NDArray[np.float64]:
        """Correlation of the error indicator at distances 0, 1, 2, ... px, along rows and columns, in [0, 1].

        At most 64 px, as far as the images reach; linear between `LAGS_PX`, negative values taken for 0. All nan where
        nothing or everything is wrong. `planning.plan` and `planning.design_effect` take it as `correlation_px`.
        """
        rho = _autocorrelation(self.counts.lags.sum(axis=0))
        if not np.isfinite(rho[:1]).all():
            return np.full(LAGS_PX[-1] + 1, np.nan)
        known = np.isfinite(rho)
        at = np.array([0, *LAGS_PX])[known]
        return np.interp(np.arange(at[-1] + 1), at, rho[known].clip(0, 1))

    @property
    def correlation_m(self) -> float:
        """The same in metres."""
        return self.correlation_px * self.gsd_m

    @property
    def kinds(self) -> dict[str, float]:
        """Share of the wrong pixels by kind; sums to 1, nan without wrong pixels."""
        total = self.counts.kinds.sum(axis=0)
        return dict(zip(KINDS, _ratios(total, total.sum()).tolist(), strict=True))

    def table(self) -> pd.DataFrame:
        """One row per number: statistic, key, value, low, high, n.

        `n` is what the number rests on: valid pixels, objects, wrong pixels, or images for shift and correlation.
        Two findings with the same classes have the same rows.
        """
        rows = _ratios_of(self)
        part, whole = rows.part.sum(axis=0), rows.whole.sum(axis=0)
        n = np.where(rows.share, whole, (rows.whole > 0).sum(axis=0)).astype(np.int64)
        value = np.r_[_ratios(part, whole), self.correlation_px]
        n = np.r_[n, np.count_nonzero(self.counts.lags[:, 0, 0])]
        limits = np.full((len(value), 2), np.nan) if self.intervals is None else self.intervals
        names = [*rows.names, ("correlation", "length")]
        columns = [*zip(*names, strict=True), value, limits[:, 0], limits[:, 1], n]
        return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


@dataclass(frozen=True)
class _Rows:
    """Ratios of sums: parts and wholes per image, (N, R)."""

    names: list[tuple[str, str]]
    part: NDArray[np.float64]
    whole: NDArray[np.float64]
    share: NDArray[np.bool_]  # in [0, 1]; else a mean over weighted images


def correlation_length(lags: NDArray) -> NDArray[np.float64]:
    """Lag at which the autocorrelation falls to 1/e, from sums (..., L + 1, 4) as in `Counts.lags`.

    Linear between lags; the longest lag where it stays above; nan where nothing or everything is wrong.
    """
    lags = np.asarray(lags, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = _autocorrelation(lags)
        at = np.array([0, *LAGS_PX], dtype=np.float64)
        level = np.exp(-1)
        below = ~(rho > level)  # lags that no image is large enough for, too
        after = np.where(below.any(axis=-1), below.argmax(axis=-1), len(at) - 1)[..., None]
        here, before = (np.take_along_axis(rho, i, axis=-1)[..., 0] for i in (after, np.maximum(after - 1, 0)))
        after = after[..., 0]
        step = at[after] - at[np.maximum(after - 1, 0)]
        share = np.where(np.isfinite(here) & (here < level), (before - level) / (before - here), 1.0)
        found = at[np.maximum(after - 1, 0)] + step * np.where(np.isfinite(here), share, 0.0)
    return np.where(np.isfinite(rho[..., 0]), found, np.nan)


def _autocorrelation(lags: NDArray) -> NDArray[np.float64]:
    """Correlation of the error indicator at 0 and `LAGS_PX`, (..., L + 1); nan without pairs or without variance."""
    both, first, second, n = np.moveaxis(np.asarray(lags, dtype=np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (first[..., 0] / n[..., 0])[..., None]
        covariance = both / n - mean * (first + second) / n + mean**2
        return covariance / np.where(covariance[..., :1] > 0, covariance[..., :1], np.nan)


def statistics_of(
    noisy: Mask | Sequence[Mask], exact: Mask | Sequence[Mask], legend_or_n: Legend | int, *, gsd_m: float = 1.0
) -> Findings:
    """Compute every statistic of the audit, without intervals.

    Args:
        noisy: Class ids: (H, W), (N, H, W), or a list of (H, W) masks of different sizes; uint8, void 255.
        exact: The same ground, exactly; same shapes.
        legend_or_n: Legend of both masks, whose names become keys of the table, or the number of classes.
        gsd_m: Metres per pixel.

    Raises:
        ValueError: shapes differ, or an id is neither a class nor void.
    """
    named = isinstance(legend_or_n, Legend)
    classes = legend_or_n.names if named else tuple(map(str, range(legend_or_n)))
    images = [count(a, b, len(classes)) for a, b in _images(noisy, exact)]
    return Findings(stack(images, len(classes)), classes, gsd_m)


def examine(
    noisy: Mask | Sequence[Mask],
    exact: Mask | Sequence[Mask],
    legend_or_n: Legend | int,
    *,
    gsd_m: float = 1.0,
    rng: np.random.Generator,
    n_draws: int = 1000,
    confidence: float = 0.95,
) -> Findings:
    """Compute every statistic of the audit with its interval over images (see `intervals.share_intervals`).

    With 5 to 8 images, intervals of 95 % hold rare errors that few of the images have only 86 to 91 % of the time.

    Args:
        noisy: As in `statistics_of`.
        exact: As in `statistics_of`.
        legend_or_n: As in `statistics_of`.
        gsd_m: Metres per pixel.
        rng: Source of randomness.
        n_draws: Number of draws of N images with replacement.
        confidence: Two-sided, in (0, 1).
    """
    return with_intervals(
        statistics_of(noisy, exact, legend_or_n, gsd_m=gsd_m), rng=rng, n_draws=n_draws, confidence=confidence
    )


def pool(findings: Findings, groups: Sequence[str] | None) -> Findings:
    """Add up the images of each group, so that intervals draw groups: patches of one scene err together.

    Args:
        findings: Of N images.
        groups: Name of each image's group, as its scene; None changes nothing.

    Returns:
        The same with one entry per group in `counts`; displacements are averaged by their weight. Without intervals.

    Raises:
        ValueError: There is not one name per image.
    """
    if groups is None:
        return findings
    counts, names = findings.counts, list(groups)
    if len(names) != len(counts.joint):
        raise ValueError(f"{len(names)} groups were given for {len(counts.joint)} images")
    of = np.array([names.index(name) for name in names])
    summed = {
        f.name: np.stack([getattr(counts, f.name)[of == i].sum(axis=0) for i in np.unique(of)]) for f in fields(counts)
    }
    moved = np.nan_to_num(counts.shift) * counts.shift_weight[:, None]
    moved = np.stack([moved[of == i].sum(axis=0) for i in np.unique(of)])
    summed["shift"] = _ratios(moved, summed["shift_weight"][:, None])
    return replace(findings, counts=Counts(**summed), intervals=None)


def with_intervals(
    findings: Findings, *, rng: np.random.Generator, n_draws: int = 1000, confidence: float = 0.95
) -> Findings:
    """Add intervals over images; nan with fewer than two images."""
    rows = _ratios_of(findings)
    n_images = len(rows.part)
    if n_images < 2:
        return replace(findings, intervals=np.full((len(rows.names) + 1, 2), np.nan))
    drawn = rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=n_draws).astype(np.float64)
    limits = np.empty((len(rows.names), 2))
    limits[rows.share] = share_intervals(rows.part[:, rows.share], rows.whole[:, rows.share], drawn, confidence)
    limits[~rows.share] = mean_intervals(rows.part[:, ~rows.share], rows.whole[:, ~rows.share], confidence)
    lags = findings.counts.lags
    lengths = correlation_length(np.tensordot(drawn, lags.astype(np.float64), axes=1))
    last = spread_interval(findings.correlation_px, lengths, np.count_nonzero(lags[:, 0, 0]), confidence)
    return replace(findings, intervals=np.vstack([limits, last]))


def _ratios_of(findings: Findings) -> _Rows:
    names, parts, wholes = zip(*_each_ratio(findings.counts, findings.classes), strict=True)
    share = np.array([statistic != "shift" for statistic, _ in names])
    part, whole = (np.stack(x, axis=1).astype(np.float64) for x in (parts, wholes))
    return _Rows(list(names), part, whole, share)


def _each_ratio(counts: Counts, classes: Sequence[str]) -> Iterator[tuple[tuple[str, str], NDArray, NDArray]]:
    """Name, parts and wholes per image of every ratio."""
    confusion = counts.joint.sum(axis=1)
    exact, noisy, both = confusion.sum(axis=2), confusion.sum(axis=1), np.diagonal(confusion, axis1=1, axis2=2)
    valid = confusion.sum(axis=(1, 2))
    yield ("rate", "all"), valid - both.sum(axis=1), valid
    for i, one in enumerate(classes):
        for j, other in enumerate(classes):
            yield ("transition", f"{one} -> {other}"), confusion[:, i, j], exact[:, i]
    for i, one in enumerate(classes):
        yield ("iou", one), both[:, i], exact[:, i] + noisy[:, i] - both[:, i]
    bands = [_range(*pair) for pair in zip(EDGES_PX[:-1], EDGES_PX[1:], strict=True)]
    right = np.diagonal(counts.joint, axis1=2, axis2=3)  # (N, B, K)
    total = counts.joint.sum(axis=3)
    for b, band in enumerate(bands):
        yield ("profile", band), (total - right)[:, b].sum(axis=1), total[:, b].sum(axis=1)
    for i, one in enumerate(classes):
        for b in reversed(range(len(bands))):
            yield ("signed", f"{one}, {bands[b]} inside"), (total - right)[:, b, i], total[:, b, i]
        for b, band in enumerate(bands):
            yield ("signed", f"{one}, {band} outside"), counts.outside[:, b, i, 1], counts.outside[:, b, i, 0]
    yield from _each_object_ratio(counts.objects, classes)
    known = np.nan_to_num(counts.shift)
    for key, value in (("down", known[:, 0]), ("right", known[:, 1]), ("length", np.hypot(*known.T))):
        yield ("shift", key), value * counts.shift_weight, counts.shift_weight
    for i, kind in enumerate(KINDS):
        yield ("kinds", kind), counts.kinds[:, i], counts.kinds.sum(axis=1)


def _each_object_ratio(objects: NDArray, classes: Sequence[str]) -> Iterator[tuple[tuple[str, str], NDArray, NDArray]]:
    sizes = [_range(*pair, last=-1) for pair in zip(SIZES_PX[:-1], SIZES_PX[1:], strict=True)]
    for side, statistic in enumerate(("omission", "commission")):
        absent, total = objects[:, side, ..., 1], objects[:, side, ..., 0]
        yield (statistic, "all"), absent.sum(axis=(1, 2)), total.sum(axis=(1, 2))
        for i, one in enumerate(classes):
            yield (statistic, f"{one}, all"), absent[:, i].sum(axis=1), total[:, i].sum(axis=1)
            for s, size in enumerate(sizes):
                yield (statistic, f"{one}, {size}"), absent[:, i, s], total[:, i, s]


def _range(low: float, high: float, last: int = 0) -> str:
    """Name a band; `last`: -1 where the upper edge is not in it and values are whole."""
    return f"{low:g}+ px" if np.isinf(high) else f"{low:g}-{high + last:g} px"
