"""How much the matrices of the batches differ from one another and from their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.figure_style import (
    BLUE,
    HEAT,
    VERMILLION,
    annotate,
    context_of,
    index_ticks,
    new_figure,
    value_axis,
)

if TYPE_CHECKING:
    from pipeline.spectra_file import SpectraFile

MOST_NUMBERS = 8


def spread(results: SpectraFile) -> Figure | None:
    """Top eigenvalues of each batch and of the mean; distances to the mean; overlap of top eigenspaces.

    Nothing to draw for one batch, which is its own mean.
    """
    if len(results.arrays["batches/num_samples"]) < 2:
        return None
    figure = new_figure(context_of(results), width=11.0, height=4.4)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.5, 0.9, 1.25])
    _eigenvalues(left, results)
    _distances(middle, results)
    _overlaps(figure, right, results)
    return figure


def _eigenvalues(axes: Any, results: SpectraFile) -> None:
    mean = results.arrays["mean/top_eigenvalues"]
    assert results.several_batches is not None
    batches = results.several_batches.top(results.num_top)
    num_batches, num_top = batches.shape
    ranks = np.arange(1, num_top + 1)
    # side by side in batch order, so that equal values do not hide one another
    offsets = np.linspace(-0.22, 0.22, num_batches) if num_batches > 1 else np.zeros(1)
    axes.plot(
        (ranks + offsets[:, None]).ravel(),
        batches.ravel(),
        linestyle="none",
        marker="o",
        markersize=4.5 if num_batches <= 20 else 2.5,
        markeredgewidth=0,
        alpha=0.75,
        color=BLUE,
        label="each batch",
    )
    axes.hlines(
        mean[:num_top],
        ranks - 0.36,
        ranks + 0.36,
        color=VERMILLION,
        linewidth=2,
        label="spectrum of the mean",
    )
    value_axis(axes, "y", np.concatenate([batches.ravel(), mean]))
    index_ticks(axes.xaxis, 1, num_top)
    axes.set_xlim(0.3, num_top + 0.7)
    axes.set(xlabel=r"index $j$", ylabel=r"eigenvalue $\lambda_j$")
    axes.grid(visible=False, axis="x")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, columnspacing=1.4)


def _distances(axes: Any, results: SpectraFile) -> None:
    distances = results.arrays["batches/distance_to_mean"]
    batches = np.arange(len(distances))
    axes.vlines(batches, 0, distances, color=BLUE, alpha=0.35, linewidth=1.5 if len(batches) <= 40 else 0.6)
    size = 7 if len(batches) <= 40 else 3
    axes.plot(batches, distances, linestyle="none", marker="o", markersize=size, color=BLUE)
    index_ticks(axes.xaxis, 0, len(batches) - 1, most=6)
    axes.set_xlim(-0.6, len(batches) - 0.4)
    largest = float(distances.max())
    axes.set_ylim(0, 1.15 * largest if largest > 1e-12 else 1.0)
    axes.set(title="distance to the mean", xlabel=r"batch $b$", ylabel=r"$\|H_b - H\|_F\,/\,\|H\|_F$")
    axes.grid(visible=False, axis="x")


def _overlaps(figure: Figure, axes: Any, results: SpectraFile) -> None:
    overlap = results.arrays["batches/overlap"]
    image = axes.imshow(overlap, cmap=HEAT, vmin=0.0, vmax=1.0)
    bar = figure.colorbar(image, ax=axes, shrink=0.82, pad=0.03, aspect=22)
    bar.outline.set_visible(False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for axis in (axes.xaxis, axes.yaxis):
        index_ticks(axis, 0, len(overlap) - 1, most=6)
    axes.set(
        title=f"overlap of top-{results.attrs['num_top']} eigenspaces",
        xlabel=r"batch $b$",
        ylabel="batch $b'$",
    )
    if len(overlap) <= MOST_NUMBERS:
        annotate(axes, image, overlap, np.vectorize("{:.2f}".format)(overlap))
