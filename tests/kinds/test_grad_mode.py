"""Called where autograd is switched off around, or set to another mode: the same matrix, and the mode stays."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kinds.asked import WAYS, data, differences, each_way, is_right, net
from torch import nn

from pipeline.compute.dense import hessian, layer_hessians, sample_hessians

MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled(False)": lambda: torch.set_grad_enabled(False),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=True),
    "one thread": lambda: torch.autograd.set_multithreading_enabled(False),
    "float32 by default": lambda: _Default(torch.float32),
    "meta device around": lambda: torch.device("cpu"),
}


class _Default:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.before)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize("mode", MODES)
@each_way
def test_the_same_matrix(mode: str, way: str) -> None:
    model, x, y = net(3, 4, 2), *data()
    expected = differences(model, nn.MSELoss(), x, y)
    with MODES[mode]():
        before = (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
        )
        found = hessian(model, nn.MSELoss(), x, y, strategy=WAYS[way], verify=way == "auto")
        after = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
    assert is_right(found, expected)
    assert before == after
    assert not found.requires_grad
    assert found.dtype == torch.float64


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
@pytest.mark.parametrize("matrix", ["ggn", "fisher", "empirical_fisher", "residual"])
def test_other_matrices(mode: str, matrix: str) -> None:
    model, x, y = net(3, 4, 2), *data()
    expected = hessian(model, nn.MSELoss(), x, y, matrix=matrix)
    for way in ("khatri_rao", "func", "auto"):
        with MODES[mode]():
            found = hessian(model, nn.MSELoss(), x, y, matrix=matrix, strategy=WAYS[way])
        assert is_right(found, expected)


def test_tensors_and_models_that_were_made_in_inference_mode() -> None:
    x, y = data()
    model = net(3, 4, 2)
    expected = differences(model, nn.MSELoss(), x, y)
    with torch.inference_mode():
        inputs, targets = x.clone(), y.clone()
    assert inputs.is_inference()
    for way in WAYS:
        assert is_right(hessian(model, nn.MSELoss(), inputs, targets, strategy=WAYS[way]), expected)
    with torch.inference_mode():
        made = net(3, 4, 2)
        for own, like in zip(made.parameters(), model.parameters(), strict=True):
            own.copy_(like)
    for way in WAYS:
        assert is_right(hessian(made, nn.MSELoss(), x, y, strategy=WAYS[way]), expected)


def test_layers_and_samples() -> None:
    model, x, y = net(3, 4, 2), *data()
    expected = differences(model, nn.MSELoss(), x, y)
    with torch.no_grad():
        layers = layer_hessians(model, nn.MSELoss(), x, y)
        samples = sample_hessians(model, nn.MSELoss(), x, y)
    assert is_right(layers["0"], expected[:16, :16])
    assert is_right(samples.mean(0), expected)


def test_in_another_thread() -> None:
    """Grad mode is of a thread; another one may switch it off."""
    model, x, y = net(3, 4, 2), *data()
    expected, found = differences(model, nn.MSELoss(), x, y), []

    def work() -> None:
        with torch.no_grad():
            found.extend(hessian(model, nn.MSELoss(), x, y, strategy=WAYS[way]) for way in WAYS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == len(WAYS)
    assert all(is_right(one, expected) for one in found)


@each_way
def test_inside_a_backward_hook(way: str) -> None:
    """A hook runs with autograd off."""
    model, x, y = net(3, 4, 2), *data()
    expected, found = differences(model, nn.MSELoss(), x, y), []
    probe = torch.ones(2, requires_grad=True)
    probe.register_hook(lambda grad: found.append(hessian(model, nn.MSELoss(), x, y, strategy=WAYS[way])))
    probe.square().sum().backward()
    assert is_right(found[0], expected)
