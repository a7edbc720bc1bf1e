from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.spectrum.cost import Rates
from pipeline.spectrum.eigenvalues import DEVICES, eigenvalues_of
from pipeline.spectrum.lanczos import extremal_eigenpairs
from pipeline.spectrum.protocol import Array, Spectrum, SymmetricMatrix
from pipeline.spectrum.topk import TopK
from pipeline.system import format_seconds
from pipeline.validation import check_bool, check_choice, check_count

SMALL = 400  # rows up to which a dense decomposition of everything is quicker than Lanczos
MANY_ROWS = 4000  # from which on a person is told how long it will take
MAX_PASSES = 40  # of Lanczos over the matrix in memory, before the dense eigenvectors are cheaper
COLUMNS_PER_BLOCK = 12
BATCH_TOLERANCE = 1e-5  # of a residual, relative to |λ|max: within reach of products in float32
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exact:
    """All eigenvalues of a dense symmetric matrix, and the eigenvectors of the num_top algebraically largest.

    Rows and columns of zeros (units that are dead on all samples) are dropped first and their zero
    eigenvalues put back: exact, and the cost falls with the cube. Eigenvalues come from
    torch.linalg.eigvalsh, 4/3 P³ FLOP, in the matrix's own dtype: in float32 they are right to about
    4 eps |λ|max. The eigenvectors come from block Lanczos on the matrix in memory, 2 P² FLOP a vector and
    pass, to residuals of 1e-12 |λ|max (30 eps in float32), and are checked against the eigenvalues; where
    they do not agree, or do not converge, they are computed by scipy.linalg.eigh; those of a small matrix by
    numpy.linalg.eigh. num_top is capped by P.

    device: where eigenvalues are computed: cpu, cuda, or auto, which takes the GPU where there is one that has room.
    """

    num_top: int = 10
    all_of_batches: bool = False
    device: str = field(default="auto", repr=False)  # the numbers are the same but for rounding

    def __post_init__(self) -> None:
        check_choice("spectrum.device", self.device, DEVICES)
        check_count("spectrum.num_top", self.num_top)
        check_bool("spectrum.all_of_batches", self.all_of_batches)

    @property
    def in_memory(self) -> bool:
        return True

    @property
    def single(self) -> bool:
        return True

    def of_batch(self) -> Exact | TopK:
        """All eigenvalues if that was asked for, else the top ones, at the cost of a few passes."""
        return self if self.all_of_batches else TopK(self.num_top, tolerance=BATCH_TOLERANCE)

    def decompose(self, matrix: SymmetricMatrix) -> Spectrum:
        """The whole spectrum.

        Raises:
            PipelineError: if the matrix holds NaN or infinity.
        """
        dense = matrix.dense()
        alive = live_rows(dense)
        num_rows, num_live = len(alive), int(alive.sum())
        num_dead = num_rows - num_live
        reduced = dense if num_dead == 0 else dense[np.ix_(alive, alive)]
        del dense
        _announce(reduced, self.device)
        live_values = eigenvalues_of(reduced, self.device)
        k = min(self.num_top, num_live)
        live_vectors, residuals = top_eigenvectors(reduced, live_values, k)
        # A dead row is an eigenvector too: among the top ones where fewer than k eigenvalues are positive.
        num_units = min(self.num_top, num_dead)
        vectors = np.zeros((num_rows, k + num_units), dtype=live_values.dtype)
        vectors[alive, :k] = live_vectors
        vectors[np.flatnonzero(~alive)[:num_units], np.arange(k, k + num_units)] = 1
        candidates = np.concatenate(
            [live_values[num_live - k :][::-1], np.zeros(num_units, live_values.dtype)]
        )
        best = np.argsort(-candidates, kind="stable")[: min(self.num_top, num_rows)]
        return Spectrum(
            eigenvalues=np.sort(np.concatenate([live_values, np.zeros(num_dead, live_values.dtype)])),
            top_eigenvalues=candidates[best],
            top_eigenvectors=vectors[:, best],
            residuals=np.concatenate([residuals, np.zeros(num_units)])[best],
            complete=True,
        )

    def memory(self, num_rows: int, itemsize: int) -> int:
        """Bytes at the peak: the matrix and the copy that the eigensolver overwrites, or Lanczos' vectors."""
        matrix = num_rows**2 * itemsize
        columns = min(num_rows, 2 * self.num_top * COLUMNS_PER_BLOCK)
        return matrix + max(matrix, 8 * num_rows * 2 * columns) + 16 * 2**20


def _announce(matrix: Array, device: str) -> None:
    """Say how long LAPACK will take, which says nothing while it works."""
    if len(matrix) >= MANY_ROWS:
        seconds = Rates.of(matrix.dtype).all_eigenvalues(len(matrix), device)
        log.info("all eigenvalues of %s rows: about %s.", f"{len(matrix):,}", format_seconds(seconds))


def live_rows(matrix: Array) -> NDArray[np.bool_]:
    """Which rows of a symmetric matrix hold anything but zeros, (P,); no temporary of the matrix's size.

    Raises:
        PipelineError: if the matrix holds NaN or infinity.
    """
    if not np.isfinite(np.add.reduce(matrix, axis=1, dtype=np.float64)).all():
        raise PipelineError(
            "the matrix holds NaN or infinity and has no eigenvalues: compute its shards again."
        )
    return np.fromiter((row.any() for row in matrix), dtype=np.bool_, count=len(matrix))


def top_eigenvectors(matrix: Array, eigenvalues: Array, k: int) -> tuple[Array, Array]:
    """Eigenvectors (P, k) of the k largest of `eigenvalues` (ascending), largest first; residuals (k,)."""
    num_rows = len(matrix)
    if k == 0:
        return np.zeros((num_rows, 0)), np.zeros(0)
    wanted = eigenvalues[num_rows - k :]
    largest = float(np.abs(eigenvalues).max())
    tolerance = max(1e-12, 30 * float(np.finfo(matrix.dtype).eps))
    if num_rows <= max(SMALL, 4 * k):
        vectors = np.linalg.eigh(matrix)[1][:, num_rows - k :]
    else:
        pairs = extremal_eigenpairs(
            lambda block: matrix @ block.astype(matrix.dtype),
            num_rows,
            num_top=k,
            num_bottom=0,
            tolerance=tolerance,
            max_passes=MAX_PASSES,
            block_size=2 * k,
            max_columns=2 * k * COLUMNS_PER_BLOCK,
            seed=0,
        )
        if pairs.converged and np.abs(pairs.values - wanted).max() <= tolerance * largest:
            vectors = pairs.vectors.astype(matrix.dtype)
        else:
            from scipy.linalg import eigh  # hardly ever needed, and slow to import

            vectors = eigh(matrix, subset_by_index=(num_rows - k, num_rows - 1))[1]
    vectors = vectors[:, ::-1]
    return vectors, np.linalg.norm(matrix @ vectors - vectors * wanted[::-1], axis=0)
