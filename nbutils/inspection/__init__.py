"""Inspection: what is wrong with a data set, in plain words, before anything is trained.

Headers of all files are read, and the pixels of some images. Everything is told as a `Finding`, files that cannot be
used too; nothing is repaired.
"""

import numpy as np

from nbutils.inspection import alignment, contents, dates, grids, looks, splits
from nbutils.inspection.finding import SEVERITIES, Finding, unusable
from nbutils.inspection.headers import read_headers
from nbutils.sources import Dataset

__all__ = ["SEVERITIES", "Finding", "inspect"]


def inspect(
    dataset: Dataset, *, rng: np.random.Generator, size_px: int | None = None, most_images: int = 25
) -> list[Finding]:
    """Look for faults of a data set.

    Memory is bounded: of images with more than a million pixels eight windows are read, and a noisy map that has to be
    made (from points, a product or vectors) is made for eight images at most, on these windows.

    Args:
        dataset: From `patches.open_dataset` or `sources.read_dataset`.
        rng: Draws images, windows, and the limits of shifts.
        size_px: Side of a patch; without it nothing is said about room for patches.
        most_images: Images of each split whose pixels are looked at.

    Returns:
        Findings, the worst first.

    Raises:
        ValueError: `size_px` or `most_images` is below 1.
    """
    if min(size_px or 1, most_images) < 1 or size_px == 0:
        raise ValueError(f"size_px and most_images are at least 1, got {size_px} and {most_images}")
    headers, troubles = read_headers(dataset)
    drawn = looks.draw(dataset, headers, most_images, rng)
    sample = looks.look_at(dataset, drawn, len(headers), rng)
    troubles += sample.troubles
    dated = dates.check(dataset, [header.tile for header in drawn], troubles)
    findings = [
        *unusable(dataset, troubles),
        *grids.check(dataset, headers),
        *contents.check_values(dataset, headers, sample),
        *contents.check_legends(dataset, sample),
        *contents.check_map(dataset, sample),
        *splits.check(dataset, headers, size_px),
        *dated,
        *alignment.check(dataset, sample, rng),
        *_sampled(sample),
    ]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _sampled(sample: looks.Sample) -> list[Finding]:
    """Say what was not looked at."""
    parts = []
    if len(sample.looks) < sample.n_images:
        parts.append(f"pixels of {len(sample.looks)} of {sample.n_images} images")
    if in_part := sum(not look.whole for look in sample.looks):
        parts.append(f"of {in_part} large image(s) {looks.WINDOWS} windows of {looks.WINDOW_PX} px each")
    with_map = len(sample.with_mask("noisy"))
    if 0 < with_map < sum("noisy" in look.header.masks for look in sample.looks):
        parts.append(f"the noisy map of {with_map} images")
    if not parts:
        return []
    words = f"looked at, drawn at random: {'; '.join(parts)}"
    return [Finding("note", "sample", words, "nothing; another seed looks at others")]
