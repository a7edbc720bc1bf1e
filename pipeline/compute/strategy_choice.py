"""Whether a run computes matrices: where none fits, `strategy=auto` takes products in place of them, and says so."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

from pipeline.compute.ways_out import bytes_on_disk
from pipeline.config import Blocks, Stage
from pipeline.errors import PipelineError
from pipeline.experiment import Experiment
from pipeline.spectrum import SLQ, Exact, TopK
from pipeline.spectrum import Auto as AutoSpectrum
from pipeline.strategy import Auto, MatrixFree
from pipeline.system import RunFolder, available_memory, format_bytes, write_atomically

log = logging.getLogger("pipeline")


def settle_strategy(folder: RunFolder, experiment: Experiment) -> Experiment:
    """The experiment with the strategy that `auto` stands for, where that is to compute no matrix.

    The choice is noted in the folder, for when the run goes on: until then the disk may be emptier.

    Raises:
        PipelineError: options that need a matrix are given beside strategy=matrix_free.
    """
    spec = experiment.matrix
    if isinstance(spec.strategy, MatrixFree):
        return _checked(experiment)
    if Stage.compute not in experiment.stages or not isinstance(spec.strategy, Auto) or folder.shard_steps():
        return experiment
    reason = _noted(folder) or _why_no_matrix_fits(folder.path, experiment)
    if reason is None:
        return experiment
    log.info("strategy=auto takes matrix_free, products in place of the matrix: %s.", reason)
    write_atomically(folder.strategy_choice, json.dumps({"strategy": "matrix_free", "reason": reason}) + "\n")
    return _checked(replace(experiment, matrix=replace(spec, strategy=MatrixFree())))


def _noted(folder: RunFolder) -> str | None:
    try:
        return str(json.loads(folder.strategy_choice.read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _why_no_matrix_fits(path: Path, experiment: Experiment) -> str | None:
    """None where one does, or where what is asked for cannot be had without one."""
    if experiment.matrix.blocks is Blocks.layer or isinstance(experiment.spectrum, Exact):
        return None
    num_rows = experiment.layout().num_parameters
    in_memory, on_disk = num_rows**2 * experiment.problem.dtype.itemsize, bytes_on_disk(experiment)
    memory, disk = available_memory(), shutil.disk_usage(path).free
    if in_memory <= memory or on_disk <= disk:
        return None
    return (
        f"the matrix of P = {num_rows:,} weights takes {format_bytes(in_memory)} of memory or "
        f"{format_bytes(on_disk)} of disk, and {format_bytes(memory)} and {format_bytes(disk)} are free"
    )


def _checked(experiment: Experiment) -> Experiment:
    """With the density and both ends for spectrum=auto.

    Raises:
        PipelineError: an option needs a matrix.
    """
    if experiment.matrix.blocks is Blocks.layer:
        raise PipelineError(
            "strategy=matrix_free with blocks=layer: products are of the whole matrix: leave out blocks=layer, or "
            'choose a layer with parameters=["LAYER.*"].'
        )
    spectrum = experiment.spectrum
    if isinstance(spectrum, AutoSpectrum):
        return replace(experiment, spectrum=spectrum.slq)
    if not isinstance(spectrum, SLQ | TopK):
        raise PipelineError(
            f"strategy=matrix_free with spectrum={type(spectrum).__name__.lower()}: products do not give every "
            "eigenvalue: choose spectrum=slq (ends and density) or spectrum=topk, or another strategy."
        )
    return experiment
