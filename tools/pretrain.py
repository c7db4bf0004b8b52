"""Run one pretraining of the study on several devices or machines; the notebooks then find it done.

    python tools/pretrain.py --arm noisy --seed 0 --profile paper --dataset data/datasets/nyc.yaml --devices 4
    srun --nodes 2 --ntasks-per-node 4 \\
        python tools/pretrain.py --arm noisy --seed 0 --profile paper_ssl4eo --devices 4 --num-nodes 2

What is trained is what notebooks 04 and 05 ask for at this profile, and 03 of the arms' own labels. Every process
learns from its share of each batch, and statistics and losses are those of the whole batch, so that the result is that
of one process but for rounding; where an encoder drops units at random, the processes drop others than one would. Arms:
noisy, exact, and the remedies that change the loss of a pixel; others need their batch in one process, as do encoders
that normalise otherwise than by plain BatchNorm. On one machine this command starts the processes; on several, start it
once for each device, through srun or as Lightning Fabric describes.
A training that was killed goes on from its last checkpoint, with as many processes as you like.
Exit status: 0 done, 2 wrong input, 3 the data are not there.
"""

import argparse
import ast
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import papermill
import study as notebooks
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from nbutils import arms, patches, study
from nbutils.evaluation import PRECISIONS
from nbutils.files import alone
from nbutils.patches import PatchSet
from nbutils.store import RUNS, Run
from nbutils.training import SharingError

PATIENCE = timedelta(days=2)  # of processes that wait while the first cuts patches or another study uses the store


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", required=True, help="what the encoder sees: noisy, exact, noisy+gce ...")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument("--profile", default="reading", help="a name in notebooks/profiles/ (default: %(default)s)")
    parser.add_argument("--dataset", help="card (default: the profile's)")
    parser.add_argument("--devices", type=int, default=1, help="processes on each machine, one a device")
    parser.add_argument("--num-nodes", type=int, default=1, help="machines")
    return parser.parse_args(arguments)


def parameters(profile: str) -> dict[str, Any]:
    """Return what the notebooks would be given at a profile: their defaults, and the profile's own values.

    Raises:
        StudyError: There is no such profile.
    """
    notebook = next(notebooks.NOTEBOOKS.glob("04_*.ipynb"))
    defaults = {name: ast.literal_eval(each["default"]) for name, each in papermill.inspect_notebook(notebook).items()}
    return defaults | notebooks.read_profile(profile, notebooks.NOTEBOOKS / "profiles")


def described(data: PatchSet, arm: str, seed: int, asked: dict[str, Any]) -> Run:
    """Describe the pretraining as the notebooks do.

    Raises:
        ValueError: There is no such arm.
    """
    how = {name: asked[name] for name in ("encoder", "width", "precision")}
    steps, batch = asked["pretrain_steps"], asked["pretrain_batch"]
    return study.pretraining(data, arm, steps=steps, batch_size=batch, seed=seed, **how)


def cut(fabric: Fabric, card: Path, asked: dict[str, Any]) -> PatchSet:
    """Cut the patches in the first process; the others read them when they are there."""
    with fabric.rank_zero_first():
        return patches.cut(patches.open_dataset(card), size_px=asked["patch_px"], max_patches=asked["max_patches"])


def main(arguments: list[str] | None = None) -> int:
    """Train, and say where the result is; returns the exit status."""
    options = parsed(arguments)
    try:
        arms.check(options.arm)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        asked = parameters(options.profile)
        card = notebooks.card_path(options.dataset or asked["dataset"])
        notebooks.check_dataset(card)
        precision = study.precision_of(asked["precision"])
        many = options.devices * options.num_nodes > 1
        strategy = DDPStrategy(timeout=PATIENCE) if many else "auto"
        fabric = Fabric(devices=options.devices, num_nodes=options.num_nodes, strategy=strategy,
                        precision=PRECISIONS[precision])  # fmt: skip
        fabric.launch()
        data = cut(fabric, card, asked)
        run = described(data, options.arm, options.seed, asked | {"precision": precision})
        RUNS.mkdir(parents=True, exist_ok=True)
        with alone(RUNS) if fabric.is_global_zero else nullcontext():
            fabric.barrier()  # until the first has the store to itself
            result = study.execute(run, RUNS, fabric)
    except notebooks.StudyError as error:
        print(error, file=sys.stderr)
        return error.status
    except SharingError as error:
        print(error, file=sys.stderr)
        return 2
    if fabric.is_global_zero:
        told = f"loss {result.curve[-1]['loss']:.3f}, {result.seconds:.0f} s in {fabric.world_size} processes"
        print(f"{run}: {told} -> {notebooks.portable(result.folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
