"""The training loop, the same for every arm, on Lightning Fabric.

Everything here is a function of its arguments: randomness comes in as a seed, data as a `PatchSet`, precision as a
word.
"""

import json
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from nbutils import ROOT, networks, objectives
from nbutils import checkpoint as checkpoints
from nbutils.batches import Batches, normalise
from nbutils.compat import keep_memory
from nbutils.disk import write_json
from nbutils.evaluation import PRECISIONS
from nbutils.files import alone
from nbutils.objectives import together
from nbutils.patches import PatchSet
from nbutils.shards import Shards
from nbutils.watching import Watch, look

_MIN_GAIN = (
    1.2  # bf16 must be faster than fp32 by this factor: a narrow win would flip from one measurement to the next
)


logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision at every set-up


class TrainingError(RuntimeError):
    """The training went wrong in a way that makes its result worthless."""


class SharingError(ValueError):
    """Several processes cannot train this together; the message says why."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn.

    Attributes:
        steps: Number of optimiser steps.
        batch_size: Patches per step.
        learning_rate: Peak rate of AdamW, reached after a tenth of the steps, then a cosine to zero.
        precision: ``fp32`` or ``bf16`` (autocast).
        seed: Of batch order, augmentation, dropout and the queue.
        weight_decay: Of AdamW.
        stop: Step after which training ends early, on the schedule of all `steps`; None trains to the end.
    """

    steps: int
    batch_size: int
    learning_rate: float
    precision: str
    seed: int
    weight_decay: float = 1e-4
    stop: int | None = None

    @property
    def last(self) -> int:
        """The step that training ends with."""
        return self.steps if self.stop is None else self.stop

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}")
        if self.steps < 1 or self.batch_size < 2:
            raise ValueError(f"need steps >= 1 and batch_size >= 2 (BatchNorm), got {self.steps} and {self.batch_size}")
        if not 1 <= self.last <= self.steps:
            raise ValueError(f"training stops at one of its {self.steps} steps, got stop={self.stop}")


def fit(
    objective: objectives.Objective,
    patches: PatchSet,
    target: str,
    plan: Plan,
    *,
    truth: NDArray[np.uint8] | Shards | None = None,
    judge: Callable[[], dict[str, float]] | None = None,
    looks: int = 10,
    checkpoint: Path | None = None,
    tag: str = "",
    save_every_s: float = 60.0,
    fabric: Fabric | None = None,
) -> list[dict[str, float]]:
    """Train an objective in place; what was killed goes on from its last checkpoint, on a CPU to the same bits.

    Nothing of watching and saving changes what is learned.

    Args:
        objective: Module whose ``forward(images, masks)`` is the loss; its frozen weights stay as they are. All that
            its next loss depends on is in its `state_dict`.
        patches: What it sees.
        target: Which masks it is given, ``noisy`` or ``exact``.
        plan: Steps, batch size, learning rate, precision and seed.
        truth: (N, h, w) uint8 masks in the target's legend, 255 = void, to compare with; they enter no loss.
        judge: Called with the objective in evaluation mode; returns numbers for the curve.
        looks: How often it is called, evenly over the curve, the last time after the last step.
        checkpoint: File of the checkpoint, of this training alone. It stays after the last step, for the caller to
            remove once what came out is safe; after a `TrainingError` it is gone.
        tag: What determines the result besides the arguments above, such as the key of the run: with another tag, and
            where the file is damaged, training starts anew.
        save_every_s: Least seconds between two checkpoints.
        fabric: Of the processes that train together, launched, of the plan's precision: all call this alike, and each
            learns from its share of every batch. Only the first asks the judge and saves. Left out, this process trains
            alone, on whatever device there is.

    Returns:
        At most 50 points over training: ``step`` and ``loss``, the mean since the point before. Where the objective
        predicts masks, shares of pixels since then: ``accuracy`` against the masks it was given; with a truth
        ``truth_accuracy`` and, of the pixels whose label differs from the truth, those predicted as the label says,
        ``wrong_as_labelled``, and as the truth says, ``wrong_as_truth``. A share of no pixels is left out. Last what
        the judge said.

    Raises:
        ValueError: The truth is not of the masks' shape and type, or the fabric not of the plan's precision.
        SharingError: Several processes cannot share the objective or the batches, or do not see the same checkpoint.
        TrainingError: The loss is no longer finite; the message names the step.
    """
    given = patches.masks[target]
    if truth is not None and (truth.shape != given.shape or truth.dtype != np.uint8):
        raise ValueError(f"truth must be uint8 {given.shape} like the {target} masks, got {truth.dtype} {truth.shape}")
    loop = _Loop(objective, patches, target, plan, truth, fabric or alone_on(plan.precision))
    first = loop.fabric.is_global_zero
    ends = [step for step in curve_steps(plan.steps) if step < plan.last] + [plan.last]
    looked = set() if judge is None else _spaced(ends, looks)
    owner = json.dumps(
        [tag, loop.about(), patches.fingerprint, len(patches), target, truth is not None, sorted(looked)]
    )
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)  # dropout and the contrastive queue draw from the global generator
        if checkpoint is not None and (saved := checkpoints.load(checkpoint, owner)) is not None:
            loop.load_state_dict(saved)
        loop.check_together()
        try:
            clock = time.monotonic()
            while loop.step < plan.last:
                loop.learn()
                if loop.step in ends:
                    loop.curve.append(loop.point())
                if loop.step in looked and first:
                    loop.curve[-1] = {**look(objective, judge), **loop.curve[-1]}
                if checkpoint is not None and first and time.monotonic() - clock >= save_every_s:
                    checkpoints.save(checkpoint, owner, loop.state_dict())
                    clock = time.monotonic()
        except TrainingError:
            if checkpoint is not None and first:
                checkpoints.remove(checkpoint)
            raise
    objective.to("cpu")
    return loop.curve


