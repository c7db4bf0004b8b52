"""The embedded globe: repeatable, varied, physically sensible, with a product that errs as real ones do."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from nbutils import ROOT, cards, legend, simulate, sources
from nbutils.legend import VOID
from nbutils.worlds import globe, globe_product, globe_sensor
from nbutils.worlds.globe import BIOMES, IDS, SURFACES, Land
from nbutils.worlds.globe_biomes import build_land
from nbutils.worlds.globe_sensor import BANDS, CLOUD, SEASONS, SHADOW

SIZE = 96
SMALL = {"seed": 3, "pretrain": 2, "finetune": 1, "validation": 1, "test": 1, "size_px": 66, "generator": "globe"}
B = {name: k for k, name in enumerate(BANDS)}


def _seed(k: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(11, spawn_key=(k,))


@pytest.fixture(scope="module")
def places() -> list[globe_product.Place]:
    return [globe_product.make_place(_seed(k), SIZE, k) for k in range(2 * len(BIOMES))]


@pytest.fixture(scope="module")
def lands() -> list[Land]:
    cells, _ = globe_sensor.canvas_cells(SIZE)
    return [build_land(np.random.default_rng([5, k]), cells, biome) for k, biome in enumerate(BIOMES)]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("worlds") / "a.small.globe"
    simulate.write_world(root, **SMALL)
    return root


def _contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def _ndvi(image: np.ndarray) -> np.ndarray:
    red, nir = image[B["B04"]].astype(float), image[B["B08"]].astype(float)
    return (nir - red) / (nir + red)


# ---- the table of surfaces


def test_every_surface_has_a_class_in_every_legend_but_ice_in_dfc8():
    for name in ("dw9", "dfc8", "osm13"):
        ids = globe.names(name)
        assert set(np.unique(ids)) <= {*range(len(legend.get(name))), VOID}
        assert set(range(len(legend.get(name)))) <= set(ids.tolist()), f"a class of {name} has no surface"
        nowhere = [SURFACES[k].name for k in np.flatnonzero(ids == VOID)]
        assert nowhere == (["glacier"] if name == "dfc8" else [])


def test_no_legend_is_a_recoding_of_another():
    for one in ("dw9", "dfc8", "osm13"):
        for other in ("dw9", "dfc8", "osm13"):
            pairs = set(zip(globe.names(one).tolist(), globe.names(other).tolist(), strict=True))
            assert one == other or len(pairs) > max(len(legend.get(one)), len(legend.get(other)))


def test_the_year_of_every_surface_is_complete_and_never_over_full():
    spectra = {row["name"] for row in globe.read_table("spectra")}
    for surface in SURFACES:
        green, dry = ([int(digit) for digit in year] for year in (surface.green, surface.dry))
        assert len(green) == len(dry) == 12
        assert max(g + d for g, d in zip(green, dry, strict=True)) <= 11, surface.name
        assert {surface.base, surface.leaf} <= spectra
        assert surface.poor_percent + surface.rich_percent < 100


# ---- the ground


def test_unknown_biome_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown biome 'moon'; known: farmland"):
        build_land(np.random.default_rng(0), 120, "moon")


def test_biomes_hold_what_they_are_named_for(lands):
    share = {}
    for land in lands:
        known = globe.names("dw9")[land.surface]
        share[land.biome] = dict(
            zip(legend.get("dw9").names, np.bincount(known.ravel(), minlength=9) / known.size, strict=True)
        )
        assert land.surface.max() < len(SURFACES) and np.isfinite(land.height).all() and np.isfinite(land.vigour).all()
    assert share["farmland"]["crops"] > 0.2 and share["forest"]["trees"] > 0.35 and share["city"]["built"] > 0.3
    assert share["arid"]["bare"] + share["arid"]["shrub and scrub"] > 0.3
    assert share["coast"]["water"] > 0.15 and share["wetland"]["flooded vegetation"] + share["wetland"]["water"] > 0.15
    steep = {land.biome: np.ptp(land.height) for land in lands}
    assert steep["mountain"] > 3 * max(v for k, v in steep.items() if k != "mountain")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(20, 90), st.floats(2, 5), st.floats(8, 200))
def test_fractal_noise_is_standardised_and_repeats(seed, n, steep, longest):
    noise = globe.fractal(np.random.default_rng(seed), n, steep, longest)
    assert noise.shape == (n, n) and noise.dtype == np.float32
    assert abs(float(noise.mean())) < 1e-3 and abs(float(noise.std()) - 1) < 1e-3
    assert np.array_equal(noise, globe.fractal(np.random.default_rng(seed), n, steep, longest))


def test_steeper_noise_is_smoother():
    rough, smooth = (globe.fractal(np.random.default_rng(1), 200, s, 100) for s in (2.0, 4.0))
    assert np.abs(np.diff(smooth)).mean() < 0.5 * np.abs(np.diff(rough)).mean()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9))
def test_pixels_take_the_commonest_cell(seed, classes):
    cells = np.random.default_rng(seed).integers(0, classes, (8, 8)).astype(np.uint8)
    pixels = globe.to_pixels(cells)
    for row in range(4):
        for column in range(4):
            four = cells[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].ravel()
            counts = np.bincount(four, minlength=classes)
            assert counts[pixels[row, column]] == counts.max()
            assert len(set(four.tolist())) < 4 or pixels[row, column] == four[0]


# ---- the light


@pytest.mark.parametrize(
    ("day", "latitude", "elevation"), [(80, 0, 67.5), (172, 45, 62), (355, 45, 17.5), (172, 60, 50)]
)
def test_sun_stands_where_almanacs_say(day, latitude, elevation):
    azimuth, height = globe_sensor.sun_position(day, latitude)
    assert abs(height - elevation) < 3
    assert 60 < azimuth < 180 if latitude else 60 < azimuth < 100  # half past ten: east of south


def test_images_are_reflectance_without_zeros_in_thirteen_bands(places):
    for place in places:
        assert list(place.shots) == list(SEASONS)
        for shot in place.shots.values():
            assert shot.image.shape == (13, SIZE, SIZE) and shot.image.dtype == np.uint16
            assert shot.image.min() >= 1 and shot.image.max() <= 20_000
            assert 5 < shot.sun[1] < 80


def test_coarse_bands_are_less_sharp(places):
    def edges(place, band):
        image = place.shots["summer"].image[B[band]].astype(float)
        return np.abs(np.diff(image)).mean() / image.std()

    for place in (p for p in places if p.biome in ("city", "farmland")):
        assert edges(place, "B04") > 1.2 * edges(place, "B05") > 1.2 * edges(place, "B01")


def _clear(place, season, *surfaces):
    """Bands of clear, pure pixels of the dw9 classes named, (13, pixels)."""
    shot = place.shots[season]
    wanted = [legend.get("dw9").index(name) for name in surfaces]
    return shot.image[:, np.isin(place.exact["dw9"], wanted) & (shot.clouds == 0)].astype(float)


def test_spectra_of_water_plants_and_ground(places):
    seen = 0
    for place in places:
        if place.biome == "mountain":  # shadows
            continue
        water, trees = _clear(place, "summer", "water"), _clear(place, "summer", "trees")
        if water.shape[1] > 60:
            seen += 1
            median = np.median(water, axis=1)
            assert median[B["B11"]] < median[B["B03"]] and median[B["B08"]] < median[B["B03"]]
        if trees.shape[1] > 200 and place.biome != "arid":
            seen += 1
            median = np.median(trees, axis=1)
            assert median[B["B08"]] > 3 * median[B["B04"]] and median[B["B11"]] < median[B["B08"]]
            assert median[B["B04"]] < median[B["B05"]] < median[B["B06"]]  # the red edge
        if place.biome == "arid":
            bare = np.median(_clear(place, "winter", "bare"), axis=1)
            assert bare[B["B02"]] < bare[B["B04"]] < bare[B["B08"]] < bare[B["B11"]]
    assert seen > 8


def test_snow_is_bright_to_the_eye_and_dark_in_the_short_wave(places):
    found = 0
    for place in (p for p in places if p.biome in ("forest", "mountain")):
        shot = place.shots["winter"]
        image = shot.image.astype(float)
        index = (image[B["B03"]] - image[B["B11"]]) / (image[B["B03"]] + image[B["B11"]])
        snow = (index > 0.6) & (image[B["B03"]] > 4000) & (shot.clouds == 0)
        found += snow.sum()
        summer = place.shots["summer"].image.astype(float)
        assert (summer[B["B03"]] > 4000)[place.shots["summer"].clouds == 0].mean() < snow.mean() + 0.2
    assert found > 2000


def test_crops_and_leaves_follow_the_seasons(places):
    crops, broad = [], []
    for place in (p for p in places if p.biome in ("farmland", "city")):
        fields = place.exact["dw9"] == legend.get("dw9").index("crops")
        seasons = np.stack([_ndvi(shot.image) for shot in place.shots.values()])
        clear = fields & np.all([shot.clouds == 0 for shot in place.shots.values()], axis=0)
        if clear.sum() > 300:
            crops.append(np.ptp(seasons[:, clear], axis=0))
    assert len(crops) >= 2 and np.median(np.concatenate(crops)) > 0.25
    assert np.quantile(np.concatenate(crops), 0.1) < 0.2  # while some fields change little
    for place in (p for p in places if p.biome == "forest"):
        trees = (place.exact["dw9"] == 1) & (place.shots["winter"].clouds == 0) & (place.shots["summer"].clouds == 0)
        if trees.sum() > 300:
            broad.append(
                np.median(_ndvi(place.shots["summer"].image)[trees])
                - np.median(_ndvi(place.shots["winter"].image)[trees])
            )
    assert broad and min(broad) > 0.1


def test_shadows_lie_where_the_sun_puts_them():
    cells, _ = globe_sensor.canvas_cells(160)
    land = build_land(np.random.default_rng(2), cells, "farmland")
    plot, seen = globe_sensor.survey(land, np.random.default_rng(2)), 0
    for k in range(12):
        shot = globe_sensor.observe(land, plot, np.random.default_rng(k), "summer", 160)
        rows, columns = (round(v) for v in shot.offset)
        assert rows < 0 and columns < 0  # the sun is in the south-east, shadows fall to the north-west
        thick = shot.thickness > 0.7
        if not 100 < thick.sum() or max(abs(rows), abs(columns)) > 110:
            continue
        there = np.roll(thick, (rows, columns), (0, 1))[:rows, :columns] if rows and columns else thick
        code = shot.clouds[:rows, :columns][there]
        if len(code) > 60:
            seen += 1
            assert np.isin(code, (SHADOW, CLOUD)).mean() > 0.9
            dark = shot.image[B["B08"]][shot.clouds == SHADOW].mean()
            assert dark < 0.75 * shot.image[B["B08"]][shot.clouds == 0].mean()
            assert shot.image[B["B04"]][shot.clouds == CLOUD].mean() > 3 * shot.image[B["B04"]][shot.clouds == 0].mean()
        if seen == 2:
            break
    assert seen >= 1


def test_colour_alone_does_not_solve_it(places):
    """The nearest class in colour (13 bands, one summer) errs on a third of pixels of places it has not seen."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng = np.random.default_rng(0)
    x, y = [], []
    for place in places:
        pick = rng.choice(SIZE * SIZE, 500, replace=False)
        x.append(place.shots["summer"].image.reshape(13, -1)[:, pick].T)
        y.append(place.exact["dw9"].ravel()[pick])
    half = len(places) // 2
    model = HistGradientBoostingClassifier(max_iter=12, random_state=0).fit(
        np.concatenate(x[:half]), np.concatenate(y[:half])
    )
    score = model.score(np.concatenate(x[half:]), np.concatenate(y[half:]))
    assert 0.35 < score < 0.75


