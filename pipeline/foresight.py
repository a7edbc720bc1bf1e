"""What a run will take, said before it begins; what would not fit is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.config import Blocks
from pipeline.folder import RunFolder
from pipeline.limits import available_memory, check_disk, check_memory, in_words
from pipeline.matrix import Matrix
from pipeline.objective import Batch, objective_of
from pipeline.options import name_of
from pipeline.plan import Plan, expected_seconds
from pipeline.shards import file_size
from pipeline.spectrum import Decomposition
from pipeline.storage import AS_COMPUTED, Storage
from pipeline.strategy import STRATEGIES, Strategy
from pipeline.subject import Subject

log = logging.getLogger("pipeline")


def check_plan(
    folder: RunFolder,
    subject: Subject,
    settings: Mapping[str, Any],
    matrix: Matrix,
    strategy: Strategy,
    spectrum: Decomposition,
    storage: Storage = AS_COMPUTED,
) -> None:
    """Say how large the matrices will be and what they will take, and refuse now what would not fit later.

    Raises:
        PipelineError: with P, the bytes needed, the bytes there, and what to do.
    """
    layout = subject.layout(settings["parameters"])
    num_parameters = layout.num_parameters
    itemsize = 4 if settings["dtype"] == "float32" else 8
    needs, batches, bytes_each, num_matrices = {}, [], 0, 0
    if "compute" in settings["stages"]:
        from pipeline.compute import split

        batches = split(subject.train, subject.batch_size, settings["num_batches"], settings["seed"])
        steps = {*settings["checkpoint_steps"], settings["training"].get("num_steps", 0)}
        num_matrices, num_files = _to_make(folder, steps, len(batches), settings["keep"])
        stored = 4 if storage.precision == "float32" else itemsize
        bytes_each = file_size(layout, stored, settings["blocks"], storage.tile)
        check_disk(folder.path, num_parameters, bytes_each, num_files)
        needs[f"strategy={name_of(strategy, STRATEGIES)}"] = strategy.memory(num_parameters, itemsize)
    if "aggregate" in settings["stages"]:
        needs[f"spectrum={type(spectrum).__name__.lower()}"] = spectrum.memory(num_parameters, itemsize)
    check_memory(num_parameters, needs)
    log.info(
        "%s: P = %s weights, a matrix of %s; the run needs up to %s of memory for matrices, %s are free.",
        type(subject.model).__name__,
        f"{num_parameters:,}",
        in_words(num_parameters**2 * itemsize),
        in_words(max(needs.values(), default=0)),
        in_words(available_memory()),
    )
    if num_matrices > 0:
        plan, seconds = _work(subject, settings, matrix, strategy, batches[0])
        log.info(
            "to compute: %d %s of %s, %s on disk; about %s, and what the disk takes.",
            num_matrices,
            "matrix" if num_matrices == 1 else "matrices",
            plan,
            in_words(num_files * bytes_each),
            _duration(num_matrices * seconds),
        )


def _to_make(folder: RunFolder, steps: Iterable[int], num_batches: int, keep: str) -> tuple[int, int]:
    """How many matrices are to be computed, and how many more files of one matrix there will be on the disk."""
    from pipeline.running_mean import num_in_mean

    num_matrices = num_files = 0
    for step in steps:
        shards = [folder.shard(step, index) for index in range(num_batches)]
        num_missing = sum(not shard.exists() for shard in shards)
        if num_batches > 1 and not folder.mean(step).exists():
            num_files += 1  # the mean of one shard is that shard
        if keep == "mean" and num_batches > 1:
            num_missing = min(num_missing, num_batches - num_in_mean(folder, step))
        else:
            num_files += num_missing
        num_matrices += num_missing
    if keep == "mean" and num_batches > 1 and num_matrices:
        num_files += 2  # the mean so far, and the batch that is added to it
    return num_matrices, num_files


def _work(
    subject: Subject, settings: Mapping[str, Any], matrix: Matrix, strategy: Strategy, batch: Batch
) -> tuple[Plan, float]:
    """The plan of one batch, and how long it will take in seconds."""
    from pipeline.recipe import parts_of

    about = (subject.model, subject.criterion, settings["parameters"])
    plans = []
    for part in parts_of(*about, Blocks[settings["blocks"]]):
        transformed, drawn = matrix.problem(part.objective, part.params, batch)
        plans.append(Plan.of(strategy, transformed, part.params, drawn))
    plan = Plan.together(plans)
    return plan, expected_seconds(plan, *objective_of(*about), batch)


def _duration(seconds: float) -> str:
    """In the unit that a person would use."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
