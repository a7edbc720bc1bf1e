"""Seconds of spectra, from rates: what they grow with, and that rounding hides what differs from run to run."""

import numpy as np
import pytest

from pipeline.spectrum.cost import HALF, NUM_ROWS, Rates

RATES = Rates(eigenvalues=0.08, products=5e10)


def test_the_rate_is_that_of_the_small_matrix():
    assert RATES.all_eigenvalues(NUM_ROWS) == pytest.approx(0.08)


def test_eigenvalues_grow_with_the_cube_of_many_rows_and_the_square_of_few():
    assert RATES.all_eigenvalues(200_000) / RATES.all_eigenvalues(100_000) == pytest.approx(8, rel=0.02)
    assert RATES.all_eigenvalues(20) / RATES.all_eigenvalues(10) == pytest.approx(4, rel=0.02)
    at_half, twice = RATES.all_eigenvalues(HALF), RATES.all_eigenvalues(2 * HALF)
    assert twice / at_half == pytest.approx(4 * 3 / 2)


def test_threads_and_a_gpu_take_less():
    two = Rates(0.08, 5e10, num_threads=2)
    assert two.all_eigenvalues(5000) < RATES.all_eigenvalues(5000)
    assert two.all_eigenvalues(5000, num_threads=1) == RATES.all_eigenvalues(5000)
    card = Rates(0.08, 5e10, on_gpu=0.02)
    assert (
        card.all_eigenvalues(5000, "auto") < card.all_eigenvalues(5000, "cpu") == RATES.all_eigenvalues(5000)
    )


def test_passes_of_a_small_matrix_end_when_its_basis_is_whole():
    assert RATES.passes(100, 20, 12) == RATES.passes(100, 20, 5)
    assert RATES.passes(10, 20, 12) == RATES.passes(10, 10, 1)


def test_a_matrix_on_disk_is_read_at_each_pass():
    extra = RATES.passes(10_000, 20, 12, stored_itemsize=4) - RATES.passes(10_000, 20, 12)
    assert extra == pytest.approx(12 * 10_000**2 / 2 * 4 / 1.5e9)


@pytest.mark.parametrize("rate", [0.0599, 0.0625, 0.08])
def test_rounded_rates_of_two_runs_are_the_same(rate):
    assert Rates(rate, 1e9 * rate).rounded().eigenvalues == 0.0625


def test_rates_are_measured_in_the_dtype_once():
    rates = Rates.of(np.float32)
    assert rates is Rates.of("float32")
    assert 1e-4 < rates.eigenvalues < 100
    assert 1e6 < rates.products < 1e14
