"""Stored matrices as the spectra take them: whole, or a parameter's own block; on disk, or held in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.shards import Array, Shard
from pipeline.spectrum import DenseMatrix


@dataclass(frozen=True)
class StoredMatrix:
    """A principal submatrix of a stored matrix, or all of it if `rows` is None; it can be sent to other processes."""

    shard: Shard
    rows: slice | None = None
    single: bool = False

    @property
    def num_rows(self) -> int:
        return self.shard.num_rows if self.rows is None else self.rows.stop - self.rows.start

    def dense(self) -> Array:
        return self.shard.dense() if self.rows is None else self.shard.block(self.rows, self.rows)

    def matvec(self, vectors: Array) -> Array:
        """The product, in float64; with `single` tiles are multiplied in their own dtype, and summed in float64."""
        taken = vectors.astype(self.shard.dtype) if self.single else np.asarray(vectors, np.float64)
        return self.shard.matvec(taken, self.rows)

    def held(self) -> DenseMatrix:
        """The same matrix in memory."""
        return DenseMatrix(self.dense())


@dataclass(frozen=True)
class Scaled:
    """D M D of a matrix M and the diagonal D with entries `scale`, (P,)."""

    matrix: Any  # stored or dense; or an operator, which has products alone
    scale: Array

    @property
    def num_rows(self) -> int:
        return len(self.scale)

    def dense(self) -> Array:
        scaled: Array = self.scale[:, None] * self.matrix.dense() * self.scale
        return scaled

    def matvec(self, vectors: Array) -> Array:
        """The product, in float64."""
        column = np.asarray(self.scale, np.float64)[:, None]
        product: Array = column * self.matrix.matvec(column * vectors)
        return product

    def held(self) -> Scaled:
        """The same matrix with M in memory."""
        return replace(self, matrix=self.matrix.held())
