"""What fills the blocks of the embedded city: houses, rows, courts, towers, sheds, parks, car parks, building sites.

Every filler gets the scene under construction and one block (u0, u1, v0, v1), metres, and draws on what is free there.
"""

from __future__ import annotations

import numpy as np

from nbutils.worlds.canvas import GRASS, PAVED, SOIL, STEP_M, WATER, smooth_noise
from nbutils.worlds.plan import Block, Plan


def cover_block(plan: Plan, block: Block, cover: int, material: int):
    """Cover what is free of a block; returns its window and the free cells in it."""
    where, inside = plan.block_mask(block)
    plan.canvas.paint(where, inside, cover, material)
    return where, inside


def scatter_trees(plan: Plan, where, inside, per_ha: float, size: float = 1.0, shrubs: float = 0.2) -> None:
    """Trees in clumps on the free cells of a window, `per_ha` of them per hectare."""
    canvas, rng = plan.canvas, plan.rng
    free = np.flatnonzero((inside & ~canvas.taken[where]).ravel())
    if not len(free):
        return
    count = rng.poisson(len(free) * STEP_M**2 / 1e4 * per_ha * plan.green)
    rows, cols = np.unravel_index(free[rng.integers(len(free), size=count)], inside.shape)
    last = (0.0, 0.0)
    for i, (r, c) in enumerate(zip(rows, cols, strict=True)):
        x, y = float(canvas.x[0, where[1].start + c]), float(canvas.y[where[0].start + r, 0])
        if i % 3 == 2:  # clumps: every third tree keeps company with the one before it
            x, y = last[0] + rng.normal(0, 5), last[1] + rng.normal(0, 5)
        last = x, y
        plan.shrub_at(x, y) if rng.random() < shrubs else plan.tree_at(x, y, size)


def roof_units(plan: Plan, x, y, angle, half_p, half_q, count: int) -> None:
    """Machines and stair heads on a flat roof."""
    rng = plan.rng
    for _ in range(count):
        p, q = rng.uniform(-0.75, 0.75, 2) * (half_p, half_q)
        at = x + p * np.cos(angle) - q * np.sin(angle), y + p * np.sin(angle) + q * np.cos(angle)
        plan.canvas.box(*at, angle, rng.uniform(0.7, 2.2), rng.uniform(0.7, 1.6), rng.uniform(0.8, 2.6),
                        plan.pick("roof"))  # fmt: skip


def flat(plan: Plan, u, v, half_p, half_q, height, use, units, turn=0.0, material=None) -> bool:
    """A flat-roofed building with its machines, placed in the street grid."""
    x, y, angle = plan.streets.place(u, v)
    material = plan.pick("roof") if material is None else material
    for scale in (1.0, 0.82, 0.65):  # where the plot is too tight, something smaller is built
        if plan.canvas.building(x, y, angle + turn, half_p * scale, half_q * scale, height, material, use=use):
            roof_units(plan, x, y, angle + turn, half_p * scale, half_q * scale, units)
            return True
    return False


def _houses(plan: Plan, block: Block) -> None:
    """Detached houses on lots along the two long sides, with drives, sheds, hedges and gardens."""
    canvas, rng = plan.canvas, plan.rng
    u0, u1, v0, v1 = block
    where, inside = cover_block(plan, block, GRASS, plan.pick("lawn"))
    front, tones = rng.uniform(3.5, 7.5), [plan.pick("roof") for _ in range(4)]
    paving = plan.pick(("concrete", "asphalt")[rng.integers(2)])
    for edge, inward in ((u0, 1.0), (u1, -1.0)) if u1 - u0 > 36 else ((u0, 1.0),):
        v = v0 + rng.uniform(1, 3)
        while v < v1 - 9:
            lot = rng.uniform(11.0, 16.5)
            deep, wide = rng.uniform(11, 18), min(lot - 3.0, rng.uniform(9, 13.5))
            at_v = v + wide / 2 + 0.6
            u = edge + inward * (front + rng.normal(0, 0.5) + deep / 2)
            x, y, angle = plan.streets.place(u, at_v)
            angle += rng.normal(0, 0.02)
            long_u = deep > wide
            half = (deep / 2, wide / 2) if long_u else (wide / 2, deep / 2)
            turn = angle if long_u else angle + np.pi / 2
            roof, tone = ("gable", "hip", "flat")[rng.choice(3, p=(0.5, 0.33, 0.17))], tones[rng.integers(4)]
            pitch, eaves = (rng.uniform(0.35, 0.8) if roof != "flat" else 0.0), rng.uniform(2.9, 6.4)
            if canvas.building(x, y, turn, *half, eaves, tone, roof, pitch):
                if rng.random() < 0.4:
                    x2, y2, _ = plan.streets.place(u + inward * rng.uniform(2, 5), at_v + rng.uniform(-2.5, 2.5))
                    canvas.building(x2, y2, turn + np.pi / 2, half[0] * 0.7, half[1] * 0.55, eaves * 0.9, tone, roof,
                                    pitch, wing=True)  # fmt: skip
                _garden(plan, edge, inward, front + deep, v + wide + 1.9, at_v, u1 - u0, paving, front)
            if rng.random() < 0.35:
                _hedge(plan, edge + inward * front, edge + inward * (front + deep + rng.uniform(4, 14)), v + lot)
            v += lot
    scatter_trees(plan, where, inside, 105, 1.1, 0.3)


