"""The light of the embedded world `globe`: plants through the year, snow, sun, air, clouds, and a 13-band imager.

What is seen is top-of-atmosphere reflectance as in Sentinel-2 level 1C: the land of `globe` with the leaves of the day,
lit by the sun of that day and latitude, through haze and clouds, blurred to the sharpness of each band.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nbutils.worlds.globe import CELL_M, GROUNDS, IDS, SURFACES, Field, Land, fractal, read_table

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
SUPPORT_M = (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 60, 20, 20)
SEASONS = {"winter": 25, "spring": 121, "summer": 203, "autumn": 285}  # day of the year
CLEAR, CLOUD, SHADOW = range(3)  # codes of the cloud map

_KNOWN = {row["name"]: np.array([row[band] for band in BANDS], np.float32) / 1000 for row in read_table("spectra")}
_PATH = np.array((97, 72, 45, 26, 20, 15, 12, 9, 7, 6, 1, 2, 1), np.float32) / 1000  # light scattered by clean air
_PASS = np.array((0.80, 0.86, 0.89, 0.93, 0.93, 0.94, 0.95, 0.94, 0.96, 0.36, 0.002, 0.95, 0.94), np.float32)
_HAZE = np.array((80, 70, 58, 46, 42, 37, 34, 29, 26, 12, 0, 9, 5), np.float32) / 1000
_CLOUD = np.array((66, 67, 66, 68, 69, 70, 71, 71, 71, 34, 1.4, 52, 42), np.float32) / 100
_SKY = np.array((40, 32, 24, 18, 16, 13, 12, 10, 9, 8, 8, 5, 4), np.float32) / 100  # diffuse share of the light
_SNOWLINE = {  # metres in winter, spring, summer, autumn; unlisted biomes have no snow
    "farmland": (340, 9e3, 9e3, 9e3), "city": (330, 9e3, 9e3, 9e3), "wetland": (180, 9e3, 9e3, 9e3),
    "forest": (-200, 500, 9e3, 700), "mountain": (500, 1650, 2900, 2250),
}  # fmt: skip


@dataclass(frozen=True)
class Shot:
    """One date of a place.

    Attributes:
        image: Reflectance x 10000 in the bands `BANDS`, shape (13, H, W), uint16, never 0.
        clouds: `CLEAR`, `CLOUD` or `SHADOW`, shape (H, W), uint8.
        thickness: Opacity of the cloud, 0..1, shape (H, W), float32.
        day: Day of the year.
        sun: Azimuth (clockwise from north) and elevation, degrees.
        offset: Rows and columns from a cloud to its shadow, pixels.
    """

    image: NDArray[np.uint16]
    clouds: NDArray[np.uint8]
    thickness: Field
    day: float
    sun: tuple[float, float]
    offset: tuple[float, float]


def canvas_cells(size_px: int) -> tuple[int, int]:
    """Cells of the land needed for a scene of so many 10 m pixels, a multiple of 60 m, and the margin around it."""
    return 12 * -(-(size_px + 36) // 6), 36


def sun_position(day: float, latitude: float) -> tuple[float, float]:
    """Azimuth and elevation in degrees at half past ten local solar time."""
    tilt, lat, hour = np.deg2rad((-23.44 * np.cos(2 * np.pi * (day + 10) / 365.25), latitude, -22.5))
    height = np.arcsin(np.sin(lat) * np.sin(tilt) + np.cos(lat) * np.cos(tilt) * np.cos(hour))
    east = -np.cos(tilt) * np.sin(hour)
    north = np.cos(lat) * np.sin(tilt) - np.sin(lat) * np.cos(tilt) * np.cos(hour)
    return float(np.rad2deg(np.arctan2(east, north)) % 360), float(np.rad2deg(height))


_GREEN, _DRY = (np.array([[int(d) for d in year] for year in years], np.float32) / 9
                for years in zip(*((s.green, s.dry) for s in SURFACES), strict=True))  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """What stays the same in all dates of a place: spectra of this place, parcels' habits, wetness, roughness."""

    leaf: NDArray[np.float32]
    base: NDArray[np.float32]
    dry: NDArray[np.float32]
    late: Field
    wet: Field
    grain: Field
    murk: Field


