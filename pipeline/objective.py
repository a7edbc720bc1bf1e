"""The loss as a function of the weights: here, once, for every strategy."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from pipeline.draws import Draws
from pipeline.errors import PipelineError
from pipeline.options import check_count
from pipeline.plain import Plain, check_modules

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]
Params = dict[str, Tensor]
Criterion = Callable[[Any, Any], Any]


class Batch(NamedTuple):
    """N samples: every tensor in `inputs` and `targets` has N as its first dimension."""

    inputs: Inputs
    targets: Any

    @property
    def num_samples(self) -> int:
        return len(pytree.tree_leaves(self.inputs)[0])

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Batch:
        """The same samples elsewhere; only floating-point tensors take the dtype."""
        return Batch(*pytree.tree_map(lambda value: _cast(value, device, dtype), tuple(self)))

    def chunk(self, start: int, stop: int) -> Batch:
        """Samples start..stop-1."""
        return Batch(*pytree.tree_map(lambda value: _part(value, start, stop), tuple(self)))


@dataclass(frozen=True)
class Objective:
    """loss(params, batch) = criterion(predict(params, inputs), targets), a 0-d tensor.

    `predict` maps all samples of a batch at once, and must be a pure function of its arguments.
    """

    predict: Callable[[Params, Inputs], Any]
    criterion: Criterion

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The loss of the batch.

        Raises:
            PipelineError: the criterion returned something else than one number.
        """
        outputs = self.predict(params, batch.inputs)
        with Plain():
            loss: Tensor | object = self.criterion(outputs, batch.targets)
        if not isinstance(loss, Tensor) or loss.ndim > 0:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise PipelineError(
                f"the criterion returned {got}, expected a 0-d tensor: give it reduction='mean' or 'sum'."
            )
        return loss

    def gradient(self, params: Params, batch: Batch) -> Tensor:
        """The gradient of the loss, (P,), by one ordinary backward pass; zeros for what the loss does not use."""
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        loss = self.loss(leaves, batch)
        if not loss.requires_grad:
            return torch.zeros_like(flatten(params))
        parts = torch.autograd.grad(loss, tuple(leaves.values()), materialize_grads=True)
        return flatten(dict(zip(leaves, parts, strict=True)))


def flatten(params: Mapping[str, Tensor]) -> Tensor:
    """The flat vector (P,) of named tensors, in the order of the mapping."""
    return torch.cat([value.reshape(-1) for value in params.values()])


def objective_of(
    model: nn.Module,
    criterion: Criterion,
    parameters: Sequence[str] | str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    randomness: int | None = None,
) -> tuple[Objective, Params]:
    """The objective of a module and the weights it is differentiated by, detached from the module.

    The model runs under `Plain`, so that every strategy sees functions that can be differentiated twice. Each call
    starts from the buffers as they are now, and draws the same random numbers.

    parameters: None for all that require grad, or names and glob patterns (`"fc1.*"`).
    dtype, device: where to compute; the module itself is neither moved nor changed, nor are its grads,
        buffers, attributes or mode.
    randomness: the seed of the random numbers that the model draws, see `draws.py`; None refuses them.

    Raises:
        PipelineError: a pattern matches no parameter, or no parameter is left; the seed is negative; a module computes
            something whose derivative autograd does not see.
    """
    chosen = _select(model, parameters)
    check_modules(model)
    if randomness is not None:
        check_count("randomness", randomness, minimum=0)

    def copied(value: Tensor) -> Tensor:
        result: Tensor = _cast(value.detach().clone(), device, dtype)
        return result

    weights = {name: copied(value) for name, value in model.named_parameters()}
    params = {name: value.clone() for name, value in weights.items() if name in chosen}
    fixed = {name: value for name, value in weights.items() if name not in chosen}
    buffers = {name: copied(value) for name, value in model.named_buffers()}

    def predict(params: Params, inputs: Inputs) -> Any:
        state = {**{name: value.clone() for name, value in buffers.items()}, **fixed, **params}
        constants = {id(state[name]): value for name, value in weights.items()}
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        with _left_as_found(model), Plain(Draws(randomness), constants):
            return functional_call(model, state, args, kwargs)

    if isinstance(criterion, nn.Module) and (device is not None or dtype is not None):
        criterion = copy.deepcopy(criterion).to(device=device, dtype=dtype)  # class weights, say
    return Objective(predict, criterion), params


@contextmanager
def _left_as_found(model: nn.Module) -> Iterator[None]:
    """Put back what the modules keep in attributes: weights made by hooks, lists of weights in recurrent layers."""
    found = [(vars(module), dict(vars(module))) for module in model.modules()]
    for module in model.modules():
        if isinstance(module, nn.RNNBase):  # it would copy the weights into one piece of a GPU's memory
            vars(module)["flatten_parameters"] = _nothing
    try:
        yield
    finally:
        for attributes, before in found:
            attributes.clear()
            attributes.update(before)


def _nothing() -> None:
    pass


def _select(model: nn.Module, parameters: Sequence[str] | str | None) -> set[str]:
    every = {name: value for name, value in model.named_parameters()}
    if parameters is None:
        chosen = {name for name, value in every.items() if value.requires_grad}
    else:
        patterns = [parameters] if isinstance(parameters, str) else list(parameters)
        matches = {
            pattern: [pattern] if pattern in every else fnmatch.filter(every, pattern) for pattern in patterns
        }
        unmatched = [pattern for pattern, found in matches.items() if not found]
        if unmatched:
            raise PipelineError(
                f"parameters: {unmatched[0]!r} matches no parameter of {type(model).__name__}: "
                f"it has {', '.join(every)}."
            )
        chosen = {name for found in matches.values() for name in found}
    if not chosen:
        raise PipelineError(
            f"{type(model).__name__} has no parameter that requires grad: nothing to differentiate by."
        )
    return chosen


def _part(value: Any, start: int, stop: int) -> Any:
    return value[start:stop] if isinstance(value, Tensor) else value


def _cast(value: Any, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
