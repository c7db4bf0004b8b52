"""The experiment: describe runs, execute one, execute many at once, put their results in a table.

Asking for a run whose result is stored costs a file read, so notebooks share results and an interrupted study goes on
where it stopped.
"""

import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import torch
from distributed import Client, LocalCluster, as_completed
from torch import nn
from tqdm import tqdm

from nbutils import ROOT, networks, objectives, patches, probing, training, weights
from nbutils.files import alone
from nbutils.legend import VOID
from nbutils.patches import PatchSet
from nbutils.store import RUNS, Result, Run, cached, read, write

ARMS = ("random", "moco", "noisy", "exact")
# Peak rates of AdamW, chosen by the same search for every arm on the city's validation scenes: tools/rates.py.
LEARNING_RATES = {"moco": 5e-4, "noisy": 1e-2, "exact": 1e-2, "finetune": 6e-3}
_PACKAGES = ("torch", "segmentation-models-pytorch", "timm", "lightly", "lightning-fabric", "numpy")


def arms_of(data: PatchSet) -> list[str]:
    """Return the arms that a data set allows: `exact` only where pretraining scenes have exact masks."""
    known = (data.split("pretrain").masks["exact"] != VOID).any()
    return [arm for arm in ARMS if arm != "exact" or known]


def pretraining(
    data: PatchSet,
    arm: str,
    *,
    encoder: str,
    width: str,
    steps: int,
    batch_size: int,
    seed: int,
    precision: str,
    learning_rate: float | None = None,
) -> Run:
    """Describe the pretraining of one arm: moco sees the images, noisy and exact also the masks of that name."""
    if arm not in ARMS[1:]:
        raise ValueError(f"unknown arm {arm!r}; those that pretrain: {', '.join(ARMS[1:])}")
    target = "" if arm == "moco" else arm
    return Run(
        stage="pretrain",
        data=data.name,
        fingerprint=data.fingerprint,
        arm=arm,
        encoder=encoder,
        decoder="unet" if target else "",
        width=width,
        target=target,
        classes=len(data.legend_of(target)) if target else 0,
        budget=None,
        frozen=False,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate or LEARNING_RATES[arm],
        seed=seed,
        precision=_precision(precision),
        code=_code(),
    )


def finetuning(
    data: PatchSet,
    parent: Run | None,
    *,
    encoder: str,
    width: str,
    decoder: str,
    budget: int,
    frozen: bool,
    steps: int,
    batch_size: int,
    seed: int,
    precision: str,
    learning_rate: float | None = None,
) -> Run:
    """Describe fine-tuning on `budget` exactly labelled patches, with a new decoder on the parent's encoder."""
    return Run(
        stage="finetune",
        data=data.name,
        fingerprint=data.fingerprint,
        arm=parent.arm if parent else "random",
        encoder=encoder,
        decoder=decoder,
        width=width,
        target="exact",
        classes=len(data.exact_legend),
        budget=budget,
        frozen=frozen,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate or LEARNING_RATES["finetune"],
        seed=seed,
        precision=_precision(precision),
        code=_code(),
        parent=parent,
    )


def execute(run: Run, store: Path = RUNS) -> Result:
    """Return the run's result, computing and storing it first if it is not there.

    Computes on one thread, so that the bits do not depend on how many runs share the machine.

    Raises:
        StoreError: The parent's result is missing or unreadable.
        training.TrainingError: The training diverged; nothing is stored.
    """
    if (store / run.key).is_dir():
        return read(run, store)
    with _one_thread():
        start = time.perf_counter()
        data = patches.load(run.fingerprint)
        trained, curve = _train(run, data, store)
        counts = _evaluate(run, trained, data)
        seconds = time.perf_counter() - start
    record = {
        "run": asdict(run),
        "counts": counts,
        "curve": curve,
        "seconds": round(seconds, 2),
        "parameters": networks.count_parameters(trained),
        "provenance": _provenance(),
    }
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
        licence=data.licence,
    )
    write(store, run.key, record, trained.state_dict(), card)
    return read(run, store)


def run_many(runs: Sequence[Run], *, workers: int = 2, store: Path = RUNS) -> list[Result]:
    """Return the results of many runs, computing those that are missing, parents first.

    Args:
        runs: In any order; repeats are computed once.
        workers: Processes of one thread each on a local Dask cluster; 1 computes here.
        store: Folder of the results.

    Returns:
        One result per run, in the order of `runs`.
    """
    store.mkdir(parents=True, exist_ok=True)
    if any(not (store / run.key).is_dir() for run in runs):
        with alone(store):  # who else computes here, perhaps the same runs, is waited for
            _compute(runs, workers, store)
    return [read(run, store) for run in runs]


