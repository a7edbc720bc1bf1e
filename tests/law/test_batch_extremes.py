"""Extreme eigenvalues of batches, against the two formulas for matrices with independent entries."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.law import BatchExtremes, batch_extremes
from pipeline.law.batch_extremes import excesses, independent_entries, second_order

SMALL = BatchExtremes(
    seed=0,
    num_samples=128,
    batch_sizes=(16, 32, 64),
    num_draws=100,
    noise_batch_sizes=(64, 1024),
    noise_draws=8,
    dimension=4,
    hidden_size=4,
)


def spiked(num_samples, size, outlier, seed):
    """Symmetric matrices whose entries have standard deviation 1 around outlier · v vᵀ, v the first unit vector.

    Their mean is exactly that; so the entries of a mean of B of them have variance 1/B − 1/N.
    """
    torch.manual_seed(seed)
    noise = torch.randn(num_samples, size, size, dtype=torch.float64)
    noise = (noise + noise.mT) / 2**0.5
    noise -= noise.mean(0)
    noise[:, 0, 0] += outlier
    return noise


def test_an_outlier_exceeds_by_the_variance_over_itself():
    P, N, outlier = 40, 2000, 12.0
    matrices = spiked(N, P, outlier, seed=0)
    for B in (20, 80):
        largest = excesses(matrices, B, 150).centered[:, 0].mean()
        assert largest == pytest.approx((P - 1) * (1 / B - 1 / N) / outlier, rel=0.06)
    assert second_order(matrices) == pytest.approx((P - 1) / outlier, rel=0.06)
    assert independent_entries(matrices) == pytest.approx(P / outlier, rel=0.06)


def test_noise_reaches_twice_the_root_of_the_variance():
    P, N = 60, 1500
    matrices = spiked(N, P, 0.0, seed=1)
    for B in (10, 40):
        edge = 2 * np.sqrt(P * (1 / B - 1 / N))
        largest, smallest = excesses(matrices, B, 20).plain.mean(0)
        assert largest == pytest.approx(edge, rel=0.06)
        assert smallest == pytest.approx(-edge, rel=0.06)


def test_each_batch_lies_outside_without_the_first_order_term():
    found = excesses(spiked(50, 6, 1.0, seed=2), 5, 200).centered
    assert (found[:, 0] >= 0).all()
    assert (found[:, 1] <= 0).all()


def test_the_first_order_term_leaves_the_expectation():
    """All batches of 2 of 6 samples, in place of batches that are drawn."""
    matrices = spiked(6, 4, 3.0, seed=3)
    pairs = [(i, j) for i in range(6) for j in range(i)]
    top = torch.linalg.eigvalsh(matrices.mean(0))[-1]
    expected = np.mean(
        [float(torch.linalg.eigvalsh(matrices[list(pair)].mean(0))[-1] - top) for pair in pairs]
    )
    torch.manual_seed(0)
    drawn = excesses(matrices, 2, 20_000).centered[:, 0]
    assert drawn.mean() == pytest.approx(expected, abs=4 * drawn.std() / 20_000**0.5)


def test_the_law_at_reduced_size():
    measured = {check.key: check.measured for check in SMALL.measure(None).checks}
    assert measured["slope"] == pytest.approx(1, abs=0.25)
    assert measured["second_order"] == pytest.approx(1, abs=0.25)
    assert measured["above"] > 0.5
    assert measured["below"] > 0.5
    assert measured["noise_slope"] == pytest.approx(-0.5, abs=0.2)
    assert measured["batch_is_mean"] < 1e-12


def test_it_is_not_held_by_sums_in_place_of_means(monkeypatch):
    right = batch_extremes.sample_hessians
    monkeypatch.setattr(batch_extremes, "sample_hessians", lambda *arguments: 2 * right(*arguments))
    held = {check.key: check.held for check in replace(SMALL, noise_draws=2).measure(None).checks}
    assert not held["batch_is_mean"]
