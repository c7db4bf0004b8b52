"""Every picture of the study, in one house style.

The functions take arrays or long tables and return a `Figure`; they neither show nor save it (`save` does).
Scores and differences come in as fractions and are drawn in percent. An arm has the same colour and the same
marker in every figure, so it can be followed from one to the next, also in grey print. What pictures share is in
`nbutils.house`.
"""

import math
from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from nbutils import house, statistics
from nbutils.house import (
    ARMS,
    BANDS,
    OTHERS,
    STYLE,
    VERDICTS,
    WIDE,
    apply_style,
    label_of,
    rgb,
    save,
    save_table,
)
from nbutils.legend import Legend

__all__ = [
    "ARMS",
    "BANDS",
    "OTHERS",
    "STYLE",
    "VERDICTS",
    "WIDE",
    "apply_style",
    "arm_bars",
    "boundary_profile",
    "budget_curves",
    "confusion_heatmap",
    "forest",
    "goodness_of_fit",
    "heat_map",
    "label_of",
    "layer_panels",
    "layer_profile",
    "learning_curves",
    "point_map",
    "point_section",
    "qualitative_strip",
    "rgb",
    "save",
    "save_table",
    "show_masks",
]

# Masks and images


@house.styled
def show_masks(
    panels: Sequence[tuple[str, ArrayLike, Legend | None]],
    *,
    columns: int | None = None,
    bands: Sequence[str] | None = None,
    gsd_m: float | None = None,
) -> Figure:
    """Images and masks side by side, with one legend of the classes that occur.

    `panels` are (title, array, legend): with a legend the array is a mask (H, W) of class ids; without, it is an
    image (B, H, W) or one grey layer (H, W), where True is black. At most 4 `columns` if not given; `bands` as in
    `rgb`; `gsd_m`, the pixel size in metres, draws a scale bar on the first panel.
    """
    if not panels:
        raise ValueError("no panels: give a list of (title, array, legend or None)")
    columns = columns or min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    size = min(2.4, WIDE / columns)
    tall = size * max((np.shape(a)[-2] / np.shape(a)[-1] for _, a, _ in panels if np.ndim(a) > 1), default=1)
    fig, axes = plt.subplots(rows, columns, figsize=(size * columns, (tall + 0.15) * rows + 0.4), squeeze=False)
    for ax, (title, array, legend) in zip(axes.flat, panels, strict=False):
        house.panel(ax, title, np.asarray(array), legend, bands)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    if gsd_m:
        house.scale_bar(axes.flat[0], np.shape(panels[0][1])[-1], gsd_m)
    house.class_legend(fig, [(np.asarray(array), legend) for _, array, legend in panels if legend is not None])
    return fig


@house.styled
def qualitative_strip(
    image: ArrayLike,
    exact: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    legend: Legend,
    *,
    bands: Sequence[str] | None = None,
    gsd_m: float | None = None,
) -> Figure:
    """One row per patch: image, exact mask, then the prediction of every arm with its mean IoU on the patch.

    `image` is (N, B, H, W) or (B, H, W), `exact` holds class ids (N, H, W) or (H, W), `predictions` maps an arm to
    class ids of that shape, all in the classes of `legend`; `bands` and `gsd_m` are as in `show_masks`.
    """
    masks = {"": np.asarray(exact)} | {arm: np.asarray(mask) for arm, mask in predictions.items()}
    for arm, mask in masks.items():
        if mask.shape != masks[""].shape:
            raise ValueError(f"prediction of {arm!r} has shape {mask.shape}, the exact mask {masks[''].shape}")
    masks = {arm: mask.reshape(-1, *mask.shape[-2:]) for arm, mask in masks.items()}
    images = np.asarray(image).reshape(-1, *np.shape(image)[-3:])
    n, columns = len(images), 1 + len(masks)
    size = min(1.8, WIDE / columns)
    fig, axes = plt.subplots(n, columns, figsize=(size * columns, (size + 0.22) * n + 0.5), squeeze=False)
    for row in range(n):
        house.panel(axes[row, 0], "image" if row == 0 else "", images[row], None, bands)
        for ax, (arm, mask) in zip(axes[row, 1:], masks.items(), strict=True):
            title = f"prediction\n{house.label_of(arm)}" if arm else "exact mask"
            house.panel(ax, title if row == 0 else "", mask[row], legend, None)
            if arm:
                counts = statistics.confusion_counts(mask[row], masks[""][row], len(legend))
                ax.set_xlabel(f"mIoU {100 * statistics.mean_iou(counts):.0f} %", labelpad=2)
    if gsd_m:
        house.scale_bar(axes[0, 0], images.shape[-1], gsd_m)
    house.class_legend(fig, [(mask, legend) for mask in masks.values()])
    return fig


