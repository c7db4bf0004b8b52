"""Encoders that others trained: their input layer and their normalisation, fitted to the bands at hand.

Only safetensors files are read: a .pth file is a pickle, which can run code when it is opened. Where only that is
published, the message gives the line that converts it.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from nbutils import weights
from nbutils.weights import WeightCard, WeightsError

_SENTINEL2 = tuple(f"B{name}" for name in "01 02 03 04 05 06 07 08 8A 09 10 11 12".split())
_COLOURS = {"blue": "b2", "green": "b3", "red": "b4", "nir": "b8"}  # their names among Sentinel-2's bands


@dataclass(frozen=True)
class Published:
    """Weights that others published.

    Attributes:
        bands: Bands of the input layer, in order.
        scale: Divisor of the raw values; None where any sensor's values are brought to 0..1 by its own.
        mean: Mean of each band after `scale`, as subtracted in training.
        std: Divisor of each band after that.
        patch_px: Side length of the training images, in pixels.
        gsd_m: Ground sampling distance in metres, None where there is none.
        licence: Of the weights and of what they were trained on.
        files: Per ResNet the repository on huggingface.co and the file in it.
    """

    bands: tuple[str, ...]
    scale: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch_px: int
    gsd_m: float | None
    licence: str
    files: Mapping[str, tuple[str, str]]


# SSL4EO-S12 (Wang et al. 2023, arXiv 2211.07044): reflectance / 10,000, clipped to 0..1, and no standardisation.
def _ssl4eo(**files: tuple[str, str]) -> Published:
    zeros, ones = (0.0,) * len(_SENTINEL2), (1.0,) * len(_SENTINEL2)
    return Published(_SENTINEL2, 10_000.0, zeros, ones, 224, 10.0, "CC-BY-4.0; SSL4EO-S12, CC-BY-4.0", files)


PUBLISHED = {
    "imagenet": Published(
        bands=("red", "green", "blue"),
        scale=None,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        patch_px=224,
        gsd_m=None,
        licence="BSD-3-Clause (torchvision); ImageNet: non-commercial research",
        files={
            "resnet18": ("timm/resnet18.tv_in1k", "model.safetensors"),
            "resnet50": ("timm/resnet50.tv_in1k", "model.safetensors"),
        },
    ),
    "ssl4eo-moco": _ssl4eo(
        resnet18=("torchgeo/resnet18_sentinel2_all_moco", "resnet18_sentinel2_all_moco-59bfdff9.pth"),
        resnet50=("torchgeo/resnet50_sentinel2_all_moco", "resnet50_sentinel2_all_moco-df8b932e.pth"),
    ),
    "ssl4eo-dino": _ssl4eo(
        resnet50=("torchgeo/resnet50_sentinel2_all_dino", "resnet50_sentinel2_all_dino-d6c330e9.pth"),
    ),
}


def load(
    name: str, *, encoder: str, bands: Sequence[str], scale: float | None = None, file: Path | None = None
) -> tuple[dict[str, Tensor], WeightCard]:
    """Read published weights, fitted to the bands at hand.

    The card holds *their* normalisation in the order of our bands. Use it in place of the data set's own:
    ``dataclasses.replace(data, scale=card.scale, mean=card.mean, std=card.std)``. See `adapt_input` and
    `adapt_normalisation` for how bands are matched.

    Args:
        name: One of `PUBLISHED`.
        encoder: ``resnet18`` or ``resnet50``, also with ``tu-`` before it, where `name` has it.
        bands: Bands of the images at hand, in order.
        scale: Divisor of their raw values. ImageNet's weights need it, one that brings values to 0..1; SSL4EO-S12's
            know theirs, 10,000, and refuse another.
        file: A safetensors file under torchvision's names; if left out it is taken from the Hugging Face cache or
            downloaded into it where safetensors are published.

    Returns:
        state: Weights for `networks.load_encoder`.
        card: Their card; its `run` is the SHA-256 of the file.

    Raises:
        WeightsError: The name is unknown, the encoder or the scale does not fit, no band is known to the weights, or
            the file is missing, damaged, not safetensors or of another network; the message says what to do.
    """
    if name not in PUBLISHED:
        raise WeightsError(f"unknown weights {name!r}; known: {', '.join(PUBLISHED)}")
    published, resnet = PUBLISHED[name], encoder.removeprefix("tu-")
    if resnet not in published.files:
        fitting = ", ".join(f"{known}, tu-{known}" for known in published.files)
        raise WeightsError(f"{name} has no weights of the encoder {encoder!r}; it has those of {fitting}")
    divisor = _scale(name, published, scale)
    path = Path(file) if file is not None else _fetch(name, *published.files[resnet])
    state, digest = _read(path)
    state = _plain(state, resnet, len(published.bands), path)
    state["conv1.weight"] = adapt_input(state["conv1.weight"], published.bands, bands)
    mean, std = (adapt_normalisation(values, published.bands, bands) for values in (published.mean, published.std))
    card = WeightCard(
        encoder=encoder,
        arm=name,
        bands=tuple(bands),
        scale=divisor,
        mean=mean,
        std=std,
        patch_px=published.patch_px,
        gsd_m=published.gsd_m,
        legend=None,
        run=f"sha256:{digest}",
        licence=published.licence,
    )
    return {f"model.{key}" if encoder != resnet else key: value for key, value in state.items()}, card


def adapt_input(weight: Tensor, trained: Sequence[str], bands: Sequence[str]) -> Tensor:
    """Fit the filters of an input layer to other bands, by name.

    A band known to the weights gets its own filter, any other the mean over all filters. Everything is then multiplied
    by S / B, the number of bands trained on over that at hand, as in timm: an image whose normalised bands are all
    alike then excites the layer as strongly as before (exactly, if every band trained on is there). Bands in another
    order are only reordered.

    Args:
        weight: (F, S, h, w) filters.
        trained: Names of the S bands.
        bands: Names of the B bands at hand. Case and leading zeros do not matter; B01 ... B12 are Sentinel-2's, and
            blue, green, red and nir its B02, B03, B04 and B08.

    Returns:
        (F, B, h, w) filters.

    Raises:
        WeightsError: None of the bands is known to the weights, or a name comes twice.
    """
    columns = [weight.mean(dim=1) if index is None else weight[:, index] for index in _match(trained, bands)]
    return torch.stack(columns, dim=1) * (len(trained) / len(bands))


def adapt_normalisation(values: Sequence[float], trained: Sequence[str], bands: Sequence[str]) -> tuple[float, ...]:
    """Return the value of each band at hand, matched like `adapt_input`; of unknown bands the mean over all."""
    average = sum(values) / len(values)
    return tuple(average if index is None else values[index] for index in _match(trained, bands))


def _match(trained: Sequence[str], bands: Sequence[str]) -> list[int | None]:
    """For each band at hand its position among those trained on, None where it is not one of them."""
    known = {_canonical(band): index for index, band in enumerate(trained)}
    names = [_canonical(band) for band in bands]
    if len(set(names)) < len(names):
        raise WeightsError(f"a band comes twice in {', '.join(bands)}; name each once in the data set card")
    found = [known.get(name) for name in names]
    if all(index is None for index in found):
        raise WeightsError(
            f"none of the bands {', '.join(bands)} is known to the weights, which have {', '.join(trained)}; "
            "rename the bands in the data set card"
        )
    return found


def _canonical(band: str) -> str:
    name = band.lower()
    numbered = re.fullmatch(r"b0*(\d+a?)", name)
    return f"b{numbered[1]}" if numbered else _COLOURS.get(name, name)


def _scale(name: str, published: Published, scale: float | None) -> float:
    if published.scale is None and scale is None:
        raise WeightsError(f"{name} was trained on values in 0..1: give the scale that brings raw values there")
    if published.scale is not None and scale not in (None, published.scale):
        raise WeightsError(
            f"{name} was trained on raw values divided by {published.scale:g}, the images are divided by {scale:g}: "
            "if their raw values are reflectance times 10,000, say so in the data set card, otherwise convert them"
        )
    return float(published.scale or scale)


def _fetch(name: str, repository: str, file: str) -> Path:
    """Return the path of the published file in the Hugging Face cache, downloading it if need be."""
    address = f"https://huggingface.co/{repository}/resolve/main/{file}"
    if not file.endswith(".safetensors"):
        raise WeightsError(
            f"{name} is published as a pickle only, which is never opened here. Fetch {address}, convert it and pass "
            f"the result as `file`: {_conversion(file)}"
        )
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise WeightsError(
            f"{name} is not in the Hugging Face cache and cannot be downloaded ({type(error).__name__}). Fetch "
            f"{address} on a machine with a network, put it anywhere, e.g. into data/cache, and pass its path as `file`"
        ) from error


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a safetensors file; also return its SHA-256."""
    try:
        content = path.read_bytes()
        return safetensors.torch.load(content), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error}); check the path") from error
    except (ValueError, SafetensorError) as error:
        pickled = path.suffix in {".pth", ".pt", ".bin", ".ckpt"} or content[:2] in (b"PK", b"\x80\x02")
        remedy = f"convert it: {_conversion(path.name)}" if pickled else "fetch it again"
        raise WeightsError(f"{path}: not a whole safetensors file ({error}); {remedy}") from error


def _conversion(file: str) -> str:
    target = Path(file).with_suffix(".safetensors").name
    return (
        'python -c "import torch, safetensors.torch as s; '
        f"s.save_file(torch.load('{file}', map_location='cpu', weights_only=True), '{target}')\""
    )


def _plain(state: dict[str, Tensor], resnet: str, bands: int, path: Path) -> dict[str, Tensor]:
    """Drop the classification layer, add the counters of batches that older files lack, and check names and shapes."""
    expected = weights.model_shapes(resnet, "torchvision", bands)
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    counters = {key: torch.tensor(0) for key in expected if key.endswith(".num_batches_tracked")}
    state = {**counters, **state}
    weights.check_names(state, expected, f"{path}: not a {resnet} of {bands} bands", "fetch the file of this encoder")
    return {key: state[key] for key in expected}
