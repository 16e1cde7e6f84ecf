"""Charts: where marks stand, what they say, and that they are whole SVG files."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from mmjax import charts

SVG = "{http://www.w3.org/2000/svg}"


def parsed(chart):
    return ElementTree.fromstring(chart)


def texts(chart):
    return [node.text for node in parsed(chart).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    "values, ticks",
    [
        ([0, 9.7], [0, 2, 4, 6, 8, 10]),
        ([0.12, 0.31], [0.1, 0.15, 0.2, 0.25, 0.3, 0.35]),
        ([3, 3], [1, 2, 3, 4, 5]),
        ([-40, 1200], [-500, 0, 500, 1000, 1500]),
        ([2e-5, 9e-5], [2e-5, 4e-5, 6e-5, 8e-5, 1e-4]),
    ],
)
def test_ticks_are_at_round_numbers_and_hold_all_values(values, ticks):
    axis = charts.linear(values)
    assert np.allclose(axis.ticks, ticks) and axis.low <= min(values) and axis.high >= max(values)


def test_a_logarithmic_axis_places_powers_at_equal_distances():
    axis = charts.logarithmic([0.3, 4000])
    assert [axis.share(10.0**power) for power in range(-1, 5)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


def test_lines_have_axes_a_legend_and_gaps():
    points = [(0, 1.0), (10, None), (20, float("nan")), (30, 3.0), (40, 2.0)]
    chart = charts.line_chart({"first & <b>": points, "second": [(0, 0.0), (40, 1.0)]}, "step", "loss", "Loss")
    assert {"Loss", "first & <b>", "second", "step", "loss", "0", "40", "3"} <= set(texts(chart))
    lines = [node.attrib for node in parsed(chart).iter(f"{SVG}polyline")]
    assert len(lines) == 3  # the first has a gap
    assert lines[0]["stroke"] == lines[1]["stroke"] != lines[2]["stroke"]
    marks = [(float(c.attrib["cx"]), float(c.attrib["cy"]), c[0].text) for c in parsed(chart).iter(f"{SVG}circle")]
    assert [said for *_, said in marks] == [
        "first & <b>, step 0: 1",
        "first & <b>, step 30: 3",
        "first & <b>, step 40: 2",
        "second, step 0: 0",
        "second, step 40: 1",
    ]
    assert marks[1][1] < marks[2][1] < marks[0][1] < marks[3][1]  # larger values stand higher
    assert marks[1][0] - marks[0][0] == pytest.approx(3 * (marks[2][0] - marks[1][0]), abs=0.3)


def test_a_long_line_keeps_its_mean_and_a_line_without_points_is_no_error():
    values = np.random.default_rng(0).normal(size=3_000)
    chart = charts.line_chart({"x": list(enumerate(values.tolist()))}, "step", "loss", "Loss")
    said = [float(text.rpartition(" ")[2]) for text in re.findall("<title>(.*?)</title>", chart)]
    assert len(said) == charts.POINTS and np.mean(said) == pytest.approx(values.mean(), abs=1e-3)
    parsed(charts.line_chart({"x": []}, "step", "loss", "Loss"))


def test_more_lines_than_colours_differ_in_dashes():
    chart = charts.line_chart({str(i): [(0, i), (1, i)] for i in range(8)}, "x", "y", "Many")
    looks = [(n.attrib["stroke"], n.get("stroke-dasharray")) for n in parsed(chart).iter(f"{SVG}polyline")]
    assert len(set(looks)) == 8


def test_bars_have_the_length_of_their_values_and_show_intervals():
    chart = charts.bar_chart({"a": 0.5, "b": 0.25, "c": -0.25}, "accuracy", "Runs", intervals={"a": (0.4, 0.7)})
    first, second, third = (float(node.attrib["width"]) for node in parsed(chart).iter(f"{SVG}rect"))
    assert first == pytest.approx(2 * second, abs=0.2) and third == pytest.approx(second, abs=0.2)
    assert "a: 0.5 (0.4 to 0.7)" in chart and "accuracy" in texts(chart)
    assert charts.bar_chart({}, "accuracy", "None")


def test_a_histogram_counts_every_value():
    chart = charts.histogram(np.arange(100.0), "seconds", "Lengths")
    assert sum(int(text.rpartition(" ")[2]) for text in re.findall("<title>(.*?)</title>", chart)) == 100


def test_a_heat_map_shows_counts_darker_where_their_share_of_the_row_is_larger():
    chart = charts.heat_map(np.array([[9, 1], [0, 4]]), ["<x>", "y"], ["<x>", "y"], ("truth", "prediction"), "Both")
    cells = {node[0].text: node[1].attrib["fill"] for node in parsed(chart).iter(f"{SVG}g")}
    assert "truth <x>, prediction y: 1 (10.0 % of the row)" in cells
    light = {said.rpartition("(")[2]: int(fill[1:3], 16) for said, fill in cells.items()}
    assert light["100.0 % of the row)"] < light["90.0 % of the row)"] < light["10.0 % of the row)"]
    assert {"9", "1", "4", "truth", "prediction"} <= set(texts(chart)) and "0" not in texts(chart)
