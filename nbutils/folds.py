"""Out-of-fold predictions: every patch is judged by a network that saw nothing of its scene.

A network that learned from a label, right or wrong, repeats it. Only held-out predictions can say which labels look
wrong, and since neighbouring patches share their errors, whole scenes are held out.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import nn

from nbutils import networks, objectives, training
from nbutils.batches import normalise
from nbutils.patches import PatchSet


def by_scene(scenes: NDArray[np.str_], k: int, *, rng: np.random.Generator) -> NDArray[np.intp]:
    """Deal scenes out to `k` folds of about as many patches.

    Args:
        scenes: Scene of every patch, shape (N,).
        k: Number of folds, 2 or more.
        rng: Breaks ties among scenes.

    Returns:
        Fold 0..k-1 of every patch, shape (N,).

    Raises:
        ValueError: there are fewer scenes than folds.
    """
    names, which, sizes = np.unique(scenes, return_inverse=True, return_counts=True)
    if not 2 <= k <= len(names):
        raise ValueError(f"k is 2..{len(names)}, one scene per fold or more; got {k} folds for {len(names)} scenes")
    fold, load = np.zeros(len(names), np.intp), np.zeros(k, np.intp)
    shuffled = rng.permutation(len(names))
    for scene in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:  # the largest first, each to the emptiest fold
        fold[scene] = load.argmin()
        load[fold[scene]] += sizes[scene]
    return fold[which]


def out_of_fold(
    data: PatchSet,
    k: int,
    plan: training.Plan,
    encoder: str,
    *,
    target: str = "noisy",
    decoder: str = "unet",
    width: str = "slim",
    out: NDArray[np.float16] | None = None,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float16]:
    """Predict every patch with a network trained on the scenes of the other folds.

    Args:
        data: Patches; take a split first, for all of them are learned from.
        k: Number of folds by scene.
        plan: Of each of the k trainings; its seed also decides the folds and the initial weights.
        encoder: Name of the encoder; a small one on few steps finds wrong labels before it learns them by heart.
        target: Masks to learn, ``noisy`` or ``exact``.
        decoder: As in `networks.build`.
        width: As in `networks.build`.
        out: Where to write, e.g. a memory map; a new array if None.
        progress: Called with the number of every fold that is done.

    Returns:
        Class probabilities, (N, K, h, w), in half precision to save memory; they sum to 1 within its rounding.

    Raises:
        ValueError: fewer scenes than folds, or `out` has another shape.
    """
    n_classes = len(data.legend_of(target))
    shape = (len(data), n_classes, *data.masks[target].shape[1:])
    out = np.empty(shape, np.float16) if out is None else out
    if out.shape != shape:
        raise ValueError(f"out is of shape {out.shape}, the probabilities of {shape}")
    folds = by_scene(data.scenes, k, rng=np.random.default_rng(plan.seed))
    for number in range(k):
        held_out = np.flatnonzero(folds == number)
        network = networks.build(
            encoder, decoder, in_channels=len(data.bands), n_classes=n_classes, seed=plan.seed, width=width
        )
        own = replace(plan, seed=plan.seed + number)
        training.fit(objectives.Supervised(network), data.take(np.flatnonzero(folds != number)), target, own)
        _predict(network, data, held_out, out, precision=plan.precision)
        if progress is not None:
            progress(number)
    return out


@torch.no_grad()
def _predict(
    network: nn.Module, data: PatchSet, index: NDArray[np.intp], out: NDArray, *, precision: str, batch_size: int = 64
) -> None:
    """Write the probabilities of the patches at `index` into their places in `out`."""
    fabric = Fabric(accelerator="auto", devices=1, precision=training.PRECISIONS[precision])
    network = network.to(fabric.device, memory_format=torch.channels_last).eval()
    for start in range(0, len(index), batch_size):
        part = index[start : start + batch_size]
        raw = torch.as_tensor(np.ascontiguousarray(data.images[part]), device=fabric.device)
        with fabric.autocast():
            logits = network(normalise(raw, data))
        out[part] = logits.float().softmax(dim=1).cpu().numpy()
