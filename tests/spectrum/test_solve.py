"""Linear systems against a dense solver."""

import numpy as np
import pytest
import torch
from support.matrices import SPECTRA, Stored, with_spectrum
from torch import nn

import pipeline
from pipeline.errors import PipelineError
from pipeline.spectrum import solve


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
        (np.ones(350), {"damping": -1}, "damping=-1: give a number of at least 0"),
        (np.ones(350), {"tolerance": 0}, "tolerance=0"),
    ],
)
def test_mistakes_in_one_line(b, options, message):
    with pytest.raises(PipelineError, match=message):
        solve(with_spectrum(SPECTRA["wigner"]), b, **options)
