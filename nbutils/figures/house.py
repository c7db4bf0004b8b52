"""The house style of figures, and the parts that figures are put together from.

Colours and markers of arms, the stretch of images, panels, legends, axes: what pictures share. Parts draw on the axes
they are given; only those that return a Figure make one.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from io import BytesIO
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from nbutils import ROOT
from nbutils.legend import VOID, Legend

SAVED_DPI = 200
WIDE = 7.2  # inches: two columns of a journal

STYLE = {
    **dict.fromkeys(["font.size", "axes.titlesize", "axes.labelsize"], 8),
    **dict.fromkeys(["xtick.labelsize", "ytick.labelsize", "legend.fontsize"], 7.5),
    **dict.fromkeys(["axes.linewidth", "xtick.major.width", "ytick.major.width", "grid.linewidth"], 0.6),
    **dict.fromkeys(["xtick.major.size", "ytick.major.size"], 3),
    **dict.fromkeys(["axes.spines.top", "axes.spines.right", "legend.frameon"], False),
    **dict.fromkeys(["axes.axisbelow", "figure.constrained_layout.use"], True),
    **{"legend.handlelength": 1.4, "legend.columnspacing": 1.4, "grid.color": "#e4e4e4"},
    **{"lines.linewidth": 1.3, "lines.markersize": 4.5, "figure.dpi": 80},
    "font.family": "DejaVu Sans",  # comes with matplotlib, so pictures repeat on every machine
    "image.interpolation": "nearest",  # class maps must not be blended
}
ARMS = {  # arm: (label, colour, marker); colours after Okabe and Ito, told apart by colour-blind readers
    "random": ("random", "#8c8c8c", "o"),
    "moco": ("MoCo", "#56b4e9", "s"),
    "dino": ("DINO", "#0072b2", "D"),
    "vicregl": ("VICRegL", "#cc79a7", "v"),
    "noisy": ("noisy map", "#d55e00", "^"),
    "exact": ("exact map", "#009e73", "*"),
}
DECODERS = {
    "unet": "U-Net", "deeplabv3plus": "DeepLabV3+", "pspnet": "PSPNet", "fpn": "FPN", "upernet": "UPerNet",
    "segformer": "SegFormer", "linear": "linear",
}  # fmt: skip
OTHERS = (("#332288", "o"), ("#ddaa33", "s"), ("#882255", "D"), ("#777711", "^"), ("#111111", "v"), ("#aa7744", "p"))
VERDICTS = {  # verdict: (colour, marker, filled)
    "supported": ("#009e73", "o", True),
    "contradicted": ("#d55e00", "X", True),
    "undecided": ("#7a7a7a", "s", False),
}
BANDS = {  # what a band may be called
    "nir": ("nir", "nir08", "b8", "b08"),
    "red": ("red", "r", "b4", "b04"),
    "green": ("green", "g", "b3", "b03"),
    "blue": ("blue", "b", "b2", "b02"),
}


def apply_style() -> None:
    """Use the house style for figures drawn by hand in a notebook; the functions here apply it themselves."""
    plt.rcParams.update(STYLE)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the house style, leave the caller's settings alone, and leave no half-drawn figure open on an error."""

    @wraps(draw)
    def inner(*args, **kwargs) -> Figure:
        before = set(plt.get_fignums())
        try:
            with plt.rc_context(STYLE):
                return draw(*args, **kwargs)
        except Exception:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
            raise

    return inner


def rgb(image: ArrayLike, bands: Sequence[str] | None = None, *, natural: bool = False) -> NDArray[np.float64]:
    """Stretch an image (B, H, W) of any numeric type to (H, W, 3) in [0, 1], each band from its 2 to its 98 %.

    `bands` names the B bands; with near infrared among them the result is false-colour infrared (vegetation
    is red) unless `natural`. Without names 4 bands are nir, red, green, blue; of anything else the first three are
    drawn (or the first, in grey). NaN is black. ValueError if bands and image do not fit together.
    """
    array = np.asarray(image, dtype=np.float64)
    if array.ndim != 3:
        raise ValueError(f"an image is (B, H, W), got shape {array.shape}")
    if bands is None and len(array) == 4:
        bands = "nir", "red", "green", "blue"
    first = [0, 1, 2] if len(array) > 2 else [0, 0, 0]
    if bands is None:
        chosen = array[first]
    else:
        if len(bands) != len(array):
            raise ValueError(f"{len(bands)} band names {list(bands)} for an image of {len(array)} bands")
        where = {key: i for i, name in enumerate(bands) for key in BANDS if name.lower() in BANDS[key]}
        wanted = [("red", "green", "blue"), ("nir", "red", "green")]
        found = [keys for keys in (wanted if natural else wanted[::-1]) if set(keys) <= set(where)]
        chosen = array[[where[key] for key in found[0]] if found else first]
    known = [band[np.isfinite(band)] for band in chosen]
    low, high = np.array([np.percentile(band, [2, 98]) if band.size else (0, 1) for band in known]).T[..., None, None]
    stretched = np.where(np.isfinite(chosen), chosen - low, 0) / np.maximum(high - low, 1e-12)
    return np.moveaxis(np.clip(stretched, 0, 1), 0, -1)


