"""The loss as a function of the weights: here, once, for every strategy."""

from __future__ import annotations

import fnmatch
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.objective.activation_checkpoints import Surroundings, checkpoints, honored
from pipeline.objective.batch import Batch, Inputs, cast
from pipeline.objective.decompositions.mode import DecompositionMode, check_modules
from pipeline.objective.decompositions.randomness import SeededRandomness
from pipeline.objective.module_state import ModuleState, check_parameters
from pipeline.validation import check_count

Params = dict[str, Tensor]
Criterion = Callable[[Any, Any], Any]


def _anywhere(params: Params) -> AbstractContextManager[Any]:
    return DecompositionMode()


@dataclass(frozen=True)
class Objective:
    """loss(params, batch) = criterion(predict(params, inputs), targets), a 0-d tensor.

    `predict` maps all samples of a batch at once, and must be a pure function of its arguments.
    within: what the criterion is called in, so that weights which it reads by itself are `params`.
    """

    predict: Callable[[Params, Inputs], Any]
    criterion: Criterion
    within: Callable[[Params], AbstractContextManager[Any]] = _anywhere

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The loss of the batch.

        Raises:
            PipelineError: the criterion returned something else than one number.
        """
        return self.loss_of(params, self.predict(params, batch.inputs), batch.targets)

    def loss_of(self, params: Params, outputs: Any, targets: Any) -> Tensor:
        """The loss of outputs that are there."""
        with torch.enable_grad(), self.within(params):
            loss: Tensor | object = self.criterion(outputs, targets)
        if not isinstance(loss, Tensor) or loss.ndim > 0:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise PipelineError(
                f"the criterion returned {got}, expected a 0-d tensor: give it reduction='mean' or 'sum'."
            )
        return loss

    def checkpointed(self) -> Objective:
        """The same, with `torch.utils.checkpoint` inside the model as the user wrote it; else it is as if not there.

        A backward pass then holds what is computed between checkpoints, and what enters each of them.
        """

        def predict(params: Params, inputs: Inputs) -> Any:
            with honored():
                return self.predict(params, inputs)

        return replace(self, predict=predict)

    def gradient(self, params: Params, batch: Batch) -> Tensor:
        """The gradient of the loss, (P,), by one ordinary backward pass; zeros for what the loss does not use."""
        leaves = leaves_of(params)
        loss = self.loss(leaves, batch)
        if not loss.requires_grad:
            return torch.zeros_like(flatten(params))
        parts = torch.autograd.grad(loss, tuple(leaves.values()), materialize_grads=True)
        return flatten(dict(zip(leaves, parts, strict=True)))


def flatten(params: Mapping[str, Tensor]) -> Tensor:
    """The flat vector (P,) of named tensors, in the order of the mapping."""
    return torch.cat([value.reshape(-1) for value in params.values()])


def leaves_of(params: Params) -> Params:
    """The same weights as tensors that require grad: a model may take gradients by its weights in its forward pass."""
    return {name: value.detach().requires_grad_() for name, value in params.items()}


def objective_of(
    model: nn.Module,
    criterion: Criterion,
    parameters: Sequence[str] | str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    randomness: int | None = None,
) -> tuple[Objective, Params]:
    """The objective of a module and the weights it is differentiated by, detached from the module.

    The model runs under `DecompositionMode`, so that every strategy sees functions that can be differentiated twice.
    Each call starts from the buffers, modes and attributes as they are now, and draws the same random numbers. Weights
    that the model or the criterion reads without their module (a penalty over `model.parameters()`, say) are those of
    the call too.

    parameters: None for all that require grad, or names and glob patterns (`"fc1.*"`).
    dtype, device: where to compute; the module itself is neither moved nor changed, nor are its grads,
        buffers, attributes or mode.
    randomness: the seed of the random numbers that the model draws, see `decompositions/randomness.py`;
        None refuses them.

    Raises:
        PipelineError: a pattern matches no parameter, or no parameter is left; the weights are not of one dtype of at
            least single precision; the seed is negative; a module computes something whose derivative autograd does not
            see.
    """
    chosen = set(layout_of(model, parameters, dtype).names)
    if randomness is not None:
        check_count("randomness", randomness, minimum=0)
    state = ModuleState(model)
    own = dict(model.named_parameters())

    def copied(value: Tensor) -> Tensor:
        return cast(value.detach().clone(), device, dtype)

    weights = {name: copied(value) for name, value in own.items()}
    params = {name: value.clone() for name, value in weights.items() if name in chosen}
    buffers = {id(value): copied(value) for _, value in model.named_buffers()}
    outer = ModuleState(criterion) if isinstance(criterion, nn.Module) else None
    if isinstance(criterion, nn.Module):  # class weights, say, or a centre that moves with each call
        held = [*criterion.buffers(), *criterion.parameters()]
        buffers |= {id(value): copied(value) for value in held if id(value) not in set(map(id, own.values()))}
    fixed = {id(own[name]): weights[name] for name in own if name not in chosen}
    requires_grad = {name: value.requires_grad for name, value in own.items()}
    run = compiled_inside(model)

    @contextmanager
    def within(params: Params, draws: SeededRandomness | None = None) -> Iterator[None]:
        values = {**fixed, **{id(own[name]): value for name, value in params.items()}}
        constants = {id(values[id(own[name])]): weights[name] for name in own}
        values |= {identity: value.clone() for identity, value in buffers.items()}
        trained = {id(values[id(own[name])]): name in chosen or requires_grad[name] for name in own}
        loss = outer.replaced(values) if outer else nullcontext()
        with (
            checkpoints(Surroundings(within, params, draws)),
            loss,
            state.replaced(values),
            eager(),
            DecompositionMode(draws, constants, values, trained),
        ):
            yield

    def predict(params: Params, inputs: Inputs) -> Any:
        args, kwargs = arguments(run, inputs)
        with torch.enable_grad(), within(params, SeededRandomness(randomness)):
            return run(*args, **kwargs)

    return Objective(predict, criterion, within), params


def layout_of(
    model: nn.Module,
    parameters: Sequence[str] | str | None = None,
    dtype: torch.dtype | None = None,
) -> Layout:
    """The rows and columns of a matrix by these weights, from their shapes alone: nothing is copied.

    Arguments and errors are those of `objective_of`.
    """
    chosen = select(model, parameters)
    check_modules(model)
    check_dtype(dtype)
    check_parameters(model)
    params = {name: value for name, value in model.named_parameters() if name in chosen}
    _check_precision(
        {
            value.dtype if dtype is None or not value.is_floating_point() else dtype
            for value in params.values()
        }
    )
    return Layout.of(params)


def arguments(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model's call.

    A tuple holds positional arguments, a mapping keyword arguments, a list is one argument; where the model's signature
    does not take them so, a tuple or mapping is one argument, and a list (as a DataLoader collates) holds several.
    """
    if isinstance(inputs, Mapping):
        keywords = dict(inputs)
        return (
            ((), keywords)
            if _takes(model, (), keywords) or not _takes(model, (inputs,), {})
            else ((inputs,), {})
        )
    if isinstance(inputs, tuple | list) and not hasattr(inputs, "_fields"):
        several, one = tuple(inputs), (inputs,)
        first, second = (one, several) if isinstance(inputs, list) else (several, one)
        return (first, {}) if _takes(model, first, {}) or not _takes(model, second, {}) else (second, {})
    return (inputs,), {}


