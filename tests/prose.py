"""What README and findings say in sentences, and the rows of the committed tables it can have said it of."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import readme

ROOT = Path(__file__).resolve().parents[1]
NUMBER = r"(?:(?:more|fewer) than )?[+-]?\d+(?:\.\d+)?"
STATEMENT = re.compile(rf"(?<![\w.,+-])({NUMBER})(?: (points|%|per cent))? \[({NUMBER}), ({NUMBER})\]")
BRACKETS = re.compile(r"\[[^][()]*\d[^][()]*(?:,|\bto\b)[^][()]*\d[^][()]*\](?!\()")  # whatever may be an interval
LINK = re.compile(r"\]\((?:\.\./)?(figures[^)\s]*)\)")
ARMS = {"random": "random", "MoCo": "moco", "DINO": "dino", "VICRegL": "vicregl", "noisy map": "noisy",
        "exact map": "exact"}  # fmt: skip
NAME = "|".join(ARMS)
ITEM = re.compile(rf"((?:{NAME})(?: and (?:{NAME}))*) (\d+)(?: % mean IoU)?")
PROBES = re.compile(rf"random \d+ % mean IoU(?:, {ITEM.pattern})+")
Number = float | str  # "more than 288" is a bound and has no value


@dataclass(frozen=True)
class Statement:
    """An effect with its interval, as printed.

    Attributes:
        before: What its paragraph says before it.
        numbers: Effect, low and high, such as "+4.6", "19" or "more than 288".
        unit: "points", "%", "per cent" or nothing.
        linked: Files and folders of tables that its paragraph links.
    """

    before: str
    numbers: tuple[str, str, str]
    unit: str
    linked: tuple[str, ...]

    def __str__(self) -> str:
        effect, low, high = self.numbers
        return f"{self.before[-60:]} {effect}{' ' * bool(self.unit)}{self.unit} [{low}, {high}]"


@dataclass(frozen=True)
class Row:
    """An effect, its low and its high in points; or how many patches a budget of the baseline's equals."""

    numbers: tuple[Number, Number, Number]
    budget: str = ""
    baseline: str = ""


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text without the README's generated table and without code, each on one line."""
    generated = f"{re.escape(readme.BEGIN)}.*?{re.escape(readme.END)}"
    told = re.sub(rf"{generated}|```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", told)]


def statements(paragraph: str) -> list[Statement]:
    """Find every effect with an interval in a paragraph.

    Raises:
        ValueError: Something that looks like an interval is not understood.
    """
    found, linked = list(STATEMENT.finditer(paragraph)), tuple(LINK.findall(paragraph))
    known = {match.end() for match in found}
    if lost := [match[0] for match in BRACKETS.finditer(paragraph) if match.end() not in known]:
        raise ValueError(f"expected `effect [low, high]`, got {lost} without an effect before it")
    return [Statement(paragraph[: m.start()].rstrip(), (m[1], m[3], m[4]), m[2] or "", linked) for m in found]


def rows(linked: Iterable[str], root: Path = ROOT) -> Iterator[Row]:
    """Read the effects, and the numbers of patches, with their intervals, from tables and folders of tables."""
    for path in (root / name for name in linked):
        for table in sorted(path.rglob("*.csv")) if path.is_dir() else [path] * (path.suffix == ".csv"):
            yield from _rows_of(pd.read_csv(table, dtype=str))


def _rows_of(table: pd.DataFrame) -> Iterator[Row]:
    if {"effect", "low", "high"} <= set(table.columns):
        for row in table[["effect", "low", "high"]].dropna().astype(float).itertuples(index=False):
            yield Row(tuple(100 * number for number in row))
    if {"equals", "low", "high", "budget", "baseline"} <= set(table.columns):
        for row in table.dropna(subset=["equals", "low", "high"]).itertuples():
            numbers = tuple(n if "than" in n else float(n) for n in (row.equals, row.low, row.high))
            yield Row(numbers, row.budget, row.baseline)


def says(statement: Statement, row: Row) -> bool:
    """Whether a row, rounded as printed, is what is said.

    An effect without a sign may be the opposite of the row's ("9 points worse"). Patches are those of the budget and
    the baseline last named before ("with 16 of them ... what a random one does with 40").
    """
    if not row.budget:
        signed = statement.numbers[0][0] in "+-"
        effect, low, high = row.numbers
        return _same(statement.numbers, row.numbers) or (
            not signed and _same(statement.numbers, (-effect, -high, -low))
        )
    budgets, names = re.findall(r"\bwith (\d+)", statement.before), re.findall(NAME, statement.before)
    named = bool(budgets and names) and (budgets[-1], ARMS[names[-1]]) == (row.budget, row.baseline)
    return named and not statement.unit and _same(statement.numbers, row.numbers)


def _same(printed: tuple[str, ...], numbers: tuple[Number, ...]) -> bool:
    return all(_alike(text, number) for text, number in zip(printed, numbers, strict=True))


def _alike(text: str, number: Number) -> bool:
    if isinstance(number, str) or "than" in text:
        return text == number
    return float(text) == np.round(number, len(text.partition(".")[2]))


def with_a_digit_changed(statement: Statement) -> Iterator[Statement]:
    """Yield the statement with another digit, for every digit and each of the nine others."""
    for which, number in enumerate(statement.numbers):
        for place in (match.start() for match in re.finditer(r"\d", number)):
            for digit in sorted(set("0123456789") - {number[place]}):
                numbers = list(statement.numbers)
                numbers[which] = number[:place] + digit + number[place + 1 :]
                yield replace(statement, numbers=tuple(numbers))


def probes(paragraph: str) -> list[dict[str, int]]:
    """Find the mean IoU of each arm under the linear probe in per cent, "random 31 % mean IoU, DINO 35, ..."."""
    return [
        {ARMS[name]: int(item[2]) for item in ITEM.finditer(sentence[0]) for name in item[1].split(" and ")}
        for sentence in PROBES.finditer(paragraph)
    ]


def probed(folder: Path) -> dict[str, int]:
    """Read the same from the table of a data set, of the arms that prose names."""
    table = pd.read_csv(folder / "04_worth.csv")
    means = table[table.measure == "linear probe"].set_index("arm")["mean"]
    return {arm: int(np.round(100 * means[arm])) for arm in ARMS.values() if arm in means}
