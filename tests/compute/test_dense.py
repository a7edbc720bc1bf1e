"""`hessian`: order, selection, precision, and that the model is left as it was found."""

from __future__ import annotations

import doctest
from collections import OrderedDict
from typing import Any

import pytest
import torch
from support.cases import thread_net
from support.variants import NAMES, declared, strategy
from torch import Tensor, nn
from torch.func import functional_call

import pipeline.compute.dense
from pipeline.compute.dense import hessian, layer_hessians, sample_hessians
from pipeline.errors import PipelineError
from pipeline.matrix import MATRICES
from pipeline.strategy import HVP, tolerance_of

each_strategy = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def thread() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return thread_net().double(), torch.randn(7, 1).double(), torch.randn(7, 1).double()


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def nested_reference(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    params = {name: value.detach() for name, value in model.named_parameters()}
    return torch.func.hessian(lambda p: loss(functional_call(model, p, (x,)), y))(params)


@each_strategy
def test_blocks_are_the_nested_dict_of_torch_func(
    name: str, thread: tuple[nn.Module, Tensor, Tensor]
) -> None:
    model, x, y = thread
    blocks = hessian(model, loss, x, y, strategy(name), as_blocks=True)
    expected = nested_reference(model, x, y)
    norm = float(hessian(model, loss, x, y).norm())
    assert blocks["fc1.weight"]["fc1.weight"].shape == (16, 1, 16, 1)
    assert list(blocks) == list(expected) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    for row, columns in expected.items():
        assert list(blocks[row]) == list(columns)
        for column, values in columns.items():
            assert blocks[row][column].shape == values.shape
            assert (blocks[row][column] - values).abs().max() <= 1e-13 + declared(strategy(name)) * norm


def test_rows_are_in_the_order_of_named_parameters(thread: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = thread
    expected = nested_reference(model, x, y)
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    rows = [torch.cat([expected[i][j].reshape(sizes[i], sizes[j]) for j in sizes], 1) for i in sizes]
    assert (hessian(model, loss, x, y) - torch.cat(rows)).abs().max() <= 1e-13


@each_strategy
def test_selection_is_a_part_of_the_whole(name: str, thread: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = thread
    whole = hessian(model, loss, x, y, strategy(name))
    rows = torch.tensor([*range(16, 32), 48])  # the biases
    found = hessian(model, loss, x, y, strategy(name), parameters="*.bias")
    allowed = 1e-14 + 2 * declared(strategy(name)) * float(whole.norm())
    assert (found - whole[rows][:, rows]).abs().max() <= allowed
    blocks = hessian(model, loss, x, y, strategy(name), parameters=["fc2.bias", "fc1.bias"], as_blocks=True)
    assert list(blocks) == ["fc1.bias", "fc2.bias"]
    assert blocks["fc2.bias"]["fc1.bias"].shape == (1, 16)


class Recorder(nn.Module):
    """Batch statistics, a frozen weight, an unused one, and a buffer that is counted up in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(OrderedDict(fc=nn.Linear(3, 5), norm=nn.BatchNorm1d(5), act=nn.Tanh()))
        self.head, self.unused = nn.Linear(5, 4), nn.Linear(2, 2)
        self.head.bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.head(self.body(x))


def fingerprint(model: nn.Module) -> dict[str, Any]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "objects": {name: id(value) for name, value in tensors.items()},
        "values": {name: (value.tolist(), value.dtype, value._version) for name, value in tensors.items()},
        "gradients": {
            n: None if p.grad is None else (id(p.grad), p.grad.tolist()) for n, p in model.named_parameters()
        },
        "requires_grad": {name: value.requires_grad for name, value in tensors.items()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: [*module._forward_hooks, *module._forward_pre_hooks]
            for name, module in model.named_modules()
        },
        "keys": {name: sorted(vars(module)) for name, module in model.named_modules()},
    }


@pytest.mark.parametrize(
    ("name", "training"),
    [(name, mode) for name in NAMES for mode in (False, True) if not mode or name == "triangular"],
)
def test_model_is_left_as_it_was_found(name: str, training: bool) -> None:
    torch.manual_seed(0)
    model, x, y = Recorder(), torch.randn(7, 3), torch.randint(4, (7,))
    nn.CrossEntropyLoss()(model(x), y).backward()
    model.train(training)
    model.body.act.train(not training)
    model.head.register_forward_hook(lambda *_: None)
    before, random = fingerprint(model), torch.get_rng_state()
    hessian(model, nn.CrossEntropyLoss(), x, y, strategy(name), dtype=torch.float64, device="cpu")
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert not x.requires_grad


@each_strategy
def test_model_is_left_as_it_was_found_by_an_error(name: str) -> None:
    torch.manual_seed(0)
    model, x, y = Recorder().eval(), torch.randn(7, 3), torch.randint(4, (7,))
    before = fingerprint(model)
    with pytest.raises(PipelineError):
        hessian(model, nn.CrossEntropyLoss(reduction="none"), x, y, strategy(name))
    assert fingerprint(model) == before


@each_strategy
def test_hooks_run_and_change_what_is_differentiated(
    name: str, thread: tuple[nn.Module, Tensor, Tensor]
) -> None:
    model, x, y = thread
    plain = hessian(model, loss, x, 0 * y, strategy(name))
    model.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    allowed = 1e-13 + 8 * declared(strategy(name)) * float(plain.norm())
    assert (hessian(model, loss, x, 0 * y, strategy(name)) - 4 * plain).abs().max() <= allowed


@each_strategy
def test_result_has_no_graph(name: str, thread: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = thread
    found = hessian(model, loss, x, y, strategy(name))
    assert not found.requires_grad
    assert found.grad_fn is None
    assert found.is_contiguous()


@each_strategy
def test_dtype_is_that_of_the_computation(name: str, thread: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = thread
    exact = hessian(model, loss, x, y, strategy(name))
    rounded = hessian(model, loss, x, y, strategy(name), dtype=torch.float32)
    assert rounded.dtype == torch.float32
    in_float32 = tolerance_of(strategy(name), torch.float32)
    assert 0 < (rounded - exact).abs().max() < 1e-5 * exact.abs().max() + 2 * in_float32 * exact.norm()
    model.float()
    raised = hessian(model, loss, x.float(), y.float(), strategy(name), dtype=torch.float64)
    model.double()
    assert torch.equal(raised, hessian(model, loss, x.float().double(), y.float().double(), strategy(name)))


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), None])
def test_device_is_a_name_or_an_object(device: Any, thread: tuple[nn.Module, Tensor, Tensor]) -> None:
    assert hessian(thread[0], loss, *thread[1:], device=device).device.type == "cpu"


def test_strategy_and_matrix_are_names_or_objects(thread: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = thread
    expected = hessian(model, loss, x, y)
    for chosen in ("hvp", HVP(chunk_size=128)):
        found = hessian(model, loss, x, y, chosen, "hessian" if chosen == "hvp" else MATRICES["hessian"]())
        assert (found - expected).abs().max() <= 1e-14 * expected.abs().max()


def test_unknown_strategy(thread: tuple[nn.Module, Tensor, Tensor]) -> None:
    with pytest.raises(PipelineError, match=r"strategy 'fun' is unknown: choose one of .*func"):
        hessian(thread[0], loss, *thread[1:], strategy="fun")


def test_unknown_matrix(thread: tuple[nn.Module, Tensor, Tensor]) -> None:
    with pytest.raises(PipelineError, match="matrix 'hess' is unknown: choose one of hessian"):
        hessian(thread[0], loss, *thread[1:], matrix="hess")


@pytest.mark.parametrize("pattern", ["fc3.*", "weight", ""])
def test_pattern_that_matches_nothing(pattern: str, thread: tuple[nn.Module, Tensor, Tensor]) -> None:
    with pytest.raises(
        PipelineError, match=f"'{pattern}' matches no parameter of Sequential".replace("*", r"\*")
    ):
        hessian(thread[0], loss, *thread[1:], parameters=pattern)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
@each_strategy
def test_layers_are_the_diagonal_blocks(
    name: str, matrix: str, thread: tuple[nn.Module, Tensor, Tensor]
) -> None:
    model, x, y = thread
    whole = hessian(model, loss, x, y, matrix=matrix)
    found = layer_hessians(model, loss, x, y, strategy=strategy(name), matrix=matrix, verify=True)
    assert list(found) == ["fc1", "fc2"]
    allowed = 1e-13 + declared(strategy(name)) * float(whole.norm())
    assert (found["fc1"] - whole[:32, :32]).abs().max() <= allowed
    assert (found["fc2"] - whole[32:, 32:]).abs().max() <= allowed


def test_layers_of_a_selection() -> None:
    class Scaled(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(3, 2), nn.Linear(2, 2))
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * super().forward(x)

    x, y = torch.randn(5, 3), torch.randn(5, 2)
    found = layer_hessians(Scaled(), loss, x, y, parameters=["scale", "*.weight"])
    assert {layer: len(values) for layer, values in found.items()} == {"scale": 1, "0": 6, "1": 4}


@pytest.mark.parametrize("kind", list(MATRICES))
def test_each_sample_has_a_matrix_of_its_own(kind: str, thread: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Against one call for each sample by another strategy."""
    model, x, y = thread
    criterion = nn.MSELoss()
    expected = torch.stack(
        [hessian(model, criterion, x[i : i + 1], y[i : i + 1], "triangular", kind) for i in range(len(x))]
    )
    found = sample_hessians(model, criterion, x, y, matrix=kind)
    assert found.shape == (7, 49, 49)
    assert (found - expected).abs().max() <= 1e-13 * expected.abs().max()
    assert torch.equal(found, found.mT)


def test_the_mean_over_samples_is_the_matrix_of_a_mean_loss(
    thread: tuple[nn.Module, Tensor, Tensor],
) -> None:
    model, x, y = thread
    whole = hessian(model, loss, x, y)
    assert (sample_hessians(model, loss, x, y).mean(0) - whole).abs().max() <= 1e-13
    one = sample_hessians(model, loss, x, y, parameters="fc2.*", strategy="khatri_rao", verify=True)
    assert (one.mean(0) - whole[32:, 32:]).abs().max() <= 1e-13


def test_samples_go_in_chunks_of_rows(
    monkeypatch: pytest.MonkeyPatch, thread: tuple[nn.Module, Tensor, Tensor]
) -> None:
    model, x, y = thread
    expected = sample_hessians(model, loss, x, y)
    monkeypatch.setattr("pipeline.strategy.per_sample.CHUNK_BYTES", 7 * 49 * 8 * 20)
    assert (sample_hessians(model, loss, x, y) - expected).abs().max() <= 1e-14


def test_samples_go_one_by_one_where_the_model_looks_at_numbers(
    thread: tuple[nn.Module, Tensor, Tensor],
) -> None:
    class Choosy(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if bool(x.sum() > 0) else -self.inner(x)

    model, x, y = thread
    found = sample_hessians(Choosy(model), loss, x, y)
    signs = torch.where(x > 0, 1.0, -1.0).double()
    assert (found - sample_hessians(model, loss, x, signs * y)).abs().max() <= 1e-13


def test_randomness_is_refused_or_fixed(thread: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = nn.Sequential(thread[0], nn.Dropout(0.5)).train(), *thread[1:]
    with pytest.raises(PipelineError, match="draws random numbers"):
        hessian(model, loss, x, y)
    one, again, other = (hessian(model, loss, x, y, randomness=seed, verify=True) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_matrix_that_does_not_fit_is_refused_before_it_is_computed(
    monkeypatch: pytest.MonkeyPatch, thread: tuple[nn.Module, Tensor, Tensor]
) -> None:
    model, x, y = thread
    monkeypatch.setattr("pipeline.compute.cost_estimate.ROOM_TO_CHECK", 0)
    monkeypatch.setattr("pipeline.compute.cost_estimate.available_memory", lambda: 15_000)
    refusal = r"^the dense Hessian of P = 49 weights needs .* of memory, 15 kB are free on cpu: choose fewer"
    with pytest.raises(PipelineError, match=refusal):
        hessian(model, loss, x, y)
    with pytest.raises(PipelineError, match=refusal.replace("49", "17")):
        sample_hessians(model, loss, x, y, parameters="fc2.*")


def test_example_in_the_docstring() -> None:
    found = doctest.testmod(pipeline.compute.dense, raise_on_error=True)
    assert found.attempted > 0
    assert found.failed == 0
