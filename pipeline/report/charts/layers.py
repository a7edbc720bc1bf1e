"""Charts of the layers' diagonal blocks: trace and largest eigenvalue of each, at one step and along training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.charts.batches import names_apart
from pipeline.report.page.page import Array, Arrays, Chart, value_scale
from pipeline.results import short

if TYPE_CHECKING:
    from pipeline.results import ModuleBlocks, SpectraFile

COLORS = ("@blue", "@orange", "@green", "@purple", "@grey")
DASHES = ("solid", "dash", "dot")
MOST_LINES = len(COLORS) * len(DASHES)
MOST_BARS = 60
SMALL = 330
NUMBERS = {  # of a layer's block: title, symbol
    "lambda_max": ("Largest eigenvalue of each layer's block", "λ<sub>max</sub>"),
    "trace": ("Trace of each layer's block", "trace"),
}
READING = (
    "Of the diagonal block of the mean matrix that belongs to a layer's own weights, its bias among them."
)


def _modules(results: Mapping[int, SpectraFile]) -> dict[int, ModuleBlocks]:
    """Those of the steps that have them; files of a version before 0.3 have none."""
    return {step: each.modules for step, each in results.items() if each.modules is not None}


def at_each_step(results: Mapping[int, SpectraFile], arrays: Arrays) -> Iterator[Chart]:
    """A bar a layer, of one step."""
    modules = _modules(results)
    for key, (title, symbol) in NUMBERS.items():
        values = {step: np.asarray(getattr(each, key), float)[:MOST_BARS] for step, each in modules.items()}
        every = np.concatenate([each[np.isfinite(each)] for each in values.values()] or [np.empty(0)])
        if not len(every):
            continue
        names = names_apart([short(str(name), 24) for name in modules[max(modules)].names[:MOST_BARS]])
        low, high = min(0.0, float(every.min())), max(0.0, float(every.max()))
        margin = 0.06 * (high - low) or 1.0
        yield Chart(
            f"layer_{key}",
            title,
            READING,
            [
                {
                    "type": "bar",
                    "x": names,
                    "y": arrays.put(each),
                    "marker": {"color": "@blue"},
                    "width": 0.55,
                    "hovertemplate": "%{x}<br>%{y:.5~g}<extra></extra>",
                    "meta": {"step": step},
                }
                for step, each in values.items()
            ],
            {
                "xaxis": {"title": "", "type": "category", "showgrid": False},
                "yaxis": {"title": symbol, "range": [low - margin * (low < 0), high + margin]},
            },
            span=3,
            height=SMALL,
        )


def along_steps(
    results: Mapping[int, SpectraFile], arrays: Arrays, axis: tuple[dict[str, Any], dict[str, float]]
) -> Iterator[Chart]:
    """A line a layer over the steps.

    axis: of the steps, and the half-width of its linear part where it is logarithmic.
    """
    modules = _modules(results)
    if not modules:
        return
    steps, names = np.array(list(modules), float), [str(name) for name in modules[max(modules)].names]
    for key, (title, symbol) in NUMBERS.items():
        values = np.array([getattr(each, key) for each in modules.values()], float)  # (S, M)
        known = np.isfinite(values).any(axis=0)
        order = np.argsort(-np.nan_to_num(values[-1], nan=-np.inf), kind="stable")
        shown = sorted(layer for layer in order[:MOST_LINES] if known[layer])
        if not shown:
            continue
        some = (
            f" The {MOST_LINES} layers where it is largest at the last step."
            if known.sum() > len(shown)
            else ""
        )
        yield Chart(
            f"layers_along_{key}",
            title,
            READING + some,
            [
                _line(steps, values[:, layer], short(names[layer], 24), i, arrays)
                for i, layer in enumerate(shown)
            ],
            {"xaxis": axis[0], "yaxis": {"title": symbol, **value_scale(values[:, shown])}},
            signed=axis[1],
            picks="step",
            span=3,
            height=SMALL,
        )


def _line(steps: Array, values: Array, name: str, place: int, arrays: Arrays) -> dict[str, Any]:
    dash, color = DASHES[place // len(COLORS)], COLORS[place % len(COLORS)]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": arrays.put(steps),
        "y": arrays.put(values),
        "customdata": arrays.put(steps),
        "line": {"color": color, "dash": dash, "width": 2},
        "marker": {"size": 5},
        "showlegend": True,
        "hovertemplate": f"{name}, step %{{customdata:,}}<br>%{{y:.5~g}}<extra></extra>",
    }
