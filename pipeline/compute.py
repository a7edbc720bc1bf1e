"""The compute stage: one shard for each batch, streamed to disk block by block as the strategy yields them."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.utils import _pytree as pytree

from pipeline.errors import PipelineError
from pipeline.folder import RunFolder
from pipeline.layout import Layout
from pipeline.matrix import Matrix
from pipeline.objective import Batch, Criterion, Objective, Params, flatten, objective_of
from pipeline.shards import open_shard, write_shard
from pipeline.strategy import Strategy
from pipeline.terminal import progress

MAY_DIFFER = (
    "torch_version",
    "num_batches",
)  # between a shard that is there and the run that takes it as it is
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What is computed of each batch, and what its shard says about itself.

    parameters: names or globs of the weights to differentiate by; None for all that require grad.
    names: attributes of every shard: the names of strategy and matrix, the reduction, the config's hash.
    """

    matrix: Matrix
    strategy: Strategy
    parameters: Sequence[str] | None
    names: dict[str, str]


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
        PipelineError: a shard in the folder belongs to another config or other weights, the loss is not
            finite, the matrix holds NaN, or a file cannot be written.
    """
    objective, params = objective_of(model, criterion, recipe.parameters)
    names = {
        **recipe.names,
        "step": step,
        "weights_hash": _hash(params),
        "torch_version": str(torch.__version__),
        "num_batches": len(batches),
    }
    there = sum(folder.shard(step, index).exists() for index in range(len(batches)))
    if there:
        log.info(
            "step %d: %d of %d shards are there already.",
            step,
            there,
            len(batches),
        )
    for index, batch in enumerate(progress(batches, f"Hessians at step {step}")):
        path = folder.shard(step, index)
        identity = {**names, "batch_index": index, "num_samples": batch.num_samples}
        if path.exists():
            attrs = open_shard(path).attrs
            _check_same(str(path), attrs, identity)
            yield attrs
        else:
            yield _compute_shard(folder, objective, params, batch, recipe, identity)


def _compute_shard(
    folder: RunFolder,
    objective: Objective,
    params: Params,
    batch: Batch,
    recipe: Recipe,
    identity: dict[str, Any],
) -> dict[str, Any]:
    start = time.perf_counter()
    loss = float(objective.loss(params, batch))
    if not torch.isfinite(torch.tensor(loss)):
        raise PipelineError(
            f"the loss of batch {identity['batch_index']} at step {identity['step']} is {loss}: "
            "look at the weights of this checkpoint and at the data, or use dtype=float64."
        )
    gradient = flatten(grad(lambda p: objective.loss(p, batch))(params))
    attrs = {**identity, "loss": loss, "gradient_norm": float(gradient.norm())}
    dtype = str(gradient.dtype).removeprefix("torch.")
    transformed = recipe.matrix.objective(objective, params, batch)
    path = folder.shard(identity["step"], identity["batch_index"])
    with write_shard(path, Layout.of(params), dtype, attrs, gradient.cpu().numpy()) as writer:
        for block in recipe.strategy.blocks(transformed, params, batch):
            writer.add(block.rows, block.cols, block.values.detach().cpu().numpy())
    return {**attrs, "seconds": time.perf_counter() - start}


def _check_same(path: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        if key not in MAY_DIFFER and found.get(key) != value:
            raise PipelineError(
                f"{path} has {key}={found.get(key)!r}, this run has {value!r}: one folder holds one config; "
                "choose another with hydra.run.dir=FOLDER."
            )


def _hash(params: Params) -> str:
    """16 hexadecimal digits of the SHA-256 of the weights: two shards are of one checkpoint if these agree."""
    digest = hashlib.sha256()
    for value in params.values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
