from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian, vmap

from pipeline.errors import PipelineError
from pipeline.objective.batch import Batch
from pipeline.objective.objective import Objective, flatten, objective_of


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()


def test_samples_are_counted_in_tensors_tuples_and_dicts() -> None:
    x = torch.zeros(7, 3)
    for inputs in (x, (x, x), {"left": x, "right": (x, x)}):
        assert Batch(inputs, None).num_samples == 7


def test_batch_moves_only_floats_to_a_dtype() -> None:
    batch = Batch(
        {"x": torch.zeros(7, 3), "tokens": torch.zeros(7, dtype=torch.int32)}, (torch.ones(7).bool(), None)
    )
    moved = batch.to(torch.device("cpu"), torch.float64)
    assert moved.inputs["x"].dtype == torch.float64
    assert moved.inputs["tokens"].dtype == torch.int32
    assert moved.targets[0].dtype == torch.bool
    assert moved.targets[1] is None
    assert batch.inputs["x"].dtype == torch.float32


def test_chunks_keep_the_structure_and_leave_out_what_has_no_samples() -> None:
    x, y = torch.arange(14).reshape(7, 2), torch.arange(7)
    chunk = Batch({"x": (x, x)}, y).chunk(5, 9)
    assert chunk.num_samples == 2
    assert torch.equal(chunk.inputs["x"][1], x[5:])
    assert torch.equal(chunk.targets, y[5:])
    assert Batch(x, None).chunk(0, 3).targets is None


def test_flat_vector_is_row_major_in_the_order_of_the_mapping() -> None:
    params = {"b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T, "a": torch.tensor(5.0)}
    assert flatten(params).tolist() == [1, 3, 2, 4, 5]


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        (None, ["0.weight", "1.weight", "1.bias", "2.weight", "2.bias"]),
        ("0.bias", ["0.bias"]),
        (["2.*", "0.*"], ["0.weight", "0.bias", "2.weight", "2.bias"]),
        (["2.bias", "*.bias", "2.bias"], ["0.bias", "1.bias", "2.bias"]),
    ],
)
def test_selection_keeps_the_order_of_the_module(
    net: nn.Sequential, parameters: list[str] | str | None, names: list[str]
) -> None:
    net[0].bias.requires_grad_(False)
    assert list(objective_of(net, nn.MSELoss(), parameters)[1]) == names


def test_loss_is_the_one_of_the_module(net: nn.Sequential) -> None:
    x, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    for mode in (True, False):
        net.train(mode)
        objective, params = objective_of(net, nn.MSELoss(), "0.*")
        torch.testing.assert_close(objective.loss(params, Batch(x, y)), nn.MSELoss()(net(x), y).detach())


def test_weights_given_are_the_ones_used(net: nn.Sequential) -> None:
    x, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    objective, params = objective_of(net.eval(), nn.MSELoss())
    moved = {name: value + 0.5 for name, value in params.items()}
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.5)
    torch.testing.assert_close(objective.loss(moved, Batch(x, y)), nn.MSELoss()(net(x), y).detach())


def test_weights_are_copies(net: nn.Sequential) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    objective, params = objective_of(net, nn.MSELoss())
    objective.loss(params, Batch(torch.randn(7, 3).double(), torch.randn(7, 2).double()))
    for value in params.values():
        assert not value.requires_grad
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_criterion_is_spelt_out_too() -> None:
    """PyTorch has no second derivative of it."""
    torch.manual_seed(0)
    batch = Batch(torch.randn(7, 3).double(), torch.arange(7) % 2)
    objective, params = objective_of(nn.Linear(3, 2).double(), nn.MultiMarginLoss(p=2, margin=9))
    found = hessian(lambda weights: objective.loss(weights, batch))(params)["weight"]["weight"]
    x = batch.inputs
    expected = (
        torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double()[:, None, :, None] * (x.T @ x)[None, :, None] / 7
    )
    torch.testing.assert_close(found, expected)


def test_random_numbers_in_the_criterion_are_refused() -> None:
    objective, params = objective_of(nn.Linear(3, 2).double(), lambda f, _: (f * torch.rand_like(f)).sum())
    with pytest.raises(PipelineError, match="draws random numbers"):
        objective.loss(params, Batch(torch.randn(7, 3).double(), None))


