"""Linear probes: what a layer lets anyone read, and where the errors of the labels are stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import nn

from nbutils import statistics
from nbutils.legend import VOID
from nbutils.patches import PatchSet
from nbutils.probing.layers import features, layer_names, sample_pixels, stream

_CLOSE = 1e-6  # largest entry of the gradient at the end; the mean loss is then within about 1e-6 of its least
_FLAT = 1e-6  # standard deviation, relative to the mean, below which a feature is a constant


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features.

    Attributes:
        classes: (K,) the labels it can say.
        mean, std: (p,) of the features it was fitted to.
        weights: (p, K) for standardised features.
        intercept: (K,)
        loss: What was minimised: mean cross-entropy plus ``|weights|^2 / (2 n)``.
    """

    classes: NDArray[np.integer]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    weights: NDArray[np.float64]
    intercept: NDArray[np.float64]
    loss: float

    def scores(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return (n, K) logits of (n, p) features."""
        return (features - self.mean) / self.std @ self.weights + self.intercept

    def predict(self, features: NDArray[np.floating]) -> NDArray[np.integer]:
        """Return the most probable label for each of (n, p) features."""
        return self.classes[self.scores(features).argmax(axis=1)]


def linear_probe(features: NDArray[np.floating], labels: NDArray[np.integer]) -> LinearProbe:
    """Fit multinomial logistic regression with a ridge to standardised features, to the optimum.

    The objective is scikit-learn's with ``C=1``: summed cross-entropy plus half the squared weights, intercept free.
    L-BFGS crawls along correlated channels and Newton's method needs a matrix of channels times classes; here L-BFGS
    works in coordinates in which the curvature at zero weights is the identity, which needs one matrix of channels.

    Args:
        features: (n, p).
        labels: (n,) labels of at least two classes.

    Raises:
        ValueError: There is a single class, or no label.
    """
    classes, ids = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"a probe needs labels of two classes or more, got {classes.tolist()}; draw more pixels")
    values = np.asarray(features, dtype=np.float64)
    mean, std = values.mean(axis=0), values.std(axis=0)
    std = np.where(std > _FLAT * np.abs(mean), std, 1.0)
    n, p, k = *values.shape, len(classes)
    inputs = np.hstack([(values - mean) / std, np.ones((n, 1))])
    ridge = np.append(np.ones(p), 0.0)[:, None]
    curvature = (1 - 1 / k) / k * (inputs.T @ inputs) + np.diag(ridge[:, 0])
    factor = np.linalg.cholesky(curvature)
    rows = np.arange(n)

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = solve_triangular(factor, flat.reshape(p + 1, k), lower=True, trans="T")
        logits = inputs @ weights
        total = logsumexp(logits, axis=1)
        value = (total - logits[rows, ids]).sum() + 0.5 * (ridge * weights**2).sum()
        residual = np.exp(logits - total[:, None])
        residual[rows, ids] -= 1
        slope = solve_triangular(factor, inputs.T @ residual + ridge * weights, lower=True)
        return value / n, slope.ravel() / n

    limits = {"maxcor": 30, "maxiter": 2000, "maxfun": 4000, "gtol": _CLOSE, "ftol": 0.0}
    found = minimize(loss, np.zeros((p + 1) * k), jac=True, method="L-BFGS-B", options=limits)
    weights = solve_triangular(factor, found.x.reshape(p + 1, k), lower=True, trans="T")
    return LinearProbe(classes, mean, std, weights[:p], weights[p], float(found.fun))


def probe_layers(
    network: nn.Module,
    train: PatchSet,
    judges: Mapping[str, PatchSet],
    target: str,
    *,
    n_pixels: int,
    rng: np.random.Generator,
    layers: Sequence[str] | None = None,
) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Probe every layer of a frozen network for the classes of `target`.

    Args:
        network: Encoder or segmentation network, in evaluation mode.
        train: Patches whose pixels the probe learns from.
        judges: Patches of other scenes, on which it is judged, under any names.
        target: ``noisy`` or ``exact``.
        n_pixels: Pixels drawn from each set of patches, the same for every layer.
        rng: Source of randomness.
        layers: Those to probe; all when left out.

    Returns:
        For each judge and layer (C, K, K) counts of the pixels of every scene, scenes by name; rows exact, columns
        predicted.

    Raises:
        ValueError: A layer is unknown, or a set of patches has no valid pixel.
    """
    fit_at = _valid_pixels(train, target, n_pixels, rng, "train")
    asked_at = {name: _valid_pixels(part, target, n_pixels, rng, name) for name, part in judges.items()}
    known, n_classes = features(network, train, fit_at, layers), len(train.legend_of(target))
    probes = {layer: linear_probe(values, train.masks[target][tuple(fit_at.T)]) for layer, values in known.items()}
    del known
    counts = {}
    for name, part in judges.items():
        truth = part.masks[target][tuple(asked_at[name].T)]
        own = [part.scenes[asked_at[name][:, 0]] == scene for scene in np.unique(part.scenes)]
        said = _said(network, part, asked_at[name], probes)
        counts[name] = {
            layer: np.stack([statistics.confusion_counts(each[at], truth[at], n_classes) for at in own])
            for layer, each in said.items()
        }
    return counts


def probe_errors(
    network: nn.Module,
    train: PatchSet,
    *,
    n_pixels: int,
    rng: np.random.Generator,
    layers: Sequence[str] | None = None,
) -> dict[str, NDArray[np.int64]]:
    """Ask every layer about mislabelled pixels: does it say what the label says, or what is true?

    A probe is fitted to the labels of the noisy map, right and wrong alike, so that it can say both; truth is
    `PatchSet.exact_as_noisy`. All patches are those the network was trained on, as only there it can have memorised.
    They are dealt into halves; the probe of one half is asked about the other. Without that a probe would remember by
    itself: pixels of one error share the cell of a deep layer, and many channels tell one patch from all others. Places
    shown on several dates stay in one half.

    Errors that follow from the image (a class that the map always calls another) can be read from any features. Only
    what exceeds the same counts of a network that has not seen these labels, exact or random, is memorised.

    Args:
        network: Encoder or segmentation network, in evaluation mode.
        train: Patches the network was trained on, with exact masks.
        n_pixels: Valid pixels drawn from each half to fit to, and mislabelled ones of each half to ask about.
        rng: Source of randomness.
        layers: Those to probe; all when left out.

    Returns:
        For each layer (C, 3) counts of the mislabelled pixels of every scene, scenes by name: said as labelled, said
        as truth, said otherwise. A scene without any has a row of zeros.

    Raises:
        ValueError: A layer is unknown, legends cannot be compared, or a half has no valid or no mislabelled pixel.
    """
    noisy, truth = train.masks["noisy"], train.exact_as_noisy()
    wrong = (noisy != truth) & (noisy != VOID) & (truth != VOID)
    scenes = np.unique(train.scenes)
    names = layer_names(network) if layers is None else layers
    counts = {layer: np.zeros((len(scenes), 3), np.int64) for layer in names}
    halves = _halves(train, rng)
    fit_at = [sample_pixels(noisy, n_pixels, rng, _inside(half, noisy)) for half in halves]
    asked_at = [sample_pixels(noisy, n_pixels, rng, wrong & half[:, None, None]) for half in halves]
    if not all(len(pixels) for pixels in (*fit_at, *asked_at)):
        what = f"{train.name}: each half of {len(train)} patches must have valid and mislabelled pixels"
        raise ValueError(f"{what}, got {[len(p) for p in fit_at]} and {[len(p) for p in asked_at]}")
    read = [_read_both(network, train, *pixels, names) for pixels in zip(fit_at, asked_at, strict=True)]
    for at, asked in enumerate(reversed(asked_at)):
        (known, _), (_, told), labels = read[at], read[1 - at], noisy[tuple(fit_at[at].T)]
        labelled, true = noisy[tuple(asked.T)], truth[tuple(asked.T)]
        row = np.searchsorted(scenes, train.scenes[asked[:, 0]])
        for layer, values in known.items():
            said = linear_probe(values, labels).predict(told[layer])
            column = np.select([said == labelled, said == true], [0, 1], 2)
            np.add.at(counts[layer], (row, column), 1)
    return counts


def _read_both(
    network: nn.Module, patches: PatchSet, first: NDArray[np.intp], second: NDArray[np.intp], layers: Sequence[str]
) -> tuple[dict[str, NDArray[np.float32]], ...]:
    """Read features at two lists of pixels of the same patches in one pass."""
    pixels = np.concatenate([first, second])
    order = np.argsort(pixels[:, 0], kind="stable")
    back = np.argsort(order)
    values = features(network, patches, pixels[order], layers)
    return tuple({layer: v[part] for layer, v in values.items()} for part in np.split(back, [len(first)]))


def _said(
    network: nn.Module, patches: PatchSet, pixels: NDArray[np.intp], probes: Mapping[str, LinearProbe]
) -> dict[str, NDArray[np.integer]]:
    """Return what each layer's probe says about the pixels; features are never held all at once."""
    said = {layer: np.empty(len(pixels), probe.classes.dtype) for layer, probe in probes.items()}
    for rows, batch in stream(network, patches, pixels, list(probes)):
        for layer, probe in probes.items():
            said[layer][rows] = probe.predict(batch[layer])
    return said


def _valid_pixels(
    patches: PatchSet, target: str, n_pixels: int, rng: np.random.Generator, name: str
) -> NDArray[np.intp]:
    pixels = sample_pixels(patches.masks[target], n_pixels, rng)
    if not len(pixels):
        raise ValueError(f"{patches.name}: no valid pixel in the {target} masks of {name!r}; nothing to probe")
    return pixels


def _halves(patches: PatchSet, rng: np.random.Generator) -> list[NDArray[np.bool_]]:
    """Deal patches into two halves at random, those of one place together: two (N,) bool."""
    places = np.arange(len(patches)) if patches.places is None else np.unique(patches.places, return_inverse=True)[1]
    order = rng.permutation(places.max() + 1)
    first = order[places] % 2 == 0
    return [first, ~first]


def _inside(half: NDArray[np.bool_], masks: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.broadcast_to(half[:, None, None], masks.shape)
