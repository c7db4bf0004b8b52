"""Weight files: the card that travels with them, and refusing images it does not describe.

A weight file is a folder with ``weights.safetensors`` and ``card.json``. The card lies in the header of the weights
too, and `card.json` holds the weights' SHA-256, so that neither file can be damaged or exchanged unnoticed.
"""

import hashlib
import json
import math
import os
import shutil
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nbutils import guarded

TARGETS = ("smp", "timm", "torchvision", "torchgeo")
MAX_GSD_RATIO = 2.0  # beyond it objects have another size in pixels than the filters were trained on
_TORCHGEO = ("resnet18", "resnet50", "resnet152")
_DIGEST = "weights_sha256"


class WeightsError(ValueError):
    """A weight file does not fit the network or the images it is to be used with."""


@dataclass(frozen=True)
class WeightCard:
    """What a weight file needs to be used correctly: the images it saw, and how they were prepared.

    The network expects ``(raw / scale - mean) / std`` per band, as `batches.normalise` computes it.

    Attributes:
        encoder: Name of the encoder in segmentation-models-pytorch.
        arm: What the encoder was trained on, one of `arms.ARMS`; for weights from elsewhere their name.
        bands: Band names in the order of the input channels.
        scale: Divisor applied to the raw digital numbers.
        mean: Mean of each band after `scale`.
        std: Standard deviation of each band after `scale`.
        patch_px: Side length of the training patches, in pixels.
        gsd_m: Ground sampling distance in metres, None where unknown.
        legend: Name of the legend the network predicts, None for an encoder alone.
        run: Key of the run that made the weights; for weights from elsewhere the SHA-256 of their file.
        licence: Licence of the training data.

    Raises:
        ValueError: A value cannot be; the message names the field.
    """

    encoder: str
    arm: str
    bands: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch_px: int
    gsd_m: float | None
    legend: str | None
    run: str
    licence: str

    def __post_init__(self) -> None:
        texts = (self.encoder, self.arm, self.run, self.licence, *self.bands)
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.legend, str | None):
            raise ValueError("encoder, arm, bands, legend, run and licence are texts")
        if not self.bands or not len(self.bands) == len(self.mean) == len(self.std):
            counts = f"{len(self.bands)}, {len(self.mean)} and {len(self.std)}"
            raise ValueError(f"bands, mean and std need one entry per band, got {counts}")
        if not all(_is_number(value) for value in self.mean):
            raise ValueError(f"mean holds finite numbers, got {self.mean}")
        sizes = {"scale": self.scale, "patch_px": self.patch_px, **{f"std of {b}": s for b, s in self._stds()}}
        for name, value in (sizes if self.gsd_m is None else {**sizes, "gsd_m": self.gsd_m}).items():
            if not _is_number(value) or value <= 0:
                raise ValueError(f"{name} is a number above 0, got {value!r}")

    def _stds(self) -> list[tuple[str, float]]:
        return list(zip(self.bands, self.std, strict=True))


class Images(Protocol):
    """What weights need to know about the images at hand; a `patches.PatchSet` and a `WeightCard` both tell it."""

    bands: tuple[str, ...]
    scale: float
    gsd_m: float | None


def check_images(card: WeightCard, images: Images) -> None:
    """Compare images with those that the weights were trained on.

    Bands, their order and the scale must agree. A ground sampling distance that differs by more than `MAX_GSD_RATIO`
    only warns: the weights run, but objects have another size in pixels.

    Raises:
        WeightsError: The images do not fit; the message tells every difference and what to do.
    """
    faults = []
    bands = tuple(images.bands)
    if bands != card.bands:
        faults.append(
            f"trained on bands {', '.join(card.bands)}, the images have {', '.join(bands)}: "
            + _remedy(card.bands, bands)
        )
    if not math.isclose(images.scale, card.scale, rel_tol=1e-6):
        faults.append(
            f"trained on raw values divided by {card.scale:g}, the images are divided by {images.scale:g}: give the "
            "data set card the same scale, or convert the images if their raw values mean something else"
        )
    if faults:
        raise WeightsError("; ".join(faults))
    if card.gsd_m and images.gsd_m:
        ratio = images.gsd_m / card.gsd_m
        if max(ratio, 1 / ratio) > MAX_GSD_RATIO:
            warnings.warn(
                f"trained at {card.gsd_m:g} m per pixel, the images have {images.gsd_m:g} m: objects are "
                f"{max(ratio, 1 / ratio):.1f} times {'smaller' if ratio > 1 else 'larger'} in pixels; resample the "
                f"images to about {card.gsd_m:g} m",
                stacklevel=3,
            )


def save(folder: Path, state: Mapping[str, Tensor], card: WeightCard) -> None:
    """Write ``weights.safetensors`` and ``card.json`` into an existing folder, flushed to disk."""
    fields = asdict(card)
    header = {"card": json.dumps(fields)}
    content = safetensors.torch.save({name: value.contiguous() for name, value in state.items()}, header)
    _write(folder / "weights.safetensors", content)
    fields[_DIGEST] = hashlib.sha256(content).hexdigest()
    _write(folder / "card.json", (json.dumps(fields, indent=1) + "\n").encode())


