"""`torch.utils.checkpoint` inside a model: run like any other function, or computed again in the backward pass."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from pipeline.errors import PipelineError

Params = Mapping[str, Tensor]
SETTINGS = ("use_reentrant", "context_fn", "determinism_check", "debug", "early_stop", "preserve_rng_state")


@dataclass
class Seen:
    """How many checkpoints were called."""

    count: int = 0


_HONORED: ContextVar[Seen | None] = ContextVar("honored", default=None)


@contextmanager
def honored() -> Iterator[Seen]:
    """Within it checkpoints of a model compute their function again in the backward pass, and so save memory."""
    seen = _HONORED.get() or Seen()
    token = _HONORED.set(seen)
    try:
        yield seen
    finally:
        _HONORED.reset(token)


@dataclass(frozen=True)
class Surroundings:
    """What a model runs in: weights that stand in for its own, and where its random numbers come from.

    within: makes the same surroundings of other weights and draws, as often as it is called.
    """

    within: Callable[[Any, Any], AbstractContextManager[None]]
    params: Params
    draws: Any

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The function's results, with a graph that holds its arguments alone.

        Under `torch.func` and without gradients there is nothing to save: it is called as it is.
        """
        kwargs = {name: value for name, value in kwargs.items() if name not in SETTINGS}
        seen = _HONORED.get()
        assert seen is not None, "checkpoints are honored"
        seen.count += 1
        if torch._C._functorch.maybe_current_level() is not None or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if _is_number(leaf)]
        segment = _Segment(self, function, leaves, spec, places, copy.deepcopy(self.draws))
        inputs = [*(leaves[place] for place in places), *self.params.values()]
        segment.pairs = [_Pair.of(value) for value in inputs]
        results, form = pytree.tree_flatten(segment.run([pair.dual() for pair in segment.pairs], self.draws))
        if any(isinstance(result, Tensor) and result.requires_grad for result in results):
            raise PipelineError(
                "a function under torch.utils.checkpoint reads a tensor with a gradient that is not its argument: give "
                "it as an argument."
            )
        segment.results = [_Pair.of(result) for result in results if _is_number(result)]
        attached = iter(_Attached.apply(segment, *inputs))  # type: ignore[no-untyped-call]
        results = [next(attached) if _is_number(result) else result for result in results]
        return pytree.tree_unflatten(results, form)


class _Pair(NamedTuple):
    """A tensor without a graph, its tangent in forward mode, and how often it had been written to."""

    primal: Tensor
    tangent: Tensor | None
    version: int

    @staticmethod
    def of(value: Tensor) -> _Pair:
        primal, tangent = forward_ad.unpack_dual(value)
        primal = primal.detach()
        return _Pair(primal, None if tangent is None else tangent.detach(), primal._version)

    def dual(self, leaf: Tensor | None = None) -> Tensor:
        """The tensor with its tangent. leaf: what stands in for it."""
        value = self.primal if leaf is None else leaf
        return value if self.tangent is None else forward_ad.make_dual(value, self.tangent)

    def leaf(self) -> Tensor:
        if self.primal._version != self.version:
            raise RuntimeError("an argument of a checkpoint was written to after it")
        return self.primal.detach().requires_grad_()


