"""Windows: the squares an image is cut into, looked through in strips and read one by one."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nbutils import cards, distance, files, labelling, legend, majority, maps, noise, sources, vectors
from nbutils.legend import VOID
from nbutils.lidar import cells, classify, ground, points
from nbutils.noise import fields, geometry, objects, pairs, pixels, recipes, spread

# what is in a patch
MAKERS = (
    *(cards, files, labelling, legend, majority, maps, sources, vectors),
    *(cells, classify, ground, points),
    *(distance, noise, fields, geometry, objects, pairs, pixels, recipes, spread),
)


class Ground(ExitStack):
    """An open tile: its image, and its masks window by window, on one grid and void where the image has no data."""

    def __init__(self, dataset: sources.Dataset, tile: sources.Tile, whole: Path) -> None:
        """Open the files; `whole` is where a noisy mask is kept that was made for the whole tile."""
        super().__init__()
        card, self._masks = dataset.card, {}
        self.image = self.enter_context(dataset.open_image(tile))
        self.shape = self.image.shape
        for name, path, spec in (("exact", tile.exact, card.exact), ("noisy", tile.noisy, card.noisy)):
            if path is not None and isinstance(spec, sources.Masks):
                mask = self.enter_context(sources.open_mask(path, self.image))
                own = dataset.exact_legend if name == "exact" else dataset.noisy_legend
                self._masks[name] = partial(files.decode, mask, spec, own)
        made_from = tile.exact if isinstance(card.noisy, sources.Inject) else tile.noisy
        if made_from is not None and "noisy" not in self._masks:
            if not whole.exists():
                np.save(whole, labelling.noisy_mask(dataset, tile))
            self._masks["noisy"] = np.load(whole, mmap_mode="r").__getitem__

    def masks(self, window: tuple[slice, slice]) -> dict[str, NDArray[np.uint8]]:
        """Read a window of the exact and the noisy mask, wholly void where the tile has none."""
        valid = self.image.valid(window)
        void = np.full(valid.shape, VOID, np.uint8)
        read = {name: self._masks[name](window) if name in self._masks else void for name in ("exact", "noisy")}
        return {name: np.where(valid, mask, VOID).astype(np.uint8) for name, mask in read.items()}


def survey(
    dataset: sources.Dataset, size_px: int, tile: sources.Tile, whole: Path
) -> tuple[NDArray[np.intp], NDArray[np.bool_], np.dtype]:
    """Look through a tile's masks.

    Returns:
        Numbers of the windows that can be learned from (by their exact mask, or for pretraining by their noisy one),
        which of them have exact labels, and the type of the pixels.
    """
    with Ground(dataset, tile, whole) as ground:
        known: dict[str, list[NDArray]] = {"exact": [], "noisy": []}
        for rows in files.strips(ground.shape, size_px):
            for name, mask in ground.masks((rows, slice(0, ground.shape[1]))).items():
                known[name].append((squares(mask, size_px) != VOID).any(axis=(1, 2)))
        exact, noisy = (np.concatenate(known[name]) for name in ("exact", "noisy"))
        useful = np.flatnonzero(exact | noisy if "pretrain" in tile.splits else exact)
        return useful, exact[useful], sources.trainable(np.empty(0, ground.image.dtype)).dtype


def fill(
    dataset: sources.Dataset,
    size_px: int,
    folder: Path,
    tile: sources.Tile,
    whole: Path,
    numbers: NDArray[np.intp],
    first: int,
) -> None:
    """Read windows of a tile and write them into the set's files, from place `first` on."""
    if not len(numbers):
        return
    with Ground(dataset, tile, whole) as ground:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "exact", "noisy")}
        out = {name: ground.enter_context(open(folder / f"{name}.npy", "r+b")) for name in arrays}
        in_one_strip = ground.shape[0] * ground.shape[1] <= files.STRIP_PX
        strip = ground.masks(tuple(slice(0, n) for n in ground.shape)) if in_one_strip else {}
        for place, number in enumerate(numbers.tolist(), first):
            corner = [size_px * n for n in divmod(number, ground.shape[1] // size_px)]
            window = tuple(slice(start, start + size_px) for start in corner)
            masks = {name: mask[window] for name, mask in strip.items()} or ground.masks(window)
            for name, part in {"images": ground.image.read(window), **masks}.items():
                out[name].seek(arrays[name].offset + place * arrays[name][:1].nbytes)
                out[name].write(np.ascontiguousarray(part, arrays[name].dtype).data)


def squares(array: NDArray, size_px: int) -> NDArray:
    """Split (..., H, W) into the whole windows of a grid: (n, ..., size, size)."""
    rows, columns = array.shape[-2] // size_px, array.shape[-1] // size_px
    array = array[..., : rows * size_px, : columns * size_px]
    blocks = array.reshape(*array.shape[:-2], rows, size_px, columns, size_px)
    blocks = np.moveaxis(blocks, (-4, -2), (0, 1))  # (rows, columns, ..., size, size)
    return blocks.reshape(rows * columns, *blocks.shape[2:])


@contextmanager
def mapper(workers: int) -> Iterator[Callable]:
    """Yield a `map` that runs in this process, or in order on `workers` fresh ones."""
    if workers <= 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=1)
