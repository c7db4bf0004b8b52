"""Alignment: do masks lie where their images are, judged by edges and boundaries alone."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nbutils.audit.suspicion import LabelShift, label_shift
from nbutils.inspection.finding import Finding
from nbutils.inspection.looks import Sample
from nbutils.sources import Dataset

REACH_PX = 8
SHIFTED_PX = 0.5


def check(dataset: Dataset, sample: Sample, rng: np.random.Generator) -> list[Finding]:
    """Estimate how far exact and noisy masks are displaced."""
    pixels = [look.header.pixel_m for look in sample.looks if look.header.pixel_m]
    pixel_m = np.median(pixels, axis=0) if pixels else (dataset.card.gsd_m or np.nan,) * 2
    findings = []
    for name, crops in sample.crops.items():
        large = [pair for pair in crops if min(pair[1].shape) > 4 * REACH_PX]
        if large:
            found = label_shift(*zip(*large, strict=True), max_px=REACH_PX, rng=rng)
            findings += _told(name, found, pixel_m)
    return findings


def _told(name: str, found: LabelShift, pixel_m: Sequence[float] | NDArray) -> Iterator[Finding]:
    if found.n < 2 or not found.means_something:
        why = (
            f"edges and boundaries agree {found.strength:.1f} times as well as by chance" if found.n > 1
            else f"{found.n} of them with boundaries"
        )  # fmt: skip
        words = f"whether the {name} masks lie on their images cannot be told from the windows looked at: {why}"
        yield Finding("note", "alignment", words, "lay some masks over their images and look")
        return
    apart = [low > 0 or high < 0 for low, high in zip(found.low, found.high, strict=True)]
    if not any(far and abs(shift) > SHIFTED_PX for far, shift in zip(apart, found.shift_px, strict=True)):
        return
    ways = zip(found.shift_px, found.low, found.high, (("down", "up"), ("right", "left")), pixel_m[::-1], strict=True)
    each = [
        f"{abs(shift):.1f} px{f' ({abs(shift) * metres:.2g} m)' if np.isfinite(metres) else ''} {way[int(shift < 0)]} "
        f"[{low:+.1f}, {high:+.1f}]"
        for shift, low, high, way, metres in ways
    ]
    words = f"the {name} masks lie {' and '.join(each)} of their images, by {found.n} windows"
    remedy = "look at some, as shadows and leaning buildings displace edges too; then move the masks (rio edit-info)"
    yield Finding("warning", "alignment", words, remedy)
