"""The diagonal blocks that are computed of a batch's matrix, each by its strategy, and their certificates."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import Blocks, Verify
from pipeline.errors import StrategyError
from pipeline.experiment import MatrixSpec
from pipeline.objective import (
    Batch,
    Certificate,
    Criterion,
    Objective,
    Params,
    Reference,
    certify,
    directions,
    layout_of,
    objective_of,
)
from pipeline.strategy import (
    Block,
    BlockFilter,
    Failures,
    blocks_by,
    choices_of,
    log_choice,
    refusal,
    tolerance_of,
    with_reasons,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiagonalBlock:
    """A diagonal block of the matrix, and what it is the Hessian of.

    model, criterion: the user's own, which certify the block, and the names of its parameters.
    """

    rows: slice
    objective: Objective
    params: Params
    model: nn.Module
    criterion: Criterion

    def certificate(
        self, spec: MatrixSpec, batch: Batch, products: Tensor, dtype: torch.dtype
    ) -> Certificate:
        """Of the products with the whole matrix, (P, m), those rows that are of this part."""
        matrix, declared = spec.matrix, tolerance_of(spec.computed_by, next(iter(self.params.values())).dtype)
        about = (self.model, self.criterion, list(self.params))
        reference = Reference(*about, batch)
        exact = objective_of(*about, reference.dtype)
        drawn = matrix.problem(self.objective, self.params, batch)[1]
        probes = directions(len(products))[self.rows]
        return certify(reference, matrix, products[self.rows], dtype, drawn.targets, probes, exact, declared)


def parts_of(
    model: nn.Module, criterion: Criterion, parameters: Sequence[str] | None, blocks: Blocks
) -> list[DiagonalBlock]:
    """One part for the whole matrix, or one for each layer."""
    layout = layout_of(model, parameters)
    spans = [slice(0, layout.num_parameters)]
    if blocks is Blocks.layer:
        spans = list(layout.layers().values())
    return [
        DiagonalBlock(span, *objective_of(model, criterion, layout.names_in(span)), model, criterion)
        for span in spans
    ]


def blocks_of(
    spec: MatrixSpec,
    part: DiagonalBlock,
    batch: Batch,
    block_filter: BlockFilter,
    attrs: dict[str, Any],
    failures: Failures = (),
) -> Iterator[Block]:
    """The blocks of a part, by rows and columns of the whole matrix.

    What `auto` takes, and why, goes into `attrs`. failures: of the ways that it is not to take again.

    Raises:
        StrategyError: the model cannot be differentiated in this way.
    """
    transformed, drawn = spec.matrix.problem(part.objective, part.params, batch)

    def inside(rows: slice, cols: slice) -> bool:
        return block_filter(_shifted(rows, part.rows.start), _shifted(cols, part.rows.start))

    tried = {name for name, _ in failures}
    ways = choices_of(spec.computed_by, transformed, part.params, drawn)
    choice = next((way for way in ways if way.name not in tried), None)
    if choice is None:
        raise refusal(failures)
    if choice.reason:
        choice = with_reasons(choice, failures)
        log_choice(choice.name, choice.reason)
        attrs |= {"strategy": choice.name, "strategy_reason": choice.reason}
    for block in blocks_by(choice, transformed, part.params, drawn, inside):
        rows, cols = (_shifted(span, part.rows.start) for span in (block.rows, block.cols))
        yield Block(rows, cols, block.values)


def _shifted(span: slice, by: int) -> slice:
    return slice(span.start + by, span.stop + by)


def certified(
    spec: MatrixSpec,
    parts: Sequence[DiagonalBlock],
    batch: Batch,
    products: Tensor,
    dtype: torch.dtype,
    name: str,
) -> dict[str, float]:
    """What the certificate found, as attributes of the shard.

    products: H v for `directions`, (P, m). dtype: the dtype of H. name: what it is the matrix of.

    Raises:
        StrategyError: H v is wrong, and verify=error.
    """
    if spec.verify == Verify.off:
        return {}
    found = [part.certificate(spec, batch, products, dtype) for part in parts]
    failed = [certificate for certificate in found if not certificate.passed]
    worst = max(
        failed or found, key=lambda certificate: certificate.probe_error / (certificate.tolerance or 1)
    )
    if failed and spec.verify == Verify.warn:
        log.warning("%s: %s: stored all the same, because verify=warn.", name, worst)
    elif failed:
        remedy = worst.remedy(dtype).replace("torch.", "").replace("verify=False takes", "verify=warn stores")
        if "verify=" not in remedy:
            remedy += "; verify=warn stores it all the same"
        raise StrategyError(str(worst), remedy)
    attrs = {"probe_error": worst.probe_error, "probe_tolerance": worst.tolerance}
    if worst.declared:
        attrs["strategy_tolerance"] = worst.declared
    return attrs
