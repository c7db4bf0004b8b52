"""Legends: the names, colours and source codes of map classes, and the mappings between legends.

Inside the study a mask is always uint8 with class ids 0 .. K-1 and `VOID` (255) where nothing is known.
A `Legend` is the one place that knows how a source spells those classes: as codes (WorldCover writes 10, 20,
30, ...) or as colours. A mapping between two legends is data, complete and checked: a class without a
counterpart is mapped to void on purpose or it is an error, never silently class 0.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

VOID = 255
"""Class id that means "no label". It never counts: not in a loss, a metric, a noise rate or a statistic."""

VOID_COLOUR = (200, 200, 200)
UNMAPPED = 254  # entry of a lookup table at an id the source legend does not have

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Legend:
    """Names, colours and source codes of the classes of a map, in the order of the class ids.

    Args:
        name: Short name, such as "nyc8".
        names: Class names; the position is the class id.
        colours: One RGB triple (0..255) per class, for pictures and for colour-coded sources.
        codes: The integer that source files use for each class; 0 .. K-1 when left out.

    Raises:
        ValueError: lengths differ, or names, colours or codes repeat, or there are more than 254 classes.
    """

    name: str
    names: tuple[str, ...]
    colours: tuple[RGB, ...]
    codes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.codes:
            object.__setattr__(self, "codes", tuple(range(len(self.names))))
        if not 1 <= len(self.names) <= UNMAPPED:
            raise ValueError(f"legend {self.name!r} has {len(self.names)} classes; 1..{UNMAPPED} are possible")
        for what, values in (("names", self.names), ("colours", self.colours), ("codes", self.codes)):
            if len(values) != len(self.names):
                raise ValueError(f"legend {self.name!r}: {len(self.names)} names but {len(values)} {what}")
            if len(set(values)) != len(values):
                raise ValueError(f"legend {self.name!r}: {what} repeat: {values}")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Return the class id of a class name; ValueError lists the names there are."""
        if name in self.names:
            return self.names.index(name)
        close = get_close_matches(name, self.names, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"legend {self.name!r} has no class {name!r}{hint}; it has {', '.join(self.names)}")

    def encode(self, raw: NDArray[np.integer], void: Iterable[int] = ()) -> NDArray[np.uint8]:
        """Turn a raster of source codes into a mask.

        Args:
            raw: Source codes, any shape, any integer type.
            void: Codes that mean "no label", such as the nodata value of the file.

        Returns:
            Class ids, same shape, uint8, `VOID` where `raw` holds a void code.

        Raises:
            ValueError: a code that is neither in the legend nor void; the message names the codes.
        """
        table = {code: i for i, code in enumerate(self.codes)} | {int(code): VOID for code in void}
        return _encode(np.asarray(raw), table, 1 << 16, f"legend {self.name!r} (codes {_short(self.codes)})")

    def encode_colours(self, rgb: NDArray[np.uint8], void: Iterable[RGB] = ()) -> NDArray[np.uint8]:
        """Turn a colour-coded raster into a mask.

        Args:
            rgb: Colours, shape (H, W, 3), uint8.
            void: Colours that mean "no label".

        Returns:
            Class ids, shape (H, W), uint8, `VOID` where `rgb` is a void colour.

        Raises:
            ValueError: not (H, W, 3) uint8, or a colour that is neither in the legend nor void.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise ValueError(f"colours are an (H, W, 3) uint8 array, got {rgb.shape} {rgb.dtype}")
        packed = (rgb[..., 0].astype(np.int64) << 16) | (rgb[..., 1].astype(np.int64) << 8) | rgb[..., 2]
        table = {_pack(c): i for i, c in enumerate(self.colours)} | {_pack(c): VOID for c in void}
        return _encode(packed, table, 1 << 24, f"legend {self.name!r}", _unpack)

    def to_rgb(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Colour a mask for a picture: (..., ) class ids -> (..., 3) uint8, void light grey."""
        table = np.full((256, 3), VOID_COLOUR, dtype=np.uint8)
        table[: len(self)] = self.colours
        return table[mask]


def _pack(colour: RGB) -> int:
    return (int(colour[0]) << 16) | (int(colour[1]) << 8) | int(colour[2])


def _unpack(value: int) -> str:
    return f"({value >> 16}, {value >> 8 & 255}, {value & 255})"