def survey(land: Land, rng: np.random.Generator) -> Plot:
    """Draw what makes this place differ from others of its biome, and its parcels from one another."""
    reddish = {"arid": 0.75, "savanna": 0.9}.get(land.biome, 0.0) * rng.uniform(0.3, 1.3)
    dark = rng.uniform(0.62, 1.15) if land.biome != "arid" else rng.uniform(1.1, 1.45)
    red = np.array((0.82, 0.82, 0.92, 1.22, 1.3, 1.28, 1.26, 1.24, 1.22, 1.22, 1, 1.24, 1.26), np.float32)
    tint = {name: spectrum * np.exp(_wander(rng, 0.05)) for name, spectrum in _KNOWN.items()}
    for name in ("soil", "pale", "gravel"):
        tint[name] = tint[name] * dark ** (1.0 if name == "soil" else 0.3) * red**reddish
    count = land.parcel.max() + 1
    late = rng.normal(0, 0.35, count) + rng.normal(0, 0.25)
    late[0] = 0
    late += 6 * (GROUNDS[land.biome][2] < 0)  # south of the equator the year is turned round
    own = rng.lognormal(0, 0.10, count).astype(np.float32)[land.parcel]
    rows = np.sin(land.furrow * np.float32(2 * np.pi / 5.2)) * (rng.random(count) < 0.4).astype(np.float32)[land.parcel]
    fine = ndimage.gaussian_filter(rng.standard_normal((land.n, land.n), dtype=np.float32), 0.8) * np.float32(2.3)
    rough = np.array([s.rough for s in SURFACES], np.float32)[land.surface]
    grain = own * (1 + 0.03 * rows) * (1 + rough * fine)
    irrigated = (land.surface == IDS["irrigated crop"]) * rng.uniform(-4, 4, count)[land.parcel]
    return Plot(
        leaf=np.stack([tint[s.leaf] for s in SURFACES]),
        base=np.stack([tint[s.base] for s in SURFACES]),
        dry=tint["dry"],
        late=(late[land.parcel] + 0.2 * land.vigour + irrigated).astype(np.float32),
        wet=land.noise(3.2, 130) * np.float32(0.5) + land.noise(2.6, 30) * np.float32(0.25),
        grain=grain.astype(np.float32),
        murk=np.clip(0.35 * land.noise(3.4, 200) + rng.uniform(-0.1, 0.6), 0, 1).astype(np.float32),
    )


def _wander(rng: np.random.Generator, by: float) -> NDArray[np.float32]:
    """Smooth deviation over the bands."""
    knots = rng.normal(0, by, 4)
    return np.interp(np.arange(13), (0, 4, 8, 12), knots).astype(np.float32)


def _cover(land: Land, plot: Plot, day: float) -> tuple[Field, Field]:
    """Shares of each cell under green and under dry plants on a day."""
    month = (day / 365.25 * 12 - 0.5 - plot.late) % 12
    low = month.astype(np.int8)
    part, low, high = month - low, low % 12, (low + 1) % 12
    green, dry = (table[land.surface, low] * (1 - part) + table[land.surface, high] * part for table in (_GREEN, _DRY))
    green = np.clip(green * (1 + 0.22 * land.vigour) + 0.02 * land.vigour * (green > 0.02), 0, 0.98)
    return green.astype(np.float32), np.minimum(dry * (1 - 0.1 * land.vigour), 0.98 - green).astype(np.float32)


