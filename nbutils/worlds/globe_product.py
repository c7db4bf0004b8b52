"""What the embedded world `globe` hands over: places with images, exact maps and a land-cover product.

The product is a map like Dynamic World with the errors real ones have, each from a mechanism, in this order:

1. **Out of date**: it was drawn some years ago; quarters, clearings, pits and crops that came since are missing.
2. **Look-alikes**: plants that do worse or better than is usual for their kind are taken for another kind, whole
   parcels and patches at a time: a poor millet field for shrub, lush pasture for crops, wet reeds for water.
3. **Coarse support**: a classifier sees some tens of metres around a pixel and leans towards grass, shrub and built;
   borders become round, lanes and hedges vanish.
4. **Minimum mapping unit**: patches below it go to the neighbour they share most border with.
5. **Missed clouds and shadows**: the map was touched up with the four images of the place; where the cloud detector
   failed, a bright cloud became snow and a dark shadow became water.

`agreement` says how good such a map is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rasterio.features import sieve
from scipy import ndimage, special

from nbutils import legend
from nbutils.worlds import KINDS
from nbutils.worlds.globe import SURFACES, Land, names, to_pixels
from nbutils.worlds.globe_biomes import build_land
from nbutils.worlds.globe_sensor import CLOUD, SEASONS, SHADOW, Shot, canvas_cells, observe, survey

UNIT_PX = 14  # minimum mapping unit, pixels
SIGHT_PX = 1.7  # how far around itself a pixel is seen, standard deviation
LEANING = {"grass": 1.1, "shrub and scrub": 1.2, "built": 1.15, "flooded vegetation": 0.95}
MISSED = 0.08  # share of clouds and shadows that escape the detector


def make_product(land: Land, shots: list[Shot], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw the product of a place.

    Args:
        land: The place, on cells of 5 m with a margin.
        shots: Its images; their missed clouds and shadows get into the map.
        rng: Source of everything random in it.

    Returns:
        Classes of the legend dw9 on the pixels of the images, shape (H, W), uint8.
    """
    dw9 = legend.get("dw9")
    luck = 0.8 * land.vigour + 0.6 * land.noise(3.4, 70)
    rank = special.ndtr(luck / luck.std())
    poor, rich = (np.array([dw9.index(getattr(s, end)) for s in SURFACES], np.uint8) for end in ("poor", "rich"))
    few, many = (np.array([getattr(s, end) for s in SURFACES]) / 100 for end in ("poor_percent", "rich_percent"))
    seen = np.where(rank < few[land.before], poor[land.before], names("dw9")[land.before])
    seen = np.where(rank > 1 - many[land.before], rich[land.before], seen)
    inner = slice(18, 18 + shots[0].clouds.shape[0])
    votes = []
    for k, name in enumerate(dw9.names):
        share = (seen == k).astype(np.float32).reshape(len(seen) // 2, 2, -1, 2).mean((1, 3))
        votes.append(ndimage.gaussian_filter(share, SIGHT_PX)[inner, inner] * LEANING.get(name, 1))
    product = sieve(np.argmax(votes, axis=0).astype(np.uint8), UNIT_PX)
    for shot in shots:
        for what, taken, thick in ((CLOUD, "snow and ice", shot.thickness > 0.5), (SHADOW, "water", True)):
            objects, count = ndimage.label((shot.clouds == what) & thick)
            missed = rng.random(count + 1) < MISSED
            missed[0] = False
            product[missed[objects]] = dw9.index(taken)
    return product


def agreement(exact: NDArray[np.uint8], product: NDArray[np.uint8], legend_name: str = "dw9") -> pd.DataFrame:
    """Agreement of a product with exact masks, pooled over all pixels given; void pixels do not count.

    Venter et al. (2022) give one accuracy per class; here it is the harmonic mean of producer's accuracy (share of a
    class that the map finds) and user's accuracy (share of what the map calls so that is right), because either alone
    can be had by mapping too much or too little.

    Args:
        exact: Class ids, any shape.
        product: Class ids, same shape.
        legend_name: Their legend.

    Returns:
        One row per class with share (of the exact pixels), producer's, user's and agreement, all 0..1, and a row
        "overall" whose agreement is the share of pixels that agree.
    """
    found = legend.get(legend_name)
    k = len(found)
    valid = (exact != legend.VOID) & (product != legend.VOID)
    counts = np.bincount(exact[valid].astype(np.int64) * k + product[valid], minlength=k * k).reshape(k, k)
    right, true, mapped = np.diag(counts).astype(float), counts.sum(1).astype(float), counts.sum(0).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        table = pd.DataFrame({"share": true / true.sum(), "producer's": right / true, "user's": right / mapped,
                              "agreement": 2 * right / (true + mapped)}, index=list(found.names))  # fmt: skip
    table.loc["overall"] = [1.0, np.nan, np.nan, right.sum() / true.sum()]
    return table


@dataclass(frozen=True)
class Place:
    """One place of the globe in memory, pixels of 10 m.

    Attributes:
        biome: One of `globe.GROUNDS`.
        shots: An image with its clouds for every season of `globe_sensor.SEASONS`.
        exact: Class maps in the legends dw9, dfc8 and osm13, each (H, W), uint8.
        product: A noisy map in the legend dw9, shape (H, W), uint8.
    """

    biome: str
    shots: dict[str, Shot]
    exact: dict[str, NDArray[np.uint8]]
    product: NDArray[np.uint8]


def make_place(seed: int | np.random.SeedSequence, size_px: int, index: int = 0,
               kinds: tuple[str, ...] = KINDS["globe"]) -> Place:  # fmt: skip
    """Make one place; everything random in it follows from the seed.

    Args:
        seed: What everything random follows from.
        size_px: Side in pixels of 10 m, at least 48.
        index: Number of the place; consecutive places take turns in biome.
        kinds: The biomes that take turns.

    Raises:
        ValueError: `size_px` below 48.
    """
    if size_px < 48:
        raise ValueError(f"size_px of a place must be at least 48, got {size_px}")
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    keys = [np.random.SeedSequence(root.entropy, spawn_key=(*root.spawn_key, k)) for k in range(3)]
    ground, light, mapping = (np.random.default_rng(key) for key in keys)
    biome = kinds[index % len(kinds)]
    cells, rim = canvas_cells(size_px)
    land = build_land(ground, cells, biome)
    plot = survey(land, light)
    shots = {season: observe(land, plot, light, season, size_px) for season in SEASONS}
    inner = slice(rim, rim + 2 * size_px)
    surface = to_pixels(land.surface[inner, inner])
    exact = {name: names(name)[surface] for name in ("dw9", "dfc8", "osm13")}
    return Place(biome, shots, exact, make_product(land, list(shots.values()), mapping))
