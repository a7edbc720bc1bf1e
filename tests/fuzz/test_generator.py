"""The generator itself: the same seed gives the same net, recipes can be read, and shrinking keeps what fails."""

from __future__ import annotations

import pytest
import torch
from fuzz.found import difference, photograph
from fuzz.generator import HEADS, Recipe, drawn, num_weights, shrunk
from fuzz.losses import FORMS, LOSSES
from fuzz.outcomes import judged, quiet
from fuzz.parts import KINDS, Block
from fuzz.reference import NotSharp, called
from torch.utils import _pytree as pytree

SEEDS = range(500)


@pytest.mark.parametrize("seed", range(12))
def test_a_recipe_that_is_read_again_builds_the_same_net(seed: int) -> None:
    recipe = drawn(seed)
    again = Recipe.read(repr(recipe))
    assert again == recipe == drawn(seed)
    with quiet():
        one, other = recipe.build(), again.build()
    weights = [dict(problem.model.named_parameters()) for problem in (one, other)]
    assert list(weights[0]) == list(weights[1])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    leaves = [pytree.tree_leaves((problem.inputs, problem.targets)) for problem in (one, other)]
    for a, b in zip(*leaves, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_the_default_of_every_field_is_left_out_of_the_text() -> None:
    assert repr(Recipe()) == "Recipe()"
    assert repr(
        Recipe(blocks=(Block("linear", width=2), Block("residual", Block("linear", bias=False))))
    ) == ("Recipe(blocks=(Block('linear'), Block('residual', Block('linear', bias=False))))")


def test_every_kind_and_every_option_occurs() -> None:
    found = set().union(*(drawn(seed).tags() for seed in range(4 * len(SEEDS))))
    early = set().union(*(drawn(seed).tags() for seed in SEEDS))
    assert set(KINDS) <= early
    assert {f"loss={name}" for name in LOSSES} <= early
    assert {f"outputs={name}" for name in FORMS} | {f"head={name}" for name in HEADS} <= early
    assert {f"calling={how}" for how in ("plain", "no_grad", "inference")} <= early
    assert {"single=True", "training=True", "samples=1", "samples=7"} <= early
    missing = {
        f"{name}:{option}={value}"
        for name, kind in KINDS.items()
        for option, values in kind.options.items()
        for value in values
    } - found
    assert not missing


def test_shrinking_keeps_what_fails_and_ends() -> None:
    """What fails here is any net that has a reused module in some block, on more than two samples."""

    def fails(recipe: Recipe) -> bool:
        return "reused" in recipe.tags() and recipe.samples > 2

    begun = [recipe for recipe in map(drawn, SEEDS) if fails(recipe)]
    assert begun
    for recipe in begun:
        short = shrunk(recipe, fails, most_tries=1000)
        assert fails(short)
        assert short.blocks == (Block("reused"),)
        assert short == Recipe(seed=short.seed, blocks=short.blocks, samples=3)


def test_shrinking_stops_after_so_many_tries() -> None:
    tried = []
    shrunk(drawn(0), lambda recipe: bool(tried.append(recipe)), most_tries=5)
    assert len(tried) == 5


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_can_be_built_with_each_of_its_options(kind: str) -> None:
    inside = (Block("linear"), Block("activation")) if KINDS[kind].holds else ()
    for option, values in KINDS[kind].options.items():
        for value in values:
            recipe = Recipe(1, (Block(kind, *inside, **{option: value}),), 4, "sequences", 1)
            with quiet():
                problem = recipe.build()
                loss = problem.criterion(called(problem), problem.targets)
            assert loss.ndim == 0
            assert num_weights(problem.model) > 0


def test_most_nets_can_be_judged() -> None:
    left = 0
    for seed in range(1000, 1012):
        try:
            judged(drawn(seed))
        except NotSharp:
            left += 1
    assert left <= 4


def test_a_photograph_sees_what_is_not_as_it_was() -> None:
    model = Recipe(blocks=(Block("reused", how="two_names"), Block("stateful"))).build().model

    def seen(change: object) -> str | None:
        before = photograph(model)
        change()
        return difference(before, photograph(model))

    part = model.body.parts[0]
    assert seen(lambda: None) is None
    assert "training" in seen(lambda: part.first.train(not part.first.training))
    assert "values" in seen(lambda: part.first.weight.data.add_(1))
    assert "requires_grad" in seen(lambda: part.first.weight.requires_grad_(False))
    assert "weight" in seen(
        lambda: setattr(part.first, "weight", torch.nn.Parameter(part.first.weight.clone()))
    )
    assert "hook" in seen(lambda: part.first.register_forward_hook(lambda *_: None))
    assert "new" in seen(lambda: setattr(part, "something", 1))
    assert "grad" in seen(lambda: setattr(part.first.bias, "grad", torch.zeros_like(part.first.bias)))
