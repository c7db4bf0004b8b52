"""Arrays that lie in files, of which only the rows that are asked for are read.

An array has one `.npy` file, or several where one would grow too large. Rows are read, not mapped: what a process holds
is what it asked for, whatever the size of the array, and a file that was cut off is an error instead of a crash.
"""

import math
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

SHARD_BYTES = 1 << 32  # largest file of an array
HELD_BYTES = 1 << 30  # larger arrays stay on disk when rows of them are chosen
BLOCK_BYTES = 1 << 23  # in memory at once where an array is gone through


class ShardError(RuntimeError):
    """A file of an array is missing, damaged or cannot be read; the message names it and says what to do."""


class Shards(NDArrayOperatorsMixin):
    """An array in files.

    It is indexed like a NumPy array, which reads the rows asked for; whatever NumPy makes of the whole of it (comparing
    it, `numpy.asarray`) reads the whole. Patches for training are asked for in this way, batch by batch.

    Args:
        paths: `.npy` files, one after the other along the first axis.
        writable: Whether rows can be written too.

    Attributes:
        shape: Of the rows chosen.
        dtype: Of the values.

    Raises:
        ShardError: A file cannot be read as part of the array.
    """

    def __init__(self, paths: list[Path], *, writable: bool = False) -> None:
        parts = [_mapped(path) for path in paths]  # only looked at, to read their headers
        if len({(part.dtype, part.shape[1:]) for part in parts}) != 1:
            raise ShardError(f"{paths[0]}: the files of one array differ in type or shape; {_REMEDY}")
        self.dtype, self.shape = parts[0].dtype, (sum(map(len, parts)), *parts[0].shape[1:])
        self._files = _Files(paths, [part.offset for part in parts], writable)
        self._starts = np.cumsum([0, *map(len, parts)]).tolist()
        self._index: NDArray[np.intp] | None = None
        self._changes: tuple[Callable[[NDArray], NDArray], ...] = ()

    # ---- what an array has
    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return self.dtype.itemsize * self.size

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray]:
        for _, block in blocks(self):
            yield from block

    def __contains__(self, value: object) -> bool:
        return any(value in block for _, block in blocks(self))

    def __bool__(self) -> bool:
        return bool(np.asarray(self))  # as of any array: refused where it has several values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        if copy is False:
            raise ValueError("an array in files is always copied")
        return self[:].astype(dtype or self.dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if any(isinstance(out, Shards) for out in options.get("out", ())):
            return NotImplemented  # files are written row by row, by those who made them
        return getattr(ufunc, method)(*(np.asarray(i) if isinstance(i, Shards) else i for i in inputs), **options)

    def __getattr__(self, name: str) -> Any:
        """What else can be asked of an array is asked of the whole, read for it."""
        if name not in _ASKED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(np.asarray(self), name)

    def __getitem__(self, key: Any) -> NDArray:
        first, *rest = key if isinstance(key, tuple) and key else (key,)
        if isinstance(first, slice):
            return self._read(np.arange(len(self))[first])[(slice(None), *rest)]
        if isinstance(first, int | np.integer) and not isinstance(first, bool):
            return self._read(self._rows([first]))[(0, *rest)]
        if not isinstance(first, list | np.ndarray) or np.ndim(first) != 1:
            return np.asarray(self)[key]
        rows = self._rows(first)
        if not rest:
            return self._read(rows)
        known, at = np.unique(rows, return_inverse=True)  # many pixels of a patch: it is read once
        return self._read(known)[(at, *rest)]

    def __setitem__(self, row: int, value: NDArray) -> None:
        """Write one row; the array must be writable, and not a choice of another."""
        if self._index is not None or self._changes or not 0 <= row < len(self):
            raise IndexError(f"rows 0 to {len(self) - 1} of a whole array can be written, not {row} of this")
        part = bisect_right(self._starts, row) - 1
        data = np.asarray(value, self.dtype, order="C")
        if data.shape != self.shape[1:]:
            raise ValueError(f"a row has shape {self.shape[1:]}, got {data.shape}")
        self._files.write(part, (row - self._starts[part]) * data.nbytes, data)

    # ---- what it has beyond that
    def choose(self, index: NDArray) -> "Shards":
        """Choose rows (integers or a bool mask); nothing is read."""
        rows = self._rows(index)
        return self._like(rows if self._index is None else self._index[rows], self._changes)

    def changed(self, function: Callable[[NDArray], NDArray]) -> "Shards":
        """Return the same array whose rows go through a function, (n, ...) to its like, whenever they are read."""
        return self._like(self._index, (*self._changes, function))

    def expect(self, index: NDArray[np.integer]) -> None:
        """Tell the system which rows will be asked for next, so that it reads them meanwhile."""
        for part, offset, size, _ in self._runs(self._rows(index)):
            self._files.expect(part, offset, size)

    def _like(self, index: NDArray[np.intp] | None, changes: tuple[Callable[[NDArray], NDArray], ...]) -> "Shards":
        new = object.__new__(Shards)
        new.__dict__ = self.__dict__ | {"_index": index, "_changes": changes}
        new.shape = (self.shape[0] if index is None else len(index), *self.shape[1:])
        return new

    def _rows(self, index: Any) -> NDArray[np.intp]:
        """Numbers of rows, none negative; errors as NumPy has them."""
        index = np.asarray(index)
        if index.dtype == bool or not np.issubdtype(index.dtype, np.integer):
            return np.arange(len(self))[index if len(index) else index.astype(np.intp)]
        rows = np.where(index < 0, index + len(self), index).astype(np.intp)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(
                f"index {index[(rows < 0) | (rows >= len(self))][0]} is out of bounds for {len(self)} rows"
            )
        return rows

    def _read(self, rows: NDArray[np.intp]) -> NDArray:
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for part, offset, size, own in self._runs(rows):
            if size:
                self._files.read(part, offset, out[own])
        return reduce(lambda values, change: change(values), self._changes, out)

    def _runs(self, rows: NDArray[np.intp]) -> Iterator[tuple[int, int, int, slice]]:
        """Rows that lie side by side: their file, offset in it and bytes, and where they are among those asked for."""
        rows = rows if self._index is None else self._index[rows]
        size = self.dtype.itemsize * math.prod(self.shape[1:])
        part = np.searchsorted(self._starts, rows, side="right") - 1
        ends = [*(np.flatnonzero((np.diff(rows) != 1) | (np.diff(part) != 0)) + 1).tolist(), len(rows)]
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            if end > start:
                own = int(part[start])
                yield own, (int(rows[start]) - self._starts[own]) * size, (end - start) * size, slice(start, end)


_REMEDY = "delete its folder, and the data set is cut again"
_ASKED = {"T", "all", "any", "argmax", "argmin", "astype", "copy", "flatten", "itemsize", "max", "mean", "min", "ravel",
          "reshape", "std", "sum", "tobytes", "transpose"}  # of an array, all but what would change it  # fmt: skip
_OPEN = 64  # files of an array at once: a process may have a thousand


def _mapped(path: Path) -> np.memmap:
    try:
        part = np.lib.format.open_memmap(path, "r")
    except (OSError, ValueError, EOFError) as error:
        raise ShardError(f"{path}: no part of an array ({error}); {_REMEDY}") from None
    if not part.flags.c_contiguous:
        raise ShardError(f"{path}: its rows do not lie one after the other (Fortran order); {_REMEDY}")
    return part


class _Files:
    """Open files of an array; each process opens its own, and they are closed with the last array that reads them."""

    def __init__(self, paths: list[Path], offsets: list[int], writable: bool) -> None:
        self.paths, self.offsets, self.writable = paths, offsets, writable
        self.open: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"open": {}}

    def __del__(self) -> None:
        for handle in self.open.values():
            os.close(handle)

    def handle(self, part: int) -> int:
        if part not in self.open:
            if len(self.open) >= _OPEN:
                os.close(self.open.pop(next(iter(self.open))))
            self.open[part] = os.open(self.paths[part], os.O_RDWR if self.writable else os.O_RDONLY)
        return self.open[part]

    def read(self, part: int, offset: int, out: NDArray) -> None:
        """Fill an array from a place in a file."""
        left, at = memoryview(out).cast("B"), self.offsets[part] + offset
        while left:
            try:
                n = os.preadv(self.handle(part), [left], at)
            except OSError as error:
                raise ShardError(f"{self.paths[part]}: cannot be read ({error}); mend what it says and go on") from None
            if not n:
                raise ShardError(f"{self.paths[part]}: ends before byte {at + len(left)}; {_REMEDY}")
            left, at = left[n:], at + n

    def write(self, part: int, offset: int, data: NDArray) -> None:
        """Write an array to a place in a file."""
        left, at = memoryview(data).cast("B"), self.offsets[part] + offset
        while left:
            n = os.pwrite(self.handle(part), left, at)
            left, at = left[n:], at + n

    def expect(self, part: int, offset: int, size: int) -> None:
        """Ask for bytes to be read ahead, where the system can be asked."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # a hint: what cannot be read is told when it is read
                os.posix_fadvise(self.handle(part), self.offsets[part] + offset, size, os.POSIX_FADV_WILLNEED)


def create(folder: Path, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Shards:
    """Make the files of an array, all zero, to be written row by row by as many processes as like."""
    rows = max(SHARD_BYTES // max(np.dtype(dtype).itemsize * math.prod(shape[1:]), 1), 1)
    starts = range(0, max(shape[0], 1), rows)
    for number, start in enumerate(starts):
        own = name if len(starts) == 1 else f"{name}-{number:05d}"
        length = min(rows, shape[0] - start)
        np.lib.format.open_memmap(folder / f"{own}.npy", "w+", dtype, (length, *shape[1:]))
    return open_array(folder, name, writable=True)


def open_array(folder: Path, name: str, *, rows: int | None = None, writable: bool = False) -> Shards:
    """Open an array of a folder, in one file or several.

    Args:
        folder: Where it is.
        name: Its name, without number and ending.
        rows: How many it must have, if that is known.
        writable: Whether rows can be written too.

    Raises:
        ShardError: There is none, one of its files is missing, or one cannot be read.
    """
    whole = folder / f"{name}.npy"
    paths = [whole] if whole.exists() else sorted(folder.glob(f"{name}-[0-9]*.npy"))
    wanted = [folder / f"{name}-{number:05d}.npy" for number in range(max(len(paths), 1))]
    if paths not in ([whole], wanted):
        missing = next(path for path in wanted if path not in paths)
        raise ShardError(f"{missing}: is missing; {_REMEDY}")
    array = Shards(paths, writable=writable)
    if rows not in (None, len(array)):
        raise ShardError(f"{paths[-1]}: the array ends after {len(array)} of {rows} rows; {_REMEDY}")
    return array


def save(folder: Path, name: str, array: NDArray | Shards) -> None:
    """Write an array block by block to files of its own."""
    out = create(folder, name, array.dtype, array.shape)
    for start, block in blocks(array):
        for row, value in enumerate(block, start):
            out[row] = value


def chosen(array: NDArray | Shards, index: NDArray) -> NDArray | Shards:
    """Choose rows: read at once where they take at most `HELD_BYTES`, else left where they are."""
    if not isinstance(array, Shards):
        return array[index]
    part = array.choose(index)
    return part if part.nbytes > HELD_BYTES else np.asarray(part)


def blocks(array: NDArray | Shards) -> Iterator[tuple[int, NDArray]]:
    """Yield parts of an array and where they start; of one in files each is read alone, to leave memory again."""
    step = max(BLOCK_BYTES // max(array.dtype.itemsize * math.prod(array.shape[1:]), 1), 1)
    for start in range(0, len(array), step):
        yield start, array[start : start + step]


def moments(
    images: NDArray | Shards, inside: NDArray[np.bool_], scale: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per band, after `scale`, over the patches `inside` of (N, B, h, w)."""
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
