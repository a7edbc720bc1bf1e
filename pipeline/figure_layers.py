"""How strongly the parameters of a net act on one another: block norms as a heat map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from pipeline.figure_style import (
    HEAT,
    PALE,
    annotate,
    context_of,
    literal,
    log_labels,
    new_figure,
    say,
)
from pipeline.report_words import number, short

if TYPE_CHECKING:
    from pipeline.spectra_file import SpectraFile

MOST_LABELS = 50
MOST_NUMBERS = 8


def block_norms(results: SpectraFile) -> Figure:
    """Frobenius norm of each block of the mean, a row and a column a parameter."""
    norms = np.asarray(results.arrays["layers/block_norms"], float)
    names = [literal(short(str(name))) for name in results.arrays["parameters/names"]]
    num_layers = len(norms)
    height = min(max(4.5, 2.0 + 0.19 * num_layers), 11.0)
    figure = new_figure(context_of(results), width=max(8.0, 1.25 * height), height=height)
    axes = figure.add_subplot()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    shown = np.ma.masked_less_equal(norms, 0.0)
    axes.set_facecolor(PALE)
    if shown.count() == 0:
        axes.imshow(shown, cmap=HEAT, aspect="auto")
        say(axes, "all blocks are zero")
    else:
        low, high = float(shown.min()), float(shown.max())
        low = max(low, high * 1e-8)  # blocks that are rounding error must not take the colors of the others
        low = low if low < high else high / 10
        image = axes.imshow(shown, cmap=HEAT, norm=LogNorm(low, high), aspect="auto")
        bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=25)
        bar.set_label(r"norm of the block $\|H_{ij}\|_F$")
        bar.outline.set_visible(False)
        log_labels(bar.ax.yaxis, low, high)
        if num_layers <= MOST_NUMBERS:
            annotate(axes, image, shown, np.vectorize(lambda norm: number(float(norm), 3))(norms))
    _name_axes(axes, names)
    return figure


def _name_axes(axes: Any, names: list[str]) -> None:
    stride = -(-len(names) // MOST_LABELS)
    places = range(0, len(names), stride)
    labels = names[::stride]
    size = 10 if len(names) <= 12 else 8 if len(names) <= 30 else 7
    axes.set_yticks(places, labels, fontsize=size)
    characters = 60 / len(names)  # that fit under one column
    if max(map(len, labels)) <= characters:
        axes.set_xticks(places, labels, fontsize=size)
    elif len(names) <= 12:
        axes.set_xticks(places, labels, fontsize=size, rotation=35, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(places, labels, fontsize=size, rotation=90)
    axes.tick_params(length=0)
