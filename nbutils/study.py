"""The experiment: describe runs, execute one, execute many at once, put their results in a table.

Asking for a run whose result is stored costs a file read, so notebooks share results and an interrupted study goes on
where it stopped.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from nbutils import (
    arms,
    batches,
    checkpoint,
    elsewhere,
    evaluation,
    execution,
    networks,
    patches,
    probing,
    shards,
    statistics,
    tasks,
    training,
    watching,
    weights,
)
from nbutils.arms import ARMS, LEARNING_RATES
from nbutils.disk import code_digest
from nbutils.execution import build, encoder_weights, execute, prepared, run_many, watched
from nbutils.legend import VOID
from nbutils.patches import PatchSet
from nbutils.shards import blocks
from nbutils.store import ENCODER, RUNS, Result, Run, cached, check_code, read

__all__ = [
    "ARMS",
    "Cell",
    "LEARNING_RATES",
    "Result",
    "Run",
    "arms_of",
    "code_of",
    "encoder_of",
    "execute",
    "finetuning",
    "grid",
    "modules_of",
    "network_of",
    "precision_of",
    "prepared",
    "pretraining",
    "probe_layers",
    "published",
    "read",
    "run_many",
    "stack",
    "table",
    "watched",
]


def arms_of(data: PatchSet, wanted: Sequence[str]) -> list[str]:
    """Return ``random`` and the arms wanted, without `exact` where pretraining scenes have no exact masks.

    Raises:
        ValueError: An arm is unknown.
    """
    for arm in wanted:
        arms.check(arm)
    known = any((block != VOID).any() for _, block in blocks(data.split("pretrain").masks["exact"]))
    return ["random", *(arm for arm in dict.fromkeys(wanted) if arm != "exact" or known)]


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
    budget: int | None = None,
    looks: int = 0,
    stop: int | None = None,
    monitored: bool = False,
) -> Run:
    """Describe the pretraining of one arm.

    Args:
        data: The patches.
        arm: One of `ARMS` that pretrains.
        encoder: Encoder name.
        width: Decoder width, ``slim`` or ``full``.
        steps: Optimiser steps.
        batch_size: Patches per step.
        seed: Of everything random.
        precision: ``fp32``, ``bf16`` or ``auto``, the faster one.
        learning_rate: Peak rate; the arm's own when left out.
        budget: Number of patches it sees; all when left out.
        looks: How often the network is judged on the validation scenes while it learns; changes nothing else.
        stop: Step after which training ends early, on the schedule of all `steps`; None trains to the end.
        monitored: Whether each look also measures how easily every layer would memorise, see `probing.Monitor`.

    Raises:
        ValueError: The arm is unknown, or one without masks is monitored.
    """
    if monitored and not (arms.target_of(arm) and looks):
        raise ValueError(f"{arm} cannot be monitored: it needs an arm that learns from masks, and looks")
    target = arms.target_of(arm)
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
        budget=budget,
        frozen=False,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate or arms.rate_of(arm),
        seed=seed,
        precision=precision_of(precision),
        code=_code(arm, monitored=monitored),
        looks=looks,
        stop=stop,
        monitored=monitored,
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
    carried: str = ENCODER,
) -> Run:
    """Describe fine-tuning on `budget` exactly labelled patches, with a new decoder on the parent's encoder.

    Args:
        data: The patches.
        parent: The pretraining; None for a random encoder.
        encoder: Encoder name.
        width: Decoder width, ``slim`` or ``full``.
        decoder: One of `networks.DECODERS`.
        budget: Number of exactly labelled patches.
        frozen: Whether the encoder's weights and BatchNorm statistics stay fixed.
        steps: Optimiser steps.
        batch_size: Patches per step.
        seed: Of everything random.
        precision: ``fp32``, ``bf16`` or ``auto``, the faster one.
        learning_rate: Peak rate; that of the study when left out.
        carried: The last layer that is carried over, by its name in `probing.layer_names`; what follows starts at
            random. Layers of the decoder only fit where the parent has the same decoder.

    Raises:
        ValueError: Something is to be carried from no parent, or part of a frozen encoder.
    """
    if carried != ENCODER and (parent is None or (frozen and carried.startswith(("stem", "stage")))):
        raise ValueError(f"carrying layers up to {carried!r} needs a parent, and a frozen encoder is carried whole")
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
        precision=precision_of(precision),
        code=_code("exact", carried),
        parent=parent,
        carried=carried,
    )


class Cell(NamedTuple):
    """A point of the experiment: what an encoder is fine-tuned for, under which decoder, how, and on how much.

    Attributes:
        task: `tasks.OWN`, or one that the data set's card names.
        decoder: One of `networks.DECODERS`.
        budget: Exactly labelled patches.
        frozen: Whether the encoder stays as it was pretrained.
        carried: The last layer that is carried over, see `finetuning`.
    """

    task: str = tasks.OWN
    decoder: str = "unet"
    budget: int = 16
    frozen: bool = False
    carried: str = ENCODER


def grid(
    slices: Sequence[Mapping[str, Any]], arms: Sequence[str], *, usual: Sequence[str], most: int
) -> dict[Cell, list[str]]:
    """Lay out an experiment from slices through it: its cells, and the arms that are compared in each.

    Args:
        slices: Each gives fields of `Cell` a value, or a list of values that are crossed; the others stay as they are
            there. ``arms`` may name the arms of a slice; a cell of several slices compares the arms of all.
        arms: All there are.
        usual: Arms of the slices that name none.
        most: Patches that are labelled exactly. A larger budget, or ``all``, becomes this many.

    Returns:
        The arms of each cell, both in their order.

    Raises:
        ValueError: A slice names an unknown field or an arm that is not there, gives no value, or a budget that is no
            number of patches; or the usual arms are not all there.
    """
    cells: dict[Cell, list[str]] = {}
    for one in slices:
        axes = {axis: value if isinstance(value, list) else [value] for axis, value in one.items()}
        if empty := [axis for axis, values in axes.items() if not values]:
            raise ValueError(f"slice {dict(one)}: {', '.join(empty)} has no value")
        here = axes.pop("arms", usual)
        if lacking := [arm for arm in here if arm not in arms]:
            raise ValueError(f"slice {dict(one)}: no arm {', '.join(map(str, lacking))}; there are {', '.join(arms)}")
        if unknown := sorted(axes.keys() - set(Cell._fields)):
            raise ValueError(f"slice {dict(one)}: no field {', '.join(unknown)}; there are {', '.join(Cell._fields)}")
        axes["budget"] = [_budget(value, most) for value in axes.get("budget", [Cell().budget])]
        for point in itertools.product(*axes.values()):
            held = cells.setdefault(Cell(**dict(zip(axes, point, strict=True))), [])
            held += [arm for arm in here if arm not in held]
    return {cell: [arm for arm in arms if arm in held] for cell, held in cells.items()}


def _budget(asked: int | str, most: int) -> int:
    if asked != "all" and (not isinstance(asked, int) or asked < 1):
        raise ValueError(f"a budget is a number of patches or `all`, got {asked!r}")
    return most if asked == "all" else min(asked, most)


def published(data: PatchSet, name: str, *, encoder: str, file: str | Path | None = None, store: Path = RUNS) -> Run:
    """Put weights that others trained into the store, as a parent for `finetuning`.

    Their own normalisation goes with them: what is fine-tuned from them is prepared like what they were trained on.

    Args:
        data: The patches, whose bands the weights are fitted to.
        name: One of `elsewhere.PUBLISHED`.
        encoder: Encoder name, of those that `name` has.
        file: Safetensors file; fetched where it is published as such when left out.
        store: Folder of the results.

    Raises:
        WeightsError: The weights do not fit or cannot be had; the message says what to do.
    """
    state, card = elsewhere.load(name, encoder=encoder, bands=data.bands, scale=data.scale, file=file and Path(file))
    run = Run(
        stage="elsewhere",
        data=data.name,
        fingerprint=data.fingerprint,
        arm=name,
        encoder=encoder,
        decoder="",
        width="",
        target="",
        classes=0,
        budget=None,
        frozen=False,
        steps=0,
        batch_size=0,
        learning_rate=0.0,
        seed=0,
        precision="",
        code=f"{card.run} {code_digest(elsewhere)[:16]}",
    )
    if not (store / run.key).is_dir():
        execution.keep(run, {f"encoder.{key}": value for key, value in state.items()}, card, store)
    return run


def network_of(result: Result, data: PatchSet) -> nn.Module:
    """Rebuild the segmentation network of a supervised result with its trained weights."""
    run = result.run
    state, _ = weights.load(result.folder, data)
    network = build(run, data, run.decoder, run.classes)
    network.load_state_dict(state)
    return network.eval()


def encoder_of(result: Result | None, data: PatchSet, *, encoder: str, seed: int = 0) -> nn.Module:
    """Return the encoder a result trained; without a result the random one of that seed, settled on the images."""
    network = networks.build(encoder, "unet", in_channels=len(data.bands), n_classes=2, seed=seed, width="slim")
    if result is None:
        training.settle(network.encoder, data.split("pretrain"))
    else:
        networks.load_encoder(network, encoder_weights(result.folder, data))
    return network.encoder.eval()


def probe_layers(
    result: Result | None, data: PatchSet, *, encoder: str, n_pixels: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Probe every layer of what a result trained for the exact classes; fitted once and then read from disk.

    Probes learn from the scenes for fine-tuning.

    Args:
        result: A pretraining; without it the random encoder of that seed is probed.
        data: The patches.
        encoder: Encoder name.
        n_pixels: Pixels drawn from each split.
        seed: Of the draw, and of the random encoder.

    Returns:
        For the splits ``test`` and ``validation`` and each layer (C, K, K) counts of the pixels of every scene, rows
        exact, columns predicted. To choose a layer is the business of the validation scenes.
    """
    key = {
        "measures": "linear probes by split and scene",
        "encoder": result.run.key if result else f"{encoder}, random",
        "data": data.fingerprint,
        "n_pixels": n_pixels,
        "seed": seed,
        "code": code_digest(*probing.PROBES, networks, batches, training.settle),
    }

    def build() -> dict[str, list]:
        with execution.one_thread():
            module, rng = encoder_of(result, data, encoder=encoder, seed=seed), np.random.default_rng(seed)
            seen = data if result is None else prepared(result.folder, data)
            judges = {split: seen.split(split) for split in ("test", "validation")}
            counts = probing.probe_layers(module, seen.split("finetune"), judges, "exact", n_pixels=n_pixels, rng=rng)
        # as lists, since JSON is stored with sorted keys
        return {split: [[layer, table.tolist()] for layer, table in each.items()] for split, each in counts.items()}

    return {split: {layer: np.array(t) for layer, t in each} for split, each in cached(key, build).items()}


