"""Traces, norms and diagonals against those of dense matrices, and how often their intervals hold them."""

import numpy as np
import pytest
import torch
from support.matrices import SPECTRA, Stored, like_a_hessian, with_spectrum
from torch import nn

import pipeline
from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.spectrum import Eigenpairs, diagonal, eigenpairs, trace

SEEDS = 300
MATRICES = {
    "hessian": with_spectrum(like_a_hessian(300)),
    "wigner": with_spectrum(SPECTRA["wigner"]),
    "low_rank": with_spectrum(np.concatenate([np.zeros(250), np.arange(-20.0, 30)])),
    "two-layers": np.diag(np.concatenate([np.linspace(0, 1, 150), -(np.linspace(0, 30, 150) ** 2)])),
}


class Layered(Stored):
    """The first half of the rows are one layer, the others two."""

    @property
    def layout(self):
        n = self.num_rows
        return Layout(("one.weight", "two.weight", "three.weight"), ((n // 2,), (n - 3 - n // 2,), (3,)))


@pytest.mark.parametrize("name", MATRICES)
def test_intervals_of_95_percent_hold_in_93_percent_of_seeds(name):
    dense = MATRICES[name]
    matrix = Layered(dense)
    exact = {layer: float(np.diag(dense)[span].sum()) for layer, span in matrix.layout.layers().items()}
    exact |= {"trace": float(np.trace(dense)), "norm": float(np.linalg.norm(dense))}
    held = dict.fromkeys(exact, 0)
    for seed in range(SEEDS):
        found = trace(matrix, num_products=60, seed=seed)
        estimates = {**found.layers, "trace": found.trace, "norm": found.frobenius_norm}
        for key, estimate in estimates.items():
            assert estimate.low <= estimate.value <= estimate.high
            held[key] += estimate.low <= exact[key] <= estimate.high
    assert min(held.values()) >= 0.93 * SEEDS, held


@pytest.mark.parametrize("name", MATRICES)
def test_the_diagonal_within_its_standard_errors(name):
    dense = MATRICES[name]
    found = diagonal(dense, num_products=90)
    gaps = np.abs(found.values - np.diag(dense))
    assert (gaps <= 2.05 * found.errors + 1e-12 * np.abs(dense).max()).mean() >= 0.9
    assert np.linalg.norm(gaps) <= 0.5 * np.linalg.norm(np.diag(dense)) + 1e-9


def test_known_pairs_make_the_interval_narrow():
    matrix = with_spectrum(like_a_hessian(300))
    pairs = eigenpairs(matrix, 10, 0, tolerance=1e-10)
    found = trace(matrix, 30, pairs=pairs)
    assert found.trace.low <= np.trace(matrix) <= found.trace.high
    assert found.num_products == 30
    without = np.random.default_rng(0).integers(0, 2, (300, 30)) * 2.0 - 1
    spread = np.einsum("pm,pq,qm->m", without, matrix, without).std(ddof=1) / np.sqrt(30)
    assert found.trace.high - found.trace.low < 0.05 * spread


def test_as_many_products_as_rows_are_exact():
    matrix = with_spectrum(np.arange(20.0))
    found, entries = trace(matrix, 20), diagonal(matrix, 50)
    assert found.trace.value == pytest.approx(190, abs=1e-11)
    assert found.frobenius_norm.value == pytest.approx(np.sqrt(np.sum(np.arange(20.0) ** 2)), abs=1e-11)
    assert found.trace.high - found.trace.low < 1e-9
    np.testing.assert_allclose(entries.values, np.diag(matrix), atol=1e-12)
    assert not entries.errors.any()


class OneAtOnce(Stored):
    columns_per_pass = 1


def test_how_many_vectors_are_multiplied_at_once_changes_no_estimate():
    dense = MATRICES["hessian"]
    many, one = trace(dense, 45), trace(OneAtOnce(dense), 45)
    assert (one.trace.low, one.trace.high) == pytest.approx((many.trace.low, many.trace.high), rel=1e-10)
    assert one.frobenius_norm.high == pytest.approx(many.frobenius_norm.high, rel=1e-10)
    np.testing.assert_allclose(diagonal(OneAtOnce(dense), 45).values, diagonal(dense, 45).values, atol=1e-10)


def test_layers_of_an_operator():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    pair = torch.randn(30, 4, dtype=torch.float64), torch.randint(3, (30,))
    dense = pipeline.hessian(model, nn.CrossEntropyLoss(), *pair).numpy()
    found = pipeline.trace(pipeline.curvature_operator(model, nn.CrossEntropyLoss(), pair), 60)
    assert list(found.layers) == ["0", "2"]
    assert found.layers["0"].low <= np.trace(dense[:60, :60]) <= found.layers["0"].high
    assert found.layers["2"].low <= np.trace(dense[60:, 60:]) <= found.layers["2"].high


def test_mistakes_in_one_line():
    matrix = with_spectrum(np.arange(40.0))
    with pytest.raises(PipelineError, match="num_products=3: give a whole number of at least 12"):
        trace(matrix, 3)
    with pytest.raises(PipelineError, match="confidence=1: give a number above 0 and below 1"):
        trace(matrix, confidence=1)
    with pytest.raises(PipelineError, match="pairs are of P = 40 weights, the matrix is of 60"):
        trace(np.eye(60), 12, pairs=eigenpairs(matrix, 2))
    matrix[3, 4] = np.inf
    with pytest.raises(PipelineError, match="holds NaN or infinity"):
        diagonal(matrix, 12)


def test_what_pairs_leave_open_is_in_the_intervals():
    """Pairs to a loose tolerance: their vectors are turned a little, and all random vectors agree."""
    values = np.concatenate([[50.0, 30.0], np.zeros(58)])
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 60)))[0]
    dense = (rotation * values) @ rotation.T
    turned = np.linalg.qr(rotation[:, :2] + 1e-3 * rotation[:, 2:4])[0]
    quotients = np.diag(turned.T @ dense @ turned)
    residuals = np.linalg.norm(dense @ turned - turned * quotients, axis=0)
    pairs = Eigenpairs(quotients, turned, residuals, True, 0)
    found = trace(Layered(dense), num_products=30, pairs=pairs)
    spans = Layered(dense).layout.layers()
    for name, estimate in found.layers.items():
        exact = float(np.diag(dense)[spans[name]].sum())
        assert estimate.low <= exact <= estimate.high, name
    off = max(abs(found.layers[name].value - np.diag(dense)[span].sum()) for name, span in spans.items())
    assert off > 1e-4  # so that the slack is needed
    assert found.trace.high - found.trace.low < found.layers["one"].high - found.layers["one"].low
    np.testing.assert_allclose(found.trace.value, 80, atol=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_intervals_of_single_precision_hold_what_it_rounds(seed):
    """Where all is exact but for the products."""
    torch.manual_seed(seed)
    model, pair = torch.nn.Linear(150, 1, bias=False), (torch.randn(12, 150), torch.randn(12, 1))
    operator = pipeline.curvature_operator(model, torch.nn.MSELoss(), pair)
    inputs = pair[0].double().numpy()
    exact = 2 / 12 * inputs.T @ inputs
    pairs = pipeline.eigenpairs(operator, 12, 0, tolerance=1e-5)
    for found in (
        pipeline.trace(operator, 60),
        pipeline.trace(operator, 60, pairs=pairs),
        pipeline.trace(operator, 150),
    ):
        norm = found.frobenius_norm
        assert found.trace.low <= np.trace(exact) <= found.trace.high
        assert norm.low <= np.linalg.norm(exact) <= norm.high
        assert found.trace.high - found.trace.low <= 1e-4 * np.trace(exact)