def need(table: pd.DataFrame, columns: Iterable[str], where: str) -> None:
    """Refuse a table that is empty or lacks columns; `where` opens the message.

    Raises:
        ValueError: naming the columns that are missing and those that are there.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"{where}: the table lacks the column(s) {missing}; it has {list(table.columns)}")
    if table.empty:
        raise ValueError(f"{where}: the table has no rows")


def in_percent(values: ArrayLike, where: str) -> NDArray[np.float64]:
    """Turn fractions in [-1, 1] into percent; anything beyond is an error, most likely percent already."""
    array = np.asarray(values, dtype=float)
    if (np.abs(array[np.isfinite(array)]) > 1.0 + 1e-9).any():
        raise ValueError(f"{where}: scores are fractions in [-1, 1], got {np.nanmax(np.abs(array)):g}")
    return 100 * array


def label_of(name: object) -> str:
    """Name of an arm or a decoder as figures write it; other names stay as they are."""
    if str(name).startswith("noisy+"):
        return f"{ARMS['noisy'][0]} + {str(name).partition('+')[2]}"
    return ARMS[name][0] if name in ARMS else DECODERS.get(name, str(name))


def ordered(names: Iterable) -> list:
    """Distinct names: known arms in their order, then the others as they come."""
    names = list(dict.fromkeys(names))
    return [name for name in ARMS if name in names] + [name for name in names if name not in ARMS]


def styles_of(names: Iterable) -> dict[str, dict]:
    """Line style of every series; an arm looks the same everywhere."""
    names, styles = ordered(names), {}
    others = [name for name in names if name not in ARMS]
    for name in names:
        _, colour, marker = ARMS.get(name) or ("", *OTHERS[others.index(name) % len(OTHERS)])
        styles[name] = {"label": label_of(name), "color": colour, "marker": marker}
        styles[name] |= {"markeredgecolor": "white", "markeredgewidth": 0.4}
        styles[name] |= {"markersize": 8} if marker == "*" else {}  # a star of the usual size looks small
    return styles


def legend_below(fig: Figure, handles: Sequence[Artist]) -> None:
    """A legend in as many columns as fit below the figure, in rows of about equal length."""
    longest = max(len(handle.get_label()) for handle in handles)
    fit = max(1, int(fig.get_figwidth() / (0.072 * longest + 0.42)))
    ncols = math.ceil(len(handles) / math.ceil(len(handles) / fit))
    fig.legend(handles=handles, loc="outside lower center", ncols=ncols)


def class_legend(fig: Figure, masks: Sequence[tuple[NDArray, Legend]]) -> None:
    """Patches for the classes that occur; classes of two legends that share a colour share a patch."""
    found: dict[tuple, list[str]] = {}
    for mask, legend in masks:
        for i in np.unique(mask):
            if i != VOID and not 0 <= i < len(legend):
                raise ValueError(f"a mask holds class {i}, but legend {legend.name!r} ends at {len(legend) - 1}")
            colour = tuple(int(c) for c in legend.to_rgb(np.array([i], dtype=np.uint8))[0])
            names = found.setdefault(colour, [])
            name = "void" if i == VOID else legend.names[i]
            names += [name] if name not in names else []
    edge = {"edgecolor": "#666666", "linewidth": 0.4}
    handles = [Patch(facecolor=np.array(c) / 255, label=" / ".join(n), **edge) for c, n in found.items()]
    if handles:
        legend_below(fig, handles)


def panel(ax: Axes, title: str, array: NDArray, legend: Legend | None, bands: Sequence[str] | None) -> None:
    """Draw a mask (H, W) with its legend, or without one an image (B, H, W) or a grey layer (H, W)."""
    if legend is not None:
        if array.ndim != 2 or array.dtype.kind not in "iub":
            raise ValueError(f"{title!r}: a mask is (H, W) of class ids, got shape {array.shape}, {array.dtype}")
        ax.imshow(legend.to_rgb(array))
    elif array.ndim == 3:
        ax.imshow(rgb(array, bands))
    elif array.ndim == 2:
        ax.imshow(~array if array.dtype == bool else array, cmap="gray")
    else:
        raise ValueError(f"{title!r}: an image is (B, H, W) or (H, W), got shape {array.shape}")
    ax.set_title(title, pad=3)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    ax.spines[:].set(linewidth=0.4, color="#666666")


def scale_bar(ax: Axes, width_px: int, gsd_m: float) -> None:
    """A bar of 1, 2 or 5 times a power of ten metres, about a quarter of the panel long."""
    aim = width_px * gsd_m / 4
    power = 10 ** math.floor(math.log10(aim))
    length = max(step * power for step in (1, 2, 5) if step * power <= aim)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    box = {"facecolor": "black", "alpha": 0.55, "pad": 2, "linewidth": 0}
    left, right = 0.05, 0.05 + length / (gsd_m * width_px)
    ax.plot([left, right], [0.06, 0.06], color="white", linewidth=2, transform=ax.transAxes, solid_capstyle="butt")
    ax.text(left, 0.1, text, color="white", fontsize=6.5, va="bottom", transform=ax.transAxes, bbox=box)


def points(
    x: ArrayLike,
    y: ArrayLike,
    colour: ArrayLike,
    label: str,
    legend: Legend | None,
    names: tuple[str, str],
    width: float = WIDE,
) -> Figure:
    """Draw points (N,) in metres on equal axes called `names`, coloured by value (bar: `label`) or class id."""
    x, y, colour = np.asarray(x, dtype=float), np.asarray(y, dtype=float), np.asarray(colour)
    if not (x.ndim == 1 and x.shape == y.shape == colour.shape and x.size):
        raise ValueError(f"points need three arrays of one length, got {x.shape}, {y.shape}, {colour.shape}")
    height = min(max(width * np.ptp(y) / max(np.ptp(x), 1e-9), 0.7), 6)
    fig, ax = plt.subplots(figsize=(width, height + 0.85 if width == WIDE else 0.8 * height + 0.4))
    size = np.clip(0.7 * 72**2 * width * height / x.size, 0.5, 6)  # square points: enough to cover the ground
    if legend is None:
        drawn = ax.scatter(x, y, c=colour, cmap="viridis", s=size, linewidths=0)
        fig.colorbar(drawn, ax=ax, label=label, shrink=0.9, aspect=16).outline.set_linewidth(0.4)
    else:
        ids = colour.astype(np.uint8)
        ax.scatter(x, y, c=legend.to_rgb(ids) / 255, s=size, linewidths=0)
        class_legend(fig, [(ids, legend)])
    ax.set(xlabel=names[0], ylabel=names[1], aspect="equal", facecolor="#d9dee5")  # pale classes must show
    ax.margins(0.01, 0.05)
    return fig


def signed(points: float) -> str:
    """A difference with its sign, as in print; nought has none."""
    return f"{points:+.1f}".replace("-", "\N{MINUS SIGN}") if round(points, 1) else "0.0"


def cells(
    ax: Axes,
    values: NDArray,
    rows: Sequence[str],
    columns: Sequence[str],
    limits: tuple[float, float],
    cmap: str,
    form: str,
    *,
    second: Sequence[Sequence[tuple[str, bool]]] | None = None,
    room: int = 6,
) -> AxesImage:
    """A matrix of coloured cells with their numbers.

    `second` is a line below each number and whether it is bold; column names longer than `room` letters are slanted.
    """
    image = ax.imshow(values, cmap=cmap, vmin=limits[0], vmax=limits[1], aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        look = {"ha": "center", "color": "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"}
        line, bold = second[row][column] if second else ("", False)
        number = form.format(value).replace("-", "\N{MINUS SIGN}")
        ax.text(column, row - 0.02 if line else row, number, va="bottom" if line else "center", **look)
        if line:
            ax.text(column, row + 0.06, line, va="top", fontsize=6.5, fontweight="bold" if bold else "normal", **look)
    slanted = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    longest = max(len(line) for name in columns for line in str(name).split("\n"))
    if longest > room:  # wrapped names do not slant well
        columns = [str(name).replace("\n", " ") for name in columns]
    ax.set_xticks(range(len(columns)), columns, **(slanted if longest > room else {}))
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def grid_of_panels(table: pd.DataFrame, height: float) -> tuple[Figure, list]:
    """Panels frozen or fine-tuned (rows) x decoder (columns): (axes, rows of the table, key) of each."""
    if not table["frozen"].isin([True, False]).all():
        raise ValueError(f"frozen must be True or False, got {sorted(map(str, table['frozen'].unique()))}")
    decoders, frozen = list(dict.fromkeys(table["decoder"])), sorted(table["frozen"].unique(), reverse=True)
    width = {1: 3.0, 2: 2.6, 3: 2.2}.get(len(decoders), 1.6) * len(decoders) + 0.6
    size = (width, height * len(frozen) + 0.7)
    fig, axes = plt.subplots(len(frozen), len(decoders), figsize=size, sharex=True, sharey=True, squeeze=False)
    panels = []
    for i, state in enumerate(frozen):
        for j, decoder in enumerate(decoders):
            encoder = "frozen encoder" if state else "fine-tuned encoder"
            axes[i, j].set_title(f"{label_of(decoder)},{' ' if len(decoders) < 3 else chr(10)}{encoder}")
            part = table[(table["decoder"] == decoder) & (table["frozen"] == state)]
            panels.append((axes[i, j], part, (decoder, state)))
    return fig, panels


def curves(table: pd.DataFrame, x: str, xlabel: str, ylabel: str, *, percent: bool, markers: bool) -> Figure:
    """Draw a line per series of a table (columns `x`, series, value), panels side by side where it has a column panel.

    Columns low and high, if there, are drawn as a band.
    """
    panels = list(dict.fromkeys(table["panel"])) if "panel" in table else [""]
    width = WIDE * (0.72 if len(panels) == 1 else 1)
    fig, axes = plt.subplots(1, len(panels), figsize=(width, 2.6), sharey=True, squeeze=False)
    styles = styles_of(table["series"])
    for ax, panel in zip(axes[0], panels, strict=True):
        for name, style in styles.items():
            own = table["series"] == name
            rows = table[own & (table["panel"] == panel) if panel else own].sort_values(x)
            scaled = {
                c: in_percent(rows[c], ylabel) if percent else rows[c] for c in rows if c in ("value", "low", "high")
            }
            ax.plot(rows[x], scaled["value"], **(style if markers else style | {"marker": ""}))
            if {"low", "high"} <= set(scaled):
                ax.fill_between(rows[x], scaled["low"], scaled["high"], color=style["color"], alpha=0.18, linewidth=0)
        ax.set(xlabel=xlabel, title=panel)
        ax.grid(axis="y")
    axes[0, 0].set_ylabel(fill(ylabel, 36))
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return fig


# Files


def _opaque(fig: Figure) -> Image.Image:
    """Draw a figure without the channel of transparency, which takes a tenth of a file and shows nothing."""
    drawn = BytesIO()
    fig.savefig(drawn, format="png", dpi=SAVED_DPI)
    return Image.open(drawn).convert("RGB")


def save(fig: Figure, name: str, folder: str | Path | None, table: pd.DataFrame | None = None) -> Path | None:
    """Write a figure as PNG and the numbers behind it as CSV beside it; the same input gives the same bytes.

    `name` is the number of the notebook and what it shows, "02_confusion" (else ValueError). `folder` is created if
    need be and taken relative to the root of the repository; with "" or None nothing is written. Returns the path
    of the PNG, or None.
    """
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", name):
        raise ValueError(f"figure name {name!r}: two digits, underscore, lower-case words, like '02_confusion'")
    if not folder:
        return None
    path = _folder(folder) / f"{name}.png"
    with plt.rc_context(STYLE):
        _write(path, lambda new: _opaque(fig).save(new, "png", optimize=True, dpi=(SAVED_DPI, SAVED_DPI)))
    if table is not None:
        save_table(table, name, folder)
    return path


def save_table(table: pd.DataFrame, name: str, folder: str | Path | None) -> Path | None:
    """Write `<folder>/<name>.csv` with six significant digits; folder and result as in `save`."""
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"table name {name!r}: lower-case letters, digits and underscores, without '.csv'")
    if not folder:
        return None
    index = not isinstance(table.index, pd.RangeIndex)
    path = _folder(folder) / f"{name}.csv"
    _write(path, lambda new: table.to_csv(new, index=index, float_format="%.6g", lineterminator="\n"))
    return path


def _folder(folder: str | Path) -> Path:
    path = ROOT / Path(folder).expanduser()  # an absolute path stays what it is
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary name, then rename: a file is whole or absent."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(new)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
