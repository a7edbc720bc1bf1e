"""Sums over the tiles of a step's shards, in one pass: the weighted mean, norms, traces, distances, block norms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.layout import Layout
from pipeline.shards import Array, Shard, Tile, mirrored

AT_ONCE = 16  # shards that are open at a time
STRIP = 2**13  # entries of a tile that are worked on at a time


@dataclass(frozen=True)
class Weighting:
    """How the matrices H_b of B batches make up the matrix of all N samples: H = Σ_b shares[b] · scales[b] · H_b.

    shares: n_b / N; of a mean over other terms than samples, n_b and N count these. scales: 1 for a mean loss; N / n_b
        for a summed one, so that H = Σ_b H_b there.
    scales[b] · H_b is the batch's estimate of H, in both cases.
    """

    shares: tuple[float, ...]
    scales: tuple[float, ...]

    @staticmethod
    def of(num_samples: Sequence[float], reduction: str) -> Weighting:
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


def weighting_of(shards: Sequence[Shard]) -> Weighting:
    """The weights of the shards' matrices, by the terms of their losses."""
    return Weighting.of([num_terms(shard) for shard in shards], shards[0].attrs["reduction"])


def counts_of(shards: Sequence[Shard]) -> dict[str, float]:
    """The attributes of the shards' mean that count: samples, and terms where some shard tells these."""
    counts: dict[str, float] = {"num_samples": sum(shard.attrs["num_samples"] for shard in shards)}
    if any("num_terms" in shard.attrs for shard in shards):
        counts["num_terms"] = sum(map(num_terms, shards))
    return counts


def num_terms(shard: Shard) -> float:
    """What the mean loss of a shard is over: its samples, unless it tells otherwise."""
    return float(shard.attrs.get("num_terms", shard.attrs["num_samples"]))


@dataclass
class TileSums:
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
    def zero(num_batches: int, layout: Layout) -> TileSums:
        b, k = num_batches, len(layout.names)
        live = np.zeros(layout.num_parameters, bool)
        return TileSums(np.zeros(b), np.zeros(b), np.zeros(b), np.zeros((k, k)), np.zeros(k), live)

    def add(self, other: TileSums) -> None:
        for name in ("squares", "deviations", "traces", "block_squares", "layer_traces"):
            getattr(self, name).__iadd__(getattr(other, name))
        self.live |= other.live


def pool_tiles(
    shards: Sequence[Shard],
    weighting: Weighting,
    tiles: Sequence[Tile],
    at_once: int = AT_ONCE,
    following: Sequence[Tile] = (),
) -> tuple[list[tuple[Tile, Array]], TileSums]:
    """The weighted mean of the shards in some tiles, in their dtype, and the sums over these tiles.

    The tiles of `at_once` shards after the others are added up. Distances from the mean are taken when the mean is
    known, as sums of squares of differences: of the tiles that are in memory where those are all, else of tiles that
    are read a second time, while the system has them cached. The formula ‖H_b‖² - 2⟨H_b, H⟩ + ‖H‖² would need no
    second look, and be wrong where batches are nearly alike.

    following: what the disk may read while these are worked on.
    Memory: at_once tiles, and the tiles wanted in float64; the number of shards does not matter.
    """
    first, b = shards[0], shards[0].tile
    pool = _Pool(shards, weighting, at_once)
    for shard in shards[:at_once]:
        shard.announce(following)
    means = [np.zeros(_shape(tile, b, first.num_rows)) for tile in tiles]
    parts = [range(start, len(shards))[:at_once] for start in range(0, len(shards), at_once)]
    looks = [(True, True)] if len(parts) == 1 else [(True, False), (False, True)]
    for look in looks:
        for part in parts:
            pool.look(part, tiles, means, *look)
    whole = [mirrored(mean) if i == j else mean for (i, j), mean in zip(tiles, means, strict=True)]
    for (i, j), mean in zip(tiles, whole, strict=True):
        _add_mean(pool.moments, first.parameters, mean, i * b, j * b)
    return [(tile, mean.astype(first.dtype)) for tile, mean in zip(tiles, whole, strict=True)], pool.moments


