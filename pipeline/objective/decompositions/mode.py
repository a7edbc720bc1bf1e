"""Every function of a model in a form that PyTorch can differentiate twice, in reverse and in forward mode.

Some of PyTorch's functions have no second derivative (fused attention, `embedding_bag`, recurrent layers on CUDA), some
have none in forward mode, and for a few it is wrong: `_weight_norm` in double backward on a CPU, `layer_norm` under
`torch.func.hessian`. While a model runs under `DecompositionMode`, they are replaced by the same function, spelled
out in operations that are right in every mode: `layers.py`, `losses.py`, `recurrent.py`. What has a
derivative that is not its loss's is refused by name. Random numbers are refused, or fixed by a seed: `randomness.py`.

Three more things hold in every mode: a parameter that is used without its module (kept in a list, read by the loss)
is the current one; what runs under `torch.no_grad()` or reads `.data` has no derivative, as in reverse mode, though
forward mode would see one; and a value that is logged (`.numpy()`) can be read while it is being differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.errors import PipelineError
from pipeline.objective.decompositions import layers, losses, recurrent
from pipeline.objective.decompositions.randomness import DRAWN, UNFIXED, SeededRandomness

Handler = Callable[..., Any]


class DecompositionMode(TorchFunctionMode):
    """Spells functions out, one dictionary look-up for each call.

    What is spelled out is again made of calls that other modes see, if they were entered before this one: those that
    watch where weights enter (`interception.py`) see the linear maps inside attention and recurrent layers.

    draws: where random numbers come from; by default there are none.
    constants: by the id of a weight, the values that its padding row keeps whatever the weight becomes.
    values: by the id of a parameter or buffer of the model, the tensor that stands in for it.
    trained: by the id of what stands in for a parameter, whether that is to say that it requires grad.
    """

    def __init__(
        self,
        draws: SeededRandomness | None = None,
        constants: Mapping[int, Tensor] | None = None,
        values: Mapping[int, Tensor] | None = None,
        trained: Mapping[int, bool] | None = None,
    ) -> None:
        super().__init__()
        self.draws = draws or SeededRandomness(None)
        self.constants = constants or {}
        self.values = values or {}
        self.trained = trained or {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.values:
            args = self._current(args)
            if kwargs:
                kwargs = dict(zip(kwargs, self._current(tuple(kwargs.values())), strict=True))
        if not torch.is_grad_enabled():
            args, kwargs = _constant(func, args, kwargs)
        handler = HANDLERS.get(func)
        if handler is None:
            return func(*args, **kwargs)
        return handler(self, *args, **kwargs)

    def _current(self, args: Any) -> Any:
        """The arguments, in which each parameter of the model is the tensor that stands in for it."""
        values = self.values
        for arg in args:
            if id(arg) in values or (type(arg) in LISTS and self._current(arg) is not arg):
                break
        else:
            return args
        current = [
            values.get(id(arg), self._current(arg) if type(arg) in LISTS else arg)  # ids of living tensors
            for arg in args
        ]
        return type(args)(current)


LISTS = (tuple, list)
SETTERS = ("__setitem__", "__set__", "__delitem__")


def _constant(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments of a call under `torch.no_grad()`: forward mode would see through it, so they are detached.

    What is written into stays the tensor that it is.
    """
    name = getattr(func, "__name__", "")
    writes = name in SETTERS or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
    if name in GETTERS:
        return args, kwargs
    first, rest = (args[:1], args[1:]) if writes else ((), args)
    return (*first, *_detached(rest)), {key: _detached((value,))[0] for key, value in kwargs.items()}


def _detached(args: Any) -> tuple[Any, ...]:
    return tuple(
        arg.detach()
        if isinstance(arg, Tensor) and (arg.is_floating_point() or arg.is_complex())
        else type(arg)(_detached(arg))
        if type(arg) in LISTS
        else arg
        for arg in args
    )


GETTERS = ("__get__", "detach", "requires_grad_", "size", "dim", "stride", "is_floating_point", "is_complex")


def check_modules(model: nn.Module) -> None:
    """Refuse modules whose output is not a function of the weights that autograd differentiates.

    Raises:
        PipelineError: spectral_norm in training mode, which improves its singular vectors at each call and hides from
            autograd that they depend on the weights.
    """
    for name, module in model.named_modules():
        inside = [module, *module._forward_pre_hooks.values()]
        if module.training and any(type(one).__name__ in {"_SpectralNorm", "SpectralNorm"} for one in inside):
            raise PipelineError(
                f"spectral_norm in training mode ({name}) changes its singular vectors at each call, unseen by the "
                "derivative: use model.eval()."
            )


def _outside(function: Callable[..., Any]) -> Handler:
    """A replacement that may call what it replaces."""
    return lambda mode, /, *args, **kwargs: function(*args, **kwargs)


def _inside(function: Callable[..., Any]) -> Handler:
    """A replacement whose own calls are spelled out too."""

    def handler(mode: DecompositionMode, /, *args: Any, **kwargs: Any) -> Any:
        with mode:
            return function(*args, **kwargs)

    return handler


def _drawn(replacement: Callable[..., Any]) -> Handler:
    return lambda mode, /, *args, **kwargs: replacement(mode.draws, *args, **kwargs)


