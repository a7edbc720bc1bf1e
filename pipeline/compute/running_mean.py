"""The weighted mean of the batches' matrices, and nothing else of them (`keep=mean`): for when B matrices fit no disk.

Each batch's matrix is written to a file of its own as ever, certified, added to the mean so far, and deleted. The mean
so far is replaced by a new file each time. So three matrices lie on the disk at most, and one more for each further
process that computes them; a kill costs no more than it does with all shards kept, and what is there is always the mean
of the first so many batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.aggregate import counts_of, weighting_of
from pipeline.compute.batch_matrix import BatchMatrix, check_same, shard_at
from pipeline.errors import PipelineError
from pipeline.objective import joined_hash
from pipeline.results import store_of
from pipeline.shards import SHARED, Array, Shard, TileJournal, open_shard, row_bands, write_shard
from pipeline.system import RunFolder, check_evidence, progress, shared_evidence

OF_BATCHES = ("loss", "gradient_norm", "num_samples", "probe_error")  # kept of each batch, (B,)
log = logging.getLogger(__name__)


def keep_mean(
    folder: RunFolder,
    step: int,
    matrices: Sequence[BatchMatrix],
    compute_remotely: Callable[[Sequence[int]], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Make the mean of all batches; gives the numbers of each batch.

    compute_remotely: may write the first of these batches' matrices, in other processes.

    Raises:
        PipelineError: what is there is of another config or of more batches, and all that stops a shard.
    """
    so_far = _so_far(folder, step, matrices)
    num_there = so_far.attrs["num_batches"] if so_far else 0
    for matrix in matrices[:num_there]:
        _remove(matrix)  # of a process that was killed when it had been added
    if so_far:
        log.info("step %d: the mean of %d of %d batches is there already.", step, num_there, len(matrices))
        kept = {f"batch_{name}": so_far.array(f"batch_{name}") for name in OF_BATCHES}
        for index in range(num_there):
            numbers = {name: kept[f"batch_{name}"][index].item() for name in OF_BATCHES}
            yield {"batch_index": index, **{k: v for k, v in numbers.items() if not np.isnan(v)}}
    for index in range(num_there, len(matrices)):
        matrices[index].there(folder.shard(step, index))  # one of another experiment is told before any work
    for index in progress(range(num_there, len(matrices)), f"Hessians at step {step}"):
        shard, attrs = _shard_of(folder, step, index, matrices, compute_remotely)
        is_last = index == len(matrices) - 1
        so_far = _added(so_far, shard, folder.mean(step) if is_last else folder.running_mean(step))
        _remove(matrices[index])
        yield attrs
    matrices[0].spec.storage.store.remove(folder.running_mean(step))


def num_in_mean(folder: RunFolder, step: int) -> int:
    """Of how many batches there is a mean, with keep=mean."""
    store = store_of(folder)
    for path in (folder.mean(step), folder.running_mean(step)):
        with suppress(PipelineError):  # damaged: told and set aside later
            if path.exists() and "keep" in (attrs := open_shard(path, store).attrs):
                return int(attrs["num_batches"])
    return 0


def _so_far(folder: RunFolder, step: int, matrices: Sequence[BatchMatrix]) -> Shard | None:
    """The mean of the first so many batches, if there is one."""
    for path in (folder.mean(step), folder.running_mean(step)):
        shard = shard_at(path, matrices[0].spec.storage.store)
        if shard is None or "keep" not in shard.attrs:  # a mean that the stage aggregate has made of shards
            continue
        of_all = {key: matrices[0].identity[key] for key in SHARED if key in matrices[0].identity}
        check_same(shard, of_all, {**shared_evidence(matrices[0].identity), **matrices[0].first})
        if shard.attrs["num_batches"] > len(matrices):
            raise PipelineError(
                f"{path} is the mean of {shard.attrs['num_batches']} batches, this run has {len(matrices)}: none "
                "can be taken out again; choose another folder with hydra.run.dir=FOLDER."
            )
        each = [matrix.identity["data_hash"] for matrix in matrices[: shard.attrs["num_batches"]]]
        check_evidence(path, shard.attrs, {"data_hash": reduce(joined_hash, each)})
        return shard
    return None


def _shard_of(
    folder: RunFolder,
    step: int,
    index: int,
    matrices: Sequence[BatchMatrix],
    compute_remotely: Callable[[Sequence[int]], None] | None,
) -> tuple[Shard, dict[str, Any]]:
    """The matrix of one batch in a file, and its attributes: one that is there, or one that is made now."""
    matrix = matrices[index]
    if (kept := matrix.there(folder.shard(step, index))) is not None:  # by a run that kept all; it stays
        return kept, kept.attrs
    if not matrix.path.exists() and compute_remotely is not None:
        compute_remotely(range(index, len(matrices)))
    if (shard := matrix.there()) is not None:
        return shard, shard.attrs
    attrs = matrix.write()
    return open_shard(matrix.path, matrix.spec.storage.store), attrs


def _added(so_far: Shard | None, shard: Shard, path: Path) -> Shard:
    """The mean with one more batch, at `path`; tiles are added in float64."""
    both = [shard] if so_far is None else [so_far, shard]
    weighting = weighting_of(both)
    gradient = weighting.mean([each.gradient for each in both])
    attrs = {key: shard.attrs[key] for key in (*SHARED, "torch_version")} | shared_evidence(shard.attrs)
    if hashes := _hash_of_all(both):
        attrs["data_hash"] = hashes
    attrs |= {
        "keep": "mean",
        **counts_of(both),
        "num_batches": 1 if so_far is None else so_far.attrs["num_batches"] + 1,
        "loss": float(weighting.mean([each.attrs["loss"] for each in both])),
        "gradient_norm": float(np.linalg.norm(gradient)),
    }
    for key in {"probe_error", "strategy_tolerance"} & shard.attrs.keys():
        attrs[key] = max(each.attrs[key] for each in both)
    with write_shard(
        path,
        shard.parameters,
        str(shard.dtype),
        attrs,
        gradient,
        shard.tile,
        identity={"of": [each.attrs["checksum"] for each in both]},
        packed=shard.attrs.get("compression"),
        store=shard.store,
    ) as writer:
        tiles = [tile for tile in shard.tile_indices() if writer.is_missing(*map(shard.grid.span, tile))]
        for tile, *values in zip(tiles, *(each.tiles(tiles) for each in both), strict=True):
            writer.put(tile, weighting.mean([each for _, each in values]).astype(shard.dtype))
        writer.extra_arrays |= _of_batches(so_far, shard)
    return open_shard(path, shard.store)


def _hash_of_all(both: Sequence[Shard]) -> str | None:
    """The checksum of the samples; None where a shard of an earlier version does not tell its own."""
    hashes = [each.attrs["data_hash"] for each in both if "data_hash" in each.attrs]
    return reduce(joined_hash, hashes) if len(hashes) == len(both) else None


def _of_batches(so_far: Shard | None, shard: Shard) -> dict[str, Array]:
    """What is kept of each batch, with one more."""
    names = [f"batch_{name}" for name in OF_BATCHES]
    before = {name: so_far.array(name) if so_far else np.zeros(0) for name in names}
    return {
        name: np.append(before[name], float(shard.attrs.get(name.removeprefix("batch_"), np.nan)))
        for name in names
    }


def _remove(matrix: BatchMatrix) -> None:
    """Delete a batch's shard, with its bands and its journal."""
    matrix.spec.storage.store.remove(matrix.path)
    TileJournal.beside(matrix.path, {}).remove()
    row_bands.remove(matrix.path)
