"""The matrix of a model as one tensor, from Python: `pipeline.hessian`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from pipeline.blocks import assemble
from pipeline.certificate import certify, directions
from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.matrix import MATRICES, Matrix
from pipeline.objective import Batch, Criterion, Inputs, objective_of
from pipeline.strategy import STRATEGIES, Strategy

NestedBlocks = dict[str, dict[str, Tensor]]
Kind = TypeVar("Kind")


@overload
def hessian(
    model: nn.Module,
    criterion: Criterion,
    inputs: Inputs,
    targets: object,
    strategy: str | Strategy = ...,
    matrix: str | Matrix = ...,
    parameters: Sequence[str] | str | None = ...,
    dtype: torch.dtype | None = ...,
    device: torch.device | str | None = ...,
    as_blocks: Literal[False] = ...,
    verify: bool = ...,
) -> Tensor: ...
@overload
def hessian(
    model: nn.Module,
    criterion: Criterion,
    inputs: Inputs,
    targets: object,
    strategy: str | Strategy = ...,
    matrix: str | Matrix = ...,
    parameters: Sequence[str] | str | None = ...,
    dtype: torch.dtype | None = ...,
    device: torch.device | str | None = ...,
    *,
    as_blocks: Literal[True],
    verify: bool = ...,
) -> NestedBlocks: ...
def hessian(
    model: nn.Module,
    criterion: Criterion,
    inputs: Inputs,
    targets: object,
    strategy: str | Strategy = "auto",
    matrix: str | Matrix = "hessian",
    parameters: Sequence[str] | str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    as_blocks: bool = False,
    verify: bool = False,
) -> Tensor | NestedBlocks:
    """The Hessian of `criterion(model(inputs), targets)` with respect to the model's weights, (P, P) and symmetric.

    Rows and columns are in the order of `model.named_parameters()`, each parameter flattened row-major,
    restricted to the selection. The loss is as the criterion reduces it; nothing is divided by the number of
    samples here. The
    model is left as it was found: mode, gradients, buffers and hooks.

    model: any module; its mode (train or eval) is the one that is differentiated.
    criterion: maps (outputs, targets) to a 0-d tensor.
    inputs: a tensor, a tuple (positional arguments) or a dict (keyword arguments) of tensors, samples first.
    strategy, matrix: a name from `conf/strategy/`, `conf/matrix/`, or an object of that kind.
    parameters: None for all that require grad, or names and glob patterns such as "fc1.*".
    dtype, device: where to compute; those of the model by default.
    as_blocks: return the nested dict of torch.func users instead, H[name_i][name_j] of shape (*shape_i,
        *shape_j).

    verify: check the result by differences of the gradient in float64, at the cost of a few gradients.

    Cost: that of the strategy. Memory: P² numbers and what the strategy holds.

    Raises:
        PipelineError: a name or pattern is unknown, the criterion does not return one number, or an entry is
            NaN.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> hessian(net, lambda outputs, targets: (outputs - targets).square().sum() / 2, x, torch.zeros(2, 1))
    tensor([[1., 0.],
            [0., 4.]])
    """
    chosen_strategy = _named(strategy, STRATEGIES, "strategy")
    chosen_matrix = _named(matrix, MATRICES, "matrix")
    place = torch.device(device) if device is not None else None
    objective, params = objective_of(model, criterion, parameters, dtype, place)
    batch = Batch(inputs, targets).to(place, dtype)
    layout = Layout.of(params)
    problem = chosen_matrix.problem(objective, params, batch)
    dense = assemble(chosen_strategy.blocks(problem[0], params, problem[1]), layout.num_parameters)
    if verify:
        _check(dense, chosen_matrix, model, criterion, batch, parameters, place)
    return _nested(dense, layout) if as_blocks else dense


def _check(
    dense: Tensor,
    matrix: Matrix,
    model: nn.Module,
    criterion: Criterion,
    batch: Batch,
    parameters: Sequence[str] | str | None,
    device: torch.device | None,
) -> None:
    objective, params = objective_of(model, criterion, parameters, torch.float64, device)
    exact = batch.to(device, torch.float64)
    products = dense @ directions(len(dense)).to(dense)
    transformed, exact = matrix.problem(objective, params, exact)
    certificate = certify(transformed, params, exact, products, dense.dtype)
    if not certificate.passed:
        raise PipelineError(f"{certificate}: choose another strategy.")


def _named(choice: str | Kind, kinds: Mapping[str, type[Kind]], what: str) -> Kind:
    if not isinstance(choice, str):
        return choice
    if choice not in kinds:
        raise PipelineError(f"{what} {choice!r} is unknown: choose one of {', '.join(kinds)}.")
    return kinds[choice]()


def _nested(dense: Tensor, layout: Layout) -> NestedBlocks:
    spans, shapes = layout.slices(), dict(zip(layout.names, layout.shapes, strict=True))
    return {
        row: {
            column: dense[spans[row], spans[column]].reshape(*shapes[row], *shapes[column])
            for column in layout.names
        }
        for row in layout.names
    }
