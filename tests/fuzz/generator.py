"""Small random nets with losses and data: a recipe for each seed, which can be printed, read, built and shrunk."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from fuzz import odd, odd_derivatives, odd_states, usual  # noqa: F401 - they fill KINDS
from fuzz.losses import FORMS, LOSSES, Loss, OfLogits
from fuzz.parts import KINDS, VOCABULARY, Block, Chain, Notes, Part, Room, as_found, perturb, reform
from torch import Tensor, nn
from torch.utils import _pytree as pytree

MOST_WEIGHTS = 120
STARTS = ("vectors", "sequences", "images", "tokens")
SIZES = {
    "vectors": ((2,), (3,), (4,)),
    "sequences": ((2, 2), (3, 2), (3, 3)),
    "images": ((1, 3, 3), (2, 3, 2), (1, 4, 3)),
    "tokens": ((2,), (3,), (4,)),
}
HEADS = ("linear", "none", "classes_first", "folded", "number", "deep")
HANDINGS = ("usual", "tuple", "dict", "list", "further_first", "dict_further_first", "nested")
FREEZING = ("none", "first", "biases", "head", "all_but_head")
CALLING = ("plain", "no_grad", "inference")


class Problem(NamedTuple):
    model: Net
    criterion: Callable[[Any, Any], Tensor]
    inputs: Any
    targets: Any


@dataclass(frozen=True)
class Recipe:
    """All that a net, its loss and its data are made of; the default of each field is the simplest.

    seed: of weights and data. samples: N. start, size: what one sample is. calling: whether it is called under no_grad.
    handing: how inputs are handed over, with what there is beside the samples. outputs: the form of what is returned.
    """

    seed: int = 0
    blocks: tuple[Block, ...] = ()
    samples: int = 2
    start: str = "vectors"
    size: int = 0
    head: str = "linear"
    width: int = 2
    outputs: str = "tensor"
    loss: str = "mse"
    reduction: str = "mean"
    handing: str = "usual"
    frozen: str = "none"
    training: bool = False
    single: bool = False
    calling: str = "plain"

    def __repr__(self) -> str:
        told = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        return (
            f"Recipe({', '.join(f'{name}={value!r}' for name, value, default in told if value != default)})"
        )

    @staticmethod
    def read(text: str) -> Recipe:
        """The recipe that prints so."""
        recipe: Recipe = eval(text, {"Recipe": Recipe, "Block": Block})
        return recipe

    def tags(self) -> set[str]:
        own = {f"{field.name}={getattr(self, field.name)}" for field in fields(self)[2:]}
        return own.union(*(block.tags() for block in self.blocks))

    @property
    def criterion(self) -> Loss:
        return LOSSES[self.loss]

    def build(self, exact: bool = False) -> Problem:
        """The net with its loss and data, always the same.

        exact: in float64 throughout, nothing checkpointed, and with what a detach gives kept from the first run on:
        then differences of gradients are what autograd takes for second derivatives.
        """
        before = torch.get_default_dtype()
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            torch.set_default_dtype(torch.float64)
            try:
                return self._build(exact)
            finally:
                torch.set_default_dtype(before)

    def _build(self, exact: bool) -> Problem:
        shape = SIZES[self.start][self.size]
        n = self.samples
        x = torch.randint(VOCABULARY, (n, *shape)) if self.start == "tokens" else torch.randn(n, *shape)
        room = Room()
        chain = room.chain(self.blocks, x)
        with as_found(chain):
            stream = chain(x, room.given).detach()
        model = Net(chain, _head(self.head, stream, self.width), self, tuple(room.given))
        model.train(self.training)
        for part in model.modules():
            if isinstance(part, Part) and part.mode is not None:
                part.train(part.mode)
        _freeze(model, self.frozen)
        with as_found(model):
            outputs = model.main(x, room.given).detach()
        model.num_classes = outputs.shape[1] if outputs.ndim > 1 else 1
        loss = self.criterion
        criterion = loss.make(self.reduction, model)
        if self.outputs != "tensor" and self.loss != "label_loss":
            criterion = OfLogits(criterion)
        targets = loss.targets(outputs)
        inputs = _handed(self.handing, x, room.given)
        problem = Problem(model, criterion, inputs, targets)
        if self.single:
            problem = _cast(problem, torch.float32)
        if exact:
            problem = _cast(problem, torch.float64)
            notes = Notes()
            model.notes = notes
            for part in model.modules():
                if isinstance(part, Part):
                    part.notes, part.exact = notes, True
        return problem

    def simpler(self) -> Iterator[Recipe]:
        """Recipes that are one step simpler, the largest steps first."""
        for blocks in _simpler(self.blocks):
            yield replace(self, blocks=blocks)
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if value == field.default:
                continue
            yield replace(self, **{field.name: field.default})
            if field.name in {"samples", "size", "width"} and value - 1 > field.default:
                yield replace(self, **{field.name: value - 1})


class Net(nn.Module):
    """Parts one after the other and a head; inputs and outputs in the forms that a recipe says."""

    notes: Notes | None = None

    def __init__(self, body: Chain, head: nn.Module, recipe: Recipe, further: tuple[str, ...]) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.handing, self.outputs, self.further = recipe.handing, recipe.outputs, further

    def main(self, x: Tensor, given: dict[str, Any]) -> Tensor:
        result: Tensor = self.head(self.body(x, given), given)
        return result

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.notes is not None:
            self.notes.position = 0
        x, given = self._taken(args, kwargs)
        h = self.body(x, given)
        y = self.head(h, given)
        if self.notes is not None:
            self.notes.recorded = True
        return FORMS[self.outputs](y, h.flatten(1) if h.is_floating_point() else h.to(y.dtype))

    def _taken(self, args: Any, kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        if kwargs:
            return kwargs["x"], {name: kwargs[name] for name in self.further}
        if self.handing == "nested":
            return args[0]["x"], {name: args[0]["further"][name] for name in self.further}
        values = list(args[0]) if self.handing == "list" else list(args)
        x = values.pop(-1 if self.handing == "further_first" else 0)
        return x, dict(zip(self.further, values, strict=True))


def _handed(how: str, x: Tensor, given: dict[str, Any]) -> Any:
    match how:
        case "tuple":
            return (x, *given.values())
        case "dict":
            return {"x": x, **given}
        case "dict_further_first":
            return {**given, "x": x}
        case "list":
            return [x, *given.values()]
        case "further_first":
            return (*given.values(), x)
        case "nested":
            return ({"x": x, "further": given},)
    return (x, *given.values()) if given else x


def _head(how: str, stream: Tensor, width: int) -> Part:
    if not stream.is_floating_point():
        stream = reform(stream, None)
    match how:
        case "none":
            part = Part(lambda p, x: x)
        case "classes_first":
            sequence = reform(stream, 2)
            layer = nn.Linear(sequence.shape[-1], width)
            part = Part(lambda p, x: p.map(x).transpose(1, 2), map=layer)
            part.rank = 2
        case "folded":
            sequence = reform(stream, 2)
            layer = nn.Linear(sequence.shape[-1], width)
            part = Part(lambda p, x: p.map(x).reshape(-1, width), map=layer)
            part.rank = 2
        case "number":
            part = Part(lambda p, x: p.map(x.flatten(1)).squeeze(1), map=nn.Linear(stream[0].numel(), 1))
        case "deep":
            layers = nn.Sequential(nn.Linear(stream[0].numel(), 2), nn.Tanh(), nn.Linear(2, width))
            part = Part(lambda p, x: p.map(x.flatten(1)), map=layers)
        case _:
            part = Part(lambda p, x: p.map(x.flatten(1)), map=nn.Linear(stream[0].numel(), width))
    perturb(part, ())
    return part


def _freeze(model: Net, how: str) -> None:
    first = next(iter(model.body.parts), None)
    for name, value in model.named_parameters():
        inside_first = first is not None and any(value is own for own in first.parameters())
        in_head = any(value is own for own in model.head.parameters())
        if {
            "first": inside_first,
            "biases": "bias" in name,
            "head": in_head,
            "all_but_head": not in_head,
        }.get(how, False):
            value.requires_grad_(False)


def _cast(problem: Problem, dtype: torch.dtype) -> Problem:
    def cast(value: Any) -> Any:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if is_float else value

    model, criterion, inputs, targets = problem
    model.to(dtype)
    if isinstance(criterion, nn.Module):
        criterion.to(dtype)
    return Problem(model, criterion, pytree.tree_map(cast, inputs), pytree.tree_map(cast, targets))


def _simpler(blocks: tuple[Block, ...]) -> Iterator[tuple[Block, ...]]:
    for k, block in enumerate(blocks):
        before, after = blocks[:k], blocks[k + 1 :]
        yield before + after
        if block.inside:
            yield before + block.inside + after
    for k, block in enumerate(blocks):
        before, after = blocks[:k], blocks[k + 1 :]
        for inside in _simpler(block.inside):
            yield (*before, block.with_inside(inside), *after)
        for name, values in KINDS[block.kind].options.items():
            at = values.index(getattr(block.all_options(), name))
            for value in values[: min(at, 2)]:
                yield (*before, block.with_options(**{name: value}), *after)
        if block.kind != "linear":
            yield (*before, Block("linear"), *after)


def shrunk(recipe: Recipe, fails: Callable[[Recipe], bool], most_tries: int = 200) -> Recipe:
    """The recipe, made simpler step by step as long as it still fails."""
    tries = 0
    seen = {repr(recipe)}
    while True:
        for candidate in recipe.simpler():
            if repr(candidate) in seen:
                continue
            if tries == most_tries:
                return recipe
            seen.add(repr(candidate))
            tries += 1
            if fails(candidate):
                recipe = candidate
                break
        else:
            return recipe


USUAL = [found for found in KINDS.values() if not found.odd and found.weight > 0]
ODD = [found for found in KINDS.values() if found.odd]
CLASSES = ("linear", "classes_first", "folded", "deep")


def drawn(seed: int, attempt: int = 0) -> Recipe:
    """The recipe of a seed; attempts after the first are others, for where the first is of no use."""
    rng = random.Random(f"{seed} {attempt}")
    start = rng.choices(STARTS, (5, 3, 2, 2))[0]
    blocks = [
        _block(rng, rng.choices(USUAL, [k.weight for k in USUAL])[0]) for _ in range(rng.choice((0, 1, 1, 2)))
    ]
    for _ in range(rng.choices((0, 1, 2), (2, 6, 2))[0]):
        blocks.append(_block(rng, rng.choices(ODD, [k.weight for k in ODD])[0]))
    rng.shuffle(blocks)
    if start == "tokens":
        blocks.insert(0, _block(rng, KINDS[rng.choice(("embedding", "embedding", "embedding_bag"))]))
    loss = rng.choices(list(LOSSES), [found.weight for found in LOSSES.values()])[0]
    head = rng.choice(CLASSES) if LOSSES[loss].classes else rng.choice(HEADS)
    given = any(
        "further_input" in block.tags() or "attention:mask=padding" in block.tags() for block in blocks
    )
    handing = rng.choice(HANDINGS) if given or rng.random() < 0.3 else "usual"
    return Recipe(
        seed=rng.randrange(10_000),
        blocks=tuple(blocks),
        samples=rng.choice((1, 2, 3, 3, 4, 4, 5, 6, 7)),
        start=start,
        size=rng.randrange(3),
        head=head,
        width=rng.choice((2, 3)) if LOSSES[loss].classes else rng.choice((1, 2, 3)),
        outputs=rng.choice(list(FORMS)) if rng.random() < 0.35 else "tensor",
        loss=loss,
        reduction=rng.choice(("mean", "mean", "sum")),
        handing=handing,
        frozen=rng.choice(FREEZING) if rng.random() < 0.15 else "none",
        training=rng.random() < 0.3,
        single=rng.random() < 0.15,
        calling=rng.choice(("no_grad", "no_grad", "inference")) if rng.random() < 0.1 else "plain",
    )


def _block(rng: random.Random, found: Any) -> Block:
    inside = []
    if found.holds:
        simple = [KINDS[name] for name in ("linear", "activation", "linear", "norm", "learned_activation")]
        anything = [*simple, *(k for k in USUAL if not k.holds)]
        inside = [_block(rng, rng.choice(simple))]
        if rng.random() < 0.6:
            inside.append(_block(rng, rng.choice(anything)))
        rng.shuffle(inside)
        if rng.random() < 0.6 and not any(block.kind == "linear" for block in inside):
            inside.insert(0, Block("linear"))
    return Block(found.name, *inside, **{name: rng.choice(values) for name, values in found.options.items()})


def num_weights(model: nn.Module) -> int:
    return sum(math.prod(p.shape) for p in model.parameters() if p.requires_grad)
