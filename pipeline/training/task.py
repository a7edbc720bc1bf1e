"""What every training does besides its steps: check its arguments, measure, and write checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.errors import PipelineError
from pipeline.objective import (
    Batch,
    Criterion,
    check_fit,
    evaluate,
    evidence_in,
    hashes_of,
    load_state,
    observe,
    put_weights,
    save_weights,
)
from pipeline.system import Evidence, OtherExperiment, RunFolder, check_evidence
from pipeline.training.history import Row
from pipeline.validation import check_count, check_counts


@dataclass(frozen=True)
class TrainingTask:
    """The arguments of `Training.run`."""

    model: nn.Module
    criterion: Criterion
    train: Batch
    test: Batch | None
    folder: RunFolder
    checkpoint_steps: Sequence[int]
    seed: int
    log: Callable[[int, dict[str, float]], None]

    def check(self, last_step: int) -> None:
        """Refuse what would fail later.

        Raises:
            PipelineError: a checkpoint is asked for that is no step, or model, criterion and data do not fit.
        """
        check_count("seed", self.seed, minimum=0)
        for step in check_counts("checkpoint_steps", self.checkpoint_steps, minimum=0):
            if step > last_step:
                raise PipelineError(
                    f"checkpoint_steps={list(self.checkpoint_steps)}: this training ends at step "
                    f"{last_step}: leave out step {step}, or train longer (training.num_steps)."
                )
        for part in (self.train, self.test):
            if part is not None:
                check_fit(self.model, self.criterion, part)

    def measure(self, step: int) -> Row:
        """Losses and accuracies over all training and test samples.

        Raises:
            PipelineError: a loss is NaN or infinite.
        """
        row: Row = {}
        for name, part in {"train": self.train, "test": self.test}.items():
            if part is not None:
                row[f"{name}_loss"], row[f"{name}_accuracy"] = evaluate(self.model, self.criterion, part)
                self.check_loss(step, row[f"{name}_loss"])
        return row

    def check_loss(self, step: int, loss: float | None) -> None:
        if loss is not None and not isfinite(loss):
            raise PipelineError(
                f"training: at step {step} the loss is {loss}: lower training.learning_rate, or look for "
                f"extreme values in the data; earlier checkpoints are kept in {self.folder.checkpoints}."
            )

    def save(self, step: int) -> None:
        save_weights(self.folder.checkpoint(step), self.model, self.evidence())

    def evidence(self) -> dict[str, Any]:
        """Of the samples, and of model and criterion at the weights of now."""
        return {**self._hashes, **observe(self.model, self.criterion, self.train)}

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return hashes_of(self.train, self.test)

    def check_evidence(self, source: Path, recorded: Evidence) -> None:
        """Refuse weights, which the model has now, of another experiment.

        Raises:
            OtherExperiment: `recorded` was taken of other samples, or of another model or criterion.
        """
        if recorded:
            check_evidence(source, recorded, self.evidence())

    def check_folder(self) -> None:
        """Refuse to begin where checkpoints of another experiment are; the model keeps its weights.

        Raises:
            OtherExperiment: data, model or criterion differ.
        """
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        for step in self.folder.checkpoint_steps():
            path = self.folder.checkpoint(step)
            try:
                put_weights(load_state(path), self.model, str(path))
                self.check_evidence(path, evidence_in(path))
            except OtherExperiment:
                raise
            except PipelineError:  # damaged, or from elsewhere: replaced, or told by the stage that needs it
                continue
            finally:
                put_weights(own, self.model, "the model")
