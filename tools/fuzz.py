"""Read thousands of damaged files, in processes that may hang, crash or ask for memory, and count what comes of it.

    python tools/fuzz.py --cases 2000 --seed 0

A case ends in success or in one of the product's own errors, whose message names the file and says what to do. All
else is a fault: another exception, a crash, more than `LIMIT_S` seconds or `LIMIT_BYTES` of memory, a file left
behind, and, where the product keeps a checksum, another content than was written. The table goes to
`build/reliability.json`. Exit status: 0 no fault, 1 faults, which are printed with what repeats them.
"""

import argparse
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import measured
import numpy as np
import psutil
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 60  # a sound file takes a fiftieth of a second; machines may be busy
LIMIT_BYTES = 2 << 30  # beyond what a process has before it reads anything
START = "spawn"  # nothing of the parent reaches the processes
START_S = 600  # for a process to import what it needs
OURS = {"CardError", "DataMissing", "SourceError", "WeightsError", "StoreError", "StudyError"}
REMEDY = re.compile(r"; |\n|allowed|known|expected|must|need|there are|get it|give|choose")
MEMORY = {"MemoryError", "CPLE_OutOfMemoryError"}


class Case(NamedTuple):
    """A format, by its name in `fuzz_formats.FORMATS`, and a number, which with the seed determines the damage."""

    form: str
    number: int
    seed: int


class Outcome(NamedTuple):
    """What came of a case: `succeeded`, `refused` or `fault`; what was said; seconds."""

    kind: str
    told: str = ""
    seconds: float = 0.0


def judge(error: BaseException, paths: Sequence[Path]) -> Outcome:
    """Tell a documented error from a fault."""
    kinds, link = [], error
    while link is not None:
        kinds.append(type(link).__name__)
        link = link.__cause__ or link.__context__
    told = f"{kinds[0]}: {str(error)[:300]}"
    if MEMORY & set(kinds):
        return Outcome("fault", f"asks for more than {LIMIT_BYTES >> 30} GiB: {told}")
    if kinds[0] not in OURS:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome("fault", f"{told} ({Path(last.filename).name}:{last.lineno})")
    if kinds[0] != "DataMissing" and not any(str(path) in str(error) for path in paths):
        return Outcome("fault", f"does not name the file: {told}")
    if len(str(error)) > 5000:
        return Outcome("fault", f"tells {len(str(error))} characters: {told}")
    return Outcome("refused", told) if REMEDY.search(str(error)) else Outcome("fault", f"has no remedy: {told}")


class Bench:
    """Sound files of one format, damaged and put right again case by case."""

    def __init__(self, form: str, folder: Path):
        from fuzz_formats import FORMATS  # slow to import, and the process that only counts needs none of it

        folder.mkdir()
        self.form, self.folder, self.salt = FORMATS[form], folder, zlib.crc32(form.encode())
        self.paths = self.form.write(folder)
        self.sound = [path.read_bytes() for path in self.paths]
        self.there, self.value = sorted(folder.rglob("*")), self.form.read(self.paths)

    def damaged(self, case: Case) -> tuple[int, bytes]:
        """Which of the files is damaged in a case, and what it then holds."""
        which = case.number // len(self.form.damages) % len(self.paths)
        damage = self.form.damages[case.number % len(self.form.damages)]
        return which, damage(self.sound[which], np.random.default_rng([case.seed, case.number, self.salt]))

    def attempt(self, case: Case) -> Outcome:
        """Damage a file, read it, put it right."""
        start, (which, content) = time.perf_counter(), self.damaged(case)
        self.paths[which].write_bytes(content)
        try:
            value, outcome = self.form.read(self.paths), Outcome("succeeded")
            if self.form.summed and value != self.value:
                outcome = Outcome("fault", "reads something else than was written")
        except BaseException as error:  # decoders panic, and regular expressions may want to exit
            outcome = judge(error, [*self.paths, self.folder])
        if left := set(self.folder.rglob("*")) ^ set(self.there):
            outcome = Outcome("fault", f"leaves or loses {', '.join(path.name for path in left)}")
        self.paths[which].write_bytes(self.sound[which])
        return outcome._replace(seconds=time.perf_counter() - start)


def serve(pipe: Connection, folder: Path) -> None:
    """Attempt the cases that come through a pipe, with bounded memory, and send what came of them."""
    import fuzz_formats  # noqa: F401 before memory is bounded

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries print about damage
    warnings.simplefilter("ignore")
    most = psutil.Process().memory_info().vms + LIMIT_BYTES
    if sys.platform == "linux":  # elsewhere the limit is not kept by the system
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    benches: dict[str, Bench] = {}
    pipe.send("ready")
    while True:
        case = pipe.recv()
        if case.form not in benches:
            benches[case.form] = Bench(case.form, folder / str(len(benches)))
        pipe.send(benches[case.form].attempt(case))


