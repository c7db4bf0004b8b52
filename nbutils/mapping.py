"""Maps of large images: what a network says of an image larger than memory.

An image is gone through in squares of one size. Of each only the core is kept; the margin around it is context, which
the neighbours keep. Squares start at multiples of `STRIDE_PX`, so that a pixel falls on the same cell of every stage's
grid whichever square it lies in: a network that sees no farther than the margin says of a pixel the same in all of
them. Only the decoders U-Net and linear see no farther than that. The others pool over the whole square, normalise over
it, or stretch a coarse grid to its corners: their maps depend on the size of the squares. Beyond its edges the image is
mirrored.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pystac
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from nbutils import legend as legends
from nbutils import networks, patches, remote, weights
from nbutils.batches import normalise
from nbutils.cards import Card, to_legend
from nbutils.evaluation import PRECISIONS
from nbutils.execution import watched
from nbutils.files import Raster
from nbutils.legend import VOID, Legend
from nbutils.sheets import Sheet, workshop
from nbutils.sources import trainable
from nbutils.store import Run, StoreError, described
from nbutils.weights import WeightsError

STRIDE_PX = 32  # side of a cell of an encoder's last stage, in pixels of the image
BYTE_SCALE = 255.0  # 8-bit values stand for 0..1 unless told otherwise
Window = tuple[slice, slice]


class MappingError(ValueError):
    """An image, a network or the place of a map is not as it must be; the message says what to do."""


@dataclass(frozen=True)
class Squares:
    """The squares a network is shown, one after the other.

    Attributes:
        size_px: Side of a square.
        margin_px: Width of the rim of a square that is context alone; neighbours share twice as much.

    Raises:
        MappingError: Not multiples of `STRIDE_PX`, or nothing is left between the margins.
    """

    size_px: int = 512
    margin_px: int = 64

    def __post_init__(self) -> None:
        if self.size_px % STRIDE_PX or self.margin_px % STRIDE_PX or not 0 <= 2 * self.margin_px < self.size_px:
            raise MappingError(
                f"squares of {self.size_px} px with a margin of {self.margin_px} px: both are multiples of {STRIDE_PX} "
                "and twice the margin is less than the side"
            )

    @property
    def core_px(self) -> int:
        """Side of what is kept of a square."""
        return self.size_px - 2 * self.margin_px

    def cores(self, shape: tuple[int, int]) -> list[Window]:
        """Rows and columns of each core of an image (H, W), row by row; the last ones end with the image."""
        starts = (range(0, length, self.core_px) for length in shape)
        ends = [[slice(at, min(at + self.core_px, n)) for at in each] for each, n in zip(starts, shape, strict=True)]
        return list(itertools.product(*ends))


@dataclass(frozen=True)
class Model:
    """A network of the study and what is needed to use it.

    Attributes:
        network: Maps (N, B, H, W) normalised images to (N, K, H, W) logits.
        card: Its weight card.
        legend: The K classes.
        precision: ``fp32`` or ``bf16``, as it was trained.
    """

    network: nn.Module
    card: weights.WeightCard
    legend: Legend
    precision: str


class Described(NamedTuple):
    """What `weights.check_images` asks of images."""

    bands: tuple[str, ...]
    scale: float
    gsd_m: float | None


def load_model(folder: Path, dataset: Card | None = None) -> Model:
    """Rebuild the network of a stored run from its folder alone.

    Args:
        folder: A run's folder: ``run.json``, ``weights.safetensors`` and ``card.json``.
        dataset: Card of the data set, where the run predicts classes of one's own and its patches are not here.

    Raises:
        WeightsError: The weights cannot be read.
        StoreError: ``run.json`` cannot be read or is of another run.
        MappingError: The run predicts no classes, or they are not known.
    """
    folder = Path(folder)
    state, card = weights.load(folder)
    run = _read_run(folder / "run.json")
    if run.key != card.run:
        raise StoreError(
            f"{folder}: run.json is of run {run.key}, card.json of {card.run}; copy the whole folder again"
        )
    if not run.target:
        raise MappingError(f"{folder}: {run} is an encoder alone and maps nothing; choose a run that was fine-tuned")
    network = networks.build(
        run.encoder, run.decoder, in_channels=len(card.bands), n_classes=run.classes, seed=run.seed, width=run.width
    )
    network.load_state_dict(state)
    return Model(network.eval(), card, _legend_of(run, card.legend, dataset), run.precision)


def _read_run(path: Path) -> Run:
    try:
        return described(json.loads(path.read_text())["run"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} cannot be read ({error}); give the folder of a whole run") from error


def _legend_of(run: Run, name: str | None, dataset: Card | None) -> Legend:
    """Find the legend a run predicts: in the data set's card, in the patches it learned from, or as shipped."""
    known = []
    if dataset is not None:
        own = (to_legend(task.legend) for task in dataset.tasks.values() if task.legend is not None)
        known += [dataset.exact_legend, dataset.noisy_legend, *own]
    if (patches.CACHE / run.fingerprint).is_dir():
        known.append(patches.load(run.fingerprint).legend_of(run.target))
    known += legends.LEGENDS.values()
    for legend in known:
        if (legend.name, len(legend)) == (name, run.classes):
            return legend
    raise MappingError(
        f"run {run.key} predicts the {run.classes} classes of legend {name!r}, which is not shipped and whose patches "
        "are not here; give the card of the data set that defines it"
    )


