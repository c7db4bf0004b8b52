"""What the self-supervised objectives share: pairs of images, their own randomness, and how images are summed up."""

import copy

import torch
from lightly.models.utils import deactivate_requires_grad
from torch import Tensor, nn

from nbutils.objectives.objective import Objective


class SelfSupervised(Objective):
    """An objective that learns an encoder from pairs of images, (2, N, B, H, W), and never reads a mask.

    Attributes:
        encoder: Trained in place.
        generator: Of views and shuffles; saved with the weights, so that training resumes to the same bits.
    """

    paired = True

    def __init__(self, encoder: nn.Module, *, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.generator = torch.Generator().manual_seed(seed)

    def get_extra_state(self) -> Tensor:
        """Return the state of the generator."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Put the generator back."""
        self.generator.set_state(state.cpu())

    def _check(self, images: Tensor, need: int) -> None:
        """Raise a `ValueError` for batches too small to be normalised and compared."""
        if images.ndim != 5 or len(images) != 2:
            raise ValueError(f"{type(self).__name__} learns from pairs, (2, N, B, H, W), got {tuple(images.shape)}")
        if images.shape[1] < need:
            raise ValueError(
                f"{type(self).__name__} compares batches of {need} images or more, got {images.shape[1]}; "
                "raise the batch size"
            )


def follower(module: nn.Module) -> nn.Module:
    """Return a copy that no gradient reaches, to be moved by `update_momentum`."""
    copied = copy.deepcopy(module)
    deactivate_requires_grad(copied)
    return copied


def full_precision(images: Tensor) -> torch.autocast:
    """Return a context without autocast: a loss that compares many numbers needs more digits than bf16 has."""
    return torch.autocast(images.device.type, enabled=False)


def pooled(features: list[Tensor]) -> Tensor:
    """Mean over space of the deepest of an encoder's features, (N, C)."""
    return features[-1].mean(dim=(2, 3))
