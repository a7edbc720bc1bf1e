"""Traces and norms of the matrices of batches against those of dense matrices."""

import numpy as np
import pytest
from support.matrices import Stored, like_a_hessian, with_spectrum

from pipeline.errors import PipelineError
from pipeline.spectrum import Eigenpairs, batch_moments

SEEDS = 300
NUM_ROWS, WEIGHTS, SCALES = 120, (0.5, 0.3, 0.2), (1.0, 1.0, 1.0)
NO_PAIRS = [Eigenpairs(np.zeros(0), np.zeros((NUM_ROWS, 0)), np.zeros(0), True, 0)] * 3


def batches(num_rows=NUM_ROWS):
    """Three matrices that share a mean, as those of batches do."""
    mean = with_spectrum(like_a_hessian(num_rows))
    rng = np.random.default_rng(7)
    noise = rng.normal(size=(3, num_rows, num_rows)) * 0.05 * np.linalg.norm(mean) / num_rows
    return [mean + each + each.T for each in noise]


def exact(matrices, weights=WEIGHTS, scales=SCALES):
    whole = sum(weight * matrix for weight, matrix in zip(weights, matrices, strict=True))
    return whole, {
        "traces": [np.trace(matrix) for matrix in matrices],
        "frobenius_norms": [np.linalg.norm(matrix) for matrix in matrices],
        "distances": [
            np.linalg.norm(scale * matrix - whole) for scale, matrix in zip(scales, matrices, strict=True)
        ],
    }


def top(matrix, number):
    return np.linalg.eigh(matrix)[1][:, ::-1][:, :number]


def pairs_of(matrices, number):
    """Eigenpairs, a little off, as an eigensolver leaves them."""
    found, rng = [], np.random.default_rng(3)
    for matrix in matrices:
        vectors = top(matrix, number) + 1e-4 * rng.normal(size=(len(matrix), number))
        vectors = np.linalg.qr(vectors)[0]
        values = np.einsum("ij,ik,kj->j", vectors, matrix, vectors)
        found.append(Eigenpairs(values, vectors, np.full(number, np.nan), True, 0))
    return found


def test_intervals_of_95_percent_hold_in_93_percent_of_seeds():
    matrices = batches()
    whole, known = exact(matrices)
    known_pairs, held = pairs_of(matrices, 4), {key: np.zeros(3) for key in known}
    for seed in range(SEEDS):
        found = batch_moments(
            [Stored(matrix) for matrix in matrices],
            WEIGHTS,
            SCALES,
            top(whole, 5),
            known_pairs,
            30,
            seed=seed,
        )
        for key, values in known.items():
            held[key] += [
                each.low <= value <= each.high
                for each, value in zip(getattr(found, key), values, strict=True)
            ]
    assert min(counts.min() for counts in held.values()) >= 0.93 * SEEDS, held


@pytest.mark.parametrize(("num_space", "num_pairs"), [(10, 0), (0, 10)])
def test_what_is_known_makes_intervals_narrow(num_space, num_pairs):
    matrices = batches()
    whole, _ = exact(matrices)
    stored = [Stored(matrix) for matrix in matrices]
    wide, narrow = (
        batch_moments(stored, WEIGHTS, SCALES, top(whole, space), pairs_of(matrices, pairs), 30)
        for space, pairs in ((0, 0), (num_space, num_pairs))
    )
    for key in ("traces", "frobenius_norms"):
        both = zip(getattr(narrow, key), getattr(wide, key), strict=True)
        assert all(few.high - few.low < 0.5 * (none.high - none.low) for few, none in both), key


@pytest.mark.parametrize(("weights", "scales"), [(WEIGHTS, SCALES), ((1.0, 1.0, 1.0), (5.0, 2.5, 2.5))])
def test_few_rows_are_taken_exactly(weights, scales):
    """The second: a summed loss, of which each batch estimates the whole by its share of the samples."""
    matrices = batches(20)
    whole, known = exact(matrices, weights, scales)
    found = batch_moments(
        [Stored(matrix) for matrix in matrices], weights, scales, top(whole, 2), pairs_of(matrices, 2), 18
    )
    assert found.num_products == 20
    for key, values in known.items():
        np.testing.assert_allclose([each.value for each in getattr(found, key)], values, rtol=1e-12)


def test_the_memory_is_of_a_vector_at_a_time():
    matrices, widths = [Stored(matrix) for matrix in batches()], []
    for matrix in matrices:
        matrix.matvec = lambda vectors, product=matrix.matvec: (
            widths.append(vectors.shape[1]) or product(vectors)
        )
    batch_moments(matrices, WEIGHTS, SCALES, np.zeros((NUM_ROWS, 0)), NO_PAIRS, 12)
    assert set(widths) == {1}


def test_products_that_are_not_finite_are_refused():
    broken = batches()
    broken[1][3, 3] = np.nan
    with pytest.raises(PipelineError, match="the matrix times a vector holds NaN or infinity"):
        batch_moments(
            [Stored(matrix) for matrix in broken], WEIGHTS, SCALES, np.zeros((NUM_ROWS, 0)), NO_PAIRS, 12
        )