class Place(NamedTuple):
    """Where the map of an image is written, and how sure the network is of it."""

    classes: Path
    confidence: Path


def places(images: Sequence[str | Path | pystac.Item], folder: Path) -> list[Place]:
    """Give each image its files ``<folder>/<name>_classes.tif`` and ``_confidence.tif``; an item's name is its id.

    Raises:
        MappingError: Two images have the same name, or a file is itself one of the images.
    """
    names = [_name(image) for image in images]
    found = [Place(folder / f"{name}_classes.tif", folder / f"{name}_confidence.tif") for name in names]
    known: dict[str, Any] = {}
    for image, name in zip(images, names, strict=True):
        if (key := name.casefold()) in known:  # some file systems see no case
            raise MappingError(f"{known[key]} and {image} would both become {name}_classes.tif; use two folders")
        known[key] = image
    read = {Path(image).resolve() for image in images if isinstance(image, str | Path)}
    if both := read.intersection(path.resolve() for place in found for path in place):
        raise MappingError(f"{min(both)} is an image to be mapped and the map of another; choose another folder")
    return found


def _name(image: str | Path | pystac.Item) -> str:
    if isinstance(image, pystac.Item):
        return image.id.replace("/", "_")
    return PurePosixPath(remote.plain(image)).stem if remote.is_remote(image) else Path(image).stem


def check_free(place: Place, *, overwrite: bool) -> None:
    """Refuse to write where a map is already.

    Raises:
        FileExistsError: One of the files is there, and not to be overwritten.
    """
    if not overwrite and (there := [path for path in place if path.exists()]):
        raise FileExistsError(f"{there[0]} is there; leave its image out, use another folder, or ask to overwrite")


def reader(
    model: Model, image: Raster, *, bands: Sequence[str] | None = None, scale: float | None = None
) -> Callable[[Window], NDArray]:
    """Compare an open image with what a network was trained on and return how its bands are read, in their order.

    Args:
        model: The network.
        image: The image; its file may hold more bands, in any order.
        bands: Name of each of its bands, an alpha band left out; as the file names them when left out.
        scale: Divisor of the raw values; 255 for 8-bit images when left out, others do not tell.

    Returns:
        Function of a window that gives (B, h, w) raw values, 0 where there are no data.

    Raises:
        MappingError: The names or the scale are missing or cannot be.
        WeightsError: The image does not fit, see `weights.check_images`.
    """
    wanted, named = model.card.bands, image.bands if bands is None else tuple(bands)
    if bands is not None and (len(named) != image.count or len(set(named)) != len(named)):
        told = f"{len(named)} names were given for its bands, {', '.join(named)}"
        raise MappingError(
            f"{image.path}: has {image.count} bands, {told}; name each of them once, in the file's order"
        )
    if scale is None and image.dtype != np.uint8:
        why = f"values of type {image.dtype} do not tell what stands for 1"
        raise MappingError(f"{image.path}: {why}; give the scale ({model.card.scale:g} in training)")
    fits = set(wanted) <= set(named)
    here = Described(wanted if fits else named, BYTE_SCALE if scale is None else scale, _gsd_m(image))
    try:
        weights.check_images(model.card, here)
    except WeightsError as error:
        remedy = "" if fits else "; if they are only named otherwise, name the bands in the file's order"
        raise WeightsError(f"{image.path}: {error}{remedy}") from None
    if bands is None:
        return lambda window: trainable(image.read(window, wanted))
    index = [named.index(band) for band in wanted]
    return lambda window: trainable(image.read(window)[index])


def _gsd_m(image: Raster) -> float | None:
    """Side of a pixel in metres; None without a grid, and in degrees, whose metres depend on the place."""
    if image.geobox is None or image.geobox.crs is None or not image.geobox.crs.projected:
        return None
    unit_m = image.geobox.crs.proj.axis_info[0].unit_conversion_factor
    return float(np.sqrt(abs(image.geobox.transform.determinant))) * unit_m