def _garden(plan: Plan, edge, inward, back, drive_v, house_v, block_width, paving, front) -> None:
    """What belongs to one house: drive, path, terrace, shed, pool or vegetable bed, a car."""
    canvas, rng, place = plan.canvas, plan.rng, plan.streets.place
    length = rng.uniform(front + 2, back)
    x, y, angle = place(edge + inward * length / 2, drive_v)
    if rng.random() < 0.75:
        canvas.patch(x, y, angle, length / 2 + 1, 1.5, PAVED, paving)
        if rng.random() < 0.5:
            plan.car_at(*place(edge + inward * length * rng.uniform(0.3, 0.8), drive_v))
    x, y, angle = place(edge + inward * front / 2, house_v)
    canvas.patch(x, y, angle, front / 2, 0.6, PAVED, plan.ids["concrete"][0])
    room = block_width / 2 - back
    if room < 5:
        return
    x, y, angle = place(edge + inward * (back + rng.uniform(2, room - 2)), house_v + rng.uniform(-3, 3))
    kind = rng.random()
    if kind < 0.30:
        canvas.building(x, y, angle, rng.uniform(1.5, 3.2), rng.uniform(1.4, 2.8), rng.uniform(2.1, 2.8),
                        plan.pick("roof"), ("flat", "gable")[rng.integers(2)], 0.3, "shed")  # fmt: skip
    elif kind < 0.62:
        canvas.patch(x, y, angle, rng.uniform(2, 4), rng.uniform(2, 4), PAVED, plan.pick("concrete"))
    elif kind < 0.80:
        canvas.patch(x, y, angle, rng.uniform(1.5, 5), rng.uniform(1.5, 4), SOIL, plan.pick("soil"))
    elif kind < 0.86:
        canvas.patch(x, y, angle, rng.uniform(2.5, 5), rng.uniform(1.5, 2.5), WATER, plan.ids["pool"])


def _hedge(plan: Plan, u_from: float, u_to: float, v: float) -> None:
    """A hedge along the side of a lot, some of them tall enough to count as canopy."""
    canvas, rng = plan.canvas, plan.rng
    x, y, angle = plan.streets.place((u_from + u_to) / 2, v)
    where, p, q = canvas.local(x, y, angle, abs(u_to - u_from) / 2)
    inside = (np.abs(p) < abs(u_to - u_from) / 2) & (np.abs(q) < 0.7) & ~canvas.taken[where]
    canvas.crown[where][inside] = np.maximum(canvas.crown[where][inside], np.float32(rng.uniform(1.2, 2.9)))
    canvas.crown_material[where][inside] = plan.pick("tree")


