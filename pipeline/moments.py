"""Sums over the tiles of a step's shards, in one pass: the weighted mean, norms, traces, distances, block norms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.hdf5 import Array
from pipeline.layout import Layout
from pipeline.shards import Shard, Tile, mirrored

AT_ONCE = 16  # shards that are open at a time
STRIP = 2**13  # entries of a tile that are worked on at a time


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
    shards: Sequence[Shard], weighting: Weighting, wanted: Sequence[Tile], at_once: int = AT_ONCE
) -> tuple[list[tuple[Tile, Array]], Moments]:
    """The weighted mean of the shards in some tiles, in their dtype, and the sums over these tiles.

    The tiles of `at_once` shards after the others are added up. Distances from the mean are taken when the mean is
    known, as sums of squares of differences: of the tiles that are in memory where those are all, else of tiles that
    are read a second time, while the system has them cached. The formula ‖H_b‖² - 2⟨H_b, H⟩ + ‖H‖² would need no
    second look, and be wrong where batches are nearly alike.

    Memory: at_once tiles, and the tiles wanted in float64; the number of shards does not matter.
    """
    first, b = shards[0], shards[0].tile
    pool = _Pool(Moments.zero(len(shards), first.parameters), weighting, b, at_once)
    means = [np.zeros(_shape(tile, b, first.num_rows)) for tile in wanted]
    parts = [range(start, len(shards))[:at_once] for start in range(0, len(shards), at_once)]
    looks = [(True, True)] if len(parts) == 1 else [(True, False), (False, True)]
    for look in looks:
        for part in parts:
            for tile, mean, tiles in _side_by_side(shards, part, wanted, means):
                pool.look(part, tile, mean, tiles, *look)
    for (i, j), mean in zip(wanted, means, strict=True):
        _add_mean(pool.moments, first.parameters, mean, i * b, j * b)
    return [(tile, mean.astype(first.dtype)) for tile, mean in zip(wanted, means, strict=True)], pool.moments


def _shape(tile: Tile, size: int, num_rows: int) -> tuple[int, int]:
    height, width = (min(size, num_rows - k * size) for k in tile)
    return height, width


def _side_by_side(
    shards: Sequence[Shard], part: range, wanted: Sequence[Tile], means: Sequence[Array]
) -> Iterator[tuple[Tile, Array, list[Array]]]:
    """Each tile wanted, its mean, and what some shards hold there; those on the diagonal with their upper part."""
    streams = zip(*(shards[index].tiles(wanted) for index in part), strict=True)
    for mean, same in zip(means, streams, strict=True):
        tile = same[0][0]
        yield tile, mean, [mirrored(values) if tile[0] == tile[1] else values for _, values in same]


class _Pool:
    """Sums that grow tile by tile, with room for a few rows of some shards' tiles that stays in a core's cache."""

    def __init__(self, moments: Moments, weighting: Weighting, size: int, at_once: int) -> None:
        self.moments = moments
        self.weighting = weighting
        self._height = max(1, STRIP // size)
        self._room = np.empty(at_once * self._height * size)

    def look(
        self, part: range, tile: Tile, mean: Array, tiles: Sequence[Array], adding: bool, comparing: bool
    ) -> None:
        """Add some shards' tiles to the mean, norms and traces; compare them with the mean, once it is complete."""
        sums, scales = self.moments, self.weighting.scales
        factors = np.array([self.weighting.shares[index] * scales[index] for index in part])
        twice = 1 if tile[0] == tile[1] else 2  # an off-diagonal tile stands for its mirror image too
        for center, exact in self._strips(mean, tiles):
            if adding:
                for index, values in zip(part, exact, strict=True):
                    sums.squares[index] += twice * np.dot(values, values)
                center += factors @ exact
            if comparing:
                for index, values in zip(part, exact, strict=True):
                    if scales[index] != 1:
                        values *= scales[index]
                    values -= center
                    sums.deviations[index] += twice * np.dot(values, values)
        if adding and tile[0] == tile[1]:
            for index, values in zip(part, tiles, strict=True):
                sums.traces[index] += np.trace(values, dtype=np.float64)

    def _strips(self, mean: Array, tiles: Sequence[Array]) -> Iterator[tuple[Array, Array]]:
        """A few rows at a time: those of the mean, (n,), which may be written, and those of m tiles, (m, n)."""
        for start in range(0, len(mean), self._height):
            center = mean[start : start + self._height].reshape(-1)
            exact = self._room[: len(tiles) * len(center)].reshape(len(tiles), -1)
            for values, whole in zip(exact, tiles, strict=True):
                values[...] = whole[start : start + self._height].reshape(-1)
            yield center, exact


def _add_mean(moments: Moments, layout: Layout, mean: Array, top: int, left: int) -> None:
    rows, row_starts = _parameters_in(layout, top, len(mean))
    cols, col_starts = _parameters_in(layout, left, mean.shape[1])
    if len(rows) == len(cols) == 1:  # most tiles of a large matrix: no temporary, no sums by parameters
        sums = np.array([[np.vdot(mean, mean)]])
    else:
        sums = np.add.reduceat(np.add.reduceat(mean**2, row_starts, axis=0), col_starts, axis=1)
    moments.block_squares[np.ix_(rows, cols)] += sums
    if top == left:
        moments.layer_traces[rows] += np.add.reduceat(np.diagonal(mean), row_starts)
    else:
        moments.block_squares[np.ix_(cols, rows)] += sums.T
    alive = mean != 0
    moments.live[top : top + len(mean)] |= alive.any(axis=1)
    moments.live[left : left + mean.shape[1]] |= alive.any(axis=0)


def _parameters_in(layout: Layout, start: int, length: int) -> tuple[list[int], list[int]]:
    """The parameters with entries in start..start+length-1, and where each begins, counted from `start`."""
    offsets = layout.offsets
    inside = [
        k for k in range(len(layout.names)) if max(offsets[k], start) < min(offsets[k + 1], start + length)
    ]
    return inside, [max(offsets[k] - start, 0) for k in inside]
