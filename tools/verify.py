"""Redo a stored run and compare: are its numbers and weights what its code and data give?

    python tools/verify.py 0123456789abcdef0123

The run, a pretraining or a fine-tuning, is computed anew in a scratch folder under `build/`; its parent is taken from
the store, or computed too where it is not there. Nothing in the store is changed. Compared are the confusion, boundary
and calibration counts, the learning curve, and the SHA-256 of the weights. Then all is named in which the stored record
and this machine differ, for bits depend on it.
Exit status: 0 the same bits, or scores that differ by no more than `--tolerance`; 1 different; 2 it cannot be redone.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nbutils import ROOT, disk, execution, patches, provenance, store, study, training, weights
from nbutils.store import Result, Run

TABLES = ("counts", "boundary", "calibration")
SAME_PLACE = ("python", "platform", "processor", "threads", "processes")


class CannotRedo(Exception):
    """A run cannot be computed again here; the message says what is missing or has changed."""


@dataclass(frozen=True)
class Verdict:
    """What a comparison came to.

    Attributes:
        status: 0 the same, 1 different.
        text: In words.
    """

    status: int
    text: str


def verify(key: str, runs: Path, *, tolerance: float) -> Verdict:
    """Redo a stored run and compare.

    Args:
        key: Of the run.
        runs: The store.
        tolerance: Largest difference of a score, 0..1, that passes for the same.

    Raises:
        CannotRedo: Data or parents are missing, or the code is another.
    """
    try:
        run = store.recall(key, runs)
        stored = store.read(run, runs)
        check(run, stored.provenance, runs)
        with disk.scratch_folder(ROOT / "build") as scratch:
            return compare(stored, redone(run, runs, scratch), tolerance)
    except (store.StoreError, weights.WeightsError) as error:
        raise CannotRedo(str(error)) from error


def check(run: Run, about: dict[str, Any], runs: Path) -> None:
    """Raise `CannotRedo` where the run's code or data are not those of today."""
    if run.stage == "elsewhere":
        raise CannotRedo(f"run {run.key} holds weights that others trained: nothing of them is computed here")
    if (now := study.code_of(run)) != run.code:
        raise CannotRedo(f"the code has changed since, {run.code} then, {now} now: {changed_code(run, about, runs)}")
    try:
        data = patches.load(run.fingerprint)
    except FileNotFoundError as error:
        raise CannotRedo(f"the data {run.data!r} are missing: {error}") from error
    if patches.content_hash(data) != run.fingerprint:
        folder = patches.CACHE / run.fingerprint
        raise CannotRedo(f"{folder} no longer holds what it is named by; delete it and cut {run.data!r} again")


def changed_code(run: Run, about: dict[str, Any], runs: Path) -> str:
    """Which of the modules that compute a run have changed since, as far as its record tells."""
    commit = about.get("commit")
    dirty = ", with changes that were not committed" if about.get("dirty") else ""
    remedy = f"; it was computed at commit {commit}{dirty}" if commit else ""
    lock = provenance.read(runs, about)
    if lock is None:
        return f"its record is too old to tell which modules, or its lock is gone{remedy}"
    then, now = lock["code"], provenance.environment()["code"]
    names = [name for name in study.modules_of(run) if then.get(name) != now[name]]
    return f"{', '.join(names) or 'a module that is no longer part of it'}{remedy}"


def redone(run: Run, runs: Path, scratch: Path) -> Result:
    """Compute a run in a scratch store; a parent is read from the store where it lies there, else computed too."""
    if run.parent is not None:
        if (runs / run.parent.key).is_dir():
            (scratch / run.parent.key).symlink_to((runs / run.parent.key).resolve())
        else:
            check(run.parent, {}, runs)
            redone(run.parent, runs, scratch)
    return execution.execute(run, scratch)