def _sunlight(land: Land, sun: tuple[float, float]) -> Field:
    """Direct light relative to level ground: slopes towards the sun, and the shadows of mountains."""
    azimuth, elevation = np.deg2rad(sun)
    east, south, rise = np.sin(azimuth), -np.cos(azimuth), np.tan(elevation)
    smooth = ndimage.gaussian_filter(land.height, 1.0)
    gy, gx = np.gradient(smooth, np.float32(CELL_M))
    light = (1 - (gx * east + gy * south) / rise) / np.sqrt(1 + gx * gx + gy * gy)
    if np.ptp(land.height) > 150:
        blocked, coarse = np.zeros((land.n, land.n), np.float32), smooth
        for t in np.arange(3.0, min(0.8 * land.n, float(np.ptp(coarse)) / rise / CELL_M), 5.0):
            dx, dy = round(t * east), round(t * south)
            here = (slice(max(0, -dy), land.n - max(0, dy)), slice(max(0, -dx), land.n - max(0, dx)))
            there = (slice(max(0, dy), land.n + min(0, dy)), slice(max(0, dx), land.n + min(0, dx)))
            np.maximum(blocked[here], coarse[there] - coarse[here] - np.float32(t * rise * CELL_M), out=blocked[here])
        light = light * (1 - np.clip(ndimage.gaussian_filter(blocked, 1.0) / 15, 0, 1))
    return np.clip(light, 0, 2.2).astype(np.float32)


def _snow(land: Land, rng: np.random.Generator, season: int) -> Field | None:
    """Share of each cell under snow, None where there is none."""
    line = _SNOWLINE.get(land.biome, (9e3,) * 4)[season] + rng.normal(0, 140)
    deep = (land.height - line) / 160 + 0.4 * land.noise(3.4, 120)
    if land.biome == "mountain":
        deep -= 0.9 * np.clip(np.hypot(*np.gradient(land.height, CELL_M)) - 0.7, 0, None)
    if deep.max() <= 0:
        return None
    buried = np.array([s.buried for s in SURFACES], np.float32)
    if line > -50:
        buried[IDS["lake"]] = 0  # not cold enough for ice
    return (np.clip(deep, 0, 1) * buried[land.surface]).astype(np.float32)


def _clouds(rng: np.random.Generator, n: int, biome: str, sun: tuple[float, float]):
    """Opacity of clouds, of their shadows and of cirrus, haze, and the way from cloud to shadow (rows, columns)."""
    weather = rng.choice(("clear", "haze", "cumulus", "cirrus"), p=(0.54, 0.14, 0.22, 0.10))
    azimuth, elevation = np.deg2rad(sun)
    base = min(rng.uniform(600, 1500), 1400 * np.tan(elevation))
    far = base / np.tan(elevation) / CELL_M
    step = round(far * np.cos(azimuth)), round(-far * np.sin(azimuth))  # away from the sun, south and east positive
    haze = np.clip(rng.uniform(0.0, 0.2) + (weather == "haze") * (0.45 + 0.25 * fractal(rng, n, 4, n)), 0, None)
    none = np.zeros((n, n), np.float32)
    cloud, shade, cirrus = none, none, none
    if weather == "cirrus":
        cirrus = np.clip(0.12 * (fractal(rng, n, 3.8, 0.7 * n) + rng.uniform(-0.3, 0.7)), 0, 0.4)
    if weather == "cumulus":
        m = n + max(map(abs, step))
        field = fractal(rng, m, rng.uniform(3.5, 4.2), rng.uniform(60, 220))
        field = np.clip(field - np.quantile(field, 1 - rng.uniform(0.03, 0.22)), 0, None)
        thick = ndimage.gaussian_filter(1 - np.exp(-field * (2.5 + fractal(rng, m, 3, 24))), 1)
        r, c = max(0, step[0]), max(0, step[1])
        cloud = np.clip(thick[r : r + n, c : c + n], 0, 1)
        shade = ndimage.gaussian_filter(np.clip(thick, 0, 1), 1.5)[r - step[0] :, c - step[1] :][:n, :n]
    return cloud, shade, cirrus.astype(np.float32), haze.astype(np.float32), step


