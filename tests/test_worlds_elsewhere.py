"""Kinds of scene by name: two other towns and another biome, and the usual worlds untouched by them."""

import json
from pathlib import Path

import numpy as np
import pystac
import pytest
import yaml

from nbutils import ROOT, cards, legend, simulate
from nbutils.worlds import ELSEWHERE, KINDS, blocks_elsewhere, check_kinds, city, globe, globe_product
from nbutils.worlds.canvas import BUILDING, GRASS, LAYOUTS, PAVED, ROAD, TREE, WATER, Streets
from nbutils.worlds.city_product import Scene
from nbutils.worlds.globe import IDS
from nbutils.worlds.globe_biomes import build_land
from nbutils.worlds.globe_sensor import BANDS, canvas_cells

COUNTS = {"seed": 5, "pretrain": 3, "finetune": 1, "validation": 1, "test": 1}
CITY, GLOBE = COUNTS | {"generator": "city", "size_px": 64}, COUNTS | {"generator": "globe", "size_px": 48}
B = {name: k for k, name in enumerate(BANDS)}


def _contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def _scenes(kinds: tuple[str, ...], count: int) -> list[Scene]:
    return [simulate.city_scene(np.random.SeedSequence(8, spawn_key=(k,)), 192, k, kinds) for k in range(count)]


@pytest.fixture(scope="module")
def usual() -> list[Scene]:
    return _scenes(KINDS["city"], 5)


@pytest.fixture(scope="module")
def elsewhere() -> list[Scene]:
    return _scenes(ELSEWHERE["city"], 5)


@pytest.fixture(scope="module")
def savannas() -> list[globe_product.Place]:
    seeds = [np.random.SeedSequence(4, spawn_key=(k,)) for k in range(3)]
    return [globe_product.make_place(seed, 96, k, ("savanna",)) for k, seed in enumerate(seeds)]


# ---- kinds


def test_every_kind_is_drawn_by_its_world():
    assert (*KINDS["city"], *ELSEWHERE["city"]) == tuple(LAYOUTS)
    assert tuple(globe.BIOMES) == KINDS["globe"] and tuple(globe.GROUNDS) == (*KINDS["globe"], *ELSEWHERE["globe"])
    assert set(blocks_elsewhere.MIX) == set(ELSEWHERE["city"])
    for mix in (*blocks_elsewhere.MIX.values(), *({k: s for k, s in enumerate(m)} for m in city._MIX.values())):
        assert sum(mix.values()) == pytest.approx(1)


def test_kinds_take_turns_in_every_split(tmp_path, monkeypatch):
    built, build = [], city.build_city

    def noted(rng, size_px, style, river, rail):
        built.append(style)
        return build(rng, size_px, style, river, rail)

    monkeypatch.setattr(city, "build_city", noted)
    simulate.write_world(tmp_path / "c", **CITY, kinds=["estate", "rows"])
    assert built == ["estate", "rows", "estate", "estate", "estate", "estate"]
    assert json.loads((tmp_path / "c/world.json").read_text())["kinds"] == ["estate", "rows"]
    catalog = simulate.write_world(tmp_path / "g", **GLOBE, kinds=("savanna", "coast"))
    items = {item.id: item for item in pystac.Catalog.from_file(str(catalog)).get_items()}
    biomes = [items[f"pretrain-0{k}"].properties["biome"] for k in range(3)]
    assert biomes == ["savanna", "coast", "savanna"]
    savanna = items["pretrain-00"]
    assert savanna.properties["proj:code"] == "EPSG:32735"
    assert abs(savanna.bbox[1] - globe.GROUNDS["savanna"][2]) < 1.5


@pytest.mark.parametrize("options", [CITY, GLOBE], ids=["city", "globe"])
def test_the_usual_kinds_by_name_make_the_usual_world(options, tmp_path):
    options = options | {"pretrain": 1, "finetune": 1}
    simulate.write_world(tmp_path / "a" / "w", **options)
    simulate.write_world(tmp_path / "b" / "w", **options, kinds=KINDS[options["generator"]])
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")
    assert "kinds" not in json.loads((tmp_path / "a/w/world.json").read_text())


