"""The compute stage: one shard for each batch, streamed to disk block by block as the strategy yields them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline.bands import Band
from pipeline.compute_batch import BatchMatrix, check_same, shard_at, telling
from pipeline.errors import PipelineError
from pipeline.folder import RunFolder
from pipeline.journal import Journal
from pipeline.objective import Batch, Criterion, Params, objective_of
from pipeline.recipe import Recipe, parts_of
from pipeline.running_mean import keep_mean
from pipeline.terminal import progress

__all__ = ["Recipe", "compute_band", "compute_mean", "compute_step", "parts_of", "split"]
log = logging.getLogger(__name__)


def split(samples: Batch, batch_size: int | None, num_batches: int | None, seed: int) -> list[Batch]:
    """The first `num_batches` batches of the samples in an order drawn from `seed`; the last one may be smaller.

    Batch i is the same whatever `num_batches` is. None means all samples in one batch, and all batches.

    Raises:
        PipelineError: there are fewer batches than asked for.
    """
    n = samples.num_samples
    size = min(batch_size or n, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    parts = order.split(size)
    if num_batches is not None and num_batches > len(parts):
        raise PipelineError(
            f"num_batches={num_batches}: {n} training samples make {len(parts)} batches of {size}: "
            "lower num_batches or data.batch_size."
        )
    return [_take(samples, part) for part in parts[:num_batches]]


def _take(samples: Batch, indices: Tensor) -> Batch:
    return Batch(*pytree.tree_map(lambda value: _rows(value, indices), tuple(samples)))


def _rows(value: Any, indices: Tensor) -> Any:
    return value[indices.to(value.device)] if isinstance(value, Tensor) else value


def compute_step(
    folder: RunFolder,
    step: int,
    model: nn.Module,
    criterion: Criterion,
    batches: Sequence[Batch],
    recipe: Recipe,
    only: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Write the shards of one checkpoint that are not there yet; give the attributes of each batch's shard.

    only: the one batch that is looked at.

    Raises:
        PipelineError: a shard in the folder belongs to another config or other weights, the loss is not
            finite, the matrix holds NaN, or a file cannot be written.
    """
    matrices = _matrices(folder, step, model, criterion, batches, recipe)
    there = sum(matrix.path.exists() for matrix in matrices)
    if there and only is None:
        log.info("step %d: %d of %d shards are there already.", step, there, len(batches))
    for index, matrix in enumerate(progress(matrices, f"Hessians at step {step}")):
        if only is not None and index != only:
            continue
        if (shard := shard_at(matrix.path)) is not None:
            check_same(str(matrix.path), shard.attrs, matrix.identity)
            Journal.beside(matrix.path, {}).remove()  # of a process that was killed just before it would have
            yield shard.attrs
        else:
            with telling(matrix):
                attrs = matrix.write()
            yield attrs


def compute_band(
    folder: RunFolder,
    step: int,
    model: nn.Module,
    criterion: Criterion,
    batches: Sequence[Batch],
    recipe: Recipe,
    only: int,
    band: Band,
) -> None:
    """Write a band of the shard of one batch, unless it is there; raises as `compute_step` does."""
    matrix = _matrices(folder, step, model, criterion, batches, recipe)[only]
    with telling(matrix):
        matrix.write_band(band)


def compute_mean(
    folder: RunFolder,
    step: int,
    model: nn.Module,
    criterion: Criterion,
    batches: Sequence[Batch],
    recipe: Recipe,
    elsewhere: Callable[[list[int]], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Write the mean of the batches' matrices alone, see `keep_mean`."""
    yield from keep_mean(folder, step, _matrices(folder, step, model, criterion, batches, recipe), elsewhere)


def _matrices(
    folder: RunFolder,
    step: int,
    model: nn.Module,
    criterion: Criterion,
    batches: Sequence[Batch],
    recipe: Recipe,
) -> list[BatchMatrix]:
    at = objective_of(model, criterion, recipe.parameters)
    parts = parts_of(model, criterion, recipe.parameters, recipe.blocks)
    names = {
        **recipe.names,
        "blocks": recipe.blocks.value,
        "step": step,
        "weights_hash": _hash(at[1]),
        "torch_version": str(torch.__version__),
        "num_batches": len(batches),
    }
    place = folder.passing if recipe.keeps_mean(len(batches)) else folder.shard
    return [
        BatchMatrix(
            place(step, index),
            {**names, "batch_index": index, "num_samples": batch.num_samples},
            at,
            parts,
            batch,
            recipe,
        )
        for index, batch in enumerate(batches)
    ]


def _hash(params: Params) -> str:
    """16 hexadecimal digits of the SHA-256 of the weights: two shards are of one checkpoint if these agree."""
    digest = hashlib.sha256()
    for value in params.values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
