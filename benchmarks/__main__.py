"""Measure, print and write build/bench.json and build/bench.md; some ten minutes on two cores, sweeps most of them.

Each row is the median and the range over repeats, after one warm-up that does not count. Where a row has a
counterpart written with the bare library, both run in turn, so that a busy machine slows both. What runs on one core
is measured in seconds of that core.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import laspy
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import probings, sweeps, trainings
from benchmarks.racing import Row, race
from nbutils import ROOT, audit, distance, labelling, legend, noise, patches, simulate, training
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


def bench_lidar(folder: Path) -> list[Row]:
    """LiDAR file to mask, and the part of it that is reading the file."""
    scene_folder = folder / "scene"
    scene_folder.mkdir()
    scene, grid = simulate.city_scene(0, SCENE_PX), simulate.scene_grid(0, SCENE_PX)
    simulate.write_scene(scene_folder, scene, grid)
    (path,) = scene_folder.rglob("*.laz")
    count = laspy.open(path).header.point_count
    runners = {
        "LiDAR file to mask": lambda: labelling.from_lidar(path, grid),
        "- reading alone (laspy)": lambda: laspy.read(path).xyz,
    }
    return race("million points/s", count / 1e6, runners)


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


def as_markdown(rows: list[Row], about: dict[str, str]) -> str:
    """The table of rows and the machine below it."""
    lines = ["| what | median | range | unit |", "|---|---:|---:|---|"]
    lines += [f"| {r.name} | {r.median:.3g} | {r.low:.3g} - {r.high:.3g} | {r.unit} |" for r in rows]
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in about.items()), ""])


def main() -> None:
    """Run every benchmark, telling the rows as they come."""
    scene = simulate.city_scene(0, SCENE_PX)
    data = city_patches(scene)
    rows: list[Row] = []
    if not trainings.rival_installed():
        print("torchgeo is not installed, so it is not compared with (pip install torchgeo)", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for bench in (
            lambda: trainings.bench(data, "resnet18", "fp32", repeats=3),
            lambda: trainings.bench(data, "resnet18", "bf16", repeats=3, rival=trainings.rival_installed()),
            lambda: bench_lidar(Path(scratch)),
            lambda: bench_noise(big_mask()),
            lambda: bench_audit(big_mask()),
            bench_world,
            probings.bench,
            sweeps.bench,
        ):
            for row in bench():
                print(f"{row.name:55s} {row.median:9.3g} {row.unit}  ({row.low:.3g} - {row.high:.3g})", flush=True)
                rows.append(row)
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    about = machine()
    (folder / "bench.md").write_text(as_markdown(rows, about))
    (folder / "bench.json").write_text(json.dumps({"machine": about, "rows": [asdict(r) for r in rows]}, indent=1))
    print(f"written: {folder / 'bench.md'}, {folder / 'bench.json'}")


if __name__ == "__main__":
    main()
