"""Growth: how time and memory grow with the number of scenes, of runs and of classes, with patch size and grid size.

Sizes span two decades. The exponent is the slope of a line through the logarithms of the upper decade, where constant
costs no longer hide it: 1 is linear. Seconds are the least of a few repeats. Memory is the peak of what Python and
NumPy allocate, measured in a run of its own; GDAL's and PyTorch's is not in it, so that trainings have none.
"""

import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.probings import everywhere, smooth_patches
from benchmarks.readings import cutting, empty_cache, write_scenes
from benchmarks.trainings import fitting
from nbutils import audit, distance, noise, patches, study
from nbutils.execution import one_thread

REPEATS = 3
MB = 1e6


@dataclass(frozen=True)
class Growth:
    """How the cost of something grows: seconds and peak megabytes at each size, and their exponents.

    `megabytes` and `memory` are None where memory was not measured.
    """

    name: str
    against: str
    sizes: tuple[float, ...]
    seconds: tuple[float, ...]
    time: float
    megabytes: tuple[float, ...] | None = None
    memory: float | None = None


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms of the upper decade of sizes.

    Raises:
        ValueError: Fewer than two sizes lie there.
    """
    sizes, costs = np.asarray(sizes, float), np.asarray(costs, float)
    upper = sizes >= sizes.max() / 10.001
    if upper.sum() < 2:
        raise ValueError(f"sizes {sizes.tolist()} have fewer than two in their upper decade")
    return float(np.polyfit(np.log(sizes[upper]), np.log(costs[upper]), 1)[0])


def grow(
    name: str,
    against: str,
    sizes: Sequence[float],
    make: Callable[[int], Callable[[], object]],
    *,
    memory: bool = True,
    repeats: int = REPEATS,
) -> Growth:
    """Measure what `make` gives for each index of `sizes`: least seconds of several, then peak memory."""
    seconds, megabytes = [], []
    for i in range(len(sizes)):
        run = make(i)
        run()
        seconds.append(min(_timed(run) for _ in range(repeats)))
        if memory:
            megabytes.append(_peak(run) / MB)
    told = (tuple(megabytes), exponent(sizes, megabytes)) if memory else (None, None)
    return Growth(name, against, tuple(sizes), tuple(seconds), exponent(sizes, seconds), *told)


def bench(folder: Path) -> list[Growth]:
    """All but that of what lies on disk, see `streaming`."""
    with one_thread():
        return [*with_masks(), *with_classes(), *with_patch_size(), with_scenes(folder), with_drawn(), with_runs()]


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _peak(run: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def classes_mask(side_px: int, n_classes: int = 8, grain_px: float = 6.0) -> np.ndarray:
    """Smooth areas of classes, equally frequent; the more pixels the more areas, of the same size."""
    field = gaussian_filter(np.random.default_rng(0).normal(size=(side_px, side_px)), grain_px, mode="wrap")
    ranks = np.searchsorted(np.sort(field.ravel()[:: max(field.size // 100_000, 1)]), field)
    return (ranks * n_classes // (ranks.max() + 1)).astype(np.uint8)


def _moved(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A mask, and itself displaced by two pixels."""
    return mask, np.roll(mask, 2)


def with_masks() -> list[Growth]:
    """Operators of noise, distances and audits against the pixels of a mask."""
    sides = (256, 832, 1440, 2560)
    pairs = [_moved(classes_mask(side)) for side in sides]
    rng = partial(np.random.default_rng, 0)
    runs: Mapping[str, Callable[[np.ndarray, np.ndarray], object]] = {
        "noise: flips": lambda m, _: noise.flip_labels(m, 0.3, 8, rng=rng()),
        "noise: moved boundaries": lambda m, _: noise.move_boundaries(m, 3, rng=rng()),
        "noise: omitted objects": lambda m, _: noise.omit_objects(m, 0.3, rng=rng(), max_share=0.02),
        "distance: near, reach 16": lambda m, _: distance.near(distance.boundaries(m), 16),
        "audit: compare": lambda m, noisy: audit.compare(noisy, m, 8),
        "audit: examine": lambda m, noisy: audit.examine(noisy, m, 8, rng=rng()).table(),
    }
    pixels = [side**2 for side in sides]
    return [
        grow(name, "pixels of a mask", pixels, lambda i, run=run: partial(run, *pairs[i])) for name, run in runs.items()
    ]


def with_classes() -> list[Growth]:
    """The same, of a mask of a million pixels, against the number of classes."""
    numbers = (2, 20, 60, 200)
    pairs = [_moved(classes_mask(1024, k)) for k in numbers]
    rng = partial(np.random.default_rng, 0)
    runs: Mapping[str, Callable[[np.ndarray, np.ndarray, int], object]] = {
        "noise: flips": lambda m, _, k: noise.flip_labels(m, 0.3, k, rng=rng()),
        "noise: matrix": lambda m, _, k: noise.confuse_classes(m, noise.confusion_matrix(k, 0.2), rng=rng()),
        "audit: compare": lambda m, noisy, k: audit.compare(noisy, m, k),
        "audit: examine": lambda m, noisy, k: audit.examine(noisy, m, k, rng=rng()).table(),
    }
    return [grow(name, "classes", numbers, lambda i, run=run: partial(run, *pairs[i], numbers[i]))
            for name, run in runs.items()]  # fmt: skip


def with_patch_size() -> list[Growth]:
    """A training of a few steps against the pixels of a patch."""
    sides = (32, 128, 192, 320)
    sets = [everywhere(smooth_patches(n=32, size_px=side)) for side in sides]

    def make(i: int) -> Callable[[], object]:
        return partial(fitting(sets[i], "tu-test_resnet", "fp32", steps=2), sets[i])

    return [
        grow(
            "train, two steps of 16 patches", "pixels of a patch", [s**2 for s in sides], make, memory=False, repeats=2
        )
    ]


def with_scenes(folder: Path) -> Growth:
    """Cutting patches against the number of scenes, each of 256 x 256 px."""
    numbers = (4, 40, 120, 400)
    cards = [write_scenes(folder / str(n), range(n), 256) for n in numbers]
    return grow("cut patches of GeoTIFF scenes", "scenes", numbers, lambda i: cutting(cards[i], 64), repeats=1)


def with_drawn() -> Growth:
    """Drawing a split's patches evenly over its scenes, each patch a scene of its own."""
    numbers = (4_000, 40_000, 120_000, 400_000)
    scenes = np.array([f"pretrain-{i:06}" for i in range(numbers[-1])])
    draw = lambda i: partial(patches._spread, scenes[: numbers[i]], np.random.default_rng(0))  # noqa: E731
    return grow("draw patches", "scenes", numbers, draw)


def with_runs() -> Growth:
    """Asking for runs that are stored against their number: what a study costs the second time."""
    numbers = (2, 20, 60, 200)
    how = dict(encoder="tu-test_resnet", width="slim", decoder="unet", budget=4, frozen=False, batch_size=4)
    with empty_cache(), tempfile.TemporaryDirectory() as store:
        data = patches.named(everywhere(smooth_patches(n=16, size_px=32)))
        runs = [study.finetuning(data, None, seed=i, steps=1, precision="fp32", **how) for i in range(numbers[-1])]
        study.run_many(runs, workers=1, store=Path(store))
        make = lambda i: partial(study.run_many, runs[: numbers[i]], workers=1, store=Path(store))  # noqa: E731
        return grow("ask for stored runs", "runs", numbers, make)
