"""The line that says what the samples are, and what is said of samples that look like a mistake."""

import re

import pytest
import torch

from pipeline.objective.batch import Batch
from pipeline.objective.description import describe, suspicions

X = torch.tensor([[-1.25, 2.0], [0.0, 1.0], [0.5, 0.5]])
IDS = {"ids": torch.tensor([[5], [7], [1000]]), "mask": torch.ones(3, 1, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("train", "test", "line"),
    [
        (
            Batch(X, torch.tensor([2, 0, 2])),
            Batch(X[:1], torch.tensor([0])),
            "data: 3 training and 1 test samples; inputs float32 (2,), -1.25 to 2; "
            "2 classes, samples of each: 1, 0, 2.",
        ),
        (
            Batch(IDS, X.double()),
            None,
            "data: 3 training samples; inputs ids int64 (1,), 5 to 1,000, mask bool (1,); "
            "targets float64 (2,), -1.25 to 2.",
        ),
        (
            Batch(torch.zeros(40, 1), torch.arange(40) % 20),
            None,
            "data: 40 training samples; inputs float32 (1,), 0 to 0; "
            "20 classes among labels 0 to 19, of 2 to 2 samples each.",
        ),
    ],
)
def test_samples_in_a_line(train, test, line):
    assert describe(train, test) == line


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (
            Batch(torch.rand(3, 8, 9, 3), torch.tensor([0, 1, 2])),
            "look like images .*data.channels_last=true",
        ),
        (Batch(torch.tensor([[[0.0, 255.0]]]), torch.tensor([0])), "from 0 to 255: data.scale=true"),
        (Batch(X, torch.tensor([1, 2, 1])), "no sample has label 0, the lowest is 1: data.map_labels=true"),
        (
            Batch(X.repeat(2, 1), torch.tensor([[0.0], [1.0], [1.0], [2.0], [0.0], [0.0]])),
            "floats, though all whole: ",
        ),
        (Batch(X, torch.eye(3).long()), "look one-hot: data.map_labels=true"),
    ],
)
def test_what_looks_like_a_mistake_is_said(train, said):
    [line] = suspicions(train)
    assert re.search(said, line)


@pytest.mark.parametrize(
    "train",
    [
        Batch(torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])),
        Batch(X, torch.tensor([0, 0, 1])),
        Batch(X, X),
        Batch(X, {"a": X}),
        Batch(X, X[:, :1]),
    ],
)
def test_usual_samples_raise_no_suspicion(train):
    assert suspicions(train) == []
