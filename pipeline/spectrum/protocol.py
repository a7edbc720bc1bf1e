"""What the choices of this group share: the matrix they are given and the spectrum they return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError

AT_ONCE = 16  # vectors that are multiplied in one pass over a stored matrix
WHAT = "give a real matrix (P, P) of torch or NumPy, a shard, or what has products"

Array = NDArray[np.floating]
Matvec = Callable[[Array], Array]  # (P, m) -> (P, m): the symmetric matrix times m vectors, one pass over it
Watch = Callable[
    [int, float], None
]  # is told the number of products so far, and the largest residual, or NaN


class ProductMatrix(Protocol):
    """A real symmetric matrix that is known by its products."""

    @property
    def num_rows(self) -> int: ...

    def matvec(self, vectors: Array, /) -> Array:
        """The matrix times (P, m) vectors."""
        ...


def real_array(matrix: Any) -> Array:
    """A tensor, or whatever NumPy makes an array of, as a square array (P, P) in float32 or float64.

    Raises:
        PipelineError: it has no numbers, complex ones, another shape, or entries that are masked.
    """
    array = real_numbers(matrix, "the matrix", WHAT)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise PipelineError(f"the matrix has shape {array.shape}, which is not square: {WHAT}.")
    return array


def real_numbers(value: Any, name: str, remedy: str) -> Array:
    """A tensor, or whatever NumPy makes an array of, as an array in float32 or float64.

    Raises:
        PipelineError: it has no numbers, complex ones, or entries that are masked.
    """
    if hasattr(value, "detach"):  # a tensor; torch is not imported here
        if value.device.type == "meta":
            raise PipelineError(f"{name} is a tensor on the device meta, which has no numbers: {remedy}.")
        value = value.detach().cpu().to_dense()
        value = value.float() if value.dtype.itemsize < 4 and value.is_floating_point() else value
        value = value.resolve_conj().resolve_neg().numpy()
    if np.ma.is_masked(value):
        raise PipelineError(f"entries of {name} are masked: {remedy}.")
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise PipelineError(f"{name} holds {array.dtype}, not real numbers: {remedy}.")
    size = array.dtype.itemsize if array.dtype.kind == "f" else 8
    return np.asarray(array, np.float32 if size <= 4 else np.float64)


def checked_matrix(matrix: Any) -> ProductMatrix:
    """The matrix, if it has products; a plain array or tensor as one that has.

    Raises:
        PipelineError: it is neither, or an array that is not square or not symmetric to 1e-4 of its largest entry.
    """
    if isinstance(matrix, np.ndarray) or hasattr(matrix, "detach"):
        array = real_array(matrix)
        largest = float(np.abs(array).max(initial=0.0))
        # what is not finite is refused where it is multiplied
        if np.isfinite(largest) and np.abs(array - array.T).max(initial=0.0) > 1e-4 * largest:
            raise PipelineError("the matrix is not symmetric: give a symmetric one, such as (A + A.T) / 2.")
        return DenseMatrix(np.asarray(array, np.float64))
    if not (hasattr(matrix, "num_rows") and callable(getattr(matrix, "matvec", None))):
        raise PipelineError(
            f"the matrix is of type {type(matrix).__name__}: give what curvature_operator or open_shard returns, a "
            "square array, or an object with num_rows and matvec."
        )
    product_matrix: ProductMatrix = matrix
    return product_matrix


NOT_FINITE = (
    "the matrix times a vector holds NaN or infinity: look at weights and samples, or compute shards again."
)


def product_of(matrix: ProductMatrix, vectors: Any) -> Any:
    """The matrix times (P, m) vectors, as it gives them.

    Raises:
        PipelineError: they are of another shape: numbers would be paired as they do not belong together.
    """
    product = matrix.matvec(vectors)
    if tuple(getattr(product, "shape", ())) != tuple(vectors.shape):
        got = getattr(product, "shape", None)
        given = f"of type {type(product).__name__}" if got is None else f"of shape {tuple(got)}"
        raise PipelineError(
            f"matvec of {type(matrix).__name__} gives a product {given} for vectors of shape {tuple(vectors.shape)}: "
            "let it take (P, m) and return (P, m)."
        )
    return product


@dataclass(frozen=True)
class DenseMatrix:
    """A symmetric array (P, P), multiplied in its own dtype."""

    values: Array

    @property
    def num_rows(self) -> int:
        return len(self.values)

    def dense(self) -> Array:
        return self.values

    def matvec(self, vectors: Array) -> Array:
        product: Array = self.values @ vectors.astype(self.values.dtype, copy=False)
        return product

    def held(self) -> DenseMatrix:
        """Itself: it is in memory."""
        return self


def columns_at_once(matrix: object) -> int:
    """How many vectors a product takes: fewer of an operator, which are long, and of which each costs a product."""
    return min(AT_ONCE, int(getattr(matrix, "columns_per_pass", AT_ONCE)))


class SymmetricMatrix(Protocol):
    """A real symmetric matrix, in memory or on disk."""

    @property
    def num_rows(self) -> int: ...

    def dense(self) -> Array:
        """The whole matrix, (P, P), both triangles."""
        ...

    def matvec(self, vectors: Array) -> Array:
        """The matrix times (P, m) vectors: one pass over what is stored, whatever m is."""
        ...


@dataclass(frozen=True)
class Quadrature:
    """What m random unit vectors see of a spectrum: Σ_j weights[i, j] f(nodes[j]) is about v_iᵀ f(H) v_i.

    Each row of weights sums to 1. earlier: the same vectors some passes before: what has changed since tells how well
    the nodes resolve the spectrum; None where the nodes are the eigenvalues. num_rows: P, of the matrix.
    """

    nodes: Array  # (s,) ascending
    weights: Array  # (m, s)
    num_rows: int
    earlier: Quadrature | None = None


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of one symmetric matrix and the eigenvectors of its algebraically largest ones."""

    eigenvalues: Array  # ascending: all P, or those found, the bottom ones before the top ones
    top_eigenvalues: Array  # (k,) descending
    top_eigenvectors: Array  # (P, k), column j belongs to top_eigenvalues[j]
    residuals: Array  # (k,) ‖H v − λ v‖
    complete: bool  # whether eigenvalues holds all P
    quadrature: Quadrature | None = None  # for the density, where they are not all known
    num_passes: int = 0  # over the matrix, where it was read in passes


class SpectrumMethod(Protocol):
    """A choice of conf/spectrum: what is extracted from a stored matrix."""

    @property
    def num_top(self) -> int: ...

    @property
    def in_memory(self) -> bool:
        """Whether the matrix is to be handed over in memory; else `matvec` reads it from disk at each pass."""
        ...

    @property
    def single(self) -> bool:
        """Whether a float32 matrix on disk may be multiplied in float32."""
        ...

    def decompose(self, matrix: SymmetricMatrix) -> Spectrum: ...

    def of_batch(self) -> SpectrumMethod:
        """What is extracted from each batch's own matrix, of which there are many."""
        ...

    def memory(self, num_rows: int, itemsize: int) -> int:
        """Bytes that `decompose` holds at its peak, the copy that `dense()` returns included."""
        ...
