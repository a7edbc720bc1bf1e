"""The loss along the top eigenvectors: on a line along each of them, and on the plane of the first two.

This is the torch half of it: it needs the model, the samples, and the eigenvectors that aggregation found, and leaves a
small file, so that figures and page need no torch.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline.compute.batch_terms import reduction_of, weighting_of_batches
from pipeline.errors import PipelineError
from pipeline.experiment import Experiment
from pipeline.objective import Batch, Criterion, Params, flatten, load_weights, objective_of
from pipeline.results import LandscapeFile, Lines, Plane, SpectraFile
from pipeline.system import RunFolder, progress

NUM_LINES = 3
NUM_AT_ONCE = 4096  # samples: as many as training evaluates at a time, which bounds memory
AGREEMENT = 1e-3  # relative: so far the loss of joined batches may be from the one that the shards tell
Losses = NDArray[np.float64]


@dataclass(frozen=True)
class Landscape:
    """What `slice_step` looks at: a model, its loss, and the batches that the matrix is of.

    num_points: on each line, at most; the plane has the square of half as many.
    """

    model: nn.Module
    criterion: Criterion
    batches: Sequence[Batch]
    parameters: Sequence[str] | None
    num_points: int


def compute_slices(folder: RunFolder, experiment: Experiment, num_points: int) -> None:
    """The slices stage: one file for each step that has a spectrum.

    Raises:
        PipelineError: as `slice_steps`, or a checkpoint is of another experiment.
    """
    problem = experiment.problem
    for path in map(folder.checkpoint, folder.spectrum_steps()):
        if path.exists():
            problem.load(path)  # refuses those of another experiment, also where nothing is to do
    about = (problem.model, problem.criterion, experiment.batches(), experiment.matrix.parameters)
    for _ in slice_steps(folder, Landscape(*about, num_points)):
        pass


def slice_steps(folder: RunFolder, landscape: Landscape) -> Iterator[tuple[int, LandscapeFile]]:
    """Write the slices of each step that has a spectrum and give them; those that are there are taken as they are.

    Raises:
        PipelineError: there are no spectra, or no weights, of a step.
    """
    steps = folder.spectrum_steps()
    if not steps:
        raise PipelineError(f"{folder.spectra} has no eigenvectors: run the stage aggregate before slices.")
    for step in progress(steps, "loss along eigenvectors"):
        spectra, path = SpectraFile.read(folder.spectrum(step)), folder.slices(step)
        identity = (step, spectra.inputs_hash, landscape.num_points)
        file = LandscapeFile.read_if_sound(path)
        if file is None or (file.step, file.inputs_hash, file.num_points) != identity:
            load_weights(folder.checkpoint(step), landscape.model)
            file = LandscapeFile(*identity, *_slices(landscape, spectra, _largest_loss(folder)))
            file.write(path)
        yield step, file


def _slices(landscape: Landscape, spectra: SpectraFile, reference: float) -> tuple[Lines, Plane | None]:
    """Distances and losses on the lines and on the plane.

    A line reaches as far as the quadratic ½λt² gains what training took from the loss, and at most ‖θ‖.
    Cost: k n + m² losses of all samples in float64, 249 for n = 27; no derivative.
    """
    mean, loss_there = spectra.mean, float(spectra.numbers["loss"])
    eigenvalues = mean.top_eigenvalues[:NUM_LINES].astype(float)
    vectors = mean.top_eigenvectors[:, :NUM_LINES].astype(float)
    loss, weights = _loss_of(landscape, loss_there)
    gain = max(reference, loss_there)
    furthest = float(np.linalg.norm(weights)) or 1.0
    reaches = [min(np.sqrt(2 * gain / abs(value)), furthest) if value else furthest for value in eigenvalues]
    places = np.linspace(-1, 1, landscape.num_points | 1)  # odd: zero is one of them
    distances = np.array([reach * places for reach in reaches])
    losses = [[loss(weights + t * v) for t in line] for line, v in zip(distances, vectors.T, strict=True)]
    lines = Lines(eigenvalues, vectors.T @ mean.gradient.astype(float), distances, np.array(losses))
    if len(eigenvalues) < 2:
        return lines, None
    side = np.linspace(-1, 1, (landscape.num_points // 2) | 1)
    first, second = reaches[0] * side, reaches[1] * side
    starts = [weights + s * vectors[:, 1] for s in second]
    plane = [[loss(start + t * vectors[:, 0]) for t in first] for start in starts]
    return lines, Plane(first, second, np.array(plane))


def _loss_of(landscape: Landscape, recorded_loss: float) -> tuple[Callable[[Losses], float], Losses]:
    """The loss of all batches as a function of the flat weights, in float64, and the weights of now.

    Many batches are taken at once where that gives the recorded loss; where samples of a batch mix, it does not,
    and the batches go one by one.
    """
    objective, params = objective_of(
        landscape.model, landscape.criterion, landscape.parameters, torch.float64
    )
    batches = [batch.to(dtype=torch.float64) for batch in landscape.batches]
    weights = flatten(params)
    together = joined(batches, NUM_AT_ONCE)
    reduction = reduction_of(objective, params, batches[0])

    def loss(flat: Losses, parts: Sequence[Batch]) -> float:
        at = _unflatten(torch.from_numpy(flat).to(weights), params)
        weighting = weighting_of_batches(landscape.criterion, reduction, parts)
        with torch.no_grad():
            values = [np.asarray(float(objective.loss(at, part))) for part in parts]
        return float(weighting.mean(values))

    now = weights.cpu().numpy()
    one_pass = abs(loss(now, together) - recorded_loss) <= AGREEMENT * abs(recorded_loss)
    parts = together if one_pass else batches
    return lambda flat: loss(flat, parts), now


def joined(batches: Sequence[Batch], most: int | None) -> list[Batch]:
    """The same samples in fewer batches: one, or some of at most so many samples unless one batch alone has more."""
    groups: list[list[Batch]] = []
    for batch in batches:
        if groups and (most is None or sum(each.num_samples for each in [*groups[-1], batch]) <= most):
            groups[-1].append(batch)
        else:
            groups.append([batch])
    return [Batch(*pytree.tree_map(_concatenated, *[tuple(batch) for batch in group])) for group in groups]


def _concatenated(*values: Any) -> Any:
    return torch.cat(values) if isinstance(values[0], Tensor) else values[0]


def _unflatten(flat: Tensor, params: Params) -> Params:
    sizes = [value.numel() for value in params.values()]
    parts = flat.split(sizes)
    return {name: part.view_as(value) for (name, value), part in zip(params.items(), parts, strict=True)}


def _largest_loss(folder: RunFolder) -> float:
    """The largest training loss that was seen along training; 0 where nothing was trained."""
    if not folder.history.exists():
        return 0.0
    with folder.history.open(newline="", encoding="utf-8") as file:
        return max(
            (float(row["train_loss"]) for row in csv.DictReader(file) if row.get("train_loss")), default=0.0
        )
