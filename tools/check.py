"""Inspect a data set before anything is trained: what is wrong with its files, in plain words, and what to do.

    python tools/check.py data/datasets/mytown.yaml

Exit status: 0 nothing worse than a note, 1 warnings, 2 errors in the data or the card.
"""

import argparse
import sys

import numpy as np

from nbutils import inspection, patches, sources


def summary(findings: list[inspection.Finding]) -> str:
    """Count findings by severity: "1 error, 0 warnings, 2 notes"."""
    counts = [(sum(one.severity == severity for one in findings), severity) for severity in inspection.SEVERITIES]
    return ", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for n, severity in counts)


def status(findings: list[inspection.Finding]) -> int:
    """Exit status of the worst finding."""
    severities = {one.severity for one in findings}
    return 2 if "error" in severities else 1 if "warning" in severities else 0


def main(arguments: list[str] | None = None) -> int:
    """Read the card, inspect, tell; returns the exit status."""
    parser = argparse.ArgumentParser(description="Say what is wrong with a data set, before anything is trained.")
    parser.add_argument("card", help="data set card, a YAML file")
    parser.add_argument("--patch-px", type=int, default=64, help="side of the patches to be cut (default: 64)")
    parser.add_argument("--images", type=int, default=25, help="images of each split to look at (default: 25)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of images and windows (default: 0)")
    options = parser.parse_args(arguments)
    if min(options.patch_px, options.images) < 1:
        parser.error("--patch-px and --images are at least 1")
    try:
        dataset = patches.open_dataset(options.card)
        rng = np.random.default_rng(options.seed)
        found = inspection.inspect(dataset, rng=rng, size_px=options.patch_px, most_images=options.images)
    except (sources.CardError, sources.DataMissing, sources.SourceError) as error:
        print(error, file=sys.stderr)
        return 2
    for one in found:
        print(one)
    print(f"{dataset.card.name}: {len(dataset.tiles)} images: {summary(found)}")
    return status(found)


if __name__ == "__main__":
    sys.exit(main())
