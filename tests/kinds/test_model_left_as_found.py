"""After a call, and after one that fails, the model is what it was, object by object."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from kinds.asked import AUTOS, WAYS, data, is_right, net
from support.cases import CASES, Case
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from pipeline.compute.dense import hessian, layer_hessians, sample_hessians
from pipeline.errors import PipelineError
from pipeline.matrix import MATRICES


def walked(value: Any, seen: dict[int, int] | None = None) -> Any:
    """What an object holds, as nested tuples: identities of all modules, tensors and containers, and their contents."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return ("seen", seen[id(value)])
    if isinstance(value, Tensor):
        seen[id(value)] = len(seen)
        grad = None if not value.is_leaf or value.grad is None else walked(value.grad, seen)
        here = (type(value), id(value), value.dtype, value.requires_grad, value.is_leaf, value._version, grad)
        if isinstance(value, nn.parameter.UninitializedTensorMixin):
            return here
        return (
            *here,
            value.data_ptr(),
            value.shape,
            value.stride(),
            value.detach().clone().reshape(-1).tolist(),
        )
    if isinstance(value, nn.Module):
        seen[id(value)] = len(seen)
        return (type(value), id(value), walked(vars(value), seen))
    if isinstance(value, dict):
        seen[id(value)] = len(seen)
        return (type(value), id(value), [(str(key), walked(part, seen)) for key, part in value.items()])
    if isinstance(value, list | tuple | set):
        seen[id(value)] = len(seen)
        return (type(value), id(value), [walked(part, seen) for part in value])
    return (type(value), id(value) if callable(value) else repr(value))


def as_text(walk: Any) -> str:
    return repr(walk)  # NaN is equal to itself as text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_case(case: Case) -> None:
    model, criterion, batch, parameters = case.build()
    nn.Module.zero_grad(model)
    before, random = (
        as_text([walked(part) for part in (model, criterion, batch.inputs, batch.targets)]),
        torch.get_rng_state(),
    )
    for way in ("auto", "auto from khatri_rao", "func"):
        if way == "func" and way in case.refused_by:
            continue
        verify = way == "auto"
        hessian(model, criterion, *batch, strategy=WAYS[way], parameters=parameters, verify=verify)
        after = as_text([walked(part) for part in (model, criterion, batch.inputs, batch.targets)])
        assert after == before, way
    assert torch.equal(torch.get_rng_state(), random)


def with_gradients() -> nn.Module:
    model = net(3, 4, 2)
    model(torch.randn(5, 3)).sum().backward()
    return model


def under_two_names() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), nn.Sequential(layer, nn.Tanh()), nn.Linear(3, 2))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2))
    model[2].weight = model[0].weight
    return model


def lazy_after_a_call() -> nn.Module:
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2))
    model(torch.randn(5, 3))
    return model


def hooked() -> nn.Module:
    model = net(3, 4, 2)
    model[0].register_forward_pre_hook(lambda module, inputs: None)
    model[0].register_forward_hook(lambda module, inputs, outputs: outputs * 1.1)
    model[2].register_full_backward_hook(lambda module, grads, outputs: None)
    model[2].weight.register_hook(lambda grad: None)
    return model


