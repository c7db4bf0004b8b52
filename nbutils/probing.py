"""What each layer knows: linear probes on frozen features, and similarity of features between networks.

Layers are the encoder's stages by name. Features are read at the stage's own resolution; a pixel's feature is that of
the cell it lies in, so that probes never see an interpolated class.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from nbutils import statistics
from nbutils.batches import normalise
from nbutils.legend import VOID
from nbutils.patches import PatchSet


def layer_names(encoder: nn.Module) -> tuple[str, ...]:
    """Return the names of an encoder's stages from shallow to deep: ``stem``, ``stage1``, ... (the input is none)."""
    return ("stem", *(f"stage{i}" for i in range(1, len(encoder.out_channels) - 1)))


def features_at(
    encoder: nn.Module, patches: PatchSet, layer: str, pixels: NDArray[np.intp], *, batch_size: int = 32
) -> NDArray[np.float32]:
    """Read a layer's features at chosen pixels, batch by batch.

    Args:
        encoder: In evaluation mode.
        patches: N patches of (h, w) pixels.
        layer: One of `layer_names`.
        pixels: (n, 3) patch, row, column of each pixel, sorted by patch.
        batch_size: Patches held at a time.

    Returns:
        (n, channels) float32.

    Raises:
        ValueError: The layer is unknown; the message lists the known ones.
    """
    names = layer_names(encoder)
    if layer not in names:
        raise ValueError(f"unknown layer {layer!r}; this encoder has {', '.join(names)}")
    return _features(encoder, patches, pixels, batch_size)[layer]


@torch.no_grad()
def _features(
    encoder: nn.Module, patches: PatchSet, pixels: NDArray[np.intp], batch_size: int = 32
) -> dict[str, NDArray[np.float32]]:
    """Read every layer's features at the pixels in one pass over the patches."""
    names = layer_names(encoder)
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for start in range(0, len(patches), batch_size):
        own = pixels[(pixels[:, 0] >= start) & (pixels[:, 0] < start + batch_size)]
        if not len(own):
            continue
        images = torch.as_tensor(np.ascontiguousarray(patches.images[start : start + batch_size]))
        for name, maps in zip(names, encoder(normalise(images, patches))[1:], strict=True):
            rows = own[:, 1] * maps.shape[2] // patches.patch_px
            columns = own[:, 2] * maps.shape[3] // patches.patch_px
            parts[name].append(maps[own[:, 0] - start, :, rows, columns].float().numpy())
    return {name: np.concatenate(each) for name, each in parts.items()}


def sample_pixels(
    mask: NDArray[np.uint8], n: int, rng: np.random.Generator, where: NDArray[np.bool_] | None = None
) -> NDArray[np.intp]:
    """Draw up to `n` valid pixels of (N, h, w) masks, without repeats: (n, 3) patch, row, column, sorted."""
    eligible = mask != VOID if where is None else (mask != VOID) & where
    index = np.flatnonzero(eligible)
    chosen = np.sort(rng.choice(index, size=min(n, len(index)), replace=False))
    return np.stack(np.unravel_index(chosen, mask.shape), axis=1)


def linear_probe(features: NDArray[np.float32], labels: NDArray[np.integer]):
    """Fit multinomial logistic regression to standardised features; returns an object with `predict`.

    Newton's method reaches the optimum in a few steps, where quasi-Newton ones crawl along correlated channels; it
    needs a square matrix of the size of channels times classes, so wide layers fall back to L-BFGS.
    """
    wide = features.shape[1] * len(np.unique(labels)) > 4000
    regression = LogisticRegression(C=1.0, solver="lbfgs" if wide else "newton-cholesky", max_iter=2000)
    return make_pipeline(StandardScaler(), regression).fit(features, labels)


def probe_layers(
    encoder: nn.Module,
    train: PatchSet,
    judges: Mapping[str, PatchSet],
    target: str,
    *,
    n_pixels: int,
    rng: np.random.Generator,
) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Probe every layer of a frozen encoder for the classes of `target`.

    Args:
        encoder: In evaluation mode.
        train: Patches whose pixels the probe learns from.
        judges: Patches of other scenes, on which it is judged, under any names.
        target: ``noisy`` or ``exact``.
        n_pixels: Pixels drawn from each set of patches, the same for every layer.
        rng: Source of randomness.

    Returns:
        For each judge and layer (C, K, K) counts of the pixels of every scene, scenes by name; rows exact, columns
        predicted.
    """
    fit_at = sample_pixels(train.masks[target], n_pixels, rng)
    asked_at = {name: sample_pixels(part.masks[target], n_pixels, rng) for name, part in judges.items()}
    known, n_classes = _features(encoder, train, fit_at), len(train.legend_of(target))
    probes = {layer: linear_probe(known[layer], train.masks[target][tuple(fit_at.T)]) for layer in known}
    counts = {}
    for name, part in judges.items():
        asked, truth = _features(encoder, part, asked_at[name]), part.masks[target][tuple(asked_at[name].T)]
        own = [part.scenes[asked_at[name][:, 0]] == scene for scene in np.unique(part.scenes)]
        said = {layer: probe.predict(asked[layer]) for layer, probe in probes.items()}
        counts[name] = {
            layer: np.stack([statistics.confusion_counts(each[at], truth[at], n_classes) for at in own])
            for layer, each in said.items()
        }
    return counts


def cka(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Linear centred kernel alignment of two sets of features of the same samples, debiased.

    Uses the unbiased estimator of HSIC (Song et al. 2012; for CKA: Nguyen et al. 2021): with n samples and p features
    the biased form gives about p / (n + p) for independent features, where this one gives 0.

    Args:
        a: (n, p) features, n >= 4.
        b: (n, q) features of the same n samples.

    Returns:
        1 for features equal up to rotation and scale, about 0 for independent ones; NaN for constant features.
    """
    if len(a) != len(b) or len(a) < 4:
        raise ValueError(f"need the same n >= 4 samples in both, got {len(a)} and {len(b)}")
    kernels = [_hollow_kernel(np.asarray(features, dtype=np.float64)) for features in (a, b)]
    ab, aa, bb = (_hsic(kernels[i], kernels[j]) for i, j in ((0, 1), (0, 0), (1, 1)))
    return float(ab / np.sqrt(aa * bb)) if aa > 0 and bb > 0 else float("nan")


def cka_layers(
    first: nn.Module, second: nn.Module, patches: PatchSet, *, n_pixels: int, rng: np.random.Generator
) -> dict[str, float]:
    """Compare two encoders layer by layer on the same pixels."""
    pixels = sample_pixels(np.zeros(patches.masks["exact"].shape, np.uint8), n_pixels, rng)
    ours, theirs = (_features(encoder, patches, pixels) for encoder in (first, second))
    return {layer: cka(ours[layer], theirs[layer]) for layer in ours}


def _hollow_kernel(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear kernel of centred features with a zero diagonal, (n, n)."""
    features = features - features.mean(axis=0)
    kernel = features @ features.T
    np.fill_diagonal(kernel, 0.0)
    return kernel


def _hsic(k: NDArray[np.float64], m: NDArray[np.float64]) -> float:
    """Unbiased estimate of HSIC from two hollow kernels, up to the common factor 1 / (n (n - 3))."""
    n = len(k)
    cross = (k * m).sum()
    totals = k.sum() * m.sum() / ((n - 1) * (n - 2))
    rows = 2 * (k.sum(axis=0) @ m.sum(axis=0)) / (n - 2)
    return cross + totals - rows