@pytest.mark.parametrize(
    ("generator", "kinds", "said"),
    [
        ("city", ["suburb", "savanna"], "unknown kind 'savanna' of scene; the city knows suburb, .*oldtown, estate"),
        ("globe", ["estate"], "unknown kind 'estate' of scene; the globe knows farmland, .*coast, savanna"),
        ("city", [], "at least one kind of scene and each once, got none"),
        ("globe", ["coast", "coast"], "each once, got coast, coast"),
    ],
)
def test_unknown_kinds_are_refused_with_those_there_are(generator, kinds, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        check_kinds(generator, tuple(kinds))
    with pytest.raises(ValueError, match=said):
        simulate.write_world(tmp_path / "w", **{**CITY, "generator": generator, "kinds": kinds})
    assert not (tmp_path / "w").exists()
    raw = yaml.safe_load((ROOT / f"data/datasets/{generator}.yaml").read_text())
    raw["world"]["kinds"] = kinds
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(cards.CardError, match=f"world: .*{said}"):
        cards.load_card(tmp_path / "card.yaml")


@pytest.mark.parametrize("name", ["city", "globe"])
def test_worlds_and_patches_of_before_are_known_again(name, tmp_path, monkeypatch):
    """A world.json without `kinds` is that of the shipped card, and the card says no more than it did."""
    raw = yaml.safe_load((ROOT / f"data/datasets/{name}.yaml").read_text()) | {"root": str(tmp_path / "w")}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(raw))
    card = cards.load_card(tmp_path / "card.yaml")
    assert card.model_dump(mode="json")["world"] == raw["world"]  # patches are named by it
    (tmp_path / "w").mkdir()
    (tmp_path / "w/catalog.json").write_text("{}")
    (tmp_path / "w/world.json").write_text(json.dumps(raw["world"] | {"version": simulate.VERSIONS[name]}))
    written = []
    monkeypatch.setattr(simulate, "write_world", lambda root, **options: written.append(options))
    simulate.ensure_world(card)
    assert not written
    raw["world"]["kinds"] = list(ELSEWHERE[name])
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(raw))
    simulate.ensure_world(cards.load_card(tmp_path / "card.yaml"))
    assert [tuple(options["kinds"]) for options in written] == [ELSEWHERE[name]]


@pytest.mark.parametrize("name", ["city", "globe"])
def test_shipped_cards_of_elsewhere_differ_in_ground_alone(name):
    usual, other = (cards.load_card(ROOT / f"data/datasets/{n}.yaml") for n in (name, f"{name}_elsewhere"))
    assert other.world.kinds == ELSEWHERE[name] and other.folder != usual.folder
    assert (other.world.seed, other.world.size_px, other.world.test) == (1, usual.world.size_px, usual.world.test)
    for part in ("exact", "noisy", "split", "gsd_m", "catalog"):
        assert getattr(other, part) == getattr(usual, part)
    assert other.images.bands == usual.images.bands and other.images.scale == usual.images.scale


# ---- other towns


def test_towns_elsewhere_hold_all_but_every_class(elsewhere):
    counts = np.bincount(np.concatenate([scene.exact.ravel() for scene in elsewhere]), minlength=8)
    assert counts.sum() == 5 * 192**2 and (counts > 0.002 * counts.sum()).sum() == 8
    for scene in elsewhere:
        assert {TREE, GRASS, BUILDING, ROAD, PAVED} <= set(np.unique(scene.exact).tolist())
        assert 40 < scene.image.mean() < 170 and (scene.image >= 254).mean() < 0.03
        assert 1.2 < len(scene.points) / 192**2 < 8


def _of(scenes: list[Scene], which: slice) -> dict[str, float]:
    """Streets, buildings and colours of scenes, in numbers."""
    scenes = scenes[which]
    parts = [part for scene in scenes for part in scene.buildings]
    image = np.concatenate([scene.image.reshape(4, -1) for scene in scenes], 1).astype(float)
    exact = np.concatenate([scene.exact.ravel() for scene in scenes])
    roofs, lawns, paved = (image[:, exact == k] for k in (BUILDING, GRASS, PAVED))
    touching = np.concatenate([_beside(scene.exact, BUILDING, GRASS) for scene in scenes])
    return {
        "street_m": float(np.median([street["width_m"] for scene in scenes for street in scene.streets])),
        "buildings_per_ha": len(parts) / (len(scenes) * 3.69),
        "height_m": float(np.median([part["height_m"] for part in parts])),
        "clay": float((roofs[1] > 1.25 * roofs[3]).mean()),
        "dryness": float(np.median(lawns[1] / lawns[0])),
        "pavement": float(np.median(paved[1])),
        "in_lawns": float(touching.mean()),
    }


