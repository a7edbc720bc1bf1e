"""What generated nets are made of: parts that take whatever shape they find, and the table of their kinds."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 4  # of token ids


class Block:
    """One block of a recipe: its kind, the options that are not the simplest, and the blocks inside."""

    def __init__(self, kind: str, *inside: Block, **options: Any) -> None:
        self.kind, self.inside = kind, inside
        simplest = {name: values[0] for name, values in KINDS[kind].options.items()}
        self.options = {
            name: options[name] for name in simplest if options.get(name, simplest[name]) != simplest[name]
        }

    def with_options(self, **options: Any) -> Block:
        return Block(self.kind, *self.inside, **{**self.options, **options})

    def with_inside(self, inside: Iterable[Block]) -> Block:
        return Block(self.kind, *inside, **self.options)

    def all_options(self) -> SimpleNamespace:
        simplest = {name: values[0] for name, values in KINDS[self.kind].options.items()}
        return SimpleNamespace(**{**simplest, **self.options})

    def tags(self) -> set[str]:
        """The kind, and the kind with each of its options, of this block and of those inside."""
        own = {f"{self.kind}:{name}={value}" for name, value in vars(self.all_options()).items()}
        return {self.kind, *own}.union(*(block.tags() for block in self.inside))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Block) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        words = [repr(self.kind), *map(repr, self.inside)]
        return f"Block({', '.join(words + [f'{name}={value!r}' for name, value in self.options.items()])})"


@dataclass(frozen=True)
class Kind:
    """options: the values of each, the simplest first. rank: of a sample; None takes any.

    odd: whether tools for second derivatives are known to fall over it. holds: whether it has blocks inside.
    """

    name: str
    make: Callable[[Site], Part]
    options: dict[str, tuple[Any, ...]]
    rank: int | None
    weight: float
    odd: bool
    holds: bool


@dataclass
class Site:
    """Where a part is built: a stream of samples (N, ...) that it will get, its options, and the room around it."""

    x: Tensor
    o: SimpleNamespace
    inside: tuple[Block, ...]
    room: Room

    @property
    def width(self) -> int:
        return self.x.shape[-1]

    def chain(self, x: Tensor | None = None) -> Chain:
        return self.room.chain(self.inside, self.x if x is None else x)

    def square(self) -> nn.Linear:
        return nn.Linear(self.width, self.width)


@dataclass
class Room:
    """given: inputs of the model beside the samples, by name, as the parts ask for them."""

    given: dict[str, Any] = field(default_factory=dict)

    def give(self, name: str, value: Any) -> str:
        name = f"{name}{len(self.given)}"
        self.given[name] = value
        return name

    def chain(self, blocks: Iterable[Block], x: Tensor) -> Chain:
        parts = []
        for block in blocks:
            found = KINDS[block.kind]
            here = reform(x, found.rank)
            part = found.make(Site(here, block.all_options(), block.inside, self))
            part.rank = found.rank
            perturb(part, block.inside)
            parts.append(part)
            with as_found(part):
                x = part(x, self.given).detach()
        return Chain(parts)


class Notes:
    """Values behind a detach: those of the first run, in order, are those of every run."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.position = 0
        self.recorded = False

    def constant(self, make: Callable[[], Tensor]) -> Tensor:
        if not self.recorded:
            with torch.no_grad():
                self.values.append(make().clone())
        self.position += 1
        return self.values[self.position - 1]


class Part(nn.Module):
    """Modules, weights and buffers by name, and a function of them and the stream (and of `given[asks]`).

    exact: everything in float64, nothing checkpointed. notes: what a detach gives, see `Notes`; None for a real one.
    mode: training or not, whatever the net is.
    """

    rank: int | None = None
    exact = False
    notes: Notes | None = None
    mode: bool | None = None

    def __init__(self, function: Callable[..., Tensor], asks: str | None = None, **members: Any) -> None:
        super().__init__()
        self.function, self.asks = function, asks
        for name, value in members.items():
            is_weight = type(value) is Tensor and value.is_floating_point()
            setattr(self, name, nn.Parameter(value) if is_weight else value)

    def forward(self, x: Tensor, given: dict[str, Any]) -> Tensor:
        self.given = given
        try:
            x = reform(x, self.rank)
            return self.function(self, x) if self.asks is None else self.function(self, x, given[self.asks])
        finally:
            del self.given

    def constant(self, make: Callable[[], Tensor], how: str = "detach") -> Tensor:
        if self.notes is not None:
            return self.notes.constant(make)
        if how == "detach":
            return make().detach()
        with torch.no_grad():
            return make()


class Chain(nn.Module):
    def __init__(self, parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, given: dict[str, Any]) -> Tensor:
        for part in self.parts:
            x = part(x, given)
        return x


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Put back attributes, lists and buffers as they are now."""
    found = [(vars(module), _copied(vars(module))) for module in model.modules()]
    values = [(value, value.clone()) for value in model.buffers()]
    try:
        yield
    finally:
        for attributes, before in found:
            attributes.clear()
            attributes.update(before)
        for value, before in values:
            value.copy_(before)


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        name: copy.copy(value) if type(value) in {list, dict, OrderedDict} else value
        for name, value in attributes.items()
    }


def perturb(part: nn.Module, inside: tuple[Block, ...]) -> None:
    """Take scales from 1 and shifts from 0; what is inside has been perturbed when it was built."""
    done = (
        {id(p) for m in part.modules() if isinstance(m, Chain) for p in m.parameters()} if inside else set()
    )
    with torch.no_grad():
        for value in part.parameters():
            if id(value) not in done:
                value.add_(0.2 * torch.randn_like(value))


def reform(x: Tensor, rank: int | None) -> Tensor:
    """The same numbers with samples of that rank: (d,), (T, d) or (C, H, W); None leaves all but token ids."""
    if not x.is_floating_point():
        if rank == 0:  # what looks up rows
            return x
        x = F.one_hot(x, VOCABULARY).to(torch.get_default_dtype())
    if rank in {None, 0, x.ndim - 1}:
        return x
    if rank == 1:
        return x.flatten(1)
    if x.ndim == 1:
        x = x[:, None]
    if rank == 2:
        return _split(x) if x.ndim == 2 else x.flatten(2).transpose(1, 2)
    return (_split(x) if x.ndim == 2 else x)[:, None]


def _split(x: Tensor) -> Tensor:
    """(N, d) as (N, T, d / T), T at most 3."""
    length = next(t for t in (2, 3, 1) if x.shape[1] % t == 0)
    return x.unflatten(1, (length, -1))


KINDS: dict[str, Kind] = {}


def kind(
    rank: int | None = None, weight: float = 1.0, odd: bool = False, holds: bool = False, **options: Any
) -> Callable[[Callable[[Site], Part]], Callable[[Site], Part]]:
    """Put a maker of parts into the table, under its own name."""

    def register(make: Callable[[Site], Part]) -> Callable[[Site], Part]:
        KINDS[make.__name__] = Kind(make.__name__, make, options, rank, weight, odd, holds)
        return make

    return register


def joined(x: Tensor, y: Tensor) -> Tensor:
    """x + y, where their shapes agree; else y with the mean of each sample of x."""
    return x + y if x.shape == y.shape else y + x.flatten(1).mean(1).reshape(-1, *[1] * (y.ndim - 1))
