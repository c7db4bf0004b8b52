"""Weights of others: filters and normalisation follow the band's name, and no pickle is opened."""

import hashlib
import re
import zipfile
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_patches

from nbutils import elsewhere, networks, training, weights
from nbutils.weights import WeightsError

SENTINEL2 = elsewhere.PUBLISHED["ssl4eo-moco"].bands
RGB = ("red", "green", "blue")


def published(path, resnet="resnet18", bands=3, drop=()):
    """A file as it is published: torchvision's names, classification layer included."""
    torch.manual_seed(0)
    state = torchvision.models.get_model(resnet, weights=None).state_dict()
    state["conv1.weight"] = torch.randn(64, bands, 7, 7)
    safetensors.torch.save_file({name: value for name, value in state.items() if not name.endswith(drop)}, path)
    return state


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "imagenet.safetensors"
    return path, published(path)


@pytest.fixture(scope="module")
def moco(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "moco.safetensors"
    return path, published(path, bands=13, drop=("fc.weight", "fc.bias"))


def test_the_trained_bands_get_the_very_network_that_was_published(imagenet):
    path, theirs = imagenet
    state, card = elsewhere.load("imagenet", encoder="resnet18", bands=RGB, scale=255, file=path)
    network = networks.build("resnet18", "unet", in_channels=3, n_classes=2, seed=0)
    networks.load_encoder(network, state)
    reference = torchvision.models.resnet18(weights=None)
    reference.load_state_dict(theirs)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        got = network.eval().encoder(images)[-1]
        for layer in list(reference.eval().children())[:-2]:  # without pooling and classification
            images = layer(images)
    assert images.std() > 1e-2
    torch.testing.assert_close(got, images)
    assert (card.mean, card.std, card.scale) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 255.0)
    assert card.run == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_filters_and_normalisation_go_to_the_band_of_their_name(imagenet):
    path, theirs = imagenet
    bands = ("nir", "blue", "green", "red")
    state, card = elsewhere.load("imagenet", encoder="resnet18", bands=bands, scale=255, file=path)
    filters = theirs["conv1.weight"] * 3 / 4
    expected = torch.stack([filters.mean(1), filters[:, 2], filters[:, 1], filters[:, 0]], dim=1)
    torch.testing.assert_close(state["conv1.weight"], expected)
    assert card.mean[1:] == (0.406, 0.456, 0.485) and card.mean[0] == pytest.approx(1.347 / 3)
    assert card.std[1:] == (0.225, 0.224, 0.229) and card.std[0] == pytest.approx(0.678 / 3)
    assert card.bands == bands


@given(st.permutations(range(13)), st.integers(1, 13))
def test_thirteen_bands_in_any_order_are_found_by_name(order, n):
    weight = torch.arange(13.0).view(1, 13, 1, 1)
    bands = [SENTINEL2[i] for i in order[:n]]
    adapted = elsewhere.adapt_input(weight, SENTINEL2, bands)
    torch.testing.assert_close(adapted.flatten(), torch.tensor(order[:n]).float() * 13 / n)
    assert elsewhere.adapt_normalisation(range(13), SENTINEL2, bands) == tuple(order[:n])


@given(st.lists(st.sampled_from(["nir", "swir", "height", "rededge"]), max_size=4, unique=True), st.randoms())
def test_an_image_alike_in_all_bands_excites_the_input_layer_as_before(others, random):
    bands = [*RGB, *others]
    random.shuffle(bands)
    weight = torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grey = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    before = torch.conv2d(grey.expand(-1, 3, -1, -1), weight, padding=3)
    adapted = elsewhere.adapt_input(weight, RGB, bands)
    torch.testing.assert_close(torch.conv2d(grey.expand(-1, len(bands), -1, -1), adapted, padding=3), before)


def test_spellings_of_a_band_are_the_same_band():
    weight = torch.arange(13.0).view(1, 13, 1, 1)
    for spelling in (("red", "NIR", "B8A", "B09"), ("B4", "b08", "B8a", "B9"), ("B04", "B8", "b8a", "b09")):
        adapted = elsewhere.adapt_input(weight, SENTINEL2, spelling).flatten() * 4 / 13
        torch.testing.assert_close(adapted, torch.tensor([3.0, 7.0, 8.0, 9.0]))


def test_their_normalisation_takes_the_place_of_the_data_sets(imagenet, moco):
    data = toy_patches()
    raw = torch.as_tensor(data.images[:2])
    _, card = elsewhere.load("imagenet", encoder="resnet18", bands=data.bands, scale=data.scale, file=imagenet[0])
    theirs = replace(data, scale=card.scale, mean=card.mean, std=card.std)
    got = training.normalise(raw, theirs)
    torch.testing.assert_close(got[:, 1], (raw[:, 1] / 255 - 0.485) / 0.229)
    _, card = elsewhere.load("ssl4eo-moco", encoder="resnet18", bands=data.bands, file=moco[0])
    theirs = replace(data, scale=card.scale, mean=card.mean, std=card.std)
    torch.testing.assert_close(training.normalise(raw, theirs), raw / 10_000)


