"""Measure what the probe of `nbutils.preflight` says of data sets whose answer is known: data/preflight.csv.

    python tools/preflight.py

Cases are the embedded worlds and, where its images are, Dubai, each with the map it has and with worse and better ones
in its place, down to masks of other places. Every case is probed, and the comparison that the probe is to forecast is
run in full, at half the pretraining steps of notebook 06's reading profile. Finished runs are kept, so that it goes
on where it was stopped; the table is written anew after every case.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from nbutils import audit, claims, disk, patches, preflight, sources, study, tasks
from nbutils.legend import VOID
from nbutils.patches import PatchSet

RECIPE = dict(encoder="tu-test_resnet", width="slim", precision="fp32")
PATCH_PX, MAX_PATCHES = 64, 864
PRETRAIN, FINETUNE = dict(steps=250, batch_size=16), dict(steps=150, batch_size=8, decoder="unet", frozen=False)
BUDGET = 16
OWN, UNRELATED = "its own map", "masks of other places"
KINDS = [("patches", 0.4), ("flips", 0.6)]  # of noise, and the share of pixels it is to change
DATA = ("city", "globe", "dubai")


def variants(data: PatchSet) -> Iterator[tuple[str, PatchSet]]:
    """The data with their own map and with others in its place."""
    yield OWN, data
    given, pretrain = np.asarray(data.masks["noisy"]), data.member["pretrain"]
    truth = np.where(given == VOID, VOID, data.exact_as_noisy()).astype(np.uint8)
    elsewhere = given.copy()
    elsewhere[pretrain] = given[np.roll(np.flatnonzero(pretrain), pretrain.sum() // 2)]
    yield UNRELATED, patches.with_noisy(data, elsewhere, data.noisy_legend)
    for kind, rate in KINDS:
        noisy = tasks.broken(truth, data.noisy_legend, kind, rate, where=pretrain, places=data.places)
        yield f"{kind} {rate:.0%}", patches.with_noisy(data, noisy, data.noisy_legend)


class Measured(NamedTuple):
    """What the probe says of an arm, and its part of the full comparison: test counts (seeds, scenes, K, K)."""

    score: float
    counts: np.ndarray


def measure(data: PatchSet, arm: str, workers: int) -> Measured:
    """Probe an arm and run its part of the comparison of notebook 06."""
    budget = min(BUDGET, int(data.member["finetune"].sum()))
    short, parents = [None] * len(preflight.SEEDS), [None] * len(preflight.SEEDS)
    if arm != "random":
        short = study.run_many(preflight.short_runs(data, arm, **RECIPE), workers=workers)
        parents = [study.pretraining(data, arm, seed=seed, **PRETRAIN, **RECIPE) for seed in preflight.SEEDS]
    runs = [
        study.finetuning(data, parent, budget=budget, seed=seed, **FINETUNE, **RECIPE)
        for parent, seed in zip(parents, preflight.SEEDS, strict=True)
    ]
    counts = study.stack(study.run_many(runs, workers=workers))
    return Measured(preflight.score(data, short, encoder=RECIPE["encoder"]), counts)


def rows_of(case: str, data: PatchSet, rivals: dict[str, Measured], workers: int) -> list[dict]:
    """One row for each rival; they see no mask and are the same for all maps of a data set."""
    ours, k = measure(data, "noisy", workers), len(data.noisy_legend)
    pretrain = data.split("pretrain").one_of_each_place()
    wrong = audit.compare(np.asarray(pretrain.masks["noisy"]), pretrain.exact_as_noisy(), k).rate
    rows = []
    for rival, theirs in rivals.items():
        found = claims.paired_interval(ours.counts, theirs.counts)
        rows.append({"data": data.name, "case": case, "wrong": wrong, "rival": rival, "gain": ours.score - theirs.score,
                     "effect": found.effect, "low": found.low, "high": found.high})  # fmt: skip
    return rows


def with_case(known: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """A table of cases with the rows of one of them put in their place, or added."""
    if known.empty:
        return found
    same = (known.data == found.data.iloc[0]) & (known.case == found.case.iloc[0])
    at = int(np.argmax(same)) if same.any() else len(known)
    others = known[~same]
    return pd.concat([others[:at], found, others[at:]], ignore_index=True)


def main(arguments: list[str] | None = None) -> int:
    """Run all cases; returns the exit status."""
    parser = argparse.ArgumentParser(description="Measure the hit rate of the pre-flight forecast.")
    parser.add_argument("--data", default=",".join(DATA), help="data sets (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (default: 2)")
    parser.add_argument("--out", type=Path, default=preflight.KNOWN, help="table to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    known = preflight.read_known(options.out) if options.out.is_file() else pd.DataFrame()
    for name in options.data.split(","):
        try:
            dataset = patches.open_dataset(f"data/datasets/{name}.yaml")
        except sources.DataMissing as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        data = patches.cut(dataset, size_px=PATCH_PX, max_patches=MAX_PATCHES, workers=options.workers)
        rivals = {rival: measure(data, rival, options.workers) for rival in preflight.RIVALS}
        for case, varied in variants(data):
            found = pd.DataFrame(rows_of(case, varied, rivals, options.workers))
            print(found.to_string(index=False, header=False, float_format="%+.3f"), flush=True)
            known = with_case(known, found)
            disk.write_text(options.out, known.to_csv(index=False, float_format="%.4f"))
    judged = preflight.leave_one_out(preflight.read_known(options.out))
    print(preflight.hit_rates(judged).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
