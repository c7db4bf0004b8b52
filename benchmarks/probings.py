"""Probing every layer of a ResNet18 U-Net at full width, and the parts of it.

The rival is scikit-learn's regression for the widest layer alone: same features, same objective, both to convergence.
"""

import time
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.racing import Row, race, ratios, rounds, speeds
from nbutils import legend, networks, patches, probing
from nbutils.execution import one_thread

N_PATCHES, PATCH_PX, N_PIXELS, BANDS = 256, 96, 2000, ("nir", "red", "green", "blue")


def smooth_patches(n: int = N_PATCHES, size_px: int = PATCH_PX, seed: int = 0) -> patches.PatchSet:
    """Random images that follow smooth class masks, in memory: half of them to learn from, half to be judged on."""
    rng, nyc8 = np.random.default_rng(seed), legend.get("nyc8")
    fields = gaussian_filter(rng.normal(size=(len(nyc8), n, size_px, size_px)), (0, 0, 8, 8))
    exact = fields.argmax(axis=0).astype(np.uint8)
    colours = rng.uniform(60, 190, (len(nyc8), len(BANDS)))
    images = np.moveaxis(colours[exact], -1, 1) + rng.normal(0, 30, (n, len(BANDS), size_px, size_px))
    first = np.arange(n) < n // 2
    return patches.PatchSet(
        name="smooth",
        fingerprint="",
        images=images.clip(0, 255).astype(np.uint8),
        masks={"exact": exact, "noisy": exact},
        scenes=np.array([f"scene-{i % 8}" for i in range(n)]),
        member={"finetune": first, "test": ~first},
        bands=BANDS,
        scale=255.0,
        mean=(0.5,) * len(BANDS),
        std=(0.2,) * len(BANDS),
        gsd_m=1.0,
        noisy_legend=nyc8,
        exact_legend=nyc8,
        licence="CC0-1.0",
    )


def everywhere(data: patches.PatchSet) -> patches.PatchSet:
    """The same patches, all of them in every split."""
    return replace(data, member=dict.fromkeys(patches.SPLITS, np.ones(len(data), bool)))


def bench(repeats: int = 3) -> list[Row]:
    """Speeds in seconds of one core, and how much faster the widest probe is than scikit-learn's."""
    data = smooth_patches()
    train, test = data.split("finetune"), data.split("test")
    network = networks.build("resnet18", "unet", in_channels=len(BANDS), n_classes=8, seed=0)
    probing.reestimate(network, train, "stem")  # features as of a trained network, neither dead nor exploding
    with one_thread():
        rows = race("patches/s", N_PATCHES, {"probe all layers, U-Net resnet18": lambda: _probe(network, train, test)},
                    repeats, time.process_time)  # fmt: skip
        return rows + _widest(network, train, repeats)


def _probe(network: torch.nn.Module, train: patches.PatchSet, test: patches.PatchSet) -> object:
    rng = np.random.default_rng(0)
    return probing.probe_layers(network, train, {"test": test}, "exact", n_pixels=N_PIXELS, rng=rng)


def _widest(network: torch.nn.Module, train: patches.PatchSet, repeats: int) -> list[Row]:
    pixels = probing.sample_pixels(train.masks["exact"], N_PIXELS, np.random.default_rng(0))
    features = probing.features_at(network, train, "stage4", pixels)
    labels = train.masks["exact"][tuple(pixels.T)]
    plain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, tol=1e-6))

    def rival() -> None:
        plain.fit(features.astype(float), labels)
        if max(plain[-1].n_iter_) >= plain[-1].max_iter:
            raise RuntimeError("scikit-learn's regression has not converged, so its time says nothing")

    ours, theirs = "probe of 512 channels", "- the same with scikit-learn"
    runners = {ours: lambda: probing.linear_probe(features, labels), theirs: rival}
    seconds = rounds(runners, repeats, time.process_time)
    return speeds("probes/s", 1, seconds) + ratios({"- as fast as scikit-learn": (ours, theirs)}, seconds)
