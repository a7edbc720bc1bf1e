"""Charts of what changes with the training step: losses, and the spectrum from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.charts.batches import heat_map, square_axes
from pipeline.report.page.page import Array, Arrays, Chart, value_scale
from pipeline.results import (
    NO_LIMIT,
    QUANTITIES,
    STEP_CHARTS,
    StabilityLimit,
    common_densities,
    needs_logarithmic_axis,
    number,
)
from pipeline.results import overlaps as overlaps_of

if TYPE_CHECKING:
    from pipeline.results import SpectraFile

SERIES = (
    ("train", "training samples", "@blue", "solid", "circle"),
    ("test", "test samples", "@orange", "dash", "square"),
)
COLORS = ("@blue", "@green", "@purple")  # of the numbers that are followed along training
SPANS = {
    4: (3, 3, 3, 3),
    5: (3, 3, 2, 2, 2),
}  # of so many charts; else those of a row are alike, three at most
SMALL = 330
MOST_MARKERS = 60


def training_curve(history: Mapping[str, Array], steps: list[int], kind: str, arrays: Arrays) -> Chart | None:
    """Loss or accuracy on training and test samples; None where there is none."""
    traces, drawn = [], []
    for who, name, color, dash, symbol in SERIES:
        values = history.get(f"{who}_{kind}", np.empty(0))
        known = np.isfinite(values)
        if known.any():
            drawn.append(values[known])
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if known.sum() <= MOST_MARKERS else "lines",
                    "name": name,
                    "x": arrays.put(history["step"][known]),
                    "y": arrays.put(values[known]),
                    "line": {"color": color, "dash": dash, "width": 2},
                    "marker": {"symbol": symbol, "size": 5},
                    "hovertemplate": "step %{x:,}<br>%{y:.4~g}"
                    if kind == "loss"
                    else "step %{x:,}<br>%{y:.2%}",
                }
            )
    if not traces:
        return None
    mark = {
        "type": "line",
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": "@grey", "width": 1, "dash": "dot"},
    }
    scale = value_scale(*drawn) if kind == "loss" else {"tickformat": ".0%"}
    return Chart(
        kind,
        kind.capitalize(),
        "On all training and all test samples; dotted lines mark the steps that have a spectrum.",
        traces,
        {
            "xaxis": {"title": "training step", "rangemode": "tozero"},
            "yaxis": {"title": kind, **scale},
            "shapes": [{**mark, "x0": step, "x1": step} for step in steps],
        },
        span=3,
        height=SMALL,
    )


def along_steps(
    results: Mapping[int, SpectraFile], limits: Mapping[str, StabilityLimit], arrays: Arrays
) -> list[Chart]:
    """A chart for each number that is followed along training; limits: the lines beside them, by the number's key."""
    charts = [
        _along(name, results, limits.get(name, NO_LIMIT), arrays)
        for name in STEP_CHARTS
        if any(np.isfinite(each.numbers.get(name, np.nan)) for each in results.values())
    ]
    spans = SPANS.get(len(charts), (6 // min(3, len(charts) or 1),) * len(charts))
    return [replace(chart, span=span) for chart, span in zip(charts, spans, strict=True)]


def _along(name: str, results: Mapping[int, SpectraFile], limit: StabilityLimit, arrays: Arrays) -> Chart:
    quantity, steps = QUANTITIES[name], np.array(list(results), float)
    values = np.array([float(each.numbers.get(name, np.nan)) for each in results.values()])
    share = quantity.unit == "%"
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": quantity.symbol,
            "x": arrays.put(steps),
            "y": arrays.put(values),
            "customdata": arrays.put(steps),
            "line": {"color": COLORS[STEP_CHARTS.index(name) % len(COLORS)], "width": 2},
            "marker": {"size": 7},
            "showlegend": False,
            "hovertemplate": f"step %{{customdata:,}}<br>%{{y:{'.2%' if share else '.5~g'}}}<extra></extra>",
        }
    ]
    formula = limit.symbol or "2/η"
    why = limit.explanation.replace(formula, f'<span class="unbroken">{formula}</span>')
    if limit.value is not None:
        traces.append(_limit_line(limit, steps, arrays))
        values = np.append(values, limit.value)
    axes, signed = step_axis(list(results))
    scale = {"tickformat": ".0%", "range": [0, 1.02]} if share else value_scale(values)
    return Chart(
        f"along_{name}",
        quantity.title,
        f"{quantity.sentence} {why}".strip(),
        traces,
        {"xaxis": axes, "yaxis": {"title": quantity.symbol, **scale}},
        signed,
        picks="step",
        height=SMALL,
    )


