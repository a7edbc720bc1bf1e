"""The figure of a law: charts whose arrays are the curves, on axes as the law asked for."""

import numpy as np
import pytest

from pipeline.report.charts.law import panels
from pipeline.report.figures import picture
from pipeline.report.page.page import Arrays
from pipeline.results import Check, LawFile, Outcome, Panel, Series


def law(*shown):
    return LawFile(
        "Mine", "A law", "Somebody 2020", Outcome("It is.", [Check("a", "a", 1.0, "=", 1.0)], shown)
    )


def panel(logarithmic="", y=(1.0, 10.0, 1000.0)):
    series = [
        Series("measured", [1.0, 2.0, 3.0], y, "points"),
        Series("law", [1.0, 3.0], [2.0, 2.0], "dashes"),
    ]
    return Panel("Title", "steps", "λ", series, "How to read it.", logarithmic)


def test_a_chart_holds_the_curves_and_their_style():
    arrays = Arrays()
    [chart] = panels(law(panel()), arrays)
    assert (chart.name, chart.title, chart.reading, chart.span) == ("law_1", "Title", "How to read it.", 6)
    points, dashes = chart.traces
    np.testing.assert_allclose(arrays.get(points["y"]), [1.0, 10.0, 1000.0], rtol=1e-4)
    np.testing.assert_allclose(arrays.get(dashes["x"]), [1.0, 3.0])
    assert (points["mode"], dashes["mode"], dashes["line"]["dash"]) == ("markers", "lines", "dash")
    assert points["marker"]["color"] != dashes["line"]["color"]
    assert chart.layout["xaxis"] == {"title": "steps"}


@pytest.mark.parametrize(("axes", "which"), [("x", "x"), ("y", "y"), ("xy", "x"), ("xy", "y")])
def test_a_logarithmic_axis_spans_the_positive_values(axes, which):
    [chart] = panels(law(panel(axes, y=(0.0, 10.0, 1000.0))), Arrays())
    axis = chart.layout[f"{which}axis"]
    low, high = (10.0**end for end in axis["range"])
    least, most = {"x": (1.0, 3.0), "y": (2.0, 1000.0)}[which]
    assert axis["type"] == "log"
    assert 0.5 * least < low < least < most < high < 2 * most


@pytest.mark.parametrize("count", [1, 2, 3])
def test_panels_stand_side_by_side_and_are_drawn(count):
    arrays = Arrays()
    charts = panels(law(*[panel("xy")] * count), arrays)
    assert [chart.name for chart in charts] == [f"law_{place}" for place in range(1, count + 1)]
    assert count * charts[0].span == 6
    figure = picture(charts, arrays, {})
    [axes, *_] = figure.axes
    assert len(figure.axes) == count
    assert axes.get_xscale() == axes.get_yscale() == "log"
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [1.0, 10.0, 1000.0], rtol=1e-4)
