"""Sources: a data set is a card whose files are found, paired and split.

This is the door to data for the rooms above; the cards themselves are in `nbutils.cards`, the reading and writing
of single files in `nbutils.files`, and both are also reached from here.
"""

import fnmatch
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pystac
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pystac.stac_io import StacIO

from nbutils import guarded, remote
from nbutils import legend as legends
from nbutils.cards import SPLITS, Card, CardError, DataMissing, Files, Inject, Lidar, Masks, few, load_card, locate
from nbutils.files import (
    AnyWindow,
    Raster,
    SourceError,
    check_grid,
    decode,
    fingerprint,
    image_shape,
    open_file,
    read_image,
    read_mask,
    read_valid,
    spans,
    write_mask,
)
from nbutils.legend import VOID, Legend
from nbutils.lidar.points import Points, read_points

__all__ = [
    "SPLITS",
    "Card",
    "CardError",
    "DataMissing",
    "Dataset",
    "Inject",
    "Lidar",
    "Masks",
    "Points",
    "Raster",
    "SourceError",
    "Tile",
    "fingerprint",
    "image_shape",
    "list_tiles",
    "load_card",
    "on_grid",
    "open_mask",
    "open_raster",
    "read_dataset",
    "read_exact",
    "read_image",
    "read_mask",
    "read_points",
    "read_valid",
    "trainable",
    "write_mask",
]


@dataclass(frozen=True)
class Tile:
    """One image with its masks: unique `name` ("<scene>/<file stem>"), `scene`, its splits, its files.

    `dates` are images of the same ground on further dates, for pretraining only.
    """

    name: str
    scene: str
    splits: tuple[str, ...]
    image: Path
    exact: Path | None
    noisy: Path | None
    dates: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the tile."""
        return tuple(path for path in (self.image, self.exact, self.noisy, *self.dates) if path is not None)


@dataclass(frozen=True)
class Dataset:
    """A card whose files are found, paired and split."""

    card: Card
    path: Path
    tiles: tuple[Tile, ...]

    def tiles_of(self, split: str) -> tuple[Tile, ...]:
        """Return the tiles of a split ("pretrain", "finetune", "validation", "test")."""
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        return tuple(tile for tile in self.tiles if split in tile.splits)

    def scenes(self, split: str) -> tuple[str, ...]:
        """Return the scene names of a split, in order, each once."""
        return tuple(dict.fromkeys(tile.scene for tile in self.tiles_of(split)))

    @property
    def bands(self) -> tuple[str, ...]:
        """Band names in file order."""
        return self.card.images.bands

    @cached_property
    def exact_legend(self) -> Legend:
        """Legend of the exact masks."""
        return self.card.exact_legend

    @cached_property
    def noisy_legend(self) -> Legend:
        """Legend of the noisy masks; that of the exact ones when the noise is injected."""
        return self.card.noisy_legend

    @cached_property
    def crosswalk(self) -> NDArray[np.uint8] | None:
        """Lookup table from the exact to the noisy legend, by the card or as shipped; None if there is none."""
        source, target = self.exact_legend, self.noisy_legend
        known = source == target or self.card.crosswalk or (source.name, target.name) in legends.CROSSWALKS
        return legends.crosswalk(source, target, self.card.crosswalk) if known else None

    def read_image(self, tile: Tile, window: AnyWindow | None = None) -> tuple[NDArray, GeoBox | None]:
        """Read a tile's image, or a window of it, checked against the card's bands: (B, H, W) and its grid.

        Unsigned 16-bit values come as int32, because PyTorch has next to no arithmetic on the former.
        """
        with self.open_image(tile) as image:
            return trainable(image.read(window)), image.grid(window)

    def open_image(self, tile: Tile, date: int = 0) -> Raster:
        """Open a tile's image, or its further `date` (from 1), checked against the card's bands."""
        image = open_file(path := (tile.image, *tile.dates)[date])
        if (count := image.count) != len(self.bands):
            image.close()
            raise SourceError(f"{path}: has {count} bands, the card names {len(self.bands)}: {self.bands}")
        return image


def trainable(image: NDArray) -> NDArray:
    """Return unsigned 16-bit values as int32, other values as they are."""
    return image.astype(np.int32) if image.dtype == np.uint16 else image


def read_exact(dataset: Dataset, tile: Tile, window: AnyWindow | None = None) -> NDArray[np.uint8]:
    """Read a tile's exact mask: (H, W) uint8 of the image's size, all void where the tile has none."""
    with open_file(tile.image) as image:
        if tile.exact is None:
            return np.full([s.stop - s.start for s in spans(window, image.shape)], VOID, dtype=np.uint8)
        with open_mask(tile.exact, image) as mask:
            return decode(mask, dataset.card.exact, dataset.exact_legend, window)


def open_mask(path: Path, image: Raster) -> Raster:
    """Open a mask; SourceError unless it lies on its image's grid."""
    return on_grid(open_file(path), image)


