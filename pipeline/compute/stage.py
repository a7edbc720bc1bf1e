"""The compute stage: one shard for each batch, streamed to disk block by block as the strategy yields them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from pipeline.compute.batch_matrix import BatchMatrix
from pipeline.compute.batch_terms import terms_attribute
from pipeline.compute.distribution import Processes, RemoteShards
from pipeline.compute.identity import identity_of
from pipeline.compute.recipe import parts_of
from pipeline.compute.running_mean import keep_mean
from pipeline.errors import PipelineError
from pipeline.experiment import Experiment, MatrixSpec
from pipeline.objective import NUM_FIRST, Batch, Problem, hash_of, objective_of, observed
from pipeline.shards import TileGrid
from pipeline.system import RunFolder, progress

MEASURED = ("loss", "gradient_norm", "probe_error", "seconds")  # of each batch, for the tracker
log = logging.getLogger(__name__)


def compute(
    folder: RunFolder,
    experiment: Experiment,
    log_metrics: Callable[[dict[str, float], int], None],
    processes: Processes | None = None,
) -> None:
    """Shards: one for each batch at each checkpoint, or their mean alone.

    log_metrics: takes the numbers of a batch, and which one it is; those of later checkpoints are counted on.
    processes: compute shards elsewhere; they are checked here.

    Raises:
        PipelineError: the folder has no checkpoint, or one of another experiment.
    """
    steps = folder.checkpoint_steps()
    if not steps:
        raise PipelineError(
            f"{folder.checkpoints} holds no weights: add train to stages (training=none draws them)."
        )
    problem, spec, batches = experiment.problem, experiment.matrix, experiment.batches()
    keeps_mean = spec.keeps_mean(len(batches))
    grid = TileGrid.of(experiment.layout(), spec.storage.tile, spec.blocks.value)
    others = RemoteShards(processes, folder.transient_shard if keeps_mean else folder.shard, grid)
    for step in steps:  # all of them before anything is written
        problem.load(folder.checkpoint(step))
    if not keeps_mean:
        others.compute([(step, index) for step in steps for index in range(len(batches))])
    for step in steps:
        if len(steps) > 1:
            problem.load(folder.checkpoint(step))
        about = (folder, step, problem, batches, spec)
        if keeps_mean:
            made = keep_mean(folder, step, matrices_of(*about), partial(others.compute_next, step))
        else:
            made = compute_step(*about)
        for attrs in made:
            numbers = {f"per_batch/{key}": attrs[key] for key in MEASURED if key in attrs}
            log_metrics(numbers, steps.index(step) * len(batches) + attrs["batch_index"])


def compute_step(
    folder: RunFolder,
    step: int,
    problem: Problem,
    batches: Sequence[Batch],
    spec: MatrixSpec,
) -> Iterator[dict[str, Any]]:
    """Write the shards of one checkpoint that are not there yet; give the attributes of each batch's shard.

    Raises:
        PipelineError: a shard in the folder belongs to another config, experiment or other weights, the loss is not
            finite, the matrix holds NaN, or a file cannot be written.
    """
    matrices = matrices_of(folder, step, problem, batches, spec)
    found = [matrix.there() for matrix in matrices]  # all are looked at before one is written
    if there := len(found) - found.count(None):
        log.info("step %d: %d of %d shards are there already.", step, there, len(batches))
    for matrix, shard in zip(progress(matrices, f"Hessians at step {step}"), found, strict=True):
        yield shard.attrs if shard is not None else matrix.write()


def matrices_of(
    folder: RunFolder,
    step: int,
    problem: Problem,
    batches: Sequence[Batch],
    spec: MatrixSpec,
    only: int | None = None,
) -> list[BatchMatrix]:
    """What is to be computed at one checkpoint, a matrix a batch; or that of one batch only."""
    about = (problem.model, problem.criterion, spec.parameters)
    at = objective_of(*about)
    parts = parts_of(*about, spec.blocks)
    names = {**identity_of(problem, spec, at, step, batches[0]), "num_batches": len(batches)}
    first = observed("first", *at, batches[0].chunk(0, NUM_FIRST))
    place = folder.transient_shard if spec.keeps_mean(len(batches)) else folder.shard
    return [
        BatchMatrix(
            place(step, index),
            {
                **names,
                "batch_index": index,
                "num_samples": batch.num_samples,
                **terms_attribute(problem.criterion, names["reduction"], batch),
                "data_hash": hash_of(batch),
            },
            at,
            parts,
            batch,
            spec,
            first,
        )
        for index, batch in enumerate(batches)
        if only in (None, index)
    ]
