"""Parts of the GGN by classes and labels, against loops in NumPy; positions of outliers, against random matrices."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import PipelineError
from pipeline.law import ClassOutliers, class_means, class_outliers
from pipeline.law.class_means import class_parts

SMALL = ClassOutliers(
    seed=0,
    num_classes=3,
    dimension=20,
    samples_per_class=60,
    separations=(1, 8, 20),
    offsets=(0, 4),
    hidden_size=5,
)


@pytest.fixture
def regression():
    generator = torch.Generator().manual_seed(3)
    net = nn.Linear(2, 3, bias=False).double()
    net.weight.data = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    return (
        net,
        torch.randn(8, 2, generator=generator, dtype=torch.float64),
        torch.tensor([0, 1, 2, 0, 1, 2, 0, 0]),
    )


def by_loops(net, inputs, targets):
    """Between, between classes, across classes, within: of (p − e_k) ⊗ x, written out."""
    X, y, C = inputs.numpy(), targets.numpy(), 3
    scores = np.exp(X @ net.weight.detach().numpy().T)
    p = scores / scores.sum(axis=1, keepdims=True)
    g = {(n, k): np.kron(p[n] - np.eye(C)[k], X[n]) for n in range(8) for k in range(C)}
    between, classes, across, within = (np.zeros((6, 6)) for _ in range(4))
    for c in range(C):
        members = [n for n in range(8) if y[n] == c]
        mean, weight = {}, {}
        for k in range(C):
            weight[k] = sum(p[n, k] for n in members) / 8
            mean[k] = sum(p[n, k] / 8 * g[n, k] for n in members) / weight[k]
            between += weight[k] * np.outer(mean[k], mean[k])
            within += sum(p[n, k] / 8 * np.outer(g[n, k] - mean[k], g[n, k] - mean[k]) for n in members)
        others = [k for k in range(C) if k != c]
        center = sum(weight[k] * mean[k] for k in others) / sum(weight[k] for k in others)
        classes += sum(weight[k] for k in others) * np.outer(center, center)
        across += sum(weight[k] * np.outer(mean[k] - center, mean[k] - center) for k in others)
    return between, classes, across, within


def test_parts_are_those_of_loops(regression):
    parts = class_parts(*regression)
    for part, expected in zip(parts[:4], by_loops(*regression), strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-14)


def test_the_law_holds(held):
    outcome = SMALL.measure(None)
    assert all(held(outcome).values()), outcome.checks
    expected = {check.key: check.expected for check in outcome.checks}
    assert [expected[key] for key in ("rank_between", "outliers", "both", "apart", "alike")] == [
        6,
        3,
        6,
        3,
        2,
    ]


def test_it_is_not_held_by_wrong_matrices(wrong, held):
    wrong(class_outliers)
    assert not held(SMALL.measure(None))["parts"]


def test_it_is_not_held_by_wrong_parts(monkeypatch, held):
    right = class_means._moment
    monkeypatch.setattr(class_means, "_moment", lambda weights, vectors: right(weights, 1.3 * vectors + 1e-4))
    found = held(SMALL.measure(None))
    assert not any(found[key] for key in ("parts", "rank_between", "rank_cross", "bounds"))


def test_it_is_not_held_without_classes(monkeypatch, held):
    right = ClassOutliers._samples

    def shuffled(law, separation):
        inputs, targets = right(law, separation)
        return inputs, targets[torch.randperm(len(targets))]

    monkeypatch.setattr(ClassOutliers, "_samples", shuffled)
    monkeypatch.setattr(class_outliers, "MOST_UPDATES", 200)
    with pytest.raises(
        PipelineError, match=r"law\.error=0\.1 was not reached in 200 updates: give a larger one"
    ):
        SMALL.measure(None)
    monkeypatch.setattr(ClassOutliers, "_trained", lambda law, net, *rest, **options: net)
    found = held(SMALL.measure(None))
    assert not any(found[key] for key in ("outliers", "share"))


@pytest.mark.parametrize("separation", [2.0, 5.0])
def test_spikes_are_those_of_random_matrices(separation):
    law = ClassOutliers(seed=0, num_classes=4, dimension=404, samples_per_class=500)
    generator = np.random.default_rng(0)
    X = generator.normal(size=(2000, 404))
    X[:, :4] += separation / np.sqrt(2) * np.eye(4)[np.arange(2000) % 4]
    values = np.linalg.eigvalsh(X.T @ X / 2000)[::-1]
    spike, edge = law.spike_law(separation)
    assert edge == pytest.approx((1 + np.sqrt(0.2)) ** 2)
    assert values[4] == pytest.approx(edge, rel=0.05)
    assert values[:4].mean() == pytest.approx(spike, rel=0.03)


def test_no_spike_where_centers_are_close():
    spike, edge = ClassOutliers(seed=0).spike_law(0.5)
    assert spike == edge


@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_offsets_by_the_eigenvalues_of_the_gram_matrix(offset):
    law = ClassOutliers(seed=0, num_classes=5)
    gram = (np.eye(5) - 1 / 5) * (np.eye(5) + offset**2)
    values = np.linalg.eigvalsh(gram)
    assert law.offset_law(offset) == pytest.approx(values[0] / values[1:].mean())


def test_levels_by_the_eigenvalues_of_one_sample():
    p = np.array([0.82, 0.06, 0.06, 0.06])
    values = np.linalg.eigvalsh(np.diag(p) - np.outer(p, p))
    expected = values[3] / values[1:3].mean()
    assert class_outliers.level_ratio(p[None], np.array([0])) == pytest.approx(expected)
    assert expected == pytest.approx(4 * 0.82)


def test_gaps():
    values = np.array([8.0, 7.0, 2.0, 1.9, 0.1, 0.09])
    assert class_outliers.gap(values, 3) == 2
    assert class_outliers.gap(values, 5) == 4
    assert class_outliers.gap(values, 5, least=4) == 5
