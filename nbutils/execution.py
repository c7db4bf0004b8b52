"""Execution: what a run describes is computed and stored, one at a time or many at once."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from threadpoolctl import threadpool_limits
from torch import nn
from tqdm import tqdm

from nbutils import (
    arms,
    cluster,
    disk,
    evaluation,
    networks,
    patches,
    probing,
    provenance,
    statistics,
    training,
    weights,
)
from nbutils.evaluation import Tally
from nbutils.files import alone
from nbutils.patches import PatchSet
from nbutils.store import ENCODER, RUNS, Result, Run, StoreError, read, write, writing
from nbutils.workers import check_script


def execute(run: Run, store: Path = RUNS, fabric: Fabric | None = None) -> Result:
    """Return the run's result, computing and storing it first if it is not there.

    Computes on one thread, so that the bits do not depend on how many runs share the machine.

    Args:
        run: What to compute.
        store: Folder of the results.
        fabric: Of the processes that train together and all call this; the first evaluates and stores. Left out, this
            process trains alone.

    Raises:
        WeightsError: The parent's weights are missing or unreadable.
        StoreError: The run's own result is unreadable, the store cannot be written, or the weights of others are not
            in it.
        training.TrainingError: The training diverged; nothing is stored.
    """
    there = (store / run.key).is_dir()
    if there if fabric is None else fabric.broadcast(there):
        return read(run, store)
    if run.stage == "elsewhere":
        raise StoreError(f"{store / run.key} is not there: weights of others are put there by `study.published`")
    with one_thread():
        start = time.perf_counter()
        data = patches.load(run.fingerprint)
        licences = [data.licence]
        if run.parent is not None:
            data = prepared(store / run.parent.key, data)
            licences.append(weights.load(store / run.parent.key)[1].licence)
        with _saving(_checkpoint(run, store)):
            trained, curve = _train(run, data, store, fabric)
        try:
            if fabric is None or fabric.is_global_zero:
                tallies = _evaluate(run, trained, data)
                seconds = time.perf_counter() - start
                card = weights.WeightCard(
                    encoder=run.encoder,
                    arm=run.arm,
                    bands=data.bands,
                    scale=data.scale,
                    mean=data.mean,
                    std=data.std,
                    patch_px=data.patch_px,
                    gsd_m=data.gsd_m,
                    legend=data.legend_of(run.target).name if run.target else None,
                    run=run.key,
                    licence="; ".join(dict.fromkeys(licences)),
                )
                gave = {"tallies": tallies, "curve": curve, "seconds": seconds}
                keep(
                    run, trained.state_dict(), card, store, processes=1 if fabric is None else fabric.world_size, **gave
                )
                _forget(run, store)
        finally:
            if fabric is not None:
                fabric.barrier()  # whom the first could store nothing for finds nothing
    return read(run, store)


def _checkpoint(run: Run, store: Path) -> Path:
    """Name a run's checkpoint; what a killed process left half written lies in the same folder, and goes with it."""
    return store / f".{run.key}.training" / "checkpoint"


def _forget(run: Run, store: Path) -> None:
    """Remove what a run's training left for one that would go on with it."""
    shutil.rmtree(_checkpoint(run, store).parent, ignore_errors=True)


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    """Name the checkpoint where one cannot be written, and take away the half of it that fills a full disk."""
    try:
        with writing(path):
            yield
    except StoreError:
        for half in path.parent.glob("*"):
            if half != path:
                half.unlink(missing_ok=True)
        with suppress(OSError):  # a checkpoint of before is still good
            path.parent.rmdir()
        raise


