"""Run the study: every notebook in order, at one profile, on one data set.

    python tools/study.py --profile reading --dataset data/datasets/city.yaml

Executed copies go to `build/<profile>/<data set>/`, figures and tables to `figures/` in it; `index.html` shows
both. Notebooks run in the order of their numbers, but 00 comes last, because it shows what the others found, and 01
and 02, which need nothing of the others, run beside them.
With `--publish figures` the figures and tables then replace those in that folder; with `--publish-tables` the tables
alone do. `--only 04,05` runs just these notebooks, and what the others drew stays where it was.
Exit status: 0 done, 1 a notebook failed, 2 wrong input (profile or card), 3 the data are not there, 130 interrupted.
"""

import argparse
import difflib
import itertools
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import papermill
import psutil
from nbclient.exceptions import DeadKernelError
from tqdm import tqdm

from nbutils.disk import scratch_folder

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
INPUT_ERRORS = ("CardError", "DataMissing")  # raised in a kernel: the message is the whole story
BESIDE = ("01_", "02_")
TABLES = ("[0-9][0-9]_*.csv", "results.csv", "claims.csv")
PUBLISHED = ("[0-9][0-9]_*.png", *TABLES)
PUBLISHED_BYTES = 7_000_000
KERNEL_START_S = 600  # a kernel takes seconds to start, but not on a machine that swaps or compiles


class StudyError(Exception):
    """The study cannot start or go on; the message is what the user needs to know."""

    def __init__(self, message: str, status: int = 2):
        super().__init__(message)
        self.status = status


def find_notebooks(folder: Path, only: str = "") -> list[Path]:
    """Numbered notebooks of a folder in the order they run, by number, 00 last; `only` lists some numbers.

    Raises:
        StudyError: There is none, or none of a number asked for.
    """
    found = sorted(
        folder.glob("[0-9][0-9]_*.ipynb"),
        key=lambda path: (path.name.startswith("00_"), path.name),
    )
    if not found:
        raise StudyError(f"{folder}: no notebook named NN_*.ipynb")
    asked = [number.strip() for number in only.split(",") if number.strip()]
    numbers = [path.name[:2] for path in found]
    if unknown := [number for number in asked if number not in numbers]:
        raise StudyError(f"no notebook {', '.join(unknown)}; there are {', '.join(sorted(numbers))}")
    return [path for path in found if not asked or path.name[:2] in asked]


def read_profile(name: str, folder: Path) -> dict[str, Any]:
    """Parameters of a profile; `reading` is the notebooks' own defaults and has no file.

    Raises:
        StudyError: There is no such profile, or it is not one.
    """
    path = folder / f"{name}.yaml"
    if path.is_file():
        from nbutils import guarded

        try:
            values = guarded.read_yaml(path) or {}
        except ValueError as error:
            raise StudyError(f"{path}: {error}") from None
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            got = f"keys {list(values)[:5]}" if isinstance(values, dict) else type(values).__name__
            raise StudyError(f"{path}: expected lines of `parameter: value`, got {got}")
        return values
    if name == "reading":
        return {}
    known = ["reading", *sorted(p.stem for p in folder.glob("*.yaml"))]
    raise StudyError(f"no profile {name!r}{_close(name, known)}; there are {', '.join(known)} (files in {folder})")


def _close(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=3)
    return f" - did you mean {' or '.join(matches)}?" if matches else ""


def parameters_for(
    notebooks: list[Path], values: dict[str, Any], origin: str = "profile"
) -> dict[Path, dict[str, Any]]:
    """Give each notebook the values it has parameters for; `origin` says in errors where they come from.

    Raises:
        StudyError: a value that no notebook has a parameter for.
    """
    known = {path: set(papermill.inspect_notebook(path)) for path in notebooks}
    everywhere = sorted(set().union(*known.values()))
    unknown = [f"{key!r}{_close(key, everywhere)}" for key in values if key not in everywhere]
    if unknown:
        raise StudyError(
            f"{origin}: no notebook has a parameter {'; '.join(unknown[:9])}\nknown: {', '.join(everywhere)}"
        )
    return {path: {key: value for key, value in values.items() if key in known[path]} for path in notebooks}


def card_path(asked: str) -> Path:
    """Where a data set card lies: as asked for, or so from the repository."""
    card = Path(asked).expanduser()
    return (card if card.is_file() else ROOT / card).resolve()


