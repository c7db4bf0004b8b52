"""Mutation testing: do the tests see it when the code is wrong?

    python tools/mutants.py --each 20        # build/reliability.json, sections `mutants` and `survivors`
    python tools/mutants.py --rooms claims,statistics
    python tools/reliability.py report

Needs cosmic-ray, which names the places that can be changed and changes them: `pip install 'noisy-maps[dev]'`. Of every
room a number of places is drawn, each changed in one of its ways, drawn too; the room's own tests run on a copy of the
repository until the first fails. A change inside an annotation is none. A process that holds the libraries, and nothing
of this repository, is forked for every mutant. Exit status: 0 done, 2 the tests of a room fail without any change.
"""

import argparse
import ast
import csv
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import measured
import numpy as np
import pytest
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    "nbutils",
    "tests",
    "tools",
    "data/datasets",
    "data/globe",
    "data/sample",
    "pyproject.toml",
    "data/preflight.csv",
)
HEAVY = ("hypothesis.extra.numpy", "matplotlib.pyplot", "sklearn.linear_model", "skimage.measure", "geopandas")
ROOMS = {
    "legend": ["legend"],
    "statistics": ["statistics"],
    "claims": ["claims"],
    "contrasts": ["contrasts"],
    "worth": ["worth"],
    "evaluation": ["evaluation"],
    "noise.pixels": ["noise"],
    "noise.fields": ["noise"],
    "noise.geometry": ["noise_geometry", "noise"],
    "noise.objects": ["noise_objects"],
    "noise.spread": ["noise_geometry", "noise"],
    "noise.recipes": ["noise_recipes"],
    "audit.agreement": ["audit"],
    "audit.structure": ["audit_structure"],
    "audit.findings": ["audit_structure"],
    "audit.sampling": ["sampling"],
    "audit.planning": ["sampling"],
    "objectives.remedies": ["remedies"],
    "objectives.correction": ["correction"],
    "memorisation": ["memorisation"],
    "distance": ["distance"],
    "batches": ["batches"],
    "probing.similarity": ["probing"],
    "probing.probes": ["probing"],
    "probing.sensitivity": ["probing_sensitivity"],
    "preflight": ["preflight"],
    "verdict": ["verdict"],
}  # and the files of tests/ that are about each
SLOWEST_S = 90  # of a room's tests; a mutant has three times as long as they take

MUTANTS = """\
Of each room some places were drawn, seed {seed}, and each was changed in one way by cosmic-ray: another operator,
another number, a condition turned round, an exception not caught, a loop that never runs. Killed: a test of the room
failed, or ran on without an end. Where a survivor showed that tests were loose, they were mended and the room was tried
again with the same changes. These are the rooms that reckon; the others were not tried."""
SURVIVORS = """\
What the tests did not notice, and what a look at it said (`tests/survivors.csv`): a change that cannot change a result,
or one that should be noticed and is not yet."""
LOOKED_AT = ROOT / "tests" / "survivors.csv"


class Site(NamedTuple):
    """A place that can be changed: its line and column, and every operator and occurrence that changes it."""

    line: int
    column: int
    ways: tuple[tuple[str, int], ...]


def sites(source: str) -> list[Site]:
    """Find all places of a module that can be changed, in order."""
    nodes, annotated, found = list(ast_nodes(get_ast(source))), annotations(source), {}
    for name in sorted(plugins.operator_names()):
        if plugins.get_operator(name).arguments():
            continue  # it wants to be told names of variables
        operator, occurrence = plugins.get_operator(name)(), 0
        for node in nodes:
            for (line, column), _ in operator.mutation_positions(node):
                if not any(first <= (line, column) < last for first, last in annotated):
                    found.setdefault((line, column), []).append((name, occurrence))
                occurrence += 1
    return [Site(*place, tuple(ways)) for place, ways in sorted(found.items())]


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations begin and end, by line and column."""
    nodes = []
    for node in ast.walk(ast.parse(source)):
        nodes += [node.annotation] if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation else []
        nodes += [node.returns] if isinstance(node, ast.FunctionDef) and node.returns else []
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes]


def drawn(source: str, each: int, rng: np.random.Generator) -> Iterator[tuple[int, str]]:
    """Yield the line and the whole text of so many mutants."""
    found = sites(source)
    for i in sorted(rng.permutation(len(found))[:each]):
        name, occurrence = found[i].ways[rng.integers(len(found[i].ways))]
        changed = mutate_code(source, plugins.get_operator(name)(), occurrence)
        if changed != source:
            yield found[i].line, changed


def passes(copy: Path, tests: list[str], limit: float) -> bool:
    """Whether tests pass in a copy of the repository; they do not if they take longer than so many seconds."""
    child = os.fork()
    if child == 0:
        _test(copy, tests)
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _test(copy: Path, tests: list[str]) -> None:
    """Run tests in this process, a group of its own, and end it."""
    status = 1
    try:
        os.setsid()
        os.chdir(copy)
        sys.path[:0] = [str(copy), str(copy / "tools"), str(copy / "tests")]
        sys.dont_write_bytecode = True
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # seconds for every mutant, and no test of a room needs one
        for handle in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), handle)
        files = [f"tests/test_{name}.py" for name in tests]
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files])
    finally:
        os._exit(int(status))


def copied(place: Path) -> None:
    """Copy what the tests of rooms need of this repository."""
    for name in COPIED:
        source = ROOT / name
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)


def hold_libraries() -> None:
    """Import what rooms and their tests build on, and forget the rooms again; one thread each, as in the tests."""
    os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch reads it when it is imported
    for name in (*HEAVY, *(f"nbutils.{room}" for room in ROOMS)):
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.split(".")[0] == "nbutils"]:
        del sys.modules[name]


def in_a_copy(room: str, each: int, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Try a room's mutants in a copy of the repository; see `try_room`."""
    with tempfile.TemporaryDirectory() as folder:
        copied(copy := Path(folder).resolve() / "copy")
        return try_room(room, copy, each, seed)


