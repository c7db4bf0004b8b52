"""Legends: round trips, completeness, and errors that name what is wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nbutils import legend
from nbutils.legend import VOID, Legend

NAMES = ("nyc8", "autogeo4", "dw9", "dfc8", "osm13", "worldcover11", "esri9", "dubai5")


def masks_of(k: int) -> st.SearchStrategy:
    ids = st.sampled_from([*range(k), VOID])
    return hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=8), elements=ids)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_legends_have_the_classes_their_name_says(name):
    one = legend.get(name)
    assert len(one) == len(one.names) == len(one.colours) == len(one.codes) == int("".join(filter(str.isdigit, name)))
    assert set(legend.LEGENDS) == set(NAMES)
    assert all(one.index(class_name) == i for i, class_name in enumerate(one.names))
    assert legend.VOID_COLOUR not in one.colours


def test_order_of_the_legends_the_study_stands_on():
    assert legend.get("nyc8").names == (
        *("tree canopy", "grass/shrub", "bare soil", "water", "buildings", "roads", "other impervious", "railroads"),
    )
    assert legend.get("autogeo4").names == ("background", "tree", "building", "road")
    assert legend.get("dubai5").names == ("building", "land", "road", "vegetation", "water")


PUBLISHED = {  # by the documents of the products: ESA WorldCover product user manual, Esri / Impact Observatory class
    # definitions, Dynamic World's band "label", DFC2020's simplified IGBP scheme, the City's 2017 land-cover raster
    "worldcover11": {"tree cover": 10, "shrubland": 20, "grassland": 30, "cropland": 40, "built-up": 50,
                     "bare or sparse": 60, "snow and ice": 70, "permanent water": 80, "herbaceous wetland": 90,
                     "mangroves": 95, "moss and lichen": 100},
    "esri9": {"water": 1, "trees": 2, "flooded vegetation": 4, "crops": 5, "built area": 7, "bare ground": 8,
              "snow and ice": 9, "clouds": 10, "rangeland": 11},
    "dw9": {"water": 0, "trees": 1, "grass": 2, "flooded vegetation": 3, "crops": 4, "shrub and scrub": 5, "built": 6,
            "bare": 7, "snow and ice": 8},
    "dfc8": {"forest": 1, "shrubland": 2, "grassland": 4, "wetland": 5, "cropland": 6, "urban": 7, "barren": 9,
             "water": 10},
    "nyc8": {"tree canopy": 1, "grass/shrub": 2, "bare soil": 3, "water": 4, "buildings": 5, "roads": 6,
             "other impervious": 7, "railroads": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_codes_are_those_that_the_product_is_published_with(name):
    one, codes = legend.get(name), PUBLISHED[name]
    assert dict(zip(one.names, one.codes, strict=True)) == codes
    assert one.encode(np.array([list(codes.values())]))[0].tolist() == [one.names.index(each) for each in codes]


def test_the_most_frequent_unknown_value_is_named_first():
    with pytest.raises(ValueError, match=r"6 of 7 pixels.*: 3 x 3, 7 x 2, 5 x 1"):
        legend.get("worldcover11").encode(np.array([[7, 3, 3, 5, 3, 7, 10]]))


@given(st.data())
def test_codes_and_colours_round_trip(data):
    one = legend.get(data.draw(st.sampled_from(NAMES)))
    mask = data.draw(masks_of(len(one)))
    codes = np.array([*one.codes, 199], dtype=np.uint8)[np.where(mask == VOID, len(one), mask)]
    assert np.array_equal(one.encode(codes, void=[199]), mask)
    assert np.array_equal(one.encode(codes.astype(np.int64), void=[199]), mask)
    if mask.ndim == 2:
        back = one.encode_colours(one.to_rgb(mask), void=[legend.VOID_COLOUR])
        assert back.dtype == np.uint8 and np.array_equal(back, mask)


@pytest.mark.parametrize("raw", [[[7, 10]], [[-1, 10]], [[70000, 10]]])
def test_unknown_code_is_an_error_that_names_it(raw):
    with pytest.raises(ValueError, match=rf"1 of 2 pixels.*'worldcover11'.*{raw[0][0]} x 1"):
        legend.get("worldcover11").encode(np.array(raw))


def test_unknown_colour_is_an_error_that_names_it():
    rgb = legend.get("dubai5").to_rgb(np.zeros((4, 4), np.uint8))
    rgb[1, 2] = (1, 2, 3)
    with pytest.raises(ValueError, match=r"1 of 16 pixels.*'dubai5'.*\(1, 2, 3\) x 1"):
        legend.get("dubai5").encode_colours(rgb)
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 array, got \(4, 4\)"):
        legend.get("dubai5").encode_colours(rgb[..., 0])
    with pytest.raises(ValueError, match="integers, got float32"):
        legend.get("dubai5").encode(np.zeros((2, 2), np.float32))


def test_void_wins_over_a_class_of_the_same_code():
    assert legend.get("autogeo4").encode(np.array([[0, 1]]), void=[0]).tolist() == [[VOID, 1]]


def test_lookups_that_fail_list_what_there_is():
    with pytest.raises(ValueError, match="no class 'road'.*did you mean 'roads'.*tree canopy"):
        legend.get("nyc8").index("road")
    with pytest.raises(ValueError, match="unknown legend 'nyc9'.*did you mean 'nyc8'.*worldcover11"):
        legend.get("nyc9")


@pytest.mark.parametrize(
    "parts, message",
    [
        ((("a", "b"), ((0, 0, 0),)), "2 names but 1 colours"),
        ((("a", "a"), ((0, 0, 0), (1, 1, 1))), "names repeat"),
        ((("a", "b"), ((0, 0, 0), (0, 0, 0))), "colours repeat"),
        ((("a", "b"), ((0, 0, 0), (1, 1, 1)), (3, 3)), "codes repeat"),
        (((), ()), "0 classes"),
    ],
)
def test_a_legend_must_be_consistent(parts, message):
    with pytest.raises(ValueError, match=message):
        Legend("x", *parts)


def test_crosswalks_are_complete_and_checked():
    for (source, target), mapping in legend.CROSSWALKS.items():
        lookup = legend.crosswalk(source, target)
        assert set(mapping) == set(legend.get(source).names)
        assert lookup[VOID] == VOID and set(lookup[: len(legend.get(source))]) <= {
            *range(len(legend.get(target))),
            VOID,
        }
    assert legend.crosswalk("nyc8", "autogeo4")[:8].tolist() == [1, 0, 0, 0, 2, 3, 0, 0]
    assert legend.crosswalk("dw9", "dw9")[:9].tolist() == list(range(9))


@pytest.mark.parametrize(
    "mapping, message",
    [
        ({"background": "land", "tree": "vegetation"}, "nothing is said about building, road"),
        ({"background": "land", "tree": "woods", "building": None, "road": None}, "no class 'woods'"),
        ({"background": None, "tree": None, "building": None, "road": None, "rail": None}, "no class 'rail'"),
        (None, "no mapping from 'autogeo4' to 'dubai5'; known: nyc8 -> autogeo4"),
    ],
)
def test_an_incomplete_or_foreign_mapping_is_refused(mapping, message):
    with pytest.raises(ValueError, match=message):
        legend.crosswalk("autogeo4", "dubai5", mapping)


@given(masks_of(8))
def test_translate_keeps_void_and_follows_the_mapping(mask):
    moved = legend.translate(mask, legend.crosswalk("nyc8", "autogeo4"))
    assert np.array_equal(moved == VOID, mask == VOID)
    assert np.array_equal(moved == 2, mask == legend.get("nyc8").index("buildings"))


def test_translate_can_send_a_class_to_void_but_never_guesses():
    mapping = {"background": None, "tree": "vegetation", "building": "building", "road": "road"}
    lookup = legend.crosswalk("autogeo4", "dubai5", mapping)
    assert legend.translate(np.array([[0, 1, 2, 3, VOID]], np.uint8), lookup).tolist() == [[VOID, 3, 0, 2, VOID]]
    with pytest.raises(ValueError, match="class ids 4, 9 which the source legend does not have"):
        legend.translate(np.array([[4, 9]], np.uint8), lookup)