# ---- the product


def test_agreement_of_a_hand_made_map():
    exact = np.array([0, 0, 0, 1, 1, VOID, 4], np.uint8)
    product = np.array([0, 0, 1, 1, 0, 3, VOID], np.uint8)
    table = globe_product.agreement(exact, product)
    assert table.loc["overall", "agreement"] == pytest.approx(3 / 5)
    assert table.loc["water", "producer's"] == pytest.approx(2 / 3) and table.loc["water", "user's"] == pytest.approx(
        2 / 3
    )
    assert table.loc["trees", "agreement"] == pytest.approx(2 * 1 / (2 + 2))
    assert np.isnan(table.loc["crops", "producer's"])  # its only pixel has no product


def test_product_is_about_as_wrong_as_real_ones(places):
    exact, product = (np.stack(maps) for maps in zip(*((p.exact["dw9"], p.product) for p in places), strict=True))
    table = globe_product.agreement(exact, product)["agreement"]
    assert 0.6 < table["overall"] < 0.82
    assert table["water"] > 0.75 and table["built"] > 0.7 and table["trees"] > 0.65  # few and small places: wide bounds
    assert max(table["grass"], table["shrub and scrub"]) < min(table["water"], table["built"], table["trees"])


def _product(land, shots=(), seed=0):
    blank = globe_sensor.Shot(
        np.ones((13, SIZE, SIZE), np.uint16), np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.float32),
        200, (150, 50), (0, 0))  # fmt: skip
    return globe_product.make_product(land, list(shots) or [blank], np.random.default_rng(seed))


