"""Charts of the spectrum of one step: its density, and its eigenvalues one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.page.page import Array, Arrays, Chart, thinned, thinned_ranks
from pipeline.results import linear_width, short

if TYPE_CHECKING:
    from pipeline.results import Density, SpectraFile

MOST_CURVES = 24  # of batches; more hide one another
MOST_LAYERS = 60
MOST_POINTS = 1000  # of the eigenvalues of one matrix; their ranks are drawn on a logarithmic axis
EVERY = "every"
OF_THE_MEAN = "mean"


def density(results: Mapping[int, SpectraFile], arrays: Arrays) -> Chart | None:
    """Density of the spectrum of the mean over those of the batches, and the top eigenvalues; one of each step."""
    known = {step: (each, each.density) for step, each in results.items() if each.density is not None}
    if not known:
        return None
    width = max(linear_width(density.grid) for _, density in known.values())
    highest = max(_highest(density) for _, density in known.values())
    floor = highest / (10 * max(*(int(each.numbers["num_parameters"]) for each, _ in known.values()), 10))
    num_batches = max(len(density.batches) for _, density in known.values())
    shown = thinned(num_batches, MOST_CURVES)
    ends: list[float] = []
    traces: list[dict[str, Any]] = []
    for step, (each, density) in known.items():
        seen = density.grid[np.any([curve > floor for curve in (density.values, *density.batches)], axis=0)]
        ends += [float(seen[0]), float(seen[-1])]
        traces += _density_traces(step, each, density, shown, floor, arrays)
    options = {EVERY: "all" if len(shown) == num_batches else f"{len(shown)} of {num_batches}"}
    options |= {str(batch): str(batch) for batch in shown}
    return Chart(
        "density",
        "Density of the spectrum",
        "Where the eigenvalues lie, negative ones left of zero: the tall part around zero is the bulk, bumps over "
        "orange marks are outliers. A batch's spectrum is that of its own matrix, drawn where Lanczos resolves it.",
        traces,
        {
            "xaxis": {"title": "eigenvalue λ", "range": [min(ends), max(ends)]},
            "yaxis": {
                "title": "density per decade of |λ|",
                "type": "log",
                "range": [float(np.log10(floor)), float(np.log10(3 * highest))],
            },
        },
        signed={"x": width},
        choices={"batch": ("batch", options)} if num_batches > 1 else {},
        height=430,
    )


def _highest(density: Density) -> float:
    curves = [density.values, *density.batches]
    return float(np.nanmax([np.nanmax(curve) if np.isfinite(curve).any() else 0.0 for curve in curves]))


def _density_traces(
    step: int, file: SpectraFile, density: Density, shown: Array, floor: float, arrays: Arrays
) -> Iterator[dict[str, Any]]:
    grid = arrays.put(density.grid)
    hover = "λ = %{customdata:.4~g}<br>density %{y:.3~g}"

    def curve(values: Array, **more: Any) -> dict[str, Any]:
        y = arrays.put(np.where(np.isnan(values), np.nan, np.maximum(values, floor / 100)))
        return {"type": "scatter", "mode": "lines", "x": grid, "y": y, "hovertemplate": hover, **more}

    if len(density.batches) > 1:
        for i, batch in enumerate(shown):
            common = {"name": f"batch {batch}", "hovertemplate": hover}
            values = density.batches[batch]
            thin = {
                "line": {"width": 1, "color": "@grey", "simplify": False},
                "opacity": 0.6,
                "legendgroup": "batches",
            }
            meta = {"step": step, "batch": EVERY}
            yield curve(values, **{**common, "name": "each batch"}, **thin, showlegend=i == 0, meta=meta)
            thick = {"line": {"width": 2, "color": "@orange", "dash": "dot"}}
            yield curve(values, **common, **thick, meta={"step": step, "batch": str(batch)})
    if density.standard_error is not None:
        yield from _band(density.values, density.standard_error, grid, floor, arrays, step)
    top = file.mean.top_eigenvalues
    line = {
        "line": {"width": 2.4, "color": "@blue", "simplify": False},
        "fill": "tozeroy",
        "fillcolor": "@fill",
    }
    yield curve(density.values, name="the mean matrix", **line, meta={"step": step})
    yield {
        "type": "scatter",
        "mode": "markers",
        "name": f"its top {len(top)} eigenvalues",
        "x": arrays.put(top),
        "y": arrays.put(np.full(len(top), floor * 2)),
        "marker": {"symbol": "line-ns-open", "size": 15, "color": "@orange", "line": {"width": 2}},
        "hovertemplate": "λ = %{customdata:.5~g}",
        "meta": {"step": step},
    }


def _band(
    values: Array, error: Array, grid: dict[str, int], floor: float, arrays: Arrays, step: int
) -> Iterator[dict[str, Any]]:
    """Two standard errors to both sides of a density that was estimated."""
    common = {"type": "scatter", "mode": "lines", "x": grid, "hoverinfo": "skip", "meta": {"step": step}}
    for sign in (-1, 1):
        y = arrays.put(np.maximum(np.nan_to_num(values + 2 * sign * error), floor / 100))
        fill = {"fill": "tonexty", "fillcolor": "@band", "name": "± 2 standard errors"} if sign > 0 else {}
        yield {**common, "y": y, "line": {"width": 0}, "showlegend": sign > 0, **fill}


def distribution_band(results: Mapping[int, SpectraFile], arrays: Arrays) -> Chart | None:
    """Bounds of the share of eigenvalues up to a point; None where the spectrum was not estimated from products."""
    bands = {step: each.distribution for step, each in results.items() if each.distribution is not None}
    if not bands:
        return None
    traces: list[dict[str, Any]] = []
    for step, band in bands.items():
        x = arrays.put(np.repeat(band.points, 2)[1:])
        hover = "λ = %{customdata:.4~g}<br>share %{y:.5~g}"
        for name, values in (("lower bound", band.low), ("95 % band", band.high)):
            fill = {"fill": "tonexty", "fillcolor": "@band"} if name == "95 % band" else {"showlegend": False}
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": name,
                    "x": x,
                    "y": arrays.put(np.repeat(values, 2)[:-1]),
                    "line": {"width": 1.2, "color": "@blue", "simplify": False},
                    "hovertemplate": hover,
                    "meta": {"step": step},
                    **fill,
                }
            )
    points = np.concatenate([band.points for band in bands.values()])
    grids = [each.density.grid for each in results.values() if each.density is not None]
    width = max((linear_width(grid) for grid in grids), default=float(np.abs(points).max()) or 1.0)
    return Chart(
        "distribution",
        "Share of eigenvalues up to λ",
        "The share of all eigenvalues that are at most λ lies between the two lines, everywhere at once, with 95 % "
        "confidence. Where they are far apart, more products would tell more (strategy.num_density_steps).",
        traces,
        {
            "xaxis": {"title": "eigenvalue λ", "range": [float(points.min()), float(points.max())]},
            "yaxis": {"title": "share of eigenvalues ≤ λ", "range": [-0.03, 1.03]},
        },
        signed={"x": width},
    )


def by_rank(results: Mapping[int, SpectraFile], arrays: Arrays) -> Chart:
    """Sizes of the positive and of the negative eigenvalues; of the mean, of a parameter's block, or of a batch."""
    traces: list[dict[str, Any]] = []
    options: dict[str, str] = {}
    largest, smallest, longest = 0.0, np.inf, 1
    for step, each in results.items():
        threshold = float(each.numbers["negative_threshold"])
        for part, label, eigenvalues in _parts(each):
            options.setdefault(part, label)
            sizes = np.abs(eigenvalues[eigenvalues != 0])
            if not len(sizes):
                continue
            largest, longest = max(largest, float(sizes.max())), max(longest, len(sizes))
            smallest = min(smallest, max(float(sizes.min()), threshold / 30))
            traces += _rank_traces(eigenvalues, arrays, {"step": step, "part": part})
        if threshold > 0:
            traces.append(_noise_floor(threshold, longest, arrays, step))
    low = max(smallest, largest * 1e-16) / 2 if largest else 0.1
    high = 2.5 * largest if largest else 10.0
    return Chart(
        "eigenvalues",
        "Eigenvalues by rank",
        "Sizes of the positive (blue) and of the negative (orange) eigenvalues from the largest down: a drop separates "
        "outliers from the bulk; what lies under the dashed line cannot be told from rounding error."
        + ("" if largest else " Here all eigenvalues are zero."),
        traces,
        {
            "xaxis": {
                "title": "rank (1 = largest in size)",
                "type": "log",
                "range": [-0.06, float(np.log10(1.2 * max(longest, 8)))],
            },
            "yaxis": {
                "title": "size of the eigenvalue |λ|",
                "type": "log",
                "range": [float(np.log10(low)), float(np.log10(high))],
            },
        },
        choices={"part": ("matrix", options)},
        height=430,
    )


