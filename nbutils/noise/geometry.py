"""Outlines that change: shifts, rotations, boundaries that move, simplified outlines, coarse grids."""

from collections.abc import Callable, Mapping

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio import features
from scipy import sparse

from nbutils.legend import VOID
from nbutils.noise.fields import Mask, Noisy, check_pixels, per_image, smooth_field, spline
from nbutils.noise.spread import spread

DITHER_PX = 10.0  # what a fraction of a pixel is made of: stretches about so long lie one pixel farther than others
STRIP_PX = 1 << 18  # pixels displaced at a time; their coordinates stay in a core's cache

Float = NDArray[np.float32]


def shift_mask(
    mask: Mask, max_px: float = 0.0, *, rng: np.random.Generator, vector_px: tuple[float, float] | None = None
) -> Noisy:
    """Displace the whole mask by one vector per image: misregistration.

    Whole pixels are moved exactly. Of a fraction, that share of the image is moved by one pixel more, in smooth
    patches, so that the mean displacement is the one asked.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        max_px: Longest displacement in pixels; direction and length are drawn evenly for each image.
        rng: Source of randomness.
        vector_px: Displacement (down, right) in pixels instead of a random one.

    Returns: noisy, changed as `flip_labels`; the edge is replicated, and what void would cover keeps its class.
    """
    check_pixels("max_px", max_px)
    if vector_px is not None and not np.isfinite(vector_px).all():
        raise ValueError(f"vector_px is (down, right) in pixels, got {vector_px}")
    return _shift(mask, max_px, vector_px, rng=rng)


def draw_vector(max_px: float, rng: np.random.Generator) -> tuple[float, float]:
    """Draw a displacement (down, right): its direction and its length, up to `max_px`, are uniform."""
    angle, length = rng.random() * 2 * np.pi, rng.random() * max_px
    return length * np.sin(angle), length * np.cos(angle)


@per_image
def _shift(mask: Mask, max_px: float, vector_px: tuple[float, float] | None, *, rng: np.random.Generator) -> Mask:
    for axis, distance in enumerate(draw_vector(max_px, rng) if vector_px is None else vector_px):
        whole = int(np.floor(distance))
        moved = _slid(mask, whole, axis)
        if (part := distance - whole) > 1e-9:
            field = smooth_field(mask.shape, DITHER_PX, rng)
            step = 4 if field.size > 1 << 18 else 1
            farther = field < np.quantile(field[::step, ::step], part)
            moved = np.where(farther, _slid(mask, whole + 1, axis), moved)
        mask = moved
    return mask


def _slid(mask: Mask, pixels: int, axis: int) -> Mask:
    """Move along an axis by whole pixels and replicate the edge."""
    size = mask.shape[axis]
    return mask.take(np.clip(np.arange(size) - pixels, 0, size - 1), axis=axis)


def rotate_mask(
    mask: Mask, max_degrees: float = 0.0, *, rng: np.random.Generator, degrees: float | None = None
) -> Noisy:
    """Turn the whole mask about its middle: an orthophoto or a plan laid askew.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        max_degrees: Largest angle, either way; drawn evenly for each image.
        rng: Source of randomness.
        degrees: Angle, clockwise in an image whose rows go down, instead of a random one.

    Returns: noisy, changed as `flip_labels`; the edge is replicated, and what void would cover keeps its class.
    """
    check_pixels("max_degrees", max_degrees)
    if degrees is not None and not np.isfinite(degrees):
        raise ValueError(f"degrees is an angle, got {degrees}")
    return _rotate(mask, max_degrees, degrees, rng=rng)


@per_image
def _rotate(mask: Mask, max_degrees: float, degrees: float | None, *, rng: np.random.Generator) -> Mask:
    angle = np.deg2rad(max_degrees * (2 * rng.random() - 1) if degrees is None else degrees)
    if angle == 0:
        return mask
    rows, columns = (np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2) for n in mask.shape)
    sin, less = np.float32(np.sin(angle)), np.float32(np.cos(angle) - 1)

    def offsets(strip: slice) -> tuple[Float, Float]:
        down, right = rows[strip, None], columns[None, :]
        return less * down - sin * right, less * right + sin * down

    return _displaced(mask, offsets)


