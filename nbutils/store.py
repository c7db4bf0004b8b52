"""The result store: a run, its key, its result on disk.

A `Run` is everything that determines a result. Its canonical JSON is hashed to a key; the result lives in
``data/runs/<key>/`` as ``run.json``, ``weights.safetensors`` and ``card.json``. A result is written under a temporary
name, flushed and renamed, so that it is whole or absent, and two processes that compute the same run do no harm.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from torch import Tensor

from nbutils import ROOT, disk, statistics, weights

RUNS = ROOT / "data" / "runs"
MEASURED = ROOT / "data" / "cache" / "measured"
_DIGEST = "sha256"  # of all else in a record
ENCODER = "encoder"  # what is carried over unless told otherwise


class StoreError(RuntimeError):
    """A stored run cannot be read or written, or is not the run that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that determines a result.

    Attributes:
        stage: ``pretrain``, ``finetune``, or ``elsewhere`` for an encoder that others trained.
        data: Name of the data set.
        fingerprint: SHA-256 of its patches.
        arm: What the encoder saw before fine-tuning, one of `nbutils.arms.ARMS`.
        encoder: Encoder name.
        decoder: Decoder name, empty where none is trained (self-supervision).
        width: Decoder width, ``slim`` or ``full``.
        target: Masks learned from, ``noisy`` or ``exact``, empty for self-supervision.
        classes: Number of classes predicted, 0 where none are.
        budget: Number of labelled patches; None for the whole split.
        frozen: Whether the encoder's weights and BatchNorm statistics stay fixed.
        steps: Optimiser steps.
        batch_size: Patches per step.
        learning_rate: Peak learning rate.
        seed: Of weights, order, augmentation and the draw of the budget.
        precision: ``fp32`` or ``bf16``.
        code: Digest of the code that computes results.
        parent: The pretraining whose encoder is carried over; None for a random encoder.
        looks: How often the network is judged on the validation scenes while it learns, for the learning curve.
        carried: What of the parent is carried over, by the name of the last layer that is: ``encoder``, or a layer
            before or behind its end; what comes after starts at random.
        stop: Step after which training ends early, on the schedule of all `steps`; None trains to the end.
        monitored: Whether each look also measures, layer by layer, how easily the network would memorise.
    """

    stage: str
    data: str
    fingerprint: str
    arm: str
    encoder: str
    decoder: str
    width: str
    target: str
    classes: int
    budget: int | None
    frozen: bool
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    precision: str
    code: str
    parent: "Run | None" = None
    looks: int = 0
    carried: str = ENCODER
    stop: int | None = None
    monitored: bool = False

    @property
    def key(self) -> str:
        """The run's name in the store: the first 20 hex digits of the SHA-256 of its canonical JSON."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:20]

    @property
    def image_passes(self) -> int:
        """Number of patches drawn in training; arms compared with one another have the same."""
        return (self.stop or self.steps) * self.batch_size

    def __str__(self) -> str:
        words = [self.stage, self.data, self.arm, self.decoder]
        if self.stage == "finetune":
            words += [f"{self.budget} patches", "frozen" if self.frozen else "fine-tuned"]
        return " ".join(word for word in [*words, f"seed {self.seed}"] if word)


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        run: The run.
        counts: Per split and scene a (K, K) table of pixel counts, rows exact, columns predicted; empty where no
            masks are predicted or none can judge them. `boundary` and `calibration` alike, see `evaluation.Tally`.
        curve: Loss over training, and what was seen besides, as `training.fit` gives it.
        seconds: Wall time of training and evaluation.
        parameters: Number of weights.
        provenance: Machine, packages, code and time, see `provenance.record`; older records hold less.
        folder: Where it is stored.
    """

    run: Run
    counts: dict[str, dict[str, list[list[int]]]]
    boundary: dict[str, dict[str, list[list[int]]]]
    calibration: dict[str, dict[str, list[list[float]]]]
    curve: list[dict[str, float]]
    seconds: float
    parameters: int
    provenance: dict[str, Any]
    folder: Path

    def scene_counts(self, split: str = "test", of: str = "counts") -> np.ndarray:
        """Return a table for each of a split's scenes, in the order of their names.

        Args:
            split: ``validation`` or ``test``.
            of: ``counts`` (C, K, K) int64; ``boundary`` (C, K, 3) int64, for `statistics.boundary_iou`; or
                ``calibration`` (C, 15, 3) float64, for `statistics.calibration_error`.
        """
        tables = getattr(self, of)[split]
        stacked = np.array([tables[scene] for scene in sorted(tables)])
        if of != "boundary":
            return stacked
        exact = self.scene_counts(split).sum(axis=2)
        return np.concatenate([stacked, exact[..., None]], axis=2)

    def mean_iou(self, split: str = "test") -> float:
        """Return the mean IoU of a split, pixels pooled over its scenes; NaN where nothing is predicted."""
        return float(statistics.mean_iou(self.scene_counts(split).sum(axis=0))) if self.counts else float("nan")


def read(run: Run, store: Path = RUNS) -> Result:
    """Read a stored result.

    Raises:
        StoreError: It is not there, cannot be read, was changed since it was written, or belongs to another run.
    """
    folder = store / run.key
    try:
        record = json.loads((folder / "run.json").read_text())
        if record.pop(_DIGEST, None) not in (None, digest_of(record)):  # older records have none
            raise ValueError("its content is not what its SHA-256 says")
        stored = record.pop("run")
        result = Result(run=run, folder=folder, **record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{folder / 'run.json'} cannot be read ({error}); delete the folder and run again") from error
    if stored != asdict(run):
        raise StoreError(f"{folder} holds another run; delete the folder and run again")
    return result


def recall(key: str, store: Path = RUNS) -> Run:
    """Return the run whose result is stored under a key, by its own record.

    Raises:
        StoreError: It is not there, cannot be read, or is not the run of that key.
    """
    path = store / key / "run.json"
    try:
        run = described(json.loads(path.read_text())["run"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} cannot be read ({error}); give the key of a run that is stored there") from error
    if run.key != key:
        raise StoreError(f"{path} describes run {run.key}: it was changed, or moved; delete the folder and run again")
    return run


def described(fields: Mapping[str, Any]) -> Run:
    """Return the run that a record's fields describe; KeyError or TypeError where they describe none."""
    return Run(**{**fields, "parent": fields["parent"] and described(fields["parent"])})


