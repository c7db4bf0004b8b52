"""Reports: what was measured, kept part by part in measured.json beside this file, and told elsewhere."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import scale
from benchmarks.growth import Growth
from benchmarks.racing import Row
from nbutils import ROOT, disk

KEPT, README = ROOT / "benchmarks" / "measured.json", ROOT / "README.md"
PAGE, COPY = ROOT / "build" / "bench.md", ROOT / "build" / "bench.json"
PARTS = ("training", "streaming", "reading", "lidar", "noise", "audit", "world", "probing", "sweep", "scale", "growth")
BEGIN, END = "<!-- speeds: written by make bench -->\n", "<!-- end of speeds -->\n"


def told(row: Row | Growth) -> str:
    """A row as it is printed."""
    if isinstance(row, Growth):
        memory = "" if row.memory is None else f", memory ^{row.memory:.2f}, {row.megabytes[-1]:.0f} MB"
        return f"{row.name + ' / ' + row.against:55s} time ^{row.time:.2f}, {row.seconds[-1]:.3g} s{memory}"
    return f"{row.name:55s} {row.median:9.3g} {row.unit}  ({row.low:.3g} - {row.high:.3g})"


def keep(part: str, rows: list[Row] | list[Growth], machine: dict[str, str]) -> None:
    """Put the rows of a part into their place, beside those of other parts."""
    disk.write_json(KEPT, read(KEPT) | {part: {"machine": machine, "rows": [asdict(row) for row in rows]}})


def read(path: Path) -> dict[str, Any]:
    """All parts of a file by name, in the order of `PARTS`; none where nothing was measured."""
    known = json.loads(path.read_text()) if path.exists() else {}
    return {name: known[name] for name in PARTS if name in known}


def publish() -> None:
    """Write build/bench.md and build/bench.json, the README's tables, and the arithmetic where its parts are there."""
    known = read(KEPT)
    PAGE.parent.mkdir(exist_ok=True)
    texts = {PAGE: page(known), README: put(README.read_text(encoding="utf-8"), known)}
    texts |= {scale.PAGE: scale.page(known)} if "scale" in known else {}
    for path, text in texts.items():
        disk.write_text(path, text)
    disk.write_json(COPY, known)
    print("written:", ", ".join(path.name for path in (*texts, COPY)))


def page(known: dict[str, Any]) -> str:
    """Every row of every part, and where it was measured."""
    speeds = [row for part in known.values() for row in part["rows"] if "median" in row]
    lines = ["| what | median | range | unit |", "|---|---:|---:|---|"]
    lines += [f"| {r['name']} | {r['median']:.3g} | {r['low']:.3g} - {r['high']:.3g} | {r['unit']} |" for r in speeds]
    return "\n".join([*lines, "", *grown(known), "", *measured_on(known), ""])


def put(readme: str, known: dict[str, Any]) -> str:
    """Return a README with the comparisons and the growth in their place.

    Raises:
        ValueError: The two marks are not there, each once.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md: expected the lines {BEGIN.strip()!r} and {END.strip()!r}, each once")
    before, rest = readme.split(BEGIN)
    block = "\n".join([*compared(known), "", *grown(known), "", *measured_on(known), ""])
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def compared(known: dict[str, Any]) -> list[str]:
    """A table of ratios, each under the speed it belongs to."""
    lines, speed = ["| what | speed | compared | ratio |", "|---|---:|---|---:|"], None
    for row in (row for part in known.values() for row in part["rows"] if "median" in row):
        if not row["name"].startswith("- "):
            speed = row
        elif row["unit"] == "x":
            ratio = f"{row['median']:.2f} ({row['low']:.2f} - {row['high']:.2f})"
            name, unit = speed["name"], speed["unit"]
            lines.append(f"| {name} | {speed['median']:.3g} {unit} | {row['name'].removeprefix('- ')} | {ratio} |")
    return lines


def grown(known: dict[str, Any]) -> list[str]:
    """A table of exponents."""
    lines = ["| what | against | from - to | time grows by the power | at the largest | memory by | at the largest |"]
    lines += ["|---|---|---|---:|---:|---:|---:|"]
    for row in (row for part in known.values() for row in part["rows"] if "sizes" in row):
        memory = (
            "– | –" if row["memory"] is None else f"{round(row['memory'], 2) + 0.0:.2f} | {row['megabytes'][-1]:.0f} MB"
        )
        sizes = f"{row['sizes'][0]:,} - {row['sizes'][-1]:,}"
        time = f"{row['time']:.2f} | {row['seconds'][-1]:.3g} s"
        lines.append(f"| {row['name']} | {row['against']} | {sizes} | {time} | {memory} |")
    return lines


def measured_on(known: dict[str, Any]) -> list[str]:
    """The machines, each once."""
    machines = {json.dumps(part["machine"]): part["machine"] for part in known.values()}
    return ["- " + "; ".join(f"{name}: {value}" for name, value in machine.items()) for machine in machines.values()]
