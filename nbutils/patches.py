"""Data sets cut into patches: images, noisy masks and exact masks side by side, split by scene.

A `PatchSet` is what every experiment reads. It is cut once per data set and setting, kept under ``data/cache/patches``
and named by the hash of its own contents, so that a run can state exactly what it learned from and a change of the
labelling rules can never pass unnoticed.
"""

import ast
import hashlib
import inspect
import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from nbutils import ROOT, cards, files, labelling, legend, noise, simulate, sources
from nbutils.legend import VOID, Legend

CACHE = ROOT / "data" / "cache" / "patches"
SPLITS = ("pretrain", "finetune", "validation", "test")


@dataclass(frozen=True)
class PatchSet:
    """Patches of one data set.

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
    """

    name: str
    fingerprint: str
    images: NDArray
    masks: dict[str, NDArray[np.uint8]]
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

    def __len__(self) -> int:
        return len(self.images)

    @property
    def comparable(self) -> bool:
        """Whether the exact masks can be expressed in the noisy map's legend, so that one can judge the other."""
        names = (self.exact_legend.name, self.noisy_legend.name)
        return names[0] == names[1] or names in legend.CROSSWALKS

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
            images=self.images[index],
            masks={name: mask[index] for name, mask in self.masks.items()},
            scenes=self.scenes[index],
            member={name: member[index] for name, member in self.member.items()},
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

        Raises:
            ValueError: There are fewer than `n` patches.
        """
        if not 1 <= n <= len(self):
            raise ValueError(f"{self.name}: a budget of {n} patches was asked for, there are {len(self)}")
        return self.take(_spread(self.scenes, np.random.default_rng(seed))[:n])

    def exact_as_noisy(self) -> NDArray[np.uint8]:
        """Return the exact masks in the noisy map's legend, (N, h, w) uint8.

        Raises:
            ValueError: No mapping between the two legends is known.
        """
        source, target = self.exact_legend, self.noisy_legend
        if not self.comparable:
            raise ValueError(f"no mapping from legend {source.name!r} to {target.name!r}; add one to legend.CROSSWALKS")
        if source.name == target.name:
            return self.masks["exact"]
        table = legend.CROSSWALKS[source.name, target.name]
        return legend.translate(self.masks["exact"], legend.crosswalk(source, target, table))


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

    Args:
        dataset: From `open_dataset`.
        size_px: Side length in pixels.
        max_patches: Most patches kept per split.
        seed: Of the draw.
        workers: Processes that read and label files.

    Returns:
        All patches of all splits; arrays are memory-mapped.

    Raises:
        sources.SourceError: A file cannot be read; the message names it.
        ValueError: No window fits, or a mask does not have its image's shape.
    """
    paths = [path for tile in dataset.tiles for path in (tile.image, tile.exact, tile.noisy) if path is not None]
    recipe = {
        "files": sources.fingerprint(paths),
        "card": dataset.card.model_dump(mode="json", exclude={"root", "title", "get"}),
        "size_px": size_px,
        "max_patches": max_patches,
        "seed": seed,
        "code": code_digest(cards, files, legend, sources, labelling, noise, _cut_tile, _assemble, _windows, _spread),
    }
    pointer = CACHE / f"{dataset.card.name}-{_digest(recipe)[:16]}.json"
    if pointer.exists():
        return load(json.loads(pointer.read_text())["fingerprint"])
    parts = _in_processes(_cut_tile, [(dataset, tile, size_px) for tile in dataset.tiles], workers)
    patches = _assemble(dataset, parts, max_patches, seed)
    store(patches)
    write_json(pointer, {"fingerprint": patches.fingerprint})
    return patches


def with_noisy(patches: PatchSet, noisy: NDArray[np.uint8], noisy_legend: Legend) -> PatchSet:
    """Return the same patches with another noisy map, stored under its own fingerprint.

    Args:
        patches: The whole set.
        noisy: (N, h, w) uint8, 255 = void.
        noisy_legend: Legend of `noisy`.
    """
    if noisy.shape != patches.masks["noisy"].shape or noisy.dtype != np.uint8:
        raise ValueError(f"noisy must be uint8 {patches.masks['noisy'].shape}, got {noisy.dtype} {noisy.shape}")
    changed = replace(patches, masks={**patches.masks, "noisy": noisy}, noisy_legend=noisy_legend)
    changed = replace(changed, fingerprint=content_hash(changed))
    store(changed)
    return changed