def check_code(results: Iterable[Result]) -> None:
    """Refuse to compare results that different versions of the code computed.

    The code of a run differs between arms, and with carried layers and monitoring, by right; runs are held against
    those of their own kind. Parents count.

    Raises:
        ValueError: Runs of one kind are of several versions; the message names both groups.
    """
    versions: dict[tuple, dict[str, list[Run]]] = {}
    runs = (run for result in results for run in (result.run, result.run.parent) if run is not None)
    for run in dict.fromkeys(runs):
        versions.setdefault(_kind(run), {}).setdefault(run.code, []).append(run)
    for groups in versions.values():
        if len(groups) > 1:
            told = [f"code {code}: {len(each)} ({each[0]}, run {each[0].key}, ...)" for code, each in groups.items()]
            raise ValueError(
                f"results of different versions of the code cannot be compared: {'; '.join(told)}. Describe all runs "
                "anew with the code of today and pass them to `run_many`, which computes those that are missing"
            )


def _kind(run: Run) -> tuple:
    """What the code of a run depends on by right: fine-tuning is the same for all arms."""
    if run.stage == "finetune":
        return run.stage, run.carried == ENCODER
    return run.stage, run.arm, run.monitored, run.encoder if run.stage == "elsewhere" else ""


def write(store: Path, key: str, record: dict, state: Mapping[str, Tensor], card: weights.WeightCard) -> None:
    """Write a result under a temporary name, flush it, rename it.

    Raises:
        StoreError: The store cannot be written.
    """
    record = {**record, _DIGEST: digest_of(record)}
    with writing(store / key), disk.scratch_folder(store) as scratch:
        weights.save(scratch, state, card)
        disk.write_text(scratch / "run.json", json.dumps(record, indent=1) + "\n")
        disk.publish(scratch, store / key)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file or folder is written into an error that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} cannot be written ({error}); make room, or make it writable, and go on") from error


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of what JSON tells: the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_cached(key: Mapping[str, Any], *, folder: Path | None = None) -> bool:
    """Whether `cached` would read the answer back; arguments as there."""
    return _place(key, folder).exists()


def _place(key: Mapping[str, Any], folder: Path | None) -> Path:
    return (folder or MEASURED) / f"{digest_of(key)[:20]}.json"


def cached(key: Mapping[str, Any], build: Callable[[], Any], *, folder: Path | None = None) -> Any:
    """Return what `build` computes, read back from disk where that was done before.

    Args:
        key: Everything that determines the answer, digests of data and code included; JSON types.
        build: Called without arguments where no answer is stored; its answer consists of JSON types.
        folder: Where answers are kept, `MEASURED` if left out.

    Returns:
        The answer as JSON gives it back, the first time too: tuples as lists, keys as strings.

    Raises:
        StoreError: A stored answer cannot be read, or was changed since it was written.
    """
    path = _place(key, folder)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"key": dict(key), "answer": build()}
        disk.write_json(path, {**record, _DIGEST: digest_of(record)})
    try:
        record = json.loads(path.read_text())
        if record.pop(_DIGEST, None) not in (None, digest_of(record)):
            raise ValueError("its content is not what its SHA-256 says")
        return record["answer"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read ({error}); delete it and run again") from error
