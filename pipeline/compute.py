"""The compute stage: one shard for each batch, streamed to disk block by block as the strategy yields them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline.compute_batch import BatchMatrix
from pipeline.errors import PipelineError
from pipeline.folder import RunFolder
from pipeline.objective import Batch, Criterion, Params, objective_of
from pipeline.observation import NUM_FIRST, hash_of, observed
from pipeline.recipe import Recipe, parts_of
from pipeline.terminal import progress

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
) -> Iterator[dict[str, Any]]:
    """Write the shards of one checkpoint that are not there yet; give the attributes of each batch's shard.

    Raises:
        PipelineError: a shard in the folder belongs to another config, experiment or other weights, the loss is not
            finite, the matrix holds NaN, or a file cannot be written.
    """
    matrices = matrices_of(folder, step, model, criterion, batches, recipe)
    found = [matrix.there() for matrix in matrices]  # all are looked at before one is written
    if there := len(found) - found.count(None):
        log.info("step %d: %d of %d shards are there already.", step, there, len(batches))
    for matrix, shard in zip(progress(matrices, f"Hessians at step {step}"), found, strict=True):
        yield shard.attrs if shard is not None else matrix.write()


def matrices_of(
    folder: RunFolder,
    step: int,
    model: nn.Module,
    criterion: Criterion,
    batches: Sequence[Batch],
    recipe: Recipe,
    only: int | None = None,
) -> list[BatchMatrix]:
    """What is to be computed at one checkpoint, a matrix a batch; or that of one batch only."""
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
    first = observed("first", *at, batches[0].chunk(0, NUM_FIRST))
    place = folder.passing if recipe.keeps_mean(len(batches)) else folder.shard
    return [
        BatchMatrix(
            place(step, index),
            {
                **names,
                "batch_index": index,
                "num_samples": batch.num_samples,
                "data_hash": hash_of(batch),
            },
            at,
            parts,
            batch,
            recipe,
            first,
        )
        for index, batch in enumerate(batches)
        if only in (None, index)
    ]


def _hash(params: Params) -> str:
    """16 hexadecimal digits of the SHA-256 of the weights: two shards are of one checkpoint if these agree."""
    digest = hashlib.sha256()
    for value in params.values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