def store(patches: PatchSet) -> Path:
    """Write a patch set under its fingerprint, whole or not at all."""
    folder = CACHE / patches.fingerprint
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=CACHE))
    np.save(scratch / "images.npy", patches.images)
    for name, mask in patches.masks.items():
        np.save(scratch / f"{name}.npy", mask)
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
        "noisy_legend": patches.noisy_legend.name,
        "exact_legend": patches.exact_legend.name,
        "licence": patches.licence,
    }
    write_json(scratch / "patches.json", description)
    publish(scratch, folder)
    return folder


def load(fingerprint: str) -> PatchSet:
    """Read a stored patch set; the arrays are memory-mapped.

    Raises:
        FileNotFoundError: No patch set with this fingerprint is stored here.
    """
    folder = CACHE / fingerprint
    if not folder.is_dir():
        raise FileNotFoundError(f"no patches {fingerprint[:16]} under {CACHE}; cut the data set again")
    fields = json.loads((folder / "patches.json").read_text())
    n = len(fields["scenes"])
    return PatchSet(
        name=fields["name"],
        fingerprint=fingerprint,
        images=np.load(folder / "images.npy", mmap_mode="r"),
        masks={name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("noisy", "exact")},
        scenes=np.array(fields["scenes"]),
        member={name: np.isin(np.arange(n), index) for name, index in fields["member"].items()},
        bands=tuple(fields["bands"]),
        scale=fields["scale"],
        mean=tuple(fields["mean"]),
        std=tuple(fields["std"]),
        gsd_m=fields["gsd_m"],
        noisy_legend=legend.get(fields["noisy_legend"]),
        exact_legend=legend.get(fields["exact_legend"]),
        licence=fields["licence"],
    )


