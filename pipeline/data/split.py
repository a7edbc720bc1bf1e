"""What every dataset here shares: the options, and the split into training and test samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.samples import Samples, as_samples, count_outputs
from pipeline.errors import PipelineError
from pipeline.objective import Batch
from pipeline.validation import check_count, check_counts, check_number

Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SplitDataset:
    """Samples that come in one piece, split by a seeded order: test samples first, then training samples.

    batch_size: samples of one batch whose Hessian is taken; null takes all of them as one batch.
    input_shape: each sample is reshaped to it; null leaves samples as they are.
    num_outputs: null counts them, see `Samples`.
    test_fraction: of all samples, in [0, 1).
    split_seed: of the order. The seed of the run does not change it, so that runs compare.
    num_samples: training samples, the first ones of the order; null takes all. Test samples stay the same.
    """

    batch_size: int | None = 256
    input_shape: Sequence[int] | None = None
    num_outputs: int | None = None
    test_fraction: float = 0.2
    split_seed: int = 0
    num_samples: int | None = None

    def __post_init__(self) -> None:
        check_count("data.batch_size", self.batch_size, or_null="all samples in one batch")
        if self.input_shape is not None:
            check_counts("data.input_shape", self.input_shape)
        check_count("data.num_outputs", self.num_outputs, or_null="counted")
        check_number("data.test_fraction", self.test_fraction, minimum=0, below=1)
        check_count("data.split_seed", self.split_seed, minimum=0)
        check_count("data.num_samples", self.num_samples, or_null="all")

    def order(self, num_samples: int, test_fraction: float | None = None) -> tuple[Numbers, Numbers]:
        """The numbers of the test samples and of the training samples, in the order in which they are taken.

        test_fraction: None takes the option.

        Raises:
            PipelineError: no sample is left for training, or fewer than asked for.
        """
        fraction = self.test_fraction if test_fraction is None else test_fraction
        order = np.random.default_rng(self.split_seed).permutation(num_samples)
        num_test = round(fraction * num_samples)
        num_train = num_samples - num_test if self.num_samples is None else self.num_samples
        if not 0 < num_train <= num_samples - num_test:
            raise PipelineError(
                f"data: {num_samples} samples with data.test_fraction={fraction} leave "
                f"{num_samples - num_test} for training, data.num_samples={self.num_samples}: give "
                f"more samples or lower one of the two."
            )
        return order[:num_test], order[num_test : num_test + num_train]

    def split(self, inputs: NDArray[np.generic], targets: NDArray[np.generic]) -> Samples:
        """Samples of inputs (N, ...) and targets (N, ...), which are labels where they are integers.

        Raises:
            PipelineError: lengths differ, or an option does not fit the data.
        """
        if len(inputs) != len(targets):
            raise PipelineError(
                f"data: lengths differ ({len(inputs)} inputs, {len(targets)} targets): "
                f"give one target for each sample."
            )
        test_numbers, train_numbers = self.order(len(inputs))
        x, y = self.reshaped(torch.from_numpy(inputs)), torch.from_numpy(targets)
        test, train = (Batch(x[part], y[part]) for part in (test_numbers, train_numbers))
        num_outputs = count_outputs(y) if self.num_outputs is None else self.num_outputs
        self.check_width(y, num_outputs)
        shape = tuple(x.shape[1:])
        return as_samples(Samples(train, test if len(test_numbers) else None, shape, num_outputs))

    def reshaped(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs (N, *input_shape); as they are where the option is null.

        Raises:
            PipelineError: a sample has another number of numbers.
        """
        if self.input_shape is None:
            return inputs
        shape = tuple(self.input_shape)
        if prod(shape) != prod(inputs.shape[1:]):
            raise PipelineError(
                f"data.input_shape={list(shape)} has {prod(shape)} numbers, but a sample has "
                f"{prod(inputs.shape[1:])} (shape {tuple(inputs.shape[1:])}): choose a shape of that size."
            )
        return inputs.reshape(len(inputs), *shape)

    @staticmethod
    def check_width(targets: torch.Tensor, num_outputs: int) -> None:
        """Refuse values of another width than `num_outputs`."""
        if targets.is_floating_point() and count_outputs(targets) != num_outputs:
            raise PipelineError(
                f"data.num_outputs={num_outputs}, but a target has {count_outputs(targets)} numbers: "
                f"leave it null."
            )
