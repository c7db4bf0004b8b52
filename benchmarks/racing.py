"""Races: functions that run in turn, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One measured speed, in `unit` (higher is faster)."""

    name: str
    unit: str
    median: float
    low: float
    high: float
    repeats: int


def rounds(
    runners: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Run functions in turn `repeats` times after a round that does not count; the seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for repeat in range(repeats + 1):
        for name, run in runners.items():
            start = clock()
            run()
            if repeat:  # the first round warms up
                seconds[name].append(clock() - start)
    return seconds


def speeds(unit: str, amount: float, seconds: dict[str, list[float]]) -> list[Row]:
    """The speed of each where a run does `amount` of `unit`-seconds' work."""
    return [_row(name, unit, [amount / t for t in times]) for name, times in seconds.items()]


def ratios(names: dict[str, tuple[str, str]], seconds: dict[str, list[float]]) -> list[Row]:
    """How many times as fast the first of two is as the second, round by round."""
    rows = []
    for name, (ours, other) in names.items():
        pairs = zip(seconds[ours], seconds[other], strict=True)
        rows.append(_row(name, "x", [theirs / own for own, theirs in pairs]))
    return rows


def race(
    unit: str,
    amount: float,
    runners: dict[str, Callable[[], object]],
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Run functions in turn `repeats` times; each does `amount` of `unit`-seconds' work."""
    return speeds(unit, amount, rounds(runners, repeats, clock))


def _row(name: str, unit: str, values: list[float]) -> Row:
    return Row(name, unit, statistics.median(values), min(values), max(values), len(values))
