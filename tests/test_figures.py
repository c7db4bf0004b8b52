"""Figures: what is on them, that they repeat, and what they refuse."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from nbutils import figures, legend, statistics
from nbutils.legend import VOID, Legend

MAP = Legend("toy", ("grass", "road", "roof"), ((0, 160, 0), (60, 60, 60), (200, 40, 40)))
COARSE = Legend("coarse", ("other", "building"), ((240, 230, 210), (200, 40, 40)))


@pytest.fixture(autouse=True)
def no_figure_left_open():
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before, "a figure function changed the settings of the caller"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def mask(rng):
    return rng.integers(0, 3, (20, 20)).astype(np.uint8)


def scores(arms=("exact", "noisy", "random", "my arm"), budgets=(16, 64)):
    rows = [
        {"arm": arm, "decoder": decoder, "frozen": frozen, "budget": budget, "mean": 0.5, "low": 0.4, "high": 0.55}
        for arm in arms
        for decoder in ("U-Net", "PSPNet")
        for frozen in (True, False)
        for budget in budgets
    ]
    return pd.DataFrame(rows)


def differences():
    rows = [("a", 0.1, 0.05, 0.2, "supported", "U-Net"), ("b", -0.1, -0.2, -0.05, "contradicted", "U-Net")]
    rows += [("c", 0.01, -0.02, 0.03, "undecided", ""), ("d", 0.01, np.nan, np.nan, "undecided", None)]
    return pd.DataFrame(rows, columns=["label", "effect", "low", "high", "verdict", "group"])


def names_in(drawn) -> list[str]:
    return [text.get_text() for text in drawn.get_texts()]


def ticks(labels) -> list[str]:
    return [label.get_text() for label in labels]


def test_void_is_the_same_everywhere():
    assert statistics.VOID == legend.VOID == VOID


def test_arms_have_their_own_colour_and_marker():
    known = [figures.ARMS[arm][1:] for arm in figures.ARMS] + list(figures.OTHERS)
    assert len({colour for colour, _ in known}) == len(known)
    assert len({figures.ARMS[arm][2] for arm in figures.ARMS}) == len(figures.ARMS)


def test_apply_style_sets_the_style():
    with plt.rc_context():
        figures.apply_style()
        assert matplotlib.rcParams["font.size"] == 8
        assert not matplotlib.rcParams["axes.spines.top"]


def test_rgb_stretches_each_band_and_chooses_bands(rng):
    image = rng.integers(0, 255, (4, 30, 30)).astype(np.uint8)
    picture = figures.rgb(image, ("nir", "red", "green", "blue"))
    assert picture.shape == (30, 30, 3)
    assert picture.min() == 0 and picture.max() == 1
    np.testing.assert_array_equal(picture, figures.rgb(image))
    np.testing.assert_array_equal(picture[..., 0], figures.rgb(image[[0, 0, 0]])[..., 0])
    natural = figures.rgb(image, ("nir", "red", "green", "blue"), natural=True)
    np.testing.assert_array_equal(natural, figures.rgb(image[1:]))
    sentinel = figures.rgb(image, ("B02", "B03", "B04", "B08"))
    np.testing.assert_array_equal(sentinel, figures.rgb(image[[3, 2, 1]]))
    np.testing.assert_allclose(picture, figures.rgb(image * 0.01 + 3.0), atol=1e-12)


def test_rgb_with_holes_and_constants():
    image = np.full((3, 4, 4), 7.0)
    image[0] = np.nan
    image[1, 0, 0] = np.nan
    assert np.isfinite(figures.rgb(image)).all()
    assert figures.rgb(np.zeros((1, 4, 4))).shape == (4, 4, 3)


def test_rgb_refuses(rng):
    with pytest.raises(ValueError, match=r"\(B, H, W\), got shape \(4, 4\)"):
        figures.rgb(np.zeros((4, 4)))
    with pytest.raises(ValueError, match="2 band names"):
        figures.rgb(np.zeros((3, 4, 4)), ("red", "green"))


def test_show_masks_draws_every_panel_and_one_legend(mask, rng):
    holed = mask.copy()
    holed[0] = VOID
    coarse = (mask == 2).astype(np.uint8)
    image = rng.random((4, 20, 20))
    panels = [("image", image, None), ("exact", holed, MAP), ("noisy", coarse, COARSE), ("changed", mask > 1, None)]
    fig = figures.show_masks([*panels, ("height", mask * 0.1, None)], gsd_m=1.0)
    assert len(fig.axes) == 8  # two rows of four
    assert [ax.get_title() for ax in fig.axes[:5]] == ["image", "exact", "noisy", "changed", "height"]
    assert len(fig.legends) == 1
    assert names_in(fig.legends[0]) == ["grass", "road", "roof / building", "void", "other"]
    assert [text.get_text() for text in fig.axes[0].texts] == ["5 m"]
    assert not figures.show_masks([("image", image, None)]).legends


def test_show_masks_names_only_the_classes_that_occur():
    fig = figures.show_masks([("road", np.ones((5, 5), np.uint8), MAP)])
    assert names_in(fig.legends[0]) == ["road"]


@pytest.mark.parametrize(
    ("panels", "says"),
    [
        ([], "no panels"),
        ([("a", np.zeros((3, 4, 4), np.uint8), MAP)], r"'a': a mask is \(H, W\)"),
        ([("a", np.zeros((4, 4)), MAP)], "of class ids.*float64"),
        ([("a", np.full((4, 4), 7, np.uint8), MAP)], "class 7, but legend 'toy' ends at 2"),
        ([("a", np.zeros(4), None)], r"'a': an image is"),
    ],
)
def test_show_masks_refuses_and_leaves_nothing_open(panels, says):
    with pytest.raises(ValueError, match=says):
        figures.show_masks(panels)
    assert plt.get_fignums() == []


def test_qualitative_strip_scores_every_prediction(mask, rng):
    images, exact = rng.random((2, 3, 20, 20)), np.stack([mask, mask])
    fig = figures.qualitative_strip(images, exact, {"random": exact[::-1], "noisy": (exact + 1) % 3}, MAP)
    assert len(fig.axes) == 8
    titles = ["image", "exact mask", "prediction\nrandom", "prediction\nnoisy map"]
    assert [ax.get_title() for ax in fig.axes] == titles + [""] * 4
    assert [fig.axes[i].get_xlabel() for i in (2, 3)] == ["mIoU 100 %", "mIoU 0 %"]
    single = figures.qualitative_strip(images[0], mask, {"noisy": mask}, MAP, gsd_m=0.5)
    assert len(single.axes) == 3
    with pytest.raises(ValueError, match="prediction of 'noisy' has shape"):
        figures.qualitative_strip(images, exact, {"noisy": mask}, MAP)


def test_points_by_class_and_by_value(rng):
    x, z = rng.uniform(0, 100, 500), rng.uniform(0, 20, 500)
    fig = figures.point_section(x, z, rng.integers(0, 3, 500), legend=MAP)
    assert names_in(fig.legends[0]) == ["grass", "road", "roof"]
    assert fig.axes[0].get_aspect() == 1
    fig = figures.point_map(x + 583_960, x + 4_507_523, z, label="Height (m)")
    assert fig.axes[0].get_xlabel() == "Easting from 583900 (m)"
    assert fig.axes[1].get_ylabel() == "Height (m)"
    assert figures.point_map(x, x, z).axes[0].get_xlabel() == "Easting (m)"
    with pytest.raises(ValueError, match="three arrays of one length"):
        figures.point_section(x, z[:3], z)
    with pytest.raises(ValueError, match="three arrays of one length"):
        figures.point_map([], [], [])


def test_confusion_heatmap_writes_shares_of_rows():
    fig = figures.confusion_heatmap([[3, 1], [0, 0]], ["a", "b"], ["x", "y"], "title")
    (ax,) = fig.axes
    assert [text.get_text() for text in ax.texts] == ["75", "25", "100.0 %", "0.0 %", "of pixels"]
    assert (ticks(ax.get_yticklabels()), ticks(ax.get_xticklabels())) == (["a", "b"], ["x", "y"])
    assert (ax.get_title(), ax.get_ylabel(), ax.get_xlabel()) == ("title", "Exact class", "Predicted class")
    with pytest.raises(ValueError, match=r"\(2, 2\) for 3 row"):
        figures.confusion_heatmap([[3, 1], [0, 0]], list("abc"), ["x", "y"])


def test_heat_map_orders_arms_and_leaves_holes():
    table = scores(budgets=(16,)).query("frozen")
    fig = figures.heat_map(table[1:])
    assert ticks(fig.axes[0].get_yticklabels()) == ["random", "noisy map", "exact map", "my arm"]
    assert [text.get_text() for text in fig.axes[0].texts] == ["50.0"] * 7
    with pytest.raises(ValueError, match="more than one row"):
        figures.heat_map(scores())


def test_budget_curves_has_a_panel_per_decoder_and_encoder_state():
    table = scores()
    seeds = table.rename(columns={"mean": "value"})
    fig = figures.budget_curves(table, seeds)
    titles = [ax.get_title() for ax in fig.axes]
    assert titles[:2] == ["U-Net, frozen encoder", "PSPNet, frozen encoder"]
    assert titles[2:] == ["U-Net, fine-tuned encoder", "PSPNet, fine-tuned encoder"]
    assert names_in(fig.legends[0]) == ["random", "noisy map", "exact map", "my arm"]
    assert ticks(fig.axes[2].get_xticklabels()) == ["16", "64"]
    assert all(len(ax.lines) == 4 for ax in fig.axes)
    np.testing.assert_allclose(fig.axes[0].lines[0].get_ydata(), [50, 50])
    assert len(figures.budget_curves(scores(budgets=(8,))).axes) == 4


def test_arm_bars():
    fig = figures.arm_bars(scores(budgets=(16,)))
    assert ticks(fig.axes[0].get_yticklabels()) == ["random", "noisy map", "exact map", "my arm"]
    assert [text.get_text().strip() for text in fig.axes[0].texts] == ["50.0"] * 4
    with pytest.raises(ValueError, match="more than one row for an arm"):
        figures.arm_bars(scores())


def test_forest_has_groups_intervals_and_verdicts():
    fig = figures.forest(differences())
    (ax,) = fig.axes
    assert ticks(ax.get_yticklabels()) == ["U-Net", "a", "b", "c", "d"]
    texts = [text.get_text() for text in ax.texts]
    assert texts[0] == "+10.0  [+5.0, +20.0]"
    assert texts[1] == "-10.0  [-20.0, -5.0]".replace("-", "\N{MINUS SIGN}")
    assert texts[3].endswith("[no interval]")
    assert names_in(fig.legends[0]) == ["supported", "contradicted", "undecided"]
    with pytest.raises(ValueError, match=r"unknown verdict \['maybe'\]"):
        figures.forest(differences().assign(verdict="maybe"))


def test_goodness_of_fit_has_a_line_for_every_statistic_and_a_mark_for_every_model():
    table = pd.DataFrame({"label": ["rate", "iou"], "value": [0.2, 0.6], "low": [0.1, 0.5], "high": [0.3, 0.7]})
    fig = figures.goodness_of_fit(table, {"calibrated": [0.25, 0.55], "flips": pd.Series([0.2, 0.9])})
    (ax,) = fig.axes
    assert ticks(ax.get_yticklabels()) == ["rate", "iou"]
    np.testing.assert_allclose([line.get_xdata() for line in ax.lines], [[20, 60], [25, 55], [20, 90]])
    assert np.allclose([segment[:, 0] for segment in ax.collections[0].get_segments()], [[10, 30], [50, 70]])
    assert names_in(fig.legends[0]) == ["audited", "calibrated", "flips"]


def test_curves():
    fig = figures.boundary_profile({"map-like": ([0.5, 1.5], [0.4, 0.2]), "shifted": ([0.5, 1.5], [0.3, 0.1])})
    assert names_in(fig.axes[0].get_legend()) == ["map-like", "shifted"]
    np.testing.assert_allclose(fig.axes[0].lines[0].get_ydata(), [40, 20])
    table = pd.DataFrame({"step": [2, 1], "series": "noisy", "value": [0.4, 0.2]})
    (line,) = figures.learning_curves(table).axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), [[1, 20], [2, 40]])
    assert line.get_color() == figures.ARMS["noisy"][1]
    loss = figures.learning_curves(table.assign(value=[3.0, 2.0]), ylabel="Loss", percent=False)
    np.testing.assert_allclose(loss.axes[0].lines[0].get_ydata(), [2, 3])
    with pytest.raises(ValueError, match="no profiles"):
        figures.boundary_profile({})


def test_layer_panels_draw_each_measure_beside_its_floor():
    rows = [{"measure": m, "layer": layer, "value": v, "low": v - 1, "high": v + 1, "floor_low": 0.0, "floor_high": f}
            for m, f in (("probe (points)", 2.0), ("1 - CKA", float("nan")))
            for layer, v in (("stem", 3.0), ("stage1", 5.0), ("head", 9.0))]  # fmt: skip
    table = pd.DataFrame(rows).assign(series="the map")
    fig = figures.layer_panels(table)
    first, second = fig.axes
    assert [ax.get_title() for ax in fig.axes] == ["probe (points)", "1 - CKA"]
    assert ticks(first.get_yticklabels()) == ["stem", "stage1", "head"] and first.yaxis_inverted()
    assert [bar.get_width() for bar in first.patches] == [2.0] * 3
    assert [line.get_xdata().tolist() for line in second.lines if len(line.get_xdata()) == 3] == [[3.0, 5.0, 9.0]]
    assert names_in(fig.legends[0]) == ["the map", "chance alone"]
    without = figures.layer_panels(table[table.measure == "1 - CKA"])
    assert names_in(without.legends[0]) == ["the map"], "nothing is said of chance that is not drawn"
    with pytest.raises(ValueError, match="floor_high"):
        figures.layer_panels(table.drop(columns="floor_high"))


def test_layer_panels_tell_series_of_one_layer_apart():
    spans = {"low": 0.0, "high": 6.0, "floor_low": 0.0, "floor_high": 2.0}
    rows = [{"measure": "probe", "layer": layer, "series": name, "value": value, **spans}
            for name, first in (("the map", 1.0), ("flips", 4.0))
            for layer, value in (("stem", first), ("head", 5.0))]  # fmt: skip
    fig = figures.layer_panels(pd.DataFrame(rows))
    (ax,) = fig.axes
    points = {tuple(line.get_xdata()): line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 2}
    first, second = points[1.0, 5.0], points[4.0, 5.0]
    assert (np.round(first) == [0, 1]).all() and (np.round(second) == [0, 1]).all(), "beside their own layer"
    assert (second - first > 0.1).all() and names_in(fig.legends[0]) == ["the map", "flips", "chance alone"]
    many = pd.concat([pd.DataFrame(rows[:2]).assign(series=str(i)) for i in range(7)])
    (ax,) = figures.layer_panels(many[many.series != "6"]).axes
    heights = np.concatenate([line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 2][:6])
    assert abs(heights - np.round(heights)).max() < 0.45 and len(set(heights)) == 12
    bars = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in ax.patches]
    assert min(low for low, _ in bars) > -0.5 and max(high for _, high in bars) < 1.5
    with pytest.raises(ValueError, match="at most 6 series"):
        figures.layer_panels(many)


def test_layer_profile_keeps_the_order_of_layers_and_draws_the_floor():
    table = pd.DataFrame({"layer": ["stem", "layer1", "decoder"], "series": "noisy", "value": [0.9, 0.8, 0.7]})
    table = table.assign(low=table["value"] - 0.1, high=table["value"] + 0.1)
    floor = pd.DataFrame({"layer": ["stem", "layer1", "decoder"], "low": 0.95, "high": 1.0})
    (ax,) = figures.layer_profile(table, ylabel="CKA", floor=floor).axes
    assert ticks(ax.get_xticklabels()) == ["stem", "layer1", "decoder"]
    assert names_in(ax.get_legend()) == ["noisy map", "chance alone"]
    assert len(ax.collections) == 2
    with pytest.raises(ValueError, match=r"the floor has \['head'\]"):
        figures.layer_profile(table, ylabel="CKA", floor=floor.replace("decoder", "head"))


@pytest.mark.parametrize(
    ("draw", "table", "column"),
    [
        (figures.budget_curves, scores(), "budget"),
        (figures.arm_bars, scores(), "low"),
        (figures.heat_map, scores(), "decoder"),
        (figures.forest, differences(), "verdict"),
        (
            lambda t: figures.goodness_of_fit(t, {}),
            pd.DataFrame({"label": ["a"], "value": 0.1, "low": 0, "high": 1}),
            "low",
        ),
        (figures.learning_curves, pd.DataFrame({"step": [1], "series": "a", "value": 0.1}), "series"),
        (
            lambda t: figures.layer_profile(t, ylabel=""),
            pd.DataFrame({"layer": [1], "series": "a", "value": 1}),
            "layer",
        ),
    ],
)
def test_missing_columns_are_named_and_empty_tables_refused(draw, table, column):
    with pytest.raises(ValueError, match=rf"lacks the column\(s\) \['{column}'\]; it has"):
        draw(table.drop(columns=column))
    with pytest.raises(ValueError, match="no rows"):
        draw(table[:0])
    assert plt.get_fignums() == []


def test_scores_in_percent_and_strange_values_are_refused():
    with pytest.raises(ValueError, match="fractions.*got 50"):
        figures.budget_curves(scores().assign(mean=50.0))
    with pytest.raises(ValueError, match="positive number of patches"):
        figures.budget_curves(scores(budgets=(0, 16)))
    with pytest.raises(ValueError, match="frozen must be True or False"):
        figures.budget_curves(scores().assign(frozen="yes"))


def test_save_twice_gives_the_same_bytes(tmp_path):
    table = pd.DataFrame({"arm": ["noisy"], "mean": [1 / 3], "n": [5]})
    found = []
    for folder in ("a", "b/c"):
        fig = figures.budget_curves(scores())
        path = figures.save(fig, "04_budget", tmp_path / folder, table)
        assert path == tmp_path / folder / "04_budget.png"
        found.append([path.read_bytes(), path.with_suffix(".csv").read_bytes()])
        assert sorted(p.name for p in path.parent.iterdir()) == ["04_budget.csv", "04_budget.png"]
    assert found[0] == found[1]
    assert found[0][1] == b"arm,mean,n\nnoisy,0.333333,5\n"
    assert b"Software" not in found[0][0]


@pytest.mark.parametrize("folder", ["", None])
def test_save_nowhere_writes_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fig = plt.figure()
    assert figures.save(fig, "00_map", folder, pd.DataFrame({"a": [1]})) is None
    assert figures.save_table(pd.DataFrame({"a": [1]}), "results", folder) is None
    assert list(tmp_path.iterdir()) == []


def test_relative_folders_are_below_the_root(tmp_path, monkeypatch):
    monkeypatch.setattr(figures.house, "ROOT", tmp_path)
    assert figures.save_table(pd.DataFrame({"a": [1]}), "results", "build/x") == tmp_path / "build/x/results.csv"


def test_save_keeps_a_named_index(tmp_path):
    table = pd.DataFrame({"mean": [0.5]}, index=pd.Index(["noisy"], name="arm"))
    assert figures.save_table(table, "claims", tmp_path).read_text() == "arm,mean\nnoisy,0.5\n"


@pytest.mark.parametrize("name", ["budget", "4_budget", "04-budget", "04_Budget", "04_", "../04_budget", "04_a.png"])
def test_save_refuses_other_names(name, tmp_path):
    with pytest.raises(ValueError, match="figure name"):
        figures.save(plt.figure(), name, tmp_path)
    with pytest.raises(ValueError, match="table name"):
        figures.save_table(pd.DataFrame(), "results.csv", tmp_path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    fig = plt.figure()
    path = figures.save(fig, "00_map", tmp_path)
    before = path.read_bytes()

    class Broken:
        def save(self, file, *_, **__):
            file.write_bytes(b"half")
            raise OSError("disk full")

    monkeypatch.setattr(figures.house, "_opaque", lambda fig: Broken())
    with pytest.raises(OSError, match="disk full"):
        figures.save(fig, "00_map", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["00_map.png"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("bands", [("grey",), ("vv", "vh"), ("b1", "b2", "b3", "b4", "b5")])
def test_images_without_visible_bands_are_drawn_too(bands):
    picture = figures.rgb(np.random.default_rng(0).random((len(bands), 6, 5)), bands)
    assert picture.shape == (6, 5, 3) and picture.min() == 0 and picture.max() == 1


def test_learning_curves_in_panels_with_marks():
    rows = [(p, s, step, 0.1 * step) for p in ("ours", "theirs") for s in ("a", "b") for step in (1, 2, 3)]
    table = pd.DataFrame(rows, columns=["panel", "series", "step", "value"])
    marks = pd.DataFrame({"panel": ["theirs"], "step": [2], "label": ["transition"]})
    left, right = figures.learning_curves(table, marks=marks).axes
    assert (left.get_title(), right.get_title()) == ("ours", "theirs")
    assert len(left.lines) == 2 and len(right.lines) == 3
    assert right.lines[-1].get_xdata()[0] == 2 and right.texts[0].get_text() == "transition"
    assert right.lines[0].get_ydata().tolist() == pytest.approx([10, 20, 30])
