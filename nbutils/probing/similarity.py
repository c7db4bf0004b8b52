"""How alike two networks are, layer by layer: linear centred kernel alignment, unbiased, in minibatches."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nbutils.patches import PatchSet
from nbutils.probing.layers import features, layer_names, sample_pixels


class MinibatchCKA:
    """Linear CKA of two sets of features that come in minibatches, none of which is kept.

    Minibatch CKA of Nguyen, Raghu and Kornblith (ICLR 2021): the unbiased estimator of HSIC (Song et al. 2012) is
    averaged over minibatches before the ratio is taken. Each minibatch must be a random sample of the whole.
    """

    def __init__(self) -> None:
        self.sums, self.n_batches = np.zeros(3), 0  # HSIC of a with b, a with a, b with b

    def update(self, a: NDArray[np.floating], b: NDArray[np.floating]) -> None:
        """Add a minibatch.

        Args:
            a: (n, p) features, n >= 4.
            b: (n, q) features of the same n samples.

        Raises:
            ValueError: The numbers of samples differ or are below 4.
        """
        if len(a) != len(b) or len(a) < 4:
            raise ValueError(f"need the same n >= 4 samples in both, got {len(a)} and {len(b)}")
        k, m = (_hollow_kernel(np.asarray(features, dtype=np.float64)) for features in (a, b))
        self.sums += [_hsic(k, m), _hsic(k, k), _hsic(m, m)]
        self.n_batches += 1

    def value(self) -> float:
        """Return 1 for features equal up to rotation and scale, about 0 for independent ones, NaN for constant ones."""
        ab, aa, bb = self.sums
        return float(ab / np.sqrt(aa * bb)) if aa > 0 and bb > 0 else float("nan")


def cka(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Linear centred kernel alignment of two sets of features of the same samples, unbiased, as one batch.

    With n samples and p features the biased form gives about p / (n + p) for independent features, where this one
    gives 0. Arguments and errors as of `MinibatchCKA.update`, what is returned as of `MinibatchCKA.value`.
    """
    both = MinibatchCKA()
    both.update(a, b)
    return both.value()


def cka_layers(
    first: nn.Module,
    second: nn.Module,
    patches: PatchSet,
    *,
    n_pixels: int,
    rng: np.random.Generator,
    target: str = "exact",
    minibatch: int = 512,
    layers: Sequence[str] | None = None,
) -> dict[str, float]:
    """Compare two networks layer by layer on the same pixels, in random minibatches.

    The features of `n_pixels` pixels are held at a time, never the maps they come from.

    Args:
        first: Encoder or segmentation network, in evaluation mode.
        second: Another one; of the layers, those that both have are compared.
        patches: The images.
        n_pixels: Pixels drawn.
        rng: Source of randomness.
        target: Masks, ``noisy`` or ``exact``, that say which pixels are valid; void ones are not drawn.
        minibatch: Most pixels per minibatch, at least 8; minibatches are of nearly equal size.
        layers: Those to compare; all common ones when left out.

    Raises:
        ValueError: A layer is unknown, minibatches are too small, or there are fewer than 4 valid pixels.
    """
    if minibatch < 8:
        raise ValueError(f"CKA needs minibatches of at least 8 pixels, as each part must have 4, got {minibatch}")
    common = set(layer_names(second))
    names = [name for name in layer_names(first) if name in common] if layers is None else layers
    pixels = sample_pixels(patches.masks[target], n_pixels, rng)
    if len(pixels) < 4:
        raise ValueError(f"{patches.name}: CKA needs at least 4 valid pixels in the {target} masks, got {len(pixels)}")
    parts = np.array_split(rng.permutation(len(pixels)), -(-len(pixels) // minibatch))
    ours, theirs = (features(network, patches, pixels, names) for network in (first, second))
    values = {}
    for name in names:
        both = MinibatchCKA()
        for rows in parts:
            both.update(ours[name][rows], theirs[name][rows])
        values[name] = both.value()
    return values


def _hollow_kernel(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear kernel with a zero diagonal, (n, n); features are centred, which changes no HSIC but its rounding."""
    features = features - features.mean(axis=0)
    kernel = features @ features.T
    np.fill_diagonal(kernel, 0.0)
    return kernel


def _hsic(k: NDArray[np.float64], m: NDArray[np.float64]) -> float:
    """Unbiased estimate of HSIC from two hollow kernels (Song et al. 2012, eq. 5)."""
    n = len(k)
    cross = (k * m).sum()
    totals = k.sum() * m.sum() / ((n - 1) * (n - 2))
    rows = 2 * (k.sum(axis=0) @ m.sum(axis=0)) / (n - 2)
    return (cross + totals - rows) / (n * (n - 3))
