"""What label noise does to each layer: probes, similarity, surgery, susceptibility, and what follows from them.

Layers have names, from the first to the last: ``stem``, ``stage1``, ... of the encoder, ``decoder1``, ... and ``head``.
Measured is always a network trained on noisy labels against one trained on exact labels, and two of the latter that
differ by chance alone as the floor: in their seed, or only in the order of their patches.
"""

from nbutils.probing import layers, probes
from nbutils.probing.layers import features, features_at, layer_names, parameters_of, sample_pixels, state_of, stream
from nbutils.probing.probes import LinearProbe, linear_probe, probe_errors, probe_layers
from nbutils.probing.sensitivity import LayerScore, advice, layer_scores, seed_spread
from nbutils.probing.similarity import MinibatchCKA, cka, cka_layers
from nbutils.probing.surgery import carry, reestimate, reinitialised, retrain_layer, swap, weight_distance
from nbutils.probing.susceptibility import Monitor, gradient_snr, random_blocks

PROBES = (layers, probes)  # the modules that the counts of probes come from, for digests of code

__all__ = [
    "LayerScore",
    "LinearProbe",
    "MinibatchCKA",
    "Monitor",
    "PROBES",
    "advice",
    "carry",
    "cka",
    "cka_layers",
    "features",
    "features_at",
    "gradient_snr",
    "layer_names",
    "layer_scores",
    "linear_probe",
    "parameters_of",
    "probe_errors",
    "probe_layers",
    "random_blocks",
    "reestimate",
    "reinitialised",
    "retrain_layer",
    "sample_pixels",
    "seed_spread",
    "state_of",
    "stream",
    "swap",
    "weight_distance",
]
