"""Data sets cut into patches: images, noisy masks and exact masks side by side, split by scene.

A `PatchSet` is what every experiment reads. It is cut once per data set and setting, kept under ``data/cache/patches``
and named by the hash of its own contents, so that a run can state exactly what it learned from and a change of the
labelling rules can never pass unnoticed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nbutils import ROOT, cards, files, legend, shards, simulate, sources, windows
from nbutils.disk import code_digest, publish, scratch_folder, write_json
from nbutils.legend import Legend
from nbutils.shards import Shards, blocks, chosen, moments
from nbutils.workers import mapper

CACHE = ROOT / "data" / "cache" / "patches"
SPLITS = ("pretrain", "finetune", "validation", "test")
LARGE_PX = 1 << 26  # data sets with larger images are read in one process: each takes half a gigabyte to begin with


@dataclass(frozen=True)
class PatchSet:
    """Patches of one data set.

    Images and masks are arrays in memory, or `Shards` on disk; where a set is stored, the rows chosen from it stay on
    disk if they are many.

    Attributes:
        name: Name of the data set.
        fingerprint: SHA-256 over images, masks, scenes and splits.
        images: (N, B, h, w) in the source's integer or float type.
        masks: ``noisy`` and ``exact``, each (N, h, w) uint8 with 255 = void.
        scenes: (N,) scene name of each patch.
        member: For each split the (N,) bool of the patches in it.
        bands: Band names.
        scale: Divisor of the raw values.
        mean, std: Per band, after `scale`, over the pretraining patches.
        gsd_m: Ground sampling distance in metres or None.
        noisy_legend, exact_legend: Legends of the two masks.
        licence: Licence of the data.
        crosswalk: Noisy class of every exact class (None = void) where the card gives its own mapping, else None.
        places: (N,) number of the ground that a patch shows: patches of one number show it on different dates, with the
            same masks. None where every patch is a place of its own.
    """

    name: str
    fingerprint: str
    images: NDArray | Shards
    masks: dict[str, NDArray[np.uint8] | Shards]
    scenes: NDArray[np.str_]
    member: dict[str, NDArray[np.bool_]]
    bands: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gsd_m: float | None
    noisy_legend: Legend
    exact_legend: Legend
    licence: str
    crosswalk: dict[str, str | None] | None = None
    places: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def comparable(self) -> bool:
        """Whether the exact masks can be expressed in the noisy map's legend, so that one can judge the other."""
        names = (self.exact_legend.name, self.noisy_legend.name)
        return names[0] == names[1] or self.crosswalk is not None or names in legend.CROSSWALKS

    @property
    def patch_px(self) -> int:
        """Side length of a patch in pixels."""
        return self.images.shape[-1]

    def legend_of(self, target: str) -> Legend:
        """Return the legend of the ``noisy`` or the ``exact`` masks."""
        return {"noisy": self.noisy_legend, "exact": self.exact_legend}[target]

    def take(self, index: NDArray) -> "PatchSet":
        """Return the patches at `index` (integers or a bool mask); the fingerprint stays that of the whole set."""
        return replace(
            self,
            images=chosen(self.images, index),
            masks={name: chosen(mask, index) for name, mask in self.masks.items()},
            scenes=self.scenes[index],
            member={name: member[index] for name, member in self.member.items()},
            places=None if self.places is None else self.places[index],
        )

    def split(self, name: str) -> "PatchSet":
        """Return the patches of one split.

        Raises:
            ValueError: The split is unknown or has no patch.
        """
        if name not in self.member:
            raise ValueError(f"{self.name}: unknown split {name!r}; known: {', '.join(self.member)}")
        if not self.member[name].any():
            raise ValueError(f"{self.name}: split {name!r} has no patch; check the card's split and the patch size")
        return self.take(np.flatnonzero(self.member[name]))

    def budget(self, n: int, seed: int) -> "PatchSet":
        """Draw `n` patches, spread over the scenes; a smaller budget of the same seed is part of a larger one.

        Dates of one place count as patches of their own.

        Raises:
            ValueError: There are fewer than `n` patches.
        """
        if not 1 <= n <= len(self):
            raise ValueError(f"{self.name}: a budget of {n} patches was asked for, there are {len(self)}")
        return self.take(_spread(self.scenes, np.random.default_rng(seed))[:n])

    def one_of_each_place(self) -> "PatchSet":
        """Return the first patch of every place, for what is counted in masks: dates of a place share theirs."""
        if self.places is None:
            return self
        return self.take(np.sort(np.unique(self.places, return_index=True)[1]))

    def exact_as_noisy(self) -> NDArray[np.uint8] | Shards:
        """Return the exact masks in the noisy map's legend, (N, h, w) uint8.

        Raises:
            ValueError: No mapping between the two legends is known.
        """
        source, target = self.exact_legend, self.noisy_legend
        if not self.comparable:
            raise ValueError(f"no mapping from legend {source.name!r} to {target.name!r}; give the card a `crosswalk`")
        if source.name == target.name:
            return self.masks["exact"]
        table = self.crosswalk or legend.CROSSWALKS[source.name, target.name]
        return _translated(self.masks["exact"], legend.crosswalk(source, target, table))


