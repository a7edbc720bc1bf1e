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
from pipeline.figure_spectrum import by_rank, density
from pipeline.figure_style import Array, save_png, style
from pipeline.figure_training import training_curve

if TYPE_CHECKING:
    from pipeline.evolution import Limit
    from pipeline.hdf5 import Results

Draw = Callable[[], Figure | None]
OF_A_STEP: dict[str, Callable[[Results], Figure | None]] = {
    "density": density,
    "eigenvalues": by_rank,
    "block_norms": block_norms,
    "batches": spread,
}


def figures_of(results: Mapping[int, Results], history: Mapping[str, Array], limit: Limit) -> dict[str, Draw]:
    """How each figure of a run is drawn, by name; one that has nothing to show draws None.

    results: by step, ascending; the last one has figures of its own, all together have those of the evolution.
    history: as `training_curve` takes it; empty if there is none. limit: the line beside the largest eigenvalues.
    """
    last = results[max(results)]
    of_a_step: dict[str, Draw] = {name: partial(draw, last) for name, draw in OF_A_STEP.items()}
    return of_a_step | {
        "training": lambda: training_curve(history, list(results)),
        "steps": lambda: along_steps(results, limit),
        "density_steps": lambda: densities_along(results),
        "overlap_steps": lambda: overlaps_along(results),
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
