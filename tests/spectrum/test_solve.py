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


def test_pairs_of_another_matrix_change_nothing_but_the_products():
    matrix = with_spectrum(np.linspace(-0.4, 0.8, 60))
    pairs = eigenpairs(with_spectrum(np.linspace(-0.3, 0.7, 60), seed=5), 3, 1)
    b = np.random.default_rng(0).standard_normal(60)
    found = solve(matrix, b, damping=1.0, pairs=pairs)
    np.testing.assert_allclose(found.x, np.linalg.solve(matrix + np.eye(60), b), atol=1e-4)


@pytest.mark.parametrize(
    ("b", "message"),
    [
        (np.ones(5) * 1j, "b holds complex128, not real numbers: give"),
        (torch.ones(5, dtype=torch.complex64), "b holds complex64, not real numbers"),
        (np.full(5, np.nan), r"b holds NaN or infinity: give \(5,\) or \(5, m\) finite"),
        (np.ones(4), r"b has shape \(4,\): give \(5,\)"),
        (np.ma.masked_array(np.ones(5), [True] + 4 * [False]), "entries of b are masked"),
        (["a"] * 5, "b holds <U1, not real numbers"),
    ],
)
def test_right_sides_that_are_none(b, message):
    with pytest.raises(PipelineError, match=message):
        pipeline.solve(np.eye(5), b)


@pytest.mark.parametrize(
    "function",
    [
        lambda pairs: pipeline.solve(np.eye(30), np.ones(30), pairs=pairs),
        lambda pairs: pipeline.trace(np.eye(30), 20, pairs=pairs),
        lambda pairs: pipeline.density(np.eye(30), pairs=pairs),
    ],
)
def test_what_are_no_pairs_is_refused(function):
    with pytest.raises(PipelineError, match=r"pairs is of type int: give what pipeline\.eigenpairs returns"):
        function(3)
    with pytest.raises(PipelineError, match="pairs are of P = 7 weights, the matrix is of 30"):
        function(pipeline.eigenpairs(np.eye(7), 2))


def test_a_right_side_outside_the_range_of_few_directions_is_told_soon():
    """As of a Gauss-Newton matrix of few samples without damping: no x has a smaller residual."""
    matrix = Stored(with_spectrum(np.concatenate([np.zeros(195), np.arange(1.0, 6.0)])))
    b = np.random.default_rng(0).standard_normal(200)
    with pytest.raises(
        PipelineError, match=r"the residual of \(H \+ 0 I\) x = b is \S+ of b after \d+ products"
    ):
        solve(matrix, b)
    assert matrix.num_passes < 100
    in_range = matrix.matrix @ b
    found = solve(matrix, in_range)
    np.testing.assert_allclose(matrix.matrix @ found.x, in_range, atol=1e-5)
