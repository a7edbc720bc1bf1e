"""Distances of spectra, against closed forms; blocks of layers, against those of the whole Hessian."""

import numpy as np
import pytest
import torch

from pipeline.compute import hessian
from pipeline.law import BlockSpectra, block_spectra
from pipeline.law.block_spectra import DISTANCES, inner, jensen_shannon, layer_spectra, mean_distance
from pipeline.model import Transformer

SMALL = BlockSpectra(seed=1, num_samples=12, num_channels=(4,), num_blocks=1, width=4, hidden_size=6)


@pytest.fixture(scope="module")
def outcome():
    return SMALL.measure(None)


def test_spectra_are_those_of_slices_of_the_hessian():
    torch.manual_seed(0)
    net = Transformer((1, 4, 4), 3, patch_size=2, width=2, hidden_size=3, num_heads=1).double()
    inputs, targets = torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.randint(3, (5,))
    spectra = layer_spectra(net, inputs, targets)
    H = hessian(net, block_spectra.CROSS_ENTROPY, inputs, targets, as_blocks=True)
    name = "blocks.0.attention.qkv.weight"
    whole = H[name][name].reshape(12, 12)
    for place, part in enumerate(("query", "key", "value")):
        rows = slice(4 * place, 4 * place + 4)
        expected = torch.linalg.eigvalsh(whole[rows, rows])
        np.testing.assert_allclose(spectra[f"blocks.0.attention.{part}"], expected, atol=1e-12)
    fc = H["blocks.0.fc1.weight"]["blocks.0.fc1.weight"].reshape(6, 6)
    np.testing.assert_allclose(spectra["blocks.0.fc1.weight"], torch.linalg.eigvalsh(fc), atol=1e-12)
    assert set(spectra) - set(inner(spectra)) == {"embedding.weight", "fc.weight"}


def test_distances_of_two_points():
    """All eigenvalues of one at 1, those of the other at 4: 3 apart, in units of √(1 · 4); alike when normalized."""
    one, four = np.ones(3), np.full(5, 4.0)
    found = {key: distance(one, four) for key, distance in DISTANCES.items()}
    assert found == pytest.approx(
        {"wasserstein": 1.5, "wasserstein_normalized": 0, "kolmogorov": 1, "kolmogorov_normalized": 0}
    )


def test_distances_of_parts():
    """Halves at 0 and 2 against one at 1: Wasserstein 1, Kolmogorov ½; a common factor changes none."""
    first, second = np.array([0.0, 2.0]), np.array([1.0])
    for factor in (1.0, 1e-3):
        found = [distance(factor * first, factor * second) for distance in DISTANCES.values()]
        assert found == pytest.approx([1.0, 1.0, 0.5, 0.5])
    spectra = {"a": first, "b": second, "c": second}
    assert mean_distance(spectra, DISTANCES["kolmogorov"]) == pytest.approx((0.5 + 0.5 + 0) / 3)


def test_divergence_of_smoothed_densities():
    """Bits: 1 of densities that do not overlap, 0 of equal ones; of two Gaussians by numerical integration."""
    spectra = {"a": np.zeros(3), "b": np.ones(2)}
    assert jensen_shannon(spectra, 1e-2) == pytest.approx(1)
    assert jensen_shannon({"a": np.zeros(3), "b": np.zeros(2)}, 0.1) == pytest.approx(0, abs=1e-12)
    x = np.linspace(-8, 9, 20_001)
    p, q = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), np.exp(-((x - 1) ** 2) / 2) / np.sqrt(2 * np.pi)
    m = (p + q) / 2
    expected = np.trapezoid(p * np.log2(p / m) + q * np.log2(q / m), x) / 2
    assert jensen_shannon(spectra, 1.0) == pytest.approx(expected, rel=1e-3)


def test_the_transformer_has_more_scales(outcome):
    found = {check.key: check for check in outcome.checks}
    assert found["wasserstein"].held
    assert found["scales"].held
    assert len(outcome.panels[0].series) == 2
    assert len(outcome.panels[1].series) == 6


def test_it_is_not_held_by_a_transformer_of_equal_layers(monkeypatch):
    right = BlockSpectra._spectra

    def equal(law, kind):
        found = right(law, kind)
        if kind == "resnet":
            return found
        return {name: np.linspace(-1, 1 + place / 1000, 50) for place, name in enumerate(found)}

    monkeypatch.setattr(BlockSpectra, "_spectra", equal)
    found = {check.key: check for check in SMALL.measure(None).checks}
    assert not any(found[key].held for key in ("wasserstein", "kolmogorov", "scales"))
