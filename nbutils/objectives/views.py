"""Views: random changes of an image that self-supervision asks an encoder to see through."""

import torch
from torch import Tensor
from torch.nn import functional as F


def random_view(images: Tensor, generator: torch.Generator, *, min_area: float = 0.2) -> Tensor:
    """Draw one augmented view per image: crop of random area, rotation, flip, band gain and offset, grey level.

    One affine resampling does crop, rotation by any angle and flip at once, for any number of bands; colour is
    jittered per band, since remote sensing bands have no hue, and mildly: the ratio of bands is what tells vegetation
    from roofs, and features that do not change with it lose the classes. The crop area follows SSL4EO-S12 (0.2 to 1).

    Args:
        images: (N, B, H, W) normalised float images.
        generator: Source of randomness.
        min_area: Smallest share of the image's area that a crop covers, in (0, 1].

    Returns:
        (N, B, H, W) views.
    """
    n, bands = images.shape[:2]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    side = uniform(min_area, 1.0, n).sqrt()
    angle = uniform(0.0, 2 * torch.pi, n)
    flip = torch.where(uniform(0.0, 1.0, n) < 0.5, -1.0, 1.0)
    cos, sin = side * angle.cos(), side * angle.sin()
    slack = 1 - side
    theta = torch.stack(
        [
            torch.stack([cos * flip, -sin, slack * uniform(-1, 1, n)], dim=1),
            torch.stack([sin * flip, cos, slack * uniform(-1, 1, n)], dim=1),
        ],
        dim=1,
    ).to(images)  # (N, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    view = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    gain = uniform(0.9, 1.1, n, bands, 1, 1).to(images) * uniform(0.9, 1.1, n, 1, 1, 1).to(images)
    offset = uniform(-0.1, 0.1, n, bands, 1, 1).to(images)
    view = view * gain + offset
    grey = (uniform(0.0, 1.0, n, 1, 1, 1) < 0.2).to(images)
    return view * (1 - grey) + view.mean(dim=1, keepdim=True) * grey
