"""Weight files: whole or refused, never used with other images, and the same features in every library."""

import json
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchgeo.models
import torchvision
from damage import damaged
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toy import toy_patches

from nbutils import networks, training, weights

CARD = weights.WeightCard(
    encoder="tu-test_resnet",
    arm="noisy",
    bands=("nir", "red"),
    scale=255.0,
    mean=(0.4, 0.3),
    std=(0.1, 0.2),
    patch_px=64,
    gsd_m=1.0,
    legend="autogeo4",
    run="0" * 20,
    licence="CC0",
)


def _network(encoder="tu-test_resnet", decoder="unet", bands=2) -> nn.Module:
    """A network whose BatchNorm statistics are not those of a new one."""
    made = networks.build(encoder, decoder, in_channels=bands, n_classes=3, seed=0, width="slim")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            made(torch.randn(4, bands, 64, 64, generator=generator))
    return made.eval()


def _saved(folder: Path) -> Path:
    weights.save(folder, networks.encoder_state(_network()), CARD)
    return folder


# ---- files ------------------------------------------------------------------------------------------------------


def test_weights_and_card_survive_the_disk(tmp_path):
    state, card = weights.load(_saved(tmp_path), CARD)
    expected = networks.encoder_state(_network())
    assert card == CARD and state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["weights.safetensors", "card.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "noise"])
def test_damaged_weight_files_are_named(tmp_path, name, damage):
    path = _saved(tmp_path) / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "noise": b"\xff" * 64}[damage])
    with pytest.raises(weights.WeightsError, match=str(path)):
        weights.load(tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "card.json"])
def test_no_damage_gives_other_weights_or_another_card(tmp_path, name):
    path, rng = _saved(tmp_path) / name, np.random.default_rng(0)
    content, refused = path.read_bytes(), 0
    expected, _ = weights.load(tmp_path)
    for _ in range(60):
        path.write_bytes(damaged(content, rng))
        try:
            state, card = weights.load(tmp_path)
        except weights.WeightsError as error:
            assert str(tmp_path) in str(error)
            refused += 1
        else:
            assert card == CARD and all(torch.equal(state[key], expected[key]) for key in expected)
    assert refused > 50


def test_a_flipped_bit_in_the_values_is_seen(tmp_path):
    path = _saved(tmp_path) / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(weights.WeightsError, match="SHA-256"):
        weights.load(tmp_path)


def test_an_edited_card_is_seen(tmp_path):
    path = _saved(tmp_path) / "card.json"
    path.write_text(path.read_text().replace("255.0", "10000.0"))
    with pytest.raises(weights.WeightsError, match="another card"):
        weights.load(tmp_path)


def test_a_card_with_an_unknown_or_a_missing_field_is_refused(tmp_path):
    path = _saved(tmp_path) / "card.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"colour": "red"}))
    with pytest.raises(weights.WeightsError, match="colour"):
        weights.load(tmp_path)
    del fields["std"]
    path.write_text(json.dumps(fields))
    with pytest.raises(weights.WeightsError, match="std"):
        weights.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bands", ("nir",), "one entry per band, got 1, 2 and 2"),
        ("std", (0.1, 0.0), "std of red is a number above 0"),
        ("mean", (0.1, float("nan")), "mean holds finite numbers"),
        ("scale", "255", "scale is a number above 0, got '255'"),
        ("gsd_m", -1.0, "gsd_m is a number above 0"),
        ("bands", (1, 2), "texts"),
    ],
)
def test_a_card_that_cannot_be_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(CARD, **{field: value})


# ---- images -----------------------------------------------------------------------------------------------------


@given(st.permutations(["nir", "red", "green"]))
def test_only_the_trained_order_of_bands_is_accepted(order):
    card = replace(CARD, bands=("nir", "red", "green"), mean=(0.0,) * 3, std=(1.0,) * 3)
    images = replace(card, bands=tuple(order))
    if tuple(order) == card.bands:
        weights.check_images(card, images)
    else:
        with pytest.raises(weights.WeightsError, match="the same bands in another order; reorder"):
            weights.check_images(card, images)