def _parts(file: SpectraFile) -> Iterator[tuple[str, str, Array]]:
    """The matrices whose eigenvalues are known: a name, what a person reads, and the eigenvalues."""
    exact = file.spectrum == "exact"
    label = "the mean, all weights" if exact else "the mean, what was computed"
    yield OF_THE_MEAN, label, file.mean.eigenvalues
    blocks = file.layers.eigenvalues
    sizes = dict(zip(file.layers.names, file.layers.sizes, strict=True))
    largest = sorted(blocks, key=lambda name: -int(sizes[name]))[:MOST_LAYERS]
    for name in (name for name in blocks if name in largest):
        yield f"layer {name}", f"block of {short(name)}", blocks[name]
    if file.several_batches is not None:
        for batch in thinned(len(file.several_batches), MOST_CURVES):
            yield f"batch {batch}", f"batch {batch}", file.several_batches.eigenvalues[batch]


def _rank_traces(eigenvalues: Array, arrays: Arrays, meta: dict[str, Any]) -> Iterator[dict[str, Any]]:
    values = np.sort(eigenvalues)
    signs = (
        (values[values > 0][::-1], "positive", "@blue", "circle"),
        (-values[values < 0], "negative", "@orange", "triangle-down"),
    )
    for sizes, name, color, symbol in signs:
        if len(sizes):
            kept = thinned_ranks(len(sizes), MOST_POINTS)
            yield {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": arrays.put(kept + 1),
                "y": arrays.put(sizes[kept]),
                "marker": {"size": 4 if len(kept) > 100 else 7, "color": color, "symbol": symbol},
                "hovertemplate": f"{name}, rank %{{x:,}}<br>|λ| = %{{y:.5~g}}<extra></extra>",
                "meta": meta,
            }


def _noise_floor(threshold: float, longest: int, arrays: Arrays, step: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "noise floor",
        "x": arrays.put([0.5, 10.0 * longest]),
        "y": arrays.put([threshold, threshold]),
        "line": {"width": 1.5, "dash": "dash", "color": "@grey"},
        "hovertemplate": "noise floor %{y:.3~g}<extra></extra>",
        "meta": {"step": step, "part": OF_THE_MEAN},
    }
