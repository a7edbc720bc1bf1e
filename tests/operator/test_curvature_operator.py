"""Products of operators against the dense matrix of finite differences, double backward, and of all samples at once."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from support.cases import CASES, Case
from support.operator_cases import classes, cut
from support.oracles import FiniteDifferences, finite_differences
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pipeline
from pipeline.errors import PipelineError
from pipeline.objective.objective import objective_of
from pipeline.operator import curvature_operator
from pipeline.operator.central_difference import CentralDifference
from pipeline.operator.forward_over_reverse import ForwardOverReverse
from pipeline.operator.reverse_over_reverse import ReverseOverReverse
from pipeline.spectrum import SLQ, TopK

WAYS = [ReverseOverReverse(), ForwardOverReverse(1), ForwardOverReverse(3)]


@cache
def differences(case: Case) -> FiniteDifferences:
    return finite_differences(case.build())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_way_that_is_taken_agrees_with_finite_differences(case: Case) -> None:
    model, criterion, batch, parameters = case.build()
    operator = curvature_operator(model, criterion, tuple(batch), parameters=parameters)
    expected, tolerance = differences(case)
    assert operator.shape == tuple(expected.shape)
    assert operator.certificate is not None
    assert operator.certificate.passed
    found = operator @ torch.eye(len(expected), dtype=torch.float64)
    assert (found - expected).abs().max() <= tolerance


@pytest.mark.parametrize("way", WAYS, ids=["reverse", "forward-1", "forward-3"])
@pytest.mark.parametrize("case", [case for case in CASES if not case.refused_by], ids=lambda case: case.id)
def test_every_way_agrees_with_finite_differences(case: Case, way) -> None:
    model, criterion, batch, parameters = case.build()
    objective, params = objective_of(model, criterion, parameters)
    expected, tolerance = differences(case)
    product = way.product(objective, params, batch)
    vectors = torch.eye(len(expected), dtype=torch.float64)[:, :5]
    for _ in range(2):  # a graph that is kept gives the same again
        assert (product(vectors) - expected[:, :5]).abs().max() <= tolerance


@pytest.mark.parametrize("name", ["mlp-gelu", "attention-layernorm", "embedding-bag", "weight-norm", "lstm"])
def test_central_differences_are_right_to_seven_digits(name: str) -> None:
    model, criterion, batch, parameters = next(case for case in CASES if case.id == name).build()
    objective, params = objective_of(model, criterion, parameters)
    expected = pipeline.hessian(model, criterion, *batch, parameters=parameters)
    vectors = torch.randn(len(expected), 3, dtype=torch.float64)
    found = CentralDifference().product(objective, params, batch)(vectors)
    assert (found - expected @ vectors).norm() <= 1e-7 * (expected @ vectors).norm()


def test_kinds_of_vectors_and_their_dtypes() -> None:
    model, pair = classes()
    operator = curvature_operator(model.float(), nn.CrossEntropyLoss(), pair, dtype=torch.float32)
    assert operator.dtype == torch.float32
    assert (operator @ torch.ones(operator.num_rows)).dtype == torch.float32
    assert (operator @ torch.ones(operator.num_rows, 2, dtype=torch.float64)).dtype == torch.float64
    found = operator @ np.ones((operator.num_rows, 0), np.float32)
    assert isinstance(found, np.ndarray)
    assert found.shape == (operator.num_rows, 0)
    array = np.random.default_rng(0).standard_normal((operator.num_rows, 3))
    np.testing.assert_allclose(operator @ array, (operator @ torch.from_numpy(array)).numpy(), rtol=0, atol=0)
    assert operator.num_products == 1 + 2 + 0 + 3 + 3


def test_a_scipy_operator() -> None:
    model, pair = classes()
    whole = pipeline.hessian(model, nn.CrossEntropyLoss(), *pair).numpy()
    scipy = curvature_operator(model, nn.CrossEntropyLoss(), pair).to_scipy()
    vectors = np.random.default_rng(0).standard_normal((len(whole), 3))
    np.testing.assert_allclose(scipy @ vectors, whole @ vectors, atol=1e-13)
    np.testing.assert_allclose(scipy.T @ vectors[:, 0], whole @ vectors[:, 0], atol=1e-13)
    assert scipy.dtype == np.float64


def test_arrays_in_other_orders_and_precisions() -> None:
    model, pair = classes()
    operator = curvature_operator(model, nn.CrossEntropyLoss(), pair)
    vectors = np.random.default_rng(0).standard_normal((51, 4))
    expected = operator @ vectors
    fixed = vectors.copy()
    fixed.setflags(write=False)
    for given in (fixed, vectors.astype(">f8"), vectors.astype(np.longdouble), np.asfortranarray(vectors)):
        np.testing.assert_array_equal(operator @ given, expected)
    np.testing.assert_array_equal(operator @ vectors[::-1, ::2], operator @ vectors[::-1, ::2].copy())


def test_a_scipy_operator_multiplies_complex_vectors() -> None:
    model, pair = classes()
    operator = curvature_operator(model, nn.CrossEntropyLoss(), pair)
    vectors = np.random.default_rng(0).standard_normal((51, 4))
    both = vectors[:, :2] + 1j * vectors[:, 2:]
    expected = operator @ vectors
    scipy = operator.to_scipy()
    np.testing.assert_array_equal(scipy @ both, expected[:, :2] + 1j * expected[:, 2:])
    np.testing.assert_array_equal(scipy.H @ both[:, 0], expected[:, 0] + 1j * expected[:, 2])


def test_the_model_is_left_as_it_was_and_may_change() -> None:
    model, pair = classes()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    operator = curvature_operator(model, nn.CrossEntropyLoss(), pair)
    first = operator @ torch.ones(operator.num_rows, dtype=torch.float64)
    assert model.training
    assert all(value.grad is None for value in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(operator @ torch.ones(operator.num_rows, dtype=torch.float64), first)
    assert model[0].weight.grad is None


class Normalized(nn.Module):
    """A net with a mode, buffers, and an attribute that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("shift", torch.randn(6))
        self.slope = 1.0

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.first(x)) + self.shift)
        for _ in range(20):  # many tensors, any of which may lie where a buffer was
            hidden = hidden + 0.1 * torch.sin(self.slope * hidden)
        return self.last(hidden)


