"""The spectrum of one step: its density, and its eigenvalues one by one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from pipeline.evolution import linear_width
from pipeline.figure_style import (
    BLUE,
    GREY,
    PALE,
    SKY,
    VERMILLION,
    Array,
    context_of,
    new_figure,
    say,
    signed_log,
)
from pipeline.report_words import number

if TYPE_CHECKING:
    from pipeline.spectra_file import SpectraFile


def density(results: SpectraFile) -> Figure | None:
    """Density of the spectrum of the mean over that of each batch, the top eigenvalues marked one by one.

    A density is NaN, and its line is broken, where Lanczos does not resolve the eigenvalues.
    """
    arrays, attrs = results.arrays, results.attrs
    if "density/values" not in arrays:
        return None
    grid, values, batches = (arrays[f"density/{name}"] for name in ("grid", "values", "batches"))
    top = arrays["mean/top_eigenvalues"]
    figure = new_figure(context_of(results))
    axes = figure.add_subplot()
    axes.set(xlabel=r"eigenvalue $\lambda$", ylabel=r"density per decade of $|\lambda|$")
    floor = _density_axes(axes, grid, np.vstack([values, batches]), int(attrs["num_parameters"]))

    if len(batches) > 1:  # that of one batch is the mean's
        segments = [np.column_stack([grid, row]) for row in np.maximum(batches, floor / 100)]
        faint = max(0.05, 0.7 / math.sqrt(len(batches)))
        axes.add_collection(LineCollection(segments, colors=GREY, linewidths=0.7, alpha=faint), autolim=False)
        axes.plot([], [], color=GREY, linewidth=0.7, label="spectrum of each batch")  # faint may be too faint
    axes.fill_between(grid, floor / 100, np.maximum(values, floor / 100), color=SKY, alpha=0.25, linewidth=0)
    if "density/standard_error" in arrays:
        error = 2 * arrays["density/standard_error"]
        low, high = (np.maximum(values + sign * error, floor / 100) for sign in (-1, 1))
        axes.fill_between(grid, low, high, color=BLUE, alpha=0.3, linewidth=0, label="± 2 standard errors")
    axes.plot(grid, values, color=BLUE, label="spectrum of the mean")
    axes.plot(
        top,
        np.full(len(top), 0.035),
        transform=axes.get_xaxis_transform(),
        linestyle="none",
        marker="|",
        markersize=15,
        markeredgewidth=1.4,
        color=VERMILLION,
        label=rf"its top {len(top)} eigenvalues, $\lambda_{{\max}}$ = {number(float(top[0]), 3)}",
    )
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, columnspacing=1.4)
    return figure


def _density_axes(axes: Any, grid: Array, curves: Array, num_parameters: int) -> float:
    """Scale both axes to the curves (m, G); returns the density under which nothing is drawn.

    That floor is a tenth of what one eigenvalue of P adds, so that a single outlier stands out.
    """
    highest = float(np.nanmax(curves))
    floor = highest / (10 * max(num_parameters, 10))
    axes.set_yscale("log")
    axes.set_ylim(floor, 3 * highest)
    seen = grid[(curves > floor).any(axis=0)]
    low, high = float(seen[0]), float(seen[-1])
    signed_log(axes, "x", low, high, linear_width(grid), num_ticks=11)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    return floor


def by_rank(results: SpectraFile) -> Figure:
    """Sizes of the positive and of the negative eigenvalues of the mean, each from the largest down."""
    eigenvalues = results.arrays["mean/eigenvalues"]
    threshold = float(results.attrs["negative_threshold"])
    figure = new_figure(context_of(results))
    axes = figure.add_subplot()
    axes.set(xlabel="rank (1 = largest in size)", ylabel=r"size of the eigenvalue $|\lambda|$")
    largest = float(np.abs(eigenvalues).max(initial=0.0))
    if largest == 0:
        say(axes, f"all {len(eigenvalues):,} eigenvalues are zero")
        return figure
    axes.set_xscale("log")
    axes.set_yscale("log")
    computed = "" if results.attrs["spectrum"] == "exact" else " computed"
    positive, negative = eigenvalues[eigenvalues > 0][::-1], -eigenvalues[eigenvalues < 0]
    size = 3.0 if len(eigenvalues) > 100 else 6.0
    for values, name, color, marker in (
        (positive, "positive", BLUE, "o"),
        (negative, "negative", VERMILLION, "v"),
    ):
        label = f"{(values > threshold).sum():,} {name}{computed}"
        ranks = np.arange(1, len(values) + 1)
        axes.plot(ranks, values, linestyle="none", marker=marker, markersize=size, color=color, label=label)
    smallest = float(np.abs(eigenvalues[eigenvalues != 0]).min())
    low = max(smallest, threshold / 30, largest * 1e-16) / 2
    axes.set_ylim(low, largest * 2.5)
    axes.set_xlim(0.85, max(len(positive), len(negative), 10) * 1.25)
    if threshold > low:
        axes.axhspan(low, threshold, color=PALE, alpha=0.6, linewidth=0)
        axes.axhline(
            threshold,
            color=GREY,
            linewidth=1.2,
            linestyle="--",
            label=f"noise floor {number(threshold, 2)}, not counted below it",
        )
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, columnspacing=1.4)
    return figure
