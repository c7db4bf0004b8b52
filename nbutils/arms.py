"""Arms: what an encoder sees before it is fine-tuned, by which objective it learns, and how fast."""

import inspect
import sys
from types import ModuleType

from torch import nn

from nbutils import objectives
from nbutils.objectives import Objective

SELF_SUPERVISED = {"moco": objectives.MoCo, "dino": objectives.DINO, "vicregl": objectives.VICRegL}
REMEDIES = {f"noisy+{name}": remedy for name, remedy in objectives.REMEDIES.items()}
ARMS = ("random", *SELF_SUPERVISED, "noisy", *REMEDIES, "exact")
# Peak rates of AdamW, chosen by the same search for every arm on the city's validation scenes: tools/rates.py.
# Supervised arms and remedies share one rate, so that they differ in their labels alone.
LEARNING_RATES = {"moco": 2e-3, "dino": 6e-3, "vicregl": 2e-3, "noisy": 6e-3, "exact": 6e-3, "finetune": 1.2e-2}
_OWN = ("nbutils.objectives.", "nbutils.memorisation")


def check(arm: str) -> None:
    """Refuse what is no arm, or learns nothing.

    Raises:
        ValueError: The arm is unknown; the message lists those that pretrain.
    """
    if arm not in ARMS[1:]:
        raise ValueError(f"unknown arm {arm!r}; those that pretrain: {', '.join(ARMS[1:])}")


def target_of(arm: str) -> str:
    """Return the masks an arm learns from: ``noisy``, ``exact``, or nothing for self-supervision."""
    check(arm)
    return "" if arm in SELF_SUPERVISED else arm.partition("+")[0]


def rate_of(arm: str) -> float:
    """Return the peak learning rate of an arm's pretraining."""
    check(arm)
    return LEARNING_RATES[arm.partition("+")[0]]


def objective_of(arm: str, network: nn.Module, *, seed: int, n_places: int, batch_size: int) -> Objective:
    """Return what an arm learns by.

    Args:
        arm: One that pretrains.
        network: What it trains, in place: an encoder for self-supervision, else a segmentation network.
        seed: Of everything random in the objective.
        n_places: How many places it sees; patches of one place on several dates count once.
        batch_size: Patches of a step.
    """
    check(arm)
    if arm == "moco":  # the queue is shorter than an epoch by far, or a place would be repelled by its own key
        return objectives.MoCo(network, seed=seed, queue=max(batch_size, min(256, n_places // 3)))
    if arm in SELF_SUPERVISED:
        return SELF_SUPERVISED[arm](network, seed=seed)
    return REMEDIES.get(arm, objectives.Supervised)(network)


def code_of(arm: str) -> list[ModuleType]:
    """Return the modules that an arm's objective is made of, by name; fine-tuning is plainly supervised."""
    first = {**SELF_SUPERVISED, **REMEDIES}.get(arm, objectives.Supervised)
    waiting, found = [inspect.getmodule(first)], {}
    while waiting:
        module = waiting.pop()
        if module.__name__ not in found:
            found[module.__name__] = module
            waiting += [sys.modules[name] for name in _homes(module) if name.startswith(_OWN)]
    return [found[name] for name in sorted(found)]


def _homes(module: ModuleType) -> set[str]:
    """Names of the modules that a module's names come from, or are."""
    values = vars(module).values()
    return {v.__name__ if isinstance(v, ModuleType) else getattr(v, "__module__", None) or "" for v in values}