class Recording(nn.Module):
    """Keeps what it sees: in attributes, lists, dictionaries, a buffer, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.calls, self.seen, self.table = 0, [torch.zeros(1)], {"first": None}
        self.last: Tensor | None = None
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        self.calls += 1
        self.last = h
        self.seen.append(h)
        self.table[f"call {self.calls}"] = h
        with torch.no_grad():
            self.mean.lerp_(h.mean(0), 0.1)
        return self.b(h)


def weight_normed() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    parametrizations.weight_norm(model[0])
    return model


def orthogonal() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    parametrizations.orthogonal(model[0])
    return model


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def parametrised_by_hand() -> nn.Module:
    model = net(3, 4, 2)
    parametrize.register_parametrization(model[0], "weight", Doubled())
    return model


def pruned() -> nn.Module:
    model = net(3, 4, 2)
    prune.l1_unstructured(model[0], "weight", amount=0.3)
    return model


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(3, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x[:, None])[0][:, 0]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "with gradients": with_gradients,
    "under two names": under_two_names,
    "tied": tied,
    "lazy, after a call": lazy_after_a_call,
    "hooked": hooked,
    "recording": Recording,
    "weight norm": weight_normed,
    "orthogonal": orthogonal,
    "parametrised by hand": parametrised_by_hand,
    "pruned": pruned,
    "batch norm in training mode": normed,
    "recurrent": Recurrent,
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", ["auto", "auto from khatri_rao", "triangular"])
def test_object_by_object_and_twice(kind: str, way: str) -> None:
    model, (x, y) = MODELS[kind](), data()
    before = as_text(walked(model))
    first = hessian(model, nn.MSELoss(), x, y, strategy=WAYS[way])
    assert as_text(walked(model)) == before
    assert torch.equal(hessian(model, nn.MSELoss(), x, y, strategy=WAYS[way]), first)
    assert as_text(walked(model)) == before


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("kind", MODELS)
def test_other_calls_and_matrices(kind: str) -> None:
    model, (x, y) = MODELS[kind](), data()
    before = as_text(walked(model))
    for matrix in MATRICES:
        with suppress(PipelineError):
            hessian(model, nn.MSELoss(), x, y, matrix=matrix, dtype=torch.float32)
        assert as_text(walked(model)) == before, matrix
    layer_hessians(model, nn.MSELoss(), x, y)
    with suppress(PipelineError):  # batch norm in training mode
        sample_hessians(model, nn.MSELoss(), x, y)
    assert as_text(walked(model)) == before


class Failing(Recording):
    """Raises at a call that is counted from outside."""

    remaining: list[int]

    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x)
        self.remaining[0] -= 1
        if self.remaining[0] < 0:
            raise ArithmeticError("no more")
        return outputs


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 5, 9, 20])
@pytest.mark.parametrize("way", ["auto", "khatri_rao", "func"])
def test_an_exception_inside_forward(calls: int, way: str) -> None:
    """At whichever call it comes: one line, and the model as it was."""
    model, (x, y), remaining = Failing(), data(), [calls]
    Failing.remaining = remaining  # of the class, since attributes of the model are put back
    before = as_text(walked(model))
    with suppress(PipelineError):  # and nothing else
        hessian(model, nn.MSELoss(), x, y, strategy=WAYS[way])
    assert as_text(walked(model)) == before


class Interrupted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.a(x)
        raise KeyboardInterrupt


def test_an_interrupt() -> None:
    model, (x, y) = Interrupted(), data()
    before = as_text(walked(model))
    with pytest.raises(KeyboardInterrupt):
        hessian(model, nn.MSELoss(), x, y)
    assert as_text(walked(model)) == before
    assert torch.is_grad_enabled()


REFUSALS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "a name that is none": (normed, {"parameters": "nothing.*"}),
    "a dtype": (normed, {"dtype": torch.float16}),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(2)), {}),
    "random numbers": (lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), {}),
    "func with batch norm": (normed, {"strategy": "func"}),
    "the criterion": (Recording, {"matrix": "fisher"}),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal(kind: str) -> None:
    build, options = REFUSALS[kind]
    model, (x, y) = build(), data()
    before, random = as_text(walked(model)), torch.get_rng_state()
    with pytest.raises(PipelineError):
        hessian(model, lambda f, t: (f - t).square().mean(), x, y, **options)
    assert as_text(walked(model)) == before
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", AUTOS)
def test_training_goes_on(kind: str, way: str) -> None:
    """A model that was looked at between the steps learns what one that was not looked at learns, to the bit."""
    x, y = data()
    ends = []
    for looked_at in (False, True):
        torch.manual_seed(1)
        model = MODELS[kind]()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(3):
            if looked_at:
                hessian(model, nn.MSELoss(), x, y, strategy=WAYS[way])
            optimizer.zero_grad()
            nn.MSELoss()(model(x), y).backward()
            optimizer.step()
        ends.append([value.detach().clone() for value in (*model.parameters(), *model.buffers())])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.parametrize("kind", ["under two names", "tied", "weight norm", "hooked"])
def test_a_copy_and_a_state_dict_made_before_fit_afterwards(kind: str) -> None:
    model, (x, y) = MODELS[kind](), data()
    saved, copied = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    first = hessian(model, nn.MSELoss(), x, y)
    model.load_state_dict(saved)
    assert is_right(hessian(copied, nn.MSELoss(), x, y), first, 1e-13) or kind == "hooked"
    assert list(model.state_dict()) == list(saved)
