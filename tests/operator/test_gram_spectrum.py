"""All eigenvalues of Gauss-Newton matrices from their Gram matrices, against those of the dense matrices."""

import numpy as np
import pytest
import torch
from support.cases import CASES, mlp
from torch import nn
from torch.nn import functional as F

import pipeline
from pipeline.errors import PipelineError
from pipeline.matrix import Fisher
from pipeline.operator import gram_spectrum

NAMES = [
    *(
        "mlp-tanh-sum",
        "mlp-gelu",
        "convolutions",
        "residual-groupnorm",
        "attention-layernorm",
        "tied",
        "frozen",
    ),
    *(
        "unused",
        "selected",
        "sequences",
        "embedding",
        "class-weights",
        "ignored-labels",
        "one-sample",
        "lstm",
    ),
    *("conv1d-groups-dilated", "conv-transposed", "norms", "embedding-tied", "weight-norm", "multihead-self"),
]


def eigenvalues(dense, number):
    return np.linalg.eigvalsh(dense.numpy())[::-1][:number]


@pytest.mark.parametrize("name", NAMES)
def test_those_of_the_dense_ggn(name):
    model, criterion, batch, parameters = next(case for case in CASES if case.id == name).build()
    found = gram_spectrum(model, criterion, *batch, parameters=parameters, num_vectors=3)
    dense = pipeline.hessian(model, criterion, *batch, matrix="ggn", parameters=parameters)
    expected = eigenvalues(dense, None)
    padded = np.zeros(len(expected))
    padded[: len(found.eigenvalues)] = found.eigenvalues
    np.testing.assert_allclose(padded, expected, atol=1e-10 * max(1, expected[0]))
    assert found.num_parameters == len(dense)
    assert found.trace == pytest.approx(float(dense.trace()), rel=1e-10, abs=1e-12)
    first = 0
    for parameter in (value for value in dict(model.named_parameters()).values() if value.requires_grad):
        if parameters is not None:
            break
        block = dense.diagonal()[first : first + parameter.numel()]
        name = next(name for name, each in model.named_parameters() if each is parameter)
        scale = max(1e-12, 1e-10 * float(dense.trace()))
        assert found.traces.get(name, 0.0) == pytest.approx(float(block.sum()), abs=scale)
        first += parameter.numel()
    vectors = found.vectors
    assert vectors.shape[1] == min(3, int((expected > 1e-12 * expected[0]).sum()))
    images = dense.double().numpy() @ vectors - vectors * found.eigenvalues[: vectors.shape[1]]
    np.testing.assert_allclose(images, 0, atol=1e-9 * max(1, expected[0]))
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(vectors.shape[1]), atol=1e-7)


def classes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    return model, (torch.randn(11, 4, dtype=torch.float64), torch.randint(3, (11,)))


