"""How batches make up the matrix of all samples: weighted by the terms of the loss, in any order, held or not."""

from __future__ import annotations

import pytest
import torch
from support.operator_cases import classes, cut
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pipeline
from pipeline.errors import PipelineError
from pipeline.matrix import MATRICES
from pipeline.operator import curvature_operator


@pytest.mark.parametrize("matrix", [name for name in MATRICES if name != "fisher"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_unequal_batches_make_up_the_matrix_of_all_samples(matrix: str, reduction: str) -> None:
    model, pair = classes()
    criterion = nn.CrossEntropyLoss(reduction=reduction)
    whole = pipeline.hessian(model, criterion, *pair, matrix=matrix)
    operator = curvature_operator(model, criterion, cut(pair, 2, 13, 8), matrix=matrix)
    vectors = torch.randn(len(whole), 4, dtype=torch.float64)
    torch.testing.assert_close(operator @ vectors, whole @ vectors, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator @ vectors[:, 0], whole @ vectors[:, 0], rtol=1e-12, atol=1e-12)


def test_labels_drawn_for_the_fisher_are_those_of_each_batch() -> None:
    model, pair = classes()
    batches = cut(pair, 2, 13, 8)
    fisher = pipeline.matrix.Fisher(num_draws=5)
    parts = [pipeline.hessian(model, nn.CrossEntropyLoss(), *part, matrix=fisher) for part in batches]
    expected = sum(len(part[1]) / 23 * dense for part, dense in zip(batches, parts, strict=True))
    operator = curvature_operator(model, nn.CrossEntropyLoss(), batches, matrix=fisher)
    eye = torch.eye(len(expected), dtype=torch.float64)
    torch.testing.assert_close(operator @ eye, expected, rtol=1e-11, atol=1e-12)


class OwnCrossEntropy(nn.Module):
    """A criterion that does not say how it reduces."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.own = reduction

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction=self.own)


class Counting(OwnCrossEntropy):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, ignore_index=1)

    def num_terms(self, targets: Tensor) -> int:
        return int((targets != 1).sum())


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(ignore_index=1),
        nn.CrossEntropyLoss(torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64)),
        nn.CrossEntropyLoss(torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64), ignore_index=0),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        OwnCrossEntropy("mean"),
        OwnCrossEntropy("sum"),
        Counting("mean"),
        lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="sum") / 7,
    ],
    ids=["ignored", "class-weights", "both", "smooth", "own-mean", "own-sum", "own-terms", "scaled-sum"],
)
def test_batches_are_weighted_by_the_terms_of_the_loss(criterion) -> None:
    model, pair = classes()
    pair[1][2:9] = 1  # more of what is ignored in one batch than in others
    whole = pipeline.hessian(model, criterion, *pair)
    operator = curvature_operator(model, criterion, cut(pair, 2, 13, 8))
    vectors = torch.randn(len(whole), 2, dtype=torch.float64)
    torch.testing.assert_close(operator @ vectors, whole @ vectors, rtol=1e-12, atol=1e-12)


def test_tokens_that_count_weigh_batches_of_other_lengths() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4)).double()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-100)

    class Tokens(nn.CrossEntropyLoss):
        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return loss(outputs, targets)

    short = torch.randint(5, (3, 2)), torch.randint(4, (3, 2))
    long = torch.randint(5, (2, 7)), torch.randint(4, (2, 7))
    long[1][0, 3:] = -100
    nothing = torch.randint(5, (2, 2)), torch.full((2, 2), -100)
    operator = curvature_operator(model, Tokens(), [short, nothing, long])
    first, second = (pipeline.hessian(model, loss, *pair) for pair in (short, long))
    expected = (6 * first + 10 * second) / 16
    vectors = torch.randn(len(expected), 2, dtype=torch.float64)
    torch.testing.assert_close(operator @ vectors, expected @ vectors, rtol=1e-12, atol=1e-12)


def test_entries_weigh_a_mean_over_entries() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 3).double()
    inputs, targets = (
        torch.randn(9, 4, 2, dtype=torch.float64),
        torch.randn(9, 4, 3, dtype=torch.float64),
    )
    batches = [(inputs[:5, :2], targets[:5, :2]), (inputs[5:], targets[5:])]
    flat = [torch.cat([part.flatten(0, 1) for part in parts]) for parts in zip(*batches, strict=True)]
    whole = pipeline.hessian(model, nn.MSELoss(), *flat)
    operator = curvature_operator(model, nn.MSELoss(), batches)
    eye = torch.eye(len(whole), dtype=torch.float64)
    torch.testing.assert_close(operator @ eye, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_data_loader_in_any_order(shuffle: bool) -> None:
    model, pair = classes()
    whole = pipeline.hessian(model, nn.CrossEntropyLoss(), *pair)
    loader = DataLoader(TensorDataset(*pair), batch_size=5, shuffle=shuffle)
    operator = curvature_operator(model, nn.CrossEntropyLoss(), loader)
    vectors = torch.randn(len(whole), 2, dtype=torch.float64)
    for _ in range(3):
        torch.testing.assert_close(operator @ vectors, whole @ vectors, rtol=1e-12, atol=1e-12)


def test_samples_that_change_from_pass_to_pass_are_refused() -> None:
    model, pair = classes()
    loader = DataLoader(TensorDataset(*pair), batch_size=5, shuffle=True, drop_last=True)
    operator = curvature_operator(model, nn.CrossEntropyLoss(), loader)
    operator @ torch.ones(operator.num_rows)
    with pytest.raises(PipelineError, match="the batches hold other samples at each pass"):
        operator @ torch.ones(operator.num_rows)  # three of 23 samples are left out, seldom the same


def test_batches_that_memory_does_not_hold_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pair = classes()
    kept = curvature_operator(model, nn.CrossEntropyLoss(), cut(pair, 10, 13))
    monkeypatch.setattr("pipeline.operator.batch_sum.available_memory", lambda: 100)
    fresh = curvature_operator(model, nn.CrossEntropyLoss(), cut(pair, 10, 13))
    vectors = torch.randn(kept.num_rows, 2, dtype=torch.float64)
    torch.testing.assert_close(fresh @ vectors, kept @ vectors, rtol=1e-12, atol=1e-13)
    assert "kept" not in fresh.way
    assert fresh.memory < kept.memory


def test_a_mean_whose_targets_are_broadcast_is_refused() -> None:
    """Their number says nothing of how many entries the mean is over."""
    model, (inputs, _) = classes()
    batches = [(inputs[:5], torch.ones(3).double()), (inputs[5:], torch.ones(3).double())]
    with (
        pytest.warns(UserWarning, match="broadcast"),
        pytest.raises(PipelineError, match="a batch of 5 adds"),
    ):
        curvature_operator(model, nn.MSELoss(), batches) @ torch.ones(51)


class WeightsFirst(nn.Module):
    """Inputs whose first dimension counts no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, steps: Tensor) -> Tensor:
        return self.linear(steps.sum(0))


def test_inputs_that_do_not_count_samples_weigh_no_batch() -> None:
    """The terms of a criterion that is not known are taken for samples: their number must be that of the outputs."""
    torch.manual_seed(0)
    model, steps, labels = WeightsFirst().double(), torch.randn(20, 16, 4).double(), torch.randint(3, (16,))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    unequal = list(zip(steps.split([4, 12], 1), labels.split([4, 12]), strict=True))
    with pytest.raises(
        PipelineError, match=r"there are 0\.2 times as many outputs as samples in one batch and 0\.6"
    ):
        curvature_operator(model, loss, unequal) @ torch.ones(15)
    equal = list(zip(steps.split(8, 1), labels.split(8), strict=True))
    whole = pipeline.hessian(model, loss, steps, labels)
    for criterion, batches in ((loss, equal), (nn.CrossEntropyLoss(), unequal)):
        operator = curvature_operator(model, criterion, batches)
        torch.testing.assert_close(operator @ torch.eye(15).double(), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_a_penalty_is_not_added_for_each_batch(size: float) -> None:
    """A mean has it once. A sum would have it once for each batch, though it be too small to be seen in the loss."""
    model, pair = classes()

    class Penalized(nn.Module):
        def __init__(self, reduction: str) -> None:
            super().__init__()
            self.reduction = reduction

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            penalty = sum(value.square().sum() for value in model.parameters())
            return F.cross_entropy(outputs, targets, reduction=self.reduction) + size * penalty

    whole = pipeline.hessian(model, Penalized("mean"), *pair)
    operator = curvature_operator(model, Penalized("mean"), cut(pair, 10, 13))
    torch.testing.assert_close(operator @ torch.eye(51).double(), whole, rtol=1e-11, atol=1e-12)
    with pytest.raises(PipelineError, match="neither the sum nor the mean"):
        curvature_operator(model, Penalized("sum"), cut(pair, 10, 13)) @ torch.ones(51)


def test_a_summed_criterion_may_read_a_weight_of_the_model() -> None:
    """Where it does so for each sample."""
    torch.manual_seed(0)
    model, ids = nn.Embedding(6, 3).double(), torch.randint(6, (14,))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(torch.tanh(outputs) @ model.weight.T, targets, reduction="sum")

    whole = pipeline.hessian(model, loss, ids, ids.flip(0))
    operator = curvature_operator(model, loss, cut((ids, ids.flip(0)), 5, 9))
    torch.testing.assert_close(operator @ torch.eye(18).double(), whole, rtol=1e-11, atol=1e-12)


def test_masks_of_a_loader_may_hold_infinities() -> None:
    class Masked(nn.Linear):
        def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
            return super().forward(torch.softmax(inputs + mask, 1))

    torch.manual_seed(0)
    model, (inputs, labels) = Masked(4, 3).double(), classes()[1]
    mask = torch.zeros(23, 4).double()
    mask[::2, 1] = -torch.inf
    loader = DataLoader([((inputs[i], mask[i]), labels[i]) for i in range(23)], batch_size=9)
    operator = curvature_operator(model, nn.CrossEntropyLoss(), loader)
    whole = pipeline.hessian(model, nn.CrossEntropyLoss(), (inputs, mask), labels)
    for _ in range(2):
        torch.testing.assert_close(operator @ torch.eye(15).double(), whole, rtol=1e-11, atol=1e-12)


def test_drawn_labels_of_batches_that_are_dealt_anew_are_refused() -> None:
    """They are drawn for a batch: another order has others."""
    model, pair = classes()
    fisher = pipeline.matrix.Fisher(num_draws=5)
    loader = DataLoader(TensorDataset(*pair), batch_size=5, shuffle=True)
    operator = curvature_operator(model, nn.CrossEntropyLoss(), loader, matrix=fisher)
    operator @ torch.ones(51)
    with pytest.raises(PipelineError, match=r"draws targets batch by batch, .* shuffle=False"):
        operator @ torch.ones(51)
    ordered = DataLoader(TensorDataset(*pair), batch_size=5)
    operator = curvature_operator(model, nn.CrossEntropyLoss(), ordered, matrix=fisher)
    assert torch.equal(operator @ torch.ones(51), operator @ torch.ones(51))


@pytest.mark.parametrize("way", [None, "forward over reverse"])
def test_samples_that_are_changed_in_place_are_refused(way: str | None) -> None:
    model, pair = classes()
    operator = curvature_operator(model, nn.CrossEntropyLoss(), cut(pair, 10, 13), way=way)
    operator @ torch.ones(51)
    pair[0].zero_()
    with pytest.raises(PipelineError, match="samples have been changed in place"):
        operator @ torch.ones(51)