def _takes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # no signature can be read
        return True
    return True


def compiled_inside(model: nn.Module) -> nn.Module:
    """The module that `torch.compile` was given: what it compiled is not to be traced again with other tensors."""
    inside = vars(model).get("_modules", {}).get("_orig_mod")
    return inside if inside is not None and type(model).__name__ == "OptimizedModule" else model


@contextmanager
def eager() -> Iterator[None]:
    """Within it what `torch.compile` and `torch.jit.script` made of functions runs as it was written.

    TorchScript's own derivatives are wrong in forward mode: for x · sigmoid(x) the Hessian is off by more than half.
    """
    stance = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    scripted: Any = torch.jit.ScriptFunction
    before = scripted.__call__

    def written(self: Any, *args: Any, **kwargs: Any) -> Any:
        scripts = (
            getattr(self, "__name__", "") == "ScriptFunction"
        )  # what was traced may be another function by now
        function = getattr(self, "_torchdynamo_inline", None) if scripts else None
        return before(self, *args, **kwargs) if function is None else function(*args, **kwargs)

    scripted.__call__ = written
    try:
        with stance, torch.jit.optimized_execution(False):
            yield
    finally:
        scripted.__call__ = before


def check_dtype(dtype: Any) -> None:
    """Refuse what is not a dtype of at least single precision; None is the model's own."""
    if dtype not in (None, torch.float32, torch.float64):
        raise PipelineError(f"dtype={dtype!r}: choose torch.float32, torch.float64 or None, the model's own.")


def _check_precision(dtypes: set[torch.dtype]) -> None:
    kinds = sorted(map(str, dtypes))
    if len(kinds) > 1:
        raise PipelineError(
            f"the weights are of several dtypes ({', '.join(kinds)}): choose one for all by dtype=torch.float64."
        )
    if kinds[0] not in ("torch.float32", "torch.float64"):
        raise PipelineError(
            f"the weights are {kinds[0]}, which is too coarse for second derivatives: use dtype=torch.float32 or "
            "torch.float64."
        )


def select(model: nn.Module, parameters: Sequence[str] | str | None) -> set[str]:
    """The names of the parameters that are differentiated by.

    Raises:
        PipelineError: the model is no module, a pattern matches no parameter, or none is left.
    """
    if not isinstance(model, nn.Module):
        raise PipelineError(
            f"the model is {_kind(model)}, not a torch.nn.Module: give the module that holds the weights."
        )
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


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
