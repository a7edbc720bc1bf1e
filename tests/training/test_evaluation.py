from itertools import chain

import pytest
import torch
from torch import nn

from pipeline.criterion import CrossEntropy, NextToken
from pipeline.objective import evaluation
from pipeline.objective.batch import Batch
from pipeline.training import accuracy, evaluate
from pipeline.training.minibatches import minibatches

LOGITS = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        (LOGITS, torch.tensor([1, 0, 0, 0]), 0.75),
        (
            LOGITS[..., None].expand(4, 2, 3),
            torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 1]]),
            8 / 12,
        ),
        (LOGITS[:, :1] - 0.5, torch.tensor([0, 1, 0, 0]), 0.75),
        (LOGITS - 0.5, torch.tensor([[0, 1], [1, 0], [0, 1], [1, 1]]), 0.875),
        (LOGITS, LOGITS, None),
        (LOGITS, {"label": torch.zeros(4).long()}, None),
        (LOGITS, torch.zeros(4, 3).long(), None),
    ],
)
def test_accuracy_is_the_share_of_right_labels(outputs, targets, expected):
    assert accuracy(outputs, targets) == expected


def added(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


@pytest.mark.parametrize(
    "criterion",
    [CrossEntropy("mean"), CrossEntropy("sum"), nn.functional.cross_entropy, added],
    ids=["mean", "sum", "a mean by function", "a sum by function"],
)
def test_a_long_evaluation_is_that_of_all_samples_at_once(criterion):
    torch.manual_seed(0)
    batch = Batch(torch.randn(9000, 3, dtype=torch.float64), torch.randint(0, 2, (9000,)))
    model = nn.Linear(3, 2, dtype=torch.float64)
    loss, right = evaluate(model, criterion, batch)
    outputs = model(batch.inputs)
    assert loss == pytest.approx(criterion(outputs, batch.targets).item(), rel=1e-12)
    assert right == pytest.approx((outputs.argmax(1) == batch.targets).double().mean().item(), rel=1e-12)


def test_evaluation_leaves_modes_as_they_were_and_takes_tuples_and_dicts():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(2), nn.Dropout().eval()

        def forward(self, a, b):
            assert not self.training
            return self.drop(self.norm(a)) + b

    model = Sum()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    targets = torch.zeros(4).long()
    losses = [
        evaluate(model, CrossEntropy(), Batch(i, targets))
        for i in [(LOGITS, LOGITS), {"a": LOGITS, "b": LOGITS}]
    ]
    assert losses[0] == losses[1]
    assert (model.training, model.norm.training, model.drop.training) == (True, True, False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def take(batches, num):
    return [next(batches).inputs.tolist() for _ in range(num)]


def test_minibatches_can_begin_anywhere_and_each_epoch_is_a_permutation():
    train = Batch(torch.arange(10), torch.arange(10))
    whole = take(minibatches(train, 4, seed=1, first=0), 9)
    assert [len(batch) for batch in whole] == [4, 4, 2] * 3
    epochs = [list(chain(*whole[i : i + 3])) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    for first in range(9):
        assert take(minibatches(train, 4, seed=1, first=first), 9 - first) == whole[first:]
    assert take(minibatches(train, 4, seed=2, first=0), 9) != whole
    assert (
        take(minibatches(train, None, seed=1, first=5), 2)
        == take(minibatches(train, 10, 1, 0), 2)
        == [[*range(10)]] * 2
    )


def test_the_accuracy_is_of_the_scores_and_labels_of_the_criterion():
    scores = torch.nn.functional.one_hot(torch.tensor([[1, 2, 0, 3], [0, 0, 2, 1]]), 4).double()  # (N, T, V)

    class Net(nn.Module):
        def forward(self, x):
            return {"logits": scores + 0 * x[..., None], "hidden": x}

    inputs = torch.zeros(2, 4, dtype=torch.float64)
    tokens = torch.tensor([[3, 1, 2, 1], [0, 0, 3, -100]])  # after a shift: right, right, wrong; right, wrong
    assert evaluate(Net(), NextToken(), Batch(inputs, tokens))[1] == pytest.approx(3 / 5)
    labels = torch.tensor([[1, 2, 0, 0], [0, 1, 2, 1]])
    assert evaluate(Net(), CrossEntropy(classes_last=True), Batch(inputs, labels))[1] == pytest.approx(6 / 8)


def test_a_long_evaluation_counts_the_labels_that_a_mean_is_over():
    torch.manual_seed(0)
    weight = torch.tensor([1.0, 4.0], dtype=torch.float64)
    criterion = nn.CrossEntropyLoss(weight=weight)
    labels = (torch.rand(9000) < torch.linspace(0, 1, 9000)).long()
    labels[:4096:2] = -100
    batch = Batch(torch.randn(9000, 3, dtype=torch.float64), labels)
    model = nn.Linear(3, 2, dtype=torch.float64)
    outputs, counted = model(batch.inputs), labels != -100
    loss, right = evaluate(model, criterion, batch)
    assert loss == pytest.approx(criterion(outputs, labels).item(), rel=1e-12)
    expected = (outputs.argmax(1) == labels)[counted].double().mean().item()
    assert right == pytest.approx(expected, rel=1e-12)


def test_a_long_evaluation_by_a_function_over_labels_that_do_not_all_count():
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (9000,))
    labels[:4000] = -100
    batch = Batch(torch.randn(9000, 3, dtype=torch.float64) + torch.linspace(0, 3, 9000)[:, None], labels)
    model = nn.Linear(3, 2, dtype=torch.float64)
    loss, right = evaluate(model, nn.functional.cross_entropy, batch)
    outputs, counted = model(batch.inputs), labels != -100
    assert loss == pytest.approx(nn.functional.cross_entropy(outputs, labels).item(), rel=1e-12)
    assert right == pytest.approx((outputs.argmax(1) == labels)[counted].double().mean().item(), rel=1e-12)


def test_outputs_too_large_to_be_judged_together_are_judged_by_chunks(monkeypatch):
    monkeypatch.setattr(evaluation, "OUTPUT_BYTES", 1000)
    torch.manual_seed(0)
    batch = Batch(torch.randn(9000, 3, dtype=torch.float64), torch.randint(0, 2, (9000,)))
    model = nn.Linear(3, 2, dtype=torch.float64)
    for criterion in (added, nn.functional.cross_entropy):
        loss, _ = evaluate(model, criterion, batch)
        assert loss == pytest.approx(criterion(model(batch.inputs), batch.targets).item(), rel=1e-12)
