"""Products of operators against the dense matrix of finite differences, double backward, and of all samples at once."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from support.cases import CASES, Case, mlp
from support.oracles import FiniteDifferences, finite_differences
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pipeline
from pipeline.errors import PipelineError
from pipeline.matrix import MATRICES
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


def classes(num_samples: int = 23) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(3)
    model = mlp(4, 6, 3).double()
    return model, (torch.randn(num_samples, 4, dtype=torch.float64), torch.randint(3, (num_samples,)))


def cut(pair: tuple[Tensor, Tensor], *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(pair[0].split(sizes), pair[1].split(sizes), strict=True))


@pytest.mark.parametrize("matrix", [name for name in MATRICES if name != "fisher"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_unequal_batches_make_up_the_matrix_of_all_samples(matrix: str, reduction: str) -> None:
    model, pair = classes()
    criterion = nn.CrossEntropyLoss(reduction=reduction)
    whole = pipeline.hessian(model, criterion, *pair, matrix=matrix)
    operator = curvature_operator(model, criterion, cut(pair, 2, 13, 8), matrix=matrix)
    vectors = torch.randn(len(whole), 4, dtype=torch.float64)
    torch.testing.assert_close(operator @ vectors, whole @ vectors, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator @ vectors[:, 0], whole @ vectors[:, 0], rtol=1e-12, atol=1e-12)


def test_labels_drawn_for_the_fisher_are_those_of_each_batch() -> None:
    model, pair = classes()
    batches = cut(pair, 2, 13, 8)
    fisher = pipeline.matrix.Fisher(num_draws=5)
    parts = [pipeline.hessian(model, nn.CrossEntropyLoss(), *part, matrix=fisher) for part in batches]
    expected = sum(len(part[1]) / 23 * dense for part, dense in zip(batches, parts, strict=True))
    operator = curvature_operator(model, nn.CrossEntropyLoss(), batches, matrix=fisher)
    eye = torch.eye(len(expected), dtype=torch.float64)
    torch.testing.assert_close(operator @ eye, expected, rtol=1e-11, atol=1e-12)


class OwnCrossEntropy(nn.Module):
    """A criterion that does not say how it reduces."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.own = reduction

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction=self.own)


class Counting(OwnCrossEntropy):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, ignore_index=1)

    def num_terms(self, targets: Tensor) -> int:
        return int((targets != 1).sum())


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(ignore_index=1),
        nn.CrossEntropyLoss(torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64)),
        nn.CrossEntropyLoss(torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64), ignore_index=0),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        OwnCrossEntropy("mean"),
        OwnCrossEntropy("sum"),
        Counting("mean"),
        lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="sum") / 7,
    ],
    ids=["ignored", "class-weights", "both", "smooth", "own-mean", "own-sum", "own-terms", "scaled-sum"],
)
def test_batches_are_weighted_by_the_terms_of_the_loss(criterion) -> None:
    model, pair = classes()
    pair[1][2:9] = 1  # more of what is ignored in one batch than in others
    whole = pipeline.hessian(model, criterion, *pair)
    operator = curvature_operator(model, criterion, cut(pair, 2, 13, 8))
    vectors = torch.randn(len(whole), 2, dtype=torch.float64)
    torch.testing.assert_close(operator @ vectors, whole @ vectors, rtol=1e-12, atol=1e-12)


def test_tokens_that_count_weigh_batches_of_other_lengths() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4)).double()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-100)

    class Tokens(nn.CrossEntropyLoss):
        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return loss(outputs, targets)

    short = torch.randint(5, (3, 2)), torch.randint(4, (3, 2))
    long = torch.randint(5, (2, 7)), torch.randint(4, (2, 7))
    long[1][0, 3:] = -100
    nothing = torch.randint(5, (2, 2)), torch.full((2, 2), -100)
    operator = curvature_operator(model, Tokens(), [short, nothing, long])
    first, second = (pipeline.hessian(model, loss, *pair) for pair in (short, long))
    expected = (6 * first + 10 * second) / 16
    vectors = torch.randn(len(expected), 2, dtype=torch.float64)
    torch.testing.assert_close(operator @ vectors, expected @ vectors, rtol=1e-12, atol=1e-12)


def test_entries_weigh_a_mean_over_entries() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 3).double()
    inputs, targets = (
        torch.randn(9, 4, 2, dtype=torch.float64),
        torch.randn(9, 4, 3, dtype=torch.float64),
    )
    batches = [(inputs[:5, :2], targets[:5, :2]), (inputs[5:], targets[5:])]
    flat = [torch.cat([part.flatten(0, 1) for part in parts]) for parts in zip(*batches, strict=True)]
    whole = pipeline.hessian(model, nn.MSELoss(), *flat)
    operator = curvature_operator(model, nn.MSELoss(), batches)
    eye = torch.eye(len(whole), dtype=torch.float64)
    torch.testing.assert_close(operator @ eye, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_data_loader_in_any_order(shuffle: bool) -> None:
    model, pair = classes()
    whole = pipeline.hessian(model, nn.CrossEntropyLoss(), *pair)
    loader = DataLoader(TensorDataset(*pair), batch_size=5, shuffle=shuffle)
    operator = curvature_operator(model, nn.CrossEntropyLoss(), loader)
    vectors = torch.randn(len(whole), 2, dtype=torch.float64)
    for _ in range(3):
        torch.testing.assert_close(operator @ vectors, whole @ vectors, rtol=1e-12, atol=1e-12)


def test_samples_that_change_from_pass_to_pass_are_refused() -> None:
    model, pair = classes()
    loader = DataLoader(TensorDataset(*pair), batch_size=5, shuffle=True, drop_last=True)
    operator = curvature_operator(model, nn.CrossEntropyLoss(), loader)
    operator @ torch.ones(operator.num_rows)
    with pytest.raises(PipelineError, match="the batches hold other samples at each pass"):
        operator @ torch.ones(operator.num_rows)  # three of 23 samples are left out, seldom the same


def test_batches_that_memory_does_not_hold_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pair = classes()
    kept = curvature_operator(model, nn.CrossEntropyLoss(), cut(pair, 10, 13))
    monkeypatch.setattr("pipeline.operator.batch_sum.available_memory", lambda: 100)
    fresh = curvature_operator(model, nn.CrossEntropyLoss(), cut(pair, 10, 13))
    vectors = torch.randn(kept.num_rows, 2, dtype=torch.float64)
    torch.testing.assert_close(fresh @ vectors, kept @ vectors, rtol=1e-12, atol=1e-13)
    assert "kept" not in fresh.way
    assert fresh.memory < kept.memory


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
