"""Training: `training.fit` against the shortest loop in plain PyTorch, and against torchgeo where it is installed.

All run on one thread, as the study's runs do, and are measured in seconds of its core. Ours draws, turns and normalises
its patches, has cross-entropy + Dice as its loss, and watches its accuracy. The bare loop has one fixed batch, the
same network, precision and layout, a fused optimiser, and cross-entropy alone. torchgeo's task runs under Lightning's
`Trainer` as it comes (fp32 is its default), without its logger, checkpoints and progress bar, on normalised patches in
memory.
"""

import importlib
import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.racing import Row, ratios, rounds, speeds
from nbutils import batches, networks, objectives, training
from nbutils.execution import one_thread
from nbutils.legend import VOID
from nbutils.patches import PatchSet

BATCH, STEPS, CLASSES, RATE = 16, 8, 8, 1e-3


def bench(data: PatchSet, encoder: str, precision: str, *, repeats: int = 3) -> list[Row]:
    """Speeds and ratios of one precision, with torchgeo's where it is installed.

    Args:
        data: Patches to learn from.
        encoder: Of the U-Net.
        precision: ``fp32`` or ``bf16``.
        repeats: Rounds that count.
    """
    what = f"U-Net {encoder}, {data.patch_px} px, {precision}"
    ours, bare, theirs = f"train {what}", f"- bare loop, {what}", f"- torchgeo under Lightning, {precision}"
    learn = fitting(data, encoder, precision)
    runners: dict[str, Callable[[], object]] = {ours: lambda: learn(data), bare: _bare(data, encoder, precision)}
    pairs = {f"- as fast as the bare loop, {precision}": (ours, bare)}
    if rival_installed():
        runners[theirs] = _torchgeo(data, encoder, precision)
        pairs[f"- as fast as torchgeo, {precision}"] = (ours, theirs)
    with one_thread():
        seconds = rounds(runners, repeats, time.process_time)
    return speeds("images/s", STEPS * BATCH, seconds) + ratios(pairs, seconds)


def rival_installed() -> bool:
    """Whether torchgeo can be compared with."""
    return importlib.util.find_spec("torchgeo") is not None


def _network(data: PatchSet, encoder: str) -> torch.nn.Module:
    return networks.build(encoder, "unet", in_channels=len(data.bands), n_classes=CLASSES, seed=0)


def fitting(data: PatchSet, encoder: str, precision: str, steps: int = STEPS) -> Callable[[PatchSet], object]:
    """How a U-Net is trained on patches like these."""
    plan = training.Plan(steps=steps, batch_size=BATCH, learning_rate=RATE, precision=precision, seed=0)
    objective = objectives.Supervised(_network(data, encoder))
    return lambda data: training.fit(objective, data, "exact", plan)


def _bare(data: PatchSet, encoder: str, precision: str) -> Callable[[], object]:
    network = _network(data, encoder).to(memory_format=torch.channels_last).train()
    images, masks, _ = next(batches.Batches(data, "exact", batch_size=BATCH, seed=0))
    masks = masks.long()

    def loop() -> None:
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, fused=True)
        for _ in range(STEPS):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = F.cross_entropy(network(images), masks, ignore_index=VOID)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return loop


def _torchgeo(data: PatchSet, encoder: str, precision: str) -> Callable[[], object]:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    build = importlib.import_module("torchgeo.trainers").SemanticSegmentationTask  # no dependency of ours: by name
    trainer = importlib.import_module("lightning.pytorch").Trainer
    settings = {"model": "unet", "backbone": encoder, "in_channels": len(data.bands), "num_classes": CLASSES}
    task = build(**settings, loss="ce", ignore_index=VOID, lr=RATE)
    # Its schedule wants a validation, which would cost time: its optimiser alone.
    task.configure_optimizers = lambda: torch.optim.AdamW(task.parameters(), lr=RATE)
    images = batches.normalise(torch.as_tensor(data.images), data).contiguous()
    masks = torch.as_tensor(data.masks["exact"]).long()
    samples = [{"image": image, "mask": mask} for image, mask in zip(images, masks, strict=True)] * STEPS
    loader = DataLoader(samples, batch_size=BATCH, shuffle=True)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    how = {"precision": training.PRECISIONS[precision], "default_root_dir": tempfile.gettempdir()} | quiet

    def loop() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few workers and no validation
            trainer(max_steps=STEPS, **how).fit(task, loader)

    return loop