def test_all_differences_are_told_at_once(tmp_path):
    images = replace(CARD, bands=("red", "swir"), scale=10_000.0)
    with pytest.raises(weights.WeightsError) as caught:
        weights.load(_saved(tmp_path), images)
    for part in (str(tmp_path), "nir missing", "swir not known", "divided by 255,", "divided by 10000:"):
        assert part in str(caught.value)


def test_patches_describe_themselves():
    data = toy_patches()
    card = replace(CARD, bands=data.bands, mean=data.mean, std=data.std)
    weights.check_images(card, data)
    with pytest.raises(weights.WeightsError, match="green, blue missing"):
        weights.check_images(card, replace(data, bands=("nir", "red")))


@pytest.mark.parametrize(("gsd_m", "told"), [(0.2, "5.0 times larger"), (10.0, "10.0 times smaller")])
def test_another_ground_sampling_distance_warns(gsd_m, told):
    with pytest.warns(UserWarning, match=told):
        weights.check_images(CARD, replace(CARD, gsd_m=gsd_m))


@pytest.mark.parametrize("gsd_m", [None, 0.5, 1.0, 2.0])
def test_a_similar_or_unknown_ground_sampling_distance_does_not(gsd_m):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights.check_images(CARD, replace(CARD, gsd_m=gsd_m))


# ---- export to other libraries ----------------------------------------------------------------------------------


def _theirs(target: str, name: str, bands: int) -> nn.Module:
    """The other library's model, without pretrained weights, for our number of bands."""
    if target == "smp":
        return smp.Unet(name, encoder_weights=None, in_channels=bands).encoder
    if target == "timm":
        return timm.create_model(name, pretrained=False, in_chans=bands)
    if target == "torchgeo":
        return getattr(torchgeo.models, name)(weights=None, in_chans=bands)
    model = torchvision.models.get_model(name, weights=None)
    model.conv1 = nn.Conv2d(bands, 64, 7, stride=2, padding=3, bias=False)
    return model