@house.styled
def point_section(
    x: ArrayLike, z: ArrayLike, colour: ArrayLike, *, label: str = "", legend: Legend | None = None
) -> Figure:
    """LiDAR points seen from the side, no vertical exaggeration.

    `x` is the distance along the section and `z` the height in metres, both (N,). `colour` (N,) holds values, drawn
    with a colour bar named `label` (name and unit), or class ids of `legend` if that is given.
    """
    return house.points(x, z, colour, label, legend, ("Distance along the section (m)", "Height (m)"))


@house.styled
def point_map(
    x: ArrayLike, y: ArrayLike, colour: ArrayLike, *, label: str = "", legend: Legend | None = None
) -> Figure:
    """LiDAR points seen from above: easting and northing in metres, the rest as in `point_section`."""
    values, names = [np.asarray(x, dtype=float), np.asarray(y, dtype=float)], ["Easting", "Northing"]
    for i in range(2):  # long coordinates are counted from a round number
        start = math.floor(np.min(values[i], initial=np.inf) / 100) * 100 if values[i].size else 0
        if abs(start) >= 10_000:
            values[i], names[i] = values[i] - start, f"{names[i]} from {start}"
    return house.points(*values, colour, label, legend, (f"{names[0]} (m)", f"{names[1]} (m)"), width=4.8)


# Matrices


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
    table: pd.DataFrame, *, rows: str = "arm", columns: str = "decoder", value: str = "mean", label: str = "mIoU (%)"
) -> Figure:
    """One number per arm and decoder: columns `rows`, `columns`, `value` (fraction), one row for each pair."""
    house.need(table, [rows, columns, value], "heat_map")
    if table.duplicated([rows, columns]).any():
        raise ValueError(f"heat_map: more than one row for a pair of {rows} and {columns}; filter or average first")
    wide = table.pivot(index=rows, columns=columns, values=value)
    wide = wide.loc[house.ordered(table[rows]), house.ordered(table[columns])]
    values = house.in_percent(wide.to_numpy(float), "heat_map")
    fig, ax = plt.subplots(figsize=(1.9 + 0.72 * values.shape[1], 0.8 + 0.36 * values.shape[0]))
    limits = (np.nanmin(values), np.nanmax(values))
    image = house.cells(
        ax,
        values,
        [house.label_of(r) for r in wide.index],
        [house.label_of(c) for c in wide.columns],
        limits,
        "cividis",
        "{:.1f}",
    )
    fig.colorbar(image, ax=ax, label=label, shrink=0.95, aspect=14).outline.set_linewidth(0.4)
    return fig


