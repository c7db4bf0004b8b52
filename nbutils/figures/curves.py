"""Curves over distance, training steps and layers."""

from collections.abc import Mapping
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from nbutils.figures import house
from nbutils.figures.house import OTHERS


@house.styled
def boundary_profile(profiles: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """Share of wrong pixels against the distance to the nearest exact class boundary.

    `profiles` maps a name to (distance in pixels, error rate as a fraction), both of shape (N,).
    """
    if not profiles:
        raise ValueError("boundary_profile: no profiles; give name -> (distance_px, error_rate)")
    table = [
        pd.DataFrame({"step": np.asarray(distance, float), "series": name, "value": np.asarray(rate, float)})
        for name, (distance, rate) in profiles.items()
    ]
    label = "Distance to the nearest exact class boundary (px)"
    return house.curves(pd.concat(table), "step", label, "Pixels in error (%)", percent=True, markers=True)


@house.styled
def learning_curves(
    table: pd.DataFrame,
    *,
    ylabel: str = "Mean IoU (%)",
    xlabel: str = "Training step",
    percent: bool = True,
    marks: pd.DataFrame | None = None,
) -> Figure:
    """A value against the training step, one line per series.

    `table` has columns step, series, value; low and high, where there are, are drawn as a band; panel, where there is,
    names the panel of a row. `percent`: values are fractions, to be drawn in percent; `ylabel` and `xlabel` name value
    and step with their units. `marks` has columns step and label (and panel): upright lines.
    """
    house.need(table, ["step", "series", "value"], "learning_curves")
    fig = house.curves(table, "step", xlabel, ylabel, percent=percent, markers=False)
    for i, row in enumerate([] if marks is None else marks.to_dict("records")):
        (ax,) = [ax for ax in fig.axes if ax.get_title() == row.get("panel", "")]
        ax.axvline(row["step"], color="#555555", linewidth=0.8, linestyle=":")
        at = (row["step"], 0.02 + 0.09 * (i % 3))  # in three rows, for marks that stand close together
        ax.annotate(row["label"], at, (2, 0), ("data", "axes fraction"), "offset points", fontsize=6.5)
    return fig


@house.styled
def layer_profile(
    table: pd.DataFrame, *, ylabel: str, floor: pd.DataFrame | None = None, percent: bool = False
) -> Figure:
    """A value by layer (probe score, CKA), with what chance alone changes as a grey band.

    `table` has columns layer, series, value; low and high, where there are, are drawn as a band; layers are drawn
    in the order in which they come. `floor` has columns layer, low, high: the range between networks that differ by
    chance only. `percent` as in `learning_curves`; `ylabel` names the value and its unit.
    """
    house.need(table, ["layer", "series", "value"], "layer_profile")
    order = list(dict.fromkeys(table["layer"]))
    table = table.assign(at=[order.index(layer) for layer in table["layer"]])
    fig = house.curves(table, "at", "Layer", ylabel, percent=percent, markers=True)
    ax = fig.axes[0]
    if floor is not None:
        house.need(floor, ["layer", "low", "high"], "layer_profile, floor")
        if unknown := [layer for layer in floor["layer"] if layer not in order]:
            raise ValueError(f"layer_profile: the floor has {unknown}, the table only {order}")
        at = [order.index(layer) for layer in floor["layer"]]
        band = [100 * floor[side] if percent else floor[side] for side in ("low", "high")]
        ax.fill_between(at, *band, color="#d9d9d9", linewidth=0, zorder=0, label="chance alone")
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    many = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(order) > 7 else {}
    ax.set_xticks(range(len(order)), order, **many)
    return fig


@house.styled
def layer_panels(table: pd.DataFrame) -> Figure:
    """Several measurements side by side, layers from top to bottom, each beside what chance does to it.

    `table` has columns measure, layer, value, low, high (the range over seeds or an interval), floor_low, floor_high
    (NaN where there is no floor), in the units that `measure` names, and series, which tells apart up to six values of
    one layer. Measures, layers and series keep their order.
    """
    house.need(table, ["measure", "series", "layer", "value", "low", "high", "floor_low", "floor_high"], "layer_panels")
    measures, layers, series = (list(dict.fromkeys(table[name])) for name in ("measure", "layer", "series"))
    if len(series) > len(OTHERS):
        raise ValueError(f"layer_panels: at most {len(OTHERS)} series can be told apart, got {len(series)}")
    step = 0.8 / len(series)
    size = (1.1 + 1.25 * len(measures), 0.9 + (0.16 + 0.05 * len(series)) * len(layers))
    fig, axes = plt.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False)
    for ax, measure in zip(axes[0], measures, strict=True):
        part = table[table["measure"] == measure]
        for i, name in enumerate(series):
            rows = part[part["series"] == name]
            at = np.array([layers.index(layer) for layer in rows["layer"]]) + (i - (len(series) - 1) / 2) * step
            _points_of_layers(ax, rows, at, step, OTHERS[i])
        ax.axvline(0, color="black", linewidth=0.5, zorder=0)
        ax.set_title(fill(measure, 17), fontsize=7)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
    axes[0, 0].set_yticks(range(len(layers)), layers)
    axes[0, 0].set_ylim(len(layers) - 0.5, -0.5)
    marks = [
        Line2D([], [], color=colour, marker=marker, markersize=4, label=name)
        for name, (colour, marker) in zip(series, OTHERS, strict=False)
    ]
    if table["floor_high"].notna().any():
        marks.append(Line2D([], [], color="#d9d9d9", linewidth=6, label="chance alone"))
    house.legend_below(fig, marks)
    return fig


def _points_of_layers(
    ax: Axes, table: pd.DataFrame, at: NDArray[np.float64], height: float, look: tuple[str, str]
) -> None:
    """Draw one series at the heights `at`, and the floor below it."""
    colour, marker = look
    ax.barh(at, table["floor_high"] - table["floor_low"], height, table["floor_low"], color="#d9d9d9", zorder=1)
    ax.hlines(at, table["low"], table["high"], color=colour, linewidth=1.2, zorder=2)
    ax.plot(table["value"], at, marker, color=colour, markersize=3.5, zorder=3)
