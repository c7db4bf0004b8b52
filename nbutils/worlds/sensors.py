"""The two instruments that look at the embedded city: a camera and a laser scanner.

Both see the same `Canvas`. Label errors of a LiDAR rule therefore arise as they do in the field: from slanting pulses,
wide footprints, leaves that let light pass, water that returns nothing, and materials that look alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nbutils.lidar.points import Points
from nbutils.worlds.canvas import CANOPY_M, GRASS, MARGIN_M, STEP_M, TREE, WATER, Canvas, smooth_noise

_SKY = np.array((0.16, 0.21, 0.26, 0.33), np.float32)  # diffuse light relative to the sun, bluer than it
_RIM = int(MARGIN_M / STEP_M)  # cells of margin


def inner(a: NDArray) -> NDArray:
    """The scene without the margin around it."""
    return a[..., _RIM:-_RIM, _RIM:-_RIM]


def mean2(a: NDArray) -> NDArray:
    """Mean of 2 x 2 cells: half metres to metres."""
    return (a[..., ::2, ::2] + a[..., 1::2, ::2] + a[..., ::2, 1::2] + a[..., 1::2, 1::2]) / 4


def majority(cover: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The commonest of 2 x 2 cells; the lower class where they tie."""
    shares = [mean2((cover == k).astype(np.float32)) for k in range(8)]
    return np.argmax(shares, axis=0).astype(np.uint8)


def cover_from_above(canvas: Canvas) -> NDArray[np.uint8]:
    """Class of what is seen from above, shape (2H, 2W): leaves hide what is below them."""
    leaves = canvas.crown > canvas.top
    cover = np.where(leaves, np.where(canvas.crown > CANOPY_M, TREE, GRASS), canvas.cover)
    return inner(cover.astype(np.uint8))


def albedo_of(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.float32]:
    """Reflectance of the surface seen from above, shape (4, n, n): materials, blotches and grain."""
    n = canvas.n
    leaves = canvas.crown > canvas.top
    material = np.where(leaves, canvas.crown_material, canvas.material)
    table = np.array(canvas.table, np.float32)
    blotch = 0.30 + 0.22 * smooth_noise(rng, n, 60) + 0.20 * smooth_noise(rng, n, 14) + 0.12 * smooth_noise(rng, n, 5)
    blotch = np.clip(blotch, 0, 1)
    grain = ndimage.gaussian_filter(rng.standard_normal((n, n), dtype=np.float32), 0.7) * np.float32(2.4)
    grain = 1 + grain * table[:, 8][material]
    out = np.empty((4, n, n), np.float32)
    for band in range(4):
        a, b = table[:, band][material], table[:, 4 + band][material]
        out[band] = (a + (b - a) * blotch) * grain
    return np.clip(out, 0.008, 0.9)


def _sunlight(canvas: Canvas, sun: tuple[float, float], rng: np.random.Generator) -> NDArray[np.float32]:
    """Direct light on the surface relative to level ground, shape (n, n): slopes towards the sun, cast shadows."""
    n, (azimuth, elevation) = canvas.n, np.deg2rad(sun)
    east, south = np.sin(azimuth), -np.cos(azimuth)
    leaves = canvas.crown > canvas.top
    gx, gy = np.where(leaves, canvas.crown_slope, canvas.slope)
    rough = 0.55 * smooth_noise(rng, n, 3.2)
    gx, gy = gx + np.where(leaves, rough, 0), gy + np.where(leaves, np.roll(rough, 7, 0), 0)
    ground = np.gradient(canvas.terrain, STEP_M)
    gx, gy = gx + ground[1], gy + ground[0]
    facing = np.sin(elevation) - np.cos(elevation) * (gx * east + gy * south)
    lambert = np.clip(facing / np.sqrt(1 + gx * gx + gy * gy) / np.sin(elevation), 0, 1.7)
    surface = canvas.terrain + np.maximum(canvas.top, canvas.crown)
    rise = np.tan(elevation)
    blocked = np.zeros((n, n), np.float32)
    step, t = 1.0, 1.0
    highest = float(surface.max() - surface.min())
    while t * rise * STEP_M < highest:
        dx, dy = int(round(t * east)), int(round(t * south))
        here = (slice(max(0, -dy), n - max(0, dy)), slice(max(0, -dx), n - max(0, dx)))
        there = (slice(max(0, dy), n + min(0, dy)), slice(max(0, dx), n + min(0, dx)))
        excess = surface[there] - surface[here] - np.float32(t * rise * STEP_M)
        np.maximum(blocked[here], excess, out=blocked[here])
        t += step
        step = 1.0 if t < 24 else 2.0 if t < 80 else 3.0
    shadow = np.clip(blocked / 0.5, 0, 1) * np.where(leaves, 0.65, 1.0)
    return (lambert * (1 - ndimage.gaussian_filter(shadow.astype(np.float32), 0.8))).astype(np.float32)


