"""Reading patches: `patches.cut` against torchgeo's raster data sets, with its samplers on a grid and at random.

All read as many windows of the same GeoTIFFs (blocks of 256 px, deflate), in one process, with the files in the page
cache. Ours reads images and two masks, drops windows without labels, and stores and hashes what it read; torchgeo's
reads images and one mask. Windows at random places lie across blocks; those of the grid are ours.
"""

import importlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
import torch
import yaml
from rasterio.transform import from_origin

from benchmarks.racing import Row, ratios, rounds, speeds
from benchmarks.trainings import BATCH, rival_installed
from nbutils import patches, sources
from nbutils.execution import one_thread

N_SCENES, SCENE_PX, PATCH_PX, BLOCK_PX = 4, 2048, 128, 256


def bench(folder: Path, repeats: int = 3) -> list[Row]:
    """Patches per second from GeoTIFF."""
    cut = cutting(write_scenes(folder, range(N_SCENES), SCENE_PX), PATCH_PX)
    number = N_SCENES * (SCENE_PX // PATCH_PX) ** 2
    ours = f"patches of {PATCH_PX} px cut from GeoTIFF"
    runners: dict[str, Callable[[], int]] = {ours: cut}
    if rival_installed():
        runners |= {f"- torchgeo, {how}": _torchgeo(folder, number, how) for how in ("grid", "random")}
    for name, run in runners.items():
        if (got := run()) != number:
            raise RuntimeError(f"{name}: read {got} patches, not {number}")
    with one_thread():
        seconds = rounds(runners, repeats)
    pairs = {f"- as fast as {name.removeprefix('- ')}": (ours, name) for name in list(runners)[1:]}
    return speeds("patches/s", number, seconds) + ratios(pairs, seconds)


def write_scenes(folder: Path, numbers: range, side_px: int) -> Path:
    """Write scenes of smooth classes as GeoTIFF, image and mask, side by side on the ground; return their card."""
    rng, k = np.random.default_rng(0), 8
    for i in numbers:
        corner = from_origin(500_000 + i * 2 * side_px, 4_000_000, 1, 1)
        coarse = rng.integers(0, k, (side_px // 16, side_px // 16), np.uint8)
        mask = np.kron(coarse, np.ones((16, 16), np.uint8))
        image = (mask * 20 + rng.integers(0, 60, (4, side_px, side_px))).astype(np.uint8)
        for kind, pixels in (("image", image), ("mask", mask[None])):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            block = min(BLOCK_PX, side_px)
            form = {"tiled": True, "blockxsize": block, "blockysize": block, "compress": "deflate", "crs": "EPSG:32631"}
            with rasterio.open(folder / kind / f"s{i}.tif", "w", driver="GTiff", width=side_px, height=side_px,
                               count=len(pixels), dtype="uint8", transform=corner, **form) as file:  # fmt: skip
                file.write(pixels)
    mask = {"glob": "mask/*.tif", "coding": "index", "legend": "nyc8"}
    card = {"name": "readings", "licence": "CC0-1.0", "root": str(folder),
            "exact": mask, "noisy": {"from": "mask"} | mask,
            "images": {"glob": "image/*.tif", "bands": ["nir", "red", "green", "blue"], "scale": 255},
            "split": {"test": ["s0"], "validation": ["s1"]}}  # fmt: skip
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return folder / "card.yaml"


@contextmanager
def empty_cache() -> Iterator[Path]:
    """A cache of patches of its own, so that everything is cut anew."""
    own = patches.CACHE
    with tempfile.TemporaryDirectory() as scratch:
        patches.CACHE = Path(scratch)
        try:
            yield patches.CACHE
        finally:
            patches.CACHE = own


def cutting(card: Path, size_px: int, max_patches: int = 1_000_000) -> Callable[[], int]:
    """How patches of a card are cut, each time from the files; gives their number."""

    def run() -> int:
        dataset = sources.read_dataset(card)
        with empty_cache():
            return len(patches.cut(dataset, size_px=size_px, max_patches=max_patches, workers=1))

    return run


def _torchgeo(folder: Path, number: int, how: str) -> Callable[[], int]:
    sets, samplers = (importlib.import_module(f"torchgeo.{name}") for name in ("datasets", "samplers"))

    def loop() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own geometries
            images, masks = sets.RasterDataset(str(folder / "image")), sets.RasterDataset(str(folder / "mask"))
            masks.is_image = False
            both = images & masks
            sampler = (
                samplers.GridGeoSampler(both, size=PATCH_PX, stride=PATCH_PX)
                if how == "grid"
                else samplers.RandomGeoSampler(both, size=PATCH_PX, length=number)
            )
            loader = torch.utils.data.DataLoader(both, BATCH, sampler=sampler, collate_fn=sets.stack_samples)
            return sum(len(batch["image"]) for batch in loader)

    return loop
