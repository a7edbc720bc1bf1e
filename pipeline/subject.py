"""What is differentiated: a model on its device, the samples, and the criterion."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from pipeline.checkpoints import evidence_in, load_weights
from pipeline.data import Samples
from pipeline.evidence import check_evidence
from pipeline.layout import Layout
from pipeline.objective import Batch, Criterion, objective_of
from pipeline.observation import hashes_of
from pipeline.options import check_count
from pipeline.training import check_fit, observe


@dataclass(frozen=True)
class Subject:
    """Model and samples on one device and in one dtype; the model is in eval mode.

    batch_size: samples of one Hessian; None takes all training samples as one batch.
    """

    model: nn.Module
    criterion: Criterion
    train: Batch
    test: Batch | None
    batch_size: int | None

    @staticmethod
    def on(
        device: torch.device,
        dtype: torch.dtype,
        model: nn.Module,
        criterion: Criterion,
        samples: Samples,
        batch_size: int | None,
    ) -> Subject:
        """Bring all of it to the device.

        Raises:
            PipelineError: the model cannot read the samples, the criterion cannot judge its outputs, or batch_size
                is no number.
        """
        check_count("data.batch_size", batch_size, or_null="all samples in one batch")
        model = model.to(device, dtype).eval()
        if isinstance(criterion, nn.Module):
            criterion = criterion.to(device, dtype)
        train = samples.train.to(device, dtype)
        test = samples.test.to(device, dtype) if samples.test is not None else None
        check_fit(model, criterion, train)
        return Subject(model, criterion, train, test, batch_size)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Checksums of the training samples and of the test samples."""
        return hashes_of(self.train, self.test)

    def load(self, checkpoint: Path) -> None:
        """Put the weights of a checkpoint of the run folder into the model.

        Raises:
            PipelineError: they cannot be read, do not fit, or belong to other samples, another model or criterion.
        """
        load_weights(checkpoint, self.model)
        if told := evidence_in(checkpoint):
            check_evidence(
                checkpoint, told, {**self.hashes, **observe(self.model, self.criterion, self.train)}
            )

    def layout(self, parameters: list[str] | None) -> Layout:
        """The weights that the matrix is taken by."""
        return Layout.of(objective_of(self.model, self.criterion, parameters)[1])
