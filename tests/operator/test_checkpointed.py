"""Products that hold only what checkpoints leave, against the dense Hessian of the same net without checkpoints."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from kinds.asked import data, gauss_newton
from kinds.test_checkpoints import MODELS, Anew, Stepwise, twin
from support.operator_cases import cut
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pipeline
from pipeline.errors import PipelineError
from pipeline.matrix import Hessian
from pipeline.objective import Batch, objective_of
from pipeline.operator import batch_sum, curvature_operator, parts_of, sum_of_parts
from pipeline.operator.checkpointed import Checkpointed
from pipeline.operator.partial_sums import PartialSum
from pipeline.operator.reverse_over_reverse import ReverseOverReverse

NAME = Checkpointed.NAME
KINDS = [kind for kind in MODELS if kind != "offloaded"]  # which holds everything, elsewhere


def doubles() -> tuple[Tensor, Tensor]:
    x, y = data()
    return x.double(), y.double()


def by_autograd(model: nn.Module, criterion: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The dense Hessian, row by row, by PyTorch alone."""
    weights = list(model.parameters())
    gradient = torch.autograd.grad(criterion(model(x), y), weights, create_graph=True)
    flat = torch.cat([part.reshape(-1) for part in gradient])
    rows = [torch.autograd.grad(g, weights, retain_graph=True, materialize_grads=True) for g in flat]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def columns(operator: pipeline.CurvatureOperator) -> Tensor:
    return operator @ torch.eye(operator.num_rows, dtype=torch.float64)


def some(operator: pipeline.CurvatureOperator) -> Tensor:
    torch.manual_seed(4)
    return operator @ torch.randn(operator.num_rows, 3, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [NAME, None])
def test_the_hessian(kind: str, way: str | None) -> None:
    (model, plain), (x, y) = twin(kind), doubles()
    operator = curvature_operator(model, nn.MSELoss(), (x, y), way=way)
    expected = by_autograd(plain, nn.MSELoss(), x, y)
    assert (operator.way == NAME) == (way == NAME)
    assert (columns(operator) - expected).abs().max() <= 1e-13 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("matrix", ["ggn", "residual"])
def test_other_matrices(kind: str, matrix: str) -> None:
    (model, plain), (x, y) = twin(kind), doubles()
    operator = curvature_operator(model, nn.MSELoss(), (x, y), matrix, way=NAME)
    expected = gauss_newton(plain, nn.MSELoss(), x, y)
    if matrix == "residual":
        expected = by_autograd(plain, nn.MSELoss(), x, y) - expected
    assert (columns(operator) - expected).abs().max() <= 1e-12 * expected.abs().max()


def transformer(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.TransformerEncoderLayer(4, 2, 8, dropout=dropout, batch_first=True, norm_first=True)
        for _ in range(3)
    ]
    return nn.Sequential(*map(Stepwise, layers), nn.Flatten(), nn.Linear(12, 3)).double()


def tokens() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(6, 3, 4, dtype=torch.float64), torch.randint(3, (6,))


def test_attention_and_norms() -> None:
    """Functions that have to be spelled out are so where they are computed again, too."""
    model, (x, y) = transformer(), tokens()
    ways = "central differences of the gradient", NAME
    expected, found = (
        some(curvature_operator(model, nn.CrossEntropyLoss(), (x, y), way=way)) for way in ways
    )
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_masks_are_drawn_again() -> None:
    model, pair = transformer(0.3), tokens()
    expected, found = (
        some(curvature_operator(model, nn.CrossEntropyLoss(), pair, randomness=2, way=way))
        for way in ("reverse over reverse", NAME)
    )
    assert (found - expected).abs().max() <= 1e-13 * expected.abs().max()


def test_batches_and_parts() -> None:
    model, (x, y) = transformer(), tokens()
    expected = some(curvature_operator(model, nn.CrossEntropyLoss(), (x, y)))
    batches = cut((x, y), 1, 3, 2)
    operator = curvature_operator(model, nn.CrossEntropyLoss(), batches, way=NAME)
    assert (some(operator) - expected).abs().max() <= 1e-13
    parts, pairs = parts_of(operator, 2), [Batch.of(*pair) for pair in batches]
    sums = [PartialSum.of(part, model, nn.CrossEntropyLoss(), pairs, Hessian()) for part in parts]
    together = sum_of_parts(operator, parts, lambda vectors: [one(vectors) for one in sums])
    assert (some(together) - expected).abs().max() <= 1e-13


