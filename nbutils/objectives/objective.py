"""What the training loop asks of an objective."""

from torch import Tensor, nn


class Objective(nn.Module):
    """A module whose ``forward(images, masks)`` returns the loss of a batch, a scalar tensor.

    Everything that the next loss depends on is in its `state_dict`, random generators included (as extra state), so
    that training can go on from a checkpoint.

    Attributes:
        paired: Whether `images` come as (2, N, B, H, W): each patch beside the same place on another date, or beside
            itself where there is none. Otherwise they are (N, B, H, W). Masks are (N, H, W), those of the patch.
        shared: Whether processes that each see a share of a batch, and average their gradients, learn what one process
            would from the whole.
        done: Share of the training that is over, in [0, 1); the loop sets it before every step.
        logits: What the network predicted for the last batch, (N, K, H, W), detached; None where it predicts no masks.
    """

    paired = False
    shared = False
    done = 0.0
    logits: Tensor | None = None
