"""The matrix of a model as a tensor, from Python: whole, layer by layer, or sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, TypedDict, TypeVar, Unpack, overload

import torch
from torch import Tensor, nn

from pipeline.compute.certificate import certify, directions
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
    check_samples_apart,
    layout_of,
    leaves_of,
    objective_of,
    squares_count_samples,
)
from pipeline.strategy import (
    STRATEGIES,
    Auto,
    Strategy,
    assemble,
    because,
    blocks_by,
    check_finite,
    choices_of,
    hessians_of_samples,
    refusal,
    tell,
    tolerance_of,
)

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
        them so, tuple, list or mapping are its one argument.
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
    chosen_strategy = _named(strategy, STRATEGIES, "strategy")
    chosen_matrix = _named(matrix, MATRICES, "matrix")
    place = _place(device)
    with torch.inference_mode(False), torch.enable_grad(), _full_precision():
        task = _Task(model, criterion, parameters, dtype, place, randomness, Batch.of(inputs, targets))
        dense, layout = task.matrix(chosen_strategy, chosen_matrix, verify)
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

    def matrix(self, strategy: Strategy, matrix: Matrix, verify: bool) -> tuple[Tensor, Layout]:
        """The matrix by the strategy, or by the first of its ways that gives the right one."""
        objective, params = objective_of(*self._about, self.dtype, self.device, self.randomness)
        batch = self.batch.to(self.device, self.dtype)
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
                tell(choice.name, because(choice, failures).reason)
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


def check_loss(objective: Objective, params: Params, batch: Batch) -> None:
    """Refuse a loss that cannot be computed, or is not finite, before it is differentiated.

    Raises:
        PipelineError: with the line that the model or the criterion raised.
    """
    try:
        loss = float(objective.loss(leaves_of(params), batch).detach())
    except (PipelineError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever the user's model and criterion raise
        line = str(error).partition("\n")[0]
        raise PipelineError(
            f"the loss cannot be computed on these inputs and targets ({type(error).__name__}: {line}): call "
            "criterion(model(inputs), targets) by itself to see where."
        ) from error
    if not isfinite(loss):
        remedy = "" if next(iter(params.values())).dtype == torch.float64 else ", or use dtype=torch.float64"
        raise PipelineError(f"the loss is {loss}: look at the weights, the inputs and the targets{remedy}.")


def _full_precision() -> AbstractContextManager[Any]:
    """No autocast: what it rounds to half precision has no second derivatives to speak of."""
    stack = ExitStack()
    for kind in {"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"}:
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


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
    _place(options.get("device"))  # is told before anything of the model
    layout = layout_of(model, parameters, options.get("dtype"))
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
    once with strategy="auto" and matrix="hessian"; else, or if one fails its certificate, they are taken one by one.
    Arguments and errors are those of `hessian`; a model whose output for a sample depends on the others is refused.
    Memory: N·P² numbers.
    """
    place = _place(options.get("device"))
    dtype, randomness = options.get("dtype"), options.get("randomness")
    with torch.inference_mode(False), torch.enable_grad(), _full_precision():
        own = Batch.of(inputs, targets)
        task = _Task(model, criterion, parameters, dtype, place, randomness, own)
        objective, params = objective_of(model, criterion, parameters, dtype, place, randomness)
        batch = own.to(place, dtype)
        N, P, example = batch.num_samples, Layout.of(params).num_parameters, next(iter(params.values()))
        check_room(N * P**2 * example.element_size(), P, example.device)
        check_loss(objective, params, batch)
        check_samples_apart(objective.predict, params, batch, "the Hessian of each sample")
        squares = squares_count_samples(objective.predict, params, batch) is not False
        samples = [own.chunk(index, index + 1, squares) for index in range(N)]
        strategy = _named(options.get("strategy", "auto"), STRATEGIES, "strategy")
        matrix = _named(options.get("matrix", "hessian"), MATRICES, "matrix")
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


def _place(device: torch.device | str | None) -> torch.device | None:
    try:
        return torch.device(device) if device is not None else None
    except (RuntimeError, TypeError) as error:
        raise PipelineError(
            f"device={device!r} is unknown: choose 'cpu', 'cuda' or another that PyTorch knows."
        ) from error


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
