"""The plan of the embedded city: streets, a river, a railway, blocks, cars and kerbside trees.

`build_city` draws one scene on a `Canvas`: streets first, then what crosses the whole scene, then the blocks one by
one, then the life in the streets. Classes are those of the legend `nyc8`. Nothing here knows of sensors.
"""

from __future__ import annotations

import numpy as np

from nbutils.worlds import KINDS, blocks_elsewhere
from nbutils.worlds.blocks import FILLERS
from nbutils.worlds.canvas import (
    GRASS,
    LAYOUTS,
    MARGIN_M,
    PAVED,
    RAIL,
    ROAD,
    WATER,
    Canvas,
    Streets,
    ribbon,
    smooth_noise,
)
from nbutils.worlds.plan import Block, Plan, palette_of

STYLES = KINDS["city"]
_MIX = {  # how often each kind of block, in the order of FILLERS, occurs in a scene of each style
    "suburb": (0.69, 0.07, 0.01, 0.05, 0.04, 0.08, 0.02, 0.04),
    "rows": (0.12, 0.54, 0.10, 0.06, 0.03, 0.07, 0.03, 0.05),
    "centre": (0.00, 0.14, 0.36, 0.26, 0.04, 0.08, 0.06, 0.06),
    "industry": (0.20, 0.07, 0.03, 0.06, 0.42, 0.07, 0.06, 0.09),
    "campus": (0.22, 0.08, 0.09, 0.27, 0.05, 0.18, 0.05, 0.06),
}


def build_city(rng: np.random.Generator, size_px: int, style: str, river: bool, rail: bool) -> Canvas:
    """Lay out one scene.

    Args:
        rng: Source of everything random in it.
        size_px: Side of the scene, metres (= pixels of the image).
        style: One of `LAYOUTS`: streets, materials and the mix of blocks.
        river: Whether a river crosses it.
        rail: Whether a railway crosses it.

    Returns:
        The finished canvas.

    Raises:
        ValueError: Unknown style.
    """
    if style not in LAYOUTS:
        raise ValueError(f"unknown style {style!r} of a city scene; known: {', '.join(LAYOUTS)}")
    canvas = Canvas(size_px)
    n = canvas.n
    tilt = rng.uniform(-0.02, 0.02, 2).astype(np.float32)
    canvas.terrain += tilt[0] * canvas.x + tilt[1] * canvas.y + rng.uniform(0.6, 2.0) * smooth_noise(rng, n, 260)
    canvas.terrain += np.float32(rng.uniform(12, 30))
    plan = Plan(canvas, Streets.draw(rng, size_px, style), rng, style, rng.uniform(*palette_of(style).leafy))
    canvas.material[:] = plan.pick("lawn")
    to_u, to_v = _streets(plan)
    _centre_lines(plan)
    if rail:
        _railway(plan)
    if river:
        _river(plan, np.minimum(to_u, to_v) < 0)
    if style in ("centre", "campus") or rng.random() < 0.25:
        _avenue(plan)
    canvas.barred = canvas.taken.copy()
    mix = blocks_elsewhere.MIX.get(style) or dict(zip(FILLERS.values(), _MIX[style], strict=True))
    fillers, shares = list(mix), list(mix.values())
    for block in _blocks(plan):
        fillers[rng.choice(len(fillers), p=shares)](plan, block)
    _street_life(plan)
    return canvas


