"""What is differentiated: a model on its device, the samples in batches, and the criterion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.objective.batch import Batch
from pipeline.objective.checkpoints import evidence_in, load_weights
from pipeline.objective.evaluation import observe
from pipeline.objective.fit import check_fit
from pipeline.objective.objective import Criterion, layout_of
from pipeline.objective.observation import hashes_of
from pipeline.system import check_evidence
from pipeline.validation import check_count


@dataclass(frozen=True)
class Problem:
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
        train: Batch,
        test: Batch | None,
        batch_size: int | None,
    ) -> Problem:
        """Bring all of it to the device.

        Raises:
            PipelineError: the model cannot read the samples, the criterion cannot judge its outputs, or batch_size
                is no number.
        """
        check_count("data.batch_size", batch_size, or_null="all samples in one batch")
        model = model.to(device, dtype).eval()
        if isinstance(criterion, nn.Module):
            criterion = criterion.to(device, dtype)
        train = train.to(device, dtype)
        test = test.to(device, dtype) if test is not None else None
        check_fit(model, criterion, train)
        return Problem(model, criterion, train, test, batch_size)

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
        if evidence := evidence_in(checkpoint):
            check_evidence(
                checkpoint, evidence, {**self.hashes, **observe(self.model, self.criterion, self.train)}
            )

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return next(value.dtype for value in self.model.parameters() if value.is_floating_point())

    def layout(self, parameters: Sequence[str] | None) -> Layout:
        """The weights that the matrix is taken by; their shapes are read and nothing is copied."""
        return layout_of(self.model, parameters)

    def batches(self, num_batches: int | None, seed: int) -> list[Batch]:
        """The batches of training samples whose matrices are taken, see `split`."""
        return split(self.train, self.batch_size, num_batches, seed)


def split(samples: Batch, batch_size: int | None, num_batches: int | None, seed: int) -> list[Batch]:
    """The first `num_batches` batches of the samples in an order drawn from `seed`; the last one may be smaller.

    Batch i is the same whatever `num_batches` is. None means all samples in one batch, and all batches.

    Raises:
        PipelineError: there are fewer batches than asked for.
    """
    n = samples.num_samples
    size = min(batch_size or n, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    parts = order.split(size)
    if num_batches is not None and num_batches > len(parts):
        raise PipelineError(
            f"num_batches={num_batches}: {n} training samples make {len(parts)} batches of {size}: "
            "lower num_batches or data.batch_size."
        )
    return [_take(samples, part) for part in parts[:num_batches]]


def _take(samples: Batch, indices: Tensor) -> Batch:
    return Batch(*pytree.tree_map(lambda value: _rows(value, indices), tuple(samples)))


def _rows(value: Any, indices: Tensor) -> Any:
    return value[indices.to(value.device)] if isinstance(value, Tensor) else value
