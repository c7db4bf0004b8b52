"""A data set of a few random blocks, small enough to train on in a second."""

from dataclasses import replace

import numpy as np

from nbutils import legend, patches


def toy_patches(n: int = 40, size_px: int = 32, seed: int = 0) -> patches.PatchSet:
    """Return patches of ten scenes: five to pretrain on, two to fine-tune on, one to validate, two to test."""
    rng = np.random.default_rng(seed)
    nyc8, autogeo4 = legend.get("nyc8"), legend.get("autogeo4")
    blocks = rng.integers(0, len(nyc8), (n, 4, 4)).astype(np.uint8)
    exact = np.kron(blocks, np.ones((size_px // 4, size_px // 4), np.uint8))
    exact[:, :2] = legend.VOID
    images = np.where(exact == legend.VOID, 0, exact)[:, None] * 20 + rng.normal(60, 20, (n, 4, size_px, size_px))
    lookup = legend.crosswalk(nyc8, autogeo4, legend.CROSSWALKS["nyc8", "autogeo4"])
    scene = np.arange(n) * 10 // n
    members = {
        "pretrain": scene < 5,
        "finetune": (scene >= 5) & (scene < 7),
        "validation": scene == 7,
        "test": scene >= 8,
    }
    made = patches.PatchSet(
        name="toy",
        fingerprint="",
        images=images.clip(0, 255).astype(np.uint8),
        masks={"noisy": legend.translate(exact, lookup), "exact": exact},
        scenes=np.array([f"scene-{i}" for i in scene]),
        member=members,
        bands=("nir", "red", "green", "blue"),
        scale=255.0,
        mean=(0.5,) * 4,
        std=(0.2,) * 4,
        gsd_m=1.0,
        noisy_legend=autogeo4,
        exact_legend=nyc8,
        licence="CC0",
    )
    return replace(made, fingerprint=patches.content_hash(made))