def photograph(canvas: Canvas, albedo, sun, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The orthophoto: light, air, optics, sensor; shape (4, H, W), uint8."""
    direct = _sunlight(canvas, sun, rng)
    surface = np.maximum(canvas.top, canvas.crown)
    hemmed_in = ndimage.uniform_filter(surface, 15) - surface
    sky = 1 - 0.45 * np.clip(hemmed_in / 7, 0, 1)
    gain = rng.uniform(0.86, 1.16) * rng.normal(1, 0.03, 4)
    haze = rng.uniform(0.002, 0.016) * np.array((0.3, 0.7, 1.0, 1.5))
    falloff = 1 + 0.05 * smooth_noise(rng, canvas.n, canvas.n / 2)
    out = np.empty((4, canvas.size_px, canvas.size_px), np.uint8)
    for band in range(4):
        light = albedo[band] * (direct * (1 - _SKY[band]) + _SKY[band] * sky) * falloff
        sharp = mean2(inner(ndimage.gaussian_filter(light.astype(np.float32), 0.9, truncate=3.0)))
        seen = np.clip(sharp * gain[band] + haze[band], 0, None)
        seen = seen + rng.standard_normal(seen.shape, dtype=np.float32) * np.sqrt(2e-6 + 5e-5 * seen)
        out[band] = np.clip(255 * np.clip(seen / 0.62, 0, None) ** 0.62, 1, 255)
    return out


def scan(canvas: Canvas, reflectance: NDArray[np.float32], rng: np.random.Generator) -> Points:
    """Fly over the scene with a laser of about two pulses to the square metre (3DEP quality level 2).

    Pulses come in slanting from a strip flown beside or above the scene, so walls get hit on one side; the footprint
    is wide enough to touch a roof edge and the ground beside it; leaves take some of the energy and let some pass;
    water mostly gives nothing back; a few returns are wrong altogether. The two instruments flew on different days: the
    cloud sits up to a few pixels beside the image, by one vector a scene, and the intensity drifts along the flight.
    """
    size = canvas.size_px
    x, y, tilt, strip = _pulses(size, rng)
    lean = np.tan(tilt)  # east per metre of height
    opaque = canvas.top + canvas.terrain
    hit_x, hit_z, wall = _trace(canvas, x, y, lean, opaque, rng)
    rows, cols = _cells(canvas, hit_x, y)
    at = np.ravel_multi_index((rows, cols), opaque.shape)
    # a footprint of 0.4 m: part of it may fall on something much higher or lower
    rows2, cols2 = _cells(canvas, hit_x + rng.normal(0, 0.22, len(x)), y + rng.normal(0, 0.22, len(x)))
    other = opaque[rows2, cols2]
    split = (np.abs(other - hit_z) > 1.5) & ~wall
    # leaves on the way, looked up where the ray passes eight metres above the ground
    rows3, cols3 = _cells(canvas, hit_x + 8 * lean, y)
    crown = canvas.crown[rows3, cols3]
    leafy = (crown > np.maximum(canvas.top[rows3, cols3], 0.4)) & (rng.random(len(x)) < 0.95)
    crown_z = crown + canvas.terrain[rows3, cols3]
    depth = rng.exponential(0.35, len(x)) + 0.05 * crown
    first_z = crown_z - np.minimum(depth, 0.7 * crown)
    second_z = first_z - rng.exponential(0.30 * crown + 0.05)
    second = leafy & (rng.random(len(x)) < 0.5) & (second_z > crown_z - 0.75 * crown) & (crown > 2)
    through = rng.random(len(x)) < np.where(crown > 2, 0.52, 0.75)
    wet = (canvas.cover.ravel()[at] == WATER) & (canvas.top.ravel()[at] < 0.5)
    ground = (~leafy | through) & (~wet | (rng.random(len(x)) < 0.02))
    levels = (
        (leafy, first_z, 0.55),
        (second, second_z, 0.30),
        (split & ground, np.maximum(hit_z, other), 0.55),
        (ground, np.where(split, np.minimum(hit_z, other), hit_z), 1.0),
    )
    count = sum(present.astype(np.uint8) for present, _, _ in levels)
    strength = reflectance.ravel()[at] * np.where(wet, 0.3, 1.0)
    green = reflectance[rows3, cols3]
    parts, order = [], np.zeros(len(x), np.uint8)
    for i, (present, z, share) in enumerate(levels):
        order = order + present
        energy = (green if i < 2 else strength) * np.where(count > 1, share * np.where(count > 2, 0.6, 0.75), 1.0)
        keep = np.flatnonzero(present)
        parts.append((keep, hit_x[keep] + (z - hit_z)[keep] * lean[keep], z[keep], energy[keep], order[keep]))
    pulse, px, pz, energy, number = (np.concatenate(p) for p in zip(*parts, strict=True))
    astray = rng.normal(0, 1.1, 2)  # metres between the two georeferencings
    px = px + rng.normal(0, 0.07, len(px)) + astray[0]
    py = y[pulse] + rng.normal(0, 0.07, len(px)) + astray[1]
    pz = pz + rng.normal(0, 0.045, len(px))
    inside = (px >= 0) & (px < size) & (py >= 0) & (py < size)
    stray = rng.random(len(px)) < 2e-4
    pz = np.where(stray, pz + np.where(rng.random(len(px)) < 0.5, -rng.exponential(6, len(px)) - 1,
                                       rng.uniform(20, 120, len(px))), pz)  # fmt: skip
    level = 14000 * np.array([1.0, rng.normal(1, 0.06)])[strip[pulse]]  # strips differ a little in gain
    drift = 1 + 0.15 * smooth_noise(rng, canvas.n, 80)[_cells(canvas, px, py)]
    intensity = energy * level * drift * rng.lognormal(0, 0.22, len(px)) * np.cos(tilt[pulse]) ** 2
    order = np.lexsort((number, pulse))
    order = order[inside[order]]
    return Points(
        x=px[order].astype(np.float64),
        y=(size - py[order]).astype(np.float64),
        z=pz[order].astype(np.float64),
        intensity=np.clip(intensity[order], 0, 65535).astype(np.uint16),
        return_number=number[order].astype(np.uint8),
        number_of_returns=count[pulse][order].astype(np.uint8),
        classification=None,
        crs=None,
    )


def _pulses(size: int, rng: np.random.Generator):
    """Where pulses would meet the datum, their tilt towards east (radians) and their strip (0 or 1)."""
    reach = size + 2 * MARGIN_M - 8
    nadir = rng.uniform(-0.2, 1.2, 2) * size
    edge = rng.uniform(0.2, 0.8) * size  # the second strip overlaps the first from here on
    xs, ys, tilts, strips = [], [], [], []
    for strip, share in enumerate((1.0, 0.45)):
        low = -MARGIN_M + 4 if strip == 0 else edge
        lines = np.arange(-MARGIN_M + 4, size + MARGIN_M - 4, 0.74 / rng.uniform(0.92, 1.08))
        per_line = int((reach if strip == 0 else size + MARGIN_M - 4 - edge) / (0.75 / share))
        grid_y = np.repeat(lines, per_line)
        grid_x = np.tile(low + (np.arange(per_line) + 0.5) * 0.75 / share, len(lines))
        x, y = grid_x + rng.normal(0, 0.13, len(grid_x)), grid_y + rng.normal(0, 0.10, len(grid_x))
        xs.append(x), ys.append(y), strips.append(np.full(len(x), strip, np.uint8))
        tilts.append(np.arctan((nadir[strip] - x) / 1400))  # flown at 1400 m
    return tuple(np.concatenate(a) for a in (xs, ys, tilts, strips))


def _cells(canvas: Canvas, x, y):
    limit = canvas.n - 1
    cols = np.clip(((x + MARGIN_M) / STEP_M).astype(np.int32), 0, limit)
    return np.clip(((y + MARGIN_M) / STEP_M).astype(np.int32), 0, limit), cols


def _trace(canvas: Canvas, x, y, lean, opaque, rng: np.random.Generator):
    """Follow slanting rays down to the first opaque thing.

    Returns:
        x of the hit, z of the hit (metres) and whether it is on a wall.
    """
    rows, cols = _cells(canvas, x, y)
    ground = canvas.terrain[rows, cols]
    highest = ndimage.maximum_filter(canvas.top, size=(1, 33))[rows, cols]
    hit_x, hit_z, wall = x.copy(), opaque[rows, cols].astype(np.float64), np.zeros(len(x), bool)
    go = np.flatnonzero((highest - canvas.top[rows, cols] > 1.0) | (canvas.top[rows, cols] > 1.0))
    base = ground[go].astype(np.float64)
    above = np.minimum(highest[go] + 1.0, 80.0)
    step = np.maximum(above / 14, 0.8)
    z = base + above
    found = np.zeros(len(go), bool)
    while not found.all():
        alive = np.flatnonzero(~found)
        j = go[alive]
        xi = x[j] + (z[alive] - base[alive]) * lean[j]
        r, c = _cells(canvas, xi, y[j])
        top = opaque[r, c]
        struck = (top >= z[alive]) | (z[alive] <= base[alive] - 2)
        s, hit = alive[struck], j[struck]
        deep = top[struck] - z[s]
        on_wall = deep > 1.6 * step[s] + 0.3
        hit_x[hit] = xi[struck]
        hit_z[hit] = np.where(on_wall, z[s] + rng.random(len(s)) * step[s], top[struck])
        wall[hit] = on_wall
        found[s] = True
        z[alive[~struck]] -= step[alive[~struck]]
    return hit_x, hit_z, wall