def on_grid(raster: Raster, image: Raster) -> Raster:
    """Return an open raster; where it does not lie on the image's grid, close it and raise `SourceError`."""
    try:
        check_grid(raster, image)
    except SourceError:
        raster.close()
        raise
    return raster


def open_raster(where: str | Path | pystac.Asset | pystac.Item, asset: str = "") -> Raster:
    """Open a raster lazily: nothing but its header is read until a window is asked for.

    Args:
        where: Path, http(s) address of a cloud-optimised GeoTIFF, or an asset or item of a STAC catalogue.
        asset: Name of the item's asset.

    Returns:
        An open `files.Raster`; use it in a `with` block.

    Raises:
        SourceError: Missing or damaged file, address that does not answer, item without the asset.
    """
    where = remote.href_of(where, asset)
    if not remote.is_remote(where):
        return open_file(where)
    renew = partial(remote.located, where, renew=True) if remote.needs_signature(where) else None
    return Raster(remote.located(where), remote.gdal_options(), renew)


_Key = tuple[str | None, str]


def _names(pattern: str, paths: Sequence[Path], what: str) -> list[str]:
    """What a card's regular expression finds in paths; CardError where it finds nothing or takes too long."""
    texts = [path.as_posix() for path in paths]
    try:
        found = guarded.search_all(pattern, texts)
    except ValueError as error:
        raise CardError(f"{what}: {error}") from None
    for text, name in zip(texts, found, strict=True):
        if name is None:
            raise CardError(f"{what}: {pattern!r} finds no name in {text!r}")
    return found


def _globbed(card: Card, files: Files, part: str) -> dict[_Key, tuple[str, Path]]:
    """Files of a glob: {(scene or None, key): (scene, path)}; a key that comes twice is an error."""
    found: dict[_Key, tuple[str, Path]] = {}
    try:
        if ".." in Path(files.glob).parts:
            raise ValueError("'..' leads out of root, the folder that holds all files")
        paths = sorted(p for p in card.folder.glob(files.glob) if p.is_file())
    except (ValueError, NotImplementedError, IndexError, OSError) as error:
        got = guarded.shortened(repr(files.glob), 200)
        raise CardError(f"{part}.glob: got {got}; {guarded.shortened(str(error))}; give a pattern below root") from None
    inside = [path.relative_to(card.folder) for path in paths]
    scenes = _names(card.images.scene, inside, "images.scene") if card.images.scene else [None] * len(paths)
    keys = _names(files.key, inside, f"{part}.key") if files.key else [path.stem for path in paths]
    for path, *key in zip(paths, scenes, keys, strict=True):
        if (key := tuple(key)) in found:
            raise CardError(f"{part}: {found[key][1]} and {path} have the same scene and key {key[1]!r}; set `key`")
        found[key] = (key[0] or path.stem, path)
    if not found:
        raise DataMissing(f"no file matches {part}.glob {files.glob!r} in {card.folder}\n{card.about}")
    return found