def _beside(exact: np.ndarray, inner: int, outer: int) -> np.ndarray:
    """Whether pixels right of or below the edge of one class, on the ground, are of another."""
    pairs = [(exact[:, :-1], exact[:, 1:]), (exact[:-1], exact[1:])]
    return np.concatenate([(b == outer)[(a == inner) & (b != inner)] for a, b in pairs])


def test_another_grammar_differs_in_streets_buildings_and_materials(usual, elsewhere):
    known, old, estate = _of(usual, slice(None)), _of(elsewhere, slice(0, None, 2)), _of(elsewhere, slice(1, None, 2))
    assert old["street_m"] < 7 < 8.5 < known["street_m"] < 11.5 < estate["street_m"]
    assert estate["buildings_per_ha"] < 0.7 * known["buildings_per_ha"] < 0.35 * old["buildings_per_ha"]
    assert estate["height_m"] > 1.5 * known["height_m"]
    assert old["clay"] > 0.3 + known["clay"] and estate["clay"] < 0.1
    assert old["dryness"] > known["dryness"] + 0.1 and old["pavement"] > known["pavement"] + 20
    assert estate["in_lawns"] > 0.6 > known["in_lawns"]


@pytest.mark.parametrize("seed", [5, 9, 10])
@pytest.mark.parametrize("style", ELSEWHERE["city"])
def test_nothing_stands_on_water_elsewhere(seed, style):
    canvas = city.build_city(np.random.default_rng(seed), 208, style, river=True, rail=False)
    assert canvas.river.any() and (canvas.cover == BUILDING).any()
    assert np.isin(canvas.cover[canvas.river], [WATER, ROAD]).all()
    assert (canvas.top[canvas.cover == WATER] == 0).all()


@pytest.mark.parametrize("seed", range(6))
def test_winding_streets_map_there_and_back(seed):
    streets = Streets.draw(np.random.default_rng(seed), 384, "oldtown")
    x, y = np.random.default_rng(1).uniform(0, 384, (2, 50))
    u, v = streets.to_uv(x, y)
    assert np.abs(np.stack(streets.to_xy(u, v)) - np.stack([x, y])).max() < 0.5


# ---- another biome


def test_a_savanna_holds_every_class_of_its_exact_map(savannas):
    dfc8 = legend.get("dfc8")
    exact = np.stack([place.exact["dfc8"] for place in savannas])
    shares = dict(zip(dfc8.names, np.bincount(exact.ravel(), minlength=len(dfc8)) / exact.size, strict=True))
    assert min(shares.values()) > 0.002 and shares["grassland"] > 0.2 and max(shares.values()) < 0.75
    assert {place.biome for place in savannas} == {"savanna"}
    assert all((place.product != legend.VOID).all() for place in savannas)


def test_a_savanna_lies_south_of_the_equator_and_is_dry_in_july(savannas):
    for place in savannas:
        green = {}
        grass = place.exact["dw9"] == legend.get("dw9").index("grass")
        for season in ("winter", "summer"):
            shot = place.shots[season]
            seen = grass & (shot.clouds == 0)
            red, nir = (shot.image[B[band]][seen].astype(float) for band in ("B04", "B08"))
            green[season] = np.median((nir - red) / (nir + red))
        azimuth, elevation = place.shots["summer"].sun
        assert green["winter"] > green["summer"] + 0.05
        assert (azimuth < 90 or azimuth > 270) and elevation < place.shots["winter"].sun[1]  # at noon from the north


def test_fires_leave_dark_patches_some_of_them_younger_than_the_product():
    land = build_land(np.random.default_rng(2), canvas_cells(96)[0], "savanna")
    burnt = land.has("burnt grass")
    assert 0.03 < burnt.mean() < 0.4
    assert 0.05 < (land.before[burnt] != IDS["burnt grass"]).mean() < 0.95


def test_what_was_added_to_the_table_of_surfaces_occurs_in_no_usual_biome():
    new = [IDS[name] for name in ("dry woodland", "gallery forest", "burnt grass")]
    assert new == list(range(len(IDS) - 3, len(IDS)))  # at its end: older surfaces keep their numbers
    for biome in KINDS["globe"]:
        land = build_land(np.random.default_rng(1), canvas_cells(48)[0], biome)
        assert not np.isin(land.surface, new).any()