def _rows(plan: Plan, block: Block) -> None:
    """Attached houses with flat roofs along the two long sides, yards behind them."""
    rng, place = plan.rng, plan.streets.place
    u0, u1, v0, v1 = block
    where, inside = cover_block(plan, block, GRASS, plan.pick("lawn"))
    front, deep, wide = rng.uniform(0.8, 3.5), rng.uniform(11, 15.5), rng.uniform(5.6, 7.8)
    height, paving = rng.uniform(6.5, 11), plan.pick("concrete")
    for edge, inward in ((u0, 1.0), (u1, -1.0)) if u1 - u0 > 36 else ((u0, 1.0),):
        v = v0 + 0.5
        plan.canvas.patch(*place(edge + inward * front / 2, (v0 + v1) / 2), front / 2 + 1, (v1 - v0) / 2 - 1, PAVED,
                          paving)  # fmt: skip
        while v < v1 - wide:
            if rng.random() < 0.06:
                v += wide
                continue
            depth = deep + rng.normal(0, 0.5)
            u, at_v = edge + inward * (front + depth / 2), v + wide / 2
            # neighbours touch: the taken rim of the last house must not refuse this one, so it counts as a wing of it
            x, y, angle = place(u, at_v)
            look = plan.canvas.window(x, y, 1.0)
            if not plan.canvas.taken[look].any():
                plan.canvas.building(x, y, angle, depth / 2, wide / 2 + 0.1, height + rng.normal(0, 0.7),
                                     plan.pick("roof"), use="row house", wing=True)  # fmt: skip
                roof_units(plan, x, y, angle, depth / 2, wide / 2, int(rng.integers(0, 3)))
                back = front + depth
                if rng.random() < 0.35:
                    x, y, angle = place(edge + inward * (back + 1.8), at_v + rng.uniform(-1, 1))
                    plan.canvas.building(x, y, angle, 2.0, 1.7, rng.uniform(2.6, 4.2), plan.pick("roof"), wing=True)
                if rng.random() < 0.5:
                    x, y, angle = place(edge + inward * (back + rng.uniform(2, 6)), at_v)
                    plan.canvas.patch(x, y, angle, rng.uniform(1.5, 4), wide / 2 - 0.3, PAVED, plan.pick("concrete"))
            v += wide
    scatter_trees(plan, where, inside, 140, 1.0, 0.3)


def _ring(plan: Plan, block: Block) -> None:
    """Buildings of several storeys all round a courtyard."""
    rng = plan.rng
    u0, u1, v0, v1 = block
    green = rng.random() < 0.65
    ground = (GRASS, plan.pick("lawn")) if green else (PAVED, plan.pick("concrete"))
    where, inside = cover_block(plan, block, *ground)
    deep, base = rng.uniform(12, 16), rng.uniform(11, 22)
    v = v0
    while v < v1 - 8:
        length = min(rng.uniform(14, 30), v1 - v)
        for u in (u0 + deep / 2 + 1, u1 - deep / 2 - 1):
            if rng.random() < 0.93:
                half = length / 2 - (1.1 if rng.random() < 0.4 else 0.55)
                height = max(base + rng.normal(0, 4), 5)
                flat(plan, u, v + length / 2, deep / 2, half, height, "block", int(rng.integers(1, 5)))
        v += length
    for v in (v0 + deep / 2 + 1, v1 - deep / 2 - 1):
        if rng.random() < 0.8:
            half = (u1 - u0) / 2 - deep - 2.5
            if half > 4:
                flat(plan, (u0 + u1) / 2, v, half, deep / 2, base, "block", 4)
    for v in np.arange(v0 + deep + 16, v1 - deep - 12, 30):
        if rng.random() < 0.45:
            flat(plan, (u0 + u1) / 2, v, (u1 - u0) / 2 - deep - 7, 8, rng.uniform(3.5, 12), "block", 2)
    scatter_trees(plan, where, inside, 60 if green else 25, 1.1, 0.2)


def _towers(plan: Plan, block: Block) -> None:
    """Towers on lawns or on a paved square, with a parking strip."""
    canvas, rng = plan.canvas, plan.rng
    u0, u1, v0, v1 = block
    green = rng.random() < 0.72
    ground = (GRASS, plan.pick("lawn")) if green else (PAVED, plan.pick("concrete"))
    where, inside = cover_block(plan, block, *ground)
    x, y, angle = plan.streets.place((u0 + u1) / 2, (v0 + v1) / 2)
    canvas.patch(x, y, angle, (u1 - u0) / 2, 2.0, PAVED, plan.pick("concrete"))
    canvas.patch(x, y, angle, 2.0, (v1 - v0) / 2, PAVED, plan.pick("concrete"))
    for v in np.arange(v0 + 18, v1 - 10, rng.uniform(30, 42)):
        p, q = rng.uniform(12, max(12.5, min(26, (u1 - u0) / 2 - 4))), rng.uniform(7.5, 12)
        u, at_v = (u0 + u1) / 2 + rng.uniform(-5, 5), v + rng.uniform(-4, 4)
        height, tone = float(np.clip(rng.lognormal(3.3, 0.42), 14, 68)), plan.pick("roof")
        turn = (0, np.pi / 2)[rng.integers(2)]
        if rng.random() < 0.45:
            flat(plan, u, at_v, p + 4, q + 6, rng.uniform(4, 9), "podium", 0, turn)
            x, y, angle = plan.streets.place(u, at_v)
            canvas.building(x, y, angle + turn, p * 0.8, q * 0.8, height, tone, use="tower", wing=True)
        elif flat(plan, u, at_v, p, q, height, "tower", 5, turn, tone) and rng.random() < 0.6:
            x, y, angle = plan.streets.place(u, at_v)
            canvas.building(x, y, angle + turn + np.pi / 2, p * 0.8, q * 0.75, height, tone, use="tower", wing=True)
    if rng.random() < 0.6:
        parking(plan, (u0, u0 + 17, v0 + 3, v1 - 3))
    scatter_trees(plan, where, inside, 75 if green else 22, 1.25, 0.15)


def _sheds(plan: Plan, block: Block) -> None:
    """Warehouses in a paved yard with lorries, containers and some bare ground."""
    canvas, rng = plan.canvas, plan.rng
    u0, u1, v0, v1 = block
    paving = plan.pick(("asphalt", "concrete")[rng.integers(2)])
    where, inside = cover_block(plan, block, PAVED, paving)
    if rng.random() < 0.5:
        v_mid = rng.uniform(v0, v1)
        cover_block(plan, (u0, u1, v_mid, min(v_mid + rng.uniform(15, 45), v1)), SOIL, plan.pick("soil"))
    v = v0 + rng.uniform(2, 8)
    while v < v1 - 26:
        length = rng.uniform(22, 62)
        half_p, half_q = (u1 - u0) / 2 * rng.uniform(0.62, 0.93), min(length, v1 - v - 3) / 2
        u, at_v = (u0 + u1) / 2 + rng.uniform(-2, 2), v + half_q
        tone, height = plan.pick("roof"), rng.uniform(5, 11)
        if rng.random() < 0.5:
            flat(plan, u, at_v, half_p, half_q, height, "shed", int(rng.integers(2, 9)), material=tone)
        else:
            x, y, angle = plan.streets.place(u, at_v)
            any(canvas.building(x, y, angle, half_p * k, half_q * k, height, tone, "gable", 0.12, "shed")
                for k in (1.0, 0.82, 0.65))  # fmt: skip
        v += 2 * half_q + rng.uniform(9, 22)
    for _ in range(int((u1 - u0) * (v1 - v0) / 350)):
        x, y, angle = plan.streets.place(rng.uniform(u0 + 3, u1 - 3), rng.uniform(v0 + 3, v1 - 3))
        if not canvas.taken[canvas.window(x, y, 3)].any():
            angle += (0, np.pi / 2)[rng.integers(2)]
            if rng.random() < 0.5:
                canvas.box(x, y, angle, rng.choice((3.05, 6.1)), 1.25, 2.6, plan.pick("car"))
            else:
                plan.car_at(x, y, angle)
    scatter_trees(plan, where, inside, 14, 0.9, 0.4)


def parking(plan: Plan, block: Block) -> None:
    """Rows of stalls with cars; asphalt like the streets'."""
    canvas, rng = plan.canvas, plan.rng
    u0, u1, v0, v1 = block
    where, inside = cover_block(plan, block, PAVED, plan.pick("asphalt"))
    full = rng.uniform(0.25, 0.85)
    lines = plan.uv[0][where] - np.float32(u0 + 3.0)
    stalls = inside & (lines % 16.5 < 5.2) & ((plan.uv[1][where] - np.float32(v0)) % 2.7 < 0.5)
    canvas.material[where][stalls] = plan.ids["paint"]
    for u in np.arange(u0 + 5.6, u1 - 2, 16.5):
        for v in np.arange(v0 + 1.6, v1 - 1.4, 2.7):
            if rng.random() < full:
                x, y, angle = plan.streets.place(u, v)
                if not canvas.taken[canvas.window(x, y, 1)].any():
                    plan.car_at(x, y, angle + np.pi * rng.integers(2) + rng.normal(0, 0.03))
            elif rng.random() < 0.03:
                plan.tree_at(*plan.streets.place(u, v)[:2], 0.8)


def _lot(plan: Plan, block: Block) -> None:
    """A car park with a shop."""
    rng = plan.rng
    u0, u1, v0, v1 = block
    if rng.random() < 0.7:
        cut = v0 + (v1 - v0) * rng.uniform(0.25, 0.5)
        tone = plan.pick("roof")
        flat(plan, (u0 + u1) / 2, (v0 + cut) / 2, (u1 - u0) / 2 - 2, (cut - v0) / 2 - 2, rng.uniform(4, 7), "shop", 6,
              material=tone)  # fmt: skip
        v0 = cut
    parking(plan, (u0, u1, v0, v1))