def load(folder: Path, images: Images | None = None) -> tuple[dict[str, Tensor], WeightCard]:
    """Read weights and their card.

    Args:
        folder: A run's folder, or one that `export_encoder` wrote.
        images: The images at hand, see `check_images`; None to skip the comparison.

    Raises:
        WeightsError: A file is missing or damaged, or the images differ from the card's.
    """
    card, digest = _read_card(folder / "card.json")
    path = folder / "weights.safetensors"
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(f"its SHA-256 is not the {digest!r} of card.json")
        state = safetensors.torch.load(content)
        with safe_open(path, framework="pt") as file:
            if _card((file.metadata() or {}).get("card", "null")) != card:
                raise ValueError("its header holds another card than card.json")
    except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        told = guarded.shortened(str(error))  # a damaged card may hold a text of any length
        raise WeightsError(f"{path}: cannot be read ({told}); delete the folder and redo the run or export") from error
    if images is not None:
        try:
            check_images(card, images)
        except WeightsError as error:
            raise WeightsError(f"{folder}: {error}") from error
    return state, card


def encoder_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder's weights under plain names, out of those of a whole network or of an encoder alone."""
    prefix = "encoder."
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return inner or dict(state)


def export_encoder(state: Mapping[str, Tensor], card: WeightCard, destination: Path, *, target: str) -> None:
    """Write an encoder as a plain state dict that another library loads, with its card beside it.

    The names and shapes are checked against the target's own model. Classification layers are not part of an encoder,
    so ResNets of timm, torchvision and torchgeo load it with ``strict=False`` and miss ``fc`` alone; built for the
    card's number of bands, that is (torchvision: replace ``conv1``). The card's `encoder` becomes the target's name.

    The preprocessing travels in the card only. Folded into the first convolution it would be exact in the interior,
    but not along the border, where that convolution pads normalised images with zeros.

    Args:
        state: What `load` gives: an encoder's weights, or a whole network's, of which the encoder is taken.
        card: Its card.
        destination: New folder for ``weights.safetensors`` and ``card.json``.
        target: One of `TARGETS`: ``smp`` for ``smp.Unet(name).encoder``, ``timm`` for ``timm.create_model(name)``,
            ``torchvision`` for ``torchvision.models.get_model(name)``, ``torchgeo`` for ``torchgeo.models.<name>``.

    Raises:
        WeightsError: The target is unknown or has no such encoder; the message says what differs.
        FileExistsError: The destination exists.
    """
    if target not in TARGETS:
        raise WeightsError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")
    plain = encoder_part(state)
    name = card.encoder if target == "smp" else card.encoder.removeprefix("tu-")
    if target != "smp" and name != card.encoder:
        plain = {key.removeprefix("model."): value for key, value in plain.items()}  # smp wraps timm's model
    what = f"{card.encoder} as {target} model {name}"
    check_names(plain, model_shapes(name, target, len(card.bands)), what, "choose another target")
    fields = {**asdict(card), "encoder": name, "legend": None}
    if destination.exists():
        raise FileExistsError(f"{destination} exists; export into a new folder")
    scratch = _scratch(destination)
    scratch.mkdir(parents=True)
    try:
        save(scratch, plain, WeightCard(**fields))
        os.rename(scratch, destination)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def export_onnx(network: nn.Module, card: WeightCard, destination: Path) -> None:
    """Write a network, or an encoder alone, as an ONNX file that takes raw digital numbers.

    Input ``image`` is (N, B, H, W) float32 of raw values in the card's band order; the card's normalisation is part of
    the graph. N, H and W are free, H and W multiples of 32: decoders are built for these, and the graph does not
    check it. A network gives ``logits`` (N, K, H, W), an encoder one output per layer: ``stem``, ``stage1``, ... The
    card is in the model's metadata under ``card``, as JSON.

    PyTorch's TorchScript-based exporter is used: it needs no package but onnx, and takes 0.2 s where the newer one,
    which needs onnxscript too, takes 7 s for the same graph.

    Args:
        network: From `networks.build`, or its encoder; it is left in the mode it was in.
        card: Its card.
        destination: File to write, replaced if it exists.

    Raises:
        ModuleNotFoundError: onnx is not installed; the message says how to install it.
        WeightsError: The network pools to a grid of several cells, as PSPNet and UPerNet do: ONNX knows no such layer.
    """
    if any(isinstance(m, nn.AdaptiveAvgPool2d) and m.output_size not in (1, (1, 1)) for m in network.modules()):
        raise WeightsError("ONNX has no pooling to a grid, as in PSPNet and UPerNet: export the encoder, or an U-Net")
    try:
        import onnx
    except ImportError as error:
        raise ModuleNotFoundError("ONNX files need another package: pip install 'noisy-maps[export]'") from error
    graph = _FromRawValues(network, card)
    axes = {0: "n", 2: "h", 3: "w"}
    device = next(network.parameters()).device
    scratch, modes = _scratch(destination), {module: module.training for module in network.modules()}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its age, and of Python conditions on shapes, which the tests cover
            torch.onnx.export(
                graph.eval(),
                (torch.zeros(2, len(card.bands), 64, 96, device=device),),
                scratch,
                dynamo=False,
                input_names=["image"],
                output_names=graph.names,
                dynamic_axes={name: axes for name in ("image", *graph.names)},
                opset_version=17,
            )
        model = onnx.load(scratch)
        onnx.helper.set_model_props(model, {"card": json.dumps(asdict(card))})
        onnx.checker.check_model(model)
        _write(scratch, model.SerializeToString())
        os.replace(scratch, destination)
    finally:
        scratch.unlink(missing_ok=True)
        for module, training in modes.items():
            module.training = training