class Watched(nn.Module):
    """Tells which of its activations are still there; not in an attribute, as these are put back after a call."""

    there: ClassVar[list[weakref.ref[Tensor]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.linear(x))
        self.there.append(weakref.ref(hidden))
        return hidden * hidden


def test_a_forward_pass_holds_no_activations_inside_checkpoints() -> None:
    x, y = doubles()
    held = {}
    for is_checkpointed in (False, True):
        Watched.there.clear()
        model = nn.Sequential(Stepwise(Watched()), nn.Linear(3, 2)).double()
        objective, params = objective_of(model, nn.MSELoss())
        objective = objective.checkpointed() if is_checkpointed else objective
        leaves = {name: value.requires_grad_() for name, value in params.items()}
        loss = objective.loss(leaves, Batch.of(x, y))
        gc.collect()
        held[is_checkpointed] = loss.requires_grad and any(ref() is not None for ref in Watched.there)
    assert held == {False: True, True: False}


def test_it_is_taken_where_a_graph_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pair = transformer(), tokens()
    assert curvature_operator(model, nn.CrossEntropyLoss(), pair).way != NAME
    monkeypatch.setattr(batch_sum, "available_memory", lambda: 10_000)
    operator = curvature_operator(model, nn.CrossEntropyLoss(), pair)
    assert operator.way == NAME
    assert operator.certificate is not None
    assert operator.certificate.passed
    plain = copy.deepcopy(model)
    for index in range(3):
        plain[index] = model[index].block
    assert curvature_operator(plain, nn.CrossEntropyLoss(), pair).way != NAME


def test_loss_and_gradient_are_those_of_the_module() -> None:
    model, (x, y) = transformer(), tokens()
    loss, gradient = curvature_operator(model, nn.CrossEntropyLoss(), (x, y), way=NAME).loss_and_gradient()
    own = nn.CrossEntropyLoss()(model(x), y)
    parts = torch.autograd.grad(own, list(model.parameters()))
    assert loss == pytest.approx(float(own.detach()), rel=1e-13)
    assert torch.allclose(gradient, torch.cat([part.reshape(-1) for part in parts]), rtol=0, atol=1e-13)


class Reading(Anew):
    """The function reads an activation that is not its argument."""

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tanh(self.a(x))
        return self.b(checkpoint(lambda h: h * first, x, use_reentrant=False))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            Reading,
            "reads a tensor with a gradient that is not its argument: give it as an argument",
        ),
        (lambda: nn.Linear(3, 2), "does not call torch.utils.checkpoint: wrap its blocks in it"),
    ],
    ids=["reading", "none"],
)
def test_mistakes_in_one_line(build: Callable[[], nn.Module], message: str) -> None:
    model, pair = build().double(), doubles()
    with pytest.raises(PipelineError, match=message) as error:
        curvature_operator(model, nn.MSELoss(), pair, way=NAME)
    assert "\n" not in str(error.value)
    expected = by_autograd(model, nn.MSELoss(), *pair)
    found = columns(curvature_operator(model, nn.MSELoss(), pair))
    assert (found - expected).abs().max() <= 1e-13 * expected.abs().max()


class Overwriting(Anew):
    """An argument is written to after the checkpoint that would compute with it again."""

    def forward(self, x: Tensor) -> Tensor:
        h = 2 * x
        out = checkpoint(self.a, h, use_reentrant=False)
        h.add_(1)
        return self.b(torch.tanh(out))


def test_what_checkpoints_would_make_wrong_is_not_computed() -> None:
    objective, params = objective_of(Overwriting().double(), nn.MSELoss())
    with pytest.raises(RuntimeError, match="was written to after it"):
        objective.checkpointed().gradient(params, Batch.of(*doubles()))
    objective, params = objective_of(Anew().double(), nn.MSELoss())
    with pytest.raises(RuntimeError, match="a graph of the gradient holds all that checkpoints save"):
        ReverseOverReverse().product(objective.checkpointed(), params, Batch.of(*doubles()))