@dataclass
class _Segment:
    """A call of a function under a checkpoint. pairs: of its numbers, and of all weights."""

    surroundings: Surroundings
    function: Callable[..., Any]
    leaves: Sequence[Any]
    spec: Any
    places: Sequence[int]
    draws: Any  # as they were before the call
    pairs: Sequence[_Pair] = ()
    results: Sequence[_Pair] = field(default=())

    def __post_init__(self) -> None:
        places = set(self.places)
        self.leaves = [None if place in places else leaf for place, leaf in enumerate(self.leaves)]

    def run(self, values: Sequence[Tensor], draws: Any, is_honored: bool = True) -> Any:
        leaves, num_inputs = list(self.leaves), len(self.places)
        for place, value in zip(self.places, values[:num_inputs], strict=True):
            leaves[place] = value
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        params = dict(zip(self.surroundings.params, values[num_inputs:], strict=True))
        token = _HONORED.set(Seen() if is_honored else None)
        try:
            with self.surroundings.within(params, draws):
                return self.function(*args, **kwargs)
        finally:
            _HONORED.reset(token)

    def pull(self, cotangents: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
        """The cotangents of inputs and weights, None where none is needed; with tangents where there are some.

        For a cotangent u + ε u̇ at x + ε ẋ it is Jᵀu + ε (Jᵀu̇ + ∇⟨Jᵀu, ẋ⟩), the latter by a second backward pass: a
        graph of dual numbers would hold itself until forward mode ends.
        """
        leaves, tangents = [pair.leaf() for pair in self.pairs], [pair.tangent for pair in self.pairs]
        is_dual = any(tangent is not None for tangent in tangents)
        # What is differentiated twice is held as a whole, checkpoints inside it too.
        with torch.enable_grad():
            outputs = pytree.tree_leaves(self.run(leaves, copy.deepcopy(self.draws), not is_dual))
        outputs = [output for output in outputs if _is_number(output)]
        values, along, moved = [], [], []
        for output, cotangent in zip(outputs, cotangents, strict=True):
            if cotangent is not None and output.requires_grad:
                primal, tangent = forward_ad.unpack_dual(cotangent)
                values.append(output)
                along.append(primal)
                moved.append(tangent)
        if not values:
            return [None] * len(leaves)
        chosen = [is_one or t is not None for is_one, t in zip(needed, tangents, strict=True)]
        by = [leaf for leaf, is_one in zip(leaves, chosen, strict=True) if is_one]
        pulled = torch.autograd.grad(values, by, along, allow_unused=True, create_graph=is_dual)
        found: Sequence[Tensor | None] = pulled
        if is_dual:
            ways = [tangent for tangent, is_one in zip(tangents, chosen, strict=True) if is_one]
            found = _with_tangents(by, [*pulled, *values], [*ways, *moved], pulled)
        each = iter(found)
        return [next(each) if is_one else None for is_one in chosen]


def _with_tangents(
    by: Sequence[Tensor],
    functions: Sequence[Tensor | None],
    along: Sequence[Tensor | None],
    pulled: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """What was pulled, with the derivative of all functions along their directions as its tangent."""
    pairs = [
        (f, v)
        for f, v in zip(functions, along, strict=True)
        if f is not None and v is not None and f.requires_grad
    ]
    tangents: Sequence[Tensor | None] = [None] * len(by)
    if pairs:
        values, ways = zip(*pairs, strict=True)
        tangents = torch.autograd.grad(values, by, ways, allow_unused=True)
    return [
        value
        if tangent is None
        else forward_ad.make_dual(torch.zeros_like(leaf) if value is None else value.detach(), tangent)
        for leaf, value, tangent in zip(by, pulled, tangents, strict=True)
    ]


class _Attached(torch.autograd.Function):
    """The results of a segment, whose derivative is taken by computing it again."""

    @staticmethod
    def forward(ctx: Any, segment: _Segment, *inputs: Tensor) -> tuple[Tensor, ...]:
        results, segment.results = segment.results, ()
        ctx.segment = segment
        ctx.tangents = [(p.tangent, (p.primal.shape, p.primal.dtype, p.primal.device)) for p in results]
        ctx.set_materialize_grads(False)
        return tuple(pair.primal for pair in results)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        results, ctx.tangents = ctx.tangents, ()
        return tuple(
            torch.zeros(shape, dtype=kind, device=place) if tangent is None else tangent
            for tangent, (shape, kind, place) in results
        )

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("a graph of the gradient holds all that checkpoints save")
        return None, *ctx.segment.pull(cotangents, ctx.needs_input_grad[1:])


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


@contextmanager
def checkpoints(surroundings: Surroundings | None = None) -> Iterator[None]:
    """What `torch.utils.checkpoint` does within: runs its function like any other, unless it is `honored`.

    PyTorch would compute the function again when the weights that stand in for the model's own have been taken away,
    and out of sight of the modes; and it would hold the tangents of forward mode, which saved tensors carry. So where a
    checkpoint is honored, `Surroundings` hold its arguments and call it.

    surroundings: None: never honored.
    """
    module: Any = sys.modules.get("torch.utils.checkpoint")
    if module is None:
        yield
        return
    replaced = [
        (module, "CheckpointFunction", _NotCheckpointed),
        (module, "_checkpoint_without_reentrant_generator", _not_checkpointed),
    ]
    if surroundings is not None and _HONORED.get() is not None:
        inside = getattr(
            module.checkpoint, "__wrapped__", None
        )  # called by whatever name the user imported it
        replaced.append((inside, "__dynamo_disable", surroundings.call))
    before = [(place, name, vars(place).get(name)) for place, name, _ in replaced if place is not None]
    for place, name, value in replaced:
        if place is not None:
            setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


class _NotCheckpointed:
    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def _not_checkpointed(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield
