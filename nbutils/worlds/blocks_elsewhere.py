"""What fills the blocks of towns with another grammar: an old town of closed blocks, an estate of slabs in lawns.

Neither occurs in the city unless a card names it: they are there to judge networks on ground like none they saw.
"""

from __future__ import annotations

import numpy as np

from nbutils.worlds.blocks import FILLERS, cover_block, flat, parking, scatter_trees
from nbutils.worlds.canvas import GRASS, PAVED, SOIL
from nbutils.worlds.plan import Block, Plan

# ---- old town


def _yard(plan: Plan, block: Block, shares: tuple[float, float, float]):
    """Cover a block with pavement, bare earth or grass by their shares; returns its window and free cells."""
    cover, name = ((PAVED, "concrete"), (SOIL, "soil"), (GRASS, "lawn"))[plan.rng.choice(3, p=shares)]
    return cover_block(plan, block, cover, plan.pick(name))


def _tree(plan: Plan, u: float, v: float, size: float) -> None:
    """A tree in a row, where nothing is built and no water or street lies."""
    x, y, _ = plan.streets.place(u, v)
    if not plan.canvas.taken[plan.canvas.window(x, y, 0.5)].any():
        plan.tree_at(x, y, size)


def _wall(plan: Plan, start: float, end: float, across: float, deep: float, eaves: float, *, along_v: bool) -> None:
    """Houses wall to wall from `start` to `end`, ridges along the street, now and then a passage between them."""
    rng, at = plan.rng, start
    while end - at > 2.5:
        wide = rng.uniform(5.0, 10.0)
        if end - at - wide < 3.5:
            wide = end - at
        middle = at + wide / 2
        x, y, angle = plan.streets.place(*((across, middle) if along_v else (middle, across)))
        if rng.random() > 0.04:
            roof = ("gable", "hip")[int(rng.random() < 0.12)]
            plan.canvas.building(x, y, angle + np.pi / 2 * along_v, wide / 2 + 0.3, deep / 2 + rng.normal(0, 0.25),
                                 max(eaves + rng.normal(0, 1.3), 3.5), plan.pick("roof"), roof, rng.uniform(0.45, 0.75),
                                 "town house", wing=True)  # fmt: skip
        at += wide


def _perimeter(plan: Plan, block: Block) -> None:
    """Town houses wall to wall all round a court, with wings and sheds in it."""
    rng = plan.rng
    u0, u1, v0, v1 = block
    where, inside = _yard(plan, block, (0.5, 0.2, 0.3))
    deep = min(rng.uniform(7.5, 10.5), (u1 - u0) / 2, (v1 - v0) / 2)
    eaves = rng.uniform(6.0, 11.5)
    for u in (u0 + deep / 2 + 0.2, u1 - deep / 2 - 0.2):
        _wall(plan, v0 + 0.2, v1 - 0.2, u, deep, eaves, along_v=True)
    for v in (v0 + deep / 2 + 0.2, v1 - deep / 2 - 0.2):
        _wall(plan, u0 + deep, u1 - deep, v, deep, eaves, along_v=False)
    for v in np.arange(v0 + deep + 4, v1 - deep - 4, rng.uniform(9, 15)):  # wings reach into the court from one side
        side = (1, -1)[rng.integers(2)]
        u = (u0 + deep + 2 if side > 0 else u1 - deep - 2) + side * rng.uniform(0, 3)
        x, y, angle = plan.streets.place(u, v)
        if rng.random() < 0.65:
            plan.canvas.building(x, y, angle, rng.uniform(3, 5), rng.uniform(1.8, 2.8), rng.uniform(2.6, 6),
                                 plan.pick("roof"), "gable", 0.4, "wing", wing=True)  # fmt: skip
    scatter_trees(plan, where, inside, 45, 0.9, 0.3)