def _to_pixels(light: Field, support_m: int) -> Field:
    """Blur to the optics of a band and sample it on the 10 m grid."""
    k = int(support_m / CELL_M)
    sharp = ndimage.gaussian_filter(light, 0.42 * k if k == 2 else 0.3 * k, truncate=2.5)
    m = len(light) // k
    coarse = sharp.reshape(m, k, m, k).mean((1, 3))
    return coarse if k == 2 else ndimage.zoom(coarse, k // 2, order=1, mode="nearest", grid_mode=True)


def observe(land: Land, plot: Plot, rng: np.random.Generator, season: str, size_px: int) -> Shot:
    """See a place on a date.

    Args:
        land: The place, on cells of 5 m with the margin of `canvas_cells`.
        plot: Its own spectra and habits.
        rng: Source of the date, the weather and the noise.
        season: One of `SEASONS`.
        size_px: Side of the scene in pixels of 10 m.

    Returns:
        The image with its clouds.
    """
    day = SEASONS[season] + rng.uniform(-14, 14)
    sun = sun_position(day, GROUNDS[land.biome][2])
    green, dry = _cover(land, plot, day)
    bare = 1 - green - dry
    snow = _snow(land, rng, list(SEASONS).index(season))
    light = _sunlight(land, sun)
    cloud, shade, cirrus, haze, step = _clouds(rng, land.n, land.biome, sun)
    moist = np.clip(plot.wet + rng.normal(0.0, 0.35), -1, 1.2) * np.float32(0.22)
    water = np.isin(land.surface, [IDS["river"], IDS["lake"], IDS["sea"]])
    leaf = plot.leaf.copy()
    if 100 < day < 135:
        leaf[IDS["rapeseed"]] = _KNOWN["bloom"]
    glint = np.float32(max(0, rng.normal(0, 0.006)))
    sunny = (1 - np.float32(0.82) * shade) * light
    inner = slice(18, 18 + size_px)
    gain = 1 + rng.normal(0, 0.01, len(BANDS))
    murky = plot.murk * np.float32(rng.uniform(0.1, 0.7)) * water
    image = np.empty((len(BANDS), size_px, size_px), np.uint16)
    for band, support in enumerate(SUPPORT_M):
        damp = 1 - moist * (1 + 0.5 * (band >= 11)) * ~water
        ground = leaf[land.surface, band] * green + plot.dry[band] * dry + plot.base[land.surface, band] * damp * bare
        ground = ground * plot.grain + murky * (_KNOWN["silt"][band] - ground) + glint * water
        if snow is not None:
            ground = ground + snow * (_KNOWN["snow"][band] * (0.94 + 0.05 * plot.wet) - ground)
        seen = ground * (sunny * (1 - _SKY[band]) + _SKY[band])
        veil = np.float32(_HAZE[band]) * haze
        seen = _PATH[band] + veil + _PASS[band] * (1 - 1.1 * veil) * seen
        seen = seen + cloud * (_CLOUD[band] * (0.62 + 0.38 * cloud) - seen)
        seen = seen + cirrus * (_CLOUD[band] * 0.55 - seen) * (1 if band != 10 else 0) + cirrus * 0.06 * (band == 10)
        pixels = _to_pixels(seen.astype(np.float32), support)[inner, inner] * gain[band]
        pixels = pixels + rng.standard_normal(pixels.shape, dtype=np.float32) * np.sqrt(4e-7 + 9e-6 * pixels)
        image[band] = np.clip(np.round(pixels * 10_000), 1, 20_000)
    thickness = _to_pixels(np.maximum(cloud, cirrus), 10)[inner, inner]
    shaded = _to_pixels(shade.astype(np.float32), 10)[inner, inner]
    clouds = np.where(thickness > 0.2, CLOUD, np.where(shaded > 0.35, SHADOW, CLEAR)).astype(np.uint8)
    return Shot(image, clouds, thickness, day, sun, (step[0] / 2, step[1] / 2))
