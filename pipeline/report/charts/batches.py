"""Charts of how batches differ from one another, and how parameters act on one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.page.page import Array, Arrays, Chart, thinned, value_scale
from pipeline.results import short

if TYPE_CHECKING:
    from pipeline.results import BatchSpectra, SpectraFile

MOST_CELLS = 60  # a side of the matrix of overlaps
MOST_NUMBERS = 8
SQUARE = 380


def _compared(results: Mapping[int, SpectraFile]) -> Iterator[tuple[int, SpectraFile, BatchSpectra]]:
    """The steps that have several batches."""
    for step, file in results.items():
        if file.several_batches is not None:
            yield step, file, file.several_batches


def top_eigenvalues(results: Mapping[int, SpectraFile], arrays: Arrays) -> Chart:
    """The top eigenvalues of each batch, side by side in batch order, beside those of the mean."""
    traces: list[dict[str, Any]] = []
    every: list[Array] = []
    for step, file, spectra in _compared(results):
        mean = file.mean.top_eigenvalues
        batches = spectra.top(file.num_top)
        every += [batches, mean]
        num_batches, num_top = batches.shape
        offsets = np.linspace(-0.22, 0.22, num_batches)[:, None]
        names = np.repeat(np.arange(num_batches), num_top)
        common = {"type": "scatter", "mode": "markers", "meta": {"step": step}}
        dots = {"size": 6 if num_batches <= 20 else 3, "color": "@blue", "opacity": 0.8}
        lines = {"symbol": "line-ew-open", "size": 15, "color": "@orange", "line": {"width": 2.5}}
        traces += [
            {
                **common,
                "name": "each batch",
                "x": arrays.put((np.arange(1, num_top + 1) + offsets).ravel()),
                "y": arrays.put(batches.ravel()),
                "customdata": arrays.put(names),
                "marker": dots,
                "hovertemplate": "batch %{customdata}<br>λ = %{y:.5~g}<extra></extra>",
            },
            {
                **common,
                "name": "the mean matrix",
                "x": arrays.put(np.arange(1, len(mean) + 1)),
                "y": arrays.put(mean),
                "marker": lines,
                "hovertemplate": "the mean, index %{x}<br>λ = %{y:.5~g}<extra></extra>",
            },
        ]
    return Chart(
        "batch_eigenvalues",
        "Top eigenvalues, batch by batch",
        "Dots: a batch's own matrix, in batch order. Lines: the mean matrix, which is not the mean of the dots.",
        traces,
        {
            "xaxis": {"title": "index j", "dtick": max(1, len(every[-1]) // 10)},
            "yaxis": {"title": "eigenvalue λ<sub>j</sub>", **value_scale(*every)},
        },
        span=2,
        height=SQUARE,
    )


def distances(results: Mapping[int, SpectraFile], arrays: Arrays) -> Chart:
    """How far the matrix of each batch is from the mean."""
    traces = []
    highest = 0.0
    for step, _, spectra in _compared(results):
        values = spectra.distance_to_mean
        highest = max(highest, float(values.max()))
        traces.append(
            {
                "type": "bar",
                "x": arrays.put(np.arange(len(values))),
                "y": arrays.put(values),
                "customdata": arrays.put(spectra.num_samples),
                "marker": {"color": "@blue"},
                "width": 0.55,
                "hovertemplate": "batch %{x}, %{customdata:,} samples<br>%{y:.4f}<extra></extra>",
                "meta": {"step": step},
            }
        )
    return Chart(
        "batch_distances",
        "Distance of each batch from the mean",
        "‖H<sub>b</sub> − H‖ / ‖H‖ in the Frobenius norm: at 1 a batch is as far from the mean as zero is.",
        traces,
        {
            "xaxis": {"title": "batch b", "dtick": max(1, len(values) // 8)},
            "yaxis": {"title": "relative distance", "range": [0, 1.1 * highest if highest > 1e-12 else 1.0]},
        },
        span=2,
        height=SQUARE,
    )


def overlaps(results: Mapping[int, SpectraFile], arrays: Arrays) -> Chart:
    """How far any two batches share their top eigenspace."""
    *_, (_, last, spectra) = _compared(results)
    shown = thinned(len(spectra), MOST_CELLS)
    labels = [str(batch) for batch in shown]
    traces = [
        {
            **heat_map(arrays.put(each.overlap[np.ix_(shown, shown)]), labels, labels),
            "hovertemplate": "batches %{x} and %{y}: %{z:.3f}<extra></extra>",
            "meta": {"step": step},
            **({"texttemplate": "%{z:.2f}"} if len(shown) <= MOST_NUMBERS else {}),
        }
        for step, _, each in _compared(results)
    ]
    return Chart(
        "batch_overlaps",
        f"Overlap of the batches' top-{last.num_top} eigenspaces",
        "1 where two batches share their sharpest directions, 0 where those are orthogonal.",
        traces,
        square_axes("batch", "batch"),
        span=2,
        height=SQUARE,
    )


def heat_map(values: dict[str, int], columns: list[str], rows: list[str]) -> dict[str, Any]:
    """Shares from 0 to 1 in even steps of lightness, a cell for each pair of names."""
    return {
        "type": "heatmap",
        "x": columns,
        "y": rows,
        "z": values,
        "zmin": 0.0,
        "zmax": 1.0,
        "colorscale": "Viridis",
        "xgap": 1,
        "ygap": 1,
    }


def square_axes(columns: str, rows: str) -> dict[str, Any]:
    """Axes of names, of which the first row is on top."""
    common = {"type": "category", "showgrid": False, "ticks": ""}
    return {
        "xaxis": {"title": columns, **common},
        "yaxis": {"title": rows, "autorange": "reversed", **common},
    }


def block_norms(results: Mapping[int, SpectraFile], arrays: Arrays) -> Chart | None:
    """Frobenius norm of each block of the mean, a row and a column a parameter; None where they are not known."""
    known = {step: each.layers.block_norms for step, each in results.items()}
    norms = {step: np.asarray(each, float) for step, each in known.items() if each is not None}
    if not norms:
        return None
    last = results[max(results)]
    names = names_apart([short(name, 28) for name in last.layers.names])
    every = np.concatenate([each.ravel() for each in norms.values()])
    high = float(every.max(initial=0.0))
    shown = every[every > max(high * 1e-8, 0.0)]  # rounding error must not take the colors of the others
    low = float(shown.min()) if len(shown) else 0.1
    numbers = {"texttemplate": "%{text}"} if len(names) <= MOST_NUMBERS else {}
    traces = [
        {
            **heat_map(arrays.put(values), names, names),
            "zmin": low if low < high else low / 10,
            "zmax": high or 1.0,
            "logarithmic": True,
            "colorbar": {"title": "norm of the block"},
            "hovertemplate": "%{y}<br>with %{x}<br>norm %{customdata:.4~g}<extra></extra>",
            "meta": {"step": step},
            **numbers,
        }
        for step, values in norms.items()
    ]
    return Chart(
        "block_norms",
        "Block norms by parameter",
        "How strongly two parameters interact: the norm of the second derivatives by the weights of the one and of the "
        "other. A diagonal much brighter than the rest means that layers are nearly independent."
        + ("" if high else " Here all blocks are zero."),
        traces,
        square_axes("", ""),
        height=min(max(360, 130 + 22 * len(names)), 1000),
    )


def names_apart(names: list[str]) -> list[str]:
    """Names as they are, with their place where two are the same after shortening."""
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]