def _cluster(plan: Plan, block: Block) -> None:
    """Small houses at all angles with little yards between them."""
    rng = plan.rng
    u0, u1, v0, v1 = block
    where, inside = _yard(plan, block, (0.35, 0.35, 0.3))
    for v in np.arange(v0 + 4.5, v1 - 4, rng.uniform(9, 11.5)):
        for u in np.arange(u0 + 4.5, u1 - 4, rng.uniform(9.5, 12)):
            x, y, angle = plan.streets.place(u + rng.normal(0, 0.8), v + rng.normal(0, 0.8))
            turn = angle + np.pi / 2 * rng.integers(2) + rng.normal(0, 0.16)
            half, tone = (rng.uniform(3.8, 5.8), rng.uniform(2.9, 4.2)), plan.pick("roof")
            if rng.random() < 0.9:
                plan.canvas.building(x, y, turn, *half, rng.uniform(3, 6.5), tone, ("gable", "hip")[rng.integers(2)],
                                     rng.uniform(0.4, 0.7), "house")  # fmt: skip
                side = half[1] + 1.6  # an outhouse against the back wall
                plan.canvas.building(x - side * np.sin(turn), y + side * np.cos(turn), turn, half[0] * 0.6, 1.8, 2.5,
                                     tone, "gable", 0.3, "outhouse", wing=True)  # fmt: skip
    scatter_trees(plan, where, inside, 60, 0.85, 0.4)


def _square(plan: Plan, block: Block) -> None:
    """A paved square with a church, or stalls and two rows of trees."""
    canvas, rng, place = plan.canvas, plan.rng, plan.streets.place
    u0, u1, v0, v1 = block
    cover_block(plan, block, PAVED, plan.pick("concrete"))
    u, v = (u0 + u1) / 2, (v0 + v1) / 2
    x, y, angle = place(u, v)
    angle += np.pi / 2 + rng.normal(0, 0.15)
    long, tone = min(rng.uniform(11, 17), (v1 - v0) / 2 - 5), plan.pick("roof")
    if long > 8 and rng.random() < 0.6:
        if canvas.building(x, y, angle, long, rng.uniform(5, 6.5), rng.uniform(9, 12), tone, "gable", 1.0, "church"):
            canvas.building(
                x, y, angle + np.pi / 2, rng.uniform(8, 10), 3.5, 8, tone, "gable", 0.9, "church", wing=True
            )
            x, y = x + long * np.cos(angle), y + long * np.sin(angle)
            canvas.building(x, y, angle, 3, 3, rng.uniform(20, 34), plan.pick("roof"), "hip", 1.6, "tower", wing=True)
    else:
        for _ in range(int(rng.integers(3, 14))):
            x, y, _ = place(rng.uniform(u0 + 4, u1 - 4), rng.uniform(v0 + 4, v1 - 4))
            canvas.box(x, y, angle, rng.uniform(1.2, 2.5), 1.2, 2.4, plan.pick("car"))
    for u in (u0 + 2.5, u1 - 2.5):
        for v in np.arange(v0 + 3, v1 - 2, 8.5):
            if rng.random() < 0.5:
                _tree(plan, u, v, 0.9)


def _gardens(plan: Plan, block: Block) -> None:
    """Beds of bare or planted earth, dry grass, fruit trees in rows, a hut."""
    canvas, rng, place = plan.canvas, plan.rng, plan.streets.place
    u0, u1, v0, v1 = block
    cover_block(plan, block, GRASS, plan.pick("lawn"))
    for v in np.arange(v0 + 5, v1 - 4, 9.0):
        x, y, angle = place((u0 + u1) / 2 + rng.normal(0, 2), v)
        kind = rng.random()
        if kind < 0.4:
            canvas.patch(x, y, angle, (u1 - u0) / 2 - rng.uniform(2, 6), rng.uniform(2.5, 4.2), SOIL, plan.pick("soil"))
        elif kind < 0.75:
            for u in np.arange(u0 + 3, u1 - 2, rng.uniform(4.5, 6.5)):
                _tree(plan, u, v + rng.normal(0, 0.4), 0.75)
    x, y, angle = place(u0 + 4, rng.uniform(v0 + 4, max(v1 - 4, v0 + 5)))
    canvas.building(x, y, angle, 2.4, 1.9, 2.4, plan.pick("roof"), "gable", 0.4, "shed")


# ---- estate


def _cars_at_the_edge(plan: Plan, block: Block) -> None:
    """A strip of stalls along one side of a block, where nothing is built."""
    u0, u1, v0, v1 = block
    strip = (u0 + 3, u0 + 20, v0 + 8, v1 - 8) if plan.rng.random() < 0.5 else (u1 - 20, u1 - 3, v0 + 8, v1 - 8)
    parking(plan, strip)
    where, inside = plan.block_mask(strip)
    plan.canvas.taken[where] |= inside


