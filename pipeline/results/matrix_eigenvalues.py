"""The eigenvalues of whatever holds a matrix, from Python: `pipeline.eigenvalues`."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.results.run import Run
from pipeline.results.spectra_file import SpectraFile
from pipeline.spectrum import Array, eigenvalues_of, live_rows, real_array
from pipeline.system import available_memory, format_bytes

ASYMMETRY = 1e-4  # relative to the largest entry: more than rounding of single precision
ROOM_TO_CHECK = 2**28  # bytes: a smaller matrix on disk is read without a look at the free memory


def eigenvalues(matrix: Any, device: str = "auto") -> Array:
    """All eigenvalues of a symmetric matrix, (P,) ascending, as a NumPy array of the matrix's dtype.

    matrix: a tensor or an array (P, P); a shard, or anything else with a method `dense`; a run, of which the last
        step's mean matrix counts, or a spectra file, `run.spectra[step]`: their eigenvalues are read, not computed.
    device: where they are computed: "cpu", "cuda", or "auto", which takes a GPU that has room.

    Cost: 4/3 P³ FLOP by LAPACK, and a copy of the matrix; rows of zeros are left out first. In float32 an eigenvalue is
    right to some 4 ε |λ|max.

    Raises:
        PipelineError: it is no symmetric matrix of finite numbers, a run does not hold all eigenvalues, or the memory
            does not hold the matrix.

    >>> eigenvalues(np.array([[2.0, 1.0], [1.0, 2.0]]))
    array([1., 3.])
    """
    if isinstance(matrix, Run | SpectraFile):
        return _all_of_file(last_spectra(matrix))
    dense = dense_of(matrix)
    alive = live_rows(dense)
    values = eigenvalues_of(dense if alive.all() else dense[np.ix_(alive, alive)], device)
    return np.sort(np.concatenate([values, np.zeros(len(alive) - len(values), values.dtype)]))


def last_spectra(run: Run | SpectraFile) -> SpectraFile:
    """The spectra of the last step of a run.

    Raises:
        PipelineError: the run has none.
    """
    if isinstance(run, SpectraFile):
        return run
    if not run.spectra:
        raise PipelineError(f"{run.folder.path} holds no spectra: run its stage aggregate, or take a shard.")
    return run.spectra[max(run.spectra)]


def _all_of_file(file: SpectraFile) -> Array:
    known, num_rows = file.mean.eigenvalues, int(file.layers.offsets[-1])
    if len(known) < num_rows:
        raise PipelineError(
            f"the spectra of step {file.step} hold {len(known):,} of {num_rows:,} eigenvalues "
            f"(spectrum={file.spectrum}): take these by .mean.eigenvalues, or run the stage aggregate with "
            "spectrum=exact."
        )
    return known


def dense_of(matrix: Any) -> Array:
    """A symmetric matrix in memory, (P, P), as a NumPy array in float32 or float64.

    Raises:
        PipelineError: it is none, or does not fit.
    """
    if hasattr(matrix, "dense"):
        _check_room(matrix.num_rows, np.dtype(getattr(matrix, "dtype", np.float64)).itemsize)
        matrix = matrix.dense()
    elif hasattr(matrix, "matvec"):
        raise PipelineError(
            f"{type(matrix).__name__} gives products alone: pipeline.eigenpairs gives both ends of its spectrum, "
            "pipeline.density the distribution of all eigenvalues."
        )
    elif isinstance(matrix, str | PathLike):
        raise PipelineError(f"{matrix} is a path: open it by pipeline.open_run or pipeline.open_shard first.")
    dense = real_array(matrix)
    live_rows(dense)  # finite, before it is compared
    _check_symmetric(dense)
    return dense


def _check_symmetric(dense: Array) -> None:
    largest = float(np.abs(dense).max())
    for start in range(0, len(dense), 1024):  # no second matrix in memory
        rows = slice(start, start + 1024)
        gap = float(np.abs(dense[rows] - dense[:, rows].T).max())
        if gap > ASYMMETRY * largest:
            raise PipelineError(
                f"the matrix is not symmetric: entries differ from their mirror images by up to {gap:.3g}, the largest "
                f"is {largest:.3g}; give (H + H.T) / 2 if that is what is meant."
            )


def _check_room(num_rows: int, itemsize: int) -> None:
    needed = 2 * num_rows**2 * itemsize
    if needed > ROOM_TO_CHECK and needed > (free := available_memory()):
        raise PipelineError(
            f"all eigenvalues of P = {num_rows:,} weights need {format_bytes(needed)} of memory, {format_bytes(free)} "
            "are free: take both ends of the spectrum, spectrum=topk, or its density, spectrum=slq."
        )