def _streets(plan: Plan):
    """Roadway, pavements and markings; returns the distances to the roadways along u and v, metres, < 0 inside."""
    canvas, s, rng = plan.canvas, plan.streets, plan.rng
    u, v = plan.uv = s.to_uv(canvas.x, canvas.y)
    column, row = np.searchsorted(s.u, u.ravel()).reshape(u.shape), np.searchsorted(s.v, v.ravel()).reshape(u.shape)
    column, row = np.clip(column, 1, len(s.u) - 1), np.clip(row, 1, len(s.v) - 1)

    def nearest(t, at, width, index, is_open=None):
        low = t - at[index - 1].astype(np.float32) - (width / 2)[index - 1].astype(np.float32)
        high = at[index].astype(np.float32) - t - (width / 2)[index].astype(np.float32)
        if is_open is not None:
            low = np.where(is_open[column, index - 1], low, np.float32(1e3))
            high = np.where(is_open[column, index], high, np.float32(1e3))
        return np.minimum(low, high), index - 1 + (high < low)

    to_u, which_u = nearest(u, s.u, s.u_width, column)
    to_v, which_v = nearest(v, s.v, s.v_width, row, s.open)
    away = np.minimum(to_u, to_v)
    layout = LAYOUTS[plan.style]
    plan.walk = walk = rng.uniform(*layout.walk)
    pavement = (away < walk) & (away > layout.verge)
    canvas.paint(..., pavement, PAVED, plan.pick("concrete"))
    road = away < 0
    asphalt = np.array(plan.ids["asphalt"], np.uint16)
    tone_u, tone_v = (asphalt[rng.integers(len(asphalt), size=len(a))] for a in (s.u, s.v))
    canvas.cover[road] = ROAD
    canvas.material[road] = np.where(to_u < 0, tone_u[which_u], tone_v[which_v])[road]
    canvas.taken |= away < walk
    for t, along, edge, crossing, at, width, which in (
        (u, v, to_u, to_v, s.u, s.u_width, which_u),
        (v, u, to_v, to_u, s.v, s.v_width, which_v),
    ):
        off = np.abs(t - at[which].astype(np.float32))
        if not layout.marked:
            break
        broad = width[which] > layout.broad_m
        clear = (edge < 0) & (crossing > 4)
        centre = clear & (off < 0.35) & (broad | (along % 9 < 3))
        lanes = clear & broad & (np.abs(off - 3.4) < 0.3) & (along % 9 < 3)
        zebra = (edge < -0.5) & (crossing > 0.8) & (crossing < 3.6) & (t % 1.5 < 0.75) & broad
        canvas.material[lanes | zebra] = plan.ids["paint"]
        canvas.material[centre] = plan.ids["yellow"]
    return to_u, to_v


def _centre_lines(plan: Plan) -> None:
    """Note the centre line of every street, in pieces from crossing to crossing."""
    s = plan.streets
    for j, width in enumerate(s.u_width):
        v = np.arange(s.v[0], s.v[-1], 8.0)
        _note_street(plan, *s.to_xy(np.full(len(v), s.u[j]), v), width)
    for j, width in enumerate(s.v_width):
        for column in np.flatnonzero(s.open[1 : len(s.u), j]) + 1:
            u = np.linspace(s.u[column - 1], s.u[column], 12)
            _note_street(plan, *s.to_xy(u, np.full(len(u), s.v[j])), width)


def _note_street(plan: Plan, x, y, width: float) -> None:
    size = plan.canvas.size_px
    if ((x > 0) & (x < size) & (y > 0) & (y < size)).any():
        plan.canvas.streets.append({"line": list(zip(x.tolist(), y.tolist(), strict=True)), "width_m": round(width, 1)})


def _railway(plan: Plan) -> None:
    """A gravel bed with rails and sleepers; streets cross it on the level."""
    canvas, rng = plan.canvas, plan.rng
    d, along, _ = ribbon(canvas, rng, bend=0.02)
    tracks = int(rng.integers(3, 6))
    bed = (np.abs(d) < tracks * 2.3 + 2) & (canvas.cover != ROAD)
    canvas.paint(..., bed, RAIL, plan.ids["gravel"])
    offset = (d + tracks * 2.3) % 4.6 - 2.3
    within = bed & (np.abs(d) < tracks * 2.3)
    canvas.material[within & (np.abs(offset) < 1.3) & (along % 1.3 < 0.5)] = plan.pick("soil")
    canvas.material[within & (np.abs(np.abs(offset) - 0.75) < 0.26)] = plan.ids["rail"]
    canvas.taken |= np.abs(d) < tracks * 2.3 + 6


def _river(plan: Plan, road) -> None:
    """A river with banks; only the broad streets cross it, on bridges."""
    canvas, s, rng = plan.canvas, plan.streets, plan.rng
    d, _, _ = ribbon(canvas, rng, bend=0.10)
    half = rng.uniform(11, 26)
    shore = np.abs(d) - half + 1.5 * smooth_noise(rng, canvas.n, 24) - 1.0 * smooth_noise(rng, canvas.n, 9) * 0.4
    water = shore < 0
    u, v = plan.uv
    broad, bridged = np.zeros_like(water), LAYOUTS[plan.style].broad_m
    for t, at, width in ((u, s.u, s.u_width), (v, s.v, s.v_width)):
        for a, w in zip(at[width > bridged], width[width > bridged], strict=True):
            broad |= np.abs(t - np.float32(a)) < w / 2
    level = np.float32(canvas.terrain[water].min() - 2.2) if water.any() else np.float32(0)
    ease = np.clip(shore / 10, 0, 1) ** 0.7
    ground = level + (canvas.terrain - level) * ease
    deck = broad & road & (shore < 10)
    canvas.top[deck] += (canvas.terrain - ground)[deck]
    canvas.terrain = ground.astype(np.float32)
    bank = (shore < 7) & ~deck & (canvas.cover != RAIL)
    canvas.paint(..., bank, GRASS, plan.pick("lawn"))
    canvas.paint(..., water & ~deck, WATER, plan.ids["water"])
    canvas.taken |= shore < 8
    canvas.river = water
    for i in np.flatnonzero((bank & ~water).ravel())[:: int(520 / plan.green)]:
        r, c = np.unravel_index(i, water.shape)
        plan.tree_at(float(canvas.x[0, c] + rng.uniform(-3, 3)), float(canvas.y[r, 0] + rng.uniform(-3, 3)))


