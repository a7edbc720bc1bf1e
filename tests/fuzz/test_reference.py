"""The references of generated nets: closed forms, and the double backward of the plain module where that is right."""

from __future__ import annotations

import pytest
import torch
from fuzz.generator import Recipe, drawn
from fuzz.outcomes import judged, quiet
from fuzz.parts import Block
from fuzz.reference import NotSharp, double_backward, references, weights_of

# what PyTorch does not differentiate twice, or not rightly
NOT_TWICE = ("own_function", "own_operator", "parametrized:how=weight_norm", "embedding_bag", "stateful")


def test_a_linear_map_with_squared_error_has_a_closed_form() -> None:
    recipe = Recipe(3, samples=5, size=1, width=2, reduction="sum")
    problem, found = recipe.build(), references(recipe)
    x = torch.cat([problem.inputs, torch.ones(5, 1)], 1).double()
    inner = 2 * x.T @ x
    order = torch.tensor(
        [0, 1, 2, 8, 3, 4, 5, 9]
    ).argsort()  # weight rows with their biases, as parameters lie
    expected = torch.block_diag(inner, inner)[order][:, order]
    for matrix in ("hessian", "ggn", "fisher"):
        assert (found[matrix].matrix - expected).norm() <= 1e-9 * expected.norm()
    assert found["residual"].matrix.norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("seed", range(40))
def test_differences_are_the_double_backward_of_the_plain_module(seed: int) -> None:
    """In autograd's convention too: what is detached in the plain module is kept constant in the exact one."""
    recipe = drawn(seed)
    if (
        any(tag.startswith(NOT_TWICE) for tag in recipe.tags())
        or recipe.single
        or "in_float32" in recipe.tags()
    ):
        return
    try:
        expected = judged(recipe)["hessian"]
    except NotSharp:
        return
    with quiet():
        problem = recipe.build()
        found = double_backward(problem, weights_of(problem.model))
    assert expected.error(found) <= 1


@pytest.mark.parametrize("how", ["no_grad", "detach", "beside", "set_grad", "gate", "target", "data"])
def test_no_derivative_flows_through_a_detach(how: str) -> None:
    recipe = Recipe(5, (Block("linear"), Block("stopped", Block("linear"), Block("activation"), how=how)), 3)
    problem = recipe.build()
    expected = references(recipe)["hessian"]
    assert expected.error(double_backward(problem, weights_of(problem.model))) <= 1


def test_a_loss_with_a_penalty_has_a_hessian_alone() -> None:
    plain, penalised = (references(Recipe(2, samples=3, loss=loss)) for loss in ("mse", "penalty_squares"))
    extra = penalised["hessian"].matrix - plain["hessian"].matrix
    assert (extra - 0.2 * torch.eye(len(extra))).abs().max() < 1e-8
    assert all(
        penalised[matrix].matrix is None for matrix in ("ggn", "fisher", "empirical_fisher", "residual")
    )
