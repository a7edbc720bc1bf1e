"""The Fisher matrix by drawn labels: its expectation is the exact one, whichever labels do not count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kinds.asked import assert_right, gauss_newton, net, off
from torch import Tensor, nn

from pipeline.compute.dense import hessian
from pipeline.criterion import CrossEntropy
from pipeline.matrix import Fisher

N, DRAWS = 6, 1000


def labels(*ignored: int, value: int = -100) -> Tensor:
    targets = torch.tensor([0, 1, 2, 1, 0, 2])
    targets[list(ignored)] = value
    return targets


class PerToken(nn.Module):
    """Scores (N, C, T), as a language model's for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def tokens() -> tuple[nn.Module, Any, Tensor, Tensor]:
    targets = torch.randint(3, (N, 4))
    targets[0, 1:] = targets[2] = targets[4, :2] = -100
    return PerToken(), nn.CrossEntropyLoss(), torch.randn(N, 2, 4), targets


def vectors(criterion: Any, targets: Tensor) -> Callable[[], tuple[nn.Module, Any, Tensor, Tensor]]:
    return lambda: (net(3, 3), criterion, torch.randn(N, 3), targets)


KINDS: dict[str, Callable[[], tuple[nn.Module, Any, Tensor, Tensor]]] = {
    "all count": vectors(nn.CrossEntropyLoss(), labels()),
    "one ignored": vectors(nn.CrossEntropyLoss(), labels(3)),
    "all but one ignored": vectors(nn.CrossEntropyLoss(), labels(0, 1, 2, 3, 5)),
    "a sum": vectors(nn.CrossEntropyLoss(reduction="sum"), labels(0, 4)),
    "the pipeline's own": vectors(CrossEntropy(), labels()),
    "another value is ignored": vectors(nn.CrossEntropyLoss(ignore_index=-1), labels(1, 2, value=-1)),
    "a class is ignored": vectors(nn.CrossEntropyLoss(ignore_index=2), labels()),
    "tokens": tokens,
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "a class is ignored"])
def test_the_mean_over_draws_goes_to_the_expectation(kind: str) -> None:
    """Within 8 %: the error of a mean over so many draws is some percent."""
    problem = KINDS[kind]()
    expected = gauss_newton(*problem)
    assert_right(
        "khatri_rao", problem, expected, tolerance=0.08, matrix=Fisher(num_draws=DRAWS), verify=False
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["khatri_rao", "hvp", "func", "triangular", "autograd"])
def test_without_draws_it_is_the_gauss_newton_matrix(kind: str, way: str) -> None:
    problem = KINDS[kind]()
    assert_right(way, problem, gauss_newton(*problem), matrix="fisher")


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_takes_the_same_draws(kind: str) -> None:
    problem = KINDS[kind]()
    one, *others = (
        hessian(*problem, strategy=way, matrix=Fisher(num_draws=2))
        for way in ("autograd", "khatri_rao", "hvp", "func", "triangular")
    )
    assert all(off(other, one) < 1e-12 for other in others)


def test_ignored_samples_have_no_part() -> None:
    """Whatever their inputs are."""
    model, criterion, x, targets = vectors(nn.CrossEntropyLoss(), labels(1, 4))()
    moved = x.clone()
    moved[[1, 4]] += 5
    kept = [0, 2, 3, 5]
    drawn = Fisher(num_draws=DRAWS)
    found, other, alone = (
        hessian(model, criterion, inputs, labels_, matrix=drawn, verify=False)
        for inputs, labels_ in ((x, targets), (moved, targets), (x[kept], targets[kept]))
    )
    for value in (other, alone):  # other draws, since these are of the inputs
        assert off(value, found) < 0.1