def _short(values: Iterable[object], most: int = 12) -> str:
    values = list(values)
    return ", ".join(map(str, values[:most])) + (", ..." if len(values) > most else "")


def _encode(raw: NDArray, table: Mapping[int, int], size: int, what: str, show=str) -> NDArray[np.uint8]:
    """Look every value up in `table`; values beyond it are an error that names them and counts the pixels."""
    if not np.issubdtype(raw.dtype, np.integer):
        raise ValueError(f"codes are integers, got {raw.dtype}")
    lookup = np.zeros(size, dtype=np.uint8)  # 0: unknown; class i: i + 1; void: 255
    for code, index in table.items():
        if 0 <= code < size:
            lookup[code] = VOID if index == VOID else index + 1
    inside = (raw >= 0) & (raw < size)
    found = lookup[np.where(inside, raw, 0)]
    found[~inside] = 0
    if unknown := int((found == 0).sum()):
        values, counts = np.unique(raw[found == 0], return_counts=True)
        worst = _short([f"{show(int(values[i]))} x {counts[i]}" for i in np.argsort(-counts)], 5)
        raise ValueError(f"{unknown} of {raw.size} pixels hold values unknown to {what}: {worst}")
    return np.where(found == VOID, VOID, found - 1).astype(np.uint8)


def _legend(name: str, *classes: tuple[str, str] | tuple[str, str, int]) -> Legend:
    """Build a legend from (class name, hex colour[, code]) rows."""
    colours = tuple((int(c[1][:2], 16), int(c[1][2:4], 16), int(c[1][4:], 16)) for c in classes)
    codes = tuple(c[2] for c in classes if len(c) == 3)
    return Legend(name, tuple(c[0] for c in classes), colours, codes)


LEGENDS: dict[str, Legend] = {
    legend.name: legend
    for legend in (
        _legend(  # City of New York land cover raster 2017: its order and codes
            "nyc8",
            ("tree canopy", "1b6e2e", 1),
            ("grass/shrub", "9acd62", 2),
            ("bare soil", "c9a26b", 3),
            ("water", "3c78c8", 4),
            ("buildings", "c8372d", 5),
            ("roads", "4a4a4a", 6),
            ("other impervious", "9c8fa8", 7),
            ("railroads", "f0b323", 8),
        ),
        _legend(  # what LiDAR rules can tell apart
            "autogeo4", ("background", "efe6d0"), ("tree", "1b6e2e"), ("building", "c8372d"), ("road", "4a4a4a")
        ),
        _legend(  # Dynamic World, band "label"
            "dw9",
            ("water", "419bdf"),
            ("trees", "397d49"),
            ("grass", "88b053"),
            ("flooded vegetation", "7a87c6"),
            ("crops", "e49635"),
            ("shrub and scrub", "dfc35a"),
            ("built", "c4281b"),
            ("bare", "a59b8f"),
            ("snow and ice", "b39fe1"),
        ),
        _legend(  # DFC2020: simplified IGBP codes; savanna (3) and snow (8) do not occur
            "dfc8",
            ("forest", "009900", 1),
            ("shrubland", "c6b044", 2),
            ("grassland", "b6ff05", 4),
            ("wetland", "27ff87", 5),
            ("cropland", "c24f44", 6),
            ("urban", "a5a5a5", 7),
            ("barren", "f9ffa4", 9),
            ("water", "1c0dff", 10),
        ),
        _legend(  # land use from OpenStreetMap grouped as CORINE level 2
            "osm13",
            ("urban fabric", "e6004d"),
            ("industrial, commercial, transport", "cc4df2"),
            ("mine, dump, construction", "a600cc"),
            ("artificial vegetated", "ffa6ff"),
            ("arable land", "ffffa8"),
            ("permanent crops", "e68000"),
            ("pastures", "e6e64d"),
            ("forest", "4dbf00"),
            ("shrub and herbaceous", "ccf24d"),
            ("open spaces", "cccccc"),
            ("inland wetlands", "a6a6ff"),
            ("coastal wetlands", "7a7aff"),
            ("water bodies", "00ccf2"),
        ),
        _legend(  # ESA WorldCover
            "worldcover11",
            ("tree cover", "006400", 10),
            ("shrubland", "ffbb22", 20),
            ("grassland", "ffff4c", 30),
            ("cropland", "f096ff", 40),
            ("built-up", "fa0000", 50),
            ("bare or sparse", "b4b4b4", 60),
            ("snow and ice", "f0f0f0", 70),
            ("permanent water", "0064c8", 80),
            ("herbaceous wetland", "0096a0", 90),
            ("mangroves", "00cf75", 95),
            ("moss and lichen", "fae6a0", 100),
        ),
        _legend(  # Esri Sentinel-2 land cover; clouds are best named void in the card
            "esri9",
            ("water", "419bdf", 1),
            ("trees", "397d49", 2),
            ("flooded vegetation", "7a87c6", 4),
            ("crops", "e49635", 5),
            ("built area", "c4281b", 7),
            ("bare ground", "a59b8f", 8),
            ("snow and ice", "a8ebff", 9),
            ("clouds", "616161", 10),
            ("rangeland", "e3e2c3", 11),
        ),
        _legend(  # the colours of the published masks, not those of the annotation tool
            "dubai5",
            ("building", "3c1098"),
            ("land", "8429f6"),
            ("road", "6ec1e4"),
            ("vegetation", "fedd3a"),
            ("water", "e2a929"),
        ),
    )
}

