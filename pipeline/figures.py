"""The figures of a run as PNG files, for papers, slides and the tracker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from pipeline.figure_batches import spread
from pipeline.figure_evolution import along_steps, densities_along, overlaps_along
from pipeline.figure_layers import block_norms
from pipeline.figure_slices import landscape
from pipeline.figure_spectrum import by_rank, density
from pipeline.figure_style import save_png, style
from pipeline.figure_training import training_curve

if TYPE_CHECKING:
    from pipeline.findings import Findings
    from pipeline.spectra_file import SpectraFile

Draw = Callable[[], Figure | None]
OF_A_STEP: dict[str, Callable[[SpectraFile], Figure | None]] = {
    "density": density,
    "eigenvalues": by_rank,
    "block_norms": block_norms,
    "batches": spread,
}


def figures_of(found: Findings) -> dict[str, Draw]:
    """How each figure of a run is drawn, by name; one that has nothing to show draws None.

    The last step has figures of its own, all steps together have those of the evolution.
    """
    of_a_step: dict[str, Draw] = {name: partial(draw, found.last) for name, draw in OF_A_STEP.items()}
    return of_a_step | {
        "landscape": lambda: landscape(found.last, found.slices.get(found.last_step)),
        "training": lambda: training_curve(found.history, list(found.results)),
        "steps": lambda: along_steps(found.results, found.limit),
        "density_steps": lambda: densities_along(found.results),
        "overlap_steps": lambda: overlaps_along(found.results),
    }


def save_figures(figures: Mapping[str, Draw], folder: Path) -> Iterator[Path]:
    """Draw and save the figures into `folder`, yielding the file of each; one that draws None has none."""
    for name, draw in figures.items():
        path = folder / f"{name}.png"
        with style():
            figure = draw()
            if figure is None:
                path.unlink(missing_ok=True)  # one of an earlier report would be taken for one of this
            else:
                save_png(figure, path)
        yield path
