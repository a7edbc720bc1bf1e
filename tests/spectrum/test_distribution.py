"""The band of a distribution of eigenvalues against the distribution itself."""

import tracemalloc

import numpy as np
import pytest
import torch
from support.matrices import SPECTRA, Stored, like_a_hessian, with_spectrum

from pipeline import eigenpairs
from pipeline.errors import PipelineError
from pipeline.spectrum import rows as on
from pipeline.spectrum.distribution import bytes_of_recurrences, density

NAMES = ("wigner", "low_rank", "multiple", "zero", "identity", "both_signs_alike")
CASES = {"hessian": like_a_hessian(300), **{name: SPECTRA[name] for name in NAMES}}


def is_held(found, eigenvalues):
    """At each eigenvalue, and just before it, where the distribution is lowest beside the band's upper edge."""
    size = np.abs(eigenvalues).max() * 1e-12 + 1e-300
    for x in (eigenvalues + size, eigenvalues - size, eigenvalues[:-1] / 2 + eigenvalues[1:] / 2):
        exact = np.searchsorted(eigenvalues, x, side="right") / len(eigenvalues)
        low, high = found.at(x)
        if not ((low <= exact + 1e-12) & (exact <= high + 1e-12)).all():
            return False
    return True


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("num_steps", [5, 25])
def test_the_band_holds_the_distribution_in_95_of_100_seeds(name, num_steps):
    eigenvalues = CASES[name]
    matrix = Stored(np.diag(eigenvalues))  # random vectors look alike in every basis
    held = sum(
        is_held(density(matrix, num_vectors=4, num_steps=num_steps, seed=seed), eigenvalues)
        for seed in range(100)
    )
    assert held >= 95


@pytest.mark.parametrize("num_steps", [5, 25])
def test_the_band_holds_with_known_pairs_and_is_exact_beyond_them(num_steps):
    eigenvalues = CASES["hessian"]
    matrix = Stored(np.diag(eigenvalues))
    pairs = eigenpairs(matrix, top=8, bottom=2, tolerance=1e-10)
    held = 0
    for seed in range(100):
        found = density(matrix, num_vectors=4, num_steps=num_steps, pairs=pairs, seed=seed)
        held += is_held(found, eigenvalues)
        low, high = found.at((eigenvalues[-8:-1] + eigenvalues[-7:]) / 2)  # between outliers
        np.testing.assert_allclose(low, 1 - np.arange(7, 0, -1) / 300 - (1 - low[0] - 7 / 300), atol=1e-12)
        np.testing.assert_allclose(high, 1 - np.arange(7, 0, -1) / 300, atol=1e-12)
    assert held >= 95
    shares = found.quadrature.weights[:, -8:]
    np.testing.assert_allclose(shares, 1 / 300, rtol=1e-12)
    np.testing.assert_allclose(found.quadrature.weights.sum(axis=1), 1, rtol=1e-12)


def test_pairs_of_another_matrix_are_refused():
    pairs = eigenpairs(Stored(np.diag(np.arange(20.0))), top=2, bottom=0)
    with pytest.raises(PipelineError, match=r"pairs are of P = 20 weights, the matrix is of 300"):
        density(Stored(np.diag(CASES["hessian"])), pairs=pairs)


def test_without_the_spread_it_does_not_hold():
    """So that the test above tests it."""
    eigenvalues = CASES["wigner"]
    found = density(Stored(np.diag(eigenvalues)), num_vectors=1, num_steps=350)
    exact = np.searchsorted(eigenvalues, eigenvalues, side="right") / len(eigenvalues)
    low, high = found.at(eigenvalues)
    assert not ((low + found.spread <= exact) & (exact <= high - found.spread)).all()


def test_more_vectors_and_steps_make_the_band_narrow():
    matrix = Stored(with_spectrum(SPECTRA["wigner"]))
    widths = [density(matrix, *sizes).width for sizes in ((1, 5), (8, 5), (8, 40), (64, 40))]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.15


