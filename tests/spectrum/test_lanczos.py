import pickle

import numpy as np
import pytest
from support.matrices import SPECTRA, with_spectrum

from pipeline.spectrum.lanczos import LanczosState, advance, extremal_eigenpairs, restart, ritz_pairs, start


def columns(blocks):
    return np.hstack(blocks)


def passes(state: LanczosState, matrix, number):
    for _ in range(number):
        state = advance(state, lambda block: matrix @ block)
    return state


@pytest.mark.parametrize("name", ["hessian", "low_rank", "zero", "multiple", "identity", "tiny_scale"])
def test_what_holds_after_each_pass(name):
    matrix = with_spectrum(SPECTRA[name])
    largest = np.abs(SPECTRA[name]).max()
    state = start(len(matrix), 7, seed=2)
    for step in range(1, 12):
        state = passes(state, matrix, 1)
        if step == 6:
            state = restart(state, 12, 9)
            assert state.num_columns == 21
        basis, block = columns(state.basis), state.block
        together = np.hstack([basis, block])
        np.testing.assert_allclose(together.T @ together, np.eye(together.shape[1]), atol=1e-13)
        np.testing.assert_allclose(columns(state.images), matrix @ basis, atol=1e-13 * largest)
        np.testing.assert_allclose(state.projected, basis.T @ matrix @ basis, atol=1e-13 * largest)
        assert state.num_passes == step
        assert state.norm <= largest * (1 + 1e-12)


def test_the_basis_is_the_block_krylov_space():
    matrix = with_spectrum(np.linspace(-1, 2, 60))
    state = start(60, 3, seed=0)
    block = state.block
    krylov = np.hstack([block, matrix @ block, matrix @ matrix @ block])
    basis = columns(passes(state, matrix, 3).basis)
    np.testing.assert_allclose(basis @ (basis.T @ krylov), krylov, atol=1e-12)


def test_a_restart_loses_no_wanted_pair():
    matrix = with_spectrum(SPECTRA["wigner"])
    state = passes(start(len(matrix), 10, seed=0), matrix, 8)
    before = ritz_pairs(state, 5, 4, 1e-6)
    after = ritz_pairs(restart(state, 9, 8), 5, 4, 1e-6)
    np.testing.assert_allclose(after.values, before.values, atol=1e-13)
    np.testing.assert_allclose(after.residuals, before.residuals, atol=1e-13)


def test_a_saved_state_goes_on_bit_for_bit():
    matrix = with_spectrum(SPECTRA["low_rank_indefinite"])
    undisturbed = passes(start(len(matrix), 6, seed=4), matrix, 7)
    half = passes(start(len(matrix), 6, seed=4), matrix, 3)
    resumed = passes(pickle.loads(pickle.dumps(half)), matrix, 4)
    np.testing.assert_array_equal(columns(resumed.basis), columns(undisturbed.basis))
    np.testing.assert_array_equal(resumed.projected, undisturbed.projected)
    np.testing.assert_array_equal(resumed.block, undisturbed.block)


def test_a_pass_leaves_its_state_as_it_was():
    matrix = with_spectrum(SPECTRA["wigner"])
    state = passes(start(len(matrix), 6, seed=4), matrix, 2)
    saved = pickle.dumps(state)
    passes(state, matrix, 2)
    restart(state, 3, 3)
    assert pickle.dumps(state) == saved


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