def compare(stored: Result, again: Result, tolerance: float) -> Verdict:
    """Hold what is stored against what was computed again."""
    damaged = unlike_their_card(stored)
    if damaged:
        return Verdict(1, f"different: {damaged}")
    pairs = {
        name: [json.dumps(getattr(one, name), sort_keys=True) for one in (stored, again)] for name in (*TABLES, "curve")
    }
    unlike = [name for name, (before, now) in pairs.items() if before != now]  # as text, where NaN equals NaN
    digests = [digest(result) for result in (stored, again)]
    if not unlike and digests[0] == digests[1]:
        return Verdict(0, f"same bits: counts, curve, and weights of SHA-256 {digests[0]}")
    if digests[0] == digests[1]:
        return Verdict(1, f"different: {', '.join(unlike)}, from the same weights; the record was changed")
    gap = score_gap(stored, again)
    about = f"weights differ by up to {weight_gap(stored, again):.1e} of their largest"
    if gap <= tolerance:
        return Verdict(0, f"same to {gap:.1e}: no score differs by more; {about}")
    return Verdict(1, f"different: a score differs by {gap:.1e}, more than {tolerance:g}; {about}")


def digest(result: Result) -> str:
    """SHA-256 of the weights, hex."""
    return hashlib.sha256((result.folder / "weights.safetensors").read_bytes()).hexdigest()


def unlike_their_card(result: Result) -> str:
    """What is wrong with stored weights, by their own card; nothing if they are whole."""
    try:
        weights.load(result.folder)
    except weights.WeightsError as error:
        return str(error)
    return ""


def score_gap(stored: Result, again: Result) -> float:
    """Largest difference of a score: mean IoU of a split where masks are judged, else relative, of the loss."""
    if not stored.counts:
        losses = [np.array([point["loss"] for point in result.curve]) for result in (stored, again)]
        return float(np.abs(1 - losses[1] / losses[0]).max()) if losses[0].shape == losses[1].shape else np.inf
    gaps = []
    for split, scenes in stored.counts.items():
        if scenes.keys() != again.counts.get(split, {}).keys():
            return np.inf
        gaps.append(abs(stored.mean_iou(split) - again.mean_iou(split)))
    return float(np.nanmax(gaps))


def weight_gap(stored: Result, again: Result) -> float:
    """Largest difference of a weight over the largest weight of its tensor; infinite where tensors do not match."""
    old, new = (weights.load(result.folder)[0] for result in (stored, again))
    if {name: value.shape for name, value in old.items()} != {name: value.shape for name, value in new.items()}:
        return np.inf
    gaps = [
        ((old[name].double() - new[name].double()).abs().max() / old[name].double().abs().max().clamp(min=1e-12)).item()
        for name in old
        if old[name].numel()
    ]
    return max(gaps)


def differences(about: dict[str, Any], runs: Path) -> list[str]:
    """Name all in which the machine and packages of a record and of today differ, as far as the record tells."""
    with execution.one_thread():
        now = provenance.machine()
    changed = [name for name in SAME_PLACE if about.get(name, now[name]) != now[name]]
    found = [f"{name}: {about[name]} then, {now[name]} now" for name in changed]
    if not_told := [name for name in SAME_PLACE if name not in about]:
        found.append(f"not told by the record: {', '.join(not_told)}")
    today = provenance.environment()
    lock = provenance.read(runs, about)
    then = lock["packages"] if lock else {name: about[name] for name in about if name in today["packages"]}
    names = sorted(then.keys() | today["packages"].keys()) if lock else sorted(then)
    for name in names:
        versions = [packages.get(name, "absent") for packages in (then, today["packages"])]
        if versions[0] != versions[1]:
            found.append(f"{name}: {versions[0]} then, {versions[1]} now")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Redo, compare, tell; returns the exit status."""
    parser = argparse.ArgumentParser(description="Redo a stored run and compare.")
    parser.add_argument("key", help="of the run: the name of its folder in the store")
    parser.add_argument("--store", type=Path, default=store.RUNS, help="folder of the runs (default: data/runs)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.005,
        help="difference of a score, 0 to 1, that passes (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        verdict = verify(options.key, options.store, tolerance=options.tolerance)
    except (CannotRedo, training.TrainingError) as error:
        print(f"run {options.key} cannot be redone: {error}", file=sys.stderr)
        return 2
    run = store.recall(options.key, options.store)
    print(f"{run} (run {run.key}, {run.precision})\n{verdict.text}")
    found = differences(store.read(run, options.store).provenance, options.store)
    print("nothing that bits depend on differs between the record and this machine" if not found else "differing here:")
    for line in found:
        print(f"    {line}")
    return verdict.status


if __name__ == "__main__":
    sys.exit(main())
