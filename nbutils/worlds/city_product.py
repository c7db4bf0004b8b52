"""What the embedded world `city` hands over: scenes with a photo, exact cover, LiDAR, buildings and streets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbutils.lidar.points import Points
from nbutils.worlds import KINDS, city, sensors

BANDS = ("nir", "red", "green", "blue")


@dataclass(frozen=True)
class Scene:
    """One scene in memory, pixels of 1 m.

    Attributes:
        image: Near infrared, red, green, blue; shape (4, H, W), uint8.
        exact: Classes of the legend nyc8, seen from above; shape (H, W), uint8.
        height: Height of what is seen above the terrain, metres; shape (H, W), float32.
        terrain: Height of the bare ground above the datum, metres; shape (H, W), float32.
        points: Laser returns; x to the east, y to the north from the lower left corner, metres.
        buildings: Corners (metres to the east and south of the upper left corner), height and use of building parts.
        streets: Centre lines in the same coordinates, and widths in metres.
        sun: Azimuth (clockwise from north) and elevation, degrees.
    """

    image: NDArray[np.uint8]
    exact: NDArray[np.uint8]
    height: NDArray[np.float32]
    terrain: NDArray[np.float32]
    points: Points
    buildings: list[dict]
    streets: list[dict]
    sun: tuple[float, float]


def city_scene(seed: int | np.random.SeedSequence, size_px: int, index: int = 0,
               kinds: tuple[str, ...] = KINDS["city"]) -> Scene:  # fmt: skip
    """Make one scene.

    Args:
        seed: Everything random in the scene follows from it.
        size_px: Side in pixels of 1 m, at least 48.
        index: Number of the scene in its split; consecutive scenes take turns in style, river and railway, so that
            a split of few scenes is still varied.
        kinds: The styles that take turns.

    Returns:
        The scene.

    Raises:
        ValueError: `size_px` below 48.
    """
    if size_px < 48:
        raise ValueError(f"size_px of a city scene must be at least 48, got {size_px}")
    # rebuilt rather than spawned from, because spawning changes the sequence it is asked of
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    keys = [np.random.SeedSequence(root.entropy, spawn_key=(*root.spawn_key, k)) for k in range(3)]
    plan, camera, laser = (np.random.default_rng(key) for key in keys)
    style = kinds[index % len(kinds)]
    canvas = city.build_city(plan, size_px, style, river=index % 3 == 1, rail=index % 3 == 2)
    albedo = sensors.albedo_of(canvas, camera)
    sun = float(camera.uniform(125, 235)), float(camera.uniform(32, 58))
    height = np.maximum(canvas.top, canvas.crown)
    return Scene(
        image=sensors.photograph(canvas, albedo, sun, camera),
        exact=sensors.majority(sensors.cover_from_above(canvas)),
        height=sensors.mean2(sensors.inner(height)),
        terrain=sensors.mean2(sensors.inner(canvas.terrain)),
        points=sensors.scan(canvas, albedo[0], laser),
        buildings=canvas.buildings,
        streets=canvas.streets,
        sun=sun,
    )