def test_without_a_basis_it_gives_the_same_where_no_value_has_converged():
    matrix = Stored(with_spectrum(SPECTRA["wigner"]))
    kept = density(matrix, 2, 12)
    bare = density(matrix, 2, 12, memory=0)
    assert kept.is_reorthogonalized
    assert not bare.is_reorthogonalized
    np.testing.assert_allclose(bare.quadrature.nodes, kept.quadrature.nodes, atol=1e-9)
    np.testing.assert_allclose(bare.low, kept.low, atol=1e-9)


def test_the_density_integrates_to_one():
    found = density(Stored(with_spectrum(CASES["hessian"])), 4, 30)
    assert np.trapezoid(found.density, found.grid.coordinates) == pytest.approx(1, abs=1e-3)
    assert found.num_products == 120
    assert found.low[0] == 0
    assert found.high[-1] == 1


def test_watch_is_told_the_products():
    told = []
    density(Stored(np.diag(CASES["wigner"])), 4, 6, watch=lambda *numbers: told.append(numbers))
    assert [number for number, _ in told] == [4, 8, 12, 16, 20, 24]
    assert all(np.isnan(residual) for _, residual in told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_vectors": 0}, "num_vectors=0: give a whole number of at least 1"),
        ({"num_steps": 1}, "num_steps=1: give a whole number of at least 2"),
        ({"confidence": 2}, "confidence=2: give a number above 0 and below 1"),
    ],
)
def test_mistakes_in_one_line(options, message):
    with pytest.raises(PipelineError, match=message):
        density(np.eye(9), **options)


class Diagonal:
    """With products in NumPy and float64, or with tensors."""

    def __init__(self, dtype=None):
        self.values, self.num_rows = np.linspace(-1, 1, 100_000), 100_000
        if dtype is not None:
            self.values, self.dtype = torch.from_numpy(self.values).to(dtype), dtype
            self.device, self.columns_per_pass = torch.device("cpu"), 1

    def matvec(self, vectors):
        return self.values[:, None] * vectors


@pytest.mark.parametrize("memory", [None, 10**6])
def test_vectors_take_the_bytes_that_a_plan_tells(memory):
    matrix, steps = Diagonal(), 20 if memory is None else 0
    tracemalloc.start()
    try:
        found = density(matrix, 3, 20, memory=memory)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    told = bytes_of_recurrences(100_000, 3, steps, 8)
    assert found.is_reorthogonalized == bool(steps)
    assert 0.75 * told < peak < 1.25 * told + 3 * 3 * 800_000, (peak, told)
    assert is_held(found, matrix.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_lie_in_their_own_precision(dtype, monkeypatch):
    made, empty = [], on.empty
    monkeypatch.setattr(on, "empty", lambda *about: made.append(empty(*about)) or made[-1])
    matrix = Diagonal(dtype)
    found = density(matrix, 3, 20)
    assert {rows.dtype for rows in made} == {dtype}
    told = bytes_of_recurrences(100_000, 3, 20, dtype.itemsize)
    assert 0.6 * told < sum(rows.nbytes for rows in made) < told
    assert is_held(found, matrix.values.double().numpy())
    for factor in (2.0**-70, 2.0**70):  # of which squares are nothing, or infinite, in single precision
        scaled = Diagonal(dtype)
        scaled.values = scaled.values * factor
        same = density(scaled, 3, 20)
        np.testing.assert_allclose(same.quadrature.nodes / factor, found.quadrature.nodes, rtol=1e-12)
        np.testing.assert_allclose(same.low, found.low, rtol=1e-12)
    plain = density(Diagonal(), 3, 20)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(found.low.mean(), plain.low.mean(), atol=tolerance)
    np.testing.assert_allclose(found.quadrature.nodes, plain.quadrature.nodes, atol=tolerance)
