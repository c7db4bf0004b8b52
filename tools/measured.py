"""What was measured of the study's reliability: sections of one JSON file, made a page by `reliability.py report`.

Nothing of the study is imported here: who counts damaged files or mutants must not have it in its memory.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parents[1] / "build" / "reliability.json"


def read(path: Path | None = None) -> dict[str, Any]:
    """Return all sections of a file (`PATH`) by name; none where nothing was measured."""
    path = path or PATH
    return json.loads(path.read_text()) if path.exists() else {}


def keep(name: str, section: Mapping[str, Any], path: Path | None = None) -> None:
    """Put a section in its place, beside those of others; whole or not at all.

    Args:
        name: Of the section.
        section: `title`, `text` that says how it was done, and `rows` of the same columns; in a row that has
            `survived` whatever is not "yes" is a fault.
        path: Of the file; `PATH` unless told otherwise.
    """
    path = path or PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(read(path) | {name: section}, indent=1, sort_keys=True) + "\n")
    scratch.replace(path)