def _compute(runs: Sequence[Run], workers: int, store: Path) -> None:
    """Compute the runs that are missing, parents first, telling after each how long the rest will take."""
    missing = [run for run in _parents_first(runs) if not (store / run.key).is_dir()]
    if not missing:
        return
    finished = _on_cluster(missing, workers, store) if workers > 1 else (execute(run, store) for run in missing)
    start = time.perf_counter()
    for done, result in enumerate(tqdm(finished, total=len(missing), disable=not watched()), start=1):
        left = (time.perf_counter() - start) / done * (len(missing) - done)
        _log(store, f"[{done}/{len(missing)}] {result.run}: {_summary(result)}, about {left / 60:.1f} min left")


def network_of(result: Result, data: PatchSet) -> nn.Module:
    """Rebuild the segmentation network of a supervised result with its trained weights."""
    run = result.run
    state, _ = weights.load(result.folder, data)
    network = _build(run, data, run.decoder, run.classes)
    network.load_state_dict(state)
    return network.eval()


def encoder_of(result: Result | None, data: PatchSet, *, encoder: str, seed: int = 0) -> nn.Module:
    """Return the encoder a result trained; without a result the random one of that seed."""
    network = networks.build(encoder, "unet", in_channels=len(data.bands), n_classes=2, seed=seed, width="slim")
    if result is not None:
        networks.load_encoder(network, _encoder_weights(result.folder, data))
    return network.encoder.eval()


def probe_layers(
    result: Result | None, data: PatchSet, *, encoder: str, n_pixels: int, seed: int
) -> dict[str, np.ndarray]:
    """Probe every layer of what a result trained for the exact classes; fitted once and then read from disk.

    Probes learn from the scenes for fine-tuning and are judged on the test scenes.

    Args:
        result: A pretraining; without it the random encoder of that seed is probed.
        data: The patches.
        encoder: Encoder name.
        n_pixels: Pixels drawn from each of the two splits.
        seed: Of the draw, and of the random encoder.

    Returns:
        For each layer the (K, K) counts on the test pixels, rows exact, columns predicted.
    """
    key = {
        "measures": "linear probes",
        "encoder": result.run.key if result else f"{encoder}, random",
        "data": data.fingerprint,
        "n_pixels": n_pixels,
        "seed": seed,
        "code": patches.code_digest(probing, networks, training),
    }

    def build() -> dict[str, list[list[int]]]:
        module, parts = encoder_of(result, data, encoder=encoder, seed=seed), map(data.split, ("finetune", "test"))
        rng = np.random.default_rng(seed)
        counts = probing.probe_layers(module, *parts, "exact", n_pixels=n_pixels, rng=rng)
        return {layer: table.tolist() for layer, table in counts.items()}

    return {layer: np.array(table) for layer, table in cached(key, build).items()}


def table(results: Sequence[Result]) -> pd.DataFrame:
    """Return one row per result: what was asked, what came out, what it cost, and the keys to trace it by."""
    rows = []
    for result in results:
        run = result.run
        rows.append(
            {
                "data": run.data,
                "stage": run.stage,
                "arm": run.arm,
                "decoder": run.decoder,
                "frozen": run.frozen,
                "budget": run.budget,
                "seed": run.seed,
                "miou": result.mean_iou(),
                "validation_miou": result.mean_iou("validation"),
                "steps": run.steps,
                "image_passes": run.image_passes,
                "seconds": result.seconds,
                "parameters": result.parameters,
                "run": run.key,
                "pretraining": run.parent.key if run.parent else "",
            }
        )
    return pd.DataFrame(rows)


def stack(results: Sequence[Result], **fixed) -> np.ndarray:
    """Stack the test counts of the results whose run has these fields, ordered by seed: (S, C, K, K).

    Raises:
        ValueError: No result fits.
    """
    chosen = [r for r in results if all(getattr(r.run, name) == value for name, value in fixed.items())]
    if not chosen:
        raise ValueError(f"no result with {fixed}")
    return np.stack([result.scene_counts() for result in sorted(chosen, key=lambda r: r.run.seed)])


def watched() -> bool:
    """Whether a person watches: a terminal, or a kernel that a Jupyter server started."""
    return bool(os.environ.get("JPY_SESSION_NAME")) or ("ipykernel" not in sys.modules and sys.stderr.isatty())