def open_dataset(card_path: str | Path) -> sources.Dataset:
    """Read a data set card and list its files; an embedded world is generated first where it is missing.

    Raises:
        sources.CardError: The card is wrong; the message names every fault.
        sources.DataMissing: The files are not there; the message says how to get them.
    """
    card = sources.load_card(card_path)
    if card.world is not None:
        simulate.ensure_world(card)
    return sources.read_dataset(card_path)


def cut(dataset: sources.Dataset, *, size_px: int, max_patches: int, seed: int = 0, workers: int = 2) -> PatchSet:
    """Cut a data set into square patches on a regular grid, or read them back if that was done before.

    A window is kept where its exact mask says something, for pretraining also where only the noisy one does. Where a
    split has more than `max_patches`, that many are drawn, spread over its scenes.

    Where the card names D dates in all, a window for pretraining becomes D patches with the same masks, and `places`
    tells which belong together; ``max_patches // D`` windows are drawn, at least one. A date that has no data in a
    part of the window is void there, and left out where nothing remains. Windows are chosen by the main date alone, and
    fine-tuning, validation and test see no other.

    Memory is bounded whatever the size of the images: masks are looked through in strips, then only the windows that
    were drawn are read and written to disk one by one. Masks that need the whole scene (from LiDAR, a map, a recipe
    of noise) are made once per image.

    Args:
        dataset: From `open_dataset`.
        size_px: Side length in pixels.
        max_patches: Most patches kept per split.
        seed: Of the draw.
        workers: Processes that read and label files; one where images are larger than `LARGE_PX`.

    Returns:
        All patches of all splits, on disk.

    Raises:
        sources.SourceError: A file cannot be read or a mask is not on its image's grid; the message names it.
        ValueError: No window fits or none is labelled.
        RuntimeError: A script without a main guard asks for processes.
    """
    if size_px < 1 or max_patches < 1:
        raise ValueError(f"patches need size_px >= 1 and max_patches >= 1, got {size_px} and {max_patches}")
    recipe = {
        "files": sources.fingerprint(path for tile in dataset.tiles for path in tile.files),
        "card": dataset.card.model_dump(mode="json", exclude={"root", "title", "get", "tasks"}),
        "size_px": size_px,
        "max_patches": max_patches,
        "seed": seed,
        "code": code_digest(windows, *windows.MAKERS, _draw, _by_date, _spread, content_hash),
    }
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()  # the order of classes in a card may matter
    pointer = CACHE / f"{dataset.card.name}-{digest[:16]}.json"
    if pointer.exists() and (CACHE / (known := json.loads(pointer.read_text())["fingerprint"])).is_dir():
        return load(known)
    with scratch_folder(CACHE) as scratch:
        patches = _cut(dataset, size_px, max_patches, seed, workers, scratch)
        _publish(patches, scratch / "set")
    write_json(pointer, {"fingerprint": patches.fingerprint})
    return load(patches.fingerprint)


