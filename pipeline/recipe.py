"""What is computed of each batch: which matrix, by which strategy, of which weights, and what its shard is to be."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.blocks import Block
from pipeline.certificate import certify, directions
from pipeline.config import Blocks, Keep, Verify
from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.matrix import Matrix
from pipeline.objective import Batch, Criterion, Objective, Params, objective_of
from pipeline.storage import AS_COMPUTED, Storage
from pipeline.strategy import Auto, Strategy
from pipeline.strategy.wanted import Wanted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What is computed of each batch, and what its shard says about itself.

    parameters: names or globs of the weights to differentiate by; None for all that require grad.
    names: attributes of every shard: the names of strategy and matrix, the reduction, the config's hash.
    verify: what becomes of a matrix that fails its certificate.
    blocks: all of the matrix, or the diagonal blocks of the layers alone. storage: how it lies in its file.
    keep: the matrix of each batch, or the mean of all alone.
    """

    matrix: Matrix
    strategy: Strategy
    parameters: Sequence[str] | None
    names: dict[str, str]
    verify: Verify = Verify.error
    blocks: Blocks = Blocks.all
    storage: Storage = AS_COMPUTED
    keep: Keep = Keep.all

    def keeps_mean(self, num_batches: int) -> bool:
        """Whether a batch's matrix goes when it has been added to the mean; that of one batch is the mean."""
        return self.keep is Keep.mean and num_batches > 1


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


def blocks_of(
    recipe: Recipe, part: Part, batch: Batch, wanted: Wanted, attrs: dict[str, Any]
) -> Iterator[Block]:
    """The blocks of a part, by rows and columns of the whole matrix.

    What `auto` takes, and why, goes into `attrs`.
    """
    transformed, drawn = recipe.matrix.problem(part.objective, part.params, batch)

    def inside(rows: slice, cols: slice) -> bool:
        return wanted(_shifted(rows, part.rows.start), _shifted(cols, part.rows.start))

    if isinstance(recipe.strategy, Auto):
        choice, blocks = recipe.strategy.start(transformed, part.params, drawn, inside)
        attrs |= {"strategy": choice.name, "strategy_reason": choice.reason}
    else:
        blocks = recipe.strategy.blocks(transformed, part.params, drawn, inside)
    for block in blocks:
        rows, cols = (_shifted(span, part.rows.start) for span in (block.rows, block.cols))
        yield Block(rows, cols, block.values)


def _shifted(span: slice, by: int) -> slice:
    return slice(span.start + by, span.stop + by)


def certified(
    recipe: Recipe, parts: Sequence[Part], batch: Batch, products: Tensor, stored: torch.dtype, name: str
) -> dict[str, float]:
    """What the certificate found, as attributes of the shard.

    products: H v for `directions`, (P, m). stored: the dtype of H. name: what it is the matrix of.

    Raises:
        PipelineError: H v is wrong, and verify=error.
    """
    if recipe.verify == Verify.off:
        return {}
    found, probes, exact = [], directions(len(products)), batch.to(dtype=torch.float64)
    for part in parts:
        transformed, drawn = recipe.matrix.problem(part.witness[0], part.witness[1], exact)
        mine = products[part.rows], stored, probes[part.rows]
        found.append(certify(transformed, part.witness[1], drawn, *mine))
    worst = max(found, key=lambda certificate: certificate.probe_error / certificate.tolerance)
    if not worst.passed:
        _tell(f"{name}: {worst}", recipe.verify)
    return {"probe_error": worst.probe_error, "probe_tolerance": worst.tolerance}


def _tell(what: str, verify: Verify) -> None:
    """Refuse a matrix that fails its certificate, or only warn."""
    if verify == Verify.warn:
        log.warning("%s: stored all the same, because verify=warn.", what)
        return
    raise PipelineError(
        f"{what}: choose another strategy, or look for a layer with a wrong second derivative; "
        "verify=warn stores it all the same."
    )
