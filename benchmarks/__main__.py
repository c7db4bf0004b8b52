"""Measure, print, and write benchmarks/measured.json, build/bench.md, docs/paper_scale.md and the README's tables.

    python -m benchmarks                   # all parts
    python -m benchmarks growth reading    # these anew, beside what is there of the others

Each row is the median and the range over repeats, after one warm-up that does not count. Where a row has a
counterpart written with another library, both run in turn, so that a busy machine slows both. What runs on one core
is measured in seconds of that core.
"""

import argparse
import importlib
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import laspy
import numpy as np
import torch
from cleanlab.benchmarking.noise_generation import generate_noisy_labels
from numpy.typing import NDArray

from benchmarks import growth, probings, readings, report, scale, streaming, sweeps, trainings
from benchmarks.growth import Growth
from benchmarks.racing import Row, race, ratios, rounds, speeds
from nbutils import audit, distance, labelling, legend, noise, patches, simulate, training
from nbutils.execution import one_thread
from nbutils.legend import VOID

PATCH_PX, BANDS = 96, ("nir", "red", "green", "blue")
SCENE_PX = 384


def city_patches(scene: simulate.Scene) -> patches.PatchSet:
    """The patches of a scene in memory, all of them for pretraining."""
    cut = [slice(i, i + PATCH_PX) for i in range(0, SCENE_PX, PATCH_PX)]
    exact = np.stack([scene.exact[y, x] for y in cut for x in cut])
    images = np.stack([scene.image[:, y, x] for y in cut for x in cut])
    everyone = np.ones(len(exact), bool)
    return patches.PatchSet(
        name="bench",
        fingerprint="",
        images=images,
        masks={"exact": exact},
        scenes=np.full(len(exact), "bench"),
        member={"pretrain": everyone},
        bands=BANDS,
        scale=255.0,
        mean=(0.4,) * len(BANDS),
        std=(0.2,) * len(BANDS),
        gsd_m=1.0,
        noisy_legend=legend.get("autogeo4"),
        exact_legend=legend.get("nyc8"),
        licence="CC0-1.0",
    )


def bench_training() -> list[Row]:
    """A U-Net of full width in both precisions."""
    data = city_patches(simulate.city_scene(0, SCENE_PX))
    return [row for precision in ("fp32", "bf16") for row in trainings.bench(data, "resnet18", precision)]


def bench_lidar(folder: Path) -> list[Row]:
    """LiDAR file to mask, and the part of it that is reading the file."""
    scene_folder = folder / "scene"
    scene_folder.mkdir()
    scene, grid = simulate.city_scene(0, SCENE_PX), simulate.scene_grid(0, SCENE_PX)
    simulate.write_scene(scene_folder, scene, grid)
    (path,) = scene_folder.rglob("*.laz")
    count = laspy.open(path).header.point_count
    ours, reading = "LiDAR file to mask", "- reading alone (laspy)"
    runners = {ours: lambda: labelling.from_lidar(path, grid), reading: lambda: laspy.read(path).xyz}
    seconds = rounds(runners, 7)
    return speeds("million points/s", count / 1e6, seconds) + ratios(
        {"- as fast as reading alone": (ours, reading)}, seconds
    )


def big_mask(side_px: int = 4096, n_objects: int = 2000) -> NDArray[np.uint8]:
    """Rectangles of eight classes, all in one mask."""
    rng = np.random.default_rng(0)
    mask = np.zeros((side_px, side_px), np.uint8)
    for _ in range(n_objects):
        (row, column), (height, width) = rng.integers(0, side_px - 80, 2), rng.integers(15, 80, 2)
        mask[row : row + height, column : column + width] = rng.integers(1, 8)
    return mask


def bench_noise(mask: NDArray[np.uint8]) -> list[Row]:
    """Every operator and every recipe, per second of one core."""
    rng, k = np.random.default_rng(0), 8
    matrix, earlier = noise.confusion_matrix(k, 0.2), np.roll(mask, 9, axis=1)
    some = {"rng": rng, "max_share": 0.02}
    runners: dict[str, Callable[[], object]] = {
        "flips": lambda: noise.flip_labels(mask, 0.3, k, rng=rng),
        "matrix": lambda: noise.confuse_classes(mask, matrix, rng=rng),
        "matrix in patches": lambda: noise.confuse_classes(mask, matrix, rng=rng, correlation_px=20),
        "matrix at edges": lambda: noise.confuse_classes(mask, matrix, rng=rng, edge_px=4),
        "shift": lambda: noise.shift_mask(mask, rng=rng, vector_px=(3.5, -2.25)),
        "rotation": lambda: noise.rotate_mask(mask, rng=rng, degrees=1.0),
        "moved boundaries": lambda: noise.move_boundaries(mask, 3, rng=rng),
        "grown and shrunk classes": lambda: noise.resize_classes(mask, {1: 1.5, 3: -2.5, 5: 3}, rng=rng),
        "simplified outlines": lambda: noise.simplify_outlines(mask, 3, rng=rng),
        "coarse grid": lambda: noise.coarsen(mask, 8, rng=rng, least_px=400),
        "omitted objects": lambda: noise.omit_objects(mask, 0.3, **some),
        "added objects": lambda: noise.add_objects(mask, 0.3, **some),
        "shifted objects": lambda: noise.shift_objects(mask, 6, **some),
        "rotated objects": lambda: noise.rotate_objects(mask, 20, **some),
        "stale map": lambda: noise.age_map(mask, 0.3, **some),
        "stale map, date given": lambda: noise.age_map(mask, 0.3, earlier=earlier, **some),
    }
    for name, recipe in noise.RECIPES.items():
        if name.count("-") < 2 and not name.endswith(("-easy", "-hard")):
            runners[f"recipe {name}"] = lambda recipe=recipe: recipe.apply(mask, k, rng)
    named = {f"noise: {name}": run for name, run in runners.items()}
    return race("Mpx/s", (mask != VOID).sum() / 1e6, named, repeats=3, clock=time.process_time)