def with_noisy(patches: PatchSet, noisy: NDArray[np.uint8] | Shards, noisy_legend: Legend) -> PatchSet:
    """Return the same patches with another noisy map, stored under its own fingerprint.

    Args:
        patches: The whole set.
        noisy: (N, h, w) uint8, 255 = void.
        noisy_legend: Legend of `noisy`.
    """
    if noisy.shape != patches.masks["noisy"].shape or noisy.dtype != np.uint8:
        raise ValueError(f"noisy must be uint8 {patches.masks['noisy'].shape}, got {noisy.dtype} {noisy.shape}")
    crosswalk = patches.crosswalk if noisy_legend == patches.noisy_legend else None
    masks = {**patches.masks, "noisy": noisy}
    return named(replace(patches, masks=masks, noisy_legend=noisy_legend, crosswalk=crosswalk))


def in_legend(patches: PatchSet, wanted: Legend, mapping: Mapping[str, str | None] | None = None) -> PatchSet:
    """Return the same patches with exact masks of other classes, stored under its own fingerprint.

    Args:
        patches: The whole set.
        wanted: Legend of the exact masks wanted.
        mapping: Its class for every class of the exact legend (None = void); that of the study when left out.

    Raises:
        ValueError: The mapping is not known, or not complete.
    """
    lookup = legend.crosswalk(patches.exact_legend, wanted, mapping)
    masks = {**patches.masks, "exact": _translated(patches.masks["exact"], lookup)}
    return named(replace(patches, masks=masks, exact_legend=wanted, crosswalk=None))


def _translated(mask: NDArray[np.uint8] | Shards, lookup: NDArray[np.uint8]) -> NDArray[np.uint8] | Shards:
    translate = partial(legend.translate, lookup=lookup)
    return mask.changed(translate) if isinstance(mask, Shards) else translate(mask)


def reordered(patches: PatchSet, seed: int) -> PatchSet:
    """Return the same patches in another order, stored under its own fingerprint.

    A training from the same seed then starts from the same weights and meets the patches in another order: what two
    such networks differ by is chance alone.
    """
    return named(patches.take(np.random.default_rng(seed).permutation(len(patches))))


def named(patches: PatchSet) -> PatchSet:
    """Name patches anew by what they hold, and store them."""
    anew = replace(patches, fingerprint=content_hash(patches))
    store(anew)
    return anew


def store(patches: PatchSet) -> Path:
    """Write a patch set under its fingerprint, whole or not at all."""
    if (CACHE / patches.fingerprint).exists():
        return CACHE / patches.fingerprint
    with scratch_folder(CACHE) as scratch:
        for name, array in {"images": patches.images, **patches.masks}.items():
            shards.save(scratch, name, array)
        return _publish(patches, scratch)


def _publish(patches: PatchSet, scratch: Path) -> Path:
    """Describe the arrays in a scratch folder and move it to its place."""
    description = {
        "name": patches.name,
        "fingerprint": patches.fingerprint,
        "scenes": patches.scenes.tolist(),
        "member": {name: np.flatnonzero(member).tolist() for name, member in patches.member.items()},
        "bands": patches.bands,
        "scale": patches.scale,
        "mean": patches.mean,
        "std": patches.std,
        "gsd_m": patches.gsd_m,
        "noisy_legend": _named(patches.noisy_legend),
        "exact_legend": _named(patches.exact_legend),
        "licence": patches.licence,
        "crosswalk": patches.crosswalk,
        "places": None if patches.places is None else patches.places.tolist(),
    }
    write_json(scratch / "patches.json", description)
    publish(scratch, CACHE / patches.fingerprint)
    return CACHE / patches.fingerprint


