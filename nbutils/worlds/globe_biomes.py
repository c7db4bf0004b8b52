"""The biomes of the embedded world `globe`: how the land lies, what is wild, tilled and built in each."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from nbutils.worlds.globe import CELL_M, GROUNDS, Land, distance, farm, forest, quarry, river, road, settle

_CROPS = {"winter cereal": 0.30, "maize": 0.17, "rapeseed": 0.11, "root crop": 0.08, "ley": 0.07, "fallow": 0.03}


def _farmland(land: Land) -> None:
    rng = land.rng
    land.height = 200 + 22 * land.noise(5.5, land.n)
    style = rng.choice(3)
    width, length, district = ((9, 55, 130), (24, 34, 100), (38, 70, 300))[style]
    mix = _CROPS | {"pasture": (0.10, 0.34, 0.05)[style], "meadow": 0.03, "orchard": 0.025, "vineyard": 0.02}
    everywhere = np.ones((land.n, land.n), bool)
    farm(land, everywhere, mix, width=width, length=length, district=district, hedges=(0.05, 0.6, 0.1)[style],
         woods=rng.uniform(0.08, 0.25))  # fmt: skip
    if rng.random() < 0.75:
        river(land, land.course(land.somewhere(), rng.uniform(0.5, 1.1), rng.uniform(90, 220)), rng.uniform(1.5, 7))
    for _ in range(int(rng.integers(2, 5))):
        at = land.somewhere(0.05, 0.95)
        road(land, at)
        settle(land, at, rng.uniform(28, 70), works=0.12)
    if rng.random() < 0.5:
        quarry(land, land.somewhere(), rng.uniform(14, 34))


def _arid(land: Land) -> None:
    rng, n = land.rng, land.n
    land.height = 320 + 16 * land.noise(5, n)
    lean, fine = land.noise(3.4, 160), land.noise(2.6, 40)
    cover = lean + 0.45 * fine
    levels = np.quantile(cover, np.sort(rng.uniform((0.1, 0.4, 0.68), (0.35, 0.6, 0.9))))
    for low, name in zip((-np.inf, *levels), ("sparse plants", "open shrub", "dry shrub", "steppe"), strict=True):
        land.put(cover > low, name)
    if rng.random() < 0.5:  # dunes: noise drawn out across the wind
        wind = rng.uniform(0, np.pi)
        warped = land.x * np.cos(wind) + land.y * np.sin(wind) + 14 * land.noise(3, 120)
        crest = np.sin(2 * np.pi * warped / rng.uniform(26, 44)).astype(np.float32)
        dunes = land.patches(rng.uniform(0.15, 0.45), 0.8 * n)
        land.height += np.where(dunes, 7 * crest, 0).astype(np.float32)
        land.put(dunes & (crest + 0.5 * fine > -0.9), "sand")
    land.put((land.height > np.quantile(land.height, 0.95)) & (fine > -0.6), "rock")
    if rng.random() < 0.45:
        pan = land.noise(3.2, 0.6 * n)
        land.put(pan > np.quantile(pan, 0.95), "salt pan")
        land.put((pan > np.quantile(pan, 0.985)), "lake")
    tilled = land.patches(rng.uniform(0.25, 0.6), 0.5 * n, 4) & ~land.has("rock", "salt pan", "sand", "lake")
    farm(land, tilled, {"millet": 0.62, "fallow": 0.12, "steppe": 0.1, "dry shrub": 0.07, "open shrub": 0.09},
         width=13, length=19, district=70, hedges=0.08, lanes=0.0)  # fmt: skip
    for _ in range(int(rng.integers(1, 3))):
        away = distance(land.course(land.somewhere(), 0.6, 150)) * (1 + 0.3 * fine)
        half = rng.uniform(3, 9)
        land.put(away < 2.5 * half + 5 * lean, "dry shrub")
        land.put((away < half + 1) & (fine < 1.2), "gravel")
        land.parcel[away < half] = 0
    if rng.random() < 0.6:
        radius = rng.uniform(24, 40)
        for k in range(int(rng.integers(3, 8))):
            at = land.somewhere(0.0, 1.0)
            inside = np.hypot(land.x - at[0], land.y - at[1]) < radius
            land.put(inside, "irrigated crop", new=k == 0)
            land.parcel[inside] = land.parcel.max() + 1
    for _ in range(int(rng.integers(1, 4))):
        at = land.somewhere()
        settle(land, at, rng.uniform(22, 60), works=0.02, dry=True)
        road(land, at, half=0.9)


def _mountain(land: Land) -> None:
    rng, n = land.rng, land.n
    valley = land.course(land.somewhere(0.3, 0.7), 0.35, 1.1 * n)
    floor, relief = rng.uniform(600, 2250), rng.uniform(550, 850)
    away = distance(valley) * (1 + 0.10 * land.noise(4.5, 150))
    land.height = (1 - np.exp(-((np.maximum(away - rng.uniform(6, 30), 0) / (0.42 * n)) ** 1.5))).astype(np.float32)
    for count, low, gain, reach in ((5, 0.35, 0.75, 0.22), (12, 0.72, 0.3, 0.1), (30, 0.85, 0.12, 0.05)):
        side = np.logical_or.reduce([land.course(land.somewhere(0, 1), 0.5, 0.3 * n) for _ in range(count)])
        far, (row, column) = ndimage.distance_transform_edt(~side, return_indices=True)
        cut = low * land.height[row, column] + gain * (1 - np.exp(-far / (reach * n)))
        land.height = ndimage.gaussian_filter(np.minimum(land.height, cut), 2).astype(np.float32)
    land.height = floor + relief * land.height / np.quantile(land.height, 0.99) + 12 * land.noise(3.6, 60)
    slope = np.hypot(*np.gradient(ndimage.gaussian_filter(land.height, 1.5), CELL_M))
    fine, level = land.noise(2.6, 50), land.height + 90 * land.noise(2.8, 70)
    land.put(level > -1e4, "pasture")
    wood = (slope > 0.16 + 0.08 * fine) | (fine > 0.8)
    forest(land, wood, conifers=float(np.clip((floor - 200) / 1200, 0.35, 0.95)), cleared=0.03)
    land.put((level > 1450) & (slope < 0.45) & (land.noise(2.6, 90) > 0.6), "meadow")
    land.put(level > 1850, "dwarf pine")
    land.put((level > 1930) & (fine + 0.5 * land.noise(3, 100) > -0.4), "alpine meadow")
    land.put((level > 1400) & (slope > 1.1 + 0.15 * fine), "rock")
    land.put(level > 2330 + 110 * fine, "rock")
    gentle = ndimage.gaussian_filter(slope, 6) < 0.95
    land.put((land.height + 130 * land.noise(4.5, 160) > 2350) & gentle, "glacier")
    flat = (slope < 0.15) & (land.height < min(floor + 130, 1350))
    farm(land, flat, {"pasture": 0.5, "ley": 0.2, "maize": 0.12, "winter cereal": 0.1, "orchard": 0.08},
         width=12, length=24, district=90, hedges=0.1, lanes=0.3)  # fmt: skip
    half = rng.uniform(1.2, 4)
    land.put((away < half + 4) & (fine > -0.2), "gravel")
    land.put(away < half, "river")
    if floor < 1500:
        rows, columns = np.nonzero(valley)
        pick = int(rng.integers(len(rows)))
        at = float(columns[pick]), float(rows[pick]) + 18
        settle(land, at, rng.uniform(30, 65), works=0.12)
        land.put(distance(np.roll(valley, (9, 9), (0, 1))) < 1, "road")
    if rng.random() < 0.5:
        hollow = land.height + 60 * land.noise(3, 60)
        low = (hollow < np.quantile(hollow, rng.uniform(0.02, 0.06))) & (slope < 0.3)
        land.put(low & ~land.has("tiled roof", "grey roof", "street", "road"), "lake")


def _city(land: Land) -> None:
    rng, n = land.rng, land.n
    land.height = 180 + 14 * land.noise(5.5, n)
    farm(land, np.ones((n, n), bool), _CROPS | {"pasture": 0.15, "meadow": 0.08}, width=22, length=40, district=120,
         hedges=0.15, woods=rng.uniform(0.1, 0.25))  # fmt: skip
    if rng.random() < 0.7:
        river(land, land.course(land.somewhere(0.3, 0.7), 0.6, 280), rng.uniform(5, 15), "park trees", "lawn")
    at = land.somewhere(0.25, 0.75)
    settle(land, at, rng.uniform(0.42, 0.68) * n, core=rng.uniform(0.1, 0.45), works=rng.uniform(0.1, 0.35), parks=0.1)
    for _ in range(int(rng.integers(1, 4))):
        settle(land, land.somewhere(0, 1), rng.uniform(40, 90), works=0.15)
    built = land.has("garden", "tiled roof", "grey roof", "street")
    green = land.patches(rng.uniform(0.03, 0.10), 90) & built
    land.put(green, "lawn")
    land.put(green & (land.noise(2.5, 24) > 0), "park trees")
    for half, bend in ((2.2, 0.2), (1.4, 0.3), (1.0, 0.4)):
        road(land, at, half, bend)
    if rng.random() < 0.5:
        quarry(land, land.somewhere(0, 1), rng.uniform(14, 26))


def _wetland(land: Land) -> None:
    rng, n = land.rng, land.n
    low = land.noise(4.4, 0.45 * n) + 0.2 * land.noise(3.4, 60)
    lines = [land.course(land.somewhere(), rng.uniform(0.9, 1.6), rng.uniform(60, 150)) for _ in range(3)]
    away = np.minimum.reduce([distance(line) + 4 * k for k, line in enumerate(lines)])
    low += 0.9 * np.exp(-away / 25)
    rank = np.argsort(np.argsort(low, axis=None)).reshape(n, n).astype(np.float32) / low.size
    land.height = (12 - 8 * rank + 0.5 * land.noise(2.5, 60)).astype(np.float32)
    dry = rng.uniform(0.22, 0.5)
    farm(land, np.ones((n, n), bool), _CROPS | {"pasture": 0.22, "rice": rng.choice([0.0, 0.5]), "meadow": 0.08},
         width=rng.uniform(9, 22), length=55, district=170, hedges=0.08, lanes=0.3, woods=0.06)  # fmt: skip
    wild = rank > dry
    land.parcel[wild] = 0
    land.put(wild, "meadow")
    patch = land.noise(3.5, 80)
    land.put(wild & (patch > 0.9), "heath")
    land.put((rank + 0.05 * patch > dry + 0.12), "reeds")
    land.put((rank > dry + 0.05) & (rank < 0.85) & (land.noise(4, 120) > 0.95), "swamp forest")
    land.put((rank > dry + 0.05) & (rank < 0.8) & (land.noise(4, 120) > 1.25), "peat bog")
    land.put(rank + 0.02 * patch > rng.uniform(0.80, 0.93), "lake")
    land.put((rank > dry) & (away < rng.uniform(2, 7)) & (land.noise(3, 200) > -1.6), "river")
    if rng.random() < 0.6:
        land.put(distance(land.course(land.somewhere(), 0.1, n)) < 1.3, "road")
    settle(land, land.somewhere(0.05, 0.95), rng.uniform(25, 55))


def _forest(land: Land) -> None:
    rng, n = land.rng, land.n
    land.height = 180 + 32 * land.noise(5, n)
    everywhere = np.ones((n, n), bool)
    forest(land, everywhere, rng.uniform(0.35, 0.75), stand=rng.uniform(35, 70), cleared=rng.uniform(0.03, 0.09))
    low = -land.height + 14 * land.noise(3.4, 90)
    land.put(low > np.quantile(low, 0.92), "peat bog")
    land.put((low > np.quantile(low, 0.90)) & (land.noise(2.5, 60) > 0.3), "swamp forest")
    land.put(low > np.quantile(low, rng.uniform(0.945, 0.99)), "lake")
    open_ = land.patches(rng.uniform(0.08, 0.25), 0.45 * n, 4.5) & ~land.has("lake", "peat bog", "swamp forest")
    farm(land, open_, {"pasture": 0.35, "meadow": 0.2, "ley": 0.15, "winter cereal": 0.2, "root crop": 0.05,
                       "maize": 0.05}, width=18, length=32, district=110, hedges=0.15, lanes=0.15)  # fmt: skip
    land.put(land.patches(0.05, 60, 3.2) & land.has("broadleaf forest", "conifer forest"), "heath")
    if rng.random() < 0.6:
        away = distance(land.course(land.somewhere(), 1.2, 110))
        land.put(away < rng.uniform(1, 4), "river")
    for _ in range(2):
        at = land.somewhere()
        road(land, at, 0.9)
    settle(land, at, rng.uniform(22, 48), works=0.08)


def _coast(land: Land) -> None:
    rng, n = land.rng, land.n
    side, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(0.10, 0.26)
    rough = land.noise(rng.uniform(3.8, 4.8), 0.5 * n)
    rise = ((land.x - n / 2) * np.cos(side) + (land.y - n / 2) * np.sin(side)) / n * 10 * tilt + 0.55 * rough
    rise -= np.quantile(rise, rng.uniform(0.28, 0.5)).astype(np.float32)
    land.height = np.where(rise > 0, 18 * rise, 0).astype(np.float32)
    sea = rise < 0
    shore, inland = distance(~sea), distance(sea)
    farm(land, ~sea, _CROPS | {"pasture": 0.4, "meadow": 0.08, "vineyard": 0.06}, width=16, length=30, district=90,
         hedges=0.4, woods=rng.uniform(0.08, 0.2))  # fmt: skip
    exposed = ndimage.gaussian_filter(sea.astype(np.float32), 22) + 0.06 * land.noise(3, 120)
    sheltered = exposed < rng.uniform(0.30, 0.46)
    fine = land.noise(3.2, 40)
    reach = rng.uniform(1.2, 5)
    strip = ~sea & ~sheltered & (inland < 3.2 * reach + 5 * fine)
    land.put(strip, "heath")
    land.put(strip & (fine > 0.2), "meadow")
    land.put(~sea & ~sheltered & (inland < 2 * reach + 2 * fine), "sand")
    if rng.random() < 0.3:
        land.put(~sea & ~sheltered & (inland < reach), "rock")
    marsh = ~sea & sheltered & (rise < 0.16 + 0.08 * fine)
    land.put(marsh, "salt marsh")
    land.put(sea, "sea")
    land.put(sea & sheltered & (shore < 16 + 7 * fine), "mud flat")
    land.put(sea & sheltered & (distance(land.course(land.somewhere(), 1.2, 60)) < 3), "sea")
    land.parcel[strip | marsh | sea] = 0
    dry = np.argwhere(inland > 25)
    for _ in range(2):
        row, column = dry[int(rng.integers(len(dry)))] if len(dry) else (n // 2, n // 2)
        settle(land, (float(column), float(row)), rng.uniform(28, 85), works=0.12)
        line = distance(land.course((float(column), float(row)), 0.4, 0.7 * n)) < 1
        land.put(line & ~sea & ~marsh, "road")


def _savanna(land: Land) -> None:
    """Parkland of grass and scattered trees, gallery forest, burnt patches, plots round villages, dirt tracks."""
    rng, n = land.rng, land.n
    land.height = 1100 + 20 * land.noise(5, n)
    lean, fine = land.noise(3.6, 0.4 * n), land.noise(2.2, 30)
    land.put(lean > -9, "steppe")
    for low, name in ((rng.uniform(0.1, 0.7), "open shrub"), (rng.uniform(0.7, 1.4), "dry shrub")):
        land.put(lean + 0.5 * fine > low, name)
    wood = land.noise(3.4, 0.5 * n)
    land.put(wood + 0.5 * fine > rng.uniform(0.5, 1.4), "dry woodland")
    lone = ndimage.gaussian_filter(rng.standard_normal((n, n), dtype=np.float32), 1.0)  # crowns of 10 to 20 m
    land.put(
        (lone / lone.std() - 0.4 * wood < -rng.uniform(1.5, 2.0)) & land.has("steppe", "open shrub"), "dry woodland"
    )
    fires = land.patches(rng.uniform(0.1, 0.3), 0.35 * n, 3.2) & land.has("steppe", "open shrub")
    land.put(fires, "burnt grass", new=True)
    land.put(fires & (lean > 0), "burnt grass")  # elsewhere the fire came after the product
    for _ in range(int(rng.integers(2, 5))):
        at = land.somewhere(0.1, 0.9)
        plots = np.hypot(land.x - at[0], land.y - at[1]) / rng.uniform(60, 130) + 0.35 * land.noise(3, 60) < 1
        farm(land, plots, {"millet": 0.46, "maize": 0.12, "fallow": 0.17, "steppe": 0.13, "open shrub": 0.12}, width=7,
             length=9, district=40, hedges=0.05, lanes=0.0)  # fmt: skip
        for _ in range(2):
            land.put(distance(land.course(at, 0.5, 0.5 * n)) < 0.8, "dusty yard")
        settle(land, at, rng.uniform(16, 42), works=0.02, dry=True)
    hills = (land.height > np.quantile(land.height, rng.uniform(0.95, 0.99))) & (fine > 0.1)
    land.put(hills, "rock")
    land.put(hills & (fine > 1.3), "dry shrub")
    for k in range(int(rng.integers(2, 4))):
        away = distance(land.course(land.somewhere(), rng.uniform(0.7, 1.2), rng.uniform(80, 180)))
        half = rng.uniform(1.0, 3.5) if k == 0 else 0.6
        plain = away < rng.uniform(8, 16) + 6 * lean  # seasonally flooded grassland along the stream
        land.put(plain, "reeds" if rng.random() < 0.5 else "steppe")
        land.put(away < half + rng.uniform(2.5, 6) + 1.5 * fine, "gallery forest")
        if k == 0:
            land.put((away < half + 1.5) & (fine > 0.4), "sand")
            land.put(away < half, "river")
        land.parcel[plain | (away < half + 6)] = 0
    if rng.random() < 0.6:
        at = land.somewhere()
        pond = np.hypot(land.x - at[0], land.y - at[1]) / rng.uniform(8, 20) + 0.3 * land.noise(3, 40)
        land.put(pond < 1.3, "sand")
        land.put(pond < 1, "lake")
        land.parcel[pond < 1.3] = 0
    if rng.random() < 0.5:
        road(land, land.somewhere(), 0.9, 0.2)
    if rng.random() < 0.35:
        quarry(land, land.somewhere(), rng.uniform(10, 22))


_BUILDERS = dict(zip(GROUNDS, (_farmland, _arid, _mountain, _city, _wetland, _forest, _coast, _savanna), strict=True))


def build_land(rng: np.random.Generator, n: int, biome: str) -> Land:
    """Draw a place.

    Args:
        rng: Source of everything random in it.
        n: Side in cells of 5 m.
        biome: One of `GROUNDS`.

    Returns:
        The finished land.

    Raises:
        ValueError: Unknown biome.
    """
    if biome not in _BUILDERS:
        raise ValueError(f"unknown biome {biome!r}; known: {', '.join(_BUILDERS)}")
    land = Land(rng, n, biome)
    _BUILDERS[biome](land)
    own = rng.standard_normal(land.parcel.max() + 1).astype(np.float32)[land.parcel]
    wide, fine = land.noise(4, 120), land.noise(1.6, 24)
    tilled = land.parcel > 0
    land.vigour = np.where(tilled, 0.8 * own + 0.5 * wide + 0.33 * fine, 0.75 * wide + 0.66 * fine).astype(np.float32)
    return land