def _shape(tile: Tile, size: int, num_rows: int) -> tuple[int, int]:
    height, width = (min(size, num_rows - k * size) for k in tile)
    return height, width


class _Pool:
    """Sums that grow tile by tile, in memory that is used again and again: of a few shards' tiles, and of a strip of
    each in float64 that stays in a core's cache. All shards are worked on in one call, as threads wait for each other
    between calls.
    """

    def __init__(self, shards: Sequence[Shard], weighting: Weighting, at_once: int) -> None:
        size, num_open = shards[0].tile, min(at_once, len(shards))
        self.moments = TileSums.zero(len(shards), shards[0].parameters)
        self._shards, self._weighting = shards, weighting
        self._above = ~np.tri(size, dtype=bool)
        self._height = max(1, STRIP // size)
        self._tiles = np.empty((num_open, size, size), shards[0].dtype)
        self._room = np.empty(num_open * self._height * size)

    def look(
        self, part: range, tile_indices: Sequence[Tile], means: Sequence[Array], adding: bool, comparing: bool
    ) -> None:
        """Add some shards' tiles to the means, norms and traces; compare them with the means, once those are complete.

        Of the tiles on the diagonal the lower part alone is taken, and zeros above.
        """
        rooms = self._tiles[: len(part)]
        streams = [self._shards[k].tiles(tile_indices, room) for k, room in zip(part, rooms, strict=True)]
        for tile, mean, *_ in zip(tile_indices, means, *streams, strict=True):
            height, width = mean.shape
            tiles = rooms[:, :height, :width]
            if tile[0] == tile[1]:
                np.copyto(tiles, 0, where=self._above[:height, :width])
            self._look(part, mean, tiles, tile[0] == tile[1], adding, comparing)

    def _look(
        self, part: range, mean: Array, tiles: Array, on_diagonal: bool, adding: bool, comparing: bool
    ) -> None:
        sums, chosen = self.moments, slice(part.start, part.stop)
        scales = np.array(self._weighting.scales[chosen])
        factors = scales * self._weighting.shares[chosen]
        squares, deviations = np.zeros(len(part)), np.zeros(len(part))
        for center, exact in self._strips(mean, tiles):
            if adding:
                squares += np.vecdot(exact, exact)
                center += factors @ exact
            if comparing:
                if (scales != 1).any():
                    exact *= scales[:, None]
                exact -= center
                deviations += np.vecdot(exact, exact)
        # Each entry below the diagonal stands for its mirror image too.
        sums.squares[chosen] += 2 * squares
        sums.deviations[chosen] += 2 * deviations
        if on_diagonal:
            diagonals = np.diagonal(tiles, axis1=1, axis2=2).astype(np.float64)
            if adding:
                sums.traces[chosen] += diagonals.sum(1)
                sums.squares[chosen] -= np.vecdot(diagonals, diagonals)
            if comparing:
                apart = scales[:, None] * diagonals - np.diagonal(mean)
                sums.deviations[chosen] -= np.vecdot(apart, apart)

    def _strips(self, mean: Array, tiles: Array) -> Iterator[tuple[Array, Array]]:
        """A few rows at a time: those of the mean, (n,), which may be written, and those of m tiles, (m, n)."""
        for start in range(0, len(mean), self._height):
            center = mean[start : start + self._height]
            exact = self._room[: len(tiles) * center.size].reshape(len(tiles), *center.shape)
            exact[...] = tiles[:, start : start + self._height]
            yield center.reshape(-1), exact.reshape(len(tiles), -1)


def _add_mean(moments: TileSums, layout: Layout, mean: Array, top: int, left: int) -> None:
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
