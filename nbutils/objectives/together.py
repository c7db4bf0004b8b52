"""Processes that train one network together, each on its share of every batch: what a batch knows as a whole.

Alone, everything here returns what it is given. Together, sums over a batch are sums over all its shares, gradients
too, so that a loss made of them is the loss of the batch, whoever holds which part of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

_sharing = False


@contextmanager
def sharing(processes: int) -> Iterator[None]:
    """Let losses and statistics be those of the whole batch while the block runs, in all processes alike.

    What only some of them do, such as looking at the network, stays outside.
    """
    global _sharing
    before, _sharing = _sharing, processes > 1
    try:
        yield
    finally:
        _sharing = before


def size() -> int:
    """Return how many processes share the batch at hand."""
    return dist.get_world_size() if _sharing else 1


def total(value: Tensor) -> Tensor:
    """Sum what each process has, with its gradient."""
    return value if size() == 1 else _Total.apply(value)


def average(count: Tensor) -> Tensor:
    """Mean over the processes: what divides a process's own sum, so that their losses average to that of the batch."""
    return count if size() == 1 else total(count.float()) / size()


class _Total(torch.autograd.Function):
    """A sum over processes, each of which has a loss of its own: to each the gradients of all losses come back."""

    @staticmethod
    def forward(context: object, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(value: Tensor) -> Tensor:
    out = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out)
    return out


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of the whole batch.

    PyTorch's own, `torch.nn.SyncBatchNorm`, does not run on a CPU.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (n, C, h, w) images; in evaluation mode by the statistics learnt."""
        if not self.training or size() == 1:
            return super().forward(images)
        values, axes = images.float(), (0, 2, 3)
        n = values.numel() / values.shape[1] * size()  # shares are equal
        mean = total(values.sum(axes)) / n
        centred = values - mean.view(-1, 1, 1)
        variance = total(centred.square().sum(axes)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)  # torch keeps the unbiased one
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)).to(images.dtype)


def share_statistics(module: nn.Module) -> None:
    """Let the batch normalisations of a module see whole batches, in place; weights and their names stay as they are.

    The module lies on its device already: on a GPU PyTorch's own takes over.

    Raises:
        ValueError: One normalises in a way that is not known here.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.modules.batchnorm._BatchNorm) or isinstance(child, BatchNorm):
                continue
            if type(child) is not nn.BatchNorm2d or not (child.affine and child.track_running_stats and child.momentum):
                raise ValueError(f"{name}: {child} cannot be trained by several processes; train in one")
            setattr(parent, name, _like(child))


def _like(norm: nn.BatchNorm2d) -> nn.Module:
    kind = nn.SyncBatchNorm if norm.weight.is_cuda else BatchNorm
    new = kind(norm.num_features, norm.eps, norm.momentum)
    new.weight, new.bias = norm.weight, norm.bias  # the optimiser may hold them already
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    return new.train(norm.training)
