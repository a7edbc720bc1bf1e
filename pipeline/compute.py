"""The compute stage: one shard for each batch, streamed to disk block by block as the strategy yields them."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline.blocks import Block
from pipeline.certificate import Certificate, certify, directions
from pipeline.config import Blocks, Verify
from pipeline.errors import DamagedFile, NotFiniteError, PipelineError
from pipeline.folder import RunFolder, set_aside
from pipeline.journal import Journal
from pipeline.layout import Layout
from pipeline.matrix import Matrix
from pipeline.objective import Batch, Criterion, Objective, Params, objective_of
from pipeline.shard_writer import ShardWriter, write_shard
from pipeline.shards import open_shard
from pipeline.storage import Plain, Storage
from pipeline.strategy import Auto, Strategy
from pipeline.terminal import progress

MAY_DIFFER = (
    "torch_version",
    "num_batches",
)  # between a shard that is there and the run that takes it as it is
AS_COMPUTED = Plain()
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What is computed of each batch, and what its shard says about itself.

    parameters: names or globs of the weights to differentiate by; None for all that require grad.
    names: attributes of every shard: the names of strategy and matrix, the reduction, the config's hash.
    verify: what becomes of a matrix that fails its certificate.
    blocks: all of the matrix, or the diagonal blocks of the layers alone. storage: how it lies in its file.
    """

    matrix: Matrix
    strategy: Strategy
    parameters: Sequence[str] | None
    names: dict[str, str]
    verify: Verify = Verify.error
    blocks: Blocks = Blocks.all
    storage: Storage = AS_COMPUTED


@dataclass(frozen=True)
class Part:
    """A diagonal block of the matrix, and what it is the Hessian of.

    witness: the objective and its weights in float64, which certify the block.
    """

    rows: slice
    objective: Objective
    params: Params
    witness: tuple[Objective, Params]


def parts_of(
    model: nn.Module, criterion: Criterion, parameters: Sequence[str] | None, blocks: Blocks
) -> list[Part]:
    """One part for the whole matrix, or one for each layer."""
    layout = Layout.of(objective_of(model, criterion, parameters)[1])
    spans = [slice(0, layout.num_parameters)]
    if blocks is Blocks.layer:
        spans = list(layout.layers().values())
    parts = []
    for span in spans:
        names = layout.names_in(span)
        witness = objective_of(model, criterion, names, torch.float64)
        parts.append(Part(span, *objective_of(model, criterion, names), witness))
    return parts


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
    objective, params = objective_of(model, criterion, recipe.parameters)
    parts = parts_of(model, criterion, recipe.parameters, recipe.blocks)
    names = {
        **recipe.names,
        "blocks": recipe.blocks.value,
        "step": step,
        "weights_hash": _hash(params),
        "torch_version": str(torch.__version__),
        "num_batches": len(batches),
    }
    there = sum(folder.shard(step, index).exists() for index in range(len(batches)))
    if there and only is None:
        log.info(
            "step %d: %d of %d shards are there already.",
            step,
            there,
            len(batches),
        )
    for index, batch in enumerate(progress(batches, f"Hessians at step {step}")):
        if only is not None and index != only:
            continue
        path = folder.shard(step, index)
        identity = {**names, "batch_index": index, "num_samples": batch.num_samples}
        attrs = _attrs_of(path)
        if attrs is not None:
            _check_same(str(path), attrs, identity)
            Journal.beside(path, {}).remove()  # of a process that was killed between its last two steps
            yield attrs
        else:
            try:
                attrs = _compute_shard(folder, (objective, params), parts, batch, recipe, identity)
            except NotFiniteError as error:
                raise PipelineError(f"batch {index} at step {step}: {error}") from error
            yield attrs


def _attrs_of(path: Path) -> dict[str, Any] | None:
    """Of a shard that is there; one that is damaged is set aside."""
    try:
        return open_shard(path).attrs if path.exists() else None
    except DamagedFile as damage:
        log.warning("%s", set_aside(damage, "it is computed again"))
        return None