def _path(plan: Plan, x: float, y: float, angle: float, half: float) -> None:
    """A footpath of half a length in metres."""
    plan.canvas.patch(x, y, angle, half, plan.rng.uniform(1.0, 1.8), PAVED, plan.pick("concrete"))


def _slabs(plan: Plan, block: Block) -> None:
    """Long slabs side by side, standing free in lawns and askew to the streets, with car parks and sand pits."""
    canvas, rng, place = plan.canvas, plan.rng, plan.streets.place
    u0, u1, v0, v1 = block
    where, inside = cover_block(plan, block, GRASS, plan.pick("lawn"))
    _cars_at_the_edge(plan, block)
    skew, along_v = (0.0, 0.0, 0.35, -0.35)[rng.integers(4)], bool(rng.integers(2))
    length, storeys, tone = rng.uniform(24, 39), int(rng.integers(4, 12)), plan.pick("roof")
    (a0, a1), (b0, b1) = ((v0, v1), (u0, u1)) if along_v else ((u0, u1), (v0, v1))
    gap = rng.uniform(27, 37)
    for b in np.arange(b0 + 13, b1 - 10, gap):
        for a in np.arange(a0 + length + 6, a1 - length + 4, 2 * length + rng.uniform(12, 20)):
            u, v = (b, a) if along_v else (a, b)
            x, y, angle = place(u, v)
            turn = skew + np.pi / 2 * along_v
            beside = angle + turn + np.pi / 2
            _path(plan, x + 9 * np.cos(beside), y + 9 * np.sin(beside), angle + turn, length + 6)
            flat(plan, u, v, length, rng.uniform(5.4, 6.6), 2.9 * storeys, "slab", 3, turn, tone)
            if rng.random() < 0.35:
                far = gap / 2
                canvas.patch(x - far * np.cos(beside), y - far * np.sin(beside), angle, rng.uniform(3, 7),
                             rng.uniform(3, 6), SOIL, plan.pick("soil"))  # fmt: skip
    scatter_trees(plan, where, inside, 42, 1.15, 0.2)


def _points(plan: Plan, block: Block) -> None:
    """Point towers far apart on one lawn with crossing paths."""
    rng, place = plan.rng, plan.streets.place
    u0, u1, v0, v1 = block
    where, inside = cover_block(plan, block, GRASS, plan.pick("lawn"))
    _cars_at_the_edge(plan, block)
    storeys, half, turn = rng.integers(12, 20), rng.uniform(9, 12), rng.uniform(0, np.pi / 2)
    for v in np.arange(v0 + 24, v1 - 18, rng.uniform(44, 56)):
        for u in np.arange(u0 + 26, u1 - 18, rng.uniform(46, 60)):
            x, y, angle = place(u, v)
            _path(plan, x, y, angle + turn, 40)
            flat(plan, u, v, half, half, 2.9 * storeys, "point", 4, turn)
    scatter_trees(plan, where, inside, 50, 1.2, 0.2)


def _garages(plan: Plan, block: Block) -> None:
    """Long rows of garages with aisles of concrete between them."""
    rng = plan.rng
    u0, u1, v0, v1 = block
    cover_block(plan, block, PAVED, plan.pick("concrete"))
    tone = plan.pick("roof")
    cut = v0 + (v1 - v0) * rng.uniform(0.4, 0.8)
    for v in np.arange(v0 + 7, cut - 4, rng.uniform(13, 17)):
        for u in np.arange(u0 + 22, u1 - 18, rng.uniform(38, 44)):
            x, y, angle = plan.streets.place(u, v)
            plan.canvas.building(x, y, angle, 16.5, 2.9, 2.5, tone, use="garages")
    parking(plan, (u0, u1, cut, v1))


MIX = {  # how often each filler occurs in a block of each style
    "oldtown": {_perimeter: 0.48, _cluster: 0.24, _square: 0.06, _gardens: 0.13, FILLERS["lot"]: 0.03,
                FILLERS["site"]: 0.06},
    "estate": {_slabs: 0.55, _points: 0.17, _garages: 0.08, FILLERS["lot"]: 0.08, FILLERS["park"]: 0.09,
               FILLERS["site"]: 0.03},
}  # fmt: skip