def _deepest(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Features of the last stage, computed by the model's own layers."""
    if isinstance(model, torchvision.models.ResNet) and not hasattr(model, "out_channels"):
        stem = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        return model.layer4(model.layer3(model.layer2(model.layer1(stem))))
    return model.forward_features(images) if hasattr(model, "forward_features") else model(images)[-1]


@pytest.mark.parametrize(
    ("encoder", "target", "name"),
    [
        ("tu-test_resnet", "smp", "tu-test_resnet"),
        ("tu-test_resnet", "timm", "test_resnet"),
        ("tu-resnet10t", "timm", "resnet10t"),
        ("resnet18", "smp", "resnet18"),
        ("resnet18", "timm", "resnet18"),
        ("resnet18", "torchvision", "resnet18"),
        ("resnet18", "torchgeo", "resnet18"),
        ("tu-resnet18", "torchvision", "resnet18"),
        ("resnet50", "torchvision", "resnet50"),
        ("resnet50", "torchgeo", "resnet50"),
    ],
)
def test_other_libraries_load_an_exported_encoder_and_see_the_same(tmp_path, encoder, target, name):
    ours = _network(encoder, bands=5)
    card = replace(CARD, encoder=encoder, bands=tuple("abcde"), mean=(0.0,) * 5, std=(1.0,) * 5)
    weights.export_encoder(ours.state_dict(), card, tmp_path / "out", target=target)
    state, read = weights.load(tmp_path / "out")
    assert read == replace(card, encoder=name, legend=None)
    theirs = _theirs(target, name, 5).eval()
    if target == "smp":
        theirs.load_state_dict(state, strict=True)
    else:
        report = theirs.load_state_dict(state, strict=False)
        assert set(report.missing_keys) == {"fc.weight", "fc.bias"} and not report.unexpected_keys
    images = torch.rand(2, 5, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = ours.encoder(images)[-1], _deepest(theirs, images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_an_encoder_alone_exports_like_the_whole_network(tmp_path):
    network = _network()
    weights.export_encoder(network.state_dict(), CARD, tmp_path / "whole", target="timm")
    weights.export_encoder(networks.encoder_state(network), CARD, tmp_path / "alone", target="timm")
    for name in ("weights.safetensors", "card.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


@pytest.mark.parametrize(
    ("encoder", "target", "message"),
    [
        ("tu-test_resnet", "torchvision", "torchvision has no model 'test_resnet'"),
        ("tu-test_resnet", "torchgeo", "torchgeo has resnet18, resnet50, resnet152"),
        ("mobilenet_v2", "torchvision", "choose another target"),
        ("tu-test_resnet", "keras", "smp, timm, torchvision, torchgeo"),
        ("resnet50", "timm", "resnet50 as timm model resnet50: missing"),
    ],
)
def test_a_target_that_cannot_take_the_weights_is_refused(tmp_path, encoder, target, message):
    made = "tu-test_resnet" if encoder == "resnet50" else encoder
    with pytest.raises(weights.WeightsError, match=message):
        weights.export_encoder(
            _network(made).state_dict(), replace(CARD, encoder=encoder), tmp_path / "o", target=target
        )
    assert not list(tmp_path.iterdir())


def test_an_export_replaces_nothing(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="out"):
        weights.export_encoder(_network().state_dict(), CARD, tmp_path / "out", target="smp")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


# ---- ONNX -------------------------------------------------------------------------------------------------------


def _run(path: Path, images: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images.numpy()})


POOLS = {"pspnet", "upernet"}  # to a grid, which ONNX cannot


@pytest.mark.parametrize("decoder", sorted(networks.DECODERS.keys() - POOLS))
def test_onnx_takes_raw_values_of_any_size_and_gives_the_same_logits(tmp_path, decoder):
    data, path = toy_patches(), tmp_path / "network.onnx"
    network = _network(decoder=decoder, bands=4)
    card = replace(CARD, bands=data.bands, scale=data.scale, mean=(0.1, 0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3, 0.4))
    weights.export_onnx(network, card, path)
    rng = np.random.default_rng(0)
    for shape in ((1, 4, 64, 64), (3, 4, 96, 160)):
        raw = torch.from_numpy(rng.integers(0, 256, shape).astype(np.float32))
        with torch.no_grad():
            expected = network(training.normalise(raw, replace(data, mean=card.mean, std=card.std))).numpy()
        (logits,) = _run(path, raw)
        assert logits.shape == (shape[0], 3, *shape[2:]) and expected.std() > 1e-2
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("decoder", sorted(POOLS))
def test_what_onnx_cannot_hold_is_refused_and_leaves_nothing(tmp_path, decoder):
    with pytest.raises(weights.WeightsError, match="export the encoder"):
        weights.export_onnx(_network(decoder=decoder, bands=4), CARD, tmp_path / "network.onnx")
    assert list(tmp_path.iterdir()) == []


def test_onnx_carries_the_card_and_leaves_the_network_as_it_was(tmp_path):
    network, path = _network().train(), tmp_path / "network.onnx"
    network.encoder.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights.export_onnx(network, CARD, path)
    stored = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(stored["card"]) == json.loads(json.dumps(asdict(CARD)))
    assert network.training and network.decoder.training and not network.encoder.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert [entry.name for entry in tmp_path.iterdir()] == ["network.onnx"]


def test_an_encoder_alone_gives_its_layers(tmp_path):
    encoder, path = _network().encoder, tmp_path / "encoder.onnx"
    weights.export_onnx(encoder, CARD, path)
    raw = torch.rand(2, 2, 64, 96) * 255
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (CARD.mean, CARD.std))
    with torch.no_grad():
        expected = encoder((raw / CARD.scale - mean) / std)[1:]
    got = _run(path, raw)
    assert [output.name for output in onnx.load(path).graph.output] == ["stem", "stage1", "stage2", "stage3", "stage4"]
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=1e-4)


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'noisy-maps\[export\]'"):
        weights.export_onnx(_network(), CARD, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


def test_a_damaged_card_with_a_long_text_is_told_in_short(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({**asdict(CARD), "patch_px": "x" * 100_000, "weights_sha256": "0"}))
    with pytest.raises(weights.WeightsError, match=r"card\.json: cannot be read .*delete the folder") as told:
        weights.load(tmp_path)
    assert len(str(told.value)) < 1000
