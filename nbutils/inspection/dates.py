"""Dates: when images were taken, and when that was seen which the noisy map is made from."""

import re
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import laspy
import numpy as np
import pystac
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from nbutils.inspection.finding import Finding, Trouble, named
from nbutils.lidar import points
from nbutils.sources import Dataset, Inject, Lidar, SourceError, Tile, _items
from nbutils.vectors import reading

FAR_YEARS = 1.0
_TAGS = (
    ("IMAGERY", "ACQUISITIONDATETIME"),
    (None, "datetime"),
    (None, "EXIF_DateTimeOriginal"),
    (None, "TIFFTAG_DATETIME"),
)
_RASTERS = {".tif", ".tiff", ".jpg", ".jpeg", ".jp2", ".vrt"}
_GPS_EPOCH = datetime(1980, 1, 6, tzinfo=UTC)
_WEEK_S = 604_800
_DECODED = laspy.DecompressionSelection.base() | laspy.DecompressionSelection.GPS_TIME

Span = tuple[date, date]
"""First and last day."""


def check(dataset: Dataset, tiles: Sequence[Tile], troubles: list[Trouble]) -> list[Finding]:
    """Compare the dates of images with those of the files of the noisy map; nothing where the noise is injected.

    Files that cannot be read are added to `troubles`, each once.
    """
    if isinstance(dataset.card.noisy, Inject):
        return []
    items = {}
    if dataset.card.catalog:
        items = {item.id: item for item in _items(dataset.card.folder / dataset.card.catalog)}
    known, unknown = {}, {"images": [], "the noisy map": []}
    for tile in (tile for tile in tiles if tile.noisy is not None):
        item = items.get(tile.scene)
        try:
            image = of_item(item, dataset.card.images.asset) or of_file(tile.image)
        except SourceError:  # a picture that is no raster tells no date; what is damaged was told when it was opened
            image = None
        try:
            noisy = of_points(tile.noisy) if isinstance(dataset.card.noisy, Lidar) else of_file(tile.noisy)
        except SourceError as error:
            if ("noisy", tile.name) not in [trouble[:2] for trouble in troubles]:
                troubles.append(Trouble("noisy", tile.name, str(error)))
            continue
        noisy = noisy or of_item(item, dataset.card.noisy.asset)
        for what, span in (("images", image), ("the noisy map", noisy)):
            unknown[what] += [] if span else [tile.name]
        if image and noisy:
            known[tile.name] = (image, noisy)
    return [*_far(known), *_unknown(unknown)]


def gap_years(a: Span, b: Span) -> float:
    """Years between two spans; 0 where they touch."""
    return max((b[0] - a[1]).days, (a[0] - b[1]).days, 0) / 365.25


def _far(known: dict[str, tuple[Span, Span]]) -> Iterator[Finding]:
    far = {name: gap for name, spans in known.items() if (gap := gap_years(*spans)) > FAR_YEARS}
    if far:
        most = max(far, key=far.get)
        image, noisy = (_days(span) for span in known[most])
        words = (
            f"images and noisy map are more than {FAR_YEARS:g} year apart in {len(far)} of {len(known)} image(s) whose "
            f"dates are known {named(far)}, most in {most}: {image} and {noisy}, {far[most]:.1f} years"
        )
        remedy = "take a map or images of nearer dates, or expect what was built and felled in between among the errors"
        yield Finding("warning", "dates", words, remedy)


def _unknown(unknown: dict[str, list[str]]) -> Iterator[Finding]:
    for what, names in unknown.items():
        if names:
            words = f"when {what} were taken is not known in {len(names)} image(s) {named(names)}"
            words = words.replace("map were taken", "map was made")
            yield Finding(
                "note", "dates", words, "look it up: what changed on the ground since counts as noise of the map"
            )


def _days(span: Span) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]} to {span[1]}"


def of_item(item: pystac.Item | None, key: str | None) -> Span | None:
    """Date of an asset of a STAC item: its own, else the item's; `start_datetime` and `end_datetime` where given."""
    if item is None or key not in item.assets:
        return None
    for owner in (item.assets[key], item):
        about = owner.common_metadata
        when = owner.datetime if owner is item else item.get_datetime(owner)
        spans = (when, when) if when else (about.start_datetime, about.end_datetime)
        if None not in spans:
            return tuple(moment.date() for moment in spans)
    return None


def of_file(path: Path) -> Span | None:
    """Date of a raster by its tags: of acquisition, as xarray or a camera wrote it, or TIFF's own; None for others."""
    if path.suffix.lower() not in _RASTERS:
        return None
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as data:
            said = [data.tags(ns=domain).get(tag, "") for domain, tag in _TAGS]
    return next(((day, day) for text in said if (day := _day(text))), None)


def _day(text: str) -> date | None:
    """The day of a date written like 2021-07-23 or 2021:07:23, whatever follows; None where there is no such day."""
    if not (found := re.match(r"(\d{4})[-:](\d\d)[-:](\d\d)", text)):
        return None
    try:
        return date(*map(int, found.groups()))
    except ValueError:  # cameras without a clock write 0000:00:00
        return None


def of_points(path: Path) -> Span | None:
    """Date of a LAS, LAZ or COPC file: GPS times of its first and last return, else the day its header names.

    GPS times count seconds either of a week, which say no date, or since 1980 less 10^9; files mix up which, so those
    beyond a week are taken for the latter.
    """
    with points._opened(path) as reader, laspy.open(path, decompression_selection=_DECODED) as beside:
        header, seconds = reader.header, []
        if "gps_time" in header.point_format.dimension_names:
            for at in (0, header.point_count - 1):
                beside.seek(at)
                seconds += np.asarray(beside.read_points(1).gps_time).tolist()
        if seconds and min(np.abs(seconds)) > _WEEK_S:
            days = [(_GPS_EPOCH + timedelta(seconds=1e9 + s)).date() for s in sorted(seconds)]
            return days[0], days[1]
        return header.creation_date and (header.creation_date, header.creation_date)