def _park(plan: Plan, block: Block) -> None:
    """Lawns, woods, paths, sometimes a pond, a ball field or courts."""
    canvas, rng = plan.canvas, plan.rng
    u0, u1, v0, v1 = block
    where, inside = cover_block(plan, block, GRASS, plan.pick("lawn"))
    u, v = plan.uv[0][where], plan.uv[1][where]
    for _ in range(int(rng.integers(1, 4))):
        a, b, k = rng.uniform(u0, u1), rng.uniform(-0.5, 0.5), rng.uniform(0.03, 0.08)
        path = np.abs(u - a - b * (v - v0) - 6 * np.sin(k * (v - v0))) < rng.uniform(1.0, 1.9)
        canvas.paint(where, inside & path, PAVED, plan.pick("concrete"))
    centre_u, centre_v = rng.uniform(u0 + 15, u1 - 15), rng.uniform(v0 + 20, v1 - 20)
    kind = rng.random()
    d = np.hypot(u - centre_u, v - centre_v)
    if kind < 0.35:
        turn = np.arctan2(v - centre_v, u - centre_u)
        pond = d < rng.uniform(9, 20) * (1 + 0.25 * np.sin(2 * turn + rng.uniform(0, 6)) + 0.1 * np.sin(5 * turn))
        canvas.paint(where, inside & pond, WATER, plan.ids["water"])
        canvas.taken[where] |= inside & pond
    elif kind < 0.6:
        field_ = (u > centre_u) & (v > centre_v) & (d < 30) & inside
        canvas.paint(where, field_, SOIL, plan.pick("soil"))
        lawn = field_ & (u > centre_u + 2) & (v > centre_v + 2) & (u < centre_u + 17) & (v < centre_v + 17)
        canvas.paint(where, lawn, GRASS, plan.pick("lawn"))
        canvas.taken[where] |= inside & (d < 34)
    elif kind < 0.85:
        for i in range(int(rng.integers(1, 4))):
            x, y, angle = plan.streets.place(centre_u, centre_v + 17 * i)
            canvas.patch(x, y, angle, 12, 6.5, PAVED, plan.ids["court"])
            canvas.taken[canvas.window(x, y, 6)] = True
    dense = smooth_noise(rng, max(inside.shape), 70)[: inside.shape[0], : inside.shape[1]]
    wood = inside & (dense > rng.uniform(-0.4, 0.6))
    scatter_trees(plan, where, wood, 230, 1.15, 0.12)
    scatter_trees(plan, where, inside, 16, 1.2, 0.3)


def _site(plan: Plan, block: Block) -> None:
    """A building site or vacant lot: bare soil, heaps, machines, now and then the shell of a building."""
    canvas, rng = plan.canvas, plan.rng
    u0, u1, v0, v1 = block
    where, inside = cover_block(plan, block, SOIL, plan.pick("soil"))
    weeds = inside & (smooth_noise(rng, max(inside.shape), 22)[: inside.shape[0], : inside.shape[1]] > 1.0)
    canvas.paint(where, weeds, GRASS, plan.pick("lawn"))
    for _ in range(int((u1 - u0) * (v1 - v0) / 500)):
        x, y, angle = plan.streets.place(rng.uniform(u0 + 4, u1 - 4), rng.uniform(v0 + 4, v1 - 4))
        r = rng.uniform(2.5, 7)
        spot, p, q = canvas.local(x, y, angle, r)
        heap = np.clip(1 - np.hypot(p, q * rng.uniform(1, 1.6)) / r, 0, 1) * rng.uniform(0.8, 3.6)
        heap = np.where(canvas.taken[spot], 0, heap).astype(np.float32)
        canvas.top[spot] = np.maximum(canvas.top[spot], heap)
        if rng.random() < 0.5:
            plan.car_at(x + rng.uniform(-9, 9), y + rng.uniform(-9, 9), angle)
    if rng.random() < 0.55:
        flat(plan, (u0 + u1) / 2, rng.uniform(v0 + 18, max(v1 - 18, v0 + 19)), rng.uniform(8, 14), rng.uniform(8, 14),
              rng.uniform(3, 14), "shell", 3, material=plan.pick("concrete"))  # fmt: skip
    scatter_trees(plan, where, inside, 12, 0.8, 0.6)


FILLERS = {"houses": _houses, "rows": _rows, "ring": _ring, "towers": _towers, "sheds": _sheds, "park": _park,
           "lot": _lot, "site": _site}  # fmt: skip