def try_room(room: str, copy: Path, each: int, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Try a room's mutants; return its row, and one for every survivor.

    Raises:
        RuntimeError: Its tests fail, or take too long, as they are.
    """
    path, tests = copy / f"nbutils/{room.replace('.', '/')}.py", ROOMS[room]
    source, start = path.read_text(), time.monotonic()
    if not passes(copy, tests, SLOWEST_S):
        raise RuntimeError(f"{room}: {', '.join(tests)} fail without any change, or take more than {SLOWEST_S} s")
    limit = 3 * (time.monotonic() - start) + 10
    tried, survivors = 0, []
    try:
        for line, changed in drawn(source, each, np.random.default_rng(seed)):
            tried += 1
            path.write_text(changed)
            if passes(copy, tests, limit):
                survivors.append({"room": room, "line": line} | difference(source, changed))
    finally:
        path.write_text(source)
    row = {"room": room, "tests": ", ".join(tests), "places": len(sites(source)), "mutants": tried,
           "killed": tried - len(survivors), "left": len(survivors)}  # fmt: skip
    return row, survivors


def difference(source: str, changed: str) -> dict[str, str]:
    """The first line that differs, as it was and as it became."""
    pairs = zip(source.splitlines(), changed.splitlines(), strict=False)
    was, became = next(((a, b) for a, b in pairs if a != b), ("", ""))
    return {"was": was.strip(), "became": became.strip()}


def said_of(survivor: dict[str, Any]) -> str:
    """What somebody who looked at a survivor wrote down; found again by its room and its change, whatever its line."""
    with open(LOOKED_AT, newline="") as file:
        for row in csv.DictReader(file):
            if all(row[name] == survivor[name] for name in ("room", "was", "became")):
                return row["said"]
    return "not looked at"


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The last row of the table."""
    counts = [name for name, value in rows[0].items() if isinstance(value, int)]
    return {"room": "all", "tests": ""} | {name: sum(row[name] for row in rows) for name in counts}


def keep(row: dict[str, Any], left: list[dict[str, Any]], seed: int) -> None:
    """Put what a room gave in its place, beside what others gave before."""
    text, known = MUTANTS.format(seed=seed), measured.read()
    if known.get("mutants", {}).get("text") != text:
        known = {}  # of another seed: two draws make no table
    rows, survivors = (known.get(name, {"rows": []})["rows"] for name in ("mutants", "survivors"))
    rows = sorted([each for each in rows if each["room"] in ROOMS and each["room"] != row["room"]] + [row], key=_place)
    survivors = [each for each in survivors if each["room"] != row["room"]] + left
    survivors = [each | {"said": said_of(each)} for each in sorted(survivors, key=_place)]
    measured.keep("mutants", {"title": "Mutants", "text": text, "rows": [*rows, summed(rows)]})
    measured.keep("survivors", {"title": "Surviving mutants", "text": SURVIVORS, "rows": survivors})


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return list(ROOMS).index(row["room"]), row.get("line", 0)


def main(arguments: list[str] | None = None) -> int:
    """Try mutants of rooms; returns the exit status."""
    parser = argparse.ArgumentParser(description="Change the code and see whether its tests notice.")
    parser.add_argument("--each", type=int, default=20, help="mutants of a room (default: %(default)s)")
    parser.add_argument("--rooms", default=",".join(ROOMS), help="some of them (default: all there are)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="rooms tried at once (default: %(default)s)")
    options = parser.parse_args(arguments)
    hold_libraries()
    with ProcessPoolExecutor(options.processes, get_context("fork")) as pool:
        tried = pool.map(partial(in_a_copy, each=options.each, seed=options.seed), options.rooms.split(","))
        try:
            for row, left in tried:
                print(row, *left, sep="\n  ", flush=True)
                keep(row, left, options.seed)
        except RuntimeError as error:
            pool.shutdown(cancel_futures=True)
            print(error, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
