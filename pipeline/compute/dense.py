"""The matrix of a model as a tensor, from Python: whole, layer by layer, or sample by sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.compute.cost_estimate import check_room
from pipeline.errors import PipelineError, StrategyError
from pipeline.layout import Layout
from pipeline.matrix import MATRICES, Hessian, Matrix
from pipeline.objective import (
    Batch,
    Criterion,
    Inputs,
    Objective,
    Params,
    Reference,
    certify,
    check_loss,
    check_samples_apart,
    device_named,
    differentiation,
    directions,
    layout_of,
    objective_of,
    squares_count_samples,
)
from pipeline.operator import Batches, LossTerms
from pipeline.strategy import (
    STRATEGIES,
    Auto,
    Strategy,
    assemble,
    blocks_by,
    check_finite,
    choices_of,
    hessians_of_samples,
    log_choice,
    refusal,
    tolerance_of,
    with_reasons,
)
from pipeline.validation import named

NestedBlocks = dict[str, dict[str, Tensor]]


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
    inputs: Inputs | DataLoader[Any],
    targets: object = ...,
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
    inputs: Inputs | DataLoader[Any],
    targets: object = ...,
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
    inputs: Inputs | DataLoader[Any],
    targets: object = None,
    strategy: str | Strategy = "auto",
    matrix: str | Matrix = "hessian",
    parameters: Sequence[str] | str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    as_blocks: bool = False,
    verify: bool = True,
    randomness: int | None = None,
) -> Tensor | NestedBlocks:
    """The Hessian of `criterion(model(inputs), targets)` with respect to the model's weights, (P, P) and symmetric.

    Rows and columns are in the order of `model.named_parameters()`, each parameter flattened row-major,
    restricted to the selection. The loss is as the criterion reduces it; nothing is divided by the number of
    samples here. The
    model is left as it was found: mode, gradients, buffers and hooks.

    model: any module; its mode (train or eval) is the one that is differentiated.
    criterion: maps (outputs, targets) to a 0-d tensor.
    inputs: a tensor, a tuple or list (positional arguments) or a mapping (keyword arguments), samples first. What does
        not count samples (a mask, the edges of a graph, None, a flag) stays whole. Where `model.forward` does not take
        them so, tuple, list or mapping are its one argument. NumPy arrays become tensors, floating-point ones in the
        dtype of the computation. A DataLoader of pairs (inputs, targets), without targets here, gives the matrix of the
        loss over all of its samples: the sum over batches, for a mean loss weighted by the terms of each.
    strategy, matrix: a name from `conf/strategy/`, `conf/matrix/`, or an object of that kind.
    parameters: None for all that require grad, or names and glob patterns such as "fc1.*".
    dtype, device: where to compute; those of the model by default.
    as_blocks: return the nested dict of torch.func users instead, H[name_i][name_j] of shape (*shape_i,
        *shape_j).

    verify: check products with the result on the module itself, by differences of its gradients in float64, and let
        strategy="auto" go on to the next way until one is right. Cost: about 15 gradients in float64, and one pass over
        the matrix; meanwhile the module's parameters are moved, and put back.
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
    chosen_strategy = named(strategy, STRATEGIES, "strategy")
    chosen_matrix = named(matrix, MATRICES, "matrix")
    place = device_named(device)
    with differentiation():
        batches = _batches_of(model, inputs, targets, dtype)
        tasks = (_Task(model, criterion, parameters, dtype, place, randomness, batch) for batch in batches)
        if isinstance(inputs, DataLoader):
            dense, layout = _sum_over_batches(tasks, chosen_strategy, chosen_matrix, verify)
        else:
            dense, layout = next(tasks).matrix(chosen_strategy, chosen_matrix, verify)
    return _nested(dense, layout) if as_blocks else dense