class _Loop:
    """What changes from step to step, and the step.

    Arguments as of `fit`.
    """

    def __init__(
        self,
        objective: objectives.Objective,
        patches: PatchSet,
        target: str,
        plan: Plan,
        truth: NDArray[np.uint8] | Shards | None,
        fabric: Fabric,
    ) -> None:
        keep_memory()
        self.fabric = fabric
        with fabric.autocast():
            if torch.is_autocast_enabled(fabric.device.type) != (plan.precision == "bf16"):
                raise ValueError(f"the plan's precision is {plan.precision}, that of the fabric is another")
        if fabric.world_size > 1:
            _share(objective.to(fabric.device), plan, fabric.world_size)
        self.objective, self.plan = objective.to(memory_format=torch.channels_last), plan
        weights = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: _rate(step, plan.steps))
        self.module, self.stepper = self.fabric.setup(objective, self.optimizer)
        self.module.train()
        settings = {"batch_size": plan.batch_size, "seed": plan.seed, "paired": objective.paired, "truth": truth}
        settings["share"] = (fabric.global_rank, fabric.world_size)
        self.batches = Batches(patches, target, device=self.fabric.device, **settings)
        self.step, self.watch = 0, Watch(partial(fabric.all_reduce, reduce_op="sum"))
        self.curve: list[dict[str, float]] = []
        self.losses: list[Tensor] = []  # since the last point of the curve

    def learn(self) -> None:
        """Take one step."""
        objective = self.objective
        objective.done, objective.logits = self.step / self.plan.steps, None
        images, masks, truth = next(self.batches)
        with together.sharing(self.fabric.world_size):
            loss = self.module(images, masks)
            self.fabric.backward(loss)
        self.stepper.step()
        self.stepper.zero_grad()
        self.schedule.step()
        self.step += 1
        self.losses.append(self.fabric.all_reduce(loss.detach()))
        if objective.logits is not None:
            self.watch.add(objective.logits, masks, truth)

    def check_together(self) -> None:
        """See to it that all processes are at the same step."""
        step = torch.tensor(float(self.step), device=self.fabric.device)
        if self.fabric.all_reduce(step).item() != self.step:
            told = f"process {self.fabric.global_rank} goes on from step {self.step}, others do not"
            raise SharingError(f"{told}: checkpoints must be on a file system that all of them see")

    def point(self) -> dict[str, float]:
        """Return what is known since the last point of the curve."""
        mean = torch.stack(self.losses).mean().item()
        if not np.isfinite(mean):
            where = f"at step {self.step} of {self.plan.steps}"
            raise TrainingError(f"the loss is {mean} {where}; lower the learning rate")
        self.losses = []
        return {"step": self.step, "loss": mean, **self.watch.take()}

    def about(self) -> list:
        """Describe what a checkpoint must have come from to fit."""
        state = self.objective.state_dict()
        shapes = {name: list(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
        return [asdict(self.plan), str(torch.__version__), self.fabric.device.type, sorted(state), shapes]

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on, and the curve so far."""
        return {
            "objective": dict(self.objective.state_dict()),
            "buffers": _unlisted(self.objective),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "batches": self.batches.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if self.fabric.device.type == "cuda" else None,
            "step": self.step,
            "curve": self.curve,
            "losses": self.losses,
            "watch": self.watch.counts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.objective.load_state_dict(state["objective"])
        for name, value in state["buffers"].items():
            self.objective.get_buffer(name).copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, own in self.optimizer.state.items():
            for name, value in own.items():
                if value.shape == parameter.shape:  # the fused kernel takes moments to lie in memory as weights do
                    own[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        self.schedule.load_state_dict(state["schedule"])
        self.batches.load_state_dict(state["batches"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"])
        device = self.fabric.device
        self.step, self.curve = state["step"], state["curve"]
        self.losses = [loss.to(device) for loss in state["losses"]]
        self.watch.counts = None if state["watch"] is None else state["watch"].to(device)


def alone_on(precision: str) -> Fabric:
    """One process, on an accelerator where there is one."""
    return Fabric(accelerator="auto", devices=1, precision=PRECISIONS[precision])


def _share(objective: objectives.Objective, plan: Plan, processes: int) -> None:
    """Prepare an objective for several processes, in place."""
    if not objective.shared:
        raise SharingError(f"{type(objective).__name__} needs its whole batch in one process; train it in one")
    if plan.batch_size % processes:
        raise SharingError(f"{processes} processes cannot share batches of {plan.batch_size} patches evenly")
    try:
        objectives.share_statistics(objective)
    except ValueError as error:
        raise SharingError(str(error)) from None


def _unlisted(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that `state_dict` leaves out, such as the queue of keys in lightly's memory bank."""
    listed = module.state_dict().keys()
    return {name: value for name, value in module.named_buffers() if name not in listed}


@torch.no_grad()
def settle(module: nn.Module, patches: PatchSet, *, n_patches: int = 256, batch_size: int = 32) -> None:
    """Set the BatchNorm statistics of a module to those of images, from the first `n_patches`; no label is read.

    An untrained encoder's own statistics are zeros and ones, which no image has: frozen like that it would be judged by
    features that hardly vary. The module is left in the mode it was in.
    """
    mode = module.training
    starts = range(0, min(n_patches, len(patches)), batch_size)
    raw = (torch.as_tensor(np.ascontiguousarray(patches.images[i : i + batch_size])) for i in starts)
    update_bn((normalise(images, patches) for images in raw), module)
    module.train(mode)


def curve_steps(steps: int) -> list[int]:
    """Return the steps at which the curve has its points: at most 50, evenly, the last step among them."""
    every = -(-steps // 50)
    return sorted({*range(every, steps + 1, every), steps})


def _spaced(ends: list[int], n: int) -> set[int]:
    """Pick those of the curve's steps that lie nearest to `n` even ones, the last among them."""
    return {min(ends, key=lambda end: abs(end - share * ends[-1])) for share in np.arange(1, n + 1) / n}


def fastest_precision() -> str:
    """Return ``bf16`` where it trains clearly faster than ``fp32`` on this machine, else ``fp32``.

    Measured once on one thread with a small network and remembered under ``data/cache`` for this processor and this
    PyTorch. On a GPU the answer is whether it computes in bf16.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    memory = ROOT / "data" / "cache" / "precision.json"
    machine = f"{processor()}, torch {torch.__version__}"
    memory.parent.mkdir(parents=True, exist_ok=True)
    with alone(memory.parent):  # two that measure at once would measure one another
        known = _remembered(memory)
        if machine not in known:
            known[machine] = _measured()
            write_json(memory, known)
    return known[machine]["precision"]


def _remembered(memory: Path) -> dict[str, dict]:
    """What was measured before; nothing where the file is missing or damaged, since measuring again costs seconds."""
    try:
        known = json.loads(memory.read_text())
        return {name: each for name, each in known.items() if each["precision"] in PRECISIONS}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def _measured() -> dict[str, str | float]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the runs do
    try:
        seconds = {precision: min(_seconds_per_step(precision) for _ in range(3)) for precision in PRECISIONS}
    finally:
        torch.set_num_threads(threads)
    gain = seconds["fp32"] / seconds["bf16"]
    return {"precision": "bf16" if gain >= _MIN_GAIN else "fp32", "gain": round(gain, 2)}


def _seconds_per_step(precision: str, steps: int = 4) -> float:
    network = networks.build("resnet18", "unet", in_channels=4, n_classes=8, seed=0, width="slim")
    objective = objectives.Supervised(network).to(memory_format=torch.channels_last)
    images = torch.rand(8, 4, 64, 64).contiguous(memory_format=torch.channels_last)
    masks = torch.zeros(8, 64, 64, dtype=torch.uint8)
    for step in range(steps + 1):
        if step == 1:
            start = time.perf_counter()  # the first step sets up the kernels
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = objective(images, masks)
        loss.backward()
    return (time.perf_counter() - start) / steps


def processor() -> str:
    """Return the processor's name and capabilities, which decide the fastest precision."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line.partition(":")[2].strip() for line in file if line.startswith(("model name", "flags"))]
        name = lines[0] + (" amx" if "amx_bf16" in lines[1].split() else "")
    except (OSError, IndexError):
        pass  # not Linux, or a processor that describes itself otherwise: the plain name will do
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up over a tenth of the steps, then a cosine to zero."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm)))