def test_the_card_fits_the_images_it_was_made_for(moco):
    _, card = elsewhere.load("ssl4eo-moco", encoder="resnet18", bands=SENTINEL2, scale=10_000, file=moco[0])
    weights.check_images(card, card)
    with pytest.warns(UserWarning, match="trained at 10 m"):
        weights.check_images(card, replace(card, gsd_m=1.0))


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_weights_travel_on_like_our_own(tmp_path, moco, encoder):
    path, theirs = moco
    state, card = elsewhere.load("ssl4eo-moco", encoder=encoder, bands=SENTINEL2, file=path)
    networks.load_encoder(networks.build(encoder, "fpn", in_channels=13, n_classes=2, seed=0), state)
    weights.export_encoder(state, card, tmp_path / "out", target="torchvision")
    again, _ = weights.load(tmp_path / "out", card)
    assert all(torch.equal(again[name], theirs[name]) for name in again) and len(again) == len(theirs) - 2


def test_files_without_counters_of_batches_are_whole(tmp_path):
    path = tmp_path / "old.safetensors"
    published(path, drop=("num_batches_tracked",))
    state, _ = elsewhere.load("imagenet", encoder="resnet18", bands=RGB, scale=255, file=path)
    networks.load_encoder(networks.build("resnet18", "unet", in_channels=3, n_classes=2, seed=0), state)


def test_a_bottleneck_network_is_told_from_a_plain_one(tmp_path):
    path = tmp_path / "fifty.safetensors"
    published(path, "resnet50", bands=13)
    state, card = elsewhere.load("ssl4eo-dino", encoder="resnet50", bands=("B04", "B03", "B02"), file=path)
    assert state["conv1.weight"].shape == (64, 3, 7, 7) and card.gsd_m == 10
    with pytest.raises(WeightsError, match=f"{path}: not a resnet18 of 13 bands"):
        elsewhere.load("ssl4eo-moco", encoder="resnet18", bands=SENTINEL2, file=path)
    with pytest.raises(WeightsError, match="of another shape .*conv1.weight"):
        elsewhere.load("imagenet", encoder="resnet50", bands=RGB, scale=255, file=path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("imagnet", {}, "known: imagenet, ssl4eo-moco, ssl4eo-dino"),
        ("imagenet", {"encoder": "tu-test_resnet"}, "those of resnet18, tu-resnet18, resnet50, tu-resnet50"),
        ("ssl4eo-dino", {}, "'resnet18'; it has those of resnet50, tu-resnet50"),
        ("imagenet", {"scale": None}, "give the scale"),
        ("ssl4eo-moco", {"scale": 255}, "divided by 10000, the images are divided by 255"),
        ("imagenet", {"bands": ("height", "swir")}, "none of the bands height, swir .* red, green, blue"),
        ("imagenet", {"bands": ("red", "B04", "blue")}, "comes twice"),
    ],
)
def test_what_does_not_fit_is_told(imagenet, name, change, message):
    asked = {"encoder": "resnet18", "bands": RGB, "scale": 10_000, "file": imagenet[0]} | change
    with pytest.raises(WeightsError, match=message):
        elsewhere.load(name, **asked)


def test_without_network_and_file_the_address_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    address = re.escape("https://huggingface.co/timm/resnet18.tv_in1k/resolve/main/model.safetensors")
    with pytest.raises(WeightsError, match=f"cannot be downloaded .*{address}.* as `file`"):
        elsewhere.load("imagenet", encoder="resnet18", bands=RGB, scale=255)


def test_a_file_in_the_cache_is_found(monkeypatch, imagenet):
    path, theirs = imagenet
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *where: asked.append(where) or str(path))
    state, _ = elsewhere.load("imagenet", encoder="resnet18", bands=RGB, scale=255)
    assert asked == [("timm/resnet18.tv_in1k", "model.safetensors")]
    assert torch.equal(state["conv1.weight"], theirs["conv1.weight"])


def test_what_is_published_as_a_pickle_comes_with_its_conversion():
    with pytest.raises(WeightsError, match="resnet50_sentinel2_all_dino-d6c330e9.pth.*weights_only=True"):
        elsewhere.load("ssl4eo-dino", encoder="resnet50", bands=SENTINEL2)


def test_the_line_of_the_message_converts(tmp_path, moco):
    _, theirs = moco
    path = tmp_path / "moco.pth"
    torch.save(theirs, path)
    with pytest.raises(WeightsError, match="convert it") as caught:
        elsewhere.load("ssl4eo-moco", encoder="resnet18", bands=SENTINEL2, file=path)
    line = re.search(r'python -c "(.+)"', str(caught.value))[1].replace("moco.", f"{tmp_path}/moco.")
    exec(compile(line, "message", "exec"), {})  # noqa: S102
    state, _ = elsewhere.load("ssl4eo-moco", encoder="resnet18", bands=SENTINEL2, file=path.with_suffix(".safetensors"))
    assert all(torch.equal(state[name], theirs[name]) for name in state)


def test_a_pickle_is_never_opened_whatever_its_name(tmp_path):
    path = tmp_path / "weights.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(WeightsError, match="convert it"):
        elsewhere.load("imagenet", encoder="resnet18", bands=RGB, scale=255, file=path)


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_a_broken_file_is_named(tmp_path, imagenet, keep):
    path = tmp_path / "half.safetensors"
    path.write_bytes(imagenet[0].read_bytes()[:keep])
    with pytest.raises(WeightsError, match=f"{path}: not a whole safetensors file .*fetch it again"):
        elsewhere.load("imagenet", encoder="resnet18", bands=RGB, scale=255, file=path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match="nowhere.*check the path"):
        elsewhere.load("imagenet", encoder="resnet18", bands=RGB, scale=255, file=tmp_path / "nowhere.safetensors")