@dataclass(frozen=True)
class _Task:
    """What is differentiated, and where."""

    model: nn.Module
    criterion: Criterion
    parameters: Sequence[str] | str | None
    dtype: torch.dtype | None
    device: torch.device | None
    randomness: int | None
    batch: Batch

    def problem(self) -> tuple[Objective, Params, Batch]:
        """The loss as a function of the weights, the weights, and the samples, where they are computed."""
        objective, params = objective_of(*self._about, self.dtype, self.device, self.randomness)
        return objective, params, self.batch.to(self.device, self.dtype)

    def matrix(self, strategy: Strategy, matrix: Matrix, verify: bool) -> tuple[Tensor, Layout]:
        """The matrix by the strategy, or by the first of its ways that gives the right one."""
        objective, params, batch = self.problem()
        layout, example = Layout.of(params), next(iter(params.values()))
        num_parameters, itemsize = layout.num_parameters, example.element_size()
        held = num_parameters**2 * itemsize + strategy.memory(num_parameters, itemsize)
        check_room(held, num_parameters, example.device)
        check_loss(objective, params, batch)
        transformed, drawn = matrix.problem(objective, params, batch)
        failures: list[tuple[str, StrategyError]] = []
        for choice in choices_of(strategy, transformed, params, drawn):
            try:
                dense = assemble(blocks_by(choice, transformed, params, drawn), num_parameters)
                if verify:
                    self._check(dense, matrix, drawn.targets, tolerance_of(choice.strategy, dense.dtype))
            except StrategyError as error:
                failures.append((choice.name, error))
                continue
            if choice.reason:
                log_choice(choice.name, with_reasons(choice, failures).reason)
            return dense, layout
        raise refusal(failures)

    def _check(self, dense: Tensor, matrix: Matrix, targets: object, declared: float) -> None:
        reference = Reference(*self._about, self.batch, self.device, self.randomness)
        exact = objective_of(*self._about, reference.dtype, self.device, self.randomness)
        products = dense @ directions(len(dense)).to(dense)
        certificate = certify(
            reference, matrix, products, dense.dtype, targets, objective=exact, declared=declared
        )
        if not certificate.passed:
            raise StrategyError(str(certificate), certificate.remedy(dense.dtype))

    @property
    def _about(self) -> tuple[nn.Module, Criterion, Sequence[str] | str | None]:
        return self.model, self.criterion, self.parameters


def _batches_of(model: nn.Module, inputs: Any, targets: object, dtype: torch.dtype | None) -> Iterator[Batch]:
    """The batches of a DataLoader, or the one batch of inputs and targets."""
    if isinstance(inputs, DataLoader):
        if targets is not None:
            raise PipelineError("a DataLoader gives its targets itself: leave targets out.")
        return iter(Batches.of(inputs, None, None))
    weights = (
        model.parameters() if isinstance(model, nn.Module) else ()
    )  # `objective_of` refuses anything else
    own = (value.dtype for value in weights if value.is_floating_point())
    return iter([Batch.of(inputs, targets, dtype or next(own, None))])


def _sum_over_batches(
    tasks: Iterable[_Task], strategy: Strategy, matrix: Matrix, verify: bool
) -> tuple[Tensor, Layout]:
    """The matrix of the loss over all batches, summed in float64, in the dtype of the computation."""
    total, weights, terms = None, 0.0, None
    for task in tasks:
        objective, params, batch = task.problem()
        terms = terms or LossTerms.of(objective, params, batch)
        if (weight := terms.weight(batch)) == 0:  # no label of it counts
            continue
        check_loss(objective, params, batch)
        terms.check(objective, params, batch)
        dense, layout = task.matrix(strategy, matrix, verify)
        weights += weight
        total = dense.double() * weight if total is None else total.add_(dense, alpha=weight)
    if total is None or terms is None:
        raise PipelineError("no sample of the DataLoader counts in the loss: look at its targets.")
    return (total if terms.is_sum else total / weights).to(dense.dtype), layout