# Scores


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
def forest(differences: pd.DataFrame, *, xlabel: str = "Difference in mean IoU (percentage points)") -> Figure:
    """Paired differences with their intervals and verdicts, top to bottom in the order of the table.

    `differences` has columns label, effect, low, high (fractions), verdict, group; "" is a group without heading.
    """
    house.need(differences, ["label", "effect", "low", "high", "verdict", "group"], "forest")
    if unknown := set(differences["verdict"]) - set(VERDICTS):
        raise ValueError(f"forest: unknown verdict {sorted(unknown)}; known are {list(VERDICTS)}")
    lines: list[tuple[str, object]] = []
    for group, part in differences.fillna({"group": ""}).groupby("group", sort=False):
        lines += [(str(group), None)] if group else []
        lines += [(row.label, row) for row in part.itertuples()]
    fig, ax = plt.subplots(figsize=(WIDE * 0.8, 0.85 + 0.2 * len(lines)))
    for y, (_, row) in enumerate(lines):
        if row is None:
            continue
        effect, low, high = house.in_percent([row.effect, row.low, row.high], "forest")
        colour, marker, filled = VERDICTS[row.verdict]
        ax.hlines(y, low, high, color=colour, linewidth=1.3)
        ax.plot(effect, y, marker, color=colour, markerfacecolor=colour if filled else "white", markersize=5)
        interval = f"[{low:+.1f}, {high:+.1f}]" if np.isfinite(low) else "[no interval]"
        text = f"{effect:+.1f}  {interval}".replace("-", "\N{MINUS SIGN}")
        ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=7)
    ax.axvline(0, color="black", linewidth=0.7, zorder=1)
    ax.text(1.02, -0.9, "difference  [interval]", transform=ax.get_yaxis_transform(), fontsize=7, color="#666666")
    ax.set_yticks(range(len(lines)), [label for label, _ in lines])
    for tick, (_, row) in zip(ax.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if row is None else "normal")
    ax.set(ylim=(len(lines) - 0.4, -0.6), xlabel=xlabel)
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


# Curves


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
    """A value by layer (probe score, CKA), with what the seed alone changes as a grey band.

    `table` has columns layer, series, value; low and high, where there are, are drawn as a band; layers are drawn
    in the order in which they come. `floor` has columns layer, low, high: the range between networks that differ in
    the seed only. `percent` as in `learning_curves`; `ylabel` names the value and its unit.
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
        ax.fill_between(at, *band, color="#d9d9d9", linewidth=0, zorder=0, label="seed alone")
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    ax.set_xticks(range(len(order)), order)
    return fig


@house.styled
def layer_panels(table: pd.DataFrame) -> Figure:
    """Several measurements side by side, layers from top to bottom, each beside what a mere seed does to it.

    `table` has columns measure, layer, value, low, high (the range over seeds or an interval), floor_low, floor_high
    (NaN where there is no floor), in the units that `measure` names. Measures and layers keep their order.
    """
    house.need(table, ["measure", "layer", "value", "low", "high", "floor_low", "floor_high"], "layer_panels")
    measures, layers = (list(dict.fromkeys(table[name])) for name in ("measure", "layer"))
    size = (1.1 + 1.25 * len(measures), 0.9 + 0.2 * len(layers))
    fig, axes = plt.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False)
    for ax, measure in zip(axes[0], measures, strict=True):
        part = table[table["measure"] == measure]
        at = [layers.index(layer) for layer in part["layer"]]
        ax.barh(at, part["floor_high"] - part["floor_low"], 0.7, part["floor_low"], color="#d9d9d9", zorder=1)
        ax.hlines(at, part["low"], part["high"], color=OTHERS[0][0], linewidth=1.3, zorder=2)
        ax.plot(part["value"], at, "o", color=OTHERS[0][0], markersize=4, zorder=3)
        ax.axvline(0, color="black", linewidth=0.5, zorder=0)
        ax.set_title(fill(measure, 17), fontsize=7)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
    axes[0, 0].set_yticks(range(len(layers)), layers)
    axes[0, 0].set_ylim(len(layers) - 0.5, -0.5)
    marks = [Line2D([], [], color=OTHERS[0][0], marker="o", markersize=4, label="noisy against exact")]
    house.legend_below(fig, [*marks, Line2D([], [], color="#d9d9d9", linewidth=6, label="seed alone")])
    return fig
