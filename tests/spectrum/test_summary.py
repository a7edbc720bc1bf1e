import numpy as np
import pytest
from support.matrices import SPECTRA, with_spectrum

from pipeline.spectrum import summary


@pytest.mark.parametrize("rank", [1, 3, 50])
def test_ranks_of_a_projection_are_its_rank(rank):
    eigenvalues = np.concatenate([np.zeros(60 - rank), np.full(rank, 0.7)])
    assert summary.effective_rank(eigenvalues) == pytest.approx(rank)
    assert summary.stable_rank(eigenvalues) == pytest.approx(rank)
    signs = np.where(np.arange(60) % 2, -1, 1)
    assert summary.effective_rank(signs * eigenvalues) == pytest.approx(rank)


def test_effective_rank_of_a_geometric_series():
    # Shares 2^-1, 2^-2, ...: the entropy is 2 ln 2.
    assert summary.effective_rank(0.5 ** np.arange(1, 200)) == pytest.approx(4)


def test_participation_ratio_of_equal_sizes_and_of_a_geometric_series():
    signs = np.where(np.arange(60) % 2, -1.0, 1.0)
    assert summary.participation_ratio(1e-200 * signs) == pytest.approx(60)
    assert summary.participation_ratio(np.concatenate([signs, np.zeros(99)])) == pytest.approx(60)
    assert summary.participation_ratio(0.5 ** np.arange(1, 200)) == pytest.approx(3)  # 1² / (1/3)
    assert summary.participation_ratio(np.zeros(5)) is None
    positive = with_spectrum(np.linspace(0, 2, 20))
    values = np.linalg.eigvalsh(positive)
    assert summary.participation_ratio(values) == pytest.approx(np.trace(positive) ** 2 / (positive**2).sum())


def test_cosines_are_those_of_angles():
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    np.testing.assert_allclose(summary.cosines(np.array([-2.0, 0.0]), turn), [np.cos(0.3), np.sin(0.3)])


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_ranks_do_not_depend_on_scale(scale):
    eigenvalues = SPECTRA["wigner"]
    assert summary.stable_rank(scale * eigenvalues) == pytest.approx(summary.stable_rank(eigenvalues))
    assert summary.effective_rank(scale * eigenvalues) == pytest.approx(summary.effective_rank(eigenvalues))


def test_bounds():
    for eigenvalues in SPECTRA.values():
        if eigenvalues.any():
            effective, stable = summary.effective_rank(eigenvalues), summary.stable_rank(eigenvalues)
            assert 1 - 1e-12 <= stable <= len(eigenvalues) + 1e-9
            assert 1 - 1e-12 <= effective <= len(eigenvalues) + 1e-9


def test_negative_eigenvalues_above_the_noise():
    eigenvalues = np.array([-2.0, -2.1e-5, -1.9e-5, -2.1e-6, -1.9e-6, -1e-17, 0, 2])
    assert summary.num_negative(eigenvalues) == 4
    assert summary.num_negative(eigenvalues.astype(np.float32)) == 2
    assert summary.num_negative(eigenvalues, threshold=0) == 6
    assert summary.num_negative(eigenvalues, threshold=0.5) == 1
    assert summary.num_negative(np.zeros(4)) == 0


def test_headline_numbers_against_the_matrix():
    matrix = with_spectrum(SPECTRA["low_rank_indefinite"])
    numbers = summary.summarize(np.linalg.eigvalsh(matrix))
    assert numbers["trace"] == pytest.approx(np.trace(matrix))
    assert numbers["frobenius_norm"] == pytest.approx(np.linalg.norm(matrix))
    assert numbers["stable_rank"] == pytest.approx((matrix**2).sum() / np.linalg.norm(matrix, 2) ** 2)
    assert numbers["lambda_max"] == pytest.approx(3)
    assert numbers["lambda_min"] == pytest.approx(-5)
    assert numbers["num_negative_eigenvalues"] == 2


def test_what_the_zero_matrix_has_not_is_left_out():
    numbers = summary.summarize(np.zeros(3))
    assert set(numbers) == {"trace", "lambda_max", "lambda_min", "frobenius_norm", "num_negative_eigenvalues"}
    assert set(numbers.values()) == {0}


def orthonormal(num_rows, num_columns, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((num_rows, num_columns)))[0]


def test_overlap_of_spaces():
    basis = orthonormal(40, 8)
    first, second = basis[:, :4], basis[:, 4:]
    rotation = orthonormal(4, 4, seed=1)
    assert summary.eigenspace_overlap(first, first @ rotation) == pytest.approx(1)
    assert summary.eigenspace_overlap(first, second) == pytest.approx(0, abs=1e-15)
    tilted = np.cos(0.3) * first + np.sin(0.3) * second
    assert summary.eigenspace_overlap(first, tilted @ rotation) == pytest.approx(np.cos(0.3) ** 2)


def test_overlap_of_random_spaces_is_k_over_p_on_average():
    overlaps = [
        summary.eigenspace_overlap(orthonormal(50, 5, s), orthonormal(50, 5, 999 - s)) for s in range(100)
    ]
    assert np.mean(overlaps) == pytest.approx(0.1, rel=0.1)


def test_overlap_needs_equal_shapes():
    with pytest.raises(ValueError, match=r"\(6, 2\) and \(6, 3\)"):
        summary.eigenspace_overlap(orthonormal(6, 2), orthonormal(6, 3))


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_share_of_a_vector(scale):
    basis = orthonormal(30, 6)
    inside, outside = basis[:, :5] @ np.arange(1.0, 6), basis[:, 5]
    assert summary.share_in_eigenspace(scale * inside, basis[:, :5]) == pytest.approx(1)
    assert summary.share_in_eigenspace(scale * outside, basis[:, :5]) == pytest.approx(0, abs=1e-15)
    mixed = scale * (inside / np.linalg.norm(inside) + 2 * outside)
    assert summary.share_in_eigenspace(mixed, basis[:, :5]) == pytest.approx(0.2)
    assert summary.share_in_eigenspace(np.zeros(30), basis) is None