def table(results: Sequence[Result]) -> pd.DataFrame:
    """Return one row per result: what was asked, what came out, what it cost, and the keys to trace it by.

    Raises:
        ValueError: Results are of different versions of the code.
    """
    check_code(results)
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
        ValueError: No result fits, or they are of different versions of the code.
    """
    check_code(results)
    chosen = [r for r in results if all(getattr(r.run, name) == value for name, value in fixed.items())]
    if not chosen:
        raise ValueError(f"no result with {fixed}")
    return np.stack([result.scene_counts() for result in sorted(chosen, key=lambda r: r.run.seed)])


def code_of(run: Run) -> str:
    """Return the digest of the code that would compute a run now, to be held against its own."""
    if run.stage == "elsewhere":
        return f"{run.code.split()[0]} {code_digest(elsewhere)[:16]}"
    return _code(*_kind_of(run))


def modules_of(run: Run) -> list[str]:
    """Return the names of the modules that hold the code which computes a run, sorted."""
    parts = (elsewhere,) if run.stage == "elsewhere" else _parts(*_kind_of(run))
    return sorted({part.__name__ if isinstance(part, ModuleType) else part.__module__ for part in parts})


def _kind_of(run: Run) -> tuple[str, str, bool]:
    return ("exact", run.carried, False) if run.stage == "finetune" else (run.arm, ENCODER, run.monitored)


@cache
def _code(arm: str, carried: str = ENCODER, monitored: bool = False) -> str:
    """Digest of what computes a result of an arm from its patches; how those were cut is in their own fingerprint."""
    return code_digest(*_parts(arm, carried, monitored))[:16]


def _parts(arm: str, carried: str, monitored: bool) -> tuple[ModuleType | type | Callable, ...]:
    partly = () if carried == ENCODER else (probing.layers, probing.carry)
    partly += (probing.layers, probing.susceptibility, execution._judge) if monitored else ()
    reading = (shards, PatchSet.take, PatchSet.split, PatchSet.budget, PatchSet.exact_as_noisy, patches._spread)
    running = (execution.build, execution.prepared, execution._train, execution._evaluate)
    counting = (execution._tallies, statistics.confusion_counts)
    passing = (encoder_weights, weights.encoder_part, arms.objective_of, *partly)
    loop = (training, batches, checkpoint, watching, evaluation)
    return (networks, *loop, *arms.code_of(arm), *reading, *running, *counting, *passing)


def precision_of(asked: str) -> str:
    """Return the precision that ``auto`` stands for on this machine; others as they are."""
    return training.fastest_precision() if asked == "auto" else asked
