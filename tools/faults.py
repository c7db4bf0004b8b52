"""Faults: full disks, read-only folders, damaged files, two at once; each is told by name and mended as it says."""

import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kills
import numpy as np
from kills import Life, Study, row

FILE_BYTES = 20_000  # limit of a file's size where a disk is full for everyone but root
DISK_BYTES = 1 << 20  # size of the full disk

Make = Callable[[Path], Study]
Rows = Iterator[dict[str, Any]]


def all_faults(make: Make, reference: Path, folder: Path, rng: np.random.Generator) -> Rows:
    """Try every fault there is; arguments as of `kills.campaign`, rows too."""
    yield from damaged_results(make, reference, folder, rng)
    yield from damaged_checkpoints(make, reference, folder, rng)
    yield two_at_once(make, reference, folder)
    yield small_files(make, reference, folder)
    if os.geteuid() == 0:
        yield full_disk(make, reference, folder)
        yield read_only(make, reference, folder, "a read-only mount", _mounted_read_only)
    else:  # root writes where it has no right to
        yield read_only(make, reference, folder, "a folder without the right to write", _no_right_to_write)


def damage(path: Path, how: str, rng: np.random.Generator) -> None:
    """Empty a file, cut it at a random place or flip a random bit of it."""
    content = bytearray(path.read_bytes())
    if how == "a bit flipped":
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    else:
        del content[0 if how == "emptied" else rng.integers(1, len(content)) :]
    path.write_bytes(content)


HOW = ("emptied", "cut off", "a bit flipped")


def damaged_results(make: Make, reference: Path, folder: Path, rng: np.random.Generator) -> Rows:
    """Damage a file of a stored pretraining from which others are still to be fine-tuned; then do as the error says."""
    for name in ("run.json", "weights.safetensors", "card.json"):
        for how in HOW:
            start, study = time.monotonic(), make(folder / f"{name} {how}")
            shutil.copytree(reference, study.store)
            parent = _parent(study.store)
            damage(parent / name, how, rng)
            status, said = _live(study)
            faults = _told(status, said, parent.name)
            shutil.rmtree(parent)  # as the error says
            yield row(f"damaged {name}", how, faults + _mended(study, reference), start)


def _parent(store: Path) -> Path:
    """The pretraining on the noisy map, whose children are taken from the store."""
    records = {path: json.loads((path / "run.json").read_text())["run"] for path in sorted(store.glob("[0-9a-f]*"))}
    (parent,) = [path for path, run in records.items() if (run["stage"], run["arm"]) == ("pretrain", "noisy")]
    for path, run in records.items():
        if run["parent"] and run["arm"] == "noisy":
            shutil.rmtree(path)
    return parent


def damaged_checkpoints(make: Make, reference: Path, folder: Path, rng: np.random.Generator) -> Rows:
    """Kill a study that has a checkpoint, damage that, and start the study again."""
    for how in HOW:
        start, study = time.monotonic(), make(folder / f"checkpoint {how}")
        life = Life(study)
        while not (saved := list(study.store.glob(".*.training/checkpoint"))) and life.process.poll() is None:
            time.sleep(0.01)
        life.process.kill()
        life.end()
        damage(saved[0], how, rng)
        yield row("damaged checkpoint", how, _mended(study, reference), start)


def two_at_once(make: Make, reference: Path, folder: Path) -> dict[str, Any]:
    """Start two studies on one store: both end well, and no run is computed twice."""
    start, study = time.monotonic(), make(folder / "two")
    lives = [Life(study), Life(study)]
    ends = [life.end() for life in lives]
    faults = [f"exit status {status}, left {left}" for status, left in ends if status != 0 or left]
    faults += kills.unlike(study.store, reference, ended=True)
    lines, runs = (len((store / "log.txt").read_text().splitlines()) for store in (study.store, reference))
    if lines != runs:
        faults.append(f"{lines} runs computed instead of {runs}")
    return row("two studies", "at once on one store", faults, start)


def small_files(make: Make, reference: Path, folder: Path) -> dict[str, Any]:
    """Let no file grow beyond some bytes, which works without root; then lift the limit."""
    start, study = time.monotonic(), make(folder / "limit")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))  # noqa: E731
    status, said = _live(study, preexec_fn=limit)
    faults = _told(status, said, str(study.store)) + _nothing_left(study)
    return row("disk full", f"RLIMIT_FSIZE of {FILE_BYTES} bytes", faults + _mended(study, reference), start)


def full_disk(make: Make, reference: Path, folder: Path) -> dict[str, Any]:
    """Run on a file system that is too small, then make it larger; needs root."""
    start, study = time.monotonic(), make(folder / "tmpfs")
    with _mounted(study.store, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs"):
        status, said = _live(study)
        faults = _told(status, said, str(study.store)) + _nothing_left(study)
        subprocess.run(["mount", "-o", f"remount,size={DISK_BYTES * 1000}", study.store], check=True)
        faults += _mended(study, reference)
    return row("disk full", f"a tmpfs of {DISK_BYTES} bytes, later enlarged", faults, start)


def read_only(make: Make, reference: Path, folder: Path, how: str, locked: Callable) -> dict[str, Any]:
    """Forbid to write in a store: whole it is read, and what is missing is refused before it is trained."""
    start, study = time.monotonic(), make(folder / "read-only")
    shutil.copytree(reference, study.store)
    with locked(study.store):
        status, said = _live(study)
    faults = [] if status == 0 else [f"a whole store is not read: {said}"]
    shutil.rmtree(_parent(study.store))
    with locked(study.store):
        status, said = _live(study)
    faults += _told(status, said, str(study.store)) + (["it was trained first"] if "checkpoint" in said else [])
    return row("read-only store", how, faults + _mended(study, reference), start)


@contextmanager
def _no_right_to_write(folder: Path) -> Iterator[None]:
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)


@contextmanager
def _mounted_read_only(folder: Path) -> Iterator[None]:
    with _mounted(folder, "--bind", folder):
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield


@contextmanager
def _mounted(folder: Path, *how: str | Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *how, folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


# ---- what is expected --------------------------------------------------------------------------------------------
def _live(study: Study, **options: Any) -> tuple[int | None, str]:
    """Run a study to its end; return the exit status and its last line."""
    life = Life(study, **options)
    status, left = life.end()
    said = (life.words().strip().splitlines() or [""])[-1]
    return status, f"{said} {left}".strip()


def _told(status: int | None, said: str, name: str) -> list[str]:
    """What is wrong with how a study fails: it must say the name of what is at fault, in an error of its own."""
    expected = status == 1 and said.startswith(("StoreError: ", "WeightsError: ")) and name in said
    return [] if expected else [f"exit status {status}, told: {said[:200]}"]


def _nothing_left(study: Study) -> list[str]:
    """Half-written files and folders that a failed study leaves on a disk that is full enough."""
    return [f"{path.name} is left" for path in study.store.rglob("*writing*")]


def _mended(study: Study, reference: Path) -> list[str]:
    """What is wrong when a study is started again after its fault was mended."""
    status, said = _live(study)
    return ([] if status == 0 else [f"not mended: {said[:200]}"]) + kills.unlike(study.store, reference, ended=True)