def _unfixed(function: Any) -> Handler:
    def handler(mode: DecompositionMode, /, *args: Any, **kwargs: Any) -> Any:
        raise mode.draws.refusal(function.__name__)

    return handler


def _body(function: Any) -> Callable[..., Any]:
    """The Python body of a function of `torch.nn.functional`, without the lines that hand it to modes as a whole."""
    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    names = {**function.__globals__, **dict.fromkeys(checks, _no)}
    body = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


def _no(*args: Any) -> bool:
    return False


def _embedding(
    mode: DecompositionMode,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of the weight; the row of the padding is a constant, as its gradient of zero says."""
    layers.check_lookup("embedding", max_norm, scale_grad_by_freq)
    rows = F.embedding(input, weight)
    if padding_idx is None:
        return rows
    constant = mode.constants.get(id(weight), weight)[padding_idx].detach()
    return torch.where((input == padding_idx % len(weight))[..., None], constant, rows)


def _torch_embedding(
    mode: DecompositionMode,
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """`torch.embedding`, for which -1 means no padding."""
    index = padding_idx if padding_idx >= 0 else None
    return _embedding(mode, indices, weight, index, scale_grad_by_freq=scale_grad_by_freq)


def _without_chunks(*args: Any, options: Any = None, **kwargs: Any) -> Tensor:
    """`linear_cross_entropy`, whose form in chunks is differentiable once."""
    loss: Tensor = _body(F.linear_cross_entropy)(*args, **kwargs)
    return loss


def _scatter_reduce(function: Any) -> Handler:
    def handler(mode: DecompositionMode, /, *args: Any, **kwargs: Any) -> Any:
        if "prod" in (*args[4:5], kwargs.get("reduce")):
            raise PipelineError(
                "scatter_reduce with reduce='prod' has a wrong derivative in forward mode: write the product out."
            )
        return function(*args, **kwargs)

    return handler


def _values(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that is being differentiated; only where it is one tensor, not many under `vmap`."""
    wrapped: Any = torch._C._functorch
    while wrapped.is_functorch_wrapped_tensor(tensor):
        if wrapped.is_batchedtensor(tensor):
            raise RuntimeError("the values of a tensor are read where there are many at once")
        tensor = wrapped.get_unwrapped(tensor)
    return tensor.detach()


def _read(function: Any) -> Handler:
    """A function that reads the numbers of a tensor out of PyTorch: for logging, as the result is a constant."""

    def handler(mode: DecompositionMode, tensor: Tensor, /, *args: Any, **kwargs: Any) -> Any:
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = _values(tensor)
        return function(tensor, *args, **kwargs)

    return handler


def _data(mode: DecompositionMode, tensor: Tensor) -> Tensor:
    """`tensor.data`: the values without their derivative, in forward mode too."""
    return tensor.detach()


def _requires_grad(mode: DecompositionMode, tensor: Tensor) -> bool:
    """As the model's own parameter says it: a penalty may be of those alone that do."""
    return mode.trained.get(id(tensor), tensor.requires_grad)


def _refused(function: Any, remedy: str) -> Handler:
    def handler(mode: DecompositionMode, /, *args: Any, **kwargs: Any) -> Any:
        raise PipelineError(f"{function.__name__} has no right second derivative in PyTorch: use {remedy}.")

    return handler


REFUSED = {
    torch.segment_reduce: "torch.scatter_reduce",
    torch.triangular_solve: "torch.linalg.solve_triangular",
    torch.as_strided_scatter: "indexing",
    torch.native_layer_norm: "torch.nn.functional.layer_norm",
    torch.native_batch_norm: "torch.nn.functional.batch_norm",
    torch.embedding_bag: "torch.nn.functional.embedding_bag",
}
COMPOSED = (F.multi_head_attention_forward, F.gumbel_softmax, F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)
HANDLERS: dict[Any, Handler] = {
    F.embedding: _embedding,
    torch.embedding: _torch_embedding,
    Tensor.data.__get__: _data,  # type: ignore[attr-defined]
    Tensor.requires_grad.__get__: _requires_grad,  # type: ignore[attr-defined]
    **{
        function: _read(function) for function in (Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.item)
    },
    **{function: _inside(_body(function)) for function in COMPOSED},
    **{function: _scatter_reduce(function) for function in (torch.scatter_reduce, Tensor.scatter_reduce)},
    Tensor.scatter_reduce_: _scatter_reduce(Tensor.scatter_reduce_),
    **{function: _outside(other) for function, other in losses.DECOMPOSITIONS.items()},
    **{function: _outside(other) for function, other in layers.DECOMPOSITIONS.items()},
    **{function: _inside(other) for function, other in layers.COMPOSED.items()},
    **{function: _inside(other) for function, other in recurrent.DECOMPOSITIONS.items()},
    **{function: _drawn(other) for function, other in DRAWN.items()},
    **{function: _unfixed(function) for function in UNFIXED},
    **{function: _refused(function, remedy) for function, remedy in REFUSED.items()},
}
if hasattr(F, "linear_cross_entropy"):  # since 2.13
    HANDLERS[F.linear_cross_entropy] = _inside(_without_chunks)
