"""Which classes maps mix up, and which they leave out."""

Pairs = tuple[tuple[str, str, float], ...]

# fmt: off
CONFUSED_PAIRS: Pairs = (
    ("land", "vegetation", 3.0), ("land", "road", 2.0), ("land", "building", 1.0), ("building", "road", 1.0),
    ("land", "water", 0.3),
    ("tree canopy", "grass/shrub", 3.0), ("grass/shrub", "bare soil", 3.0), ("water", "bare soil", 0.3),
    ("roads", "other impervious", 3.0), ("buildings", "other impervious", 2.0), ("bare soil", "railroads", 1.0),
    ("railroads", "other impervious", 3.0), ("bare soil", "other impervious", 2.0),
    ("tree", "background", 2.0), ("road", "background", 2.0), ("building", "background", 1.0),
    ("road", "building", 1.0),
    # land cover products: what is green and low is hard to tell apart, and so is what is bare or built
    ("grass", "crops", 3.0), ("grass", "shrub and scrub", 3.0), ("trees", "shrub and scrub", 2.0),
    ("grass", "flooded vegetation", 1.0), ("trees", "flooded vegetation", 1.0), ("crops", "bare", 2.0),
    ("shrub and scrub", "bare", 1.0), ("built", "bare", 2.0), ("built", "crops", 0.5),
    ("water", "flooded vegetation", 1.0),
    ("water", "bare", 0.3), ("snow and ice", "bare", 2.0),
    ("grassland", "cropland", 3.0), ("grassland", "shrubland", 3.0), ("tree cover", "shrubland", 2.0),
    ("grassland", "bare or sparse", 2.0), ("cropland", "bare or sparse", 1.0), ("built-up", "bare or sparse", 2.0),
    ("built-up", "cropland", 0.5), ("grassland", "herbaceous wetland", 1.0), ("tree cover", "mangroves", 2.0),
    ("permanent water", "herbaceous wetland", 1.0), ("snow and ice", "bare or sparse", 2.0),
    ("moss and lichen", "grassland", 2.0), ("moss and lichen", "bare or sparse", 2.0),
    ("forest", "shrubland", 2.0), ("cropland", "barren", 1.0), ("grassland", "barren", 1.0), ("urban", "barren", 2.0),
    ("urban", "cropland", 0.5), ("wetland", "grassland", 1.0), ("wetland", "water", 1.0), ("water", "barren", 0.3),
    ("rangeland", "crops", 3.0), ("rangeland", "trees", 2.0), ("rangeland", "bare ground", 2.0),
    ("built area", "bare ground", 2.0), ("built area", "crops", 0.5), ("snow and ice", "bare ground", 1.0),
    ("snow and ice", "clouds", 1.0), ("water", "bare ground", 0.3),
    ("urban fabric", "industrial, commercial, transport", 3.0), ("urban fabric", "artificial vegetated", 2.0),
    ("mine, dump, construction", "industrial, commercial, transport", 2.0),
    ("open spaces", "mine, dump, construction", 2.0),
    ("arable land", "pastures", 3.0), ("arable land", "permanent crops", 2.0),
    ("pastures", "shrub and herbaceous", 2.0),
    ("pastures", "artificial vegetated", 1.0), ("forest", "shrub and herbaceous", 2.0),
    ("open spaces", "shrub and herbaceous", 1.0), ("inland wetlands", "pastures", 1.0),
    ("inland wetlands", "water bodies", 1.0), ("coastal wetlands", "water bodies", 1.0),
    ("coastal wetlands", "open spaces", 1.0),
)
"""Pairs of classes a map mixes up, with weights: what looks alike from above. Our choice, not a measurement."""

HEIGHT_PAIRS: Pairs = (
    ("tree", "building", 3.0), ("tree", "background", 2.0), ("building", "background", 1.0),
    ("road", "background", 2.0),
    ("tree canopy", "buildings", 3.0), ("tree canopy", "grass/shrub", 2.0), ("buildings", "other impervious", 1.0),
    ("roads", "other impervious", 2.0), ("grass/shrub", "bare soil", 2.0), ("railroads", "other impervious", 2.0),
    ("water", "roads", 0.5),
    ("vegetation", "building", 3.0), ("vegetation", "land", 2.0), ("building", "land", 1.0), ("road", "land", 2.0),
    ("water", "road", 0.5),
)
"""Pairs that rules on heights and returns mix up: trees with buildings, and low classes among one another."""

STANDING: tuple[str, ...] = (
    "building", "buildings", "tree", "tree canopy", "vegetation", "trees", "tree cover", "built", "built-up",
    "built area", "urban", "forest",
)
"""Classes whose objects stand alone on the ground, so that a map may show each a little off."""

THINGS: tuple[str, ...] = (
    *STANDING, "road", "roads", "railroads", "water", "permanent water", "flooded vegetation", "herbaceous wetland",
    "wetland", "mangroves", "inland wetlands", "water bodies", "urban fabric", "industrial, commercial, transport",
    "mine, dump, construction", "permanent crops",
)
"""Classes whose objects a map may leave out; the others are the ground that then shows."""
# fmt: on
