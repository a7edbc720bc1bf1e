"""How the spectrum changes along training: a few numbers, the density, and the directions of the top eigenspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.evolution import Limit, common_densities, overlaps, spread_out
from pipeline.figure_style import (
    BLUE,
    GREEN,
    HEAT,
    PALE,
    PURPLE,
    VERMILLION,
    Array,
    annotate,
    context_of,
    new_figure,
    signed_log,
    value_axis,
)
from pipeline.report_words import number

if TYPE_CHECKING:
    from pipeline.spectra_file import SpectraFile

MOST_NUMBERS = 8
MOST_LABELS = 24
NUMBERS = (
    ("lambda_max", r"largest eigenvalue $\lambda_{\max}$", BLUE),
    ("trace", r"trace $\mathrm{tr}\,H$", GREEN),
    ("effective_rank", "effective rank", PURPLE),
)


def along_steps(results: Mapping[int, SpectraFile], limit: Limit) -> Figure | None:
    """Largest eigenvalue, trace and effective rank of the mean at each step; nothing to draw for fewer than two."""
    if len(results) < 2:
        return None
    steps = np.array(list(results))
    shown = [row for row in NUMBERS if any(row[0] in each.attrs for each in results.values())]
    figure = new_figure(_context(results), width=3.7 * len(shown), height=3.9)
    for axes, (name, title, color) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True
    ):
        values = np.array([float(each.attrs.get(name, np.nan)) for each in results.values()])
        axes.plot(steps, values, marker="o", markersize=4.5, color=color)
        if name == "lambda_max" and limit.value is not None:
            axes.axhline(limit.value, color=VERMILLION, linestyle="--", linewidth=1.4)
            title += f",  dashed: {_formula(limit.symbol)} = {number(limit.value, 3)}"
            values = np.append(values, limit.value)
        value_axis(axes, "y", values)
        axes.set(title=title, xlabel="training step")
        _step_axis(axes, steps)
    return figure


def _formula(symbol: str) -> str:
    return "$" + symbol.replace("η", r"\eta").replace("β", r"\beta").replace("−", "-") + "$"


def _step_axis(axes: Any, steps: Array) -> None:
    """Even where steps are about even, logarithmic (with zero) where most of them are early."""
    if not spread_out(steps):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        return
    first = float(steps[steps > 0].min())
    signed_log(axes, "x", 0.0, 1.25 * float(steps.max()), first / 2, num_ticks=6)
    axes.set_xlim(-0.15 * first, 1.25 * float(steps.max()))


def densities_along(results: Mapping[int, SpectraFile]) -> Figure | None:
    """The density of the spectrum of the mean as a heat map, a row a step, with the top eigenvalues as marks."""
    found = common_densities(results) if len(results) > 1 else None
    if found is None:
        return None
    num_steps = len(found.steps)
    figure = new_figure(_context(results), height=min(2.2 + 0.3 * num_steps, 9.0))
    axes = figure.add_subplot()
    axes.grid(visible=False)
    axes.set_facecolor(PALE)
    shown = np.ma.masked_less_equal(np.nan_to_num(found.values), found.floor)
    edges = np.append(found.grid, found.grid[-1] * 1.0001)
    image = axes.pcolormesh(
        edges, np.arange(num_steps + 1) - 0.5, shown, cmap=HEAT, norm=LogNorm(found.floor, float(shown.max()))
    )
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=25)
    bar.set_label(r"density per decade of $|\lambda|$")
    bar.outline.set_visible(False)
    for row, step in enumerate(found.steps):
        top = results[step].arrays["mean/top_eigenvalues"]
        axes.plot(
            top,
            np.full(len(top), row),
            linestyle="none",
            marker="|",
            markersize=7,
            markeredgewidth=1.2,
            color=VERMILLION,
            label="" if row else f"top {len(top)} eigenvalues",
        )
    seen = found.grid[(found.values > found.floor).any(axis=0)]
    signed_log(axes, "x", float(seen[0]), float(seen[-1]), found.width, num_ticks=11)
    _name_steps(axes.yaxis, found.steps)
    axes.set(xlabel=r"eigenvalue $\lambda$", ylabel="training step")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    return figure


def overlaps_along(results: Mapping[int, SpectraFile]) -> Figure | None:
    """How far the top eigenspaces of any two steps are the same, as a matrix."""
    if len(results) < 2:
        return None
    steps, values = list(results), overlaps(results)
    size = min(3.2 + 0.24 * len(steps), 8.0)
    figure = new_figure(_context(results), width=size * 1.2, height=size)
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap=HEAT, vmin=0.0, vmax=1.0)
    bar = figure.colorbar(image, ax=axes, pad=0.03, aspect=25)
    bar.outline.set_visible(False)
    num_top = int(results[steps[-1]].attrs["num_top"])
    bar.set_label(f"overlap of top-{num_top} eigenspaces")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    _name_steps(axes.xaxis, steps)
    _name_steps(axes.yaxis, steps)
    axes.set(xlabel="training step", ylabel="training step")
    if len(steps) > 5:
        axes.tick_params(axis="x", rotation=90)
    if len(steps) <= MOST_NUMBERS:
        annotate(axes, image, values, np.vectorize("{:.2f}".format)(values))
    return figure


def _name_steps(axis: Any, steps: list[int]) -> None:
    stride = -(-len(steps) // MOST_LABELS)
    places = range(0, len(steps), stride)
    axis.set_ticks(list(places), [f"{steps[place]:,}" for place in places], fontsize=9)
    axis.set_tick_params(length=0)


def _context(results: Mapping[int, SpectraFile]) -> str:
    """As of one step, but for the step."""
    first, _, rest = context_of(results[max(results)]).partition("  ·  ")
    return f"{first.partition(' at step')[0]} at {len(results)} steps  ·  {rest}"
