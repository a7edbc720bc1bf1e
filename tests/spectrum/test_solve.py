"""Linear systems against a dense solver."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.matrices import SPECTRA, Stored, with_spectrum
from torch import nn

import pipeline
from pipeline.errors import PipelineError
from pipeline.spectrum import eigenpairs, solve


@pytest.mark.parametrize("shape", [(350,), (350, 3), (350, 0)])
@pytest.mark.parametrize("damping", [0.01, 10.0])
def test_indefinite_systems(shape, damping):
    matrix = with_spectrum(SPECTRA["wigner"])
    b = np.random.default_rng(0).standard_normal(shape)
    found = solve(Stored(matrix), b, damping, tolerance=1e-9)
    damped = matrix + damping * np.eye(350)
    assert found.x.shape == shape
    residuals = np.linalg.norm((b - damped @ found.x).reshape(350, -1), axis=0)
    assert (residuals <= 1e-9 * np.linalg.norm(b.reshape(350, -1), axis=0)).all()
    np.testing.assert_allclose(
        found.residuals * np.linalg.norm(b.reshape(350, -1), axis=0), residuals, atol=1e-10
    )
    np.testing.assert_allclose(found.x, np.linalg.solve(damped, b), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tolerance", [1e-10, 1e-2])
@pytest.mark.parametrize("damping", [0.001, 0.1])
def test_known_pairs_save_products_and_change_no_solution(damping, tolerance):
    matrix = with_spectrum(np.concatenate([np.geomspace(1e-3, 1, 330), np.geomspace(10, 1000, 20)]))
    pairs = eigenpairs(matrix, 20, 0, tolerance=tolerance)
    b = np.random.default_rng(0).standard_normal((350, 2))
    plain, deflated = solve(matrix, b, damping), solve(matrix, b, damping, pairs=pairs)
    damped, norms = matrix + damping * np.eye(350), np.linalg.norm(b, axis=0)
    for found in (plain, deflated):
        assert (np.linalg.norm(b - damped @ found.x, axis=0) <= 1e-6 * norms).all()
        np.testing.assert_allclose(found.x, np.linalg.solve(damped, b), atol=2e-5 / damping)
    if tolerance < 1e-6:
        assert deflated.num_products < 0.3 * plain.num_products


def test_pairs_whose_damped_eigenvalue_is_zero_are_left_out():
    matrix = np.diag(np.arange(40.0))
    pairs = eigenpairs(matrix, 2, 2, tolerance=1e-10)
    zero = replace(pairs, values=np.where(np.abs(pairs.values) < 1e-8, 0.0, pairs.values))
    b = np.arange(40.0)  # nothing where the matrix gives nothing
    assert solve(matrix, b, pairs=zero).x == pytest.approx(np.minimum(b, 1), abs=1e-5)


def test_a_zero_right_side_has_a_zero_solution():
    assert not solve(with_spectrum(SPECTRA["wigner"]), np.zeros(350)).x.any()


def test_a_damped_step_of_newton_with_an_operator():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    pair = torch.randn(20, 4, dtype=torch.float64), torch.randint(3, (20,))
    dense = pipeline.hessian(model, nn.CrossEntropyLoss(), *pair, matrix="ggn").numpy()
    operator = pipeline.curvature_operator(model, nn.CrossEntropyLoss(), pair, matrix="ggn")
    b = torch.randn(len(dense), dtype=torch.float64)
    found = pipeline.solve(operator, b, damping=0.1, tolerance=1e-10)
    np.testing.assert_allclose(
        found.x, np.linalg.solve(dense + 0.1 * np.eye(len(dense)), b.numpy()), atol=1e-8
    )


def test_what_has_no_solution_is_told():
    matrix = with_spectrum(SPECTRA["low_rank"])
    with pytest.raises(
        PipelineError, match=r"the residual of \(H \+ 0 I\) x = b is .* of b after \d+ products"
    ):
        solve(matrix, np.ones(300))


@pytest.mark.parametrize(
    ("b", "options", "message"),
    [
        (np.ones(7), {}, r"b has shape \(7,\): give \(350,\) or \(350, m\) finite numbers"),
        (np.full(350, np.nan), {}, "finite numbers"),
        (
            np.ones(350),
            {"pairs": eigenpairs(np.eye(20), 1, 0)},
            r"pairs are of P = 20 weights, the matrix is of 350\.",
        ),
        (np.ones(350), {"damping": -1}, "damping=-1: give a number of at least 0"),
        (np.ones(350), {"tolerance": 0}, "tolerance=0"),
    ],
)
def test_mistakes_in_one_line(b, options, message):
    with pytest.raises(PipelineError, match=message):
        solve(with_spectrum(SPECTRA["wigner"]), b, **options)
