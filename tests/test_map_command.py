"""Networks of the study map images as the study judges them; the command, and how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import loopback
import map as tool
import numpy as np
import pystac
import pytest
import rasterio
import torch
from affine import Affine
from grounds import environment, left_in, mapped, pixels_of, read, write
from toy import toy_patches

from nbutils import ROOT, cards, evaluation, files, legend, mapping, patches, store, study, weights
from nbutils.mapping import MappingError, Squares

# --- networks of the study


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A U-Net fine-tuned for a few steps on random blocks, in a store of its own; its patches are not kept."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "CACHE", folder / "patches")
        data = toy_patches()
        patches.store(data)
        described = study.finetuning(data, None, encoder="tu-test_resnet", width="slim", decoder="unet", budget=5,
                                     frozen=False, steps=3, batch_size=4, precision="fp32", seed=0)  # fmt: skip
        return study.execute(described, folder / "runs")


def test_a_stored_run_is_rebuilt_from_its_folder_alone(run, tmp_path):
    moved = shutil.copytree(run.folder, tmp_path / "elsewhere")
    model, data = mapping.load_model(moved), toy_patches()
    assert (model.legend, model.precision) == (legend.get("nyc8"), "fp32")
    again = study.network_of(run, data).state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.network.state_dict().items())


def test_a_run_that_cannot_map_says_why(run, tmp_path):
    moved = Path(shutil.copytree(run.folder, tmp_path / "elsewhere"))
    record = json.loads((moved / "run.json").read_text())
    other = {**record, "run": {**record["run"], "seed": 1}}
    encoder = {**record, "run": {**record["run"], "target": ""}}
    for content, message in [
        (json.dumps(other), f"run.json is of run .*, card.json of {run.run.key}"),
        (json.dumps(record)[:-9], r"run.json cannot be read \(.*\); give the folder of a whole run"),
        (json.dumps({"run": {"stage": "finetune"}}), "run.json cannot be read"),
        (json.dumps(encoder), "run.json is of run"),
    ]:
        (moved / "run.json").write_text(content)
        with pytest.raises(store.StoreError, match=message):
            mapping.load_model(moved)
    with pytest.raises(weights.WeightsError, match="card.json: cannot be read"):
        mapping.load_model(tmp_path / "nowhere")


CITY = (ROOT / "data/datasets/city.yaml").read_text()


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """A small embedded city, its patches, and a U-Net that was fine-tuned on four of them for a few steps."""
    folder = tmp_path_factory.mktemp("city")
    small = "world: {generator: city, seed: 3, pretrain: 1, finetune: 1, validation: 1, test: 1, size_px: 192}"
    lines = [small if line.startswith("world:") else line for line in CITY.splitlines()]
    (folder / "city.yaml").write_text("\n".join(lines).replace("data/cache/city", str(folder / "data")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "CACHE", folder / "patches")
        data = patches.cut(patches.open_dataset(folder / "city.yaml"), size_px=96, max_patches=4, workers=1)
        described = study.finetuning(data, None, encoder="tu-test_resnet", width="slim", decoder="unet", budget=4,
                                     frozen=False, steps=8, batch_size=4, precision="fp32", seed=0)  # fmt: skip
        yield folder / "data/test-00/image.tif", data.split("test"), study.execute(described, folder / "runs")


def test_squares_of_the_patches_size_give_the_map_that_the_study_judges(city, tmp_path):
    path, test, result = city
    place = mapped(path, tmp_path, mapping.load_model(result.folder), scale=None, squares=Squares(96, 0))
    said = evaluation.predict(study.network_of(result, test), test)
    ours = patches.windows.squares(read(place.classes), 96)
    by_image = {image.tobytes(): mask for image, mask in zip(patches.windows.squares(files.read_image(path)[0], 96),
                                                             ours, strict=True)}  # fmt: skip
    assert len(said) == 4 and len(np.unique(said)) > 1
    assert all(np.array_equal(by_image[image.tobytes()], mask) for image, mask in zip(test.images, said, strict=True))


def test_squares_with_a_margin_agree_with_patches_more_in_the_interior_than_at_the_rim(city, tmp_path):
    path, test, result = city
    place = mapped(path, tmp_path, mapping.load_model(result.folder), scale=None, squares=Squares(288, 96))
    said = evaluation.predict(study.network_of(result, test), test)
    ours = patches.windows.squares(read(place.classes), 96)
    images = [image.tobytes() for image in patches.windows.squares(files.read_image(path)[0], 96)]
    agree = np.stack([ours[images.index(i.tobytes())] == mask for i, mask in zip(test.images, said, strict=True)])
    rim = np.ones((96, 96), bool)
    rim[24:-24, 24:-24] = False
    assert agree[:, ~rim].mean() > agree[:, rim].mean() + 0.01  # measured: 0.94 and 0.91


# --- the command


def said_by(capsys, *arguments: object) -> tuple[int, str, str]:
    status = tool.main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    assert "Traceback" not in told.out + told.err
    return status, told.out, told.err


def test_the_command_maps_and_says_what_it_found(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "RUNS", run.folder.parent)
    first, second = (write(tmp_path / name, pixels_of(100, 100)) for name in ("a.tif", "b.tif"))
    small = ("--out", tmp_path / "maps", "--square", 96, "--margin", 32)
    status, out, err = said_by(capsys, run.folder.name, first, second, *small, "--confidence")
    assert (status, err) == (0, "") and len(out.splitlines()) == 2
    assert left_in(tmp_path / "maps") == [
        "a_classes.tif", "a_confidence.tif", "b_classes.tif", "b_confidence.tif"]  # fmt: skip
    classes, names = read(tmp_path / "maps/a_classes.tif"), legend.get("nyc8").names
    most = np.bincount(classes.ravel()).argmax()
    assert f"{names[most]} {(classes == most).mean():.1%}" in out and "void 0.0% of all pixels" in out
    status, out, err = said_by(capsys, run.folder, first, *small)
    assert (status, out) == (2, "") and "a_classes.tif is there" in err
    assert said_by(capsys, run.folder, first, *small, "--overwrite")[0] == 0


def test_the_command_names_what_it_could_not_map_and_goes_on(run, tmp_path, capsys):
    whole, broken = write(tmp_path / "whole.tif", pixels_of(64, 64)), tmp_path / "broken.tif"
    rasterio.shutil.copy(write(tmp_path / "p.tif", pixels_of(600, 600)), broken, driver="COG", blocksize=128)
    os.truncate(broken, broken.stat().st_size // 2)
    status, out, err = said_by(capsys, run.folder, broken, whole, "--out", tmp_path / "maps")
    assert status == 1 and f"{broken}: cannot be read" in err and "1 of 2 images were not mapped" in err
    assert left_in(tmp_path / "maps") == ["whole_classes.tif"] and "whole_classes.tif" in out


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (["{folder}/none.tif"], 1, "none.tif: no such file"),
        (["{folder}/a.tif", "{folder}/sub/a.tif"], 2, "use two folders"),
        (["{folder}/a.tif", "--scale", "0"], 2, "divided by 0"),
        (["{folder}/a.tif", "--bands", "red,green,blue"], 2, "has 4 bands, 3 names"),
        (["{folder}/a.tif", "--square", "100"], 2, "multiples of 32"),
        (["{folder}/a.tif", "--dataset", "nocard.yaml"], 2, "no such card"),
        (["{folder}/a.tif", "--asset", "image"], 1, "cannot be read as a STAC item"),
        (["https://example.org/a.json?sig=1", "--asset", "image"], 2, "https://example.org/a.json: items are read"),
    ],
)
def test_wrong_input_ends_before_anything_is_mapped(run, tmp_path, capsys, change, status, message):
    write(tmp_path / "a.tif", pixels_of(64, 64))
    asked = [part.format(folder=tmp_path) for part in change]
    code, out, err = said_by(capsys, run.folder, *asked, "--out", tmp_path / "maps")
    assert (code, out) == (status, "") and message in err and err.count("\n") == 1
    assert not (tmp_path / "maps").exists()
    assert said_by(capsys, tmp_path, *asked, "--out", tmp_path / "maps")[0] == 2, "and without a run"


def test_a_card_tells_bands_and_scale_and_a_pixel_size_that_differs_is_told(run, tmp_path, capsys):
    card = CITY.replace("bands: [nir, red, green, blue], scale: 255", "bands: [blue, nir, green, red], scale: 255")
    (tmp_path / "card.yaml").write_text(card)
    pixels, coarse = pixels_of(64, 64), {"transform": Affine(3, 0, 0, 0, -3, 0)}
    plain = write(tmp_path / "plain.tif", pixels)
    other = write(tmp_path / "other.tif", pixels[[3, 0, 2, 1]].astype(np.int16), None, **coarse)
    assert said_by(capsys, run.folder, plain, "--out", tmp_path)[0] == 0
    status, _, err = said_by(capsys, run.folder, other, "--out", tmp_path, "--dataset", tmp_path / "card.yaml")
    assert status == 0 and err.count("the images have 3 m") == 1 and err.startswith(f"{other}: trained at 1 m")
    assert np.array_equal(read(tmp_path / "plain_classes.tif"), read(tmp_path / "other_classes.tif"))


def test_classes_of_ones_own_come_from_the_card_or_the_patches(run, tmp_path, monkeypatch):
    own = cards.to_legend({"name": "built2", "classes": {"open": [120, 170, 90], "built": [200, 60, 50]}})
    known = replace(run.run, classes=2)
    with pytest.raises(MappingError, match="the 2 classes of legend 'built2', which is not shipped.*give the card"):
        mapping._legend_of(known, "built2", None)
    with pytest.raises(MappingError, match="the 2 classes of legend 'nyc8'"):
        mapping._legend_of(known, "nyc8", None)
    card = cards.load_card(ROOT / "data/datasets/city.yaml")
    assert mapping._legend_of(known, "built2", card) == own
    monkeypatch.setattr(patches, "CACHE", tmp_path / "patches")
    here = replace(toy_patches(), exact_legend=own)
    here = replace(here, masks={**here.masks, "exact": here.masks["exact"] % 2}, fingerprint="here")
    patches.store(here)
    assert mapping._legend_of(replace(known, fingerprint="here"), "built2", None) == own


def test_images_on_the_web_and_of_stac_items_are_mapped_like_files(run, tmp_path, capsys):
    pixels = pixels_of(300, 300)
    here = write(tmp_path / "here.tif", pixels)
    rasterio.shutil.copy(here, tmp_path / "cog.tif", driver="COG", blocksize=128)
    with loopback.serving() as server:
        server.files["/there.tif"] = (tmp_path / "cog.tif").read_bytes()
        item = pystac.Item("scene/7", None, None, None, {"start_datetime": "2024-01-01", "end_datetime": "2024-01-02"})
        item.add_asset("visual", pystac.Asset(f"{server.url}/there.tif"))
        item.add_asset("local", pystac.Asset("here.tif"))
        item.save_object(include_self_link=False, dest_href=str(tmp_path / "item.json"))
        for image in ([here], [f"{server.url}/there.tif"], [tmp_path / "item.json", "--asset", "visual"]):
            assert said_by(capsys, run.folder, *image, "--out", tmp_path / "maps")[0] == 0
    with_local = [tmp_path / "item.json", "--asset", "local", "--out", tmp_path / "maps"]
    status, _, err = said_by(capsys, run.folder, *with_local)
    assert status == 2 and "scene_7_classes.tif is there" in err
    assert said_by(capsys, run.folder, *with_local, "--overwrite")[0] == 0
    maps = [read(tmp_path / f"maps/{name}_classes.tif") for name in ("here", "there", "scene_7")]
    assert np.array_equal(maps[0], maps[1]) and np.array_equal(maps[0], maps[2])


@pytest.mark.slow
def test_a_command_that_is_ended_leaves_nothing(run, tmp_path):
    path = write(tmp_path / "a.tif", np.tile(pixels_of(1000, 1000), (1, 3, 3)))
    asked = [sys.executable, ROOT / "tools/map.py", run.folder, path, "--out", tmp_path / "maps", "--square", "96"]
    process = subprocess.Popen([*asked, "--margin", "32"], env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 300
        while not list((tmp_path / "maps").glob(".writing-*/blocks-*")):
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=300)[1]
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, told) == (130, "stopped; maps that are finished are kept\n")
    assert not left_in(tmp_path / "maps")
