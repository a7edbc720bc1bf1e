"""Every function of a model in a form that PyTorch can differentiate twice, in reverse and in forward mode.

Some of PyTorch's functions have no second derivative (fused attention, `embedding_bag`, recurrent layers on CUDA), some
have none in forward mode, and for a few it is wrong: `_weight_norm` in double backward on a CPU, `layer_norm` under
`torch.func.hessian`. While a model runs under `Plain`, they are replaced by the same function, spelt out in operations
that are right in every mode: `plain_layers.py`, `plain_losses.py`, `plain_recurrent.py`. What has a derivative that is
not its loss's is refused by name. Random numbers are refused, or fixed by a seed: `draws.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline import plain_layers, plain_losses, plain_recurrent
from pipeline.draws import DRAWN, UNFIXED, Draws
from pipeline.errors import PipelineError

Handler = Callable[..., Any]


class Plain(TorchFunctionMode):
    """Spells functions out, one dictionary look-up for each call.

    What is spelt out is again made of calls that other modes see, if they were entered before this one: those that
    watch where weights enter (`strategy/capture.py`) see the linear maps inside attention and recurrent layers.

    draws: where random numbers come from; by default there are none.
    constants: by the id of a weight, the values that its padding row keeps whatever the weight becomes.
    """

    def __init__(self, draws: Draws | None = None, constants: Mapping[int, Tensor] | None = None) -> None:
        super().__init__()
        self.draws = draws or Draws(None)
        self.constants = constants or {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = HANDLERS.get(func)
        if handler is None:
            return func(*args, **(kwargs or {}))
        return handler(self, *args, **(kwargs or {}))


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
    """A replacement whose own calls are spelt out too."""

    def handler(mode: Plain, /, *args: Any, **kwargs: Any) -> Any:
        with mode:
            return function(*args, **kwargs)

    return handler


def _drawn(replacement: Callable[..., Any]) -> Handler:
    return lambda mode, /, *args, **kwargs: replacement(mode.draws, *args, **kwargs)


def _unfixed(function: Any) -> Handler:
    def handler(mode: Plain, /, *args: Any, **kwargs: Any) -> Any:
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
    mode: Plain,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of the weight; the row of the padding is a constant, as its gradient of zero says."""
    plain_layers.check_lookup("embedding", max_norm, scale_grad_by_freq)
    rows = F.embedding(input, weight)
    if padding_idx is None:
        return rows
    constant = mode.constants.get(id(weight), weight)[padding_idx].detach()
    return torch.where((input == padding_idx % len(weight))[..., None], constant, rows)


def _without_chunks(*args: Any, options: Any = None, **kwargs: Any) -> Tensor:
    """`linear_cross_entropy`, whose form in chunks is differentiable once."""
    loss: Tensor = _body(F.linear_cross_entropy)(*args, **kwargs)
    return loss


def _scatter_reduce(function: Any) -> Handler:
    def handler(mode: Plain, /, *args: Any, **kwargs: Any) -> Any:
        if "prod" in (*args[4:5], kwargs.get("reduce")):
            raise PipelineError(
                "scatter_reduce with reduce='prod' has a wrong derivative in forward mode: write the product out."
            )
        return function(*args, **kwargs)

    return handler


def _refused(function: Any, remedy: str) -> Handler:
    def handler(mode: Plain, /, *args: Any, **kwargs: Any) -> Any:
        raise PipelineError(f"{function.__name__} has no right second derivative in PyTorch: use {remedy}.")

    return handler


REFUSED = {
    torch.segment_reduce: "torch.scatter_reduce",
    torch.triangular_solve: "torch.linalg.solve_triangular",
    torch.as_strided_scatter: "indexing",
    torch.native_layer_norm: "torch.nn.functional.layer_norm",
    torch.native_batch_norm: "torch.nn.functional.batch_norm",
}
COMPOSED = (F.multi_head_attention_forward, F.gumbel_softmax, F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)
HANDLERS: dict[Any, Handler] = {
    F.embedding: _embedding,
    **{function: _inside(_body(function)) for function in COMPOSED},
    **{function: _scatter_reduce(function) for function in (torch.scatter_reduce, Tensor.scatter_reduce)},
    Tensor.scatter_reduce_: _scatter_reduce(Tensor.scatter_reduce_),
    **{function: _outside(other) for function, other in plain_losses.SPELT_OUT.items()},
    **{function: _outside(other) for function, other in plain_layers.SPELT_OUT.items()},
    **{function: _inside(other) for function, other in plain_layers.COMPOSED.items()},
    **{function: _inside(other) for function, other in plain_recurrent.SPELT_OUT.items()},
    **{function: _drawn(other) for function, other in DRAWN.items()},
    **{function: _unfixed(function) for function in UNFIXED},
    **{function: _refused(function, remedy) for function, remedy in REFUSED.items()},
}
if hasattr(F, "linear_cross_entropy"):  # since 2.13
    HANDLERS[F.linear_cross_entropy] = _inside(_without_chunks)
