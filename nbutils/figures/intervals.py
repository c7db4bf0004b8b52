"""Estimates with their intervals, one to a line: claims and what they come to, audits and what resembles them."""

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from nbutils.figures import house
from nbutils.figures.house import OTHERS, VERDICTS, WIDE

LETTERS = 44  # of a claim, in one line
COLUMN = 96  # points from the intervals to what stands beside them


@house.styled
def forest(differences: pd.DataFrame, *, xlabel: str = "Difference in mean IoU (percentage points)") -> Figure:
    """Paired differences with their intervals and verdicts, top to bottom in the order of the table.

    `differences` has columns label, effect, low, high (fractions), verdict, group; "" is a group without heading. Of
    `claims.table` come p_holm, written at the right, and margin (fraction), a tick where it is not nought. An interval
    far longer than the others ends in an arrow.
    """
    house.need(differences, ["label", "effect", "low", "high", "verdict", "group"], "forest")
    if unknown := set(differences["verdict"]) - set(VERDICTS):
        raise ValueError(f"forest: unknown verdict {sorted(unknown)}; known are {list(VERDICTS)}")
    lines: list[tuple[str, object]] = []
    for group, part in differences.fillna({"group": ""}).groupby("group", sort=False):
        lines += [(str(group), None)] if group else []
        lines += [(fill(str(row.label), LETTERS), row) for row in part.itertuples()]
    at, bottom = _heights([label for label, _ in lines])
    wide = max(len(line) for label, _ in lines for line in label.split("\n")) > 30
    fig, ax = plt.subplots(figsize=(WIDE if wide else WIDE * 0.8, 0.85 + 0.2 * bottom))
    reach = _reach(differences)
    for y, (_, row) in zip(at, lines, strict=True):
        if row is None:
            ax.axhspan(y - 0.5, y + 0.5, color="#f1f1f1", linewidth=0, zorder=0)
        else:
            _estimate(ax, y, row, reach)
    ax.axvline(0, color="black", linewidth=0.7, zorder=1)
    _beside(ax, -0.75, "difference  [interval]", 0, color="#666666")
    if "p_holm" in differences:
        _beside(ax, -0.75, "p (Holm)", COLUMN, color="#666666")
    ax.set_yticks(at, [label for label, _ in lines])
    for tick, (_, row) in zip(ax.get_yticklabels(), lines, strict=True):
        tick.set(fontweight="bold" if row is None else "normal", linespacing=1.0)
    ax.set(ylim=(bottom - 0.4, -0.6), xlabel=xlabel)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    marks = [
        Line2D([], [], color=c, marker=m, markerfacecolor=c if filled else "white", label=verdict)
        for verdict, (c, m, filled) in VERDICTS.items()
    ]
    house.legend_below(fig, marks)
    return fig


@house.styled
def goodness_of_fit(audited: pd.DataFrame, simulated: Mapping[str, ArrayLike]) -> Figure:
    """What was audited, with its intervals, and what noise models simulate; one line per statistic.

    `audited` has columns label, value, low, high (fractions); `simulated` maps a model to its values, each (N,).
    """
    house.need(audited, ["label", "value", "low", "high"], "goodness_of_fit")
    fig, ax = plt.subplots(figsize=(WIDE * 0.8, 0.85 + 0.17 * len(audited)))
    y = np.arange(len(audited))
    value, low, high = house.in_percent(audited[["value", "low", "high"]].T.to_numpy(float), "goodness_of_fit")
    ax.hlines(y, low, high, color="#b0b0b0", linewidth=4)
    marks = ax.plot(value, y, "|", color="black", markersize=9, label="audited")
    for number, (name, values) in enumerate(simulated.items()):
        colour, marker = OTHERS[number % len(OTHERS)]
        values = house.in_percent(np.asarray(values, float), "goodness_of_fit")
        look = {"color": colour, "markerfacecolor": "none" if number else colour, "label": house.label_of(name)}
        marks += ax.plot(values, y, marker, markersize=5, **look)
    ax.set_yticks(y, audited["label"])
    ax.set(ylim=(len(audited) - 0.4, -0.6), xlabel="Per cent")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    house.legend_below(fig, marks)
    return fig


def _heights(labels: list[str]) -> tuple[list[float], float]:
    """Middle of each label from the top, in lines, and where the last one ends; a label may have several lines."""
    at, top = [], 0.0
    for label in labels:
        lines = 1 + 0.75 * label.count("\n")
        at.append(top + (lines - 1) / 2)
        top += lines
    return at, top


def _reach(differences: pd.DataFrame) -> float:
    """How far the axis goes: to every effect, and to all ends but those far beyond most."""
    effects = house.in_percent(differences["effect"], "forest")
    ends = np.abs(100 * differences[["low", "high"]].to_numpy(float))  # of few seeds they may lie beyond 100
    ends = ends[np.isfinite(ends)]
    usual = 2 * np.quantile(ends, 0.75) if ends.size else 0
    return float(max(np.nanmax(np.abs(effects), initial=0) * 1.15, min(usual, ends.max(initial=0) * 1.05), 0.1))


def _estimate(ax: Axes, y: float, row: Any, reach: float) -> None:
    effect, low, high = house.in_percent(row.effect, "forest"), 100 * row.low, 100 * row.high
    colour, marker, filled = VERDICTS[row.verdict]
    ax.hlines(y, max(low, -reach), min(high, reach), color=colour, linewidth=1.3)
    if low < -reach:
        ax.plot(-reach, y, "<", color=colour, markersize=4, clip_on=False)
    if high > reach:
        ax.plot(reach, y, ">", color=colour, markersize=4, clip_on=False)
    if margin := 100 * getattr(row, "margin", 0):
        ax.plot([margin, margin], [y - 0.4, y + 0.4], color="black", linewidth=0.8)
    ax.plot(effect, y, marker, color=colour, markerfacecolor=colour if filled else "white", markersize=5)
    interval = f"[{low:+.1f}, {high:+.1f}]" if np.isfinite(low) else "[no interval]"
    _beside(ax, y, f"{effect:+.1f}  {interval}".replace("-", "\N{MINUS SIGN}"), 0)
    if (p := getattr(row, "p_holm", None)) is not None:
        _beside(ax, y, "" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}", COLUMN)


def _beside(ax: Axes, y: float, text: str, points: float, **look: Any) -> None:
    """Text at the right of the axes, `points` further to the right."""
    where = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points"}
    ax.annotate(text, (1.02, y), (points, 0), va="center", fontsize=7, **where, **look)