def keep(
    run: Run,
    state: Mapping[str, torch.Tensor],
    card: weights.WeightCard,
    store: Path,
    *,
    tallies: Mapping[str, Mapping[str, Tally]] | None = None,
    curve: list | None = None,
    seconds: float = 0.0,
    processes: int = 1,
) -> None:
    """Store what a run gave, with its provenance; `processes` trained it together."""
    told = {
        name: {split: {scene: each[at].tolist() for scene, each in scenes.items()} for split, scenes in tallies.items()}
        for at, name in enumerate(("counts", "boundary", "calibration"))
    } if tallies else dict.fromkeys(("counts", "boundary", "calibration"), {})  # fmt: skip
    record = {
        "run": asdict(run),
        **told,
        "curve": curve or [],
        "seconds": round(seconds, 2),
        "parameters": sum(v.numel() for n, v in state.items() if v.is_floating_point() and "running_" not in n),
    }
    with writing(store):
        record["provenance"] = provenance.record(store) | {"processes": processes}
    write(store, run.key, record, state, card)


def run_many(runs: Sequence[Run], *, workers: int = 2, store: Path = RUNS) -> list[Result]:
    """Return the results of many runs, computing those that are missing, parents first.

    Args:
        runs: In any order; repeats are computed once.
        workers: Processes of one thread each on a local Dask cluster; 1 computes here. Where the environment variable
            `cluster.SCHEDULER` names a running scheduler, its workers compute instead.
        store: Folder of the results.

    Returns:
        One result per run, in the order of `runs`.

    Raises:
        StoreError: A stored result cannot be read, or the store cannot be written.
        RuntimeError: A script without a main guard asks for processes, or the scheduler named cannot serve.
    """
    with writing(store):
        store.mkdir(parents=True, exist_ok=True)
    if any(not (store / run.key).is_dir() for run in runs):
        with alone(store):  # who else computes here, perhaps the same runs, is waited for
            _compute(runs, workers, store)
    for run in _parents_first(runs):
        if (store / run.key).is_dir():
            _forget(run, store)  # of one that was killed after its result was stored
    return [read(run, store) for run in runs]


def _compute(runs: Sequence[Run], workers: int, store: Path) -> None:
    """Compute the runs that are missing, parents first, telling after each how long the rest will take."""
    missing = [run for run in _parents_first(runs) if not (store / run.key).is_dir()]
    if not missing:
        return
    with writing(store), disk.scratch_folder(store):
        pass  # not after an hour of training
    elsewhere = cluster.joined()
    if workers > 1 and not elsewhere:
        check_script()
    if workers > 1 or elsewhere:
        finished = cluster.compute(_task, missing, workers, store)
    else:
        finished = (execute(run, store) for run in missing)
    start = time.perf_counter()
    for done, result in enumerate(tqdm(finished, total=len(missing), disable=not watched()), start=1):
        left = (time.perf_counter() - start) / done * (len(missing) - done)
        _log(store, f"[{done}/{len(missing)}] {result.run}: {_summary(result)}, about {left / 60:.1f} min left")


def watched() -> bool:
    """Whether a person watches: a terminal, or a kernel that a Jupyter server started."""
    return bool(os.environ.get("JPY_SESSION_NAME")) or ("ipykernel" not in sys.modules and sys.stderr.isatty())


def build(run: Run, data: PatchSet, decoder: str, classes: int) -> nn.Module:
    """Build the network a run describes, with its initial weights."""
    return networks.build(
        run.encoder, decoder, in_channels=len(data.bands), n_classes=classes, seed=run.seed, width=run.width
    )


def encoder_weights(folder: Path, data: PatchSet) -> dict[str, torch.Tensor]:
    """Read the encoder's part of stored weights, under plain names; errors as in `weights.load`."""
    return weights.encoder_part(weights.load(folder, data)[0])


def prepared(result_folder: Path, data: PatchSet) -> PatchSet:
    """Return the patches with the normalisation that stored weights were trained with; their card tells it."""
    card = weights.load(result_folder, data)[1]
    return replace(data, scale=card.scale, mean=card.mean, std=card.std)