def classified(
    model: Model, image: Raster, read: Callable[[Window], NDArray], squares: Squares
) -> Iterator[tuple[Window, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Go through an image, square by square.

    Args:
        model: The network; it is moved to the device that Lightning Fabric finds.
        image: The open image.
        read: From `reader`.
        squares: Their size.

    Yields:
        Each core: its rows and columns, the most probable classes (h, w), and their probability in per cent, 0..100;
        255 in both where the image has no data. A core without any data is not shown to the network.

    Raises:
        SourceError: A part of the image cannot be read.
        MappingError: The network gives no finite numbers.
    """
    fabric = Fabric(accelerator="auto", devices=1, precision=PRECISIONS[model.precision])
    network = model.network.to(fabric.device, memory_format=torch.channels_last).eval()
    for core in squares.cores(image.shape):
        valid = image.valid(core)
        classes, percent = (np.full(valid.shape, VOID, np.uint8) for _ in range(2))
        if valid.any():
            said, best = _most_probable(network, fabric, model.card, _square(image, read, core, squares))
            inside = tuple(slice(squares.margin_px, squares.margin_px + length) for length in valid.shape)
            said, best = said[inside][valid], best[inside][valid]
            if not np.isfinite(best).all():
                rows, columns = (f"{part.start} to {part.stop}" for part in core)
                told = f"the network gives no finite numbers in rows {rows}, columns {columns}"
                raise MappingError(f"{image.path}: {told}; declare values that mean no data as nodata")
            classes[valid], percent[valid] = said, np.rint(best * 100)
        yield core, classes, percent


def _square(image: Raster, read: Callable[[Window], NDArray], core: Window, squares: Squares) -> NDArray:
    """Read the square around a core (B, size, size); what lies beyond the image is mirrored at its edges."""
    rows, columns = (
        _mirrored(np.arange(squares.size_px) + part.start - squares.margin_px, length)
        for part, length in zip(core, image.shape, strict=True)
    )
    pixels = read((slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)))
    return pixels[:, (rows - rows.min())[:, None], columns - columns.min()]


def _mirrored(at: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Positions on an axis of `length` pixels, mirrored again and again at the middle of the first and last pixel."""
    period = max(2 * (length - 1), 1)
    at = np.abs(at) % period
    return np.minimum(at, period - at)


@torch.inference_mode()
def _most_probable(
    network: nn.Module, fabric: Fabric, card: weights.WeightCard, pixels: NDArray
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Most probable class of every pixel of a square and its probability, as `evaluation.predict` has them."""
    with fabric.autocast():
        logits = network(normalise(torch.as_tensor(pixels[None], device=fabric.device), card))
    best, classes = logits[0].float().softmax(dim=0).max(dim=0)
    return classes.to("cpu", torch.uint8).numpy(), best.cpu().numpy()


def map_image(
    model: Model,
    image: Raster,
    place: Place,
    *,
    bands: Sequence[str] | None = None,
    scale: float | None = None,
    squares: Squares = Squares(),  # noqa: B008 frozen
    confidence: bool = False,
    overwrite: bool = False,
) -> NDArray[np.int64]:
    """Map an image of any size to cloud-optimised GeoTIFFs on its grid, each whole or absent; void is 255.

    Memory is bounded by the squares. Beside the map there is room needed for a scratch file of its size.

    Args:
        model: The network.
        image: The open image.
        place: Where to write; its folder is made.
        bands: See `reader`.
        scale: See `reader`.
        squares: Size and margin.
        confidence: Whether the probability of the classes is written too, in per cent.
        overwrite: Whether files that are there are replaced; a confidence that is not asked for is removed then.

    Returns:
        (256,) pixels of each class id, void among them.

    Raises:
        FileExistsError: See `check_free`.
        SourceError: A part of the image cannot be read.
        MappingError, WeightsError: See `reader` and `classified`.
        OSError: The map cannot be written, or does not read back as it was written.
    """
    check_free(place, overwrite=overwrite)
    read = reader(model, image, bands=bands, scale=scale)
    where = {"shape": image.shape, "geobox": image.geobox, "block_px": squares.core_px}
    tags = {"image": Path(image.path).name, "run": model.card.run}
    with ExitStack() as stack:
        scratch = stack.enter_context(workshop(place.classes.parent))
        sheets = [Sheet(place.classes, scratch, overviews="mode", tags=tags, legend=model.legend, **where)]
        if confidence:
            told = {"unit": "per cent, of the most probable class"}
            sheets.append(Sheet(place.confidence, scratch, overviews="average", tags=tags | told, **where))
        for sheet in sheets:
            stack.enter_context(sheet)
        parts, total = classified(model, image, read, squares), len(squares.cores(image.shape))
        for core, *values in tqdm(parts, place.classes.name, total, unit="square", disable=not watched()):
            for sheet, part in zip(sheets, values, strict=False):  # a confidence not asked for has none
                sheet.write(core, part)
        for sheet in sheets:
            sheet.finish()
        check_free(place, overwrite=overwrite)  # of what came meanwhile
        stale = place.classes if confidence else place.confidence
        stale.unlink(missing_ok=True)  # no map is ever beside the confidence of another
        for sheet in reversed(sheets):
            sheet.publish()
    return sheets[0].counts