def test_row_of_the_padding_does_not_move() -> None:
    net = nn.Sequential(nn.Embedding(4, 2, padding_idx=1), nn.Flatten(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        net[0].weight[1] = 0.3  # a user's own; it stays as it is, too
    batch = Batch(torch.tensor([[0, 1, 1], [2, 3, 1], [1, 1, 1]]), torch.tensor([0, 1, 0]))
    objective, params = objective_of(net, nn.CrossEntropyLoss())
    before = objective.loss(params, batch)
    torch.testing.assert_close(before, nn.CrossEntropyLoss()(net(batch.inputs), batch.targets).detach())
    params["0.weight"][1] += 5
    assert objective.loss(params, batch) == before
    assert objective.gradient(params, batch)[2:4].tolist() == [0, 0]


class Remembering(nn.Module):
    """Counts its calls in a buffer and in an attribute, and keeps its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2).double()
        self.register_buffer("calls", torch.zeros(()))
        self.count, self.last = 0, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        self.last = self.linear(x) * self.calls * self.count
        return self.last


def test_each_call_starts_from_the_same_state() -> None:
    net, batch = Remembering(), Batch(torch.randn(7, 3).double(), torch.randn(7, 2).double())
    objective, params = objective_of(net, nn.MSELoss())
    assert objective.loss(params, batch) == objective.loss(params, batch)
    assert (net.calls, net.count, net.last) == (0, 0, None)


def recurrent_net() -> nn.Module:
    class Last(nn.LSTM):
        in_use = False

        def flatten_parameters(self) -> None:
            assert not self.in_use, "the weights would be moved into one piece of memory"

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[0][:, -1]

    return Last(3, 2, batch_first=True).double()


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(12, 2))).double()


@pytest.mark.parametrize("build", [recurrent_net, old_weight_norm])
def test_attributes_are_left_as_they_were_found(build: Callable[[], nn.Module]) -> None:
    """Weights that hooks make, and lists of weights."""
    net, x, y = build(), torch.randn(7, 4, 3).double(), torch.randn(7, 2).double()
    expected = net(x)
    net.in_use = True
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    objective, params = objective_of(net, nn.MSELoss())
    loss = vmap(lambda factor: objective.loss({n: v * factor for n, v in params.items()}, Batch(x, y)))(
        torch.ones(2)
    )
    torch.testing.assert_close(loss[1], nn.MSELoss()(expected, y).detach())
    for name, module in net.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert all(value is before[name][key] for key, value in vars(module).items())
    assert torch.equal(net(x), expected)


def test_attributes_are_put_back_after_an_error(net: nn.Sequential) -> None:
    before = dict(vars(net[2]))
    net[2].register_forward_pre_hook(lambda module, _: setattr(module, "left", 1))
    objective, params = objective_of(net, nn.MSELoss())
    with pytest.raises(RuntimeError):
        objective.loss(params, Batch(torch.randn(7, 4).double(), torch.randn(7, 2).double()))
    assert vars(net[2]).keys() == before.keys()


def test_spectral_norm_in_training_is_refused() -> None:
    for norm in (nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            net = nn.Sequential(norm(nn.Linear(3, 3)))
        with pytest.raises(PipelineError, match=r"spectral_norm in training mode \(0.*use model\.eval\(\)"):
            objective_of(net, nn.MSELoss())
        assert list(objective_of(net.eval(), nn.MSELoss())[1])


def test_dtype_is_that_of_the_computation_alone(net: nn.Sequential) -> None:
    objective, params = objective_of(net, nn.MSELoss(), "2.*", dtype=torch.float32)
    batch = Batch(torch.randn(7, 3), torch.randn(7, 2))
    assert {value.dtype for value in params.values()} == {torch.float32}
    assert objective.loss(params, batch).dtype == torch.float32
    assert net[0].weight.dtype == net[1].running_mean.dtype == torch.float64


def test_tied_weight_is_one_parameter() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert list(objective_of(net, nn.MSELoss())[1]) == ["0.weight", "0.bias", "1.bias"]


def test_pattern_that_matches_nothing(net: nn.Sequential) -> None:
    with pytest.raises(
        PipelineError, match=r"parameters: 'fc\*' matches no parameter of Sequential: it has 0\.weight"
    ):
        objective_of(net, nn.MSELoss(), ["0.*", "fc*"])


@pytest.mark.parametrize("parameters", [None, []])
def test_nothing_to_differentiate_by(net: nn.Sequential, parameters: list[str] | None) -> None:
    with pytest.raises(PipelineError, match="nothing to differentiate by"):
        objective_of(net.requires_grad_(False), nn.MSELoss(), parameters)


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (torch.zeros(7), r"shape \(7,\)"),
        (torch.zeros(1), r"shape \(1,\)"),
        (0.5, "float"),
        (None, "NoneType"),
    ],
)
def test_loss_that_is_not_one_number(loss: object, got: str) -> None:
    objective = Objective(lambda params, inputs: inputs, lambda outputs, targets: loss)
    with pytest.raises(
        PipelineError, match=f"the criterion returned {got}, expected a 0-d tensor: give it reduction="
    ):
        objective.loss({}, Batch(torch.zeros(7, 1), Tensor()))
