"""Layer by layer: what is asked of the layers of stored networks, answered once and then read from disk.

A `Question` describes what is measured on which runs; `ask` answers many, those that are new side by side. Networks are
whole ones with a decoder, and predict the classes of the patches' noisy map; so must the exact masks (`in_legend`).
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nbutils import batches, evaluation, execution, networks, objectives, patches, probing, statistics, study, training
from nbutils.disk import code_digest
from nbutils.patches import PatchSet
from nbutils.store import RUNS, Result, Run, cached, is_cached, read
from nbutils.workers import mapper

Answer = dict[str, NDArray]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Question:
    """What is measured.

    Attributes:
        what: Name of the measurement.
        runs: The networks it is about; the first is the one that is taken apart.
        fingerprint: Of the patches.
        settings: Numbers that the answer depends on.
        store: Folder of the results.
    """

    what: str
    runs: tuple[Run, ...]
    fingerprint: str
    settings: tuple[tuple[str, Any], ...]
    store: Path = RUNS

    @property
    def key(self) -> dict[str, Any]:
        """Everything that determines the answer."""
        return {
            "measures": self.what,
            "runs": [run.key for run in self.runs],
            "data": self.fingerprint,
            **dict(self.settings),
            "code": _code(self.what),
        }


def probes(result: Result, data: PatchSet, *, n_pixels: int, seed: int, split: str = "test") -> Question:
    """Ask what a linear probe of each layer maps right.

    Probes learn from the scenes for fine-tuning and are judged on others, against the exact masks.

    Args:
        result: A network.
        data: The patches.
        n_pixels: Pixels drawn from each.
        seed: Of the draw.
        split: The scenes to judge on: ``test``, or ``validation`` for what is to be decided before the test.

    Returns:
        Answered by (C, K, K) counts of every layer, rows exact, columns predicted.
    """
    return _question("probes", data, result, n_pixels=n_pixels, seed=seed, split=split)


def errors(result: Result, data: PatchSet, *, n_pixels: int, seed: int) -> Question:
    """Ask what the layers say about mislabelled pixels of the patches that it learned from, see `probing.probe_errors`.

    Returns:
        Answered by (C, 3) counts of every layer: as labelled, as is true, otherwise. Arguments as of `probes`.
    """
    return _question("errors", data, result, n_pixels=n_pixels, seed=seed)


def similarity(first: Result, second: Result, data: PatchSet, *, n_pixels: int, seed: int) -> Question:
    """Ask how alike two networks are on the test scenes; answered by the CKA of every layer, arguments as above."""
    return _question("similarity", data, first, second, n_pixels=n_pixels, seed=seed)


def swaps(result: Result, donor: Result, data: PatchSet, *, n_patches: int = 96) -> Question:
    """Ask what becomes of a network's map of the test scenes if one layer is the donor's, see `probing.swap`.

    Returns:
        Answered by (C, K, K) counts for every layer.
    """
    return _question("swaps", data, result, donor, n_patches=n_patches)


def retrained(result: Result, data: PatchSet, *, budget: int, steps: int, batch_size: int, seed: int) -> Question:
    """Ask what becomes of the map if one layer starts anew and alone learns from `budget` exactly labelled patches.

    Returns:
        Answered by (C, K, K) counts of the test scenes for every layer, see `probing.retrain_layer`.
    """
    return _question("retrained", data, result, budget=budget, steps=steps, batch_size=batch_size, seed=seed)


def ask(questions: Mapping[Name, Question], *, workers: int = 2) -> dict[Name, Answer]:
    """Answer questions under their names; those that are new side by side in `workers` processes of one thread.

    Raises:
        StoreError: A network is not stored, or a stored answer cannot be read.
        RuntimeError: A script without a main guard asks for processes.
    """
    new = {str(question.key): question for question in questions.values() if not is_cached(question.key)}
    if new:
        with mapper(min(workers, len(new))) as each:
            list(each(_answer, list(new.values())))
    return {name: _answer(question) for name, question in questions.items()}


@cache
def _code(what: str) -> str:
    return code_digest(*_CODE[what], _MEASURES[what], networks, batches)


def _question(what: str, data: PatchSet, *results: Result, **settings: Any) -> Question:
    runs = tuple(result.run for result in results)
    return Question(what, runs, data.fingerprint, tuple(settings.items()), results[0].folder.parent)


def _answer(question: Question) -> Answer:
    def build() -> list[tuple[str, list]]:
        with execution.one_thread():
            data = patches.load(question.fingerprint)
            results = [read(run, question.store) for run in question.runs]
            seen = study.prepared(results[0].folder, data)
            built = [study.network_of(result, data) for result in results]
            said = _MEASURES[question.what](seen, results[0].run, *built, **dict(question.settings))
            return [(layer, np.asarray(value).tolist()) for layer, value in said.items()]

    return {layer: np.array(value) for layer, value in cached(question.key, build)}


def _probes(data: PatchSet, run: Run, network: nn.Module, *, n_pixels: int, seed: int, split: str) -> Answer:
    rng, judges = np.random.default_rng(seed), {split: data.split(split)}
    return probing.probe_layers(network, data.split("finetune"), judges, "exact", n_pixels=n_pixels, rng=rng)[split]


def _errors(data: PatchSet, run: Run, network: nn.Module, *, n_pixels: int, seed: int) -> Answer:
    seen = data.split("pretrain")
    seen = seen if run.budget is None else seen.budget(run.budget, run.seed)
    return probing.probe_errors(network, seen, n_pixels=n_pixels, rng=np.random.default_rng(seed))


def _similarity(
    data: PatchSet, run: Run, first: nn.Module, second: nn.Module, *, n_pixels: int, seed: int
) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return probing.cka_layers(first, second, data.split("test"), n_pixels=n_pixels, rng=rng)


def _swaps(data: PatchSet, run: Run, network: nn.Module, donor: nn.Module, *, n_patches: int) -> Answer:
    seen = data.split("pretrain")
    seen = seen.budget(min(n_patches, len(seen)), seed=0)
    return {
        layer: _test_counts(probing.swap(network, donor, layer, seen), data, run)
        for layer in probing.layer_names(network)
    }


def _retrained(
    data: PatchSet, run: Run, network: nn.Module, *, budget: int, steps: int, batch_size: int, seed: int
) -> Answer:
    rate = study.LEARNING_RATES["finetune"]
    plan = training.Plan(steps, batch_size, rate, run.precision, seed)
    few, fresh = data.split("finetune").budget(budget, seed), _untrained(run, data)
    counts = {}
    for layer in probing.layer_names(network):
        mended, _ = probing.retrain_layer(network, layer, few, "exact", plan, build=fresh)
        counts[layer] = _test_counts(mended, data, run)
    return counts


def _untrained(run: Run, data: PatchSet) -> Callable[..., nn.Module]:
    settings = {"in_channels": len(data.bands), "n_classes": run.classes, "width": run.width}
    return partial(networks.build, run.encoder, run.decoder, **settings)


def _test_counts(network: nn.Module, data: PatchSet, run: Run) -> NDArray[np.int64]:
    """(C, K, K) counts of the test scenes, rows exact."""
    test = data.split("test")
    with torch.no_grad():
        tallies = evaluation.evaluate(network, test, test.masks["exact"], run.classes, precision=run.precision)
    return np.stack([tallies[scene].confusion for scene in sorted(tallies)])


_MEASURES: dict[str, Callable[..., Answer]] = {
    "probes": _probes,
    "errors": _errors,
    "similarity": _similarity,
    "swaps": _swaps,
    "retrained": _retrained,
}
_DRAWN = (PatchSet.budget, patches._spread)
_MAPS = (probing.layers, probing.surgery, evaluation, _test_counts, *_DRAWN)
_CODE = {
    "probes": (*probing.PROBES, statistics.confusion_counts),
    "errors": (*probing.PROBES, *_DRAWN),
    "similarity": (probing.layers, probing.similarity),
    "swaps": _MAPS,
    "retrained": (*_MAPS, training, objectives.Supervised, _untrained),
}