def bench_audit(exact: NDArray[np.uint8], n_classes: int = 8) -> list[Row]:
    """Examine a map that is displaced, one whose pixels are flipped, and distances alone, per second of one core."""
    rng = np.random.default_rng(0)
    moved = np.roll(exact, (2, -1), (0, 1))
    flipped = noise.flip_labels(exact, 0.2, n_classes, rng=rng)[0]
    edge = distance.boundaries(exact)
    runners = {
        "audit: examine, displaced map": lambda: audit.examine(moved, exact, n_classes, rng=rng).table(),
        "audit: examine, flipped pixels": lambda: audit.examine(flipped, exact, n_classes, rng=rng).table(),
        "distance: near, reach 16": lambda: distance.near(edge, 16),
        "distance: scipy, unbounded": lambda: distance.near(edge, np.inf),
    }
    return race("Mpx/s", exact.size / 1e6, runners, repeats=3, clock=time.process_time)


def bench_rivals(exact: NDArray[np.uint8], n_classes: int = 8) -> list[Row]:
    """What other libraries have too: a confusion matrix (torchmetrics), classes confused by a matrix (cleanlab).

    torchmetrics' checks of its input are left out, which speeds it up; ours stay.
    """
    rng, matrix = np.random.default_rng(0), noise.confusion_matrix(n_classes, 0.2)
    mapped = noise.confuse_classes(exact, matrix, rng=rng)[0]
    peer = importlib.import_module("torchmetrics.functional.classification")  # no dependency of ours: by name
    tensors = torch.as_tensor(mapped).long(), torch.as_tensor(exact).long()
    settings = {"num_classes": n_classes, "ignore_index": VOID, "validate_args": False}
    flat = exact.ravel()
    count = {
        "audit: compare": lambda: audit.compare(mapped, exact, n_classes),
        "- torchmetrics, confusion matrix": lambda: peer.multiclass_confusion_matrix(*tensors, **settings),
    }
    confuse = {
        "noise: matrix": lambda: noise.confuse_classes(exact, matrix, rng=rng),
        "- cleanlab, noisy labels": lambda: generate_noisy_labels(flat, matrix.T),
    }
    rows = []
    with one_thread():
        for runners, rival in ((count, "torchmetrics"), (confuse, "cleanlab")):
            seconds = rounds(runners, 3, time.process_time)
            rows += speeds("Mpx/s", exact.size / 1e6, seconds)
            rows += ratios({f"- as fast as {rival}": tuple(runners)}, seconds)
    return rows


def bench_world() -> list[Row]:
    """One scene of the embedded city, in memory."""
    return race("Mpx/s", SCENE_PX**2 / 1e6, {"city scene": lambda: simulate.city_scene(1, SCENE_PX)}, repeats=3)


def machine() -> dict[str, str]:
    """Where this was measured."""
    packages = ("torch", "segmentation-models-pytorch", "lightning-fabric", "laspy", "numpy")
    return {
        "processor": training.processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "date": datetime.now().strftime("%Y-%m-%d"),
    }


def parts(folder: Path) -> dict[str, Callable[[], list[Row] | list[Growth]]]:
    """What can be measured, by name; files go to `folder`."""
    return {
        "training": bench_training,
        "streaming": lambda: streaming.bench(folder / "streaming"),
        "reading": lambda: readings.bench(folder / "reading"),
        "lidar": lambda: bench_lidar(folder),
        "noise": lambda: bench_noise(big_mask()),
        "audit": lambda: bench_audit(big_mask()) + (bench_rivals(big_mask()) if trainings.rival_installed() else []),
        "world": bench_world,
        "probing": probings.bench,
        "sweep": sweeps.bench,
        "scale": scale.bench,
        "growth": lambda: [*growth.bench(folder / "growth"), streaming.with_patches(folder / "patches")],
    }


def main(arguments: list[str] | None = None) -> None:
    """Run benchmarks, telling the rows as they come."""
    with tempfile.TemporaryDirectory() as scratch:
        known = parts(Path(scratch))
        parser = argparse.ArgumentParser(description="Measure the speeds of this machine.")
        parser.add_argument("parts", nargs="*", help=f"of {', '.join(known)} (default: all)")
        asked = parser.parse_args(arguments).parts or list(known)
        if unknown := set(asked) - set(known):
            parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        if not trainings.rival_installed():
            print(
                "torchgeo is not installed: nothing is compared with it and torchmetrics (pip install torchgeo)",
                flush=True,
            )
        for name in asked:
            rows = known[name]()
            print("", *(report.told(row) for row in rows), sep="\n", flush=True)
            report.keep(name, rows, machine())
    report.publish()


if __name__ == "__main__":
    main()
