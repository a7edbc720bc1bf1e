"""What a strategy refuses, in one line that names the remedy; and that the remedy is one."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import pytest
import torch
from support.variants import NAMES, strategy
from torch import Tensor, nn

from pipeline.compute.dense import hessian
from pipeline.errors import PipelineError, is_out_of_memory
from pipeline.strategy import Func

each_strategy = pytest.mark.parametrize("name", NAMES)


def samples() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(7, 3, dtype=torch.float64), torch.randint(4, (7,))


def net(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), *between, nn.Tanh(), nn.Linear(5, 4)).double()


def images_net() -> nn.Module:
    body = (nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(4, 4))
    return nn.Sequential(*body).double()


TRAINING = {
    "with statistics": lambda: net(nn.BatchNorm1d(5)),
    "without statistics": lambda: net(nn.BatchNorm1d(5, track_running_stats=False)),
    "with statistics, several positions": images_net,
    "a function of the batch": lambda: Centered(),
}


class Centered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x - x.mean(0)))


@pytest.mark.parametrize("build", TRAINING.values(), ids=TRAINING)
@pytest.mark.parametrize("chunk_size", [3, 32])
def test_func_refuses_models_that_mix_samples(build: Callable[[], nn.Module], chunk_size: int) -> None:
    with pytest.raises(PipelineError, match="BatchNorm") as caught:
        hessian(build(), nn.CrossEntropyLoss(), *samples(), Func(chunk_size))
    suggested = re.search(r"strategy=(\w+)", str(caught.value).split(":")[-1])
    assert suggested
    assert hessian(build(), nn.CrossEntropyLoss(), *samples(), suggested[1]).isfinite().all()
    assert "\n" not in str(caught.value)


@each_strategy
def test_batchnorm_in_evaluation_is_not_refused(name: str) -> None:
    assert (
        hessian(net(nn.BatchNorm1d(5)).eval(), nn.CrossEntropyLoss(), *samples(), strategy(name))
        .isfinite()
        .all()
    )


@each_strategy
def test_loss_that_is_not_one_number(name: str) -> None:
    with pytest.raises(
        PipelineError, match=r"returned shape \(7,\), expected a 0-d tensor: give it reduction='mean'"
    ):
        hessian(net(), nn.CrossEntropyLoss(reduction="none"), *samples(), strategy(name))


@each_strategy
def test_loss_that_is_no_tensor(name: str) -> None:
    with pytest.raises(PipelineError, match="returned float, expected a 0-d tensor"):
        hessian(net(), lambda outputs, targets: 0.5, *samples(), strategy(name))


@each_strategy
def test_weights_that_are_not_finite(name: str) -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[2, 1] = torch.nan
    with pytest.raises(
        PipelineError, match=r"^the loss is nan: look at the weights, the inputs and the targets\.$"
    ):
        hessian(model, nn.CrossEntropyLoss(), *samples(), strategy(name))
    with pytest.raises(PipelineError, match=r"^the loss is nan: .* or use dtype=torch\.float64\.$"):
        hessian(model, nn.CrossEntropyLoss(), *samples(), strategy(name), dtype=torch.float32)


@each_strategy
def test_pattern_that_matches_nothing(name: str) -> None:
    with pytest.raises(
        PipelineError, match=r"'fc9\.\*' matches no parameter of Sequential: it has 0\.weight, 0\.bias"
    ):
        hessian(net(), nn.CrossEntropyLoss(), *samples(), strategy(name), parameters=["0.*", "fc9.*"])


@each_strategy
def test_layer_that_rewrites_its_weights(name: str) -> None:
    words = nn.Sequential(nn.Embedding(5, 3, max_norm=1.0), nn.Flatten(), nn.Linear(6, 4)).double()
    with pytest.raises(
        PipelineError, match=r"^embedding with max_norm=1\.0 rewrites .* set max_norm=None\.$"
    ):
        hessian(words, nn.CrossEntropyLoss(), torch.randint(5, (7, 2)), samples()[1], strategy(name))


@each_strategy
def test_singular_vectors_that_move_with_each_call(name: str) -> None:
    model = net(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5)))
    with pytest.raises(PipelineError, match=r"^spectral_norm in training mode .* use model\.eval\(\)\.$"):
        hessian(model, nn.CrossEntropyLoss(), *samples(), strategy(name))
    assert hessian(model.eval(), nn.CrossEntropyLoss(), *samples(), strategy(name)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "matrix"), [*((name, "hessian") for name in NAMES), ("auto", "empirical_fisher")]
)
def test_memory_that_runs_out_is_not_called_a_model_that_cannot_be_differentiated(
    name: str, matrix: str
) -> None:
    """The allocator of the CPU raises a RuntimeError, as layers do that have no second derivative."""
    calls = {"seen": 0, "allowed": sys.maxsize}

    class Large(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls["seen"] += 1
            if calls["seen"] > calls["allowed"]:
                torch.empty(10**15)
            return super().forward(x)

    def found() -> Tensor:
        calls["seen"] = 0
        return hessian(model, nn.CrossEntropyLoss(), *samples(), strategy(name), matrix=matrix)

    model = nn.Sequential(Large(3, 2), nn.Tanh(), nn.Linear(2, 4)).double()
    found()
    for allowed in range(calls["seen"]):
        calls["allowed"] = allowed
        with pytest.raises(Exception, match=r".") as caught:
            found()
        assert is_out_of_memory(caught.value), caught.value