def other_module(model: Normalized) -> None:
    model.last = nn.Linear(6, 3).double()


CHANGES = {
    "mode": lambda model: model.train(),
    "buffer": lambda model: setattr(model, "shift", torch.zeros(6, dtype=torch.float64)),
    "dtype": lambda model: model.float(),
    "module": other_module,
    "attribute": lambda model: setattr(model, "slope", 2.0),
    "hook": lambda model: model.first.register_forward_hook(lambda module, args, outputs: 2 * outputs),
}


def normalized() -> Normalized:
    torch.manual_seed(0)
    return Normalized().double().eval()


@cache
def hessian_of_normalized() -> Tensor:
    return pipeline.hessian(normalized(), nn.CrossEntropyLoss(), *classes()[1])


@pytest.mark.parametrize("change", CHANGES)
def test_later_changes_of_the_model_change_no_product(change: str) -> None:
    """Of batches that are computed again at each product, and of those whose graph is made after the change."""
    _, pair = classes()
    vectors = torch.randn(63, 3, dtype=torch.float64)
    expected = hessian_of_normalized() @ vectors
    for batches in (DataLoader(TensorDataset(*pair), batch_size=10), cut(pair, 10, 13)):
        for trial in range(6):
            model = normalized()
            operator = curvature_operator(model, nn.CrossEntropyLoss(), batches, verify=False)
            CHANGES[change](model)
            changed = dict(vars(model))
            others = [torch.zeros(1) for _ in range(trial)]  # so that other memory is free
            torch.testing.assert_close(operator @ vectors, expected, rtol=1e-10, atol=1e-12)
            assert vars(model) == changed
            del others


def test_under_no_grad_and_inference_mode() -> None:
    model, pair = classes()
    operator = curvature_operator(model, nn.CrossEntropyLoss(), pair)
    expected = operator @ torch.ones(operator.num_rows, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(operator @ torch.ones(operator.num_rows, dtype=torch.float64), expected)
    with torch.inference_mode():
        vectors = torch.ones(operator.num_rows, dtype=torch.float64)
        torch.testing.assert_close(operator @ vectors, expected, rtol=0, atol=0)


class NoSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].exp()


