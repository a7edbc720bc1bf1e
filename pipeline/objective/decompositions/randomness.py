"""Random numbers that a model draws: refused, or fixed by a seed.

A loss that draws random numbers at each call has no Hessian. With a seed, each call of the model draws the same
numbers, in the order in which it asks for them: a generator is made from the seed when the model is called, so that
every mask is a constant of the loss. Shapes and order alone decide: the numbers are the same on every device and, drawn
in single precision, in every dtype; batches of one size get the same masks. They come from NumPy and enter as
constants, because PyTorch's own draws are refused or drawn anew inside `vmap`. A part of a batch gets other masks than
it has in the whole: what takes a batch to pieces must compare the pieces with the whole, as `strategy=func` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import PipelineError


class SeededRandomness:
    """The draws of one call of a model. seed: None for none at all."""

    def __init__(self, seed: int | None) -> None:
        self.seed = seed
        self._generator: np.random.Generator | None = None

    def generator(self, name: str) -> np.random.Generator:
        """Where the next numbers come from, for the function of that name.

        Raises:
            PipelineError: there is no seed.
        """
        if self.seed is None:
            raise self.refusal(name)
        if self._generator is None:
            self._generator = np.random.default_rng(self.seed)
        return self._generator

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        """Numbers in [0, 1), float32, on the CPU."""
        return torch.from_numpy(np.asarray(self.generator(name).random(tuple(shape), dtype=np.float32)))

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(
            np.asarray(self.generator(name).standard_normal(tuple(shape), dtype=np.float32))
        )

    def refusal(self, name: str) -> PipelineError:
        if self.seed is None:
            return PipelineError(
                f"the model draws random numbers ({name}; dropout in training mode does), so its loss has no Hessian "
                "until they are fixed: use model.eval(), or randomness=SEED to fix them."
            )
        return PipelineError(
            f"the model draws random numbers by {name}, which randomness={self.seed} cannot fix: use model.eval(), or "
            "draw them by torch.rand or torch.randn."
        )


def _mask(draws: SeededRandomness, name: str, input: Tensor, p: float, shape: Sequence[int]) -> Tensor:
    """1 where an entry stays, with probability 1 - p, else 0."""
    return (draws.uniform(name, shape) >= p).to(input.device, input.dtype)


def _channels(input: Tensor, first: int = 2) -> list[int]:
    """The shape of a mask over whole channels: the first dimensions of the input, and 1 for the others."""
    return [n if dim < first else 1 for dim, n in enumerate(input.shape)]


def _dropout(
    draws: SeededRandomness,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    shape: Sequence[int] | None = None,
    name: str = "dropout",
) -> Tensor:
    if not training or p == 0:
        return input
    mask = _mask(draws, name, input, p, input.shape if shape is None else shape)
    result = input * (mask / (1 - p) if p < 1 else 0 * mask)
    return input.copy_(result) if inplace else result


def _channel_dropout(
    unbatched: int | None,
    draws: SeededRandomness,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor:
    """unbatched: the number of dimensions of an input that is one sample."""
    shape = _channels(input, 1 if input.ndim == unbatched else 2)
    return _dropout(draws, input, p, training, inplace, shape, "channel dropout")


def _alpha_dropout(
    whole: bool,
    draws: SeededRandomness,
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    """Klambauer et al. 2017, arXiv:1706.02515: what is dropped becomes α, and mean and variance of SELU are kept."""
    if not training or p == 0:
        return input
    alpha = -1.7580993408473766
    shape = _channels(input) if whole else input.shape
    mask = _mask(draws, "alpha_dropout", input, p, shape) if p < 1 else input.new_zeros(shape)
    scale = ((1 - p) * (1 + p * alpha**2)) ** -0.5 if p < 1 else 0.0
    result = scale * (input * mask + alpha * (1 - mask) - alpha * p)
    return input.copy_(result) if inplace else result


def _rrelu(
    draws: SeededRandomness,
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    if not training:
        return F.leaky_relu(input, (lower + upper) / 2, inplace)
    slopes = lower + (upper - lower) * draws.uniform("rrelu", input.shape).to(input)
    result = torch.where(input > 0, input, slopes * input)
    return input.copy_(result) if inplace else result


def _shape(sizes: tuple[Any, ...], size: Any = None) -> tuple[int, ...]:
    """Sizes as functions take them: one by one, or as one sequence."""
    if size is not None:
        return tuple(size)
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], Sequence) else sizes


def _new(
    kind: str,
    draws: SeededRandomness,
    *sizes: Any,
    size: Any = None,
    dtype: torch.dtype | None = None,
    device: Any = None,
    requires_grad: bool = False,
    **options: Any,
) -> Tensor:
    drawn = getattr(draws, kind)("torch.rand" if kind == "uniform" else "torch.randn", _shape(sizes, size))
    place = torch.get_default_device() if device is None else device
    result: Tensor = drawn.to(place, dtype or torch.get_default_dtype())
    return result.requires_grad_() if requires_grad else result


def _like(kind: str, draws: SeededRandomness, input: Tensor, **options: Any) -> Tensor:
    return _new(
        kind,
        draws,
        size=input.shape,
        dtype=options.get("dtype") or input.dtype,
        device=options.get("device") or input.device,
    )


def _randint(
    draws: SeededRandomness, *args: Any, low: int = 0, high: Any = None, size: Any = None, **options: Any
) -> Tensor:
    """Signatures (high, size) and (low, high, size)."""
    *bounds, shape = args if size is None else (*args, size)
    bounds += [] if high is None else [high]
    first, last = bounds if len(bounds) == 2 else (low, bounds[0])
    drawn = torch.from_numpy(np.asarray(draws.generator("torch.randint").integers(first, last, tuple(shape))))
    return drawn.to(options.get("device"), options.get("dtype") or torch.int64)


def _randperm(draws: SeededRandomness, n: int, **options: Any) -> Tensor:
    drawn = torch.from_numpy(draws.generator("torch.randperm").permutation(n))
    return drawn.to(options.get("device"), options.get("dtype") or torch.int64)


def _bernoulli(draws: SeededRandomness, input: Tensor, p: float | None = None, **options: Any) -> Tensor:
    """With the probabilities in `input`, or p for all."""
    chances = input.detach() if p is None else torch.full_like(input, p)
    return (draws.uniform("bernoulli", input.shape).to(input) < chances).to(input.dtype)


def _filled(
    kind: str, draws: SeededRandomness, input: Tensor, *args: Any, generator: Any = None, **options: Any
) -> Tensor:
    """In place: uniform_(from, to), normal_(mean, std), exponential_(rate), bernoulli_(p)."""
    drawn = (draws.normal if kind == "normal_" else draws.uniform)(kind, input.shape)
    return input.copy_(FILLINGS[kind](drawn.double(), *args, **options))


def _between(drawn: Tensor, start: float = 0.0, end: float = 1.0, **options: float) -> Tensor:
    start, end = options.get("from", start), options.get("to", end)
    return start + (end - start) * drawn


FILLINGS: dict[str, Callable[..., Tensor]] = {
    "uniform_": _between,
    "normal_": lambda drawn, mean=0.0, std=1.0: mean + std * drawn,
    "exponential_": lambda drawn, lambd=1.0: -torch.log1p(-(drawn + 2.0**-25)) / lambd,
    "bernoulli_": lambda drawn, p=0.5: drawn < torch.as_tensor(p).cpu(),
}


def _normal(draws: SeededRandomness, mean: Any, std: Any = 1.0, size: Any = None, **options: Any) -> Tensor:
    """torch.normal: with tensors of means or deviations, or numbers and a size."""
    given = [value for value in (mean, std) if isinstance(value, Tensor)]
    if given:
        shape = torch.broadcast_shapes(*(value.shape for value in given))
        drawn = draws.normal("torch.normal", shape).to(given[0].device, given[0].dtype)
    else:
        drawn = _new("normal", draws, size=size, **options)
    result: Tensor = mean + std * drawn
    return result.detach()


DRAWN: dict[Any, Callable[..., Tensor]] = {
    F.dropout: _dropout,
    torch.dropout: _dropout,
    F.dropout1d: partial(_channel_dropout, 2),
    F.dropout2d: partial(_channel_dropout, None),
    F.dropout3d: partial(_channel_dropout, 4),
    F.alpha_dropout: partial(_alpha_dropout, False),
    F.feature_alpha_dropout: partial(_alpha_dropout, True),
    F.rrelu: _rrelu,
    torch.rand: partial(_new, "uniform"),
    torch.randn: partial(_new, "normal"),
    torch.rand_like: partial(_like, "uniform"),
    torch.randn_like: partial(_like, "normal"),
    torch.randint: _randint,
    torch.randperm: _randperm,
    torch.bernoulli: _bernoulli,
    torch.Tensor.bernoulli: _bernoulli,
    torch.normal: _normal,
    **{getattr(torch.Tensor, kind): partial(_filled, kind) for kind in FILLINGS},
}
UNFIXED: tuple[Any, ...] = (
    F.fractional_max_pool2d,
    F.fractional_max_pool2d_with_indices,
    F.fractional_max_pool3d,
    F.fractional_max_pool3d_with_indices,
    torch.alpha_dropout,
    torch.alpha_dropout_,
    torch.binomial,
    torch.dropout_,
    torch.feature_alpha_dropout,
    torch.feature_alpha_dropout_,
    torch.feature_dropout,
    torch.feature_dropout_,
    torch.multinomial,
    torch.native_dropout,
    torch.poisson,
    torch.randint_like,
    torch.rrelu,
    torch.rrelu_,
    torch._sample_dirichlet,
    torch._standard_gamma,
    torch.Tensor.cauchy_,
    torch.Tensor.geometric_,
    torch.Tensor.log_normal_,
    torch.Tensor.multinomial,
    torch.Tensor.random_,
    nn.init.kaiming_normal_,
    nn.init.kaiming_uniform_,
    nn.init.normal_,
    nn.init.orthogonal_,
    nn.init.sparse_,
    nn.init.trunc_normal_,
    nn.init.uniform_,
    nn.init.xavier_normal_,
    nn.init.xavier_uniform_,
)
