"""Numbers in coloured cells: what is confused with what, and scores by arm, decoder or task."""

import math
from collections.abc import Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from nbutils.figures import house


@house.styled
def confusion_heatmap(
    matrix: ArrayLike,
    row_names: Sequence[str],
    column_names: Sequence[str],
    title: str = "",
    *,
    row_title: str = "Exact class",
    column_title: str = "Predicted class",
) -> Figure:
    """Confusion counts as shares of their row, with the row's share of all pixels at the right.

    `matrix` holds counts (R, C), rows exact, for R `row_names` and C `column_names`; a row without pixels stays
    empty. `row_title` and `column_title` name the axes.
    """
    counts = np.asarray(matrix, dtype=float)
    if counts.shape != (len(row_names), len(column_names)):
        raise ValueError(f"matrix {counts.shape} for {len(row_names)} row and {len(column_names)} column names")
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    fig, ax = plt.subplots(figsize=(1.9 + 0.46 * counts.shape[1], 1.2 + 0.36 * counts.shape[0]))
    house.cells(ax, shares, row_names, column_names, (0, 100), "Blues", "{:.0f}")
    ax.set(xlabel=column_title, ylabel=row_title, title=title)
    for row, share in enumerate(100 * totals[:, 0] / max(totals.sum(), 1)):
        ax.text(counts.shape[1] - 0.35, row, f"{share:.1f} %", va="center", color="#666666", fontsize=7)
    ax.text(counts.shape[1] - 0.35, -0.65, "of pixels", va="bottom", color="#666666", fontsize=7)
    return fig


@house.styled
def heat_map(
    table: pd.DataFrame,
    *,
    rows: str = "arm",
    columns: str = "decoder",
    value: str = "mean",
    label: str = "mIoU (%)",
    against: str | None = None,
    diverging: bool = False,
) -> Figure:
    """One number per arm and decoder, or of any two columns: `rows` and `columns`, one row of the table for each pair.

    `value` (fraction) is drawn in percent, on a scale of at least ten points, so that small differences look small;
    `diverging` centres it on nought, for differences. `against` names an arm of one of both axes: a second line in each
    cell is the difference to it, the table's column difference (fraction) if it has one, bold where its column verdict
    is not "undecided". `label` names value and unit.
    """
    house.need(table, [rows, columns, value], "heat_map")
    if table.duplicated([rows, columns]).any():
        raise ValueError(f"heat_map: more than one row for a pair of {rows} and {columns}; filter or average first")
    wide = _wide(table, rows, columns, value)
    values = house.in_percent(wide.to_numpy(float), "heat_map")
    second = _differences(table, wide, rows, columns, against)
    height = 0.36 if against is None else 0.44
    fig, ax = plt.subplots(figsize=(1.9 + 0.66 * values.shape[1], 0.8 + height * values.shape[0]))
    image = house.cells(
        ax,
        values,
        [fill(house.label_of(name), 26) for name in wide.index],
        [fill(house.label_of(name), 8, break_long_words=False) for name in wide.columns],
        _limits(values, diverging),
        "PuOr" if diverging else "cividis",
        "{:+.1f}" if diverging else "{:.1f}",
        second=second,
        room=11,
    )
    ax.set_facecolor("#efefef")  # of pairs that were not measured
    for name, write in ((rows, ax.set_ylabel), (columns, ax.set_xlabel)):
        if name not in ("arm", "decoder"):  # whose values say what they are
            write(name)
    for edges, draw in zip(values.shape, (ax.axhline, ax.axvline), strict=True):
        for edge in range(1, edges):
            draw(edge - 0.5, color="white", linewidth=1)
    bar = fig.colorbar(image, ax=ax, label=label, shrink=0.95, aspect=14)
    bar.outline.set_linewidth(0.4)
    if against is not None:
        bold = ", bold where it is decided" if "verdict" in table else ""
        ax.set_title(
            f"second line: difference to {house.label_of(against)}{bold}", fontsize=7, color="#555555", loc="left"
        )
    return fig


def _wide(table: pd.DataFrame, rows: str, columns: str, value: str) -> pd.DataFrame:
    wide = table.pivot(index=rows, columns=columns, values=value)
    return wide.loc[house.ordered(table[rows]), house.ordered(table[columns])]


def _limits(values: NDArray[np.float64], diverging: bool) -> tuple[float, float]:
    """Ends of the scale, multiples of five points and at least ten apart."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 100.0
    if diverging:
        reach = max(5.0, 5 * math.ceil(np.abs(known).max() / 5))
        return -reach, reach
    low = 5.0 * min(math.floor(known.min() / 5), 18)
    return low, max(low + 10, 5.0 * math.ceil(known.max() / 5))


def _differences(
    table: pd.DataFrame, wide: pd.DataFrame, rows: str, columns: str, against: str | None
) -> list[list[tuple[str, bool]]] | None:
    """The second line of each cell, and whether it is bold; None without an arm to compare with."""
    if against is None:
        return None
    if (against in wide.index) == (against in wide.columns) and "difference" not in table:
        raise ValueError(f"heat_map: {against!r} is expected in one of {rows} and {columns}, or a column difference")
    if "difference" in table:
        away = _wide(table, rows, columns, "difference")
    elif against in wide.index:
        away = (wide - wide.loc[against]).drop(index=against)
    else:
        away = wide.sub(wide[against], axis=0).drop(columns=against)
    points = house.in_percent(away.reindex_like(wide).to_numpy(float), "heat_map")
    decided = np.zeros(wide.shape, bool)
    if "verdict" in table:
        decided = _wide(table, rows, columns, "verdict").isin(["supported", "contradicted"]).to_numpy()
    texts = [[house.signed(point) if np.isfinite(point) else "" for point in row] for row in points]
    return [list(zip(*pair, strict=True)) for pair in zip(texts, decided.tolist(), strict=True)]
