"""Batches: equal exposure, no pixel invented, partners of the same place turned alike, a stream that can be saved."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_patches

from nbutils.batches import Batches, normalise, turned

DATA = toy_patches(n=20, size_px=8)
RAW = dict(scale=1.0, mean=(0.0,) * 4, std=(1.0,) * 4)


def _numbered(places=None, n=10):
    """Patches whose images are their own number, everywhere in band 0, over the same uneven ground in band 1."""
    data = toy_patches(n=n, size_px=8)
    images = np.zeros(data.images.shape, np.float32)
    images[:, 0] += np.arange(n)[:, None, None]
    images[:, 1] = np.arange(64).reshape(8, 8)
    return replace(data, images=images, places=None if places is None else np.array(places), **RAW)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(2, 9), st.integers(0, 99))
def test_every_patch_is_seen_equally_often(steps, batch_size, seed):
    data = _numbered()
    batches = islice(Batches(data, "noisy", batch_size=batch_size, seed=seed), steps)
    seen = torch.cat([batch.images[:, 0, 0, 0] for batch in batches]).int()
    often = torch.bincount(seen, minlength=len(data))
    assert len(seen) == steps * batch_size and often.max() - often.min() <= 1


@given(st.lists(st.integers(0, 7), min_size=1, max_size=12), st.integers(0, 2**16))
def test_turns_are_those_of_numpy(turns, seed):
    source = np.random.default_rng(seed).integers(0, 256, (5, 3, 6, 6), dtype=np.uint8)
    index = np.random.default_rng(seed).integers(0, 5, len(turns))
    expected = [np.rot90(source[i], turn % 4, (-2, -1)) for i, turn in zip(index, turns, strict=True)]
    expected = [each[..., ::-1] if turn >= 4 else each for each, turn in zip(expected, turns, strict=True)]
    out = turned(torch.as_tensor(source), torch.as_tensor(index), torch.as_tensor(turns))
    assert np.array_equal(out, np.stack(expected))


def test_all_eight_turns_come_up_equally_often():
    data = _numbered()
    corners = Counter()
    for batch in islice(Batches(data, "noisy", batch_size=100, seed=0), 40):
        corners.update(map(tuple, batch.images[:, 1, 0, :2].int().tolist()))  # a corner and its neighbour tell the turn
    assert len(corners) == 8 and all(abs(count - 500) < 4 * (4000 / 8 * 7 / 8) ** 0.5 for count in corners.values())


def test_image_mask_and_truth_are_turned_together():
    data = toy_patches(n=20, size_px=8)
    images = np.repeat(data.masks["exact"][:, None], 4, axis=1)
    data = replace(data, images=images, **RAW)
    for batch in islice(Batches(data, "exact", batch_size=6, seed=0, truth=data.masks["noisy"]), 5):
        assert torch.equal(batch.images[:, 2].to(torch.uint8), batch.masks)
        pairs = torch.stack([batch.masks, batch.truth], dim=-1).view(-1, 2).unique(dim=0)
        assert len(pairs) == len(np.unique(data.masks["exact"]))  # the noisy class is a function of the exact one


def test_normalised_patches_have_the_cards_mean_and_spread():
    values = normalise(torch.full((2, 4, 8, 8), 255.0 * 0.7), DATA)
    assert torch.allclose(values, torch.tensor((0.7 - 0.5) / 0.2))
    assert values.is_contiguous(memory_format=torch.channels_last)


def test_normalising_leaves_the_raw_values_alone():
    raw = torch.full((2, 4, 8, 8), 7.0).contiguous(memory_format=torch.channels_last)
    normalise(raw, DATA)
    assert (raw == 7).all()


@pytest.mark.parametrize("places", [None, range(10)])
def test_without_other_dates_the_partner_is_the_patch_and_the_stream_stays(places):
    data = _numbered(places)
    alone, paired = (
        Batches(data, "noisy", batch_size=4, seed=3),
        Batches(data, "noisy", batch_size=4, seed=3, paired=True),
    )
    for a, b in zip(islice(alone, 6), islice(paired, 6), strict=True):
        assert torch.equal(a.images, b.images[0]) and torch.equal(a.images, b.images[1])
        assert torch.equal(a.masks, b.masks) and b.images[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(alone.generator.get_state(), paired.generator.get_state())


def test_partners_are_the_other_dates_of_the_place_each_equally_often_and_turned_alike():
    places = [5, 7, 5, 5, 9, 7, 5, 2, 2, 2]  # four dates, two, one, three
    data = _numbered(places)
    drawn = Counter()
    for batch in islice(Batches(data, "noisy", batch_size=10, seed=0, paired=True), 600):
        here, there = batch.images
        assert torch.equal(here[:, 1], there[:, 1])  # the same ground, turned alike
        assert here.is_contiguous(memory_format=torch.channels_last)
        drawn.update(zip(here[:, 0, 0, 0].int().tolist(), there[:, 0, 0, 0].int().tolist(), strict=True))
    assert sum(drawn.values()) == 6000
    for place in set(places):
        dates = [i for i, own in enumerate(places) if own == place]
        pairs = [(i, j) for i in dates for j in dates if i != j] or [(dates[0], dates[0])]
        counts = [drawn[pair] for pair in pairs]
        assert sum(counts) == 1500  # every place equally often, and no other pair was ever drawn
        spread = (1500 / len(pairs) * (1 - 1 / len(pairs))) ** 0.5
        assert all(abs(count - 1500 / len(pairs)) <= 4 * spread for count in counts)


def test_an_epoch_of_pairs_shows_every_place_once():
    places = [5, 7, 5, 5, 9, 7, 5, 2, 2, 2]
    data = _numbered(places)
    for batch in islice(Batches(data, "noisy", batch_size=4, seed=0, paired=True), 20):
        assert sorted(places[i] for i in batch.images[0][:, 0, 0, 0].int()) == [2, 5, 7, 9]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 9), st.integers(2, 9), st.booleans(), st.integers(0, 99))
def test_a_saved_stream_goes_on_as_it_would_have(before, batch_size, paired, seed):
    data = _numbered([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
    settings = dict(batch_size=batch_size, paired=paired)
    stream = Batches(data, "exact", seed=seed, **settings)
    list(islice(stream, before))
    state = stream.state_dict()
    other = Batches(data, "exact", seed=seed + 1, **settings)
    next(other)
    other.load_state_dict(state)
    for a, b in zip(islice(stream, 5), islice(other, 5), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks)
