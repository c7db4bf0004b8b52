"""Kills: a study is killed at random moments and started again; what it leaves is held against one left alone.

Processes are told apart by a word in their environment, which those they start inherit, so that one that outlives its
study is found wherever it hangs.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

ROOT = Path(__file__).resolve().parents[1]
SMALL = ROOT / "tools" / "small_study.py"
WORD = "NOISY_MAPS_TRIAL"
ORPHANED_S = 120  # seconds after which a process without its study is left behind; one that starts must start first
LIFE_S = 1800  # seconds after which a study that was not killed counts as hanging
LEFT = (".environments", "log.txt")  # what lies in a store beside runs
KEPT = ("card.json", "weights.safetensors")


@dataclass(frozen=True)
class Study:
    """A command that fills a store, and how its parts are recognised.

    Attributes:
        command: What is run; the store is in it.
        store: What it fills.
        folder: Where it is run.
        parts: By name, words of the command lines of processes that may be killed; the one it starts with is "driver".
        published: Folder whose figures and tables it replaces at its end, if it does.
    """

    command: Sequence[str | Path]
    store: Path
    folder: Path = ROOT
    parts: dict[str, str] = field(default_factory=lambda: {"worker": "spawn_main"})
    published: Path | None = None


def small(store: Path, fingerprint: str, *, workers: int = 2) -> Study:
    """The small study on stored patches."""
    return Study([sys.executable, SMALL, store, fingerprint, "--workers", str(workers)], store)


class Life:
    """A study that runs, and all processes it started."""

    def __init__(self, study: Study, **options: Any) -> None:
        self.study, self.word = study, uuid.uuid4().hex
        self.said = tempfile.TemporaryFile("w+")
        settings = {
            WORD: self.word,
            "PYTHONPATH": os.pathsep.join([str(study.folder), str(study.folder / "tools")]),
            "OMP_NUM_THREADS": "1",
            "DASK_DISTRIBUTED__WORKER__PRELOAD": str(SMALL),
        }
        self.process = subprocess.Popen(
            study.command,
            cwd=study.folder,
            env=os.environ | settings,
            stdout=self.said,
            stderr=self.said,
            start_new_session=True,
            **options,
        )

    def family(self) -> list[psutil.Process]:
        """All that live, the driver among them."""
        return [each for each in psutil.process_iter() if _word(each) == self.word]

    def kill(self, rng: np.random.Generator) -> str:
        """Kill a part of the study, drawn by chance; return its name, or nothing where the study has ended."""
        alive = [each for each in self.family() if each.pid != self.process.pid]
        parts = {name: [each for each in alive if word in _line(each)] for name, word in self.study.parts.items()}
        name = str(rng.choice(["driver", *(name for name, found in parts.items() if found)]))
        if self.process.poll() is not None:
            return ""
        try:
            victim = self.process if name == "driver" else parts[name][rng.integers(len(parts[name]))]
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            return ""  # it ended meanwhile, as the study does at its end
        return name

    def end(self) -> tuple[int | None, str]:
        """Wait until all have ended; return the exit status, None where it hung, and who was left behind."""
        try:
            status = self.process.wait(LIFE_S)
        except subprocess.TimeoutExpired:
            status = None
        deadline = time.monotonic() + (ORPHANED_S if status is not None else 0)
        while (left := self.family()) and time.monotonic() < deadline:
            time.sleep(0.2)
        names = ", ".join(_line(each)[:80] for each in left)
        for each in left:
            each.kill()
        return status, names

    def words(self) -> str:
        """What it printed."""
        self.said.seek(0)
        return self.said.read()


def _word(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(WORD)
    except (psutil.Error, OSError):
        return None  # ended meanwhile, or not ours


def _line(process: psutil.Process) -> str:
    try:
        program, *words = process.cmdline() or [""]
        return " ".join([Path(program).name, *words])  # where it lies is nobody's business
    except psutil.Error:
        return ""


# ---- what a store holds ------------------------------------------------------------------------------------------
def unlike(store: Path, reference: Path, *, ended: bool) -> list[str]:
    """What is wrong with a store, by one that was filled without disturbance.

    Args:
        store: Where a study was disturbed.
        reference: Where it was left alone.
        ended: Whether the study has come to its end: then nothing may be missing or left over.

    Returns:
        Faults in words; none if all is well. Runs are compared bit by bit but for seconds, provenance and
        the digest over them.
    """
    faults = [f"{path.name} differs" for path in _runs(store) if not _same(path, reference / path.name)]
    if ended:
        faults += [f"{path.name} is missing" for path in _runs(reference) if not (store / path.name).is_dir()]
        known = {*LEFT, *(path.name for path in _runs(reference))}
        faults += [f"{path.name} is left" for path in sorted(store.iterdir()) if path.name not in known]
        faults += [] if _free(store) else ["the store is locked"]
    return faults


def torn(published: Path, reference: Path, *, ended: bool) -> list[str]:
    """What is wrong with a folder of figures and tables that a study replaces when it is done.

    Args:
        published: Where a study was disturbed.
        reference: Where it was left alone.
        ended: Whether the study has come to its end: then all must be there, and be the same.

    Returns:
        Faults in words; none if all is well. Before the end each file is as it was in `figures/` of this repository, or
        as it becomes. Tables are compared but for seconds.
    """
    names = {path.name for path in reference.iterdir()}
    faults, before = [], {path.name for path in (ROOT / "figures").iterdir()}
    for path in sorted(path for path in published.iterdir() if ended or path.is_file()):
        new = path.name in names and _content(path) == _content(reference / path.name)
        if not new and (ended or _content(path) != _content(ROOT / "figures" / path.name)):
            faults.append(f"{path.name} is {'torn or another' if path.name in names else 'left'}")
    kept = names if ended else names & before
    return faults + [f"{name} is missing" for name in sorted(kept) if not (published / name).exists()]


def _content(path: Path) -> bytes | str | None:
    """Of a file, of a table without its column of seconds; None where there is no file."""
    if path.suffix != ".csv" or not path.is_file():
        return path.read_bytes() if path.is_file() else None
    try:
        return pd.read_csv(path, dtype=str).drop(columns="seconds", errors="ignore").to_csv(index=False)
    except ValueError:  # cut off in an odd place
        return path.read_bytes()


def _runs(store: Path) -> list[Path]:
    return sorted(path for path in store.glob("[0-9a-f]*") if path.is_dir())


def _same(one: Path, other: Path) -> bool:
    if not other.is_dir() or {path.name for path in one.iterdir()} != {path.name for path in other.iterdir()}:
        return False
    try:
        records = [json.loads((folder / "run.json").read_text()) for folder in (one, other)]
    except ValueError:
        return False
    for record in records:
        for own in ("seconds", "provenance", "sha256"):
            record.pop(own)
    return records[0] == records[1] and all((one / n).read_bytes() == (other / n).read_bytes() for n in KEPT)


def _free(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


# ---- the campaign ------------------------------------------------------------------------------------------------
def row(what: str, injected: str, faults: Sequence[str], start: float) -> dict[str, Any]:
    """A row of the table: what was disturbed, how, whether it survived or what was wrong, seconds since the start."""
    survived = "no: " + "; ".join(faults) if faults else "yes"
    return {"what": what, "injected": injected, "survived": survived, "seconds": round(time.monotonic() - start, 1)}


@dataclass(frozen=True)
class Span:
    """How long a study takes when it is left alone.

    Attributes:
        begun: Seconds until it first writes to its store.
        whole: Seconds until its end.
        again: Seconds until its end where every run is stored already.
    """

    begun: float
    whole: float
    again: float

    def moment(self, stored: float, rng: np.random.Generator) -> float:
        """Draw the second of a kill: evenly over what is left to do if so much of the runs, 0 to 1, is stored."""
        first, last = self.begun / 2, self.again + (self.whole - self.again) * (1 - stored)
        return rng.uniform(first, max(first, last))


def undisturbed(study: Study) -> Span:
    """Run a study to its end, twice; return how long it takes.

    Raises:
        RuntimeError: It failed by itself.
    """
    begun, whole = _lived(study)
    return Span(begun, whole, _lived(study)[1])


def _lived(study: Study) -> tuple[float, float]:
    start, life = time.monotonic(), Life(study)
    while not _begun(study.store) and life.process.poll() is None:
        time.sleep(0.05)
    begun = time.monotonic() - start
    status, left = life.end()
    if status != 0 or left:
        raise RuntimeError(f"the study fails without being disturbed (status {status}, left {left}):\n{life.words()}")
    return begun, time.monotonic() - start


def _begun(store: Path) -> bool:
    return store.is_dir() and any(store.iterdir())


def campaign(
    make: Callable[[Path], Study],
    reference: Study,
    folder: Path,
    *,
    kills: int,
    span: Span,
    rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:
    """Kill studies at random moments, start each again until it comes to its end, and compare.

    Args:
        make: Gives the study for a folder that is empty, or holds what its last life left.
        reference: The study that was left alone.
        folder: For the disturbed studies, one after the other.
        kills: Number of kills.
        span: As `undisturbed` gives it.
        rng: Source of the moments and victims.

    Yields:
        A row for every kill, and one for every study that came to its end after kills.
    """
    done = number = 0
    while done < kills:
        number += 1
        place, before = folder / str(number), done
        study, start = make(place), time.monotonic()
        while done < kills and (killed := _killed(study, reference, span, rng)):
            done += 1
            yield killed
        start, life = time.monotonic(), Life(study)
        status, left = life.end()
        faults = _faults(study, reference, status == 0, left) + ([] if status == 0 else [_failure(status, life)])
        if done > before:
            yield row("study", f"left alone after {done - before} kills", faults, start)
        if not faults:
            shutil.rmtree(place)


def _killed(study: Study, reference: Study, span: Span, rng: np.random.Generator) -> dict[str, Any] | None:
    """One life that ends by a kill, looked at; None where it came to its end before."""
    moment = span.moment(len(_runs(study.store)) / len(_runs(reference.store)), rng)
    start, life = time.monotonic(), Life(study)
    try:
        life.process.wait(moment)
    except subprocess.TimeoutExpired:
        pass
    stored, saved = (len(list(study.store.glob(p))) for p in ("[0-9a-f]*", ".*.training/checkpoint"))
    if not (name := life.kill(rng)):
        life.end()
        return None
    status, left = life.end()
    faults = _faults(study, reference, status == 0, left)
    if name == "worker" and status != 0:
        faults.append(_failure(status, life))  # the driver gives its work to another
    return row(name, f"SIGKILL after {moment:.1f} s: {stored} runs, {saved} checkpoints there", faults, start)


def _faults(study: Study, reference: Study, ended: bool, left: str) -> list[str]:
    there = unlike(study.store, reference.store, ended=ended) if study.store.is_dir() else []
    if study.published and reference.published:
        there += torn(study.published, reference.published, ended=ended)
    return there + ([f"processes are left: {left}"] if left else [])


def _failure(status: int | None, life: Life) -> str:
    lines = life.words().strip().splitlines() or ["without a word"]
    return "it hung" if status is None else f"exit status {status}: {lines[-1][:200]}"


# ---- notebooks ---------------------------------------------------------------------------------------------------
def notebooks(place: Path, only: str = "") -> Study:
    """The study as `make study` and `make figures` run it, at the smoke profile, in a copy of this repository.

    Args:
        place: Folder of the copy, made where it is not there: with the worlds and the committed figures, but without
            patches and runs.
        only: Numbers of notebooks, comma between them; all of them unless given.
    """
    if not place.exists():
        copied(place)
    command = [sys.executable, "tools/study.py", "--profile", "smoke", "--only", only, "--publish", "figures"]
    parts = {"kernel": "ipykernel_launcher", "worker": "spawn_main"}
    return Study(command, place / "data/runs", place, parts, place / "figures")


def copied(place: Path) -> None:
    """Copy to a new folder what notebooks need of this repository; worlds are shared."""
    left_out = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbutils", "notebooks", "tools", "figures", "data/datasets", "data/globe"):
        shutil.copytree(ROOT / name, place / name, ignore=left_out)
    shutil.copy(ROOT / "data/preflight.csv", place / "data")
    (place / "data/cache").mkdir()
    for name in ("city", "city_elsewhere"):
        if (ROOT / "data/cache" / name).is_dir():
            (place / "data/cache" / name).symlink_to(ROOT / "data/cache" / name)