def layer_hessians(
    model: nn.Module,
    criterion: Criterion,
    inputs: Inputs | DataLoader[Any],
    targets: object = None,
    parameters: Sequence[str] | str | None = None,
    **options: Unpack[Options],
) -> dict[str, Tensor]:
    """The diagonal blocks of `hessian`, one for each layer: {"fc1": (P_1, P_1), ...}, at the cost of these alone.

    A layer is what a module has of its own, its weight and bias together; what the model itself has goes by the name of
    its first parameter. Arguments and errors are those of `hessian`.
    """
    device_named(options.get("device"))  # is told before anything of the model
    layout = layout_of(model, parameters, options.get("dtype"))
    return {
        layer: hessian(model, criterion, inputs, targets, parameters=layout.names_in(span), **options)
        for layer, span in layout.layers().items()
    }


def sample_hessians(
    model: nn.Module,
    criterion: Criterion,
    inputs: Inputs | DataLoader[Any],
    targets: object = None,
    parameters: Sequence[str] | str | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """The Hessian of each sample's own loss, `criterion` on a batch of one: (N, P, P).

    For a mean loss that treats samples alike their mean is `hessian`, for a sum their sum. All samples are taken at
    once with strategy="auto" and matrix="hessian"; else, or if one fails its certificate, they are taken one by one.
    Arguments and errors are those of `hessian`; a model whose output for a sample depends on the others is refused.
    Samples of a DataLoader come in the order in which it gives them. Memory: N·P² numbers.
    """
    if isinstance(inputs, DataLoader):
        batches = _batches_of(model, inputs, targets, None)
        each = [
            sample_hessians(model, criterion, *batch, parameters=parameters, **options) for batch in batches
        ]
        return torch.cat(each)
    place = device_named(options.get("device"))
    dtype, randomness = options.get("dtype"), options.get("randomness")
    with differentiation():
        [own] = _batches_of(model, inputs, targets, dtype)
        task = _Task(model, criterion, parameters, dtype, place, randomness, own)
        objective, params = objective_of(model, criterion, parameters, dtype, place, randomness)
        batch = own.to(place, dtype)
        N, P, example = batch.num_samples, Layout.of(params).num_parameters, next(iter(params.values()))
        check_room(N * P**2 * example.element_size(), P, example.device)
        check_loss(objective, params, batch)
        check_samples_apart(objective.predict, params, batch, "the Hessian of each sample")
        squares = squares_count_samples(objective.predict, params, batch) is not False
        samples = [own.chunk(index, index + 1, squares) for index in range(N)]
        strategy = named(options.get("strategy", "auto"), STRATEGIES, "strategy")
        matrix = named(options.get("matrix", "hessian"), MATRICES, "matrix")
        if isinstance(strategy, Auto) and isinstance(matrix, Hessian):
            together = hessians_of_samples(objective, params, batch, squares)
            verify = options.get("verify", True)
            if together is not None and (not verify or _all_pass(task, samples, together)):
                check_finite(together)
                return together
    return torch.stack(
        [hessian(model, criterion, *sample, parameters=parameters, **options) for sample in samples]
    )


def _all_pass(task: _Task, samples: Sequence[Batch], matrices: Tensor) -> bool:
    """Whether each sample's Hessian passes its certificate."""
    about = (task.model, task.criterion, task.parameters)
    probes = directions(matrices.shape[-1]).to(matrices)
    for sample, dense in zip(samples, matrices, strict=True):
        reference = Reference(*about, sample, task.device, task.randomness)
        if not certify(reference, Hessian(), dense @ probes, dense.dtype, None).passed:
            return False
    return True


def _nested(dense: Tensor, layout: Layout) -> NestedBlocks:
    spans, shapes = layout.slices(), dict(zip(layout.names, layout.shapes, strict=True))
    return {
        row: {
            column: dense[spans[row], spans[column]].reshape(*shapes[row], *shapes[column])
            for column in layout.names
        }
        for row in layout.names
    }
