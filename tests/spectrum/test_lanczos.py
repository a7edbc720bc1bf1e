import pickle

import numpy as np
import pytest
import torch
from support.matrices import SPECTRA, with_spectrum

from pipeline.spectrum.lanczos import extremal_eigenpairs, random_start, start_from


def passes(state, matrix, number, width=None):
    for _ in range(number):
        state.advance(lambda block: matrix @ block, width or len(state.coupling))
    return state


def assert_relation(state, matrix, scale, atol=1e-13):
    """H V = V T + N C, of rows that are orthonormal together."""
    basis, block = np.asarray(state.basis, np.float64), np.asarray(state.block, np.float64)
    together = np.vstack([basis, block])
    np.testing.assert_allclose(together @ together.T, np.eye(len(together)), atol=atol)
    np.testing.assert_allclose(state.projected, basis @ matrix @ basis.T, atol=atol * scale)
    right = state.projected @ basis + state.coupling.T @ block
    np.testing.assert_allclose(basis @ matrix, right, atol=3 * atol * scale)


@pytest.mark.parametrize("name", ["hessian", "low_rank", "zero", "multiple", "identity", "tiny_scale"])
def test_what_holds_after_each_pass(name):
    matrix = with_spectrum(SPECTRA[name])
    largest = np.abs(SPECTRA[name]).max()
    state = random_start(len(matrix), 7, seed=2)
    for step in range(1, 12):
        passes(state, matrix, 1)
        if step == 6:
            state.restart(12, 9)
            assert state.num_columns == 21
        assert_relation(state, matrix, largest)
        assert state.num_passes == step
        assert state.norm <= largest * (1 + 1e-12)
        assert state.noise <= 1e-13 * largest


@pytest.mark.parametrize("name", ["hessian", "low_rank_indefinite", "multiple", "wigner"])
def test_what_holds_with_more_directions_than_are_multiplied(name):
    matrix = with_spectrum(SPECTRA[name])
    largest = np.abs(SPECTRA[name]).max()
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((len(matrix), 9)))[0].T
    state = start_from(vectors @ matrix, np.vstack([vectors, np.zeros((60, len(matrix)))]), 9, seed=1)
    assert_relation(state, matrix, largest)
    for step in range(8):
        state.choose(state.ritz(3, 1).weights)
        passes(state, matrix, 1, 2)
        if step == 4:
            state.add_random(2, np.random.default_rng(3))
            assert len(state.coupling) == 11
            state.narrow(2)
            assert 2 <= len(state.coupling) <= 11
        assert_relation(state, matrix, largest)


@pytest.mark.parametrize("like", [None, torch.empty(0, dtype=torch.float64)], ids=["arrays", "tensors"])
def test_what_holds_in_a_search_beside_a_basis(like):
    """Its rows are orthogonal to the basis alone, not to what comes next there; restarts of it lose no component."""
    matrix = with_spectrum(SPECTRA["wigner"])
    product = (lambda rows: matrix @ rows) if like is None else (lambda rows: torch.from_numpy(matrix) @ rows)
    state = random_start(len(matrix), 1, 0, 60, like)
    for _ in range(20):
        state.advance(product, 1)
    state.add_random(1, np.random.default_rng(3))
    krylov = np.asarray(state.block[:1], np.float64)
    basis = np.asarray(state.basis, np.float64).copy()
    for step in range(12):
        state.advance(product, 1)
        assert_relation(state, matrix, 2.0)
        if step < 5:  # no row of N is left out of the space
            krylov = np.vstack([krylov, krylov[-1:] @ matrix])
            krylov[-1] -= krylov[-1] @ basis.T @ basis
            rows = np.asarray(state.basis[20:], np.float64)
            np.testing.assert_allclose(krylov[:-1] @ rows.T @ rows, krylov[:-1], atol=1e-11)
        if step in (6, 9):
            state.restart(2, 1, first=20)
            assert state.num_columns == 23
            assert_relation(state, matrix, 2.0)
            state.narrow(1)
            assert len(state.coupling) == 2
            assert_relation(state, matrix, 2.0)