def _flat(surface: str, biome: str = "farmland") -> Land:
    cells, _ = globe_sensor.canvas_cells(SIZE)
    land = Land(np.random.default_rng(8), cells, biome)
    land.put(np.ones((cells, cells), bool), surface)
    land.vigour = land.noise(3, 40)
    return land


def test_dry_fields_are_taken_for_shrub_and_those_of_the_temperate_zone_are_not():
    shrub, crops = (legend.get("dw9").index(name) for name in ("shrub and scrub", "crops"))
    arid, temperate = _product(_flat("millet", "arid")), _product(_flat("winter cereal"))
    assert (arid == shrub).mean() > 0.15 > 0.02 > (temperate == shrub).mean()
    assert (_product(_flat("dry shrub", "arid")) == crops).mean() > 0.05


def test_poor_fields_are_the_ones_mistaken():
    land = _flat("millet", "arid")
    wrong = _product(land) == legend.get("dw9").index("shrub and scrub")
    vigour = land.vigour[36::2, 36::2][:SIZE, :SIZE]
    assert vigour[wrong].mean() < vigour[~wrong].mean() - 0.8


def test_what_is_new_is_missing_from_the_product():
    land = _flat("conifer forest")
    block = np.zeros(land.surface.shape, bool)
    block[80:130, 80:130] = True
    land.put(block, "clearing", new=True)
    product = _product(land)
    inside = product[(80 - 36) // 2 : (130 - 36) // 2, (80 - 36) // 2 : (130 - 36) // 2]
    assert (inside == legend.get("dw9").index("trees")).mean() > 0.8 and (inside == 2).mean() < 0.05


def test_small_things_vanish_and_borders_are_round():
    land = _flat("lake")
    land.put((land.x % 40 < 2), "road")  # lanes
    assert (_product(land) == legend.get("dw9").index("built")).mean() < 0.01
    land = _flat("lake")
    land.put((land.x > 90) & (land.y > 90), "hall")
    corner = _product(land)[27:33, 27:33]
    exact = globe.names("dw9")[globe.to_pixels(land.surface[36:-36, 36:-36])][27:33, 27:33]
    assert (exact == 6).any() and 0 < (exact != corner).sum() < 12


def test_cloud_becomes_snow_and_shadow_becomes_water_and_only_there(places):
    snow, water = (legend.get("dw9").index(name) for name in ("snow and ice", "water"))
    clouded = np.zeros((SIZE, SIZE), np.uint8)
    for row in range(4, 84, 14):
        for column in range(4, 84, 14):
            clouded[row : row + 8, column : column + 8] = CLOUD if column < 46 else SHADOW
    shot = globe_sensor.Shot(
        np.ones((13, SIZE, SIZE), np.uint16), clouded, (clouded == CLOUD).astype(np.float32), 200, (150, 50), (0, 0)
    )
    product = _product(_flat("winter cereal"), [shot] * 4)
    assert (product == snow).any() and (product == water).any()
    assert (clouded[product == snow] == CLOUD).all() and (clouded[product == water] == SHADOW).all()
    for place in places:
        cloudy = np.any([shot.clouds == CLOUD for shot in place.shots.values()], axis=0)
        if not (place.exact["dw9"] == snow).any():
            assert cloudy[place.product == snow].all()


# ---- places and worlds


def test_places_repeat_from_their_seed_and_differ_from_one_another(places):
    again = globe_product.make_place(_seed(2), SIZE, 2)
    assert np.array_equal(again.product, places[2].product)
    for season in SEASONS:
        assert np.array_equal(again.shots[season].image, places[2].shots[season].image)
    assert [p.biome for p in places[: len(BIOMES)]] == list(BIOMES)
    for i, a in enumerate(places):
        for b in places[:i]:
            same = max(
                (a.exact["osm13"] == turn(b.exact["osm13"])).mean() for turn in (np.asarray, np.rot90, np.flipud)
            )
            assert same < 0.95 and not np.array_equal(a.shots["summer"].image, b.shots["summer"].image)


def test_exact_maps_agree_with_one_another(places):
    allowed = {
        other: set(zip(globe.names("dw9").tolist(), globe.names(other).tolist(), strict=True))
        for other in ("dfc8", "osm13")
    }
    for place in places:
        for other, pairs in allowed.items():
            seen = set(zip(place.exact["dw9"].ravel().tolist(), place.exact[other].ravel().tolist(), strict=True))
            assert seen <= pairs
        assert (place.exact["osm13"] != VOID).all() and (place.product != VOID).all()


def test_small_places_are_refused():
    with pytest.raises(ValueError, match="at least 48, got 20"):
        globe_product.make_place(0, 20)


class _Here:
    """Stands for a second process: a part of a world written in this one, which has drawn and imported other things."""

    def __init__(self, command: list[str], **_: object) -> None:
        folder, part, parts = command[-3:]
        simulate._write_part(Path(folder), int(part), int(parts))
        self.returncode = 0

    def communicate(self) -> tuple[bytes, bytes]:
        return b"", b""

    def poll(self) -> int:
        return 0


def test_world_is_the_same_with_any_number_of_processes(world, tmp_path, monkeypatch):
    """One part in a fresh process and one in this: another such process costs seconds and proves no more."""
    start, begun = subprocess.Popen, []

    def begin(command, **how):
        begun.append(command)
        return (start if len(begun) == 1 else _Here)(command, **how)

    monkeypatch.setattr(simulate.subprocess, "Popen", begin)
    simulate.write_world(tmp_path / "again", **SMALL, workers=2)
    assert [command[-2:] for command in begun] == [["0", "2"], ["1", "2"]]
    assert _contents(tmp_path / "again") == _contents(world)


def test_catalogue_is_whole_and_relative(world):
    items = list(pystac.Catalog.from_file(str(world / "catalog.json")).get_items())
    assert [item.id for item in items] == ["pretrain-00", "pretrain-01", "finetune-00", "validation-00", "test-00"]
    boxes = []
    for item in items:
        assert set(item.assets) == {*SEASONS, "exact_dw9", "exact_dfc8", "exact_osm13", "product", "clouds"}
        assert item.properties["biome"] in BIOMES and item.properties["gsd"] == 10
        assert item.properties["start_datetime"] < item.properties["end_datetime"]
        assert 0 <= item.assets["summer"].extra_fields["eo:cloud_cover"] <= 60
        for asset in item.assets.values():
            with rasterio.open(asset.get_absolute_href()) as data:
                assert data.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and data.res == (10, 10)
                assert f"EPSG:{data.crs.to_epsg()}" == item.properties["proj:code"]
                assert data.transform.c % 20 == 0 and data.transform.f % 20 == 0
        boxes.append(tuple(round(v, 3) for v in item.bbox))
        west, south, east, north = item.bbox
        assert abs((south + north) / 2 - BIOMES[item.properties["biome"]][2]) < 1.5
    assert len(set(boxes)) == len(boxes)
    for path in world.rglob("*.json"):
        for link in json.loads(path.read_text()).get("links", []):
            assert "://" not in link["href"] and not link["href"].startswith("/")
    with rasterio.open(world / "test-00" / "summer.tif") as data:
        assert data.descriptions == BANDS and data.dtypes[0] == "uint16"


def _card(root: Path, path: Path) -> Path:
    text = (ROOT / "data/datasets/globe.yaml").read_text()
    world = "{" + ", ".join(f"{k}: {v}" for k, v in SMALL.items()) + "}"
    lines = [f"root: {root}" if line.startswith("root:") else f"world: {world}" if line.startswith("world:") else line
             for line in text.splitlines()]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return path


def test_shipped_card_reads_the_world_and_does_not_make_it_twice(world, tmp_path, monkeypatch):
    card = cards.load_card(_card(world, tmp_path / "small.yaml"))
    monkeypatch.setattr(simulate, "write_world", lambda *a, **k: pytest.fail("made anew"))
    simulate.ensure_world(card)
    dataset = sources.read_dataset(tmp_path / "small.yaml")
    assert len(dataset.tiles) == 5 and dataset.bands == BANDS
    assert dataset.exact_legend.name == "dfc8" and dataset.noisy_legend.name == "dw9"
    tile = dataset.tiles_of("test")[0]
    image, grid = dataset.read_image(tile)
    assert image.shape == (13, 66, 66) and image.dtype == np.int32 and grid.crs.proj.utm_zone
    exact = sources.read_exact(dataset, tile)
    with rasterio.open(world / "test-00" / "exact_dw9.tif") as data:
        other = data.read(1)
    assert exact.shape == other.shape == (66, 66)
    assert np.array_equal(exact == VOID, other == globe.names("dw9")[IDS["glacier"]])


def test_shipped_world_has_every_biome_in_pretraining_and_test():
    world = cards.load_card(ROOT / "data/datasets/globe.yaml").world
    for split, count in enumerate((world.pretrain, world.finetune, world.validation, world.test)):
        turns = {(simulate._TURN[split] + k) % len(BIOMES) for k in range(count)}
        assert len(turns) == min(count, len(BIOMES))
