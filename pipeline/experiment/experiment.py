"""An experiment as objects: the problem, which matrix is computed of each batch, and what a run does with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.config import Blocks, Keep, Stage, Verify, config_hash
from pipeline.layout import Layout
from pipeline.matrix import Matrix
from pipeline.objective import Batch, Problem
from pipeline.spectrum import SpectrumMethod
from pipeline.storage import AS_COMPUTED, Storage
from pipeline.strategy import Gram, MatrixFree, Strategy
from pipeline.system import git_commit, machine


@dataclass(frozen=True)
class MatrixSpec:
    """Which matrix is computed of each batch, by which strategy, and how it is stored.

    parameters: names or globs of the weights to differentiate by; None for all that require grad.
    verify: what becomes of a matrix that fails its certificate.
    blocks: all of the matrix, or the diagonal blocks of the layers alone.
    keep: the matrix of each batch, or the mean of all alone.
    settings: the resolved config, of which `hash` covers what a shard's numbers depend on.
    """

    matrix: Matrix
    strategy: Strategy | MatrixFree | Gram
    parameters: Sequence[str] | None = None
    verify: Verify = Verify.error
    blocks: Blocks = Blocks.all
    storage: Storage = AS_COMPUTED
    keep: Keep = Keep.all
    settings: Mapping[str, Any] = field(default_factory=dict)

    def hash(self) -> str:
        """16 hexadecimal digits: two shards are of one config if these agree."""
        return config_hash(self.settings)

    @property
    def is_computed(self) -> bool:
        """Whether there are matrices; else spectra are all that is computed."""
        return not isinstance(self.strategy, MatrixFree | Gram)

    @property
    def computed_by(self) -> Strategy:
        """The strategy, where matrices are computed."""
        assert not isinstance(self.strategy, MatrixFree | Gram), "no matrix is computed"
        return self.strategy

    def keeps_mean(self, num_batches: int) -> bool:
        """Whether a batch's matrix goes when it has been added to the mean; that of one batch is the mean."""
        return self.keep is Keep.mean and num_batches > 1


@dataclass(frozen=True)
class Experiment:
    """What a run computes, built once from its config, and once in each worker.

    last_step: of training. checkpoint_steps: further steps at which matrices are taken.
    num_batches: the first so many; None takes all. slice_points: of the loss along an eigenvector; None for no slices.
    recipe: what a worker builds the same experiment from: settings, and the checksums of the samples.
    """

    problem: Problem
    matrix: MatrixSpec
    spectrum: SpectrumMethod
    checkpoint_steps: Sequence[int]
    last_step: int
    num_batches: int | None
    seed: int
    slice_points: int | None
    stages: frozenset[Stage]
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def layout(self) -> Layout:
        """The rows and columns of the matrix."""
        return self.problem.layout(self.matrix.parameters)

    def environment(self) -> dict[str, str]:
        """Commit, machine, device and threads with which this process computes."""
        weight = next(self.problem.model.parameters(), None)
        on_gpu = weight is not None and weight.is_cuda
        commit = git_commit()
        return {
            **({"commit": commit} if commit else {}),
            **machine(),
            "device": torch.cuda.get_device_name(weight.device) if weight is not None and on_gpu else "cpu",
            "threads": str(torch.get_num_threads()),
        }

    def batches(self) -> list[Batch]:
        """The batches whose matrices are taken.

        Raises:
            PipelineError: there are fewer than asked for.
        """
        return self.problem.batches(self.num_batches, self.seed)
