"""Batches: patches in random order, turned at random and normalised, from a state that can be saved."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbutils.patches import PatchSet
from nbutils.shards import Shards


class Batch(NamedTuple):
    """What one step sees.

    Attributes:
        images: (n, B, h, w) float32, channels last, per band zero mean and unit variance over the pretraining patches;
            of pairs (2, n, B, h, w), the patch and its partner.
        masks: (n, h, w) uint8, 255 = void.
        truth: (n, h, w) uint8, 255 = void, or None where it is not known.
    """

    images: Tensor
    masks: Tensor
    truth: Tensor | None


class Batches(Iterator[Batch]):
    """Endless batches of normalised, randomly turned patches.

    The order is a new permutation each epoch, joined end to end, so that every patch is seen equally often (to within
    one) however many batches are drawn. In pairs of dates an epoch is over places, each on one of its dates: patches of
    one place in one epoch would count as others of each other. Patches are augmented as whole batches, which on a CPU
    beats worker processes. Arrays in memory are held where the batches are made; of those on disk (`Shards`) each batch
    is read when its turn comes, and the system is told of the next, so that it reads it meanwhile.

    Args:
        patches: Square patches, at least one.
        target: Which masks come along, ``noisy`` or ``exact``.
        batch_size: Patches per batch.
        seed: Of order, turns and partners.
        device: Where the batches are made.
        paired: Whether each patch comes with another of the same place, drawn evenly from its other dates and turned
            alike; with itself where there is no other.
        truth: (N, h, w) uint8 masks that are turned along, or None.
        share: Of processes that draw the same batches together, which this is and how many they are: it is given its
            part of each batch.
    """

    def __init__(
        self,
        patches: PatchSet,
        target: str,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        paired: bool = False,
        truth: NDArray[np.uint8] | Shards | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.patches, self.batch_size, self.paired, self.device = patches, batch_size, paired, device
        self.part = slice(share[0], None, share[1])
        self.images, self.masks = (_held(array, device) for array in (patches.images, patches.masks[target]))
        self.truth = None if truth is None else _held(truth, device)
        dates = _Dates(patches.places) if paired and patches.places is not None else None
        self.dates = dates if dates is not None and dates.several else None
        self.generator = torch.Generator().manual_seed(seed)
        self.waiting = torch.empty(0, dtype=torch.long)

    def __next__(self) -> Batch:
        while len(self.waiting) < self.batch_size:
            self.waiting = torch.cat([self.waiting, self._epoch()])
        index, self.waiting = self.waiting[: self.batch_size], self.waiting[self.batch_size :]
        turns = torch.randint(8, (len(index),), generator=self.generator)
        partners = None if self.dates is None else self.dates.partners(index, self.generator)[self.part]
        index, turns = index[self.part], turns[self.part]
        self._expect(self.waiting[: self.batch_size][self.part])
        images = self._images(index, turns)
        if partners is not None:
            images = _stacked(images, self._images(partners, turns))
        elif self.paired:
            images = images.expand(2, *images.shape)
        truth = None if self.truth is None else self._turned(self.truth, index, turns)
        return Batch(images, self._turned(self.masks, index, turns), truth)

    def _epoch(self) -> Tensor:
        """Return the next patches in random order."""
        if self.dates is not None:
            return self.dates.epoch(self.generator)
        return torch.randperm(len(self.patches), generator=self.generator)

    def _images(self, index: Tensor, turns: Tensor) -> Tensor:
        return normalise(self._turned(self.images, index, turns), self.patches)

    def _turned(self, source: Tensor | Shards, index: Tensor, turns: Tensor) -> Tensor:
        if isinstance(source, Shards):
            source, index = torch.as_tensor(source[index.numpy()], device=self.device), torch.arange(len(index))
        return turned(source, index, turns)

    def _expect(self, index: Tensor) -> None:
        """Tell of patches whose turn comes next; who their partners will be is not known yet."""
        for source in (self.images, self.masks, self.truth):
            if isinstance(source, Shards):
                source.expect(index.numpy())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the generator's state and the patches that wait for their turn, all that the next batch depends on."""
        return {"generator": self.generator.get_state(), "waiting": self.waiting.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict`."""
        self.generator.set_state(state["generator"])
        self.waiting = state["waiting"].clone()


class _Dates:
    """Which patches show the same place.

    Args:
        places: (N,) number of each patch's place.
    """

    def __init__(self, places: NDArray[np.int64]) -> None:
        _, place, count = np.unique(places, return_inverse=True, return_counts=True)
        order = np.argsort(place, kind="stable")  # patches of one place side by side
        start = np.cumsum(count) - count  # of each place
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - start[place[order]]
        self.several = bool((count > 1).any())
        self.order, self.rank = torch.as_tensor(order), torch.as_tensor(rank)
        self.start, self.count = torch.as_tensor(start[place]), torch.as_tensor(count[place])
        self.places = torch.as_tensor(order[start])  # one patch of each

    def epoch(self, generator: torch.Generator) -> Tensor:
        """Draw every place once, in random order, each on one of its dates."""
        index = self.places[torch.randperm(len(self.places), generator=generator)]
        share = torch.rand(len(index), dtype=torch.float64, generator=generator)
        return self.order[self.start[index] + (share * self.count[index]).long()]

    def partners(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Draw for each patch another of its place, all others alike; itself where there is none."""
        share = torch.rand(len(index), dtype=torch.float64, generator=generator)
        count = self.count[index]
        step = 1 + (share * (count - 1)).long()  # 1..count - 1 places on, round the dates
        return self.order[self.start[index] + (self.rank[index] + step) % count]


def normalise(images: Tensor, patches: PatchSet) -> Tensor:
    """Scale (n, B, h, w) raw values to zero mean and unit variance per band, float32, channels last."""
    mean = torch.tensor(patches.mean, device=images.device).view(-1, 1, 1)
    std = torch.tensor(patches.std, device=images.device).view(-1, 1, 1)
    scaled = images.to(torch.float32, memory_format=torch.channels_last, copy=True)
    return scaled.div_(patches.scale).sub_(mean).div_(std)


def turned(source: Tensor, index: Tensor, turns: Tensor) -> Tensor:
    """Take patches and turn each: by `turns` % 4 quarters, then mirrored where `turns` >= 4; no pixel is interpolated.

    Args:
        source: (N, ..., s, s).
        index: (n,) which to take.
        turns: (n,) 0..7.

    Returns:
        (n, ..., s, s).
    """
    out = source.new_empty(len(index), *source.shape[1:])
    for turn in range(8):
        own = (turns == turn).nonzero().squeeze(1)
        if len(own):
            part = source[index[own].to(source.device)].rot90(turn % 4, (-2, -1))
            out[own.to(source.device)] = part.flip(-1) if turn >= 4 else part
    return out


def _held(array: NDArray | Shards, device: torch.device | str) -> Tensor | Shards:
    return array if isinstance(array, Shards) else torch.as_tensor(np.ascontiguousarray(array), device=device)


def _stacked(here: Tensor, there: Tensor) -> Tensor:
    """Stack two batches to (2, n, B, h, w), each still channels last."""
    return torch.cat([here, there]).unflatten(0, (2, -1))
