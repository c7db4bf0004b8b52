"""Views: random changes of an image that self-supervision asks an encoder to see through.

One affine resampling does crop, rotation by any angle and flip at once, for any number of bands. Colour is jittered per
band, since remote sensing bands have no hue, and mildly: the ratio of bands is what tells vegetation from roofs, and
features that do not change with it lose the classes. So no view is grey, as a fifth of them are in the papers: in short
trials on the city's validation scenes linear probes lost points by that.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def random_view(
    images: Tensor,
    generator: torch.Generator,
    *,
    min_area: float = 0.2,
    max_area: float = 1.0,
    size_px: int | None = None,
    jitter: float = 0.1,
) -> Tensor:
    """Draw one augmented view per image: a random crop, turned and mirrored, with other colours.

    Args:
        images: (N, B, H, W) normalised float images.
        generator: Source of randomness.
        min_area: Smallest share of the image's area that a crop covers, in (0, 1]; SSL4EO-S12's crops cover 0.2 to 1.
        max_area: Largest share, in [min_area, 1].
        size_px: Side of the view in pixels; that of the image where None.
        jitter: Strength of the change of colour, see `recolour`.

    Returns:
        (N, B, H, W) views, or (N, B, size_px, size_px).
    """
    crops = random_crops(len(images), generator, min_area=min_area, max_area=max_area)
    return recolour(cut(images, crops, size_px), generator, jitter=jitter)


def random_crops(n: int, generator: torch.Generator, *, min_area: float = 0.2, max_area: float = 1.0) -> Tensor:
    """Draw squares of random area, place and angle, half of them mirrored.

    Returns:
        (n, 2, 3) affine maps from a place in the view to that in the image, both in [-1, 1] (x, y), as `affine_grid`
        takes them. A corner of a turned square may lie outside the image, which `cut` fills by reflection.
    """
    side = _uniform(generator, min_area, max_area, n).sqrt()
    angle = _uniform(generator, 0.0, 2 * torch.pi, n)
    flip = torch.where(_uniform(generator, 0.0, 1.0, n) < 0.5, -1.0, 1.0)
    cos, sin = side * angle.cos(), side * angle.sin()
    x, y = ((1 - side) * _uniform(generator, -1, 1, n) for _ in range(2))
    return torch.stack([torch.stack([cos * flip, -sin, x], dim=1), torch.stack([sin * flip, cos, y], dim=1)], dim=1)


def cut(images: Tensor, crops: Tensor, size_px: int | None = None) -> Tensor:
    """Resample the crops of (N, B, H, W) images bilinearly: (N, B, H, W), or (N, B, size_px, size_px)."""
    height, width = (size_px, size_px) if size_px else images.shape[-2:]
    grid = places(crops.to(images), height, width)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def places(crops: Tensor, height: int, width: int) -> Tensor:
    """Say where in the image the cells of a view lie: (N, height, width, 2) centres, in [-1, 1] (x, y)."""
    return F.affine_grid(crops, [len(crops), 1, height, width], align_corners=False)


def within(points: Tensor, crops: Tensor) -> Tensor:
    """Say where (N, n, 2) places of an image lie in its view, in the view's own [-1, 1]; beyond, they are outside."""
    turn, middle = crops[:, :, :2], crops[:, None, :, 2]
    return torch.linalg.solve(turn, (points - middle).transpose(1, 2)).transpose(1, 2)


def recolour(images: Tensor, generator: torch.Generator, *, jitter: float = 0.1) -> Tensor:
    """Change the colours of every image.

    Args:
        images: (N, B, H, W) normalised float images.
        generator: Source of randomness.
        jitter: Largest change of the gain of a band, of the gain of all bands, and of the offset of a band in its
            standard deviations; each is uniform within it.
    """
    n, bands = images.shape[:2]
    gain = _uniform(generator, 1 - jitter, 1 + jitter, n, bands, 1, 1)
    gain = gain * _uniform(generator, 1 - jitter, 1 + jitter, n, 1, 1, 1)
    offset = _uniform(generator, -jitter, jitter, n, bands, 1, 1)
    return images * gain.to(images) + offset.to(images)


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low
