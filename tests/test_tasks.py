"""Tasks: other classes, other ground, broken labels - from the same patches for pretraining."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toy import toy_patches

from nbutils import cards, legend, noise, patches, sources, study, tasks
from nbutils.legend import VOID

DATA = toy_patches()
LAND = {"name": "land2", "classes": {"land": [0, 200, 0], "water": [0, 0, 200]}}
TO_LAND = {name: "water" if name == "water" else "land" for name in DATA.exact_legend.names}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "CACHE", tmp_path)


def a_card(**fields) -> cards.Card:
    masks = {"glob": "exact/*.tif", "coding": "index", "legend": "nyc8"}
    base = {
        "name": "town", "licence": "CC0", "get": "ask", "root": "/nowhere",
        "images": {"glob": "*.tif", "bands": ["nir", "red", "green", "blue"]},
        "exact": masks, "noisy": {"from": "mask", **masks, "glob": "noisy/*.tif", "legend": "autogeo4"},
        "split": {"test": ["a"], "validation": ["b"]},
    }  # fmt: skip
    return cards.Card.model_validate(base | fields)


def of(card: cards.Card, name: str, data=DATA):
    return tasks.task(sources.Dataset(card, "card.yaml", []), data, name, size_px=32, max_patches=40)


def test_other_classes_are_made_of_the_exact_ones_and_nothing_else_changes():
    found = of(a_card(tasks={"coarse": {"legend": LAND, "mapping": TO_LAND}}), "coarse")
    exact = DATA.masks["exact"]
    water = DATA.exact_legend.index("water")
    assert found.exact_legend.names == ("land", "water")
    assert np.array_equal(found.masks["exact"], np.where(exact == VOID, VOID, exact == water))
    assert np.array_equal(found.images, DATA.images) and np.array_equal(found.masks["noisy"], DATA.masks["noisy"])
    assert found.fingerprint != DATA.fingerprint
    assert all(np.array_equal(found.member[split], DATA.member[split]) for split in DATA.member)


def test_the_own_task_is_the_patches_themselves_and_an_unknown_one_names_those_there_are():
    card = a_card(tasks={"same": {"legend": "autogeo4"}})
    assert of(card, tasks.OWN) is DATA
    with pytest.raises(ValueError, match="no task 'others'; the card has own, same"):
        of(card, "others")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"legend": "autogeo4", "card": "other.yaml"}, "give one of `legend`"),
        ({}, "give one of `legend`"),
        ({"card": "other.yaml", "mapping": {}}, "`legend`, which is missing"),
        ({"legend": LAND, "mapping": {"water": "water"}}, "nothing is said about tree canopy"),
        ({"legend": LAND}, "no mapping from 'nyc8'"),
        ({"exact": {"asset": "labels", "coding": "index", "legend": "nyc8"}}, "goes with `catalog`"),
    ],
)
def test_a_task_that_cannot_be_meant_is_refused_with_the_card(task, message):
    with pytest.raises(ValueError, match=message):
        a_card(tasks={"wrong": task})


def test_the_own_task_cannot_be_named_anew():
    with pytest.raises(ValueError, match="choose another name"):
        a_card(tasks={"own": {"legend": "autogeo4"}})


LAND_COVER = {"coding": "index", "legend": "nyc8"}


def a_folder(root: Path, seed: int, **tasks) -> sources.Dataset:
    """A data set of a picture in each of four scenes, with exact masks of two kinds: half of them the other's."""
    rng = np.random.default_rng(seed)
    for scene in "abcd":
        mask = np.kron(rng.integers(0, 4, (2, 3)), np.ones((32, 32))).astype(np.uint8)
        mask[:32, :32] = VOID
        for kind, pixels in {
            "images": rng.integers(0, 255, (64, 96, 3), dtype=np.uint8),
            "masks": mask,
            "others": np.where(mask == VOID, VOID, mask // 2).astype(np.uint8),
        }.items():
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / kind / f"{scene}.png")
    card = {
        "name": root.name, "licence": "CC0", "get": "ask", "root": str(root), "gsd_m": 1.0,
        "images": {"glob": "images/*.png", "bands": ["red", "green", "blue"], "scale": 255},
        "exact": {"glob": "masks/*.png", **LAND_COVER}, "noisy": {"from": "inject", "recipe": "map-like"},
        "split": {"test": ["a"], "validation": ["b"], "pretrain": ["c"], "finetune": ["d"]}, "tasks": tasks,
    }  # fmt: skip
    (root / "card.yaml").write_text(yaml.safe_dump(card))
    return patches.open_dataset(root / "card.yaml")


