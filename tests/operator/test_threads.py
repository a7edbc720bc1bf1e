"""Threads of one process that compute at the same time, on one net and on several."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.operator_cases import classes, cut
from torch import nn
from torch.utils import checkpoint

import pipeline
from pipeline.operator import curvature_operator


@pytest.fixture(autouse=True)
def threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("way", ["reverse over reverse, graph kept", "forward over reverse"])
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_threads_give_what_one_gives(matrix: str, way: str) -> None:
    model, pair = classes()
    criterion, function = nn.CrossEntropyLoss(), checkpoint.CheckpointFunction
    expected = pipeline.hessian(model, criterion, *pair, matrix=matrix)
    before = dict(model.named_parameters())
    vectors = torch.randn(51, 2, dtype=torch.float64)
    operators = [
        curvature_operator(model, criterion, cut(pair, 5, 5, 5, 8), matrix, way=way, verify=False)
        for _ in range(2)
    ]

    def product(index: int) -> torch.Tensor:
        if index % 5 == 4:
            return pipeline.hessian(model, criterion, *pair, matrix=matrix, verify=False) @ vectors
        return operators[index % 2] @ vectors

    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(product, range(20)):
            torch.testing.assert_close(found, expected @ vectors, rtol=1e-10, atol=1e-12)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is value for name, value in before.items())
    assert checkpoint.CheckpointFunction is function