def _avenue(plan: Plan) -> None:
    """A broad street that does not care about the grid."""
    canvas, rng = plan.canvas, plan.rng
    d, along, line = ribbon(canvas, rng, bend=0.03)
    half = rng.uniform(6.5, 9.5)
    _note_street(plan, *line, 2 * half)
    land = (canvas.cover != WATER) & (canvas.cover != RAIL)
    side = (np.abs(d) < half + 3.2) & land & (canvas.cover != ROAD)
    canvas.paint(..., side, PAVED, plan.pick("concrete"))
    road = (np.abs(d) < half) & land
    canvas.paint(..., road, ROAD, plan.pick("asphalt"))
    canvas.material[road & (np.abs(np.abs(d) - 0.3) < 0.25)] = plan.ids["yellow"]
    canvas.material[road & (np.abs(np.abs(d) - 3.6) < 0.3) & (along % 9 < 3)] = plan.ids["paint"]
    canvas.taken |= np.abs(d) < half + 3.2


def _blocks(plan: Plan) -> list[Block]:
    """The blocks between the streets that touch the scene, as (u0, u1, v0, v1) inside their pavements."""
    s, blocks = plan.streets, []
    for column in range(1, len(s.u)):
        u0, u1 = (s.u[column - 1] + s.u_width[column - 1] / 2, s.u[column] - s.u_width[column] / 2)
        cuts = [j for j in range(len(s.v)) if s.open[column, j]]
        for a, b in zip(cuts[:-1], cuts[1:], strict=True):
            block = (u0 + plan.walk, u1 - plan.walk, s.v[a] + s.v_width[a] / 2 + plan.walk,
                     s.v[b] - s.v_width[b] / 2 - plan.walk)  # fmt: skip
            where, inside = plan.block_mask(block)
            if inside.size and inside.any():
                blocks.append(block)
    return blocks


def _street_life(plan: Plan) -> None:
    """Parked and moving cars, and trees along the kerbs."""
    canvas, s, rng, layout = plan.canvas, plan.streets, plan.rng, LAYOUTS[plan.style]
    reach = canvas.size_px * 0.75
    spacing = rng.uniform(8, 14) / plan.green
    parked = rng.uniform(*layout.parked)
    for swap, at, width in ((False, s.u, s.u_width), (True, s.v, s.v_width)):
        cross, cross_width = (s.u, s.u_width) if swap else (s.v, s.v_width)
        for t, w in zip(at, width, strict=True):
            for side in (-1, 1):
                cars = np.arange(-reach, reach, 6.2)
                trees = np.arange(-reach, reach, spacing)
                near = (np.abs(cars[:, None] - cross) < cross_width / 2 + 4).any(1)
                for along, offset, share, what in (
                    (cars[~near], side * (w / 2 - 1.2), parked, "car"),
                    (cars[~near], side * w / 4, 0.035, "car"),
                    (trees, side * (w / 2 + 0.9), layout.kerb_trees, "tree"),
                ):
                    along = along[rng.random(len(along)) < share]
                    across = np.full(len(along), t + offset)
                    x, y, angle = s.places(*((along, across) if swap else (across, along)))
                    seen = (np.minimum(x, y) > -MARGIN_M) & (np.maximum(x, y) < canvas.size_px + MARGIN_M)
                    turn = (0 if swap else np.pi / 2) + np.pi * (side > 0)
                    for place in zip(x[seen].tolist(), y[seen].tolist(), (angle[seen] + turn).tolist(), strict=True):
                        _put(plan, what, *place)


def _put(plan: Plan, what: str, x: float, y: float, angle: float) -> None:
    """A car where there is a roadway without a bridge pier, a tree where there is a kerb."""
    look = plan.canvas.window(x, y, 0.5)
    covers = plan.canvas.cover[look]
    if not covers.size:
        return
    if what == "car" and (covers == ROAD).all():
        plan.car_at(x, y, angle)
    elif what == "tree" and ((covers == PAVED) | (covers == GRASS)).all():
        plan.tree_at(x, y, 1.05)