# fmt: off
CROSSWALKS: dict[tuple[str, str], dict[str, str | None]] = {
    ("nyc8", "autogeo4"): {
        "tree canopy": "tree", "grass/shrub": "background", "bare soil": "background", "water": "background",
        "buildings": "building", "roads": "road", "other impervious": "background", "railroads": "background",
    },
    # to autogeo4: built-up land holds buildings, roads and yards alike, so it says nothing
    ("worldcover11", "autogeo4"): {
        "tree cover": "tree", "shrubland": "background", "grassland": "background", "cropland": "background",
        "built-up": None, "bare or sparse": "background", "snow and ice": "background",
        "permanent water": "background", "herbaceous wetland": "background", "mangroves": "tree",
        "moss and lichen": "background",
    },
    ("esri9", "autogeo4"): {
        "water": "background", "trees": "tree", "flooded vegetation": "background", "crops": "background",
        "built area": None, "bare ground": "background", "snow and ice": "background", "clouds": None,
        "rangeland": "background",
    },
    ("dw9", "autogeo4"): {  # snow of one day may lie on anything
        "water": "background", "trees": "tree", "grass": "background", "flooded vegetation": "background",
        "crops": "background", "shrub and scrub": "background", "built": None, "bare": "background",
        "snow and ice": None,
    },
    ("osm13", "autogeo4"): {  # parks and orchards hold trees and lawns
        "urban fabric": None, "industrial, commercial, transport": None, "mine, dump, construction": "background",
        "artificial vegetated": None, "arable land": "background", "permanent crops": None, "pastures": "background",
        "forest": "tree", "shrub and herbaceous": "background", "open spaces": "background",
        "inland wetlands": "background", "coastal wetlands": "background", "water bodies": "background",
    },
    ("dubai5", "autogeo4"): {  # vegetation is palms and lawns
        "building": "building", "land": "background", "road": "road", "vegetation": None, "water": "background",
    },
    # to dw9: two classes in one, such as Esri's rangeland (grass, shrub), have no counterpart
    ("worldcover11", "dw9"): {
        "tree cover": "trees", "shrubland": "shrub and scrub", "grassland": "grass", "cropland": "crops",
        "built-up": "built", "bare or sparse": "bare", "snow and ice": "snow and ice", "permanent water": "water",
        "herbaceous wetland": "flooded vegetation", "mangroves": "flooded vegetation", "moss and lichen": None,
    },
    ("esri9", "dw9"): {
        "water": "water", "trees": "trees", "flooded vegetation": "flooded vegetation", "crops": "crops",
        "built area": "built", "bare ground": "bare", "snow and ice": "snow and ice", "clouds": None,
        "rangeland": None,
    },
    ("dfc8", "dw9"): {
        "forest": "trees", "shrubland": "shrub and scrub", "grassland": "grass", "wetland": "flooded vegetation",
        "cropland": "crops", "urban": "built", "barren": "bare", "water": "water",
    },
    ("osm13", "dw9"): {  # land use, not cover: mines, parks and shrub with herbs are mixtures
        "urban fabric": "built", "industrial, commercial, transport": "built", "mine, dump, construction": None,
        "artificial vegetated": None, "arable land": "crops", "permanent crops": "crops", "pastures": "grass",
        "forest": "trees", "shrub and herbaceous": None, "open spaces": "bare",
        "inland wetlands": "flooded vegetation", "coastal wetlands": "flooded vegetation", "water bodies": "water",
    },
    ("nyc8", "dw9"): {  # in a city, grass with some shrub is lawn
        "tree canopy": "trees", "grass/shrub": "grass", "bare soil": "bare", "water": "water", "buildings": "built",
        "roads": "built", "other impervious": "built", "railroads": "built",
    },
    ("dubai5", "dw9"): {
        "building": "built", "land": "bare", "road": "built", "vegetation": None, "water": "water",
    },
    # to dfc8: it leaves snow out; wetland is as in IGBP, with mangroves
    ("worldcover11", "dfc8"): {
        "tree cover": "forest", "shrubland": "shrubland", "grassland": "grassland", "cropland": "cropland",
        "built-up": "urban", "bare or sparse": "barren", "snow and ice": None, "permanent water": "water",
        "herbaceous wetland": "wetland", "mangroves": "wetland", "moss and lichen": None,
    },
    ("esri9", "dfc8"): {
        "water": "water", "trees": "forest", "flooded vegetation": "wetland", "crops": "cropland",
        "built area": "urban", "bare ground": "barren", "snow and ice": None, "clouds": None, "rangeland": None,
    },
    ("dw9", "dfc8"): {
        "water": "water", "trees": "forest", "grass": "grassland", "flooded vegetation": "wetland",
        "crops": "cropland", "shrub and scrub": "shrubland", "built": "urban", "bare": "barren", "snow and ice": None,
    },
    ("osm13", "dfc8"): {
        "urban fabric": "urban", "industrial, commercial, transport": "urban", "mine, dump, construction": None,
        "artificial vegetated": None, "arable land": "cropland", "permanent crops": "cropland",
        "pastures": "grassland", "forest": "forest", "shrub and herbaceous": None, "open spaces": "barren",
        "inland wetlands": "wetland", "coastal wetlands": "wetland", "water bodies": "water",
    },
}
# fmt: on
"""Mappings the study uses: (source legend, target legend) -> {source class: target class, None = void}."""


