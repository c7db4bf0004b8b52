"""Watching a training: what the network makes of the labels it is given, and of those among them that are wrong."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nbutils.legend import VOID

SHARES = ("accuracy", "truth_accuracy", "wrong_as_labelled", "wrong_as_truth")


class Watch:
    """Running shares of pixels, counted where the batch is and read only when asked for.

    Args:
        total: Sums counts over the processes that share a batch.
    """

    def __init__(self, total: Callable[[Tensor], Tensor] = lambda counts: counts) -> None:
        self.total = total
        self.counts: Tensor | None = None  # (4, 2) int64: pixels of that kind, of how many; a row for each of SHARES

    @torch.no_grad()
    def add(self, logits: Tensor, masks: Tensor, truth: Tensor | None) -> None:
        """Count a batch.

        Args:
            logits: (n, K, h, w) of the step's own forward pass.
            masks: (n, h, w) uint8 labels it learned from, 255 = void.
            truth: (n, h, w) uint8 in the same legend, 255 = void, or None.
        """
        counts = self.total(count(logits, masks, truth))
        self.counts = counts if self.counts is None else self.counts + counts

    def take(self) -> dict[str, float]:
        """Return the shares since the last time, those that are known, and begin anew."""
        if self.counts is None:
            return {}
        table, self.counts = self.counts.tolist(), None
        return {name: part / whole for name, (part, whole) in zip(SHARES, table, strict=True) if whole}


def count(logits: Tensor, masks: Tensor, truth: Tensor | None) -> Tensor:
    """Count the pixels behind `SHARES`, (4, 2) int64; arguments as in `Watch.add`."""
    # Void never equals a prediction, so that only the wholes need to ask for it.
    predicted = logits.argmax(dim=1)
    as_labelled, labelled = predicted == masks, masks != VOID
    own = [as_labelled.sum(), labelled.sum()]
    if truth is None:
        return torch.stack([*own, *[own[0].new_zeros(())] * 6]).view(4, 2)
    as_truth, known = predicted == truth, truth != VOID
    wrong = (masks != truth) & labelled & known
    on_wrong = wrong.sum()
    others = [as_truth.sum(), known.sum(), (as_labelled & wrong).sum(), on_wrong, (as_truth & wrong).sum(), on_wrong]
    return torch.stack([*own, *others]).view(4, 2)


@torch.no_grad()
def look(objective: nn.Module, judge: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Ask a judge about a module in evaluation mode, and leave modes and random numbers as they were."""
    modes = [(module, module.training) for module in objective.modules()]
    with torch.random.fork_rng():
        objective.eval()
        said = judge()
    for module, training in modes:
        module.training = training
    return {name: float(value) for name, value in said.items()}