HOW = dict(size_px=32, max_patches=40, workers=1)


def test_other_exact_masks_are_read_for_the_same_windows(tmp_path):
    dataset = a_folder(tmp_path / "town", 0, halves={"exact": {"glob": "others/*.png", **LAND_COVER}})
    data = patches.cut(dataset, **HOW)
    found = tasks.task(dataset, data, "halves", **HOW)
    exact = data.masks["exact"]
    assert len(data) == 20 and np.array_equal(found.images, data.images)
    assert np.array_equal(found.masks["exact"], np.where(exact == VOID, VOID, exact // 2))
    assert found.fingerprint != data.fingerprint


def test_other_exact_masks_of_other_windows_are_refused(tmp_path):
    dataset = a_folder(tmp_path / "town", 0, halves={"exact": {"glob": "others/*.png", **LAND_COVER}})
    void = np.full((64, 96), VOID, np.uint8)
    void[:32, :32] = 0
    Image.fromarray(void).save(tmp_path / "town/others/a.png")
    with pytest.raises(ValueError, match="task 'halves' are known on other windows than those of the data set"):
        tasks.task(dataset, patches.cut(dataset, **HOW), "halves", **HOW)


def test_a_card_of_other_ground_judges_on_its_test_scenes(tmp_path):
    there = a_folder(tmp_path / "there", 1)
    here = a_folder(tmp_path / "here", 0, there={"card": str(tmp_path / "there/card.yaml")})
    data, other = patches.cut(here, **HOW), patches.cut(there, **HOW)
    found = tasks.task(here, data, "there", **HOW)
    assert np.array_equal(found.split("test").images, other.split("test").images)
    assert np.array_equal(found.split("finetune").images, data.split("finetune").images)
    assert set(found.split("test").scenes) == {"there/a"}


def test_judged_on_other_ground_only_the_test_patches_change():
    other = replace(toy_patches(seed=1), name="other")
    found = tasks.judged_on(DATA, other)
    for split in ("pretrain", "finetune", "validation"):
        assert np.array_equal(found.split(split).images, DATA.split(split).images)
        assert np.array_equal(found.split(split).masks["exact"], DATA.split(split).masks["exact"])
    assert np.array_equal(found.split("test").images, other.split("test").images)
    assert set(found.split("test").scenes) == {"other/scene-8", "other/scene-9"}
    assert (found.mean, found.std) == (DATA.mean, DATA.std)
    assert patches.load(found.fingerprint).fingerprint == found.fingerprint == patches.content_hash(found)


def test_places_of_other_ground_are_places_of_their_own():
    dated = replace(DATA, places=np.arange(len(DATA)) // 2)
    found = tasks.judged_on(dated, toy_patches(seed=1))
    new = found.places[found.member["test"]]
    assert len(set(new)) == len(new) and not set(new) & set(found.places[~found.member["test"]])


def test_ground_that_was_learned_from_does_not_judge():
    known = DATA.take(np.r_[np.flatnonzero(DATA.member["test"]), np.flatnonzero(DATA.member["pretrain"])[:1]])
    member = {**known.member, "test": np.ones(len(known), bool)}
    with pytest.raises(ValueError, match="1 of its test patches are its own"):
        tasks.judged_on(DATA, replace(known, name="other", member=member))


@pytest.mark.parametrize(
    ("change", "what"),
    [({"bands": ("red", "green", "blue", "nir")}, "bands"), ({"scale": 10_000.0}, "scale"),
     ({"exact_legend": legend.get("dw9")}, "exact_legend")],
)  # fmt: skip
def test_other_ground_must_be_of_the_same_kind(change, what):
    with pytest.raises(ValueError, match=f"cannot be judged on toy: {what} is"):
        tasks.judged_on(DATA, replace(toy_patches(seed=1), **change))


def test_only_the_patches_to_fine_tune_on_are_mislabelled():
    noisy = np.zeros_like(DATA.masks["exact"])
    found = tasks.mislabelled(DATA, noisy)
    learned = DATA.member["finetune"]
    assert not found.masks["exact"][learned].any()
    assert np.array_equal(found.masks["exact"][~learned], DATA.masks["exact"][~learned])
    assert found.fingerprint != DATA.fingerprint


def test_what_judges_cannot_be_mislabelled():
    with pytest.raises(ValueError, match="noisy must be uint8"):
        tasks.mislabelled(DATA, np.zeros((1, 32, 32), np.uint8))
    leaking = replace(DATA, member={**DATA.member, "test": DATA.member["finetune"]})
    with pytest.raises(ValueError, match="cannot be broken"):
        tasks.mislabelled(leaking, DATA.masks["exact"])


@pytest.mark.parametrize(("kind", "off"), [("flips", 0.001), ("patches", 0.02), ("map-like", 0.06)])
def test_masks_are_broken_at_the_rate_asked_and_void_stays(kind, off):
    truth, where = DATA.masks["exact"], DATA.member["pretrain"]
    found = tasks.broken(truth, DATA.exact_legend, kind, 0.2, where=where)
    assert np.array_equal(found == VOID, truth == VOID)
    told = noise.report(truth[where], found[where])
    assert told.changed / told.valid == pytest.approx(0.2, abs=off)
    again = tasks.broken(truth, DATA.exact_legend, kind, 0.2, where=where)
    assert np.array_equal(found, again)


def test_dates_of_one_place_share_their_errors():
    truth = np.repeat(DATA.masks["exact"][:10], 3, axis=0)
    truth[1, 5:9] = VOID  # clouds on one date
    places = np.repeat(np.arange(10), 3)
    found = tasks.broken(truth, DATA.exact_legend, "flips", 0.3, where=np.ones(30, bool), places=places)
    assert np.array_equal(found[0::3], found[2::3]) and (found[0::3] != truth[0::3]).any()
    assert np.array_equal(found == VOID, truth == VOID)


def test_an_unknown_kind_of_noise_is_refused():
    with pytest.raises(ValueError, match="unknown kind of noise 'fog'; known are flips, patches"):
        tasks.broken(DATA.masks["exact"], DATA.exact_legend, "fog", 0.2, where=DATA.member["pretrain"])


# ---- the grid ----------------------------------------------------------------------------------------------------
ARMS = ["random", "moco", "noisy", "exact"]


def laid_out(slices, most=64):
    return study.grid(slices, ARMS, usual=ARMS[:3], most=most)


def test_slices_are_crossed_and_a_cell_of_two_compares_the_arms_of_both():
    cells = laid_out([{"decoder": ["unet", "fpn"], "budget": [4, "all"]}, {"budget": 4, "arms": ["exact"]}])
    assert [(cell.decoder, cell.budget) for cell in cells] == [("unet", 4), ("unet", 64), ("fpn", 4), ("fpn", 64)]
    assert cells[study.Cell(budget=4)] == ARMS
    assert cells[study.Cell(budget=64)] == ARMS[:3]


def test_budgets_beyond_what_is_labelled_become_all_of_it():
    assert list(laid_out([{"budget": [16, 64, 256, "all"]}], most=20)) == [study.Cell(budget=16), study.Cell(budget=20)]


@given(st.permutations(range(3)))
def test_the_order_of_slices_changes_no_cell(order):
    slices = [{"decoder": ["unet", "fpn"]}, {"frozen": [True, False]}, {"task": "same", "arms": ["exact"]}]
    assert laid_out([slices[i] for i in order]) == laid_out(slices)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"decoders": ["unet"]}, "no field decoders; there are task, decoder"), ({"decoder": []}, "decoder has no value"),
     ({"arms": ["exact", "dino"]}, "no arm dino; there are random, moco, noisy, exact"),
     ({"arms": []}, "arms has no value"), ({"budget": 0}, "a number of patches or `all`, got 0"),
     ({"budget": "most"}, "got 'most'")],
)  # fmt: skip
def test_a_slice_that_cannot_be_meant_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        laid_out([wrong])


def test_usual_arms_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="no arm dino, vicregl; there are"):
        study.grid([{"budget": 4}], ARMS, usual=["random", "dino", "vicregl"], most=64)
