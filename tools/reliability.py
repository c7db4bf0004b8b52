"""What the study survives: kills, full disks, damaged files, two at once; measured here, told in docs/reliability.md.

    python tools/reliability.py kills             # four hours on one busy core; --only goes on with one part
    python tools/reliability.py faults
    python tools/reliability.py coverage          # what `make coverage` found
    python tools/reliability.py report            # docs/reliability.json and .md, from build/reliability.json

What is measured goes to `build/reliability.json` (`measured.py`); `fuzz.py` and `mutants.py` add sections of their own.
`report` takes the sections there are into `docs/reliability.json`, which keeps those of before, and writes the page.
Exit status: 0 all survived and enough is covered, 1 not so, 2 there is nothing to report.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import faults
import kills
import measured
import numpy as np
from tqdm import tqdm

from nbutils import ROOT, disk, patches

DOCS = ROOT / "docs"
CARD = ROOT / "data" / "datasets" / "city.yaml"
FOLDER = ROOT / "build" / "reliability"
NOTEBOOK = "06"
COVERAGE = ROOT / "build" / "coverage.json"
LEAST = 95  # per cent of a room's lines and branches; a room with less has a row of its own

# columns in this order, others behind them by name
FIRST = ("what", "injected", "survived", "seconds", "format", "cases", "room", "tests", "places", "mutants", "killed",
         "line", "was", "became", "lines", "reached", "branches", "taken")  # fmt: skip
CODE = ("was", "became")  # columns that hold lines of code
PARTS = {"two workers": 15, "one process": 30, "notebook": 8, "whole study": 50}  # kills of each

KILLS = f"""\
A study of seven runs on patches of the embedded city (two pretrainings that write checkpoints, four fine-tunings from
them, one from a random encoder) runs on two Dask workers or in one process. At a moment drawn evenly over the time it
works (over what is left of it, in the second campaign on the whole study, of 18), its driver or a worker gets SIGKILL;
it is started again, and killed again, until it comes to its end. Notebook {NOTEBOOK}, and all notebooks as `make study`
and `make figures` run them, are treated alike at the smoke profile, whose runs share one process, from a copy of the
repository that has the generated worlds but neither patches nor runs: `tools/study.py --publish figures` or one of its
kernels is killed, as is drawn. After each kill every stored run is compared with that of a study that was left alone:
`run.json` but for seconds and provenance, card and weights bit by bit; and each published figure and table must be
whole, the one of before or the new one. A study must outlive its workers. At the end nothing may be missing,
half-written, locked or left behind, no process either, and all figures and tables must be the same (but for a column of
seconds). Seconds are from the start of a study to the end of what the kill ended."""
COVERED = """\
Lines and branches of `nbutils` that the unit tests reach, by coverage.py, also in processes that tests start; notebooks
are not among them. Rooms below 95 per cent have a row of their own."""
FAULTS = """\
The same study in one process. A fault must be told by an error of the study's own that names the file or folder; when
it is mended as the error says, the study must come to the same bits. A damaged checkpoint needs no mending: the
training starts anew. A disk is full where files may not grow beyond a limit (for anyone), and where a small file system
is mounted (as root); a store is read-only by a mount as root, whom rights do not bind, else by its rights."""


def run_kills(part: str, n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Kill the study of a part (`PARTS`) so many times; yields rows."""
    rng, small = np.random.default_rng(seed), partial(kills.small, fingerprint=fingerprint())
    make = {
        "two workers": lambda folder: small(folder / "runs"),
        "one process": lambda folder: small(folder / "runs", workers=1),
        "notebook": partial(kills.notebooks, only=NOTEBOOK),
        "whole study": kills.notebooks,
    }[part]
    reference = make(FOLDER / "kills" / part / "reference")
    span = kills.undisturbed(reference)
    for row in kills.campaign(make, reference, FOLDER / "kills" / part, kills=n, span=span, rng=rng):
        yield row | {"what": f"{part}: {row['what']}"}


def run_faults(seed: int) -> Iterator[dict[str, Any]]:
    """Try all faults on the small study; yields rows."""
    patch_set = fingerprint()
    make = lambda folder: kills.small(folder / "runs", patch_set, workers=1)  # noqa: E731
    reference = make(FOLDER / "faults" / "reference")
    kills.undisturbed(reference)
    yield from faults.all_faults(make, reference.store, FOLDER / "faults", np.random.default_rng(seed))


def fingerprint() -> str:
    """Cut the patches of the small study, where they are not there yet, and return their name."""
    return patches.cut(patches.open_dataset(CARD), size_px=32, max_patches=16).fingerprint