def publish(scratch: Path, folder: Path) -> None:
    """Move a finished scratch folder to its place; where another process was first, keep that one."""
    try:
        os.rename(scratch, folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(scratch)


def code_digest(*parts: ModuleType | type | Callable) -> str:
    """Hash what modules, classes or functions compute: their source without comments and docstrings."""
    digest = hashlib.sha256()
    for part in parts:
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()


def _cut_tile(dataset: sources.Dataset, tile: sources.Tile, size_px: int) -> dict[str, NDArray]:
    """Cut one image and its masks: images (n, B, h, w), exact and noisy (n, h, w).

    A pixel without data in the image is void in both masks; a tile without one of the masks has it void throughout.
    A window is kept if it can be learned from: by its exact mask, or for pretraining by its noisy one.
    """
    image, _ = dataset.read_image(tile)
    shape = image.shape[1:]
    injected = isinstance(dataset.card.noisy, sources.Inject)
    labelled = tile.noisy is not None or (injected and tile.exact is not None)
    masks = {
        "exact": sources.read_exact(dataset, tile),
        "noisy": labelling.noisy_mask(dataset, tile) if labelled else np.full(shape, VOID, np.uint8),
    }
    for name, mask in masks.items():
        if mask.shape != shape:
            raise ValueError(
                f"{tile.name}: the {name} mask has {mask.shape} pixels and the image {shape}; put both on the same grid"
            )
    valid = sources.read_valid(tile.image)
    masks = {name: np.where(valid, mask, VOID).astype(np.uint8) for name, mask in masks.items()}
    parts = {"images": _windows(image, size_px)} | {name: _windows(mask, size_px) for name, mask in masks.items()}
    useful = (parts["exact"] != VOID).any(axis=(1, 2))
    if "pretrain" in tile.splits:
        useful |= (parts["noisy"] != VOID).any(axis=(1, 2))
    return {name: part[useful] for name, part in parts.items()}


def _windows(array: NDArray, size_px: int) -> NDArray:
    """Split (..., H, W) into the whole windows of a grid: (n, ..., size, size)."""
    rows, columns = array.shape[-2] // size_px, array.shape[-1] // size_px
    array = array[..., : rows * size_px, : columns * size_px]
    blocks = array.reshape(*array.shape[:-2], rows, size_px, columns, size_px)
    blocks = np.moveaxis(blocks, (-4, -2), (0, 1))  # (rows, columns, ..., size, size)
    return blocks.reshape(rows * columns, *blocks.shape[2:])


def _assemble(dataset: sources.Dataset, parts: list[dict[str, NDArray]], max_patches: int, seed: int) -> PatchSet:
    """Join the tiles' patches, thin each split to `max_patches`, measure the bands."""
    counts = [len(part["images"]) for part in parts]
    scenes = np.repeat([tile.scene for tile in dataset.tiles], counts)
    exact_known = np.concatenate([(part["exact"] != VOID).any(axis=(1, 2)) for part in parts])
    if not len(scenes):
        raise ValueError(f"{dataset.card.name}: no window fits into any image; choose a smaller patch size")
    member = {}
    for split in SPLITS:
        inside = np.repeat([split in tile.splits for tile in dataset.tiles], counts)
        if split != "pretrain":
            inside &= exact_known
        index = np.flatnonzero(inside)
        index = index[_spread(scenes[index], np.random.default_rng(seed))[:max_patches]]
        member[split] = np.isin(np.arange(len(scenes)), index)
    kept = np.logical_or.reduce(list(member.values()))
    arrays = {name: np.concatenate([part[name] for part in parts])[kept] for name in ("images", "exact", "noisy")}
    member = {name: inside[kept] for name, inside in member.items()}
    card = dataset.card
    seen = arrays["images"][member["pretrain"]].astype(np.float64) / card.images.scale
    patches = PatchSet(
        name=card.name,
        fingerprint="",
        images=arrays["images"],
        masks={"noisy": arrays["noisy"], "exact": arrays["exact"]},
        scenes=scenes[kept],
        member=member,
        bands=tuple(card.images.bands),
        scale=float(card.images.scale),
        mean=tuple(seen.mean(axis=(0, 2, 3)).tolist()),
        std=tuple(seen.std(axis=(0, 2, 3)).clip(min=1e-6).tolist()),
        gsd_m=card.gsd_m,
        noisy_legend=dataset.noisy_legend,
        exact_legend=dataset.exact_legend,
        licence=card.licence,
    )
    return replace(patches, fingerprint=content_hash(patches))


def _spread(scenes: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.intp]:
    """Order patches so that every prefix is spread evenly over the scenes: one of each scene in turn."""
    shuffled = rng.permutation(len(scenes))
    turn = np.empty(len(scenes), dtype=np.intp)
    for scene in np.unique(scenes):
        own = shuffled[scenes[shuffled] == scene]
        turn[own] = np.arange(len(own))
    return shuffled[np.argsort(turn[shuffled], kind="stable")]


def content_hash(patches: PatchSet) -> str:
    """Return the SHA-256 of everything a run may learn from: images, masks, scenes, legends and splits."""
    digest = hashlib.sha256()
    for array in (patches.images, patches.masks["noisy"], patches.masks["exact"]):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    digest.update(json.dumps([patches.scenes.tolist(), patches.noisy_legend.name, patches.exact_legend.name]).encode())
    for split in SPLITS:
        digest.update(np.packbits(patches.member[split]).tobytes())
    return digest.hexdigest()


def _digest(recipe: dict) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: dict) -> None:
    """Write JSON under a temporary name, flush, rename."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with open(scratch, "w") as file:
        json.dump(content, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def _in_processes(function, arguments: Iterable[tuple], workers: int) -> list:
    """Call `function(*arguments)` for each tuple, in order, on `workers` fresh processes."""
    arguments = list(arguments)
    if workers <= 1 or len(arguments) == 1:
        return [function(*each) for each in arguments]
    with ProcessPoolExecutor(min(workers, len(arguments)), mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, *zip(*arguments, strict=True), chunksize=1))