def model_shapes(name: str, target: str, bands: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a library's model without its classification layers.

    Args:
        name: The model's name in that library.
        target: One of `TARGETS`.
        bands: Number of input channels.

    Raises:
        WeightsError: The library has no such model.
    """
    try:
        if target == "torchgeo" and name not in _TORCHGEO:
            raise ValueError(f"torchgeo has {', '.join(_TORCHGEO)}")
        with torch.device("meta"):
            if target == "smp":
                model, classifier = smp.encoders.get_encoder(name, in_channels=bands, weights=None), ()
            elif target == "torchvision":
                model, classifier = torchvision.models.get_model(name, weights=None), ("fc",)
            else:
                model = timm.create_model(name, pretrained=False, in_chans=bands)
                classifier = model.pretrained_cfg["classifier"]
    except (ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{target} has no model {name!r} to load these weights ({error})") from error
    heads = tuple(f"{part}." for part in ([classifier] if isinstance(classifier, str) else classifier))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items() if not key.startswith(heads)}
    if target == "torchvision" and "conv1.weight" in shapes:
        filters, _, *size = shapes["conv1.weight"]
        shapes["conv1.weight"] = (filters, bands, *size)  # torchvision builds for three bands only
    return shapes


def check_names(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], what: str, remedy: str) -> None:
    """Compare a state's names and shapes with those expected.

    Args:
        state: The weights.
        expected: Shape by name, from `model_shapes`.
        what: Begins the message.
        remedy: Ends it.

    Raises:
        WeightsError: They differ; the message names the first three of each kind.
    """
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = [name for name, shape in expected.items() if name in state and tuple(state[name].shape) != shape]
    if missing or unexpected or wrong:
        raise WeightsError(
            f"{what}: missing {missing[:3]}, unexpected {unexpected[:3]}, of another shape {wrong[:3]} "
            f"({len(missing)}, {len(unexpected)} and {len(wrong)} names); {remedy}"
        )


class _FromRawValues(nn.Module):
    """Normalises raw values as the card says, then runs the network."""

    def __init__(self, network: nn.Module, card: WeightCard) -> None:
        super().__init__()
        device = next(network.parameters()).device
        self.network, self.scale = network, card.scale
        self.encoder_only = hasattr(network, "out_channels")  # smp's encoders have it, its networks have not
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(card, name), device=device).view(-1, 1, 1))

    @property
    def names(self) -> list[str]:
        """Names of the outputs."""
        if not self.encoder_only:
            return ["logits"]
        return ["stem", *(f"stage{i}" for i in range(1, len(self.network.out_channels) - 1))]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        output = self.network((images / self.scale - self.mean) / self.std)
        return tuple(output[1:]) if self.encoder_only else output  # an encoder's first output is the input itself


def _read_card(path: Path) -> tuple[WeightCard, str]:
    """Read a card and the SHA-256 of its weights."""
    try:
        fields = json.loads(path.read_bytes())
        digest = fields.pop(_DIGEST)
        return _card(json.dumps(fields)), digest
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        told = guarded.shortened(str(error))  # a damaged card may hold a text of any length
        raise WeightsError(f"{path}: cannot be read ({told}); delete the folder and redo the run or export") from error


def _card(text: str) -> WeightCard:
    fields = json.loads(text)
    return WeightCard(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def _remedy(trained: tuple[str, ...], at_hand: tuple[str, ...]) -> str:
    missing = [band for band in trained if band not in at_hand]
    extra = [band for band in at_hand if band not in trained]
    parts = [f"{', '.join(missing)} missing"] if missing else []
    parts += [f"{', '.join(extra)} not known to the weights"] if extra else []
    if not parts:
        return "the same bands in another order; reorder the bands in the data set card"
    return f"{' and '.join(parts)}; choose the bands in the data set card or pretrain again"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _scratch(path: Path) -> Path:
    return path.with_name(f".writing-{path.name}-{uuid.uuid4().hex}")


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
