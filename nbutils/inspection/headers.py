"""Headers: what is known of every image and its masks before a pixel is read."""

from dataclasses import dataclass

import numpy as np
from odc.geo.geobox import GeoBox

from nbutils import vectors
from nbutils.files import Raster
from nbutils.inspection.finding import Trouble
from nbutils.sources import Dataset, Masks, SourceError, Tile, on_grid, open_mask


@dataclass(frozen=True)
class Header:
    """An image that can be opened.

    Attributes:
        tile: Its tile.
        shape: (H, W).
        dtype: Type of the values.
        geobox: Its grid, or None.
        pixel_m: Width and height of a pixel on the ground in metres, true at the image's middle; None where the image
            has no place on Earth.
        masks: Which of its masks, "exact" and "noisy", can be laid on it.
    """

    tile: Tile
    shape: tuple[int, int]
    dtype: np.dtype
    geobox: GeoBox | None
    pixel_m: tuple[float, float] | None
    masks: frozenset[str]

    @property
    def placed(self) -> bool:
        """Whether the image has a place on Earth: a grid, and a CRS that leads there."""
        return self.pixel_m is not None


def read_headers(dataset: Dataset) -> tuple[list[Header], list[Trouble]]:
    """Open every file of every tile; what cannot be opened, or lies off its image, is returned as trouble."""
    headers: list[Header] = []
    troubles: list[Trouble] = []
    for tile in dataset.tiles:
        try:
            with dataset.open_image(tile) as image:
                masks = _masks_on_grid(dataset, tile, image, troubles)
                try:
                    pixel_m = _pixel_m(image.geobox)
                except ValueError as error:  # the CRS leads nowhere
                    pixel_m = None
                    troubles.append(Trouble("images", tile.name, str(error)))
                headers.append(Header(tile, image.shape, image.dtype, image.geobox, pixel_m, masks))
        except SourceError as error:
            troubles.append(Trouble("images", tile.name, str(error)))
    return headers, troubles


def _pixel_m(geobox: GeoBox | None) -> tuple[float, float] | None:
    if geobox is None or geobox.crs is None:
        return None
    *_, east, north = vectors._middle(geobox)  # metres per unit of x and of y
    a = geobox.transform
    return float(np.hypot(a.a * east, a.d * north)), float(np.hypot(a.b * east, a.e * north))


def _masks_on_grid(dataset: Dataset, tile: Tile, image: Raster, troubles: list[Trouble]) -> frozenset[str]:
    """Names of the masks that can be laid on an image; what lies off it, further dates too, is added to `troubles`."""
    found = set()
    files = {"exact": tile.exact, "noisy": tile.noisy} | {f"date {i}": path for i, path in enumerate(tile.dates, 1)}
    for part, path in files.items():
        if path is None:
            continue
        try:
            if part.startswith("date"):
                on_grid(dataset.open_image(tile, int(part.split()[1])), image).close()
            elif part == "exact" or isinstance(dataset.card.noisy, Masks):
                open_mask(path, image).close()
            found.add(part)  # points, products and vectors are opened where they are laid out
        except SourceError as error:
            troubles.append(Trouble(part, tile.name, str(error)))
    return frozenset(found)
