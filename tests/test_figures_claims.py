"""Figures of claims, of many arms and of what pretraining is worth: what is on them, and that nothing collides."""

from __future__ import annotations

import itertools

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from nbutils import figures, worth


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    plt.close("all")


def names_in(drawn) -> list[str]:
    return [text.get_text() for text in drawn.get_texts()]


def ticks(labels) -> list[str]:
    return [label.get_text() for label in labels]


def differences():
    rows = [("a", 0.1, 0.05, 0.2, "supported", "U-Net"), ("b", -0.1, -0.2, -0.05, "contradicted", "U-Net")]
    rows += [("c", 0.01, -0.02, 0.03, "undecided", ""), ("d", 0.01, np.nan, np.nan, "undecided", None)]
    return pd.DataFrame(rows, columns=["label", "effect", "low", "high", "verdict", "group"])


def arms_by_task(**columns):
    rows = [("random", "a", 0.3), ("noisy", "a", 0.5), ("random", "b", 0.4), ("noisy", "b", 0.35)]
    return pd.DataFrame(rows, columns=["arm", "task", "mean"]).assign(**columns)


def cell_texts(fig):
    return [(text.get_text(), text.get_fontweight()) for text in fig.axes[0].texts]


def test_heat_map_writes_the_difference_to_an_arm_below():
    fig = figures.heat_map(arms_by_task(), rows="task", columns="arm", against="random")
    assert ticks(fig.axes[0].get_yticklabels()) == ["a", "b"]
    assert ticks(fig.axes[0].get_xticklabels()) == ["random", "noisy\nmap"]
    assert [text for text, _ in cell_texts(fig)] == ["30.0", "50.0", "+20.0", "40.0", "35.0", "\N{MINUS SIGN}5.0"]
    turned = figures.heat_map(arms_by_task(), columns="task", against="random")
    assert [text for text, _ in cell_texts(turned)] == ["30.0", "40.0", "50.0", "+20.0", "35.0", "\N{MINUS SIGN}5.0"]
    given = arms_by_task(
        difference=[np.nan, 0.1, np.nan, 0], verdict=["undecided", "supported", "undecided", "undecided"]
    )
    fig = figures.heat_map(given, rows="task", columns="arm", against="random")
    assert cell_texts(fig)[2] == ("+10.0", "bold") and cell_texts(fig)[-1] == ("0.0", "normal")
    assert fig.axes[0].get_title("left").endswith("difference to random, bold where it is decided")
    for unclear in ("exact", "a"):
        table = arms_by_task().replace({"task": {"b": "a2"}, "arm": {"random": "a"}})
        with pytest.raises(ValueError, match=f"'{unclear}' is expected in one of task and arm"):
            figures.heat_map(table, rows="task", columns="arm", against=unclear)


@pytest.mark.parametrize(
    ("means", "diverging", "limits"),
    [
        ([0.51, 0.52, 0.52, 0.53], False, (50, 60)),
        ([0.12, 0.88, 0.5, np.nan], False, (10, 90)),
        ([0.97, 0.98, 0.99, 1.0], False, (90, 100)),
        ([np.nan] * 4, False, (0, 100)),
        ([0.01, -0.07, 0.0, 0.02], True, (-10, 10)),
        ([0.0, 0.001, 0.0, 0.0], True, (-5, 5)),
    ],
)
def test_small_differences_have_small_contrast(means, diverging, limits):
    table = arms_by_task(mean=means)
    (image,) = figures.heat_map(table, rows="task", columns="arm", diverging=diverging).axes[0].images
    assert image.get_clim() == limits


def amounts(**columns):
    rows = [("noisy", "random", 16, "48", "30", "81"), ("noisy", "random", 64, "more than 256", "100", "more than 256")]
    rows += [("moco", "random", 16, "fewer than 16", "fewer than 16", "22"), ("noisy", "moco", 64, "70", "nan", "nan")]
    return pd.DataFrame(rows, columns=["arm", "baseline", "budget", "equals", "low", "high"]).assign(**columns)


def arrows(ax):
    return [(round(2 ** text.xyann[1]), text.xy[1] > text.xyann[1]) for text in ax.texts]


def test_break_even_draws_amounts_intervals_and_bounds():
    left, right = figures.break_even(amounts()).axes
    assert [ax.get_title() for ax in (left, right)] == ["against random", "against MoCo"]
    points = [line for line in left.lines if line.get_marker() != "None"]
    np.testing.assert_allclose([2 ** line.get_ydata()[0] for line in points], [16, 48, 256])
    assert [line.get_markerfacecolor() == "white" for line in points] == [True, False, True]
    assert arrows(left) == [(16, False), (256, True)] and arrows(right) == []
    segments = [2 ** lines.get_segments()[0][:, 1] for lines in left.collections if hasattr(lines, "get_segments")]
    np.testing.assert_allclose(segments, [[16, 22], [30, 81], [100, 256]])
    values, edges, _ = left.patches[1].get_data()
    assert values.tolist() == [4, 6] and edges[1] == 5
    assert ticks(left.get_xticklabels()) == ["16", "64"]
    names = ["MoCo", "noisy map", "as many exact patches", "pretraining saves patches"]
    assert names_in(left.figure.legends[0]) == names