class _Disk(StacIO):
    """Reads a catalogue from disk and from nowhere else; whatever is wrong with a file is told with its name."""

    def read_text(self, source: Any, *_: Any, **__: Any) -> str:
        return Path(str(source).removeprefix("file://")).read_text(encoding="utf-8")

    def write_text(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("this reader of catalogues does not write them")

    def read_stac_object(self, source: Any, *args: Any, **more: Any) -> pystac.STACObject:
        try:
            return super().read_stac_object(source, *args, **more)
        except Exception as error:
            told = guarded.shortened(f"{type(error).__name__}: {error}")
            raise SourceError(f"{source}: cannot be read as part of a STAC catalogue: {told}; write it again") from None


def _items(path: Path) -> list[pystac.Item]:
    """Items of a static STAC catalogue, by name."""
    try:
        found = pystac.Catalog.from_file(str(path), stac_io=_Disk()).get_items(recursive=True)
        return sorted(found, key=lambda item: item.id)
    except SourceError:
        raise
    except Exception as error:  # links in circles, names that are no text, ...
        told = guarded.shortened(f"{type(error).__name__}: {error}")
        raise SourceError(f"{path}: is no sound STAC catalogue: {told}; write it again") from None


def _catalogued(card: Card, files: Files, part: str) -> dict[_Key, tuple[str, Path]]:
    """Files of an asset of a static STAC catalogue; the item id is the scene name."""
    found: dict[_Key, tuple[str, Path]] = {}
    for item in _items(card.folder / card.catalog):
        if files.asset not in item.assets:
            if part == "images":
                has = f"only {few(item.assets)}; name one of them" if item.assets else "nor any other; write it again"
                raise CardError(f"{part}.asset: item {item.id!r} has no {files.asset!r}, {has}")
            continue
        href = item.assets[files.asset].get_absolute_href() or item.assets[files.asset].href
        path = Path(href.removeprefix("file://"))
        if not os.path.isfile(path):
            raise DataMissing(f"{path} of item {item.id!r} is missing\n{card.about}")
        found[(item.id, item.id)] = (item.id, path)
    if not found:
        raise DataMissing(f"no item in {card.folder / card.catalog} has the asset {files.asset!r}\n{card.about}")
    return found


def _noisy_files(card: Card, images: dict, find: Callable) -> dict[_Key, tuple[str, Path]]:
    """Files of the noisy source, none when it is injected, the same for all images when the card names one `file`."""
    if isinstance(card.noisy, Inject):
        return {}
    if not (file := getattr(card.noisy, "file", None)):
        return find(card, card.noisy, "noisy")
    if not (path := card.folder / os.path.expanduser(file)).is_file():
        raise DataMissing(f"noisy.file {path} is missing\n{card.about}")
    return {key: (scene, path) for key, (scene, _) in images.items()}


def _split_scenes(card: Card, scenes: Sequence[str]) -> dict[str, set[str]]:
    """Scenes of every split; held-out scenes are in one split only, and every pattern finds something."""
    chosen: dict[str, set[str]] = {}
    for split in SPLITS:
        patterns = getattr(card.split, split)
        if patterns is None:
            continue
        chosen[split] = set()
        for pattern in patterns:
            if not (hits := fnmatch.filter(scenes, pattern)):
                told = guarded.shortened(repr(pattern), 200)
                raise CardError(f"split.{split}: {told} matches no scene; there are {few(scenes, 12)}")
            chosen[split].update(hits)
    for held, other in (("test", "validation"), *((h, s) for h in ("test", "validation") for s in SPLITS[:2])):
        if both := chosen[held] & chosen.get(other, set()):
            raise CardError(
                f"split.{held} and split.{other} share scene(s) {few(sorted(both))}; a scene is held out once"
            )
    rest = set(scenes) - chosen["test"] - chosen["validation"]
    for split in SPLITS[:2]:
        chosen.setdefault(split, rest)
        if not chosen[split]:
            raise CardError(f"split.{split}: no scene is left; there are {few(scenes, 12)}")
    return chosen


def _named_like(card: Card, images: dict, masks: dict, files: object) -> dict:
    """Give masks the keys of their images where names have nothing in common but every scene has one file of each.

    Where the card asks for a `key` it stays as it is.
    """
    if card.images.key or getattr(files, "key", None):
        return masks
    of_scene, scenes = {key[0]: key for key in images}, [key[0] for key in masks]
    alone = len(of_scene) == len(images) and len(set(scenes)) == len(scenes)
    if None in of_scene or not alone or masks.keys() & images.keys() or not set(scenes) <= set(of_scene):
        return masks
    return {of_scene[key[0]]: found for key, found in masks.items()}


def _check_pairs(card: Card, part: str, images: dict, masks: dict, needed: Iterable[_Key]) -> None:
    """Every mask has an image, and every image that needs a mask has one."""
    if extra := [str(path) for key, (_, path) in masks.items() if key not in images]:
        told = f"{len(extra)} file(s) have no image of the same scene and key"
        raise CardError(f"{part}: {told}: {few(extra)}; set `key` on images and {part}")
    if lonely := [str(images[key][1]) for key in needed if key not in masks]:
        where = "split.finetune" if part == "exact" else "split.pretrain"
        parts = f"images and {part}" if part in ("exact", "noisy") else "images"
        raise CardError(
            f"{part}: {len(lonely)} image(s) have no file: {few(lonely)}\n"
            f"  add the files, set `key` on {parts}, or name the scenes that have them in {where}"
        )


def _further_dates(card: Card, images: dict, needed: Sequence[_Key], find: Callable) -> dict[_Key, tuple[Path, ...]]:
    """Images of the further dates of those tiles that need them; each is paired like a mask and there for all."""
    found = []
    for name in card.images.dates:
        files = card.images.model_copy(update={"asset" if card.catalog else "glob": name})
        found.append(_named_like(card, images, find(card, files, part := f"images.dates {name!r}"), files))
        _check_pairs(card, part, images, found[-1], needed)
    return {key: tuple(date[key][1] for date in found) for key in needed}


def list_tiles(card: Card) -> tuple[Tile, ...]:
    """Find, pair and split the files of a card.

    Raises:
        DataMissing: the root, the catalogue or the files are not there.
        CardError: files without a partner, splits that overlap, match nothing or hold the same image,
            names that are not unique.
    """
    if not os.path.isdir(card.folder) or (card.catalog and not os.path.isfile(card.folder / card.catalog)):
        missing = card.folder / card.catalog if card.catalog and card.folder.is_dir() else card.folder
        raise DataMissing(f"the data are not here: {missing} is missing\n{card.about}")
    find = _catalogued if card.catalog else _globbed
    images = find(card, card.images, "images")
    exact = _named_like(card, images, find(card, card.exact, "exact"), card.exact)
    noisy = _named_like(card, images, _noisy_files(card, images, find), card.noisy)
    splits = _split_scenes(card, sorted({scene for scene, _ in images.values()}))
    within = {key: tuple(s for s in SPLITS if scene in splits[s]) for key, (scene, _) in images.items()}
    inject = isinstance(card.noisy, Inject)
    _check_pairs(card, "exact", images, exact, [k for k, s in within.items() if inject or set(s) - {"pretrain"}])
    _check_pairs(card, "noisy", images, noisy, [k for k, s in within.items() if not inject and "pretrain" in s])
    dates = _further_dates(card, images, [k for k, s in within.items() if "pretrain" in s], find)
    tiles = []
    for key, (scene, path) in images.items():
        masks = (exact.get(key, (None, None))[1], noisy.get(key, (None, None))[1])
        tiles.append(Tile(f"{scene}/{path.stem}", scene, within[key], path, *masks, dates.get(key, ())))
    if twice := [name for name, count in Counter(t.name for t in tiles).items() if count > 1]:
        raise CardError(f"images: {few(twice)} name several files; let images.scene tell them apart")
    _check_leaks(tiles)
    return tuple(tiles)


def _check_leaks(tiles: Sequence[Tile]) -> None:
    """CardError where one image, by its content, lies in a held-out split and in another: scores would be too good.

    Only files of one size are opened, and only those that begin alike are read to their end.
    """
    held, alike = {"test", "validation"}, [[(t, path) for t in tiles if t.splits for path in (t.image, *t.dates)]]
    for mark in (lambda path: path.stat().st_size, _beginning, remote.sha256_of):
        groups: dict[tuple, list[tuple[Tile, Path]]] = {}
        for number, group in enumerate(alike):
            for tile, path in group:
                groups.setdefault((number, mark(path)), []).append((tile, path))
        splits = {key: {tile.splits for tile, _ in group} for key, group in groups.items()}
        alike = [groups[key] for key, found in splits.items() if len(found) > 1 and held.intersection(sum(found, ()))]
    for group in alike:
        one = next((tile, path) for tile, path in group if held.intersection(tile.splits))
        other = next((tile, path) for tile, path in group if tile.splits != one[0].splits)
        if np.ptp(read_image(one[1])[0]):  # what is the same everywhere, as a tile of holes, gives nothing away
            told = " and ".join(f"{path} ({', '.join(tile.splits)})" for tile, path in (one, other))
            raise CardError(f"split: {told} are the same image; put them in one split, or leave one out")


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(1 << 16)


def read_dataset(card_path: str | Path) -> Dataset:
    """Read a card and find its files; nothing is generated (`patches.open_dataset` does that)."""
    card = load_card(card_path)
    try:
        return Dataset(card, locate(card_path), list_tiles(card))
    except CardError as error:
        raise CardError(f"{locate(card_path)}: {guarded.shortened(str(error), 2000)}") from None
