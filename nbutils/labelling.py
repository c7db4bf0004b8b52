"""Labels without an annotator: from LiDAR returns, from a noisier map, or from a recipe of errors.

The door to the rooms that make masks; `nbutils.lidar` turns returns into classes. Nothing injects noise here but
`noisy_mask`, when a card asks for it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from nbutils import noise
from nbutils.cards import Inject, Lidar, Masks, Product, to_legend
from nbutils.files import decode, open_file
from nbutils.lidar.classify import (
    BACKGROUND,
    BUILDING,
    ROAD,
    TREE,
    Labels,
    LidarRules,
    apply_rules,
    from_lidar,
    measure,
)
from nbutils.maps import from_product, from_vector
from nbutils.sources import Dataset, SourceError, Tile, open_mask, read_exact

__all__ = [
    "BACKGROUND",
    "BUILDING",
    "ROAD",
    "TREE",
    "Labels",
    "LidarRules",
    "apply_rules",
    "from_lidar",
    "from_product",
    "from_vector",
    "measure",
    "noisy_mask",
]


def noisy_mask(dataset: Dataset, tile: Tile) -> NDArray[np.uint8]:
    """The noisy mask of a tile, by the card's `noisy` part.

    Injected errors are drawn from a generator seeded by the recipe's seed and the tile's name, so that a tile has the
    same errors in whatever order tiles are asked for.

    Returns:
        Classes of `dataset.noisy_legend`, void 255; shape (H, W) as the image.

    Raises:
        SourceError: The tile has no noisy source, or points or a map are to be laid on an image without a grid.
    """
    how = dataset.card.noisy
    if isinstance(how, Inject):
        key = hashlib.sha256(tile.name.encode()).digest()[:16]
        rng = np.random.default_rng([how.seed, *np.frombuffer(key, np.uint32).tolist()])
        exact = read_exact(dataset, tile)
        recipe, gsd_m = noise.RECIPES[how.recipe], dataset.card.gsd_m or 1.0
        return recipe.apply(exact, dataset.exact_legend, rng, how.strength, rate=how.rate, gsd_m=gsd_m)[0]
    if tile.noisy is None:
        raise SourceError(f"{tile.name}: has no file for its noisy mask; the card's `noisy` part finds none")
    with open_file(tile.image) as image:
        if isinstance(how, Masks):
            with open_mask(tile.noisy, image) as mask:
                return decode(mask, how, dataset.noisy_legend)
        grid = image.geobox
    if grid is None:
        raise SourceError(f"{tile.image}: has no CRS and transform, so neither points nor maps can be laid on it")
    if isinstance(how, Lidar):
        return from_lidar(tile.noisy, grid).mask
    if isinstance(how, Product):
        source, more = to_legend(how.legend), how.model_dump(include={"mapping", "method", "void"})
        return from_product(tile.noisy, grid, source=source, target=dataset.noisy_legend, **more)
    keys = {"column", "classes", "background", "order", "width_m", "ignore", "layer", "where"}
    return from_vector(tile.noisy, grid, legend=dataset.noisy_legend, **how.model_dump(include=keys))
