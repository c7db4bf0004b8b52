"""The training loop and the evaluation, the same for every arm, on Lightning Fabric.

Everything here is a function of its arguments: randomness comes in as a seed or a generator, data as a `PatchSet`,
precision as a word. Patches are held in memory and augmented as whole batches, which on a CPU beats worker processes.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from nbutils import ROOT, networks, objectives, statistics
from nbutils.patches import PatchSet

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
_MIN_GAIN = (
    1.2  # bf16 must be faster than fp32 by this factor: a narrow win would flip from one measurement to the next
)


logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision at every set-up


class TrainingError(RuntimeError):
    """The training went wrong in a way that makes its result worthless."""


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
    """

    steps: int
    batch_size: int
    learning_rate: float
    precision: str
    seed: int
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}")
        if self.steps < 1 or self.batch_size < 2:
            raise ValueError(f"need steps >= 1 and batch_size >= 2 (BatchNorm), got {self.steps} and {self.batch_size}")


def fit(objective: objectives.Objective, patches: PatchSet, target: str, plan: Plan) -> list[dict[str, float]]:
    """Train an objective in place.

    Args:
        objective: Module whose ``forward(images, masks)`` is the loss; its frozen weights stay as they are.
        patches: What it sees.
        target: Which masks it is given, ``noisy`` or ``exact``.
        plan: Steps, batch size, learning rate, precision and seed.

    Returns:
        The loss over training, at most 50 points, each the mean since the one before: ``step`` and ``loss``.

    Raises:
        TrainingError: The loss is no longer finite; the message names the step.
    """
    fabric = Fabric(accelerator="auto", devices=1, precision=PRECISIONS[plan.precision])
    objective.to(memory_format=torch.channels_last)
    weights = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan.steps))
    module, optimizer = fabric.setup(objective, optimizer)
    every, curve, losses = max(1, plan.steps // 50), [], []
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)  # dropout and the contrastive queue draw from the global generator
        module.train()
        for step, (images, masks) in enumerate(batches(patches, target, plan, fabric.device), start=1):
            objective.done = (step - 1) / plan.steps
            loss = module(torch.stack([images, images]) if objective.paired else images, masks)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.detach())
            if step % every == 0 or step == plan.steps:
                mean = torch.stack(losses).mean().item()
                if not np.isfinite(mean):
                    raise TrainingError(f"the loss is {mean} at step {step} of {plan.steps}; lower the learning rate")
                curve.append({"step": step, "loss": mean})
                losses = []
    objective.to("cpu")
    return curve


def batches(
    patches: PatchSet, target: str, plan: Plan, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `plan.steps` batches of normalised, randomly turned patches.

    The order is a new permutation each epoch, joined end to end, so that every patch is seen equally often (to within
    one) however many steps there are.

    Yields:
        images: (n, B, h, w) float32, channels last, per band zero mean and unit variance over the pretraining patches.
        masks: (n, h, w) uint8.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    images = torch.as_tensor(np.ascontiguousarray(patches.images), device=device)
    masks = torch.as_tensor(np.ascontiguousarray(patches.masks[target]), device=device)
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(plan.steps):
        while len(waiting) < plan.batch_size:
            waiting = torch.cat([waiting, torch.randperm(len(patches), generator=generator)])
        index, waiting = waiting[: plan.batch_size].to(device), waiting[plan.batch_size :]
        turned, mask = random_turn(images[index], masks[index], generator)
        yield normalise(turned, patches), mask


def normalise(images: Tensor, patches: PatchSet) -> Tensor:
    """Scale (n, B, h, w) raw values to zero mean and unit variance per band, float32, channels last."""
    mean = torch.tensor(patches.mean, device=images.device).view(-1, 1, 1)
    std = torch.tensor(patches.std, device=images.device).view(-1, 1, 1)
    scaled = (images.float() / patches.scale - mean) / std
    return scaled.contiguous(memory_format=torch.channels_last)


def random_turn(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turn each square patch by a random multiple of 90 degrees and mirror half of them; no pixel is interpolated."""
    turn = torch.randint(8, (len(images),), generator=generator).tolist()
    out_images, out_masks = torch.empty_like(images), torch.empty_like(masks)
    for i, k in enumerate(turn):
        image, mask = images[i].rot90(k % 4, (-2, -1)), masks[i].rot90(k % 4, (-2, -1))
        out_images[i], out_masks[i] = (image.flip(-1), mask.flip(-1)) if k >= 4 else (image, mask)
    return out_images, out_masks


@torch.no_grad()
def predict(
    network: nn.Module, patches: PatchSet, *, precision: str = "fp32", batch_size: int = 64
) -> NDArray[np.uint8]:
    """Return the most probable class of every pixel, (N, h, w) uint8, from the network in evaluation mode."""
    fabric = Fabric(accelerator="auto", devices=1, precision=PRECISIONS[precision])
    network = network.to(fabric.device, memory_format=torch.channels_last).eval()
    parts = []
    for start in range(0, len(patches), batch_size):
        raw = torch.as_tensor(np.ascontiguousarray(patches.images[start : start + batch_size]), device=fabric.device)
        with fabric.autocast():
            logits = network(normalise(raw, patches))
        parts.append(logits.argmax(dim=1).to("cpu", torch.uint8).numpy())
    return np.concatenate(parts)


def evaluate(
    network: nn.Module,
    patches: PatchSet,
    target: NDArray[np.uint8],
    n_classes: int,
    *,
    precision: str = "fp32",
) -> dict[str, NDArray[np.int64]]:
    """Count predictions against a target, scene by scene.

    Args:
        network: Predicts `n_classes` classes.
        patches: The images, with their scenes.
        target: (N, h, w) uint8 masks to compare with, 255 = void.
        n_classes: K.
        precision: As in `Plan`.

    Returns:
        For each scene a (K, K) table of counts, rows the target's class, columns the predicted one.
    """
    prediction = predict(network, patches, precision=precision)
    scenes = {}
    for scene in np.unique(patches.scenes):
        own = patches.scenes == scene
        scenes[str(scene)] = statistics.confusion_counts(prediction[own], target[own], n_classes)
    return scenes


def fastest_precision() -> str:
    """Return ``bf16`` where it trains clearly faster than ``fp32`` on this machine, else ``fp32``.

    Measured once on one thread with a small network and remembered under ``data/cache`` for this processor and this
    PyTorch. On a GPU the answer is whether it computes in bf16.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    memory = ROOT / "data" / "cache" / "precision.json"
    machine = f"{processor()}, torch {torch.__version__}"
    known = json.loads(memory.read_text()) if memory.exists() else {}
    if machine not in known:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the runs do
        seconds = {precision: min(_seconds_per_step(precision) for _ in range(3)) for precision in PRECISIONS}
        torch.set_num_threads(threads)
        gain = seconds["fp32"] / seconds["bf16"]
        known[machine] = {"precision": "bf16" if gain >= _MIN_GAIN else "fp32", "gain": round(gain, 2)}
        memory.parent.mkdir(parents=True, exist_ok=True)
        scratch = memory.with_name(f".precision.{os.getpid()}")
        scratch.write_text(json.dumps(known, indent=1) + "\n")
        os.replace(scratch, memory)
    return known[machine]["precision"]


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
