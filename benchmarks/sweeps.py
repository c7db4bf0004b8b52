"""Sweeps: runs per hour with one worker and with two, the start of the cluster included.

The runs are fine-tunings of the study's own size. Each repeat computes all of them into an empty store; both numbers of
workers take turns. Two workers on two threads of one core cannot reach twice the speed of one.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.probings import smooth_patches
from benchmarks.racing import Row, ratios, rounds, speeds
from nbutils import patches, study

RUNS, STEPS = 8, 100


def bench(repeats: int = 2) -> list[Row]:
    """Runs per hour of each number of workers, and their ratio."""
    data = smooth_patches(n=128, size_px=64)
    learn, judge = data.member["finetune"], data.member["test"]
    member = {"pretrain": learn, "finetune": learn, "validation": judge, "test": judge}
    data = patches.named(replace(data, member=member))
    how = dict(encoder="tu-test_resnet", width="slim", decoder="unet", budget=16, frozen=False, batch_size=8)
    runs = [study.finetuning(data, None, seed=seed, steps=STEPS, precision="auto", **how) for seed in range(RUNS)]
    one, two = "sweep, 1 worker", "sweep, 2 workers"
    try:
        seconds = rounds({one: _into_empty_store(runs, 1), two: _into_empty_store(runs, 2)}, repeats)
    finally:
        shutil.rmtree(patches.CACHE / data.fingerprint)
    return speeds("runs/h", 3600 * RUNS, seconds) + ratios({"- 2 workers against 1": (two, one)}, seconds)


def _into_empty_store(runs: list[study.Run], workers: int) -> Callable[[], object]:
    def run() -> None:
        with tempfile.TemporaryDirectory() as store:
            study.run_many(runs, workers=workers, store=Path(store))

    return run
