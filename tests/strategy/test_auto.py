"""`auto`: what it takes, and that it steps aside."""

import logging
from itertools import pairwise

import pytest
import torch
from support.cases import thread_net
from torch import Tensor, nn

from pipeline.criterion import SquaredError
from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.objective.batch import Batch
from pipeline.objective.objective import objective_of
from pipeline.strategy import Auto, Triangular
from pipeline.strategy import auto as module
from pipeline.strategy.blocks import assemble
from pipeline.strategy.hvp import Counts, rows_at_once


@pytest.fixture(autouse=True)
def untold():
    module.log_choice.cache_clear()


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


def layers(*sizes: int) -> nn.Module:
    pairs = [(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(sizes)]
    return nn.Sequential(*[module for pair in pairs for module in pair][:-1])


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 3, padding=1), nn.Tanh(), nn.Conv1d(8, 16, 3, padding=1), nn.Tanh(), nn.Flatten()
    )


@pytest.mark.parametrize(
    ("model", "shape", "said"),
    [
        (layers(64, 32, 10), (256, 64), "khatri_rao: 42 tangents in place of 2,410"),
        (layers(*[6] * 13), (4, 6), "hvp: rows of 504 weights are over before units are found"),
        (layers(*[6] * 13), (400, 6), "khatri_rao: 72 tangents in place of 504"),
        (convolutions(), (8, 2, 12), "hvp: units would need 248 tangents and their products, rows 456"),
        (convolutions(), (8, 2, 40), "hvp: units would need 456 tangents and their products, rows 456"),
    ],
    ids=["few units", "many small layers", "the same on many samples", "half as many units", "as many units"],
)
def test_the_work_decides_above_some_hundred_weights(model, shape, said):
    torch.manual_seed(0)
    x = torch.randn(shape)
    objective, params = objective_of(model, SquaredError())
    choice = Auto().choose(objective, params, Batch(x, torch.zeros_like(model(x))))
    assert f"{choice.name}: {choice.reason}" == said


@pytest.mark.parametrize(("positions", "taken"), [(12, "khatri_rao"), (40, "hvp")])
def test_for_large_nets_the_number_of_tangents_decides(positions, taken):
    x, model = torch.randn(8, 2, positions), convolutions()
    objective, params = objective_of(model, SquaredError())
    choice = Auto(few_weights=1, very_few_weights=1, some_weights=1)
    assert choice.choose(objective, params, Batch(x, torch.zeros_like(model(x)))).name == taken


@pytest.mark.parametrize(
    ("numbers", "megabytes", "rows"),
    [
        (100_000, 10_000, 512),  # what is computed fills the caches
        (9_000, 10_000, 815),  # 28 MiB of float32
        (10, 10_000, 1024),
        (100_000, 100, 59),  # memory: 4 numbers and 2 weights of 4 bytes for each row
        (10_000_000, 1, 32),
    ],
)
def test_rows_of_a_pass_fit_caches_and_memory(numbers, megabytes, rows):
    params = {"weight": torch.zeros(20_000)}
    assert rows_at_once(Counts(numbers, 1), params, megabytes) == rows


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
