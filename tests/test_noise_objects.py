"""Objects that are missing, added, moved, turned or of another date."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import measure

from nbutils import noise
from nbutils.legend import VOID
from nbutils.noise.objects import surroundings


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def houses(n: int = 10, side: int = 4, gap: int = 8, ground: int = 1) -> np.ndarray:
    """A lattice of n x n squares of class 0."""
    step = side + gap
    mask = np.full((n * step, n * step), ground, np.uint8)
    for i in range(n * n):
        row, column = (step * k + gap // 2 for k in divmod(i, n))
        mask[row : row + side, column : column + side] = 0
    return mask


def count(mask: np.ndarray, value: int) -> int:
    return measure.label(mask == value, connectivity=1).max()


def test_omitted_objects_vanish_whole_into_their_surroundings():
    mask = np.ones((40, 40), np.uint8)
    mask[5:9, 5:9] = 0  # inside class 1
    mask[20:, :] = 2
    mask[30:34, 30:34] = 0  # inside class 2
    noisy, changed = noise.omit_objects(mask, 1.0, [0], rng=rng())
    assert (noisy[5:9, 5:9] == 1).all() and (noisy[30:34, 30:34] == 2).all() and changed.sum() == 32


def test_objects_inside_one_another_vanish_without_a_ghost():
    mask = np.zeros((40, 40), np.uint8)
    for i in range(1, 9):
        mask[2 * i : -2 * i, 2 * i : -2 * i] = i
    assert not noise.omit_objects(mask, 1.0, range(1, 9), rng=rng())[0].any()
    halves = np.repeat([[1, 2]], 8, axis=1).repeat(8, axis=0).astype(np.uint8)
    assert np.array_equal(noise.omit_objects(halves, 1.0, rng=rng())[0], halves), "nothing is left to fill with"
    aged, _ = noise.age_map(mask, 1.0, range(1, 9), rng=rng(), gone_share=0.0, max_share=1.0)
    assert not aged.any()
    chequered = (np.indices((16, 16)).sum(axis=0) % 2 + 1).astype(np.uint8)
    chequered[0, 0], chequered[9:, 9:] = 0, VOID
    filled, _ = noise.omit_objects(chequered, 1.0, [1, 2], rng=rng())
    assert not filled[filled != VOID].any(), "the one kept reaches the farthest corner"


@given(st.integers(0, 9999), st.floats(0.1, 1))
@settings(max_examples=60, deadline=None)
def test_fills_agree_with_an_oracle_that_goes_object_by_object(seed, rate):
    mask = rng(seed).choice(np.array([0, 1, 2, 3, VOID], np.uint8), (9, 11), p=[0.3, 0.3, 0.2, 0.1, 0.1])
    ids = measure.label(mask, background=VOID, connectivity=1)
    gone = rng(seed + 1).random(ids.max() + 1) < rate
    gone[0] = False
    known = {int(i): int(c) for i, c in zip(ids.ravel(), mask.ravel(), strict=True) if c != VOID and not gone[i]}
    expected, more = {}, True
    while more:
        votes = {}
        for (r, c), i in np.ndenumerate(ids):
            for y, x in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
                if i and i not in known and 0 <= y < 9 and 0 <= x < 11 and ids[y, x] in known:
                    votes.setdefault(int(i), []).append(known[int(ids[y, x])])
        more = {i: int(np.bincount(near).argmax()) for i, near in votes.items()}
        known, expected = known | more, expected | more
    fill = surroundings(mask, ids, gone)
    assert {int(i): int(fill[i]) for i in np.flatnonzero(fill != VOID)} == expected


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (0, 8, 8)])
def test_masks_without_a_pixel_come_back(shape):
    empty = np.zeros(shape, np.uint8)
    for done in (
        noise.omit_objects(empty, 0.5, rng=rng()),
        noise.add_objects(empty, 0.5, rng=rng(), source=np.zeros((0, 8), np.uint8)),
        noise.age_map(empty, 0.5, rng=rng(), earlier=empty),
        noise.flip_labels(empty, 0.5, 3, rng=rng()),
    ):
        assert done[0].shape == shape and not done[1].any()
    mask = houses(3)
    assert np.array_equal(noise.add_objects(mask, 1.0, rng=rng(), source=np.zeros((0, 8), np.uint8))[0], mask)


def test_omission_takes_objects_at_the_rate_asked_and_spares_large_ones():
    mask = np.ones((300, 300), np.uint8)
    for i in range(0, 300, 6):
        for j in range(0, 300, 6):
            mask[i : i + 3, j : j + 3] = 0
    noisy, _ = noise.omit_objects(mask, 0.3, [0], rng=rng())
    gone = (noisy[::6, ::6] == 1).mean()
    assert gone == 0.3
    kept, _ = noise.omit_objects(mask, 1.0, rng=rng(), max_share=8 / mask.size)
    assert np.array_equal(kept, mask), "nine pixels are more than the largest share"


def test_an_object_without_surroundings_stays():
    alone = np.full((8, 8), VOID, np.uint8)
    alone[2:5, 2:5] = 3
    for mask in (alone, np.zeros((8, 8), np.uint8)):
        assert np.array_equal(noise.omit_objects(mask, 1.0, rng=rng())[0], mask)


@given(st.floats(0, 1), st.integers(0, 9999))
@settings(max_examples=40, deadline=None)
def test_the_share_of_objects_is_met_within_one(rate, seed):
    mask = houses()
    mask[:12] = VOID
    asked = 90 * rate
    omitted, _ = noise.omit_objects(mask, rate, [0], rng=rng(seed))
    assert abs(count(mask, 0) - count(omitted, 0) - asked) < 1
    moved, changed = noise.shift_objects(mask, 2, rate, [0], rng=rng(seed))
    assert changed.sum() <= (asked + 1) * 2 * 4 * 4


def test_counts_are_rounded_so_that_the_mean_is_right():
    mask = houses(2)
    gone = [4 - count(noise.omit_objects(mask, 0.4, [0], rng=rng(i))[0], 0) for i in range(400)]
    assert set(gone) == {1, 2} and abs(np.mean(gone) - 1.6) < 0.1


def test_only_objects_of_the_sizes_and_classes_asked_are_touched():
    mask = houses(6)
    mask[:12, :12] = 2
    mask[14:24, 14:24] = 0
    small, changed = noise.omit_objects(mask, 1, [0], rng=rng(), size_px=(0, 20))
    assert (small[14:24, 14:24] == 0).all() and count(small, 0) == 1 and (small[:12, :12] == 2).all()
    large, _ = noise.omit_objects(mask, 1, [0], rng=rng(), size_px=(21, 1000))
    assert (large[14:24, 14:24] == 1).all() and count(large, 0) == count(mask, 0) - 1


def test_added_objects_are_copies_somewhere_else():
    mask = houses(6, gap=20)
    noisy, changed = noise.add_objects(mask, 0.5, [0], rng=rng())
    assert changed.any() and (noisy[changed] == 0).all(), "only added"
    assert 0.7 * 18 * 16 < changed.sum() <= 18 * 16, "some fall on another, or over the edge"
    empty, ell = np.ones((100, 100), np.uint8), np.ones((100, 100), np.uint8)
    ell[40:46, 40:42], ell[44:46, 40:50] = 3, 3
    noisy, changed = noise.add_objects(empty, 1.0, [3], rng=rng(2), source=[ell, ell])
    assert changed.sum() == 28 and count(noisy, 3) == 1, "one per object and area of the source"
    none, changed = noise.add_objects(empty, 1.0, [7], rng=rng(), source=ell)
    assert not changed.any()


def test_objects_are_added_all_over_the_image():
    mask = np.full((60, 90), 1, np.uint8)
    mask[30:33, 2:7] = 0
    added = np.zeros(mask.shape, int)
    for seed in range(300):
        added += noise.add_objects(mask, 1.0, [0], rng=rng(seed))[1]
    shares = added.sum(axis=1).reshape(4, -1).sum(axis=1), added.sum(axis=0).reshape(5, -1).sum(axis=1)
    for each in shares:
        assert each / added.sum() == pytest.approx(np.full(len(each), 1 / len(each)), abs=0.09)


def test_each_object_goes_its_own_way_and_leaves_the_ground_behind():
    mask = houses(12, gap=14)
    noisy, _ = noise.shift_objects(mask, 5, rng=rng())
    before, after = (
        np.array([region.centroid for region in measure.regionprops(measure.label(one == 0))]) for one in (mask, noisy)
    )
    assert len(after) == 144 and (noisy == 0).sum() == (mask == 0).sum(), "none is lost or torn"
    way = after[np.argmin(np.hypot(*(before[:, None] - after[None]).transpose(2, 0, 1)), axis=1)] - before
    assert np.hypot(*way.T).max() <= 5 + np.sqrt(2) and np.abs(way.mean(axis=0)).max() < 0.6 and len(np.unique(way)) > 6


def test_objects_turn_about_their_middle():
    mask = np.ones((41, 41), np.uint8)
    mask[18:23, 8:33] = 0
    wide = [noise.rotate_objects(mask, 90, rng=rng(i), max_share=0.5)[0] == 0 for i in range(20)]
    tall = [np.ptp(np.nonzero(one)[0]) + 1 for one in wide]
    assert max(tall) > 20 > 8 > min(tall), "from lying to nearly upright"
    for one in wide:
        assert np.allclose(np.mean(np.nonzero(one), axis=1), 20, atol=0.7) and abs(one.sum() - 125) < 20


def test_a_stale_map_shows_an_earlier_state_at_the_rate_asked():
    now = houses(10)
    then = now.copy()
    then[:60][then[:60] == 0] = 2  # fifty houses were woods
    noisy, changed = noise.age_map(now, 0.4, rng=rng(), earlier=then)
    assert count(noisy, 2) == 20 and changed.sum() == 20 * 16
    assert np.array_equal(noise.age_map(now, 1.0, rng=rng(), earlier=then)[0], then)
    stack, _ = noise.age_map(np.stack([now, now]), 0.4, rng=rng(), earlier=np.stack([now, then]))
    assert np.array_equal(stack[0], now) and count(stack[1], 2) == 20
    back, _ = noise.age_map(now, 1.0, [1], rng=rng(), earlier=then)
    assert np.array_equal(back, now), "no ground changed"


def test_without_an_earlier_mask_objects_come_and_go():
    mask = houses(10, gap=16)
    noisy, changed = noise.age_map(mask, 0.5, [0], rng=rng(), gone_share=0.5)
    missing, extra = changed & (mask == 0), changed & (noisy == 0)
    assert missing.sum() == 25 * 16 and 12 * 16 < extra.sum() <= 25 * 16


def test_void_is_neither_filled_nor_a_way_through():
    mask = np.array([[0, VOID, 1]], np.uint8)
    assert (surroundings(mask, np.array([[1, 0, 2]]), np.array([True, False, True])) == VOID).all()
