"""Images, masks, predictions and points, with the classes they show."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from nbutils import statistics
from nbutils.figures import house
from nbutils.figures.house import WIDE
from nbutils.legend import Legend


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
