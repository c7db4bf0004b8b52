"""Point clouds whose answer is known, and files of them, for the tests of points and LiDAR labels."""

from pathlib import Path

import laspy
import numpy as np
import pyproj
from affine import Affine
from odc.geo.geobox import GeoBox

from nbutils.lidar.points import Points

SIZE = 80
X0, Y0 = 583_000.0, 4_512_000.0
UTM = pyproj.CRS("EPSG:32618")
GRID = GeoBox((SIZE, SIZE), Affine(1, 0, X0, 0, -1, Y0), "EPSG:32618")


def grid_of(size_m: float, pixel_m: float = 1.0) -> GeoBox:
    """A grid from the same corner."""
    n = int(round(size_m / pixel_m))
    return GeoBox((n, n), Affine(pixel_m, 0, X0, 0, -pixel_m, Y0), "EPSG:32618")


def town(terrain=lambda x, y: 20 + 0.03 * x, density: float = 5, size: int = SIZE, seed: int = 0) -> Points:
    """Asphalt at x 10..20, a gabled house of 6 m at x 30..50, y 20..40, a round tree at (65, 60); metres from the
    corner to the east and south. Terrain is a function of x and y."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, size, (2, int(density * size * size)))
    bare = terrain(x, y)
    intensity = np.where((x > 10) & (x < 20), 2000, 6000) * rng.lognormal(0, 0.1, len(x))
    z, house, d = bare.copy(), (x > 30) & (x < 50) & (y > 20) & (y < 40), np.hypot(x - 65, y - 60)
    z[house] = terrain(np.array([40.0]), np.array([30.0]))[0] + 6 + 0.3 * (10 - np.abs(y[house] - 30))
    leaves = d < 7
    z = np.where(leaves, bare + 3 + (10 - 0.8 * d) * rng.uniform(0.3, 1, len(x)), z) + rng.normal(0, 0.03, len(x))
    two = np.flatnonzero(leaves & (rng.random(len(x)) < 0.6))
    of = np.ones(len(x), np.uint8)
    of[two] = 2
    x, y, z, intensity = (np.r_[a, b[two]] for a, b in ((x, x), (y, y), (z, bare), (intensity, intensity)))
    number = np.r_[np.ones(len(of), np.uint8), np.full(len(two), 2, np.uint8)]
    return Points(X0 + x, Y0 - y, z, intensity.astype(np.uint16), number, np.r_[of, of[two]], None, UTM)


def write(path: Path, points: Points, crs: str | pyproj.CRS | None = UTM, scale: float = 0.001, point_format: int = 6,
          unit: float = 1.0) -> Path:  # fmt: skip
    """Write a LAS or LAZ file; coordinates are divided by `unit`."""
    header = laspy.LasHeader(point_format=point_format, version="1.4" if point_format > 5 else "1.2")
    xyz = np.c_[points.x, points.y, points.z] / unit
    header.scales, header.offsets = np.full(3, scale), np.floor(xyz.min(axis=0)) if len(points) else np.zeros(3)
    if crs is not None:
        header.add_crs(pyproj.CRS(crs))
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = xyz.T
    for name in ("intensity", "return_number", "number_of_returns", "classification"):
        if (values := getattr(points, name)) is not None:
            cloud[name] = values
    cloud.write(path)
    return path
