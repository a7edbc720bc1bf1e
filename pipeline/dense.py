"""The matrix of a model as a tensor, from Python: whole, layer by layer, or sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, TypeVar, Unpack, overload

import torch
from torch import Tensor, nn

from pipeline.blocks import assemble, check_finite
from pipeline.certificate import certify, directions
from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.matrix import MATRICES, Hessian, Matrix
from pipeline.objective import Batch, Criterion, Inputs, Objective, Params, objective_of
from pipeline.plan import check_room
from pipeline.strategy import STRATEGIES, Auto, Strategy
from pipeline.strategy.each_sample import hessians_of_samples

NestedBlocks = dict[str, dict[str, Tensor]]
Kind = TypeVar("Kind")


class Options(TypedDict, total=False):
    """Arguments of `hessian`, by keyword."""

    strategy: str | Strategy
    matrix: str | Matrix
    dtype: torch.dtype | None
    device: torch.device | str | None
    verify: bool
    randomness: int | None


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
    randomness: int | None = ...,
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
    randomness: int | None = ...,
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
    randomness: int | None = None,
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
    randomness: the seed that fixes what the model draws (dropout in training mode); None refuses to draw.

    Cost: that of the strategy. Memory: P² numbers and what the strategy holds.

    Raises:
        PipelineError: a name or pattern is unknown, the criterion does not return one number, an entry is
            NaN, the matrix does not fit into memory, or `verify` finds it wrong.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> hessian(net, lambda outputs, targets: (outputs - targets).square().sum() / 2, x, torch.zeros(2, 1))
    tensor([[1., 0.],
            [0., 4.]])
    """
    chosen_strategy = _named(strategy, STRATEGIES, "strategy")
    chosen_matrix = _named(matrix, MATRICES, "matrix")
    place = torch.device(device) if device is not None else None
    objective, params = objective_of(model, criterion, parameters, dtype, place, randomness)
    batch = Batch(inputs, targets).to(place, dtype)
    layout, example = Layout.of(params), next(iter(params.values()))
    num_parameters, itemsize = layout.num_parameters, example.element_size()
    held = num_parameters**2 * itemsize + chosen_strategy.memory(num_parameters, itemsize)
    check_room(held, num_parameters, example.device)
    problem = chosen_matrix.problem(objective, params, batch)
    dense = assemble(chosen_strategy.blocks(problem[0], params, problem[1]), num_parameters)
    if verify:
        exact = objective_of(model, criterion, parameters, torch.float64, place, randomness)
        _check(dense, chosen_matrix, exact, batch.to(place, torch.float64))
    return _nested(dense, layout) if as_blocks else dense


def layer_hessians(
    model: nn.Module,
    criterion: Criterion,
    inputs: Inputs,
    targets: object,
    parameters: Sequence[str] | str | None = None,
    **options: Unpack[Options],
) -> dict[str, Tensor]:
    """The diagonal blocks of `hessian`, one for each layer: {"fc1": (P_1, P_1), ...}, at the cost of these alone.

    A layer is what a module has of its own, its weight and bias together; what the model itself has goes by the name of
    its first parameter. Arguments and errors are those of `hessian`.
    """
    layout = Layout.of(objective_of(model, criterion, parameters)[1])
    return {
        layer: hessian(model, criterion, inputs, targets, parameters=layout.names_in(span), **options)
        for layer, span in layout.layers().items()
    }


def sample_hessians(
    model: nn.Module,
    criterion: Criterion,
    inputs: Inputs,
    targets: object,
    parameters: Sequence[str] | str | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """The Hessian of each sample's own loss, `criterion` on a batch of one: (N, P, P).

    For a mean loss that treats samples alike their mean is `hessian`, for a sum their sum. All samples are taken at
    once with strategy="auto" and matrix="hessian", unless `verify` is asked for; else they are taken one by one.
    Arguments and errors are those of `hessian`. Memory: N·P² numbers.
    """
    device = options.get("device")
    place = torch.device(device) if device is not None else None
    dtype, randomness = options.get("dtype"), options.get("randomness")
    objective, params = objective_of(model, criterion, parameters, dtype, place, randomness)
    batch = Batch(inputs, targets).to(place, dtype)
    N, P, example = batch.num_samples, Layout.of(params).num_parameters, next(iter(params.values()))
    check_room(N * P**2 * example.element_size(), P, example.device)
    strategy = _named(options.get("strategy", "auto"), STRATEGIES, "strategy")
    matrix = _named(options.get("matrix", "hessian"), MATRICES, "matrix")
    if isinstance(strategy, Auto) and isinstance(matrix, Hessian) and not options.get("verify"):
        together = hessians_of_samples(objective, params, batch)
        if together is not None:
            check_finite(together)
            return together
    samples = (batch.chunk(index, index + 1) for index in range(N))
    return torch.stack(
        [hessian(model, criterion, *sample, parameters=parameters, **options) for sample in samples]
    )


def _check(dense: Tensor, matrix: Matrix, exact: tuple[Objective, Params], batch: Batch) -> None:
    objective, params = exact
    products = dense @ directions(len(dense)).to(dense)
    transformed, drawn = matrix.problem(objective, params, batch)
    certificate = certify(transformed, params, drawn, products, dense.dtype)
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