def test_break_even_takes_what_worth_returns():
    found = [worth.Equivalent(16, 0.5, worth.Amount(48.0), worth.Amount(16.0, "fewer than"), worth.Amount(1024.0))]
    table = pd.DataFrame([{"arm": "noisy", "baseline": "random"} | each.as_row() for each in found])
    drawn = [figures.break_even(each).axes[0] for each in (table, table.assign(equals=[found[0].equals]))]
    for ax in drawn:
        assert 2 ** ax.lines[0].get_ydata()[0] == pytest.approx(48)
        assert arrows(ax) == [(16, False)] and ax.get_ylim()[1] > np.log2(1020)
        assert names_in(ax.get_legend())[0] == "noisy map"
    titles = [ax.get_title() for ax in figures.break_even(amounts(panel=["city", "city", "globe", "globe"])).axes]
    assert titles == ["city, against random", "globe, against random", "globe, against MoCo"]
    for wrong in ("about 20", "-3", "", "0"):
        with pytest.raises(ValueError, match=rf"like '64' or 'more than 256', got '{wrong}'"):
            figures.break_even(amounts(high=wrong))
    with pytest.raises(ValueError, match="positive number of patches, got 0"):
        figures.break_even(amounts(budget=0))


def test_forest_holds_long_claims_and_the_p_of_their_family():
    claim = "the gain over self-supervision is smallest where map and task agree"
    table = differences().assign(label=[claim] * 4, p_holm=[0.0004, 0.0312, 1, np.nan], margin=[0, 0.02, 0, 0])
    (ax,) = figures.forest(table).axes
    assert [label.replace("\n", " ") for label in ticks(ax.get_yticklabels())] == ["U-Net", *[claim] * 4]
    assert all(len(line) <= 44 for label in ticks(ax.get_yticklabels()) for line in label.split("\n"))
    texts = [text.get_text() for text in ax.texts]
    assert texts[1::2] == ["< 0.001", "0.031", "1.000", "", "p (Holm)"]
    assert [list(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2][0] == [2, 2]


def test_a_forest_takes_intervals_beyond_a_hundred_points_as_few_seeds_give_them():
    table = differences().assign(low=[-1.95, -0.2, -0.02, np.nan], high=[2.39, -0.05, 0.03, np.nan])
    (ax,) = figures.forest(table).axes
    assert "[\N{MINUS SIGN}195.0, +239.0]" in " ".join(text.get_text() for text in ax.texts)
    with pytest.raises(ValueError, match=r"fractions in \[-1, 1\]"):
        figures.forest(table.assign(effect=100 * table.effect))


def test_rows_of_a_forest_do_not_overlap():
    long = "a claim of many words that needs more than one line to be said, or even three lines to be said in full"
    table = pd.concat([differences().assign(label=[long, "short", long, long[:60]], group=world) for world in "ab"])
    fig = figures.forest(table)
    fig.canvas.draw()
    boxes = [label.get_window_extent() for label in fig.axes[0].get_yticklabels()]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in itertools.pairwise(boxes))
    whole = fig.bbox
    assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    assert all(text.get_window_extent().x1 <= whole.x1 + 1 for text in fig.axes[0].texts)


def test_one_wide_interval_does_not_squeeze_the_others():
    rows = [(str(i), 0.02, 0.0, 0.04, "undecided", "") for i in range(9)] + [("wide", 0.03, -0.6, 0.7, "undecided", "")]
    table = pd.DataFrame(rows, columns=["label", "effect", "low", "high", "verdict", "group"])
    (ax,) = figures.forest(table).axes
    assert ax.get_xlim()[1] < 15
    assert [line.get_marker() for line in ax.lines if line.get_marker() in "<>"] == ["<", ">"]
    assert ax.texts[9].get_text() == "+3.0  [-60.0, +70.0]".replace("-", "\N{MINUS SIGN}")
    (ax,) = figures.forest(table[:9]).axes
    assert not [line for line in ax.lines if line.get_marker() in ("<", ">")] and ax.get_xlim()[1] > 4


def test_break_even_names_missing_columns_and_refuses_empty_tables():
    with pytest.raises(ValueError, match=r"break_even: the table lacks the column\(s\) \['equals'\]; it has"):
        figures.break_even(amounts().drop(columns="equals"))
    with pytest.raises(ValueError, match="no rows"):
        figures.break_even(amounts()[:0])
    assert plt.get_fignums() == []
