"""The door to labels: what it re-exports, and which way a card's noisy masks are made."""

from pathlib import Path
from types import SimpleNamespace

import clouds
import numpy as np
import pytest
from odc.geo.geobox import GeoBox

from nbutils import cards, labelling, legend, noise
from nbutils.files import SourceError, write_mask

GRID = clouds.GRID


def test_the_door_leads_to_every_way_of_labelling():
    assert all(hasattr(labelling, name) for name in labelling.__all__)
    ways = {"from_lidar", "from_product", "from_vector", "measure", "apply_rules", "LidarRules", "noisy_mask"}
    assert ways <= set(labelling.__all__)
    assert (labelling.BACKGROUND, labelling.TREE, labelling.BUILDING, labelling.ROAD) == tuple(
        legend.get("autogeo4").index(name) for name in ("background", "tree", "building", "road")
    )


def _dataset(noisy, exact_path: Path | None = None):
    exact = cards.Masks.model_validate({"glob": "*", "coding": "index", "legend": "dubai5"})
    card = SimpleNamespace(noisy=noisy, exact=exact, gsd_m=None)
    tile = SimpleNamespace(name="a/b", image=exact_path, exact=exact_path, noisy=None)
    return SimpleNamespace(card=card, exact_legend=legend.get("dubai5")), tile


def test_injected_masks_are_the_tiles_own_and_repeatable(tmp_path):
    exact = np.kron(np.random.default_rng(0).integers(0, 5, (8, 8)), np.ones((12, 12))).astype(np.uint8)
    path = write_mask(tmp_path / "exact.tif", exact, GeoBox((96, 96), GRID.transform, GRID.crs), legend.get("dubai5"))
    inject = cards.Inject.model_validate({"from": "inject", "recipe": next(iter(noise.RECIPES)), "seed": 3})
    dataset, tile = _dataset(inject, path)
    first = labelling.noisy_mask(dataset, tile)
    assert np.array_equal(first, labelling.noisy_mask(dataset, tile)) and 0.01 < (first != exact).mean() < 0.8
    tile.name = "a/c"
    assert not np.array_equal(first, labelling.noisy_mask(dataset, tile))
    asked = labelling.noisy_mask(_dataset(inject.model_copy(update={"rate": 0.2}), path)[0], tile)
    assert abs((asked != exact).mean() - 0.2) < 0.01
    still = inject.model_copy(update={"strength": 0.0})
    assert np.array_equal(labelling.noisy_mask(_dataset(still, path)[0], tile), exact)


def test_missing_noisy_file_is_named():
    dataset, tile = _dataset(cards.Lidar.model_validate({"from": "lidar", "glob": "*.laz"}))
    with pytest.raises(SourceError, match="a/b"):
        labelling.noisy_mask(dataset, tile)


def test_points_of_a_card_are_laid_on_the_image(tmp_path):
    town = clouds.town()
    image = write_mask(tmp_path / "image.tif", np.zeros(GRID.shape, np.uint8), GRID, legend.get("autogeo4"))
    dataset, tile = _dataset(cards.Lidar.model_validate({"from": "lidar", "glob": "*.laz"}), image)
    tile.noisy = clouds.write(tmp_path / "points.laz", town)
    assert (labelling.noisy_mask(dataset, tile) == labelling.from_lidar(town, GRID).mask).mean() > 0.999
    tile.image = write_mask(tmp_path / "nowhere.tif", np.zeros((9, 9), np.uint8), None, legend.get("autogeo4"))
    with pytest.raises(SourceError, match=r"nowhere\.tif: has no CRS and transform"):
        labelling.noisy_mask(dataset, tile)
