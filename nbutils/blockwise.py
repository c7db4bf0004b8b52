"""Arrays on disk that may be larger than memory, gone through block by block."""

import mmap
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 1 << 26  # in memory at once


def moments(images: NDArray, inside: NDArray[np.bool_], scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per band, after `scale`, over the patches `inside`."""
    n, bands, height, width = images.shape

    def mean_of(value: Callable[[NDArray], NDArray]) -> NDArray[np.float64]:
        sums = np.zeros(bands)
        for start, block in blocks(images):
            # one by one: summed all at once they would be in another order, and copied
            for i in np.flatnonzero(inside[start : start + len(block)]):
                sums += value(block[i].astype(np.float64).reshape(bands, -1) / scale).sum(axis=1)
        return sums / (int(inside.sum()) * height * width)

    mean = mean_of(lambda values: values)
    std = np.sqrt(mean_of(lambda values: (values - mean[:, None]) ** 2)).clip(min=1e-6)
    return tuple(mean.tolist()), tuple(std.tolist())


def blocks(array: NDArray) -> Iterator[tuple[int, NDArray]]:
    """Yield parts of an array and where they start; of one on disk each is mapped alone, to leave memory again."""
    step = max(BLOCK_BYTES // max(array[:1].nbytes, 1), 1)
    for start in range(0, len(array), step):
        part = array[start : start + step]
        if isinstance(array.base, mmap.mmap) and array.flags.c_contiguous:
            offset = array.offset + start * array[:1].nbytes
            part = np.memmap(array.filename, array.dtype, "r", offset, part.shape)
        yield start, part