def _compute_shard(
    folder: RunFolder,
    at: tuple[Objective, Params],
    parts: Sequence[Part],
    batch: Batch,
    recipe: Recipe,
    identity: dict[str, Any],
) -> dict[str, Any]:
    """Write one shard, part by part, and certify each."""
    start = time.perf_counter()
    objective, params = at
    loss = float(objective.loss(params, batch))
    if not isfinite(loss):
        raise PipelineError(
            f"the loss of batch {identity['batch_index']} at step {identity['step']} is {loss}: "
            "look at the weights of this checkpoint and at the data, or use dtype=float64."
        )
    gradient = objective.gradient(params, batch)
    attrs = {**identity, "loss": loss, "gradient_norm": float(gradient.norm())}
    dtype = str(gradient.dtype).removeprefix("torch.")
    path, layout = folder.shard(identity["step"], identity["batch_index"]), Layout.of(params)
    probes = directions(layout.num_parameters)
    depends_on = {key: value for key, value in identity.items() if key != "num_batches"}
    stored = recipe.storage.precision or dtype
    with write_shard(
        path,
        layout,
        stored,
        attrs,
        gradient.cpu().numpy(),
        recipe.storage.tile,
        probes.numpy(),
        depends_on,
        computed=dtype,
        packed=recipe.storage.compression,
    ) as writer:
        if writer.num_there:
            log.info(
                "%s: %d tiles are there already, %d are to do.", path.name, writer.num_there, writer.num_to_do
            )
        for part in parts:
            for block in _blocks(recipe, attrs, part, batch, writer):
                rows, cols = (_shifted(span, part.rows.start) for span in (block.rows, block.cols))
                writer.add(rows, cols, block.values.detach().cpu().numpy())
        if stored != dtype:
            attrs |= writer.rounding
        if recipe.verify != Verify.off:
            precision = torch.float32 if stored == "float32" else gradient.dtype
            products = torch.from_numpy(writer.products).to(gradient.device)
            found = [_certify(recipe, part, batch, probes, products, precision) for part in parts]
            worst = max(found, key=lambda certificate: certificate.probe_error / certificate.tolerance)
            attrs |= {"probe_error": worst.probe_error, "probe_tolerance": worst.tolerance}
            if not worst.passed:
                _tell(f"batch {identity['batch_index']} at step {identity['step']}: {worst}", recipe.verify)
    return {**attrs, "seconds": time.perf_counter() - start}


def _blocks(
    recipe: Recipe, attrs: dict[str, Any], part: Part, batch: Batch, writer: ShardWriter
) -> Iterator[Block]:
    """The blocks of the strategy that are not there yet; what `auto` takes, and why, goes into the attributes."""
    transformed, drawn = recipe.matrix.problem(part.objective, part.params, batch)

    def wanted(rows: slice, cols: slice) -> bool:
        return writer.wanted(_shifted(rows, part.rows.start), _shifted(cols, part.rows.start))

    if not isinstance(recipe.strategy, Auto):
        return recipe.strategy.blocks(transformed, part.params, drawn, wanted)
    choice, blocks = recipe.strategy.start(transformed, part.params, drawn, wanted)
    attrs |= {"strategy": choice.name, "strategy_reason": choice.reason}
    return blocks


def _shifted(span: slice, by: int) -> slice:
    return slice(span.start + by, span.stop + by)


def _certify(
    recipe: Recipe, part: Part, batch: Batch, probes: Tensor, products: Tensor, precision: torch.dtype
) -> Certificate:
    objective, params = part.witness
    transformed, exact = recipe.matrix.problem(objective, params, batch.to(dtype=torch.float64))
    return certify(transformed, params, exact, products[part.rows], precision, probes[part.rows])


def _tell(what: str, verify: Verify) -> None:
    """Refuse a matrix that fails its certificate, or only warn."""
    if verify == Verify.warn:
        log.warning("%s: stored all the same, because verify=warn.", what)
        return
    raise PipelineError(
        f"{what}: choose another strategy, or look for a layer with a wrong second derivative; "
        "verify=warn stores it all the same."
    )


def _check_same(path: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        by_auto = (key, value) == (
            "strategy",
            "auto",
        )  # the shard names what was taken; config_hash says the rest
        if key not in MAY_DIFFER and not by_auto and found.get(key) != value:
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
