"""`auto`: what it takes, and that it steps aside."""

import logging

import pytest
import torch
from cases import thread_net
from torch import Tensor, nn

from pipeline.criterion import SquaredError
from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.objective.batch import Batch
from pipeline.objective.objective import objective_of
from pipeline.strategy import Auto, Triangular
from pipeline.strategy import auto as module
from pipeline.strategy.blocks import assemble


@pytest.fixture(autouse=True)
def untold():
    module._tell.cache_clear()


def problem(model: nn.Module, fan_in: int = 1):
    torch.manual_seed(0)
    x = torch.randn(7, fan_in).double()
    objective, params = objective_of(model.double(), SquaredError())
    return objective, params, Batch(x, torch.randn(7, model(x).shape[1]).double())


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, "autograd"),
        ({"very_few_weights": 48}, "hvp"),
        ({"very_few_weights": 49, "few_weights": 1}, "autograd"),
        ({"very_few_weights": 1, "few_weights": 48}, "hvp"),
        ({"very_few_weights": 1, "few_weights": 48, "some_weights": 48}, "khatri_rao"),
    ],
)
def test_the_number_of_weights_decides(options, taken):
    choice, _ = Auto(**options).start(*problem(thread_net()))
    assert choice.name == taken


class Cubic(nn.Module):
    """No weight enters linearly."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight**3


def test_products_where_no_weight_enters_linearly(caplog):
    with caplog.at_level(logging.INFO):
        choice, _ = Auto(very_few_weights=1, few_weights=1, some_weights=1).start(*problem(Cubic()))
    assert choice.name == "hvp"
    assert caplog.messages == ["strategy=auto takes hvp: no weight enters the model linearly."]


class Identity(torch.autograd.Function):
    """Differentiable in reverse only."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


class ReverseOnly(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return Identity.apply(torch.tanh(super().forward(x)))


@pytest.mark.parametrize("options", [{}, {"very_few_weights": 1}, {"very_few_weights": 1, "few_weights": 1}])
def test_it_steps_aside_where_there_is_no_forward_mode(options, caplog):
    objective, params, batch = problem(ReverseOnly(2, 3), 2)
    P = Layout.of(params).num_parameters
    with caplog.at_level(logging.INFO):
        choice, blocks = Auto(**options).start(objective, params, batch)
        found = assemble(blocks, P)
    expected = assemble(Triangular().blocks(objective, params, batch), P)
    assert (found - expected).abs().max() <= 1e-14
    assert choice.name == ("autograd" if not options else "triangular")
    if options:
        assert "cannot be differentiated in forward mode" in choice.reason
        assert caplog.messages == [f"strategy=auto takes triangular: {choice.reason}."]


def test_other_errors_are_not_swallowed():
    objective, params, batch = problem(thread_net())
    with pytest.raises(PipelineError, match="the criterion returned shape"):
        Auto().start(type(objective)(objective.predict, lambda outputs, targets: outputs), params, batch)


def test_the_choice_is_told_once(caplog):
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            Auto().start(*problem(thread_net()))
    assert caplog.messages == ["strategy=auto takes autograd: 49 weights take one pass."]
