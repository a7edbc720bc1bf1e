"""Stored matrices as the spectra take them: whole, or a parameter's own block; on disk, or held in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.shards import Array, Shard, open_shard
from pipeline.spectrum import DenseMatrix


@dataclass(frozen=True)
class StoredMatrix:
    """A principal submatrix of a stored matrix, or all of it if `rows` is None; it can be sent to other processes."""

    path: Path
    rows: slice | None = None
    single: bool = False

    @cached_property
    def _shard(self) -> Shard:
        return open_shard(self.path)

    @property
    def num_rows(self) -> int:
        return self._shard.num_rows if self.rows is None else self.rows.stop - self.rows.start

    def dense(self) -> Array:
        return self._shard.dense() if self.rows is None else self._shard.block(self.rows, self.rows)

    def matvec(self, vectors: Array) -> Array:
        """The product, in float64; with `single` tiles are multiplied in their own dtype, and summed in float64."""
        taken = vectors.astype(self._shard.dtype) if self.single else np.asarray(vectors, np.float64)
        return self._shard.matvec(taken, self.rows)

    def held(self) -> DenseMatrix:
        """The same matrix in memory."""
        return DenseMatrix(self.dense())


@dataclass(frozen=True)
class Scaled:
    """D M D of a stored matrix M and the diagonal D with entries `scale`, (P,)."""

    matrix: StoredMatrix | DenseMatrix
    scale: Array

    @property
    def num_rows(self) -> int:
        return self.matrix.num_rows

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
