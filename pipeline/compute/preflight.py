"""What a run will take, said before it begins; what would not fit is refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.aggregate import SpectrumChoice, choose
from pipeline.cluster import Cluster, Threads
from pipeline.compute.batch_terms import check_batches
from pipeline.compute.product_workers import num_product_workers
from pipeline.compute.stage_costs import StageCost, Work, memory_without_matrix
from pipeline.compute.ways_out import bytes_on_disk, stored_itemsize, ways_in_memory, ways_on_disk
from pipeline.config import Stage
from pipeline.experiment import Experiment
from pipeline.objective import describe, objective_of, suspicions
from pipeline.spectrum import Auto
from pipeline.strategy import STRATEGIES
from pipeline.system import (
    RunFolder,
    available_memory,
    check_disk,
    check_memory,
    format_bytes,
    format_seconds,
    num_cores,
)
from pipeline.training import same_random_numbers
from pipeline.validation import name_of

ONE_A_CORE = Threads()
log = logging.getLogger("pipeline")


def check_resources(
    folder: RunFolder,
    experiment: Experiment,
    training: object = None,
    sweep: Path | None = None,
    cluster: Cluster = ONE_A_CORE,
) -> list[StageCost]:
    """Say what each stage will take, and refuse now what would not fit later; gives the costs.

    training: that of the run, whose steps are tried. sweep: the folder of the sweep that the run is a job of.
    cluster: whose workers share aggregation, and products.

    Raises:
        PipelineError: with P, the bytes needed, the bytes there, and what to do.
    """
    problem = experiment.problem
    log.info("%s", describe(problem.train, problem.test))
    for suspicion in suspicions(problem.train):
        log.warning("%s", suspicion)
    num_parameters, itemsize = experiment.layout().num_parameters, problem.dtype.itemsize
    stored, batches, steps = stored_itemsize(experiment), experiment.batches(), _steps(experiment)
    needs: dict[str, int] = {}
    num_files = num_matrices = 0
    bytes_each = bytes_on_disk(experiment)
    if not experiment.matrix.is_computed:
        needs |= memory_without_matrix(experiment)
    elif Stage.compute in experiment.stages:
        num_matrices, num_files = _to_make(folder, experiment)
        ways = partial(ways_on_disk, experiment, lambda one: _to_make(folder, one)[1])
        check_disk(folder.path, num_parameters, bytes_each, num_files, ways)
        strategy = experiment.matrix.computed_by
        needs[f"strategy={name_of(strategy, STRATEGIES)}"] = strategy.memory(num_parameters, itemsize)
    choice = None
    if Stage.aggregate in experiment.stages and experiment.matrix.is_computed:
        experiment, choice = _with_spectrum(folder, experiment, len(steps), len(batches), stored, sweep)
        name = type(experiment.spectrum).__name__.lower()
        needs[f"spectrum={name}"] = experiment.spectrum.memory(num_parameters, stored)
    check_memory(num_parameters, needs, None, partial(ways_in_memory, experiment))
    log.info(
        "%s: P = %s weights, a matrix of %s; %s of memory are free.",
        type(experiment.problem.model).__name__,
        f"{num_parameters:,}",
        format_bytes(num_parameters**2 * itemsize),
        format_bytes(available_memory()),
    )
    num_steps = sum(not folder.spectrum(step).exists() for step in steps)
    workers = getattr(cluster, "num_workers", None) or num_cores()
    products = num_product_workers(cluster)
    work = Work(experiment, batches, num_steps, num_matrices, bytes_each, stored, workers, training, products)
    with same_random_numbers():
        if num_matrices:
            about = objective_of(problem.model, problem.criterion, experiment.matrix.parameters)
            check_batches(*about, batches, experiment.matrix.verify)
        costs = _costs(work, is_trained=folder.checkpoint(experiment.last_step).exists())
    _tell(costs, num_files * bytes_each)
    if choice is not None:
        log.info("%s", choice)
        choice.write(folder)
    return costs


def _with_spectrum(
    folder: RunFolder,
    experiment: Experiment,
    num_steps: int,
    num_batches: int,
    itemsize: int,
    sweep: Path | None,
) -> tuple[Experiment, SpectrumChoice | None]:
    """The experiment with the spectrum that `auto` stands for, and the choice; None where nothing was to choose."""
    auto = experiment.spectrum
    if not isinstance(auto, Auto):
        return experiment, None
    dtype = np.dtype(f"float{8 * itemsize}")
    choice = choose(folder, auto, experiment.layout(), dtype, num_steps, num_batches, sweep)
    return replace(experiment, spectrum=choice.method(auto)), choice


def _costs(work: Work, is_trained: bool) -> list[StageCost]:
    """Of the stages that have something to do."""
    experiment = work.experiment
    stages, costs = experiment.stages, []
    if Stage.train in stages and not is_trained:
        costs.append(work.train())
    if work.num_matrices:
        costs.append(work.matrices())
    if not experiment.matrix.is_computed:
        if work.num_steps and Stage.compute in stages:
            costs.append(work.spectra())
    elif work.num_steps and Stage.aggregate in stages:
        costs += [work.mean(), work.spectrum()]
    if work.num_steps and Stage.slices in stages and experiment.slice_points is not None:
        costs.append(work.landscape(experiment.slice_points))
    if Stage.report in stages:
        costs.append(work.report())
    return costs


def _tell(costs: list[StageCost], num_bytes: int) -> None:
    """A line for each stage, in columns, and their sum."""
    for cost in costs:
        seconds = "not known" if cost.seconds is None else f"about {format_seconds(cost.seconds)}"
        disk = f", {format_bytes(num_bytes)} on disk" if cost.stage == "matrices" else ""
        log.info("  %-10s%14s %8s  %s%s", cost.stage, seconds, format_bytes(cost.memory), cost.work, disk)
    if len(costs) > 1:
        known = [cost.seconds for cost in costs if cost.seconds is not None]
        more = "" if len(known) == len(costs) else ", and what is not known"
        memory = format_bytes(max(cost.memory for cost in costs))
        log.info(
            "  %-10s%14s %8s  seconds on cores that are free%s",
            "in all",
            f"about {format_seconds(sum(known))}",
            memory,
            more,
        )


def _steps(experiment: Experiment) -> set[int]:
    """Of training, at which matrices are taken."""
    return {*experiment.checkpoint_steps, experiment.last_step}


def _to_make(folder: RunFolder, experiment: Experiment) -> tuple[int, int]:
    """How many matrices are to be computed, and how many more files of one matrix there will be on the disk."""
    from pipeline.compute.running_mean import num_in_mean

    num_batches = len(experiment.batches())
    keeps_mean = experiment.matrix.keeps_mean(num_batches)
    num_matrices = num_files = 0
    for step in _steps(experiment):
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
