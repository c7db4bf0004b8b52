"""Contents: the values of images, the classes of masks, and whether the noisy map says anything about the ground."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nbutils.audit import Audit
from nbutils.cards import few
from nbutils.inspection.finding import Finding, named, percent
from nbutils.inspection.headers import Header
from nbutils.inspection.looks import Look, Sample
from nbutils.legend import VOID
from nbutils.sources import Dataset

MOST_LEVEL = 2.0  # of values over the scale of the card; snow and clouds pass 1
LEAST_LEVEL = 0.1  # dark water stays below, whole images do not
SCALES = (1, 255, 1023, 4095, 10_000, 65_535)
RARE = 0.001  # share of the labelled pixels
MUCH_VOID = 0.5
CHANCE = 0.1  # kappa of a map that hardly knows the ground


def check_values(dataset: Dataset, headers: Sequence[Header], sample: Sample) -> list[Finding]:
    """Look at the values of images: scale, types, bands without contents, holes."""
    return [*_types(headers), *_scale(dataset, sample), *_constant(dataset, sample), *_holes(sample)]


def _types(headers: Sequence[Header]) -> Iterator[Finding]:
    kinds = Counter(str(header.dtype) for header in headers)
    if len(kinds) > 1:
        rare = [header.tile.name for header in headers if str(header.dtype) != kinds.most_common(1)[0][0]]
        words = f"images have values of different types: {few((f'{k} x {n}' for k, n in kinds.most_common()), 4)}"
        remedy = "make sure that all of them count alike, and convert the others (gdal_translate -ot)"
        yield Finding("warning", "values", f"{words} {named(rare)}", remedy)


def _scale(dataset: Dataset, sample: Sample) -> Iterator[Finding]:
    scale = dataset.card.images.scale
    level = {look.tile.name: look.level / scale for look in sample.looks if look.n_valid}
    if not level or not max(level.values()):
        return
    high = {name: value for name, value in level.items() if value > MOST_LEVEL}
    top = max(level.values())
    fits = next((s for s in SCALES if top * scale <= 1.05 * s), None)
    remedy = f"set images.scale to what full brightness is, perhaps {fits}" if fits else "set images.scale higher"
    if high:
        words = (
            f"images.scale is {scale:g}, but values of {len(high)} of {sample.scope(sample.looks)} reach "
            f"{top * scale:.4g} {named(high)}, {top:.3g} times as much"
        )
        yield Finding("warning", "values", words, f"{remedy}; where only some images do, convert these")
    elif top < LEAST_LEVEL:
        words = (
            f"images.scale is {scale:g}, but in {sample.scope(sample.looks)} 99 % of the values are at most "
            f"{top * scale:.4g}: images come out nearly black"
        )
        yield Finding("warning", "values", words, remedy)


def _constant(dataset: Dataset, sample: Sample) -> Iterator[Finding]:
    flat = {
        look.tile.name: [band for band, same in zip(dataset.bands, look.low == look.high, strict=True) if same]
        for look in sample.looks
    }
    flat = {name: bands for name, bands in flat.items() if bands}
    if flat:
        each = named(f"{name}: {few(bands, 3)}" for name, bands in flat.items())
        words = f"{len(flat)} of {sample.scope(sample.looks)} have a band with one value everywhere {each}"
        yield Finding("warning", "values", words, "take bands that hold something, or leave these images out")


def _holes(sample: Sample) -> Iterator[Finding]:
    if empty := [look.tile.name for look in sample.looks if not look.n_valid]:
        words = f"{len(empty)} of {sample.scope(sample.looks)} hold no data at all {named(empty)}"
        yield Finding(
            "warning", "values", words, "leave them out; or is the file's nodata value one that means something?"
        )
    holes = {look.tile.name: 1 - look.n_valid / look.n for look in sample.looks if look.n_valid}
    if much := {name: share for name, share in holes.items() if share > MUCH_VOID}:
        each = named(f"{name}: {percent(share)}" for name, share in much.items())
        words = f"{len(much)} of {sample.scope(sample.looks)} are void for more than half {each}"
        yield Finding("note", "values", words, "nothing where these are rims of a mosaic: void never counts")
    if unreal := {look.tile.name: look.n_unreal / look.n for look in sample.looks if look.n_unreal}:
        each = named(f"{name}: {percent(share)}" for name, share in unreal.items())
        words = (
            f"{len(unreal)} of {sample.scope(sample.looks)} hold NaN or infinity that no nodata value announces {each}"
        )
        yield Finding(
            "note", "values", words, "they count as void; if they are holes, set nodata to nan, else find their cause"
        )


def check_legends(dataset: Dataset, sample: Sample) -> list[Finding]:
    """Look at the classes of both kinds of masks."""
    findings = [*_no_mapping(dataset), *_missing(dataset, sample)]
    for name, own in (("exact", dataset.exact_legend), ("noisy", dataset.noisy_legend)):
        looks = sample.with_mask(name)
        findings += [
            *_rare(name, own.names, looks, sample),
            *_single(name, own.names, looks),
            *_void(name, looks, sample),
        ]
    return findings


def _no_mapping(dataset: Dataset) -> Iterator[Finding]:
    if dataset.crosswalk is None:
        source, target = dataset.exact_legend, dataset.noisy_legend
        between = f"the exact legend {source.name!r} to the noisy one {target.name!r}"
        words = f"no mapping from {between} is known: no audit of the map is possible"
        example = ", ".join(f"{name}: ..." for name in source.names[:2])
        remedy = (
            f"add the key `crosswalk: {{{example}, ...}}`: for each exact class one of {few(target.names, 4)}, or null"
        )
        yield Finding("warning", "legends", words, remedy)


def _total(looks: Sequence[Look], name: str, k: int) -> NDArray[np.int64]:
    """Pixels of each class, (k,)."""
    return np.sum([look.counts[name][:k] for look in looks], axis=0, dtype=np.int64) if looks else np.zeros(k, np.int64)


def _missing(dataset: Dataset, sample: Sample) -> Iterator[Finding]:
    """Classes without a pixel in the exact masks of a split, and splits without exact labels."""
    looks, names = sample.with_mask("exact"), dataset.exact_legend.names
    somewhere = _total(looks, "exact", len(names)) > 0
    for split in ("finetune", "validation", "test"):
        own = [look for look in looks if split in look.tile.splits]
        here = _total(own, "exact", len(names)) > 0
        if own and not here.any():
            words = f"split {split} has no exact label in {sample.scope(own)}: all is void"
            yield Finding("error", "legends", words, "correct exact.void or the masks, or choose other scenes for it")
        elif own and (lacks := [name for name, a, b in zip(names, somewhere, here, strict=True) if a and not b]):
            words = f"split {split} has no pixel of {few(lacks)} in {sample.scope(own)}"
            means = "it cannot be learned" if split == "finetune" else "no score can be told"
            yield Finding(
                "warning", "legends", f"{words}: {means}", "choose scenes so that every split has every class"
            )
    if somewhere.any() and not somewhere.all():
        lacks = [name for name, there in zip(names, somewhere, strict=True) if not there]
        words = f"no exact mask has {few(lacks)}, in {sample.scope(looks)}"
        yield Finding(
            "note", "legends", words, "nothing, or take a legend without; a class that never occurs has no score"
        )


def _rare(name: str, names: Sequence[str], looks: Sequence[Look], sample: Sample) -> Iterator[Finding]:
    total = _total(looks, name, len(names))
    share = total / max(total.sum(), 1)
    if rare := [f"{names[i]} {percent(share[i])}" for i in np.flatnonzero((share > 0) & (share < RARE))]:
        words = f"{few(rare)} of the labelled pixels of the {name} masks, in {sample.scope(looks)}"
        remedy = f"expect its score to rest on few places; merge what has less than {percent(RARE)} with another class"
        yield Finding("note", "legends", words, remedy)


def _single(name: str, names: Sequence[str], looks: Sequence[Look]) -> Iterator[Finding]:
    held = {look.tile.name: np.flatnonzero(look.counts[name][: len(names)]) for look in looks}
    single = {tile: names[classes[0]] for tile, classes in held.items() if len(classes) == 1}
    if not single:
        return
    each = named(f"{tile}: {only}" for tile, only in single.items())
    if len(single) == len(held) and len(set(single.values())) == 1:
        words = (
            f"all {len(held)} {name} masks looked at hold one and the same class {each}: there is nothing to tell apart"
        )
        yield Finding("error", "legends", words, f"correct {name}.coding and legend, or take other masks")
    else:
        words = f"{len(single)} of {len(held)} {name} masks looked at hold a single class {each}"
        yield Finding("note", "legends", words, "have a look at these; open water may be so, a wrong file too")


def _void(name: str, looks: Sequence[Look], sample: Sample) -> Iterator[Finding]:
    """Masks without labels for most of the ground that their image shows."""
    shown = {
        look.tile.name: (look.counts[name][VOID] - (look.n - look.n_valid)) / look.n_valid
        for look in looks
        if look.n_valid
    }
    if much := {tile: share for tile, share in shown.items() if share > MUCH_VOID}:
        each = named(f"{tile}: {percent(share)}" for tile, share in much.items())
        words = f"{len(much)} of {len(shown)} {name} masks are void for more than half of what their image shows {each}"
        yield Finding("warning", "legends" if name == "exact" else "map", words, _VOID_REMEDY[name])


_VOID_REMEDY = {
    "exact": "check exact.void and nodata: is a class declared void?",
    "noisy": "take a map that covers the images, or check its nodata, `void` and the mapping to its legend",
}


def check_map(dataset: Dataset, sample: Sample) -> list[Finding]:
    """Look at whether the noisy map and the exact masks speak of the same ground."""
    told = [look.confusion for look in sample.looks if look.confusion is not None and look.confusion.any()]
    if not told:
        return []
    found = Audit(np.sum(told, axis=0), np.stack(told))
    where = f"in {len(told)} image(s) with both masks"
    if found.rate == 0:
        words = f"noisy map and exact masks are the same, pixel for pixel, {where}"
        return [
            Finding(
                "warning", "map", words, "let noisy and exact name different files; a map without errors is no test"
            )
        ]
    if found.kappa < CHANCE:  # nan: a single class, told elsewhere
        words = (
            f"the noisy map agrees with the exact masks no better than by chance, {where}: kappa {found.kappa:.2f}, "
            f"{percent(1 - found.rate)} of the pixels"
        )
        remedy = "coding, legend, crosswalk or place of the map are probably wrong; lay one over the other and look"
        return [Finding("error", "map", words, remedy)]
    return []
