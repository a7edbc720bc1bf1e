"""Sums over the tiles of a step's shards, in one pass: the weighted mean, norms, traces, distances, block norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.hdf5 import Array
from pipeline.layout import Layout
from pipeline.shards import Tile, mirrored, open_shard


@dataclass(frozen=True)
class Weighting:
    """How the matrices H_b of B batches make up the matrix of all N samples: H = Σ_b shares[b] · scales[b] · H_b.

    shares: n_b / N. scales: 1 for a mean loss; N / n_b for a summed one, so that H = Σ_b H_b there.
    scales[b] · H_b is the batch's estimate of H, in both cases.
    """

    shares: tuple[float, ...]
    scales: tuple[float, ...]

    @staticmethod
    def of(num_samples: Sequence[int], reduction: str) -> Weighting:
        """Weights of batches of these sizes, for a loss that is reduced by "mean" or "sum"."""
        total = sum(num_samples)
        return Weighting(
            tuple(n / total for n in num_samples),
            tuple(total / n if reduction == "sum" else 1.0 for n in num_samples),
        )

    def mean(self, values: Sequence[Array]) -> Array:
        """Σ_b shares[b] · scales[b] · values[b], in float64."""
        total: Array = np.sum(
            [
                share * scale * np.asarray(value, np.float64)
                for share, scale, value in zip(self.shares, self.scales, values, strict=True)
            ],
            axis=0,
        )
        return total


@dataclass
class Moments:
    """Sums over some tiles of B matrices of L parameters; those of disjoint sets of tiles add up.

    squares: (B,) of ‖H_b‖_F². deviations: (B,) of ‖scales[b] H_b - H‖_F². traces: (B,). block_squares: (L, L)
        of ‖H[i, j]‖_F². layer_traces: (L,) of H. live: (P,) whether a row of H holds anything but zeros.
    """

    squares: Array
    deviations: Array
    traces: Array
    block_squares: Array
    layer_traces: Array
    live: Array

    @staticmethod
    def zero(num_batches: int, layout: Layout) -> Moments:
        b, k = num_batches, len(layout.names)
        live = np.zeros(layout.num_parameters, bool)
        return Moments(np.zeros(b), np.zeros(b), np.zeros(b), np.zeros((k, k)), np.zeros(k), live)

    def add(self, other: Moments) -> None:
        for name in ("squares", "deviations", "traces", "block_squares", "layer_traces"):
            getattr(self, name).__iadd__(getattr(other, name))
        self.live |= other.live


def pool_tiles(
    paths: Sequence[Path], weighting: Weighting, wanted: Sequence[Tile]
) -> tuple[list[tuple[Tile, Array]], Moments]:
    """The weighted mean of the shards in some tiles, in their dtype, and the sums over these tiles.

    Memory: the tiles wanted, and B tiles.
    """
    shards = [open_shard(path) for path in paths]
    layout, b = shards[0].parameters, shards[0].tile
    moments = Moments.zero(len(shards), layout)
    means = []
    for same in zip(*(shard.tiles(wanted) for shard in shards), strict=True):
        i, j = same[0][0]
        tiles = [mirrored(values) if i == j else values for _, values in same]
        mean = weighting.mean(tiles)
        twice = 1 if i == j else 2  # an off-diagonal tile stands for its mirror image too
        for index, (tile, scale) in enumerate(zip(tiles, weighting.scales, strict=True)):
            exact = tile.astype(np.float64)
            moments.squares[index] += twice * np.vdot(exact, exact)
            difference = scale * exact - mean
            moments.deviations[index] += twice * np.vdot(difference, difference)
            if i == j:
                moments.traces[index] += np.trace(exact)
        _add_mean(moments, layout, mean, i * b, j * b)
        means.append(((i, j), mean.astype(shards[0].dtype)))
    return means, moments


def _add_mean(moments: Moments, layout: Layout, mean: Array, top: int, left: int) -> None:
    rows, row_starts = _parameters_in(layout, top, len(mean))
    cols, col_starts = _parameters_in(layout, left, mean.shape[1])
    sums = np.add.reduceat(np.add.reduceat(mean**2, row_starts, axis=0), col_starts, axis=1)
    moments.block_squares[np.ix_(rows, cols)] += sums
    if top == left:
        moments.layer_traces[rows] += np.add.reduceat(np.diagonal(mean), row_starts)
    else:
        moments.block_squares[np.ix_(cols, rows)] += sums.T
    moments.live[top : top + len(mean)] |= mean.any(axis=1)
    moments.live[left : left + mean.shape[1]] |= mean.any(axis=0)


def _parameters_in(layout: Layout, start: int, length: int) -> tuple[list[int], list[int]]:
    """The parameters with entries in start..start+length-1, and where each begins, counted from `start`."""
    offsets = layout.offsets
    inside = [
        k for k in range(len(layout.names)) if max(offsets[k], start) < min(offsets[k + 1], start + length)
    ]
    return inside, [max(offsets[k] - start, 0) for k in inside]
