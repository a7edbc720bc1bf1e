"""Functions of one's own, right in their values and first derivatives; some are not in what is derived from those."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class WithSetup(Function):
    """sin z, as the documentation asks for it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].cos()


class WithJvp(Function):
    """z² / 2, with a formula for forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return 0.5 * z * z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * g

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * t


class WithoutVmap(Function):
    """atan z, with no rule for vmap."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.atan()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g / (1 + ctx.saved_tensors[0].square())


class OldStyle(Function):
    """tanh z, with the context in forward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        y = z.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (1 - ctx.saved_tensors[0].square())


class OnceDifferentiable(Function):
    """exp(z / 3), whose backward says that it is not to be differentiated."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        y = (z / 3).exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0] / 3


class KeptOnContext(Function):
    """cos z, with an intermediate kept as an attribute: its second derivative is silently lost."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.slope = -z.sin()
        return z.cos()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.slope


class WrongSecond(Function):
    """A cube whose backward loses the way back to z: right once, wrong twice."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return 0.2 * z**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 0.6 * ctx.saved_tensors[0].detach().square()


class WrongForward(Function):
    """sin z with a formula for forward mode that is off by a factor."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        return 1.5 * ctx.saved_tensors[0].cos() * t


class TwoInputs(Function):
    """a · sin b, old style, with None for what needs no gradient."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.factor = factor
        return factor * a * b.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        to_a = ctx.factor * g * b.sin() if ctx.needs_input_grad[0] else None
        to_b = ctx.factor * g * a * b.cos() if ctx.needs_input_grad[1] else None
        return to_a, to_b, None


FUNCTIONS: dict[str, type[Function]] = {
    "setup_context": WithSetup,
    "jvp": WithJvp,
    "no_vmap_rule": WithoutVmap,
    "old_style": OldStyle,
    "once_differentiable": OnceDifferentiable,
    "kept_on_context": KeptOnContext,
    "wrong_second": WrongSecond,
    "wrong_jvp": WrongForward,
}


@torch.library.custom_op("fuzz::sine", mutates_args=())
def sine(x: Tensor) -> Tensor:
    return x.sin()


@sine.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


sine.register_autograd(lambda ctx, g: g * ctx.saved_tensors[0].cos(), setup_context=_keep)


@torch.library.custom_op("fuzz::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    return 0.2 * x**3


@cube.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fuzz::cube_slope", mutates_args=())
def cube_slope(x: Tensor) -> Tensor:
    """The derivative of `cube`, with no derivative of its own."""
    return 0.6 * x**2


@cube_slope.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


cube.register_autograd(lambda ctx, g: g * cube_slope(ctx.saved_tensors[0]), setup_context=_keep)
