"""The figures of a run: which there are, how each is read, and the PNG files they become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from pipeline.figure_batches import spread
from pipeline.figure_layers import block_norms
from pipeline.figure_spectrum import by_rank, density
from pipeline.figure_style import Array, save_png, style
from pipeline.figure_training import along_steps, training_curve

if TYPE_CHECKING:
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
)
TRAINING = Picture(
    "training",
    "Training curve",
    "Loss and accuracy on training and test samples; dotted lines mark the steps that have a spectrum.",
    "Nothing was trained in this folder: it has no training history.",
)
ALONG_STEPS = Picture(
    "steps",
    "Largest eigenvalue and trace",
    "Largest eigenvalue and trace of the mean matrix at each step for which a spectrum was taken.",
)
OF_A_STEP: tuple[tuple[Picture, Callable[[Results], Figure | None]], ...] = (
    (DENSITY, density),
    (BY_RANK, by_rank),
    (BLOCK_NORMS, block_norms),
    (SPREAD, spread),
)


def draw_figures(
    results: Mapping[int, Results], history: Mapping[str, Array], folder: Path
) -> Iterator[Drawn]:
    """Draw and save all figures of a run into `folder`, yielding each as it is done.

    results: by step, ascending. Figures of the last step have plain names (density.png), so that runs can be
    compared file by file; those of earlier steps say the step (step-000100-density.png).
    history: as `training_curve` takes it; empty if there is none.
    """
    last = max(results)
    for step, each in results.items():
        for picture, draw in OF_A_STEP:
            name = picture.name if step == last else f"step-{step:06d}-{picture.name}"
            yield _save(picture, step, folder / f"{name}.png", draw, each)
    yield _save(TRAINING, None, folder / "training.png", training_curve, history, list(results))
    yield _save(ALONG_STEPS, None, folder / "steps.png", along_steps, results)


def num_figures(num_steps: int) -> int:
    """How many `draw_figures` yields."""
    return len(OF_A_STEP) * num_steps + 2


def _save(
    picture: Picture, step: int | None, path: Path, draw: Callable[..., Figure | None], *material: object
) -> Drawn:
    with style():
        figure = draw(*material)
        if figure is None:
            path.unlink(missing_ok=True)  # one of an earlier report would be taken for one of this
            return Drawn(picture, step)
        return Drawn(picture, step, path, *save_png(figure, path))