def _train(
    run: Run, data: PatchSet, store: Path, fabric: Fabric | None = None
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train what the run describes; return the module whose weights are kept, and the learning curve."""
    plan = training.Plan(run.steps, run.batch_size, run.learning_rate, run.precision, run.seed, stop=run.stop)
    seen = data.split(run.stage)
    if run.budget is not None:
        seen = seen.budget(run.budget, run.seed)
    network = build(run, data, run.decoder or "unet", run.classes or 2)
    if run.parent is not None:
        _carry(run, network, store / run.parent.key, data)
    elif run.frozen:
        training.settle(network.encoder, data.split("pretrain"))
    if run.frozen:
        networks.freeze_encoder(network)
    trained = network if run.target else _Encoder(network.encoder)
    learner = trained if run.target else trained.encoder
    arm = run.arm if run.stage == "pretrain" else "exact"
    n_places = len(seen) if seen.places is None else len(np.unique(seen.places))
    objective = arms.objective_of(arm, learner, seed=run.seed, n_places=n_places, batch_size=run.batch_size)
    told = run.target == "noisy" and data.comparable
    curve = training.fit(
        objective,
        seen,
        run.target or "noisy",
        plan,
        truth=seen.exact_as_noisy() if told else None,
        judge=_judge(run, trained, data),
        looks=run.looks,
        checkpoint=_checkpoint(run, store),
        tag=run.key,
        fabric=fabric,
    )
    return trained, curve


def _carry(run: Run, network: nn.Module, parent: Path, data: PatchSet) -> None:
    """Copy to a network what is carried over from stored weights."""
    if run.carried == ENCODER:
        networks.load_encoder(network, encoder_weights(parent, data))
    else:
        probing.carry(network, weights.load(parent, data)[0], run.carried)


def _judge(run: Run, trained: nn.Module, data: PatchSet) -> Callable[[], dict[str, float]] | None:
    """Return what looks at the network while it learns, if anything does; it changes nothing of it."""
    if not run.looks:
        return None
    judges: list[Callable[[], dict[str, float]]] = []
    if run.target == "exact" or (run.target == "noisy" and data.comparable):
        judges.append(partial(_validation_score, run, trained, data))
    if run.monitored:
        seen = data.split(run.stage)
        seen = seen if run.budget is None else seen.budget(run.budget, run.seed)
        rng, unseen = np.random.default_rng(run.seed), data.split("validation")
        judges.append(probing.Monitor(trained, seen, run.target, rng=rng, unseen=unseen))
    return (lambda: {name: value for judge in judges for name, value in judge().items()}) if judges else None


def _validation_score(run: Run, network: nn.Module, data: PatchSet) -> dict[str, float]:
    """Mean IoU on the validation scenes, for the learning curve."""
    tallies = _tallies(run, network, data, "validation")
    return {"validation_miou": float(statistics.mean_iou(sum(each.confusion for each in tallies.values())))}


def _evaluate(run: Run, trained: nn.Module, data: PatchSet) -> dict[str, dict[str, Tally]]:
    """Count predictions against the exact masks, in the legend the network predicts, per split and scene."""
    if not run.target or (run.target == "noisy" and not data.comparable):
        return {}
    return {split: _tallies(run, trained, data, split) for split in ("validation", "test")}


def _tallies(run: Run, network: nn.Module, data: PatchSet, split: str) -> dict[str, Tally]:
    part = data.split(split)
    exact = part.masks["exact"] if run.target == "exact" else part.exact_as_noisy()
    return evaluation.evaluate(network, part, exact, run.classes, precision=run.precision)


class _Encoder(nn.Module):
    """Holds an encoder alone, so that its weights are stored under the same names as in a whole network."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder


def _parents_first(runs: Sequence[Run]) -> list[Run]:
    ordered = {}
    for run in runs:
        if run.parent is not None:
            ordered[run.parent.key] = run.parent
    for run in runs:
        ordered.setdefault(run.key, run)
    return list(ordered.values())


def _task(run: Run, store: Path, parent: Result | None) -> Result:
    """Execute on a worker; `parent` only makes Dask wait for it."""
    return execute(run, store)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, linear algebra too: sums of several come out in another order, and so in other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def _summary(result: Result) -> str:
    score = f"mIoU {result.mean_iou():.3f}" if result.counts else f"loss {result.curve[-1]['loss']:.3f}"
    return f"{score}, {result.seconds:.1f} s"


def _log(store: Path, line: str) -> None:
    with open(store / "log.txt", "a") as file:
        file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")
