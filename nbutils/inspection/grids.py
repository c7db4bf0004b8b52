"""Grids: where images lie, how large their pixels are on the ground, and which way they are turned."""

from collections import Counter
from collections.abc import Iterator, Sequence

from nbutils.cards import few
from nbutils.inspection.finding import Finding, named
from nbutils.inspection.headers import Header
from nbutils.sources import Dataset, Inject, Masks

TOLERANCE = 0.02  # relative; UTM's scale is off by 0.001 at most, Web Mercator's by half and more in middle latitudes
_WARP = "warp the images to a projected CRS in metres, such as the UTM zone (rio warp --dst-crs ...)"


def check(dataset: Dataset, headers: Sequence[Header]) -> list[Finding]:
    """Look at the grids of all images."""
    placed = [header for header in headers if header.placed]
    return [*_without_place(dataset, headers), *_systems(placed), *_sizes(dataset, placed), *_turned(placed)]


def _without_place(dataset: Dataset, headers: Sequence[Header]) -> Iterator[Finding]:
    bare = [header.tile.name for header in headers if header.geobox is None or header.geobox.crs is None]
    if not bare:
        return
    words = f"{len(bare)} of {len(headers)} images have no CRS or no transform {named(bare)}"
    needs = not isinstance(dataset.card.noisy, Inject | Masks)
    if needs:
        words += f", so no noisy map can be laid on them from {dataset.card.noisy.source}"
    severity = "error" if needs else "warning" if len(bare) < len(headers) else "note"
    remedy = "write both into the files (gdal_edit.py -a_srs EPSG:... -a_ullr ...)"
    if not needs:
        remedy += "; without them nobody can tell whether scenes overlap, nor how large a pixel is"
    yield Finding(severity, "grids", words, remedy)


def _systems(headers: Sequence[Header]) -> Iterator[Finding]:
    names = Counter(f"{header.geobox.crs.proj.name}" for header in headers)
    if len(names) > 1:
        each = few((f"{name} x {n}" for name, n in names.most_common()), 4)
        words = f"images are in {len(names)} coordinate systems: {each}"
        yield Finding(
            "note", "grids", words, "nothing where these are zones of one projection; each keeps its own grid"
        )
    if degrees := [header for header in headers if header.geobox.crs.geographic]:
        width, height = degrees[0].pixel_m
        words = (
            f"{len(degrees)} image(s) count in degrees {named(h.tile.name for h in degrees)}: a pixel of "
            f"the first is {width:.3g} m wide and {height:.3g} m high"
        )
        yield Finding("warning", "grids", words, _WARP)


def _sizes(dataset: Dataset, headers: Sequence[Header]) -> Iterator[Finding]:
    """Pixel sizes on the ground: against the card, among the images, and width against height."""
    side = {header.tile.name: (header.pixel_m[0] * header.pixel_m[1]) ** 0.5 for header in headers}
    stated = dataset.card.gsd_m
    if side and stated is None:
        words = f"the card says no gsd_m; pixels are {_span(side.values())} on the ground"
        yield Finding("note", "grids", words, f"add gsd_m: {sorted(side.values())[len(side) // 2]:.3g}")
    elif off := {name: m for name, m in side.items() if abs(m - stated) > TOLERANCE * stated}:
        words = f"the card says gsd_m {stated:g}, {len(off)} image(s) have pixels of {_span(off.values())} {named(off)}"
        remedy = "correct gsd_m or the files' transform; a CRS may stretch the ground, as Web Mercator does: then warp"
        yield Finding("warning", "grids", words, remedy)
    if side and max(side.values()) > (1 + TOLERANCE) * min(side.values()):
        ends = min(side, key=side.get), max(side, key=side.get)
        words = f"pixels differ in size: {side[ends[0]]:.3g} m in {ends[0]}, {side[ends[1]]:.3g} m in {ends[1]}"
        yield Finding("warning", "grids", words, "warp all images to one pixel size (gdalwarp -tr)")
    oblong = [
        header
        for header in headers
        if not header.geobox.crs.geographic and abs(header.pixel_m[0] / header.pixel_m[1] - 1) > TOLERANCE
    ]
    if oblong:
        width, height = oblong[0].pixel_m
        words = (
            f"{len(oblong)} image(s) have pixels that are not square {named(h.tile.name for h in oblong)}: "
            f"{width:.3g} x {height:.3g} m in the first"
        )
        yield Finding("warning", "grids", words, "warp them to square pixels (gdalwarp -tr X X)")


def _span(sizes) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low:.3g} m" if high <= (1 + TOLERANCE) * low else f"{low:.3g} to {high:.3g} m"


def _turned(headers: Sequence[Header]) -> Iterator[Finding]:
    turned = [h.tile.name for h in headers if abs(h.geobox.transform.b) + abs(h.geobox.transform.d) > 0]
    flipped = [
        h.tile.name
        for h in headers
        if h.tile.name not in turned and (h.geobox.transform.e > 0 or h.geobox.transform.a < 0)
    ]
    for names, what in ((turned, "are rotated against their CRS"), (flipped, "are flipped: not north up, west left")):
        if names:
            words = f"{len(names)} image(s) {what} {named(names)}"
            remedy = (
                "nothing: masks and maps are laid on them as they lie; only shadows fall another way than elsewhere"
            )
            yield Finding("note", "grids", words, remedy)
