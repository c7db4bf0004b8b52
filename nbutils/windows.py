"""Windows: the squares an image is cut into, looked through in strips and read one by one."""

from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbutils import cards, distance, files, labelling, legend, majority, maps, noise, shards, sources, vectors
from nbutils.legend import VOID
from nbutils.lidar import cells, classify, ground, points
from nbutils.noise import fields, geometry, objects, pairs, pixels, recipes, spread

# what is in a patch
MAKERS = (
    *(cards, files, labelling, legend, majority, maps, shards, sources, vectors),
    *(cells, classify, ground, points),
    *(distance, noise, fields, geometry, objects, pairs, pixels, recipes, spread),
)


class Survey(NamedTuple):
    """What there is to learn from in a tile.

    Attributes:
        numbers: (n,) numbers of the windows that say something by their exact mask, in a tile for pretraining also by
            their noisy one.
        exact: (n,) bool, those with exact labels.
        shown: (n, D) bool, on which of the card's dates the window has labels and data; the first is the main one.
        dtype: Type of the pixels.
    """

    numbers: NDArray[np.intp]
    exact: NDArray[np.bool_]
    shown: NDArray[np.bool_]
    dtype: np.dtype


class Ground(ExitStack):
    """An open tile: its image on every date, and its masks window by window, all on one grid."""

    def __init__(self, dataset: sources.Dataset, tile: sources.Tile, whole: Path) -> None:
        """Open the files; `whole` is where a noisy mask is kept that was made for the whole tile."""
        super().__init__()
        try:
            self._open(dataset, tile, whole)
        except BaseException:
            self.close()
            raise

    def _open(self, dataset: sources.Dataset, tile: sources.Tile, whole: Path) -> None:
        card, self._masks = dataset.card, {}
        image = self.enter_context(dataset.open_image(tile))
        self.shape, self.images = image.shape, [image]
        for date in range(1, len(tile.dates) + 1):
            self.images.append(self.enter_context(sources.on_grid(dataset.open_image(tile, date), image)))
        for name, path, spec in (("exact", tile.exact, card.exact), ("noisy", tile.noisy, card.noisy)):
            if path is not None and isinstance(spec, sources.Masks):
                mask = self.enter_context(sources.open_mask(path, image))
                own = dataset.exact_legend if name == "exact" else dataset.noisy_legend
                self._masks[name] = partial(files.decode, mask, spec, own)
        made_from = tile.exact if isinstance(card.noisy, sources.Inject) else tile.noisy
        if made_from is not None and "noisy" not in self._masks:
            if not whole.exists():
                np.save(whole, labelling.noisy_mask(dataset, tile))
            self._masks["noisy"] = np.load(whole, mmap_mode="r").__getitem__

    def masks(self, window: tuple[slice, slice]) -> list[dict[str, NDArray[np.uint8]]]:
        """Read a window of the exact and the noisy mask, wholly void where the tile has none.

        Returns:
            For each date the two masks, void where the image of that date has no data.
        """
        void = np.full([s.stop - s.start for s in window], VOID, np.uint8)
        read = {name: self._masks[name](window) if name in self._masks else void for name in ("exact", "noisy")}
        valid = [image.valid(window) for image in self.images]
        return [{name: np.where(v, mask, VOID).astype(np.uint8) for name, mask in read.items()} for v in valid]


def survey(dataset: sources.Dataset, size_px: int, tile: sources.Tile, whole: Path) -> Survey:
    """Look through a tile's masks."""
    with Ground(dataset, tile, whole) as ground:
        strips = []
        for rows in files.strips(ground.shape, size_px):
            dates = ground.masks((rows, slice(0, ground.shape[1])))
            masks = np.array([[date[name] for date in dates] for name in ("exact", "noisy")])
            strips.append((squares(masks, size_px) != VOID).any(axis=(-2, -1)))
        exact, noisy = np.concatenate(strips).transpose(1, 2, 0)  # each (dates, windows)
        numbers = np.flatnonzero(exact[0] | noisy[0] if "pretrain" in tile.splits else exact[0])
        shown = np.zeros((len(numbers), 1 + len(dataset.card.images.dates)), bool)
        shown[:, : len(exact)] = (exact | noisy)[:, numbers].T
        dtype = np.result_type(*(image.dtype for image in ground.images))
        return Survey(numbers, exact[0, numbers], shown, sources.trainable(np.empty(0, dtype)).dtype)


def fill(
    dataset: sources.Dataset,
    size_px: int,
    folder: Path,
    tile: sources.Tile,
    whole: Path,
    numbers: NDArray[np.intp],
    wanted: NDArray[np.bool_],
    first: int,
) -> None:
    """Read windows of a tile on the dates `wanted`, (n, D), and write them into the set's files from `first` on."""
    chosen = wanted.any(axis=1)
    if not chosen.any():
        return
    with Ground(dataset, tile, whole) as ground:
        out = _outputs(folder)
        in_one_strip = ground.shape[0] * ground.shape[1] <= files.STRIP_PX
        strip = ground.masks(tuple(slice(0, n) for n in ground.shape)) if in_one_strip else []
        for number, dates in zip(numbers[chosen].tolist(), wanted[chosen], strict=True):
            corner = [size_px * n for n in divmod(number, ground.shape[1] // size_px)]
            window = tuple(slice(start, start + size_px) for start in corner)
            masks = [{name: mask[window] for name, mask in own.items()} for own in strip] or ground.masks(window)
            for date in np.flatnonzero(dates):
                for name, part in {"images": ground.images[date].read(window), **masks[date]}.items():
                    out[name][first] = part
                first += 1


@lru_cache(maxsize=1)
def _outputs(folder: Path) -> dict[str, shards.Shards]:
    """The arrays of a set that is being cut, opened once by each process that fills them."""
    return {name: shards.open_array(folder, name, writable=True) for name in ("images", "exact", "noisy")}


def squares(array: NDArray, size_px: int) -> NDArray:
    """Split (..., H, W) into the whole windows of a grid: (n, ..., size, size)."""
    rows, columns = array.shape[-2] // size_px, array.shape[-1] // size_px
    array = array[..., : rows * size_px, : columns * size_px]
    blocks = array.reshape(*array.shape[:-2], rows, size_px, columns, size_px)
    blocks = np.moveaxis(blocks, (-4, -2), (0, 1))  # (rows, columns, ..., size, size)
    return blocks.reshape(rows * columns, *blocks.shape[2:])
