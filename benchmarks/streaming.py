"""Training from disk: batches read when their turn comes, against the same patches held in memory.

The network is the study's small one, which waits least for its own computing, so that reading weighs most. Files lie in
the system's page cache, or are dropped from it before every round, where the system can be asked to.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.growth import Growth, grow
from benchmarks.probings import everywhere, smooth_patches
from benchmarks.racing import Row, ratios, rounds, speeds
from benchmarks.trainings import BATCH, fitting
from nbutils import shards
from nbutils.batches import Batches
from nbutils.execution import one_thread
from nbutils.patches import PatchSet

ENCODER, N_PATCHES, PATCH_PX, STEPS = "tu-test_resnet", 8192, 96, 20
FILE_BYTES = 1 << 26  # smaller than the study's, so that there are several here


def bench(folder: Path, repeats: int = 3) -> list[Row]:
    """Images per second of one core, reading included."""
    held = _many(smooth_patches(n=256, size_px=PATCH_PX), N_PATCHES)
    filed = on_disk(held, folder)
    learn = fitting(held, ENCODER, "fp32", steps=STEPS)
    what = f"U-Net {ENCODER}, {PATCH_PX} px"
    memory, cached, cold = (
        f"train from memory, {what}",
        f"train from disk, {what}",
        "- from disk, files not in the cache",
    )
    runners: dict[str, Callable[[], object]] = {memory: lambda: learn(held), cached: lambda: learn(filed)}
    pairs = {"- as fast as from memory, files in the page cache": (cached, memory)}
    if hasattr(os, "posix_fadvise"):
        runners[cold] = lambda: learn(_dropped(filed, folder))
        pairs["- as fast as from memory, files not in it"] = (cold, memory)
    with one_thread():
        seconds = rounds(runners, repeats, time.perf_counter)
    return speeds("images/s", STEPS * BATCH, seconds) + ratios(pairs, seconds)


def with_patches(folder: Path) -> Growth:
    """Drawing batches of files against the number of patches there, up to 8 GB of zeros that take no place on disk."""
    numbers, few = (4_000, 40_000, 120_000, 400_000), everywhere(smooth_patches(n=16, size_px=64))

    def make(i: int) -> Callable[[], object]:
        arrays = {name: shards.create(folder / str(numbers[i]), name, np.dtype(np.uint8), (numbers[i], *shape))
                  for name, shape in (("images", few.images.shape[1:]), ("noisy", few.images.shape[2:]))}  # fmt: skip
        stream = Batches(
            replace(few, images=arrays["images"], masks={"noisy": arrays["noisy"]}), "noisy", batch_size=BATCH, seed=0
        )
        return partial(_draw, stream, 100)

    for number in numbers:
        (folder / str(number)).mkdir(parents=True)
    with one_thread():
        return grow("draw 100 batches from disk", "patches", numbers, make)


def on_disk(data: PatchSet, folder: Path) -> PatchSet:
    """The same patches in files."""
    folder.mkdir(parents=True)
    with patch.object(shards, "SHARD_BYTES", FILE_BYTES):
        for name, array in {"images": data.images, **data.masks}.items():
            shards.save(folder, name, array)
    arrays = {name: shards.open_array(folder, name, rows=len(data)) for name in ("images", *data.masks)}
    return replace(data, images=arrays.pop("images"), masks=arrays)


def _many(data: PatchSet, n: int) -> PatchSet:
    repeated = np.arange(n) % len(data)
    return everywhere(data.take(repeated))


def _dropped(data: PatchSet, folder: Path) -> PatchSet:
    """The same patches, whose files the system has been asked to forget."""
    for path in folder.glob("*.npy"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # what is not written yet cannot be forgotten
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return data


def _draw(stream: Batches, number: int) -> None:
    for _ in range(number):
        next(stream)
