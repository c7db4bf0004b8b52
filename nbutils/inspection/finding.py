"""What an inspection finds, and in which words."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nbutils.cards import few
from nbutils.sources import Dataset

SEVERITIES = ("error", "warning", "note")
MOST_NAMES = 3


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a data set, or worth knowing.

    Attributes:
        severity: "error" where results would be wrong or work would stop, "warning" where something is probably not as
            meant, else "note".
        check: What was looked at: files, grids, values, legends, splits, dates, alignment, map or sample.
        what: What was found, with numbers and names.
        do: What to do about it.
    """

    severity: Literal["error", "warning", "note"]
    check: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.severity}, {self.check}: {self.what}\n    -> {self.do}"


class Trouble(NamedTuple):
    """A file that cannot be used: which part of the card it belongs to, the tile's name, the error's words."""

    part: str
    tile: str
    told: str


def named(names: Iterable[object]) -> str:
    """A few names in brackets, the rest counted."""
    return f"({few(names, MOST_NAMES)})"


def percent(share: float) -> str:
    """A share in per cent, with two digits where it is small."""
    return f"{100 * share:.2g} %" if share < 0.095 else f"{100 * share:.0f} %"


def unusable(dataset: Dataset, troubles: Sequence[Trouble]) -> list[Finding]:
    """Tell which files cannot be used, once for each part of the card."""
    findings, below = [], f"{dataset.card.folder}{os.sep}"
    for part in dict.fromkeys(trouble.part for trouble in troubles):
        own = [trouble for trouble in troubles if trouble.part == part]
        first = own[0].told.replace(below, "")  # files are named from the root on
        words = f"{part}: {len(own)} file(s) cannot be used {named(t.tile for t in own)}; the first: {first}"
        findings.append(Finding("error", "files", words, "mend them as the message says and inspect again"))
    return findings
