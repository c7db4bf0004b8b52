"""Images to map, a network whose map of them is known exactly, and what is left of it on disk."""

import os
import warnings
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from torch import nn
from torch.nn import functional as F

from nbutils import ROOT, files, legend, mapping, sources, weights
from nbutils.mapping import Squares

AUTOGEO = legend.get("autogeo4")
BANDS = ("nir", "red", "green", "blue")
PLACED = {"crs": "EPSG:32618", "transform": Affine(1, 0, 500000, 0, -1, 4000000)}
SMALL = Squares(96, 32)


class Near(nn.Module):
    """Sees three pixels around one and the cell of 32 pixels it lies in; computes in whole numbers, so exactly."""

    def __init__(self, bands: int = 4, classes: int = 4) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.near = nn.Conv2d(bands, classes, 7, padding=3, bias=False)
        self.far = nn.Conv2d(bands, classes, 1, bias=False)
        for layer in (self.near, self.far):
            values = torch.randint(-3, 4, layer.weight.shape, generator=rng)
            layer.weight = nn.Parameter(values.float(), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cells = F.interpolate(F.avg_pool2d(images, 32), scale_factor=32.0, mode="nearest")
        return (self.near(images) + self.far(cells) * 32) / 2**12


def a_card(**changes) -> weights.WeightCard:
    fields = dict(encoder="near", arm="random", bands=BANDS, scale=1.0, mean=(0.0,) * 4, std=(1.0,) * 4, patch_px=64,
                  gsd_m=1.0, legend="autogeo4", run="0" * 20, licence="CC0")  # fmt: skip
    return weights.WeightCard(**{**fields, **changes})


MODEL = mapping.Model(Near(), a_card(), AUTOGEO, "fp32")


def pixels_of(height: int, width: int, seed: int = 0, bands: int = 4) -> np.ndarray:
    """An image that is smooth in places and rough in others."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (bands, height // 8 + 1, width // 8 + 1))
    return (np.kron(coarse, np.ones((8, 8), int))[:, :height, :width] + rng.integers(0, 56, (height, width))).astype(
        np.uint8
    )


def write(path: Path, pixels: np.ndarray, bands=BANDS, **about) -> Path:
    about = {"photometric": "minisblack", "alpha": "unspecified", **PLACED, **about}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2],
                           dtype=pixels.dtype, **about) as data:  # fmt: skip
            data.write(pixels)
            if bands:
                data.descriptions = bands
    return path


def mapped(path: Path, folder: Path, model=MODEL, **how) -> mapping.Place:
    (place,) = mapping.places([path], folder)
    with sources.open_raster(path) as image:
        mapping.map_image(model, image, place, **{"scale": 1.0, "squares": SMALL, **how})
    return place


def read(path: Path) -> np.ndarray:
    with files.open_file(path) as data:
        return data._data.read(1)


def expected(pixels: np.ndarray, network=MODEL.network) -> tuple[np.ndarray, np.ndarray]:
    """The network on the whole image at once, mirrored by numpy: classes and per cent."""
    _, height, width = pixels.shape
    pad = [(0, 0), *((64, 64 + -length % 32) for length in (height, width))]
    whole = torch.as_tensor(np.pad(pixels, pad, mode="reflect")[None]).float()
    best, classes = network(whole).softmax(dim=1).max(dim=1)
    inside = (0, slice(64, 64 + height), slice(64, 64 + width))
    return classes[inside].numpy().astype(np.uint8), np.rint(best[inside].numpy() * 100).astype(np.uint8)


class Held:
    """An image in memory, as far as mapping looks at it."""

    def __init__(self, pixels: np.ndarray, valid: np.ndarray | None = None) -> None:
        self.pixels, self.path, self.shape = pixels, Path("held.tif"), pixels.shape[1:]
        self.known = np.ones(self.shape, bool) if valid is None else valid
        self.seen: list[tuple[slice, slice]] = []

    def valid(self, window):
        return self.known[window]

    def read(self, window):
        self.seen.append(window)
        return self.pixels[(slice(None), *window)]

    def mapped(self, squares: Squares, model=MODEL) -> tuple[np.ndarray, np.ndarray]:
        out = np.zeros((2, *self.shape), np.uint8)
        times = np.zeros(self.shape, int)
        for core, *parts in mapping.classified(model, self, self.read, squares):
            out[(slice(None), *core)] = parts
            times[core] += 1
        assert (times == 1).all(), "every pixel is said once"
        return out[0], out[1]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])
    }