def _named(own: Legend) -> str | dict:
    """A legend as a card has it: by name where it is shipped, else defined."""
    if legend.LEGENDS.get(own.name) == own:
        return own.name
    return {"name": own.name, "classes": list(zip(own.names, own.colours, strict=True)), "codes": own.codes}


def load(fingerprint: str) -> PatchSet:
    """Open a stored patch set; its arrays stay on disk.

    Raises:
        FileNotFoundError: No patch set with this fingerprint is stored here.
        ShardError: A file of it is missing or damaged.
    """
    folder = CACHE / fingerprint
    if not folder.is_dir():
        raise FileNotFoundError(f"no patches {fingerprint[:16]} under {CACHE}; cut the data set again")
    fields = json.loads((folder / "patches.json").read_text())
    n = len(fields["scenes"])
    arrays = {name: shards.open_array(folder, name, rows=n) for name in ("images", "noisy", "exact")}
    return PatchSet(
        name=fields["name"],
        fingerprint=fingerprint,
        images=arrays.pop("images"),
        masks=arrays,
        scenes=np.array(fields["scenes"]),
        member={name: np.isin(np.arange(n), index) for name, index in fields["member"].items()},
        bands=tuple(fields["bands"]),
        scale=fields["scale"],
        mean=tuple(fields["mean"]),
        std=tuple(fields["std"]),
        gsd_m=fields["gsd_m"],
        noisy_legend=cards.to_legend(fields["noisy_legend"]),
        exact_legend=cards.to_legend(fields["exact_legend"]),
        licence=fields["licence"],
        crosswalk=fields["crosswalk"],
        places=None if fields["places"] is None else np.array(fields["places"], dtype=np.int64),
    )


def _draw(
    dataset: sources.Dataset, surveys: list[windows.Survey], max_patches: int, seed: int
) -> tuple[NDArray[np.str_], dict[str, NDArray[np.bool_]]]:
    """Thin each split to `max_patches`: scene of every useful window, and for each split those that were drawn."""
    counts = [len(survey.numbers) for survey in surveys]
    scenes = np.repeat([tile.scene for tile in dataset.tiles], counts)
    exact_known = np.concatenate([survey.exact for survey in surveys])
    most = dict.fromkeys(SPLITS, max_patches)
    most["pretrain"] = max(max_patches // (1 + len(dataset.card.images.dates)), 1)
    member = {}
    for split in SPLITS:
        inside = np.repeat([split in tile.splits for tile in dataset.tiles], counts)
        if split != "pretrain":
            inside &= exact_known
        index = np.flatnonzero(inside)
        index = index[_spread(scenes[index], np.random.default_rng(seed))[: most[split]]]
        member[split] = np.isin(np.arange(len(scenes)), index)
    return scenes, member


def _by_date(
    shown: NDArray[np.bool_], scenes: NDArray[np.str_], member: dict[str, NDArray[np.bool_]]
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.str_], dict[str, NDArray[np.bool_]]]:
    """Make patches of the windows drawn, one for each date that is shown; further dates are for pretraining alone.

    Returns:
        (windows, D) which dates are wanted; place, scene and splits of each patch, window by window.
    """
    main, drawn = np.arange(shown.shape[1]) == 0, np.logical_or.reduce(list(member.values()))
    wanted = shown & np.where(main, drawn[:, None], member["pretrain"][:, None])
    window, date = np.nonzero(wanted)
    split = {name: inside[window] & (main[date] | (name == "pretrain")) for name, inside in member.items()}
    return wanted, np.unique(window, return_inverse=True)[1].astype(np.int64), scenes[window], split