def check_dataset(card_path: Path) -> None:
    """Read the data set card and look for its files, so that what is missing is told before anything runs."""
    from nbutils import sources

    if not card_path.is_file():
        cards = ", ".join(str(p.relative_to(ROOT)) for p in sorted((ROOT / "data/datasets").glob("*.yaml")))
        raise StudyError(f"no data set card {card_path}; shipped cards: {cards or 'none'}")
    try:
        if sources.load_card(card_path).world is None:  # else generated when it is first opened
            sources.read_dataset(card_path)
    except (sources.CardError, sources.SourceError) as error:
        raise StudyError(str(error)) from None
    except sources.DataMissing as error:
        raise StudyError(str(error), 3) from None


def portable(path: Path) -> str:
    """A path as notebooks print it: relative to the repository where it lies inside it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


@contextmanager
def echo_lines(log: Path, period_s: float = 0.5) -> Iterator[None]:
    """Print the lines that other processes append to `log` while the block runs."""
    done = threading.Event()

    def follow(position: int) -> None:
        finished = False
        while not finished:
            finished = done.wait(period_s)  # and one last look after the block has ended
            new = log.read_bytes()[position:] if log.is_file() else b""
            whole = new[: new.rfind(b"\n") + 1]
            position += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                say(f"    {line}")

    thread = threading.Thread(target=follow, args=(log.stat().st_size if log.is_file() else 0,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def say(line: str) -> None:
    """Print a line at once, above a progress bar if there is one."""
    tqdm.write(line)
    sys.stdout.flush()


def run_notebook(path: Path, copy: Path, parameters: dict[str, Any]) -> None:
    """Execute a notebook from its own folder into `copy`; the kernel is that of this interpreter.

    Raises:
        StudyError: a cell failed or the kernel died; status 2 when the input was at fault, 3 when the data are missing.
    """
    try:
        papermill.execute_notebook(
            path,
            copy,
            parameters=parameters,
            kernel_name="python3",
            # `cwd` would change that of this process, which another notebook at the same time changes back
            resources={"metadata": {"path": str(path.parent)}},
            progress_bar=sys.stderr.isatty(),
            start_timeout=KERNEL_START_S,
            coalesce_streams=True,  # else a slow moment splits what a cell prints in two outputs
            extra_arguments=["--log-level=CRITICAL"],  # of the kernel's own log; errors of cells arrive anyway
        )
    except papermill.PapermillExecutionError as error:
        if error.ename in INPUT_ERRORS:
            raise StudyError(error.evalue, 3 if error.ename == "DataMissing" else 2) from None
        raise StudyError(describe_failure(error, path, copy), 1) from None
    except DeadKernelError as error:
        raise StudyError(f"{path.name}: {error} (out of memory?)\nexecuted copy: {portable(copy)}", 1) from None


def describe_failure(error: papermill.PapermillExecutionError, path: Path, copy: Path) -> str:
    """Notebook, cell and last line of an error, and where the traceback is."""
    lines = error.source.strip().splitlines()
    cell = "\n".join(f"    {line}" for line in lines[:5] + ["..."] * (len(lines) > 5))
    last = (error.evalue.strip().splitlines() or [""])[-1]
    where = f"{path.name} failed in cell [{error.exec_count}]:\n{cell}"
    return f"{where}\n{error.ename}: {last}\ntraceback: {portable(copy)}"


def run_all(notebooks: dict[Path, dict[str, Any]], folder: Path) -> None:
    """Run notebooks with their parameters into a fresh `folder`, telling how far it is.

    03 to 06 run in order, for they share runs; those of `BESIDE` need nothing of them and run at the same time; 00
    shows what all the others found and runs last. A failure ends every line after the notebook it is at.

    Raises:
        StudyError: a notebook failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "figures").mkdir(parents=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two kernels with a thread per core each wait for one another
    done, failed = itertools.count(1), threading.Event()

    def run_line(line: Iterable[Path]) -> None:
        for path in line:
            if failed.is_set():
                return
            say(f"{path.stem} ...")
            start = time.perf_counter()
            try:
                run_notebook(path, folder / path.name, notebooks[path])
            except BaseException:
                failed.set()
                raise
            say(f"[{next(done)}/{len(notebooks)}] {path.stem}: {time.perf_counter() - start:.0f} s")

    last = [path for path in notebooks if path.name.startswith("00_")]
    beside = [path for path in notebooks if path.name.startswith(BESIDE)]
    with echo_lines(ROOT / "data/runs/log.txt"), ThreadPoolExecutor(1) as pool:
        other = pool.submit(run_line, beside)
        run_line(path for path in notebooks if path not in [*last, *beside])
        other.result()
    run_line(last)


def publish(
    source: Path, target: Path, patterns: Sequence[str] = PUBLISHED, numbers: Collection[str] | None = None
) -> int:
    """Replace the figures and tables in `target` by those in `source`; other files stay as they are.

    Args:
        source: Folder of what the notebooks drew.
        target: Folder that is kept.
        patterns: Names to take.
        numbers: Of the notebooks that ran; what others drew stays as it is. All of them unless given.

    Returns:
        Number of files in their place.

    Raises:
        StudyError: there are none, or they are too large to keep in git; `target` is left alone.
    """

    def meant(path: Path) -> bool:
        number = path.name[:2]
        return numbers is None or number in numbers or (not number.isdigit() and (source / path.name).exists())

    files = sorted(path for pattern in patterns for path in source.glob(pattern) if meant(path))
    size = sum(path.stat().st_size for path in files)
    if not files:
        raise StudyError(f"{portable(source)} holds no figures", 1)
    if size > PUBLISHED_BYTES:
        largest = ", ".join(path.name for path in sorted(files, key=lambda path: -path.stat().st_size)[:3])
        raise StudyError(f"figures of {size / 1e6:.1f} MB, at most {PUBLISHED_BYTES / 1e6:.0f}; largest: {largest}", 1)
    target.mkdir(parents=True, exist_ok=True)
    with scratch_folder(target) as scratch:  # a file is whole or as it was, whenever this is killed
        for path in files:
            shutil.copyfile(path, scratch / path.name)
        for path in files:
            os.replace(scratch / path.name, target / path.name)
    names = {path.name for path in files}
    for stale in [path for pattern in PUBLISHED for path in target.glob(pattern) if meant(path)]:
        if stale.name not in names:
            stale.unlink()
    return len(files)


def stop_on_signals() -> None:
    """Let Ctrl-C and `kill` end the kernel and everything it started."""

    def leave(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        logging.disable()  # of what the libraries have to say about a kernel that is gone
        family = psutil.Process().children(recursive=True)  # while parents still point to their children
        for process in reversed(family):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)


def main(arguments: list[str] | None = None) -> int:
    """Check the input, run the notebooks, write the pages; returns the exit status."""
    parser = argparse.ArgumentParser(description="Run the study at one profile on one data set.")
    parser.add_argument("--profile", default="reading", help="a name in notebooks/profiles/ (default: reading)")
    parser.add_argument("--dataset", help="card (default: that of the profile, else data/datasets/city.yaml)")
    parser.add_argument("--only", default="", metavar="NN,NN", help="numbers of the notebooks to run (default: all)")
    parser.add_argument("--publish", type=Path, metavar="FOLDER", help="put figures and tables there when done")
    parser.add_argument("--publish-tables", type=Path, metavar="FOLDER", help="put the tables alone there when done")
    parser.add_argument("--scheduler", metavar="tcp://HOST:PORT", help="a running Dask scheduler whose workers train")
    options = parser.parse_args(arguments)
    if options.scheduler:
        os.environ["NOISY_MAPS_SCHEDULER"] = options.scheduler  # kernels inherit it; see nbutils/cluster.py
    logging.getLogger("papermill").setLevel(logging.WARNING)
    start = time.perf_counter()
    try:
        values = read_profile(options.profile, NOTEBOOKS / "profiles")
        card = card_path(options.dataset or values.get("dataset", "data/datasets/city.yaml"))
        folder = ROOT / "build" / options.profile / card.stem
        values |= {"dataset": portable(card), "output": portable(folder / "figures")}
        chosen, notebooks = find_notebooks(NOTEBOOKS, options.only), find_notebooks(NOTEBOOKS)
        notebooks = parameters_for(notebooks, values, f"profile {options.profile}")
        notebooks = {path: notebooks[path] for path in chosen}
        check_dataset(card)
        say(f"profile {options.profile}, data set {portable(card)} -> {portable(folder)}")
        run_all(notebooks, folder)
        import pages  # after the notebooks: what it needs is no business of theirs

        index = pages.write(folder, NOTEBOOKS, card=card, profile=options.profile)
        numbers = [path.name[:2] for path in chosen] if options.only else None
        if options.publish:
            number = publish(folder / "figures", options.publish, numbers=numbers)
            say(f"{number} figures and tables -> {options.publish}")
        if options.publish_tables:
            number = publish(folder / "figures", options.publish_tables, TABLES, numbers)
            say(f"{number} tables -> {options.publish_tables}")
    except StudyError as error:
        print(error, file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("stopped; finished runs are kept and will be reused", file=sys.stderr)
        return 130
    say(f"done in {(time.perf_counter() - start) / 60:.1f} min; open {index}")
    return 0


if __name__ == "__main__":
    stop_on_signals()
    sys.exit(main())
