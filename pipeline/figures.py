"""The figures of a run: which there are, how each is read, and the PNG files they become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Picture:
    """A kind of figure.

    name: of its file. reading: one line on how to read it. absent: why it may be missing.
    """

    name: str
    title: str
    reading: str
    absent: str = ""


@dataclass(frozen=True)
class Drawn:
    """A figure on disk, or none (`path` is None). `step` is None where it covers the whole run."""

    picture: Picture
    step: int | None
    path: Path | None = None
    width: int = 0
    height: int = 0


DENSITY = Picture(
    "density",
    "Density of the spectrum of the mean",
    "Where the eigenvalues lie, negative ones left of zero: the tall part around zero is the bulk, single "
    "bumps over orange marks are outliers. Thin grey lines: the spectrum of each batch, a different object, "
    "drawn where Lanczos resolves it.",
    "No density was computed for this choice of spectrum.",
)
BY_RANK = Picture(
    "eigenvalues",
    "Eigenvalues of the mean by rank",
    "Sizes of the positive (blue) and the negative (orange) eigenvalues from the largest down; a drop "
    "separates outliers from the bulk; what lies under the dashed line cannot be told from rounding error.",
)
BLOCK_NORMS = Picture(
    "block_norms",
    "Block norms by layer",
    "How strongly two parameters interact: the norm of the second derivatives by the weights of the one and "
    "of the other; where the diagonal is much brighter than the rest, layers are nearly independent.",
)
SPREAD = Picture(
    "batches",
    "Spread between batches",
    "Left: top eigenvalues of each batch (dots) beside those of the mean (lines). Middle: how far each "
    "batch's matrix is from the mean. Right: 1 where two batches share their top eigenspace, 0 where they "
    "are orthogonal.",
    "There is one batch: it is its own mean.",
)
TRAINING = Picture(
    "training",
    "Training curve",
    "Loss and accuracy on training and test samples; dotted lines mark the steps that have a spectrum.",
    "Nothing was trained in this folder: it has no training history.",
)
ALONG_STEPS = Picture(
    "steps",
    "Largest eigenvalue, trace and effective rank",
    "The largest eigenvalue is the sharpest direction, the trace the sum of all, the effective rank over how many "
    "directions the curvature is spread.",
)
DENSITIES = Picture(
    "density_steps",
    "Density of the spectrum as it evolves",
    "A row a step, bright where many eigenvalues lie, grey where there is none; orange marks are the top eigenvalues, "
    "which leave the bulk as classes are learnt.",
    "No density was computed for this choice of spectrum.",
)
OVERLAPS = Picture(
    "overlap_steps",
    "Overlap of top eigenspaces between steps",
    "1 where two steps have the same sharp directions, near 0 where those have turned away; a bright square means "
    "that the directions have settled.",
)
OF_A_STEP: tuple[tuple[Picture, Callable[[Results], Figure | None]], ...] = (
    (DENSITY, density),
    (BY_RANK, by_rank),
    (BLOCK_NORMS, block_norms),
    (SPREAD, spread),
)


def draw_figures(
    results: Mapping[int, Results], history: Mapping[str, Array], limit: Limit, folder: Path
) -> Iterator[Drawn]:
    """Draw and save the figures of a run into `folder`, yielding each as it is done.

    results: by step, ascending; the last one has figures of its own, all together have those of the evolution.
    history: as `training_curve` takes it; empty if there is none. limit: the line beside the largest eigenvalues.
    """
    last = max(results)
    for picture, draw in OF_A_STEP:
        yield _save(picture, last, folder, draw, results[last])
    yield _save(TRAINING, None, folder, training_curve, history, list(results))
    yield _save(ALONG_STEPS, None, folder, along_steps, results, limit)
    yield _save(DENSITIES, None, folder, densities_along, results)
    yield _save(OVERLAPS, None, folder, overlaps_along, results)


NUM_FIGURES = len(OF_A_STEP) + 4


def _save(
    picture: Picture, step: int | None, folder: Path, draw: Callable[..., Figure | None], *material: object
) -> Drawn:
    path = folder / f"{picture.name}.png"
    with style():
        figure = draw(*material)
        if figure is None:
            path.unlink(missing_ok=True)  # one of an earlier report would be taken for one of this
            return Drawn(picture, step)
        return Drawn(picture, step, path, *save_png(figure, path))