@pytest.mark.parametrize("matrix", ["ggn", "fisher", "empirical_fisher", Fisher(num_draws=4)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_every_gauss_newton_matrix(matrix, reduction):
    model, pair = classes()
    criterion = nn.CrossEntropyLoss(reduction=reduction)
    found = gram_spectrum(model, criterion, *pair, matrix=matrix)
    expected = eigenvalues(pipeline.hessian(model, criterion, *pair, matrix=matrix), len(found.eigenvalues))
    np.testing.assert_allclose(found.eigenvalues, expected, atol=1e-12 * max(1, expected[0]))
    most = 11 if matrix == "empirical_fisher" else 22  # cross-entropy: C - 1 for each sample
    assert len(found.eigenvalues) <= most


def test_single_precision():
    model, pair = classes()
    exact = gram_spectrum(model, nn.CrossEntropyLoss(), *pair)
    single = gram_spectrum(model, nn.CrossEntropyLoss(), *pair, dtype=torch.float32)
    np.testing.assert_allclose(
        single.eigenvalues[:20], exact.eigenvalues[:20], atol=1e-6 * exact.eigenvalues[0]
    )


def test_fewer_weights_than_outputs():
    model, pair = mlp(2, 2).double(), (torch.randn(30, 2, dtype=torch.float64), torch.randint(2, (30,)))
    found = gram_spectrum(model, nn.CrossEntropyLoss(), *pair)
    assert len(found.eigenvalues) == 6
    np.testing.assert_allclose(
        found.eigenvalues,
        eigenvalues(pipeline.hessian(model, nn.CrossEntropyLoss(), *pair, matrix="ggn"), 6),
        atol=1e-13,
    )


def sinusoidal(f, y):
    return torch.sin(f).sum()


def coupled(f, y):
    return (f.sum(0) ** 2).sum()


@pytest.mark.parametrize(
    ("criterion", "options", "message"),
    [
        (nn.CrossEntropyLoss(), {"matrix": "hessian"}, "use matrix=ggn, fisher or empirical_fisher"),
        (nn.CrossEntropyLoss(), {"matrix": "residual"}, "use matrix=ggn, fisher or empirical_fisher"),
        (sinusoidal, {}, "the criterion is not convex"),
        (coupled, {}, "the criterion couples samples"),
        (nn.CrossEntropyLoss(), {"parameters": "nothing"}, "parameters: 'nothing' matches no parameter"),
    ],
)
def test_mistakes_in_one_line(criterion, options, message):
    model, pair = classes()
    with pytest.raises(PipelineError, match=message):
        gram_spectrum(model, criterion, *pair, **options)


def test_samples_that_mix_are_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    _, pair = classes()
    with pytest.raises(PipelineError, match="a Gram matrix needs the outputs of a sample alone"):
        gram_spectrum(model, nn.CrossEntropyLoss(), *pair)
    model.eval()
    assert len(gram_spectrum(model, nn.CrossEntropyLoss(), *pair).eigenvalues) <= 22


def test_two_outputs_are_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3).double()

        def forward(self, x):
            return self.linear(x), x * self.linear.bias.sum()

    with pytest.raises(PipelineError, match="needs a model that returns one floating-point tensor"):
        gram_spectrum(Two(), lambda f, y: F.cross_entropy(f[0], y), *classes()[1])


def test_a_gram_matrix_that_is_wrong_is_refused(monkeypatch):
    gram = "pipeline.strategy.khatri_rao.gram._of_rows"
    monkeypatch.setattr(gram, lambda seen: (1.1 * torch.eye(22, dtype=torch.float64), {}))
    with pytest.raises(PipelineError, match="the Gram matrix differs from products with the Jacobian by"):
        gram_spectrum(classes()[0], nn.CrossEntropyLoss(), *classes()[1])


@pytest.mark.parametrize("criterion", [nn.L1Loss(), lambda outputs, targets: (outputs * targets).sum()])
def test_a_criterion_that_does_not_curve_has_zeros(criterion):
    torch.manual_seed(0)
    pair = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    found = gram_spectrum(mlp(4, 5, 3).double(), criterion, *pair, num_vectors=2)
    assert not found.eigenvalues.any()
    assert found.vectors.shape == (found.num_parameters, 0)
    assert found.trace == 0


@pytest.mark.parametrize("num_samples", [2, 8, 12])
def test_a_criterion_that_couples_pairs_of_samples_is_refused(num_samples):
    torch.manual_seed(0)
    inputs = torch.randn(num_samples, 4, dtype=torch.float64)

    def distances(outputs, targets):
        return (outputs[::2] - outputs[1::2]).square().mean()

    with pytest.raises(PipelineError, match="the criterion couples samples"):
        gram_spectrum(mlp(4, 5, 3).double(), distances, inputs, inputs)


def test_no_random_number_of_the_user_is_drawn():
    torch.manual_seed(0)
    pair = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    model = mlp(4, 5, 3).double()
    before = torch.get_rng_state()
    gram_spectrum(model, nn.CrossEntropyLoss(), *pair)
    assert torch.equal(torch.get_rng_state(), before)
