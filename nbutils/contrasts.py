"""Contrasts: weighted sums of the scores that arms reach in cells of an experiment, and the claims made of them.

A claim such as "the gain is smaller where classes agree" is a **contrast**: terms of a weight, a cell and an arm. The
functions here pick cells, put terms together and hand their counts to `nbutils.claims`, all of the same seeds in the
same order. No terms stand for a claim whose cells an experiment does not hold, and stay none in all that is made of
them. Weights of gains and of differences add up to zero, so that what seeds or scenes add to every score cancels
(linear contrasts: Scheffe, The Analysis of Variance, 1959, chapter 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from nbutils import claims, statistics
from nbutils.store import Result, check_code
from nbutils.study import Cell

__all__ = [
    "Contrast",
    "Grid",
    "Results",
    "Term",
    "change",
    "claim",
    "claim_of_gain",
    "counts",
    "gain",
    "gain_over",
    "gains",
    "having",
    "less",
    "mean",
    "twins",
    "where",
]


class Term(NamedTuple):
    """A weighted score.

    Attributes:
        weight: Of the score.
        cell: Where it was reached; for arithmetic alone anything that names a place.
        arm: Who reached it.
    """

    weight: float
    cell: Any
    arm: str


Contrast = list[Term]
Grid = Mapping[Cell, Sequence[str]]  # the arms of each cell, as of `study.grid`
Results = Mapping[tuple[Cell, str, int], Result]  # by cell, arm and seed


# ---- cells -------------------------------------------------------------------------------------------------------
def where(grid: Iterable[Cell], **fields: Any) -> list[Cell]:
    """Return the cells whose fields have these values, or one of them where a list is given, in their order.

    Raises:
        ValueError: A cell has no such field.
    """
    _check_fields(fields)
    wanted = {name: value if isinstance(value, list) else [value] for name, value in fields.items()}
    return [cell for cell in grid if all(getattr(cell, name) in values for name, values in wanted.items())]


def having(grid: Grid, cells: Iterable[Cell], *arms: str) -> list[Cell]:
    """Return those of the cells in which each of these arms is compared.

    Raises:
        ValueError: A cell is not of the grid.
    """
    cells = list(cells)
    if strange := [cell for cell in cells if cell not in grid]:
        raise ValueError(f"{strange[0]} is none of the {len(grid)} cells of the grid")
    return [cell for cell in cells if set(arms) <= set(grid[cell])]


def twins(grid: Iterable[Cell], cells: Iterable[Cell], **changed: Any) -> tuple[list[Cell], list[Cell]]:
    """Pair cells with those of the grid that differ from them in given fields alone.

    Args:
        grid: The cells there are.
        cells: Those that a twin is looked for.
        changed: The fields and their values in the twin.

    Returns:
        The cells that have a twin, and the twins, in one order. ValueError where a cell has no such field.
    """
    _check_fields(changed)
    known = set(grid)
    held = [cell for cell in cells if cell._replace(**changed) in known - {cell}]
    return held, [cell._replace(**changed) for cell in held]


# ---- terms -------------------------------------------------------------------------------------------------------
def mean(contrasts: Sequence[Contrast]) -> Contrast:
    """Return the mean of contrasts; of none, or where one is empty, no terms."""
    if not all(contrasts):
        return []
    return [term._replace(weight=term.weight / len(contrasts)) for each in contrasts for term in each]


def less(first: Contrast, second: Contrast) -> Contrast:
    """Return the first contrast less the second; no terms where one of them is empty."""
    return [*first, *(term._replace(weight=-term.weight) for term in second)] if first and second else []


def gain(cells: Sequence[Any], arm: str, other: str) -> Contrast:
    """Return the paired difference of two arms, averaged over cells."""
    return mean([[Term(1, cell, arm), Term(-1, cell, other)] for cell in cells])


def gain_over(
    grid: Grid, arm: str, others: Sequence[str], *kinds: Sequence[Cell], paired: bool = False
) -> list[Contrast]:
    """Return, for each kind of cells, what an arm gains over the mean of others, which are the same for every kind.

    Another counts where it is compared with the arm in cells of every kind: were it to count for one kind alone, a
    difference between kinds would be one between arms too.

    Args:
        grid: The arms of each cell.
        arm: Whose gain.
        others: Over whom; each has the same weight, whatever its number of cells.
        kinds: Lists of cells of the grid.
        paired: Whether the cells of the kinds belong together, the first with the first: then for each other only
            those count of which all compare it, since what is left alone would tell of its cell and not of the kind.

    Returns:
        A contrast for each kind, all empty where no other is left. ValueError as in `having`, or where cells that
        belong together are not equally many.
    """
    held = {other: [having(grid, cells, arm, other) for cells in kinds] for other in others}
    if paired:
        for other in others:
            rows = [row for row in zip(*kinds, strict=True) if having(grid, row, arm, other) == list(row)]
            held[other] = [[row[k] for row in rows] for k in range(len(kinds))]
    common = {other: lists for other, lists in held.items() if all(lists)}
    return [mean([gain(lists[k], arm, other) for other, lists in common.items()]) for k in range(len(kinds))]


def change(grid: Grid, arms: Sequence[str], first: Sequence[Cell], second: Sequence[Cell]) -> Contrast:
    """Return by how much the same arms score better in one cell than in its twin, averaged over pairs and arms.

    Args:
        grid: The arms of each cell.
        arms: Those asked for; in each pair those count that both cells compare.
        first: The cells claimed to be better.
        second: The twin of each.

    Returns:
        The contrast. ValueError as in `having`, or where a cell has no partner.
    """
    pairs = [(a, b, arm) for a, b in zip(first, second, strict=True)
             for arm in arms if having(grid, (a, b), arm) == [a, b]]  # fmt: skip
    return mean([[Term(1, a, arm), Term(-1, b, arm)] for a, b, arm in pairs])


# ---- scores ------------------------------------------------------------------------------------------------------
def counts(results: Results, cell: Cell, arm: str, of: str = "counts") -> np.ndarray:
    """Stack the test counts of an arm in a cell.

    Args:
        results: Of the whole experiment.
        cell: The cell.
        arm: The arm.
        of: What was counted, as in `Result.scene_counts`.

    Returns:
        (S, C, ...) for every seed of the experiment, in the order of their first result, and every scene, by name.

    Raises:
        ValueError: A seed's result is missing, or it is of other scenes or another version of the code than the first.
    """
    return _stacked(_results(results, cell, arm), of)


def claim(results: Results, terms: Contrast, *, id: str, text: str, world: str) -> claims.Claim:
    """Test the claim that a contrast of mean IoU lies above nothing, by `claims.claim_of`.

    Args:
        results: Of the whole experiment; the claim is about all its seeds.
        terms: The contrast; terms of one task are paired, scene by scene.
        id: Short name of the claim, as are the following as in `claims.Claim`.
        text: The claim in words.
        world: Name of the data set.

    Returns:
        The claim, with the keys of the runs it rests on.

    Raises:
        ValueError: There are no terms, or results are missing, of other scenes or of different versions of the code.
    """
    if not terms:
        raise ValueError(f"the claim {id!r} ({text}) has no terms: none of its cells is in this experiment")
    runs = {(term.cell, term.arm): _results(results, term.cell, term.arm) for term in terms}
    _check_comparable(runs)
    return claims.claim_of(
        [(term.weight, _stacked(runs[term.cell, term.arm])) for term in terms],
        tasks=[term.cell.task for term in terms],
        runs=list(dict.fromkeys(result.run.key for each in runs.values() for result in each)),
        id=id,
        text=text,
        world=world,
    )


def claim_of_gain(
    results: Results,
    cells: Sequence[Cell],
    arm: str,
    other: str,
    *,
    id: str,
    text: str,
    world: str,
    rng: np.random.Generator,
) -> claims.Claim:
    """Test the claim that an arm gains over another in the mean over cells; with a permutation test on one task.

    Args:
        results: Of the whole experiment.
        cells: The cells.
        arm: The arm claimed to be better.
        other: The other arm.
        id: As in `claim`, as are the following.
        text: The claim in words.
        world: Name of the data set.
        rng: Source of randomness, for the permutation test on many scenes.

    Returns:
        The claim; `p_signs` is NaN where cells are of several tasks, whose counts cannot be stacked. ValueError as in
        `claim`.
    """
    made = claim(results, gain(cells, arm, other), id=id, text=text, world=world)
    if len({cell.task for cell in cells}) > 1:
        return made
    both = (np.stack([counts(results, cell, each) for cell in cells], axis=2) for each in (arm, other))
    metric = claims.over_cells(statistics.mean_iou)
    return replace(made, p_signs=claims.permutation_test(*both, rng=rng, metric=metric))


def gains(results: Results, cells: Sequence[Cell], arm: str, other: str) -> list[float]:
    """Return what an arm gains over another in each of the cells: mean IoU, scenes pooled, mean over seeds."""
    scores = (
        [float(statistics.mean_iou(counts(results, cell, each).sum(1)).mean()) for each in (arm, other)]
        for cell in cells
    )
    return [first - second for first, second in scores]


def _results(results: Results, cell: Cell, arm: str) -> list[Result]:
    """The results of an arm in a cell, one for each seed of the experiment."""
    seeds = list(dict.fromkeys(seed for _, _, seed in results))
    missing = [seed for seed in seeds if (cell, arm, seed) not in results]
    if missing or not seeds:
        there = dict.fromkeys(name for where, name, _ in results if where == cell)
        raise ValueError(
            f"no result of {arm!r} in {cell} for seeds {missing} of {seeds}; "
            f"arms with results there: {', '.join(there) or 'none'}"
        )
    found = [results[cell, arm, seed] for seed in seeds]
    _check_comparable({(cell, arm): found})
    return found


def _stacked(each: Sequence[Result], of: str = "counts") -> np.ndarray:
    return np.stack([result.scene_counts(of=of) for result in each])


def _check_comparable(runs: Mapping[tuple[Cell, str], Sequence[Result]]) -> None:
    """Raise where code differs, or results of one task are not judged on the scenes they are paired by."""
    check_code(result for each in runs.values() for result in each)
    seen: dict[str, list[str]] = {}
    for (cell, arm), each in runs.items():
        for result in each:
            scenes = sorted(result.counts["test"])
            if seen.setdefault(cell.task, scenes) != scenes:
                raise ValueError(
                    f"run {result.run.key} of {arm!r} in {cell} is judged on scenes {scenes}, others of "
                    f"task {cell.task!r} on {seen[cell.task]}; they cannot be paired"
                )


def _check_fields(fields: Mapping[str, Any]) -> None:
    if unknown := sorted(fields.keys() - set(Cell._fields)):
        raise ValueError(f"a cell has no field {', '.join(unknown)}; there are {', '.join(Cell._fields)}")