class WrongSecondDerivative(torch.autograd.Function):
    """exp, whose second derivative autograd takes for twice what it is."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (2 * x.exp() - x.detach().exp())


class Custom(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(3, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(self.linear(x))


@pytest.mark.parametrize("function", [NoSecondDerivative, WrongSecondDerivative])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_autograd_has_no_right_second_derivative_differences_are_taken(function, dtype) -> None:
    torch.manual_seed(0)
    model = Custom(function).to(dtype)
    pair = torch.randn(5, 3, dtype=dtype), torch.randn(5, 2, dtype=dtype)
    operator = curvature_operator(model, nn.MSELoss(), pair)
    assert operator.way == "central differences of the gradient"
    assert operator.dtype == dtype
    exact = nn.Sequential(nn.Linear(3, 2)).double()
    exact.load_state_dict({f"0.{name}": value.double() for name, value in model.linear.state_dict().items()})

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs.exp(), targets)

    expected = pipeline.hessian(exact, loss, *(value.double() for value in pair))
    vectors = torch.randn(operator.num_rows, 3, dtype=torch.float64)
    assert (operator @ vectors - expected @ vectors).norm() <= 1e-6 * (expected @ vectors).norm()


def test_without_verification_the_fastest_is_taken_as_it_is() -> None:
    torch.manual_seed(0)
    model = Custom(WrongSecondDerivative).double()
    pair = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    operator = curvature_operator(model, nn.MSELoss(), pair, verify=False)
    assert operator.certificate is None
    assert "over reverse" in operator.way


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (
            [],
            r"^batches is empty: give one pair \(inputs, targets\), a list of such pairs, or a DataLoader\.$",
        ),
        (3, "^batches is of type int"),
        (torch.ones(3, 4), "^batches is of type Tensor"),
        ([torch.ones(3, 4)], "^a batch is a Tensor, not a pair"),
        ([(torch.ones(3, 4),)], "^a batch is 1 values, not a pair"),
        (iter([1]), "^batches is of type list_iterator, which gives its batches only once"),
    ],
)
def test_what_holds_no_batches_is_refused(batches, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        curvature_operator(classes()[0], nn.CrossEntropyLoss(), batches)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.ones(7), r"the vectors have shape \(7,\): give \(51,\) or \(51, m\)"),
        (torch.ones(51, 2, 1), r"the vectors have shape \(51, 2, 1\)"),
        (torch.ones(51, dtype=torch.long), r"the vectors are torch\.int64"),
        (np.ones(51, complex), "the vectors are complex128"),
        ("abc", "the vectors are str"),
        (torch.ones(51).to_sparse(), r"the vectors are torch\.float32: .* dense and not masked"),
        (torch.ones(51, device="meta"), r"the vectors are torch\.float32"),
        (np.ones(51, object), "the vectors are object"),
        (np.ma.masked_greater(np.arange(51.0), 3), r"the vectors are float64: .* dense and not masked"),
    ],
)
def test_what_is_no_vector_is_refused(vectors, message: str) -> None:
    model, pair = classes()
    operator = curvature_operator(model, nn.CrossEntropyLoss(), pair, verify=False)
    with pytest.raises(PipelineError, match=message):
        operator @ vectors


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (lambda f, y: F.cross_entropy(f, y, reduction="sum") ** 2, "of every sample twice it is 4 times"),
        (lambda f, y: F.cross_entropy(f, y, ignore_index=1), "a batch of 10 adds .* in two parts it adds"),
        (lambda f, y: (f.mean(0) ** 2).sum(), "a batch of 10 adds"),
    ],
    ids=["square-of-a-sum", "ignores-labels", "couples-samples"],
)
def test_a_loss_of_which_it_is_not_known_how_batches_add_up_is_refused(criterion, message: str) -> None:
    model, pair = classes()
    pair[1][:3] = 1
    with pytest.raises(
        PipelineError, match=f"neither the sum nor the mean over samples.*{message}.*num_terms"
    ):
        curvature_operator(model, criterion, cut(pair, 10, 13)) @ torch.ones(51)
    whole = pipeline.hessian(model, criterion, *pair)
    operator = curvature_operator(model, criterion, pair)  # one batch needs no weights
    torch.testing.assert_close(operator @ torch.ones(51).double(), whole @ torch.ones(51).double())


def test_a_nan_loss_and_an_unknown_matrix_are_told() -> None:
    model, pair = classes()
    with pytest.raises(PipelineError, match="matrix 'gnn' is unknown: choose one of hessian"):
        curvature_operator(model, nn.CrossEntropyLoss(), pair, matrix="gnn")
    with pytest.raises(PipelineError, match="the loss is nan"):
        curvature_operator(model, nn.CrossEntropyLoss(), (pair[0] * float("nan"), pair[1]))


def test_spectrum_methods_take_operators() -> None:
    model, pair = classes()
    operator = curvature_operator(model, nn.CrossEntropyLoss(), cut(pair, 10, 13))
    values = torch.linalg.eigvalsh(pipeline.hessian(model, nn.CrossEntropyLoss(), *pair)).numpy()
    for method in (TopK(5, 2), SLQ(5, 2, num_vectors=5, num_steps=4)):
        found = method.decompose(operator)
        np.testing.assert_allclose(found.top_eigenvalues, values[::-1][:5], atol=1e-4 * values[-1])
        np.testing.assert_allclose(found.eigenvalues[:2], values[:2], atol=1e-4 * values[-1])


def test_eigenpairs_of_an_operator_go_in_small_blocks() -> None:
    model, pair = classes()
    operator = curvature_operator(model, nn.CrossEntropyLoss(), cut(pair, 10, 13))
    values = torch.linalg.eigvalsh(pipeline.hessian(model, nn.CrossEntropyLoss(), *pair)).numpy()
    found = pipeline.eigenpairs(operator, top=20, bottom=1, tolerance=1e-10)
    np.testing.assert_allclose(found.values, [*values[::-1][:20], values[0]], atol=1e-9 * values[-1])
    assert operator.columns_per_pass == 1


def test_single_precision_that_does_not_do_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pair = classes()
    monkeypatch.setattr("pipeline.operator.verification.MOST_ROUNDING", 1e-12)
    message = r"single precision moves H v by .* of its size, 1e-12 is allowed .*: use dtype=torch\.float64"
    with pytest.raises(PipelineError, match=message):
        curvature_operator(model, nn.CrossEntropyLoss(), pair, dtype=torch.float32)
    assert curvature_operator(model, nn.CrossEntropyLoss(), pair).rounding == 0
