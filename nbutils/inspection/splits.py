"""Splits: ground or files that two of them share, and what is too little to train or to test on."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import shapely

from nbutils.cards import SPLITS
from nbutils.inspection.finding import Finding, named, percent
from nbutils.inspection.headers import Header
from nbutils.remote import sha256_of
from nbutils.sources import Dataset, Tile

FEW_SCENES = 5
SLIVER = 0.001  # of the smaller footprint; neighbours that were warped overlap by less
_HELD_OUT = {"validation", "test"}


def check(dataset: Dataset, headers: Sequence[Header], size_px: int | None) -> list[Finding]:
    """Look at the splits: shared ground, equal files, numbers of scenes, and room for patches of `size_px`."""
    findings = [*_shared_ground(headers), *_equal_files(dataset.tiles), *_few_scenes(dataset)]
    return findings + (list(_no_room(headers, size_px)) if size_px else [])


def overlaps(headers: Sequence[Header]) -> list[tuple[Tile, Tile, float]]:
    """Pairs of images of different scenes whose footprints overlap, and the share of the smaller that does."""
    placed = [header for header in headers if header.placed]
    if len(placed) < 2:
        return []
    if len({header.geobox.crs for header in placed}) > 1:
        shapes = [header.geobox.extent.to_crs("EPSG:4326", wrapdateline=True).geom for header in placed]
    else:
        shapes = [header.geobox.extent.geom for header in placed]
    found = []
    for i, j in zip(*shapely.STRtree(shapes).query(shapes, predicate="intersects"), strict=True):
        if i < j and placed[i].tile.scene != placed[j].tile.scene:
            share = shapes[i].intersection(shapes[j]).area / min(shapes[i].area, shapes[j].area)
            found += [(placed[i].tile, placed[j].tile, share)] if share > SLIVER else []
    return found


def _bearing(a: Tile, b: Tile) -> tuple[str, str]:
    """Severity of what two tiles of different scenes share, and what it means."""
    if a.splits != b.splits and _HELD_OUT & {*a.splits, *b.splits}:
        return "error", "held-out ground is trained on or chosen by, so scores are too good"
    if _HELD_OUT & {*a.splits}:
        return "warning", "held-out scenes are not independent, so intervals are too narrow"
    return "note", "training ground counts more than once"


def _by_bearing(pairs: Sequence[tuple[Tile, Tile]]) -> Iterator[tuple[str, str, list[tuple[Tile, Tile]]]]:
    grouped = defaultdict(list)
    for pair in pairs:
        grouped[_bearing(*pair)].append(pair)
    yield from ((*bearing, own) for bearing, own in grouped.items())


def _told(pairs: Sequence[tuple[Tile, Tile]]) -> str:
    return named(f"{a.name} of {'/'.join(a.splits)} and {b.name} of {'/'.join(b.splits)}" for a, b in pairs)


def _shared_ground(headers: Sequence[Header]) -> Iterator[Finding]:
    found = overlaps(headers)
    share = {(a, b): part for a, b, part in found}
    for severity, meaning, pairs in _by_bearing(list(share)):
        most = max(share[pair] for pair in pairs)
        words = f"{len(pairs)} pair(s) of images of different scenes overlap, by up to {percent(most)} {_told(pairs)}"
        remedy = "put images that share ground into one scene (images.scene), or into one split, or cut them apart"
        yield Finding(severity, "splits", f"{words}: {meaning}", remedy)


def _equal_files(tiles: Sequence[Tile]) -> Iterator[Finding]:
    within, across = [], []
    for equal in _equal([tile.image for tile in tiles]):
        own = [tile for tile in tiles if tile.image in equal]
        for pair in combinations(own, 2):
            (within if pair[0].scene == pair[1].scene else across).append(pair)
    for severity, meaning, pairs in _by_bearing(across):
        words = f"{len(pairs)} pair(s) of images of different scenes are the same file, byte for byte {_told(pairs)}"
        yield Finding(severity, "splits", f"{words}: {meaning}", "remove all copies but one")
    if within:
        words = f"{len(within)} pair(s) of images of one scene are the same file, byte for byte {_told(within)}"
        yield Finding("note", "splits", f"{words}: they count twice", "remove all copies but one")


def _equal(paths: Sequence[Path]) -> list[set[Path]]:
    """Groups of files with the same contents; only those of equal size are read."""
    for name in (lambda path: path.stat().st_size, sha256_of):
        groups = defaultdict(set)
        for path in paths:
            groups[name(path)].add(path)
        equal = [group for group in groups.values() if len(group) > 1]
        paths = [path for group in equal for path in sorted(group)]
    return equal


def _few_scenes(dataset: Dataset) -> Iterator[Finding]:
    scenes = dataset.scenes("test")
    if len(scenes) < FEW_SCENES:
        wide = "intervals over scenes are wide, and most comparisons will be undecided"
        means = "no interval over scenes can be told" if len(scenes) == 1 else wide
        words = f"the test split has {len(scenes)} scene(s) {named(scenes)}: {means}"
        yield Finding("warning", "splits", words, f"hold out {FEW_SCENES} scenes or more, smaller ones if need be")


def _no_room(headers: Sequence[Header], size_px: int) -> Iterator[Finding]:
    small = [header for header in headers if min(header.shape) < size_px]
    wholly = [s for s in SPLITS if all(h in small for h in headers if s in h.tile.splits)]
    for split in wholly:
        largest = max((min(h.shape) for h in headers if split in h.tile.splits), default=0)
        words = f"split {split} has no patch of {size_px} px: the shorter side of its images is at most {largest} px"
        yield Finding("error", "splits", words, "choose a smaller patch size, or images that are larger")
    if lost := [header.tile.name for header in small if not set(header.tile.splits) <= set(wholly)]:
        words = f"{len(lost)} image(s) are smaller than a patch of {size_px} px and give none {named(lost)}"
        yield Finding("note", "splits", words, "choose a smaller patch size, or leave them out of the card")
