"""The loss along the top eigenvectors, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from pipeline.figure_style import BLUE, GREEN, HEAT, VERMILLION, context_of, new_figure
from pipeline.report_words import number

if TYPE_CHECKING:
    from pipeline.spectra_file import LandscapeFile, SpectraFile

COLORS = (BLUE, VERMILLION, GREEN)


def landscape(results: SpectraFile, slices: LandscapeFile | None) -> Figure | None:
    """The loss on lines along the top eigenvectors and on the plane of two; None where it was not taken."""
    if slices is None or not np.isfinite(slices.arrays["lines/losses"]).any():
        return None
    two = "plane/losses" in slices.arrays
    figure = new_figure(context_of(results), width=10.0 if two else 6.0, height=4.4)
    panels = figure.subplots(1, 1 + two, squeeze=False)[0]
    _lines(panels[0], slices)
    if two:
        _plane(figure, panels[1], slices)
    return figure


def _lines(axes: Any, slices: LandscapeFile) -> None:
    losses = slices.arrays["lines/losses"]
    for i, (eigenvalue, color) in enumerate(zip(slices.arrays["lines/eigenvalues"], COLORS, strict=False)):
        distances = slices.arrays["lines/distances"][i]
        label = rf"$v_{i + 1}$, $\lambda$ = {number(float(eigenvalue), 3)}"
        axes.plot(distances, losses[i], color=color, label=label)
        axes.plot(distances, slices.lines.quadratic(i), color=color, linestyle=":", linewidth=1.3)
    high, low = float(np.nanmax(losses)), float(np.nanmin(losses))
    axes.set_ylim(low - 0.03 * (high - low), high + 0.05 * (high - low))
    axes.set(xlabel=r"distance $t$ from the weights", ylabel="loss (dotted: quadratic)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, columnspacing=1.0)


def _plane(figure: Figure, axes: Any, slices: LandscapeFile) -> None:
    first, second, losses = (slices.arrays[f"plane/{name}"] for name in ("first", "second", "losses"))
    seen = losses[np.isfinite(losses) & (losses > 0)]
    wide = len(seen) > 0 and seen.max() > 10 * seen.min()
    levels: Any = np.geomspace(seen.min(), seen.max(), 17) if wide else 16
    norm = LogNorm(seen.min(), seen.max()) if wide else None
    mesh = axes.contourf(first, second, losses, levels=levels, norm=norm, cmap=HEAT)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=25)
    bar.set_label("loss")
    if wide:
        ticks = np.geomspace(seen.min(), seen.max(), 5)
        bar.set_ticks(list(ticks), labels=[number(float(tick), 2) for tick in ticks])
        bar.minorticks_off()
    bar.outline.set_visible(False)
    axes.plot(0, 0, marker="+", markersize=11, markeredgewidth=2, color=VERMILLION)
    axes.grid(visible=False)
    axes.set(xlabel=r"distance $t_1$ along $v_1$", ylabel=r"distance $t_2$ along $v_2$")