def test_the_directions_that_are_chosen_hold_most_of_the_residuals():
    matrix = with_spectrum(SPECTRA["wigner"])
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((len(matrix), 9)))[0].T
    state = start_from(vectors @ matrix, np.vstack([vectors, np.zeros((20, len(matrix)))]), 9, seed=1)
    found = state.ritz(1, 0)
    state.choose(found.weights)
    assert np.linalg.norm(state.coupling[:1] @ found.weights) == pytest.approx(found.residuals[0])


def test_the_basis_is_the_block_krylov_space():
    matrix = with_spectrum(np.linspace(-1, 2, 60))
    state = random_start(60, 3, seed=0)
    block = state.block.T.copy()
    krylov = np.hstack([block, matrix @ block, matrix @ matrix @ block])
    basis = passes(state, matrix, 3).basis
    np.testing.assert_allclose(basis.T @ (basis @ krylov), krylov, atol=1e-12)


def test_a_restart_loses_no_wanted_pair():
    matrix = with_spectrum(SPECTRA["wigner"])
    state = passes(random_start(len(matrix), 10, seed=0), matrix, 8)
    before = state.ritz(5, 4)
    state.restart(9, 8)
    after = state.ritz(5, 4)
    np.testing.assert_allclose(after.values, before.values, atol=1e-13)
    np.testing.assert_allclose(after.residuals, before.residuals, atol=1e-13)
    vectors = state.basis.T @ after.weights
    residuals = np.linalg.norm(matrix @ vectors - vectors * after.values, axis=0)
    np.testing.assert_allclose(after.residuals, residuals, atol=1e-13)


def test_a_saved_state_goes_on_bit_for_bit():
    matrix = with_spectrum(SPECTRA["low_rank_indefinite"])
    undisturbed = passes(random_start(len(matrix), 6, seed=4), matrix, 7)
    half = passes(random_start(len(matrix), 6, seed=4), matrix, 3)
    resumed = passes(pickle.loads(pickle.dumps(half)), matrix, 4)
    np.testing.assert_array_equal(resumed.basis, undisturbed.basis)
    np.testing.assert_array_equal(resumed.projected, undisturbed.projected)
    np.testing.assert_array_equal(resumed.block, undisturbed.block)


@pytest.mark.parametrize("num_rows", [350, 5000])  # in one part, and in several with a rest
def test_tensors_go_the_way_of_arrays(num_rows):
    diagonal = np.random.default_rng(0).standard_normal(num_rows)
    weights = torch.from_numpy(diagonal)[:, None]
    arrays = random_start(num_rows, 4, 0, 60)
    tensors = random_start(num_rows, 4, 0, 60, torch.empty(0, dtype=torch.float64))
    for step in range(12):
        arrays.advance(lambda block: diagonal[:, None] * block, 4)
        tensors.advance(lambda block: weights * block, 4)
        if step == 8:
            arrays.restart(5, 6)
            tensors.restart(5, 6)
    np.testing.assert_allclose(tensors.projected, arrays.projected, atol=1e-10)
    assert_relation(tensors, np.diag(diagonal), np.abs(diagonal).max())


def test_tensors_in_single_precision_keep_to_it():
    matrix = with_spectrum(SPECTRA["hessian"])
    single = torch.from_numpy(matrix).float()
    state = random_start(len(matrix), 4, 0, 60, torch.empty(0, dtype=torch.float32))
    for step in range(13):
        state.advance(lambda block: single @ block, 4)
        if step == 9:
            state.restart(10, 2)
    assert_relation(state, matrix, 10.0, atol=3e-7)


def test_the_whole_space_is_the_end():
    eigenvalues = np.random.default_rng(1).standard_normal(50)
    matrix = with_spectrum(np.sort(eigenvalues))
    pairs = extremal_eigenpairs(
        lambda block: matrix @ block,
        50,
        num_top=30,
        num_bottom=20,
        tolerance=1e-12,
        max_passes=50,
        block_size=30,
        max_columns=50,
        seed=0,
    )
    assert pairs.converged
    assert pairs.num_passes == 2
    np.testing.assert_allclose(pairs.values, np.sort(eigenvalues), atol=1e-13)
