"""What is differentiated: a model on its device, the samples, and the criterion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pipeline.data import Samples
from pipeline.layout import Layout
from pipeline.objective import Batch, Criterion, objective_of
from pipeline.options import check_count
from pipeline.training import check_fit


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

    def layout(self, parameters: list[str] | None) -> Layout:
        """The weights that the matrix is taken by."""
        return Layout.of(objective_of(self.model, self.criterion, parameters)[1])
