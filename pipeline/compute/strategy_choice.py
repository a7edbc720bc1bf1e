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
from pipeline.matrix import MATRICES, Hessian, Residual
from pipeline.spectrum import SLQ, Exact, TopK
from pipeline.spectrum import Auto as AutoSpectrum
from pipeline.strategy import Auto, Gram, MatrixFree
from pipeline.system import RunFolder, available_memory, format_bytes, write_atomically
from pipeline.validation import name_of

log = logging.getLogger("pipeline")


def settle_strategy(folder: RunFolder, experiment: Experiment) -> Experiment:
    """The experiment with the strategy that `auto` stands for, where that is to compute no matrix.

    The choice is noted in the folder, for when the run goes on: until then the disk may be emptier.

    Raises:
        PipelineError: options that need a matrix are given beside a strategy that computes none.
    """
    spec = experiment.matrix
    if not spec.is_computed:
        return _checked(experiment)
    if not isinstance(spec.strategy, Auto) or folder.shard_steps():
        return experiment
    reason = _noted(folder)
    if reason is None and Stage.compute in experiment.stages:
        reason = _why_no_matrix_fits(folder.path, experiment)
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
    """With what spectrum=auto stands for: the density and both ends of products, all eigenvalues of a Gram matrix.

    Raises:
        PipelineError: an option needs a matrix.
    """
    spec, spectrum = experiment.matrix, experiment.spectrum
    by_gram = isinstance(spec.strategy, Gram)
    name = "gram" if by_gram else "matrix_free"
    if spec.blocks is Blocks.layer:
        raise PipelineError(
            f"strategy={name} with blocks=layer: it takes the whole matrix: leave out blocks=layer, or choose a layer "
            'with parameters=["LAYER.*"].'
        )
    if by_gram and isinstance(spec.matrix, Hessian | Residual):
        raise PipelineError(
            f"strategy=gram with matrix={name_of(spec.matrix, MATRICES)}: a Gram matrix is that of a Gauss-Newton "
            "matrix: choose matrix=ggn, fisher or empirical_fisher, or strategy=matrix_free."
        )
    if isinstance(spectrum, AutoSpectrum):
        return replace(experiment, spectrum=spectrum.exact if by_gram else spectrum.slq)
    given = type(spectrum).__name__.lower()
    if by_gram and not isinstance(spectrum, Exact):
        raise PipelineError(
            f"strategy=gram with spectrum={given}: it gives every eigenvalue: choose spectrum=exact."
        )
    if not by_gram and not isinstance(spectrum, SLQ | TopK):
        raise PipelineError(
            f"strategy=matrix_free with spectrum={given}: products do not give every eigenvalue: choose spectrum=slq "
            "(ends and density) or spectrum=topk; or strategy=gram, where matrix= is ggn, fisher or empirical_fisher; "
            "or another strategy."
        )
    return experiment