def _limit_line(limit: StabilityLimit, steps: Array, arrays: Arrays) -> dict[str, Any]:
    assert limit.value is not None
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{limit.symbol} = {number(limit.value, 3)}",
        "x": arrays.put([float(steps.min()), float(steps.max())]),
        "y": arrays.put([limit.value, limit.value]),
        "line": {"color": "@orange", "width": 1.8, "dash": "dash"},
        "showlegend": True,
        "hovertemplate": f"{limit.symbol} = %{{y:.4~g}}<extra></extra>",
    }


def step_axis(of_steps: Sequence[int]) -> tuple[dict[str, Any], dict[str, float]]:
    """An even axis, or one that is logarithmic with zero on it where most steps are early."""
    title, steps = {"title": "training step"}, np.array(of_steps, float)
    last = float(steps.max())
    if not needs_logarithmic_axis(steps):
        return {**title, "range": [-0.03 * last, 1.03 * last]}, {}
    first = float(steps[steps > 0].min())
    return {**title, "range": [-0.15 * first, 1.3 * last], "whole": True}, {"x": first / 2}


def densities_along(results: Mapping[int, SpectraFile], arrays: Arrays) -> Chart | None:
    """The density of the spectrum of the mean, a row a step, with the top eigenvalues as marks."""
    found = common_densities(results)
    if found is None:
        return None
    names = [f"{step:,}" for step in found.steps]
    seen: Array = np.any(np.nan_to_num(found.values) > found.floor, axis=0)
    first, last = int(np.argmax(seen)), len(seen) - int(np.argmax(seen[::-1]))
    grid, values = found.grid[first:last], np.nan_to_num(found.values[:, first:last])
    tops = [results[step].mean.top_eigenvalues for step in found.steps]
    traces = [
        {
            **heat_map(arrays.put(np.where(values > found.floor, values, 0.0)), [], names),
            "x": arrays.put(grid),
            "zmin": found.floor,
            "zmax": float(values.max()),
            "logarithmic": True,
            "xgap": 0,
            "colorbar": {"title": "density per decade of |λ|"},
            "hovertemplate": "step %{y}<br>λ = %{x}<br>density %{customdata:.3~g}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "top eigenvalues",
            "x": arrays.put(np.concatenate(tops)),
            "y": [name for name, top in zip(names, tops, strict=True) for _ in top],
            "marker": {"symbol": "line-ns-open", "size": 9, "color": "@mark", "line": {"width": 1.6}},
            "hovertemplate": "step %{y}<br>λ = %{customdata:.5~g}<extra></extra>",
        },
    ]
    return Chart(
        "density_steps",
        "Density of the spectrum as it evolves",
        "A row a step, bright where many eigenvalues lie, empty where there is none; orange marks are the top "
        "eigenvalues. Click a point of the curves above to see that step's figures.",
        traces,
        {
            "xaxis": {"title": "eigenvalue λ", "range": [float(grid[0]), float(grid[-1])], "showgrid": False},
            "yaxis": {"title": "training step", "type": "category", "showgrid": False},
            "plot_bgcolor": "@empty",
            "showlegend": False,
        },
        signed={"x": found.width},
        span=6,
        height=height_of(len(names)),
    )


def overlaps_along(results: Mapping[int, SpectraFile], arrays: Arrays) -> Chart:
    """How far the top eigenspaces of any two steps are the same."""
    names, values = [f"{step:,}" for step in results], overlaps_of(results)
    last = results[max(results)]
    num_top, num_parameters = last.num_top, int(last.numbers["num_parameters"])
    return Chart(
        "overlap_steps",
        f"Overlap of top-{num_top} eigenspaces between steps",
        "1 where two steps have the same sharp directions; two random subspaces have "
        f"{number(num_top / num_parameters, 2)}. A bright square: the directions have settled.",
        [
            {
                **heat_map(arrays.put(values), names, names),
                "hovertemplate": "steps %{x} and %{y}: %{z:.3f}<extra></extra>",
                **({"texttemplate": "%{z:.2f}"} if len(names) <= 6 else {}),
            }
        ],
        square_axes("training step", "training step"),
        span=3,
        height=height_of(len(names)),
    )


def height_of(num_steps: int) -> int:
    """Of a figure with a row a step."""
    return min(max(SMALL, 130 + 20 * num_steps), 800)
