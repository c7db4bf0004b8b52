"""Looks: pixels of some images and their masks, read once, in bounded memory, for all checks that need them."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from nbutils import audit, labelling, legend
from nbutils.cards import SPLITS
from nbutils.files import OutsideError, Raster, decode
from nbutils.inspection.finding import Trouble
from nbutils.inspection.headers import Header
from nbutils.legend import VOID
from nbutils.sources import Dataset, Inject, Masks, SourceError, Tile, open_mask

WHOLE_PX = 1 << 20  # images of so many pixels are read whole, of larger ones windows are drawn
WINDOWS, WINDOW_PX = 8, 512
MADE = 8  # images for which a noisy map is made from points, a product or vectors
LEVEL_PX = 50_000  # pixels of a window by which its brightness is judged
CROPS, CROP_PX = 12, 256  # windows kept to see whether masks lie on their images

Window = tuple[slice, slice]


@dataclass
class Look:
    """What was seen of an image and its masks.

    Attributes:
        header: The image.
        whole: Whether all of it was read.
        low, high: Least and largest value of each band where there is data, (B,); inf and -inf where there is none.
        level: Of the absolute values of the brightest band 99 % are at most this; 0 without data.
        n, n_valid, n_unreal: Pixels, those with data, and those that hold NaN or infinity and are not marked as holes.
        counts: For each mask that was read how many pixels with image data have each class, (256,).
        confusion: Exact classes in the noisy legend (rows) against noisy ones; None where not both are known.
    """

    header: Header
    whole: bool
    low: NDArray
    high: NDArray
    level: float = 0.0
    n: int = 0
    n_valid: int = 0
    n_unreal: int = 0
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    confusion: NDArray[np.int64] | None = None

    @property
    def tile(self) -> Tile:
        """The tile."""
        return self.header.tile


@dataclass
class Sample:
    """What was seen of a data set.

    Attributes:
        looks: One for each image that could be read.
        crops: Windows of images and masks with some label, ((B, h, w), (h, w)), for each kind of mask.
        troubles: What could not be read.
        n_images, n_drawn: Images that can be opened, and those drawn of them.
    """

    looks: list[Look]
    crops: dict[str, list[tuple[NDArray, NDArray[np.uint8]]]]
    troubles: list[Trouble]
    n_images: int
    n_drawn: int

    def with_mask(self, name: str) -> list[Look]:
        """Looks in which a mask was read, "exact" or "noisy"."""
        return [look for look in self.looks if name in look.counts]

    def scope(self, looks: Sequence[Look]) -> str:
        """What some looks are, in words: "the 25 image(s) looked at"."""
        in_part = sum(not look.whole for look in looks)
        return f"the {len(looks)} image(s) looked at" + (f", {in_part} of them in windows," if in_part else "")


def draw(dataset: Dataset, headers: Sequence[Header], most: int, rng: np.random.Generator) -> list[Header]:
    """Draw at most `most` images of each split, in random order."""
    drawn: dict[str, Header] = {}
    for split in SPLITS:
        own = [header for header in headers if split in header.tile.splits]
        known = sum(header.tile.name in drawn for header in own)
        for i in rng.permutation(len(own)):
            if known < most and own[i].tile.name not in drawn:
                drawn[own[i].tile.name] = own[i]
                known += 1
    return list(drawn.values())


def look_at(dataset: Dataset, drawn: Sequence[Header], n_images: int, rng: np.random.Generator) -> Sample:
    """Read the images that were drawn, windows of the large ones, with their masks."""
    sample = Sample([], {"exact": [], "noisy": []}, [], n_images, len(drawn))
    mapped = _mapped(dataset, drawn)
    for header in drawn:
        try:
            sample.looks.append(_look(dataset, header, header.tile.name in mapped, sample, rng))
        except SourceError as error:
            sample.troubles.append(Trouble("images", header.tile.name, str(error)))
    return sample


def _mapped(dataset: Dataset, drawn: Sequence[Header]) -> set[str]:
    """Names of the tiles whose noisy mask is read: all where it lies in files, some with and without exact masks else.

    Injected noise is none of the data's faults.
    """
    if isinstance(dataset.card.noisy, Inject):
        return set()
    names = [h.tile.name for h in drawn if "noisy" in h.masks and (h.placed or isinstance(dataset.card.noisy, Masks))]
    if isinstance(dataset.card.noisy, Masks):
        return set(names)
    exact = [h.tile.name for h in drawn if "exact" in h.masks and h.tile.name in names]
    return set(list(dict.fromkeys([*exact[: MADE // 2], *names]))[:MADE])


def _look(dataset: Dataset, header: Header, mapped: bool, sample: Sample, rng: np.random.Generator) -> Look:
    with ExitStack() as stack:
        image = stack.enter_context(dataset.open_image(header.tile))
        whole = image.shape[0] * image.shape[1] <= WHOLE_PX
        edge = np.full(image.count, np.inf)
        look = Look(header, whole, edge, -edge)
        names = [name for name in ("exact", "noisy") if name in header.masks and (mapped or name == "exact")]
        readers = {name: _reader(name, dataset, header.tile, image, whole, stack) for name in names}
        beside: dict[str, OutsideError] = {}
        reached = set()
        for window in _windows(image.shape, whole, rng):
            pixels, valid = image.read(window), image.valid(window)
            _measure(look, image, window, pixels, valid)
            masks = {}
            for name in list(readers):
                try:
                    masks[name] = np.where(valid, readers[name](window), VOID)
                    reached.add(name)
                except OutsideError as error:  # a map need not reach all of an image; the rest is void
                    masks[name] = np.full(valid.shape, VOID, np.uint8)
                    beside.setdefault(name, error)
                except ValueError as error:  # of the file, or of a grid that the map cannot be laid on
                    sample.troubles.append(Trouble(name, header.tile.name, str(error)))
                    del readers[name]
            _count(look, dataset, masks)
            _keep_crops(sample, pixels, masks, rng)
        for name in [name for name in readers if name in beside and name not in reached]:
            sample.troubles.append(Trouble(name, header.tile.name, str(beside[name])))
            del look.counts[name]
    return look


def _keep_crops(sample: Sample, pixels: NDArray, masks: dict[str, NDArray[np.uint8]], rng: np.random.Generator) -> None:
    """Keep some squares of a window, so many that all images together give enough."""
    starts = [range(0, max(side - CROP_PX // 2, 1), CROP_PX) for side in pixels.shape[1:]]
    corners = rng.permutation(list(product(*starts)))[: -(-CROPS // sample.n_drawn)]
    for crop in (tuple(slice(start, start + CROP_PX) for start in corner) for corner in corners.tolist()):
        for name, mask in masks.items():
            if len(sample.crops[name]) < CROPS and (mask[crop] != VOID).any():
                sample.crops[name].append((pixels[(slice(None), *crop)].copy(), mask[crop].copy()))


def _windows(shape: tuple[int, int], whole: bool, rng: np.random.Generator) -> Iterator[Window]:
    if whole:
        yield slice(0, shape[0]), slice(0, shape[1])
        return
    for _ in range(WINDOWS):
        corner = [int(rng.integers(max(n - WINDOW_PX, 0) + 1)) for n in shape]
        yield tuple(slice(start, min(start + WINDOW_PX, n)) for start, n in zip(corner, shape, strict=True))


def _measure(look: Look, image: Raster, window: Window, pixels: NDArray, valid: NDArray[np.bool_]) -> None:
    """Add the values of a window, (B, h, w)."""
    look.n += valid.size
    look.n_valid += int(valid.sum())
    if pixels.dtype.kind == "f":
        look.n_unreal += int((image._has_data(window) & ~valid).sum())
    if valid.any():
        values = pixels[:, valid]
        look.low, look.high = np.minimum(look.low, values.min(axis=1)), np.maximum(look.high, values.max(axis=1))
        some = values[:, :: -(-values.shape[1] // LEVEL_PX)].astype(np.float64)
        look.level = max(look.level, float(np.percentile(abs(some), 99, axis=1).max()))


def _count(look: Look, dataset: Dataset, masks: dict[str, NDArray[np.uint8]]) -> None:
    """Add the classes of a window's masks."""
    for name, mask in masks.items():
        look.counts[name] = look.counts.get(name, 0) + np.bincount(mask.ravel(), minlength=256)
    if len(masks) == 2 and dataset.crosswalk is not None:
        exact = legend.translate(masks["exact"], dataset.crosswalk)
        found = audit.compare(masks["noisy"], exact, len(dataset.noisy_legend)).confusion
        look.confusion = found if look.confusion is None else look.confusion + found