def _cut(dataset: sources.Dataset, size_px: int, max_patches: int, seed: int, workers: int, scratch: Path) -> PatchSet:
    """Survey all tiles, draw, and write what was drawn to ``scratch/set``."""
    tiles, card, folder = dataset.tiles, dataset.card, scratch / "set"
    shapes = [files.image_shape(tile.image) for tile in tiles]
    if not any(min(shape) >= size_px for shape in shapes):
        (height, width), tile = max(zip(shapes, tiles, strict=True), key=lambda pair: min(pair[0]))
        hint = f"the largest, {tile.image}, has {height} x {width} pixels; choose a smaller patch size"
        raise ValueError(f"{card.name}: no window of {size_px} pixels fits into any image: {hint}")
    if len(tiles) == 1 or max(height * width for height, width in shapes) > LARGE_PX:
        workers = 1
    whole = [scratch / f"{i}.npy" for i in range(len(tiles))]
    with mapper(min(workers, len(tiles))) as each:
        surveys = list(each(partial(windows.survey, dataset, size_px), tiles, whole))
        shown = np.concatenate([survey.shown for survey in surveys])
        wanted, places, scenes, member = _by_date(shown, *_draw(dataset, surveys, max_patches, seed))
        if not member["pretrain"].any():
            raise ValueError(f"{card.name}: no window for pretraining has a label; check the card's split and masks")
        folder.mkdir()
        dtype, square = np.result_type(*(survey.dtype for survey in surveys)), (len(scenes), size_px, size_px)
        shape = {"images": (len(scenes), len(card.images.bands), size_px, size_px), "exact": square, "noisy": square}
        for name in shape:
            kind = dtype if name == "images" else np.uint8
            shards.create(folder, name, np.dtype(kind), shape[name])
        numbers = [survey.numbers for survey in surveys]
        mine = np.split(wanted, np.cumsum([len(own) for own in numbers])[:-1])
        first = np.cumsum([0, *(int(own.sum()) for own in mine)])[:-1].tolist()
        list(each(partial(windows.fill, dataset, size_px, folder), tiles, whole, numbers, mine, first))
    arrays = {name: shards.open_array(folder, name) for name in shape}
    mean, std = moments(arrays["images"], member["pretrain"], card.images.scale)
    patches = PatchSet(
        name=card.name,
        fingerprint="",
        images=arrays["images"],
        masks={"noisy": arrays["noisy"], "exact": arrays["exact"]},
        scenes=scenes,
        member=member,
        bands=tuple(card.images.bands),
        scale=float(card.images.scale),
        mean=mean,
        std=std,
        gsd_m=card.gsd_m,
        noisy_legend=dataset.noisy_legend,
        exact_legend=dataset.exact_legend,
        licence=card.licence,
        crosswalk=card.crosswalk,
        places=places if card.images.dates else None,
    )
    return replace(patches, fingerprint=content_hash(patches))


def _spread(scenes: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.intp]:
    """Order patches so that every prefix is spread evenly over the scenes: one of each scene in turn."""
    shuffled = rng.permutation(len(scenes))
    scene = pd.factorize(scenes)[0][shuffled]
    turn = pd.Series(scene).groupby(scene, sort=False).cumcount()  # of a patch among those of its scene
    return shuffled[np.argsort(turn.to_numpy(), kind="stable")]


def content_hash(patches: PatchSet) -> str:
    """Return the SHA-256 of everything a run may learn from or be judged by: pixels, masks and what they mean."""
    digest = hashlib.sha256()
    for array in (patches.images, patches.masks["noisy"], patches.masks["exact"]):
        digest.update(f"{array.dtype}{array.shape}".encode())
        for _, block in blocks(array):
            digest.update(np.ascontiguousarray(block).data)
    between = (patches.exact_legend.name, patches.noisy_legend.name)
    meaning = {
        "scenes": patches.scenes.tolist(),
        "legends": [_named(patches.noisy_legend), _named(patches.exact_legend)],
        "crosswalk": sorted((patches.crosswalk or legend.CROSSWALKS.get(between, {})).items()),
        "bands": patches.bands,
        "scale": patches.scale,
        "gsd_m": patches.gsd_m,
    }
    digest.update(json.dumps(meaning).encode())
    for split in SPLITS:
        digest.update(np.packbits(patches.member[split]).tobytes())
    if patches.places is not None:
        digest.update(patches.places.astype("<i8").tobytes())
    return digest.hexdigest()