def move_boundaries(
    mask: Mask, distance_px: float, *, rng: np.random.Generator, correlation_px: float | None = None
) -> Noisy:
    """Move boundaries by a smooth random field: objects are eroded here and dilated there, corners go round.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        distance_px: Standard deviation of the displacement across a boundary, in pixels.
        rng: Source of randomness.
        correlation_px: Length over which the displacement changes; 4 x `distance_px` (at least 8) when left out. At
            about `distance_px` and less, outlines fray.

    Returns: noisy, changed as `flip_labels`; the edge is replicated, and what void would cover keeps its class.
    """
    check_pixels("distance_px", distance_px)
    length = max(8.0, 4 * distance_px) if correlation_px is None else correlation_px
    check_pixels("correlation_px", length)
    return _move(mask, distance_px, length, rng=rng)


@per_image
def _move(mask: Mask, distance_px: float, correlation_px: float, *, rng: np.random.Generator) -> Mask:
    if distance_px == 0:
        return mask
    down, right = (spline(mask.shape, correlation_px, rng, scale=distance_px) for _ in range(2))
    return _displaced(mask, lambda strip: (down(strip), right(strip)))


def _displaced(mask: Mask, offsets: Callable[[slice], tuple[Float, Float]]) -> Mask:
    """Fetch each pixel from an offset (down, right), rounded; the edge is replicated."""
    height, width = mask.shape
    noisy = np.empty_like(mask)
    step = max(1, STRIP_PX // width)
    columns = np.arange(width, dtype=np.float32)[None, :]
    flat = np.ascontiguousarray(mask).ravel()
    for top in range(0, height, step):
        strip = slice(top, min(top + step, height))
        down, right = offsets(strip)
        down += np.arange(strip.start, strip.stop, dtype=np.float32)[:, None]
        right += columns
        for at, size in ((down, height), (right, width)):
            np.clip(np.rint(at, out=at), 0, size - 1, out=at)
        places = down.astype(np.intp)
        places *= width
        places += right.astype(np.intp)
        noisy[strip] = flat[places]
    return noisy


def simplify_outlines(mask: Mask, tolerance_m: float, *, rng: np.random.Generator, gsd_m: float = 1.0) -> Noisy:
    """Draw every object anew with fewer corners, as vector maps are generalised.

    Outlines go through the simplification of Douglas and Peucker (Cartographica 10, 1973) and are painted the large
    ones first, so that a cut corner shows what lies round the object.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        tolerance_m: Largest distance of a dropped corner from the new outline, in metres.
        rng: Not used; every operator has it.
        gsd_m: Size of a pixel in metres.

    Returns: noisy, changed as `flip_labels`.
    """
    check_pixels("tolerance_m", tolerance_m)
    if not (np.isfinite(gsd_m) and gsd_m > 0):
        raise ValueError(f"gsd_m is the size of a pixel in metres, got {gsd_m}")
    return _simplify(mask, tolerance_m / gsd_m)


@per_image
def _simplify(mask: Mask, tolerance_px: float) -> Mask:
    if tolerance_px == 0:
        return mask
    drawn = [(shape["coordinates"][0], int(value)) for shape, value in features.shapes(mask, mask != VOID, 4)]
    if not drawn:
        return mask
    lengths = [len(ring) for ring, _ in drawn]
    corners = np.concatenate([ring for ring, _ in drawn])
    outlines = shapely.polygons(shapely.linearrings(corners, indices=np.repeat(np.arange(len(drawn)), lengths)))
    order = np.argsort(-shapely.area(outlines), kind="stable")
    corners, owner = shapely.get_coordinates(shapely.simplify(outlines[order], tolerance_px), return_index=True)
    rings = np.split(corners, np.flatnonzero(np.diff(owner)) + 1)
    plain = [{"type": "Polygon", "coordinates": [ring.tolist()]} for ring in rings]  # twice as fast as shapely objects
    noisy = mask.copy()
    features.rasterize(zip(plain, [drawn[i][1] for i in order], strict=True), out=noisy)
    return noisy


def coarsen(mask: Mask, block_px: float, *, rng: np.random.Generator, least_px: float = 0.0) -> Noisy:
    """See the mask through a coarser grid: the class most pixels of a block have, and no area too small for the map.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        block_px: Side of a block in pixels, >= 1; the grid's origin is drawn anew for each image.
        rng: Source of randomness, which also settles ties.
        least_px: Minimum mapping unit in pixels of the mask: smaller areas of one class join their largest neighbour.

    Returns: noisy, changed as `flip_labels`.
    """
    if not (np.isfinite(block_px) and block_px >= 1):
        raise ValueError(f"block_px is a number of pixels >= 1, got {block_px}")
    check_pixels("least_px", least_px)
    return _coarsen(mask, block_px, least_px, rng=rng)


@per_image
def _coarsen(mask: Mask, block_px: float, least_px: float, *, rng: np.random.Generator) -> Mask:
    starts = [_starts(size, block_px, rng.random()) for size in mask.shape]
    coarse = mask if block_px == 1 else _majority(mask, starts, rng)
    area = np.outer(*[np.diff(at, append=size) for at, size in zip(starts, mask.shape, strict=True)]).mean()
    if (least := min(int(np.ceil(least_px / area)), coarse.size - 1)) > 1:
        coarse = features.sieve(coarse, least, mask=coarse != VOID, connectivity=4)
    if block_px == 1:
        return coarse
    rows, columns = (np.diff(at, append=size) for at, size in zip(starts, mask.shape, strict=True))
    return coarse.repeat(columns, axis=1).repeat(rows, axis=0)


def _starts(size: int, block_px: float, phase: float) -> NDArray[np.intp]:
    """First pixel of each block along an axis."""
    at = np.floor((np.arange(int(size / block_px) + 2) - phase) * block_px).astype(np.intp)
    at = np.maximum(at, 0)
    return np.unique(at[at < size])


def _majority(mask: Mask, starts: list[NDArray[np.intp]], rng: np.random.Generator) -> Mask:
    """Most frequent class of each block; void only where a block holds nothing else."""
    shape = tuple(map(len, starts))
    down, right = (_sums(at, size) for at, size in zip(starts, mask.shape, strict=True))
    most, best = np.zeros(shape, np.float32), np.full(shape, VOID, np.uint8)
    present = np.unique(mask)
    for value in rng.permutation(present[present != VOID]):  # so that ties go to any of the classes
        count = down @ (mask == value).astype(np.float32)  # (blocks, W)
        count = (right @ np.ascontiguousarray(count.T)).T
        better = count > most
        most[better], best[better] = count[better], value
    return best


def _sums(starts: NDArray[np.intp], size: int) -> sparse.csr_array:
    """The matrix (blocks, size) that adds up what lies in each block."""
    ones = np.ones(size, dtype=np.float32)
    return sparse.csr_array((ones, np.arange(size), np.append(starts, size)), shape=(len(starts), size))


def resize_classes(mask: Mask, distance_px: Mapping[int, float], *, rng: np.random.Generator) -> Noisy:
    """Grow or shrink classes by a distance: roofs drawn with their eaves, trees without their rim.

    A pixel goes to the class for which distance less growth is least, as far as a class can spread from its
    boundary through pixels it wins; a class that shrinks leaves its rim to its nearest neighbours. Of a fraction of
    a pixel, that share of the boundary moves by one pixel more.

    Args:
        mask: Class ids, shape (H, W) or (N, H, W), uint8.
        distance_px: Growth in pixels by class id, negative to shrink; other classes keep their size.
        rng: Source of randomness.

    Returns: noisy, changed as `flip_labels`.

    Raises:
        ValueError: a key that is no class id, or a distance that is not finite.
    """
    if wrong := [c for c, px in distance_px.items() if not (0 <= c < VOID and np.isfinite(px))]:
        raise ValueError(f"distance_px holds pixels by class id 0..254, got {[(c, distance_px[c]) for c in wrong]}")
    growth = np.zeros(256)
    growth[list(distance_px)] = list(distance_px.values())
    return _resize(mask, growth, rng=rng)


@per_image
def _resize(mask: Mask, growth: NDArray[np.float64], *, rng: np.random.Generator) -> Mask:
    return spread(mask, growth, rng) if growth.any() else mask