def _reader(
    name: str, dataset: Dataset, tile: Tile, image: Raster, whole: bool, stack: ExitStack
) -> Callable[[Window], NDArray[np.uint8]]:
    """A function that reads a window of a mask; files it keeps open are closed with `stack`."""
    card = dataset.card
    path, spec, own = (
        (tile.exact, card.exact, dataset.exact_legend)
        if name == "exact"
        else (tile.noisy, card.noisy, dataset.noisy_legend)
    )
    if isinstance(spec, Masks):
        return partial(decode, stack.enter_context(open_mask(path, image)), spec, own)
    if whole:
        return lambda _: labelling.noisy_mask(dataset, tile)

    def made(window: Window) -> NDArray[np.uint8]:
        """A map that is made for whole images is made for one that has the window's grid."""
        with tempfile.TemporaryDirectory() as folder:
            blank = _write_blank(Path(folder) / "window.tif", image.grid(window))
            return labelling.noisy_mask(dataset, replace(tile, image=blank))

    return made


def _write_blank(path: Path, grid: GeoBox) -> Path:
    """Write an image without contents on a grid."""
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "sparse_ok": True, "height": grid.shape[0],
               "width": grid.shape[1], "crs": grid.crs.to_wkt(), "transform": grid.transform}  # fmt: skip
    with rasterio.open(path, "w", **profile):
        return path
