"""Scores of arms by label budget, and what a budget is worth to another arm."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from nbutils.figures import house
from nbutils.figures.house import WIDE

SAVED = "#e9efe9"  # where pretraining saves patches
DASHED = (0, (4, 3))


@house.styled
def budget_curves(table: pd.DataFrame, seeds: pd.DataFrame | None = None) -> Figure:
    """Mean IoU against labelled patches; one panel per decoder and frozen or fine-tuned encoder.

    `table` has columns arm, decoder, frozen (bool), budget (patches), mean, low, high (fractions). `seeds`, with
    columns arm, decoder, frozen, budget, value, adds single seeds as faint dots.
    """
    house.need(table, ["arm", "decoder", "frozen", "budget", "mean", "low", "high"], "budget_curves")
    if seeds is not None:
        house.need(seeds, ["arm", "decoder", "frozen", "budget", "value"], "budget_curves, seeds")
    styles, budgets = house.styles_of(table["arm"]), np.sort(table["budget"].unique())
    if budgets[0] <= 0:
        raise ValueError(f"budget_curves: a budget is a positive number of patches, got {budgets[0]}")
    step = 0.07 * (np.diff(np.log2(budgets)).min() if len(budgets) > 1 else 1.0)
    fig, panels = house.grid_of_panels(table, height=2.0)
    for ax, part, key in panels:
        for i, (arm, style) in enumerate(styles.items()):
            shift = step * (i - (len(styles) - 1) / 2)  # side by side: no interval hides another
            rows = part[part["arm"] == arm].sort_values("budget")
            at = np.log2(rows["budget"].to_numpy(float)) + shift
            mean, low, high = (house.in_percent(rows[column], "budget_curves") for column in ("mean", "low", "high"))
            ax.vlines(at, low, high, color=style["color"], linewidth=1)
            ax.plot(at, mean, **style)
            if seeds is not None:
                dots = seeds[(seeds["decoder"] == key[0]) & (seeds["frozen"] == key[1]) & (seeds["arm"] == arm)]
                where = np.log2(dots["budget"].to_numpy(float)) + shift
                ax.scatter(where, house.in_percent(dots["value"], "seeds"), s=5, color=style["color"], alpha=0.35, lw=0)
        ax.set_xticks(np.log2(budgets), [f"{budget:g}" for budget in budgets])
        ax.grid(axis="y")
        if ax.get_subplotspec().is_last_row():  # no supxlabel: it would lie on the legend
            ax.set_xlabel("Labelled patches")
    fig.supylabel("Mean IoU on the test scenes (%)", fontsize=8)
    house.legend_below(fig, [Line2D([], [], **style) for style in styles.values()])
    return fig


@house.styled
def arm_bars(table: pd.DataFrame) -> Figure:
    """Mean IoU of every arm as a bar with its interval; panels as in `budget_curves`.

    `table` has columns arm, decoder, frozen (bool), mean, low, high (fractions), for a single label budget.
    """
    house.need(table, ["arm", "decoder", "frozen", "mean", "low", "high"], "arm_bars")
    if table.duplicated(["arm", "decoder", "frozen"]).any():
        raise ValueError("arm_bars: more than one row for an arm; choose one budget, or use budget_curves")
    styles = house.styles_of(table["arm"])
    fig, panels = house.grid_of_panels(table, height=0.7 + 0.22 * len(styles))
    for ax, part, _ in panels:
        for y, (arm, style) in enumerate(styles.items()):
            for row in part[part["arm"] == arm].itertuples():
                mean, low, high = house.in_percent([row.mean, row.low, row.high], "arm_bars")
                ax.barh(y, mean, height=0.7, color=style["color"])
                ax.hlines(y, low, high, color="black", linewidth=1)
                ax.text(np.nanmax([mean, high]), y, f"  {mean:.1f}", va="center", fontsize=7)
        ax.set_yticks(range(len(styles)), [style["label"] for style in styles.values()])
        ax.set_ylim(len(styles) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.margins(x=0.18)
    fig.supxlabel("Mean IoU on the test scenes (%)", fontsize=8)
    return fig


@house.styled
def break_even(table: pd.DataFrame) -> Figure:
    """How many exact patches a baseline needs for what each arm reaches with its own, with intervals.

    `table` has columns arm, baseline, budget and equals, low, high: `worth.Amount` or its words, "more than 256", as
    `worth.Equivalent.as_row` writes them. A bound is an arrow from where measuring ended. One panel per baseline, or
    per baseline and panel where the table has a column panel (a world, a comparison); no line without an interval.
    Arms stand beside their budget, so the line of equality is one of steps.
    """
    house.need(table, ["arm", "baseline", "budget", "equals", "low", "high"], "break_even")
    if (table["budget"] <= 0).any():
        raise ValueError(f"break_even: a budget is a positive number of patches, got {table['budget'].min()}")
    table = table.assign(**{name: [_amount(cell) for cell in table[name]] for name in ("equals", "low", "high")})
    titled = table.assign(panel=table["panel"] if "panel" in table else "")
    parts = list(titled.groupby(["panel", "baseline"], sort=False))
    n_columns = min(len(parts), 3)
    n_rows = math.ceil(len(parts) / n_columns)
    size = (max(5.0, min(WIDE, 0.6 + 2.5 * n_columns)), 2.5 * n_rows + 0.7)
    fig, axes = plt.subplots(n_rows, n_columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    styles, budgets = house.styles_of(table["arm"]), np.sort(table["budget"].unique())
    amounts = [value for name in ("equals", "low", "high") for value, _ in table[name] if np.isfinite(value)]
    low, high = min([*budgets, *amounts]), max([*budgets, *amounts])
    equal = np.log2(budgets)
    limits = equal[0] - 0.6, equal[-1] + 0.6
    edges = [limits[0], *(equal[1:] + equal[:-1]) / 2, limits[1]]  # steps: arms stand beside their budget
    for ax, ((name, baseline), part) in zip(axes.flat, parts, strict=False):
        ax.set(title=f"{name}{', ' if name else ''}against {house.label_of(baseline)}", xlim=limits)
        ax.set_ylim(np.log2(low) - 0.9, np.log2(high) + 0.9)
        ax.stairs(equal, edges, baseline=np.log2(high) + 0.9, fill=True, color=SAVED, linewidth=0, zorder=0)
        ax.stairs(equal, edges, baseline=None, color="black", linewidth=0.7, linestyle=DASHED, zorder=1)
        _equivalents(ax, part, styles, budgets)
        ax.set_xticks(equal, [f"{budget:g}" for budget in budgets])
        marks = 2.0 ** np.arange(math.ceil(math.log2(low) - 0.5), math.floor(math.log2(high) + 0.5) + 1)
        ax.set_yticks(np.log2(marks), [f"{mark:g}" for mark in marks])
        ax.grid(axis="y")
        ax.tick_params(labelbottom=True)  # also above a place without a panel
        ax.set_xlabel("Exact patches of the arm")
    for ax in axes.flat[len(parts) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("Exact patches that\nthe baseline needs")
    marks = [Line2D([], [], **style) for style in styles.values()]
    marks += [Line2D([], [], color="black", linewidth=0.7, linestyle=DASHED, label="as many exact patches")]
    marks += [Line2D([], [], color=SAVED, linewidth=6, label="pretraining saves patches")]
    if n_columns == 1:
        axes[0, 0].legend(handles=marks, loc="center left", bbox_to_anchor=(1.01, 0.5))
    else:
        house.legend_below(fig, marks)
    return fig


def _equivalents(ax: Axes, part: pd.DataFrame, styles: dict[str, dict], budgets: NDArray) -> None:
    """Points, intervals and arrows of the arms, side by side at each budget."""
    step = 0.11 * (np.diff(np.log2(budgets)).min() if len(budgets) > 1 else 1.0)
    present = [arm for arm in styles if arm in set(part["arm"])]
    for i, arm in enumerate(present):
        style = styles[arm]
        hollow = {"markerfacecolor": "white", "markeredgecolor": style["color"], "markeredgewidth": 1}
        for row in part[part["arm"] == arm].itertuples():
            x = np.log2(row.budget) + step * (i - (len(present) - 1) / 2)
            ends = [np.log2(value) for value, _ in (row.low, row.high)]
            ax.vlines(x, *ends, color=style["color"], linewidth=1)
            for value, bound in dict.fromkeys([row.equals, row.low, row.high]):
                if bound:
                    _arrow(ax, x, np.log2(value), 1 if bound == "more than" else -1, style["color"])
            value, bound = row.equals
            ax.plot(x, np.log2(value), **style | (hollow if bound else {}))


def _arrow(ax: Axes, x: float, y: float, way: int, colour: str) -> None:
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7}
    ax.annotate("", (x, y + 0.6 * way), (x, y), arrowprops=arrow)


def _amount(cell: object) -> tuple[float, str]:
    """Number and bound of an amount or its words."""
    *words, number = str(cell).split() or [""]
    bound = " ".join(words)
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if bound not in ("", "more than", "fewer than") or value <= 0:
        raise ValueError(f"break_even: patches are like '64' or 'more than 256', got {str(cell)!r}")
    return value, bound