def get(name: str) -> Legend:
    """Return a shipped legend by name; ValueError lists the known ones."""
    if name not in LEGENDS:
        close = get_close_matches(name, LEGENDS, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown legend {name!r}{hint}; known are {', '.join(LEGENDS)}")
    return LEGENDS[name]


def crosswalk(
    source: Legend | str, target: Legend | str, mapping: Mapping[str, str | None] | None = None
) -> NDArray[np.uint8]:
    """Make the lookup table that turns masks of one legend into masks of another.

    Args:
        source: Legend (or its name) of the masks there are.
        target: Legend (or its name) of the masks wanted.
        mapping: Target class name of every source class name, None for void. Left out: the identity when both
            legends are the same, else the entry of `CROSSWALKS`.

    Returns:
        Lookup table, shape (256,), uint8; void stays void. Ids the source does not have are marked, and
        `translate` refuses them.

    Raises:
        ValueError: the mapping misses a source class, or names a class that one of the legends does not have.
    """
    source = get(source) if isinstance(source, str) else source
    target = get(target) if isinstance(target, str) else target
    if mapping is None:
        mapping = dict(zip(source.names, source.names, strict=True)) if source == target else None
        mapping = mapping or CROSSWALKS.get((source.name, target.name))
    if mapping is None:
        known = ", ".join(f"{a} -> {b}" for a, b in CROSSWALKS)
        raise ValueError(f"no mapping from {source.name!r} to {target.name!r}; known: {known}; or pass `mapping`")
    if missing := [name for name in source.names if name not in mapping]:
        raise ValueError(f"{source.name} -> {target.name}: nothing is said about {', '.join(missing)}")
    lookup = np.full(256, UNMAPPED, dtype=np.uint8)
    lookup[VOID] = VOID
    for name, wanted in mapping.items():
        lookup[source.index(name)] = VOID if wanted is None else target.index(wanted)
    return lookup


def translate(mask: NDArray[np.uint8], lookup: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Apply a lookup table from `crosswalk` to a mask of any shape.

    Raises:
        ValueError: the mask holds an id that the source legend does not have.
    """
    found = lookup[mask]
    if (bad := found == UNMAPPED).any():
        ids = np.unique(mask[bad])
        raise ValueError(f"mask holds class ids {_short(ids)} which the source legend does not have")
    return found
