"""What a run will take, said before it begins; what would not fit is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from pipeline.compute.cost_estimate import Plan, expected_seconds
from pipeline.config import Stage
from pipeline.experiment import Experiment
from pipeline.objective import Batch, describe, objective_of, suspicions
from pipeline.shards import file_size
from pipeline.strategy import STRATEGIES
from pipeline.system import RunFolder, available_memory, check_disk, check_memory, format_bytes
from pipeline.validation import name_of

log = logging.getLogger("pipeline")


def check_resources(folder: RunFolder, experiment: Experiment) -> None:
    """Say how large the matrices will be and what they will take, and refuse now what would not fit later.

    Raises:
        PipelineError: with P, the bytes needed, the bytes there, and what to do.
    """
    problem = experiment.problem
    log.info("%s", describe(problem.train, problem.test))
    for suspicion in suspicions(problem.train):
        log.warning("%s", suspicion)
    spec, spectrum, num_parameters = (
        experiment.matrix,
        experiment.spectrum,
        experiment.layout().num_parameters,
    )
    itemsize = experiment.problem.dtype.itemsize
    needs, batches, bytes_each, num_matrices = {}, [], 0, 0
    if Stage.compute in experiment.stages:
        batches = experiment.batches()
        steps = {*experiment.checkpoint_steps, experiment.last_step}
        num_matrices, num_files = _to_make(folder, steps, len(batches), spec.keeps_mean(len(batches)))
        stored = 4 if spec.storage.precision == "float32" else itemsize
        bytes_each = file_size(experiment.layout(), stored, spec.blocks.value, spec.storage.tile)
        check_disk(folder.path, num_parameters, bytes_each, num_files)
        name = name_of(spec.strategy, STRATEGIES)
        needs[f"strategy={name}"] = spec.strategy.memory(num_parameters, itemsize)
    if Stage.aggregate in experiment.stages:
        needs[f"spectrum={type(spectrum).__name__.lower()}"] = spectrum.memory(num_parameters, itemsize)
    check_memory(num_parameters, needs)
    log.info(
        "%s: P = %s weights, a matrix of %s; the run needs up to %s of memory for matrices, %s are free.",
        type(experiment.problem.model).__name__,
        f"{num_parameters:,}",
        format_bytes(num_parameters**2 * itemsize),
        format_bytes(max(needs.values(), default=0)),
        format_bytes(available_memory()),
    )
    if num_matrices > 0:
        plan, seconds = _work(experiment, batches[0])
        log.info(
            "to compute: %d %s of %s, %s on disk; about %s, and what the disk takes.",
            num_matrices,
            "matrix" if num_matrices == 1 else "matrices",
            plan,
            format_bytes(num_files * bytes_each),
            _duration(num_matrices * seconds),
        )


def _to_make(folder: RunFolder, steps: Iterable[int], num_batches: int, keeps_mean: bool) -> tuple[int, int]:
    """How many matrices are to be computed, and how many more files of one matrix there will be on the disk."""
    from pipeline.compute.running_mean import num_in_mean

    num_matrices = num_files = 0
    for step in steps:
        shards = [folder.shard(step, index) for index in range(num_batches)]
        num_missing = sum(not shard.exists() for shard in shards)
        if num_batches > 1 and not folder.mean(step).exists():
            num_files += 1  # the mean of one shard is that shard
        if keeps_mean:
            num_missing = min(num_missing, num_batches - num_in_mean(folder, step))
        else:
            num_files += num_missing
        num_matrices += num_missing
    if keeps_mean and num_matrices:
        num_files += 2  # the mean so far, and the batch that is added to it
    return num_matrices, num_files


def _work(experiment: Experiment, batch: Batch) -> tuple[Plan, float]:
    """The plan of one batch, and how long it will take in seconds."""
    from pipeline.compute.recipe import parts_of

    spec = experiment.matrix
    about = (experiment.problem.model, experiment.problem.criterion, spec.parameters)
    plans = []
    for part in parts_of(*about, spec.blocks):
        transformed, drawn = spec.matrix.problem(part.objective, part.params, batch)
        plans.append(Plan.of(spec.strategy, transformed, part.params, drawn))
    plan = Plan.together(plans)
    return plan, expected_seconds(plan, *objective_of(*about), batch)


def _duration(seconds: float) -> str:
    """In the unit that a person would use."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