def _train(run: Run, data: PatchSet, store: Path) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train what the run describes; return the module whose weights are kept, and the loss curve."""
    plan = training.Plan(
        steps=run.steps,
        batch_size=run.batch_size,
        learning_rate=run.learning_rate,
        precision=run.precision,
        seed=run.seed,
    )
    chosen = data.split(run.stage)
    if run.budget is not None:
        chosen = chosen.budget(run.budget, run.seed)
    if run.arm == "moco" and run.stage == "pretrain":
        trained = _Encoder(_build(run, data, "unet", 2).encoder)
        queue = max(run.batch_size, min(256, len(chosen) // 3))  # shorter than an epoch by far: see MoCo
        objective = objectives.MoCo(trained.encoder, seed=run.seed, queue=queue)
        return trained, training.fit(objective, chosen, "noisy", plan)
    network = _build(run, data, run.decoder, run.classes)
    if run.parent is not None:
        networks.load_encoder(network, _encoder_weights(store / run.parent.key, data))
    if run.frozen:
        networks.freeze_encoder(network)
    return network, training.fit(objectives.Supervised(network), chosen, run.target, plan)


def _evaluate(run: Run, trained: nn.Module, data: PatchSet) -> dict[str, dict[str, list[list[int]]]]:
    """Count predictions against the exact masks, in the legend the network predicts, per split and scene."""
    if not run.target or (run.target == "noisy" and not data.comparable):
        return {}
    counts = {}
    for split in ("validation", "test"):
        part = data.split(split)
        exact = part.masks["exact"] if run.target == "exact" else part.exact_as_noisy()
        scenes = training.evaluate(trained, part, exact, run.classes, precision=run.precision)
        counts[split] = {scene: table.tolist() for scene, table in scenes.items()}
    return counts


class _Encoder(nn.Module):
    """Holds an encoder alone, so that its weights are stored under the same names as in a whole network."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder


def _build(run: Run, data: PatchSet, decoder: str, classes: int) -> nn.Module:
    return networks.build(
        run.encoder, decoder, in_channels=len(data.bands), n_classes=classes, seed=run.seed, width=run.width
    )


def _encoder_weights(folder: Path, data: PatchSet) -> dict[str, torch.Tensor]:
    state, _ = weights.load(folder, data)
    return weights.encoder_part(state)


def _parents_first(runs: Sequence[Run]) -> list[Run]:
    ordered = {}
    for run in runs:
        if run.parent is not None:
            ordered[run.parent.key] = run.parent
    for run in runs:
        ordered.setdefault(run.key, run)
    return list(ordered.values())


def _on_cluster(missing: Sequence[Run], workers: int, store: Path) -> Iterator[Result]:
    """Compute runs on a local Dask cluster, yielding each as it finishes."""
    settings = {
        "temporary-directory": str(ROOT / "data" / "cache" / "dask"),
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": 1,
        # Dask has workers hand memory back at once, which makes every training step fault its pages in again: keeping
        # it trains 1.7 times as fast.
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 2**30,
        "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 2**30,
        "distributed.logging.distributed": "error",
    }
    with (
        dask.config.set(settings),
        LocalCluster(min(workers, len(missing)), threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        futures = {}
        for run in missing:
            after = futures.get(run.parent.key) if run.parent else None
            futures[run.key] = client.submit(_task, run, store, after, key=run.key, retries=1)
        for future in as_completed(futures.values()):
            yield future.result()


def _task(run: Run, store: Path, parent: Result | None) -> Result:
    """Execute on a worker; `parent` only makes Dask wait for it."""
    return execute(run, store)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _code() -> str:
    """Digest of what computes a result from its patches; how those were cut is in their own fingerprint."""
    reading = (PatchSet.take, PatchSet.split, PatchSet.budget, PatchSet.exact_as_noisy, patches._spread)
    parts = (objectives.masks, objectives.objective, objectives.selfsupervised, objectives.views)
    return patches.code_digest(networks, training, *parts, *reading, _train, _evaluate)[:16]


def _precision(asked: str) -> str:
    return training.fastest_precision() if asked == "auto" else asked


def _provenance() -> dict[str, str]:
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "processor": training.processor(),
        **{name: version(name) for name in _PACKAGES},
    }


def _summary(result: Result) -> str:
    score = f"mIoU {result.mean_iou():.3f}" if result.counts else f"loss {result.curve[-1]['loss']:.3f}"
    return f"{score}, {result.seconds:.1f} s"


def _log(store: Path, line: str) -> None:
    with open(store / "log.txt", "a") as file:
        file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")
