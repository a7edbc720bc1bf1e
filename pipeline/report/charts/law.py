"""The figure of a law: its diagrams as charts, one to three side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.page.page import Array, Arrays, Chart

if TYPE_CHECKING:
    from pipeline.results import LawFile, Panel, Series

COLORS = ("@blue", "@orange", "@green", "@purple", "@grey")
SPANS = {1: 6, 2: 3, 3: 2}
HEIGHTS = {1: 400, 2: 360, 3: 330}
STYLES: dict[str, dict[str, Any]] = {
    "line": {"mode": "lines", "line": {"width": 2, "dash": "solid"}},
    "dashes": {"mode": "lines", "line": {"width": 2, "dash": "dash"}},
    "points": {"mode": "markers", "marker": {"size": 6}},
}


def panels(law: LawFile, arrays: Arrays) -> list[Chart]:
    """A chart for each diagram, named law_1, law_2, law_3."""
    shown = law.outcome.panels
    return [
        Chart(
            f"law_{place}",
            panel.title,
            panel.reading,
            [_trace(each, color, arrays) for each, color in zip(panel.series, _colors(panel), strict=True)],
            {f"{which}axis": _axis(panel, which) for which in "xy"},
            span=SPANS[len(shown)],
            height=HEIGHTS[len(shown)],
        )
        for place, panel in enumerate(shown, start=1)
    ]


def _colors(panel: Panel) -> list[str]:
    return [COLORS[place % len(COLORS)] for place in range(len(panel.series))]


def _trace(series: Series, color: str, arrays: Arrays) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": series.name,
        "x": arrays.put(series.x),
        "y": arrays.put(series.y),
        "hovertemplate": "%{x:.5~g}, %{y:.5~g}",
    }
    for key, value in STYLES[series.drawn].items():
        trace[key] = {**value, "color": color} if isinstance(value, dict) else value
    return trace


def _axis(panel: Panel, which: str) -> dict[str, Any]:
    """Its label; where it is logarithmic, the decades of all positive values."""
    axis: dict[str, Any] = {"title": panel.x_label if which == "x" else panel.y_label}
    if which not in panel.logarithmic:
        return axis
    values: Array = np.log10(_positive(panel, which))
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = max(0.06 * (high - low), 0.05)
    return {**axis, "type": "log", "range": [low - margin, high + margin]}


def _positive(panel: Panel, which: str) -> Array:
    every: Array = np.concatenate([np.asarray(getattr(each, which), float) for each in panel.series])
    return every[np.isfinite(every) & (every > 0)]
