"""Gradient descent brings the largest Hessian eigenvalue to 2/η and keeps it there: the verdict on a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.errors import PipelineError
from pipeline.results import Check, Outcome, Panel, Series, open_run
from pipeline.shards import Array
from pipeline.system import RunFolder
from pipeline.validation import check_count, check_number


@dataclass(frozen=True)
class EdgeOfStability:
    """λmax against 2/η, from the spectra that a run of `training=gd` has left.

    learning_rate: η of the training. first_step: from which on λmax is taken to have come to rest.
    """

    TITLE: ClassVar[str] = "The edge of stability of gradient descent"
    SOURCE: ClassVar[str] = "Cohen, Kaur, Li, Kolter and Talwalkar 2021, arXiv:2103.00065"

    learning_rate: float
    first_step: int = 1500

    def __post_init__(self) -> None:
        check_number("law.learning_rate", self.learning_rate, above=0)
        check_count("law.first_step", self.first_step, minimum=0)

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: none; the spectra of the run are read.

        Raises:
            PipelineError: fewer than two steps from first_step on have spectra.
        """
        spectra = open_run(folder.path).spectra
        steps = np.array(sorted(spectra))
        late = steps >= self.first_step
        if late.sum() < 2:
            raise PipelineError(
                f"law=edge_of_stability needs spectra of two steps from {self.first_step} on, and {folder.path} has "
                f"{int(late.sum())}: give later checkpoint_steps, or a smaller law.first_step."
            )
        largest = np.array([spectra[step].numbers["lambda_max"] for step in steps])
        losses = np.array([spectra[step].numbers["loss"] for step in steps])
        edge = 2 / self.learning_rate
        ratios = largest[late] / edge
        mean, farthest = float(ratios.mean()), float(ratios[np.abs(ratios - 1).argmax()])
        since = f"from step {self.first_step} on"
        checks = [
            Check("mean_ratio", f"η λmax / 2, mean {since}", mean, "=", 1.0, 0.05),
            Check("farthest_ratio", f"η λmax / 2, farthest from 1 {since}", farthest, "=", 1.0, 0.1),
            Check(
                "loss", f"last loss / loss at the first step {since}", losses[-1] / losses[late][0], "≤", 0.9
            ),
        ]
        sentence = (
            f"{since.capitalize()} λmax is {mean:.3f} · 2/η = {mean * edge:.3g} in the mean, and the loss falls to "
            f"{checks[-1].measured:.2f} of what it was."
        )
        return Outcome(sentence, checks, _panels(steps, largest, losses, edge))


def _panels(steps: Array, largest: Array, losses: Array, edge: float) -> list[Panel]:
    eigenvalues = [
        Series("λmax", steps, largest, "points"),
        Series("2/η", steps[[0, -1]], [edge, edge], "dashes"),
    ]
    return [
        Panel("Largest eigenvalue", "step", "λmax", eigenvalues, "λmax comes to 2/η and stays near it."),
        Panel(
            "Loss", "step", "loss", [Series("loss", steps, losses)], "The loss while λmax is near 2/η.", "y"
        ),
    ]
