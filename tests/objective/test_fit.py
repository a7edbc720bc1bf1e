"""Model, criterion and data that do not belong together are told in a line, before anything is trained."""

import pytest
import torch
from torch import nn

from pipeline.criterion import CrossEntropy
from pipeline.errors import PipelineError
from pipeline.objective import Batch, check_fit

X, Y = torch.rand(9, 4), torch.tensor([0, 0, 1, 0, 2, 1, 0, 0, 0])
IDS = torch.tensor([[0, 1]] * 8 + [[3, 12]])


class Takes(nn.Module):
    """A model that does what it is told."""

    def __init__(self, forward):
        super().__init__()
        self.weight, self.act = nn.Parameter(torch.ones(4, 3)), forward

    def forward(self, x, mask=None):
        return self.act(self, x)


def fails(self, x):
    raise KeyError("input_ids")


def out_of_memory(self, x):
    raise MemoryError("no room")


LINEAR = nn.Linear(4, 3)


@pytest.mark.parametrize(
    ("model", "criterion", "batch", "message"),
    [
        (
            LINEAR,
            nn.CrossEntropyLoss(),
            Batch(X, Y + 1),
            r"'Target 3 is out of bounds\.': labels run from 1 to 3, number",
        ),
        (
            nn.Linear(4, 2),
            CrossEntropy(),
            Batch(X, Y),
            r"targets run from 0 to 2, but outputs .* allow 0 to 1",
        ),
        (
            LINEAR,
            CrossEntropy(),
            Batch(IDS, Y),
            r"on shape \(2, 2\) .* whole numbers: for values give data.as_float=true",
        ),
        (
            nn.Sequential(nn.Embedding(9, 3), nn.Flatten()),
            CrossEntropy(),
            Batch(IDS, Y),
            r"whole numbers up to 12, give the model a table of at least 13",
        ),
        (
            Takes(fails),
            CrossEntropy(),
            Batch(X, Y),
            r"Takes does not fit the data: .* it says \"KeyError: 'input_ids'\"",
        ),
        (
            Takes(lambda s, x: x),
            CrossEntropy(),
            Batch({"x": X, "msk": X}, Y),
            r"inputs are called x, msk, as the param",
        ),
        (
            nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)),
            nn.MSELoss(),
            Batch(X, X[:, :1]),
            r"MSELoss of outputs of shape \(2,\) and targets of shape \(2, 1\) would take each output against each",
        ),
        (
            LINEAR,
            nn.CrossEntropyLoss(reduction="none"),
            Batch(X, Y),
            r"the criterion gives shape \(2,\): one number",
        ),
        (
            LINEAR,
            nn.CrossEntropyLoss,
            Batch(X, Y),
            r"the criterion does not fit Linear .*: choose another criterion",
        ),
    ],
)
def test_what_does_not_fit_gets_one_line(model, criterion, batch, message):
    with pytest.raises(PipelineError, match=message) as told:
        check_fit(model, criterion, batch)
    assert "\n" not in str(told.value)


def test_memory_that_runs_out_is_not_called_a_misfit():
    with pytest.raises(MemoryError, match="no room"):
        check_fit(Takes(out_of_memory), CrossEntropy(), Batch(X, Y))


@pytest.mark.parametrize(
    "batch",
    [
        Batch(X, Y),
        Batch({"x": X, "mask": torch.ones(3, 3)}, Y),  # which counts no samples
        Batch(X[:1], Y[:1]),
    ],
)
def test_what_fits_is_let_through(batch):
    check_fit(Takes(lambda self, x: x @ self.weight), CrossEntropy(), batch)