def measure(
    section: str, title: str, text: str, rows: Iterable[Mapping[str, Any]], only: str = "", *, add: bool = False
) -> int:
    """Collect rows, telling each, and put them into `build/reliability.json`; return the exit status.

    With `only` the rows of other parts stay; with `add` those of this part stay too.
    """
    shutil.rmtree(FOLDER / section / only, ignore_errors=True)
    known = measured.read(DOCS / "reliability.json") | measured.read()
    before = known.get(section, {"rows": []})["rows"] if only else []
    kept = [row for row in before if add or not row["what"].startswith(f"{only}: ")]
    for row in rows:
        kept.append(dict(row))
        tqdm.write(f"{row['what']}, {row['injected']}: {row['survived']} ({row['seconds']:.0f} s)")
        measured.keep(section, {"title": title, "text": text, "rows": kept})
    lost = [row for row in kept if row["survived"] != "yes"]
    tqdm.write(f"{len(kept) - len(lost)} of {len(kept)} survived -> {measured.PATH.relative_to(ROOT)}")
    return 1 if lost else 0


def covered(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Make rows of a report of coverage.py: a room below `LEAST` each, and all rooms together."""
    rooms = {
        name.removeprefix("nbutils/").removesuffix(".py"): part["summary"] for name, part in found["files"].items()
    }
    low = {name: part for name, part in sorted(rooms.items()) if part["percent_covered"] < LEAST}
    for name, part in {**low, "all": found["totals"]}.items():
        yield {
            "room": name.replace("/", "."),
            "lines": part["num_statements"],
            "reached": part["covered_lines"],
            "branches": part["num_branches"],
            "taken": part["covered_branches"],
            "per cent": round(part["percent_covered"], 1),
        }


def tell_coverage() -> int:
    """Put what `make coverage` found beside what else was measured; return the exit status."""
    if not COVERAGE.exists():
        print(f"{COVERAGE} is not there; run `make coverage` first", file=sys.stderr)
        return 2
    rows = list(covered(json.loads(COVERAGE.read_text())))
    measured.keep("coverage", {"title": "Coverage", "text": COVERED, "rows": rows})
    return 0 if rows[-1]["per cent"] >= LEAST else 1


def render(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Write sections as a page: what was done, how many survived, and every row."""
    lines = [
        "# What the study survives",
        "",
        "Measured, and written from [reliability.json](reliability.json) by `tools/reliability.py report`; no number",
        "is typed by hand. Again: `make coverage mutants fuzz`, then `python tools/reliability.py kills`, `faults`",
        "and `report`.",
    ]
    for section in sections.values():
        rows = section["rows"]
        lines += ["", f"## {section['title']}", "", section["text"], ""]
        if all("survived" in row for row in rows):
            survived = sum(row["survived"] == "yes" for row in rows)
            lines += [f"**{survived} of {len(rows)} survived.**{_by_what(rows)}", ""]
        columns = sorted(rows[0], key=lambda name: (*FIRST, name).index(name)) if rows else []
        lines += [_line(columns), _line("---" for _ in columns)] if rows else ["No rows."]
        lines += [_line(f"`{row[c]}`" if c in CODE else row[c] for c in columns) for row in rows]
    return "\n".join(lines) + "\n"


def _by_what(rows: Iterable[Mapping[str, Any]]) -> str:
    numbers: dict[str, int] = {}
    for row in rows:
        numbers[row["what"]] = numbers.get(row["what"], 0) + 1
    return " " + ", ".join(f"{what} {n}" for what, n in numbers.items()) + "."


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def report() -> int:
    """Take what was measured into docs/ and write the page; return the exit status."""
    kept = DOCS / "reliability.json"
    DOCS.mkdir(exist_ok=True)
    sections = measured.read(kept) | measured.read()
    if not sections:
        print(f"nothing was measured: {measured.PATH} is not there; run `kills` or `faults` first", file=sys.stderr)
        return 2
    disk.write_json(kept, sections)
    disk.write_text(DOCS / "reliability.md", render(measured.read(kept)))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Measure or report; returns the exit status."""
    parser = argparse.ArgumentParser(description="Measure what the study survives.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("kills", "faults"):
        verbs.add_parser(verb).add_argument("--seed", type=int, default=0, help="of moments, victims and damage")
    verbs.choices["kills"].add_argument("--only", default="", choices=("", *PARTS), help="this part")
    verbs.choices["kills"].add_argument("--kills", type=int, help=f"of each part (default: {PARTS})")
    verbs.choices["kills"].add_argument(
        "--add", action="store_true", help="keep the part's rows of before; needs a --seed of its own"
    )
    verbs.add_parser("coverage")
    verbs.add_parser("report")
    options = parser.parse_args(arguments)
    if options.verb == "kills" and options.add and not options.seed:
        parser.error("--add needs a --seed that was not used before; 0 is that of the first campaign")
    if options.verb == "kills":
        statuses = [
            measure(
                "kills", "Kills", KILLS, run_kills(part, options.kills or number, options.seed), part, add=options.add
            )
            for part, number in PARTS.items()
            if options.only in ("", part)
        ]
        return max(statuses)
    if options.verb == "faults":
        return measure("faults", "Faults", FAULTS, run_faults(options.seed))
    return tell_coverage() if options.verb == "coverage" else report()


if __name__ == "__main__":
    sys.exit(main())