class Child:
    """A process that attempts cases, and is replaced when it hangs or dies."""

    def __init__(self, folder: Path):
        self.folder, self.process = folder, None

    def ask(self, case: Case) -> Outcome:
        """What comes of a case."""
        if self.process is None:
            self._start()
        self.pipe.send(case)
        try:
            if self.pipe.poll(LIMIT_S):
                return self.pipe.recv()
            told = f"hangs: more than {LIMIT_S} s"
        except EOFError:
            self.process.join()
            told = f"ends the process with status {self.process.exitcode}"
        self.stop()
        return Outcome("fault", told, LIMIT_S)

    def _start(self) -> None:
        context = multiprocessing.get_context(START)
        self.pipe, other = context.Pipe()
        home = Path(tempfile.mkdtemp(dir=self.folder))
        self.process = context.Process(target=serve, args=(other, home), daemon=True)
        self.process.start()
        other.close()
        if not (self.pipe.poll(START_S) and self.pipe.recv() == "ready"):
            raise RuntimeError(f"a process for cases did not start within {START_S} s")

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def campaign(cases: Sequence[Case], workers: int = 2) -> Iterator[tuple[Case, Outcome]]:
    """Attempt cases, each in one of some processes; outcomes as they come, in the order of the cases."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ThreadPoolExecutor(workers) as pool:
        children: SimpleQueue[Child] = SimpleQueue()
        for _ in range(workers):
            children.put(Child(Path(folder)))

        def ask(case: Case) -> tuple[Case, Outcome]:
            child = children.get()
            try:
                return case, child.ask(case)
            finally:
                children.put(child)

        try:
            yield from tqdm(pool.map(ask, cases), total=len(cases), disable=not sys.stderr.isatty())
        finally:
            while not children.empty():
                children.get().stop()


def section(found: Sequence[tuple[Case, Outcome]], forms: Sequence[str], seed: int) -> dict:
    """The table of a campaign as a section of the report."""
    counts = Counter((case.form, outcome.kind) for case, outcome in found)
    slowest = max(outcome.seconds for _, outcome in found)
    names = {"succeeded": "succeeded", "refused": "refused", "faults": "fault"}
    rows = [
        {"format": form, "cases": sum(counts[form, kind] for kind in names.values())}
        | {name: counts[form, kind] for name, kind in names.items()}
        for form in forms
    ]
    text = (
        f"Files damaged at random and files made to harm (seed {seed}), each read in a process of its own with "
        f"{LIMIT_S} s and {LIMIT_BYTES >> 30} GiB; the slowest took {slowest:.1f} s. Refused: by an error that names "
        "the file and the remedy. Succeeded: read, and for run.json and weights equal to what was written. All else "
        "is a fault."
    )
    return {"title": "Damaged and malicious files", "text": text, "rows": rows}


def main(arguments: list[str] | None = None) -> int:
    """Run a campaign and report it; returns the exit status."""
    from fuzz_formats import FORMATS

    parser = argparse.ArgumentParser(description="Read damaged files and count what comes of it.")
    parser.add_argument("--cases", type=int, default=2000, help="of all formats together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one damages otherwise (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="FORMAT", help="one format: " + ", ".join(FORMATS))
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each format")
    parser.add_argument("--report", type=Path, default=measured.PATH, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.only and options.only not in FORMATS:
        parser.error(f"no format {options.only!r}; there are {', '.join(FORMATS)}")
    forms = [options.only] if options.only else list(FORMATS)
    each = -(-options.cases // len(forms))
    numbers = range(options.first, options.first + each)
    found = []
    for case, outcome in campaign([Case(form, number, options.seed) for form in forms for number in numbers]):
        found.append((case, outcome))
        if outcome.kind == "fault":
            told = f"--only '{case.form}' --first {case.number} --cases 1 --seed {case.seed}: {outcome.told}"
            tqdm.write(told, file=sys.stdout)
            sys.stdout.flush()
    content = section(found, forms, options.seed)
    measured.keep("fuzz", content, options.report)
    for form, *numbers in [list(content["rows"][0]), *(list(row.values()) for row in content["rows"])]:
        print(f"{form:24}" + "".join(f"{value!s:>11}" for value in numbers))
    return 1 if any(outcome.kind == "fault" for _, outcome in found) else 0


if __name__ == "__main__":
    sys.exit(main())
