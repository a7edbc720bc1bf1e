from collections import namedtuple

import numpy as np
import pytest
import torch

from pipeline.criterion import BinaryCrossEntropy, CrossEntropy, NextToken, SquaredError
from pipeline.errors import PipelineError

RNG = np.random.default_rng(0)
F = RNG.normal(size=(5, 3))
LABELS = np.array([0, 2, 1, 1, 2])
SEQUENCE, SEQUENCE_LABELS = RNG.normal(size=(5, 3, 2)), RNG.integers(0, 3, (5, 2))
VALUES = RNG.normal(size=(5, 3))
SHARES = RNG.uniform(size=(5, 3))


def log_softmax(f):
    return f - np.log(np.exp(f).sum(1, keepdims=True))


def binary(f, y):
    p = 1 / (1 + np.exp(-f))
    return -y * np.log(p) - (1 - y) * np.log(1 - p)


# name: criterion, outputs, targets, the losses whose sum or mean it is
CASES = {
    "cross_entropy": (CrossEntropy, F, LABELS, -log_softmax(F)[np.arange(5), LABELS]),
    "sequences": (
        CrossEntropy,
        SEQUENCE,
        SEQUENCE_LABELS,
        -np.take_along_axis(log_softmax(SEQUENCE), SEQUENCE_LABELS[:, None], 1),
    ),
    "probabilities": (CrossEntropy, F, SHARES, -(SHARES * log_softmax(F)).sum(1)),
    "squared_error": (SquaredError, F, VALUES, 0.5 * ((F - VALUES) ** 2).sum(1)),
    "one-hot": (SquaredError, F, LABELS, 0.5 * ((F - np.eye(3)[LABELS]) ** 2).sum(1)),
    "bce": (BinaryCrossEntropy, F, SHARES, binary(F, SHARES)),
    "bce of labels": (BinaryCrossEntropy, F[:, :1], LABELS % 2, binary(F[:, 0], LABELS % 2)),
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_its_formula(name, reduction):
    criterion, outputs, targets, losses = CASES[name]
    found = criterion(reduction=reduction)(torch.tensor(outputs), torch.tensor(targets))
    assert found.shape == ()
    assert found.item() == pytest.approx(getattr(losses, reduction)(), rel=1e-13)


def test_label_smoothing_mixes_in_the_uniform_distribution():
    mixed = 0.8 * np.eye(3)[LABELS] + 0.2 / 3
    found = CrossEntropy(label_smoothing=0.2)(torch.tensor(F), torch.tensor(LABELS))
    assert found.item() == pytest.approx(-(mixed * log_softmax(F)).sum(1).mean(), rel=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_exist_in_every_mode_and_over_samples(name):
    criterion, outputs, targets, _ = CASES[name]
    loss, f, y = criterion(reduction="sum"), torch.tensor(outputs), torch.tensor(targets)
    gradient = torch.func.grad(lambda flat: loss(flat.view_as(f), y))
    basis = torch.eye(f.numel(), dtype=f.dtype)
    forward = torch.func.vmap(lambda v: torch.func.jvp(gradient, (f.flatten(),), (v,))[1])(basis)
    reverse = torch.autograd.functional.hessian(lambda flat: loss(flat.view_as(f), y), f.flatten())
    torch.testing.assert_close(forward, reverse, rtol=1e-12, atol=1e-14)
    each = torch.func.vmap(torch.func.hessian(lambda f, y: loss(f[None], y[None])))(f, y)
    blocks = torch.block_diag(*(block.reshape(f[0].numel(), -1) for block in each))
    torch.testing.assert_close(forward, blocks, rtol=1e-12, atol=1e-14)
    h = 1e-4
    difference = torch.stack(
        [(gradient(f.flatten() + h * v) - gradient(f.flatten() - h * v)) / (2 * h) for v in basis]
    )
    torch.testing.assert_close(forward, difference, rtol=0, atol=1e-7)


def test_the_hessian_of_squared_error_by_outputs_is_the_identity():
    f, y = torch.tensor(F), torch.tensor(VALUES)
    found = torch.autograd.functional.hessian(
        lambda flat: SquaredError("sum")(flat.view_as(f), y), f.flatten()
    )
    torch.testing.assert_close(found, torch.eye(15, dtype=torch.float64))


@pytest.mark.parametrize(
    ("criterion", "outputs", "targets", "message"),
    [
        (
            CrossEntropy,
            (5, 3),
            torch.tensor([0, 1, 2, 3, 0]),
            r"targets run from 0 to 3, but outputs of .* allow 0 to 2",
        ),
        (CrossEntropy, (2, 3), torch.tensor([0, -1]), r"targets run from -1 to 0"),
        (
            CrossEntropy,
            (5,),
            torch.zeros(5).long(),
            r"cross_entropy: outputs have shape \(5,\), targets are labels",
        ),
        (
            CrossEntropy,
            (5, 3),
            torch.zeros(4).long(),
            r"outputs have shape \(5, 3\), targets are labels of shape \(4,\)",
        ),
        (
            CrossEntropy,
            (5, 3),
            torch.zeros(5, 1),
            r"targets are values of shape \(5, 1\): give integer labels",
        ),
        (
            SquaredError,
            (5, 1),
            torch.zeros(5),
            r"squared_error: outputs have shape \(5, 1\), targets are values .*\(5,\)",
        ),
        (
            SquaredError,
            (5, 3),
            torch.full((5,), 3),
            r"targets run from 3 to 3, but outputs of shape \(5, 3\) allow 0 to 2",
        ),
        (BinaryCrossEntropy, (5, 2), torch.zeros(5).long(), r"bce: .* data.num_outputs=1 for labels 0 and 1"),
        (
            BinaryCrossEntropy,
            (5, 1),
            torch.full((5,), 2),
            r"targets run from 2 to 2, .* allow 0 to 1: choose",
        ),
        (BinaryCrossEntropy, (2, 1), torch.tensor([[0.5], [1.5]]), r"targets run from 0.5 to 1.5"),
        (BinaryCrossEntropy, (2, 1), torch.tensor([[0.5], [np.nan]]), r"targets run from nan to nan"),
    ],
)
def test_outputs_and_targets_that_do_not_fit_get_one_line(criterion, outputs, targets, message):
    with pytest.raises(PipelineError, match=message):
        criterion()(torch.zeros(outputs), targets)


@pytest.mark.parametrize("criterion", [CrossEntropy, SquaredError, BinaryCrossEntropy])
def test_wrong_options_get_one_line(criterion):
    with pytest.raises(PipelineError, match=r"criterion.reduction='none': choose one of mean, sum\.$"):
        criterion(reduction="none")
    with pytest.raises(
        PipelineError, match=r"criterion.label_smoothing='a': give a number of at least 0 and below 1"
    ):
        CrossEntropy(label_smoothing="a")


TOKENS = np.array([[0, 1, 2, 1], [2, 2, 0, 0]])
LOGITS = RNG.normal(size=(2, 4, 3))


def next_token_losses(tokens=TOKENS):
    """(N, T - 1), by the formula."""
    logs = LOGITS - np.log(np.exp(LOGITS).sum(2, keepdims=True))
    return -np.take_along_axis(logs[:, :-1], np.maximum(tokens, 0)[:, 1:, None], 2)[..., 0]


def test_the_loss_of_the_next_token_is_its_formula():
    f, y = torch.tensor(LOGITS), torch.tensor(TOKENS)
    assert NextToken()(f, y).item() == pytest.approx(next_token_losses().mean(), rel=1e-13)
    assert NextToken("sum")(f, y).item() == pytest.approx(next_token_losses().sum(), rel=1e-13)
    some = TOKENS.copy()
    some[0, 2:] = -100
    losses = next_token_losses(some)
    expected = (losses[0, 0] + losses[1].mean()) / 2
    assert NextToken()(f, torch.tensor(some)).item() == pytest.approx(expected, rel=1e-13)
    assert NextToken("sum")(f, torch.tensor(some)).item() == pytest.approx(
        losses[0, 0] + losses[1].sum(), rel=1e-13
    )
    halves = [NextToken()(f[i : i + 1], torch.tensor(some[i : i + 1])).item() for i in range(2)]
    assert np.mean(halves) == pytest.approx(expected, rel=1e-13)


def test_next_tokens_have_second_derivatives_over_samples():
    f, y = torch.tensor(LOGITS), torch.tensor(TOKENS)
    whole = torch.func.hessian(NextToken())(f, y)
    each = torch.func.vmap(torch.func.hessian(lambda f, y: NextToken()(f[None], y[None])))(f, y)
    torch.testing.assert_close(whole[0, ..., 0, :, :], each[0] / 2)


def test_classes_may_come_last():
    f, y = torch.tensor(LOGITS), torch.tensor(TOKENS)
    logs = LOGITS - np.log(np.exp(LOGITS).sum(2, keepdims=True))
    expected = -np.take_along_axis(logs, TOKENS[..., None], 2).mean()
    assert CrossEntropy(classes_last=True)(f, y).item() == pytest.approx(expected, rel=1e-13)
    shares = torch.softmax(torch.tensor(RNG.normal(size=(2, 4, 3))), 2)
    expected = -(shares.numpy() * logs).sum(2).mean()
    assert CrossEntropy(classes_last=True)(f, shares).item() == pytest.approx(expected, rel=1e-13)


class Outputs:
    def __init__(self, **parts):
        self.__dict__ |= parts


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: Outputs(logits=f, hidden=f + 1, cache=None),
        lambda f: {"out": f, "aux": f + 1},
        lambda f: {"scores": f, "ids": torch.zeros(5).long()},
        lambda f: (f, None),
        lambda f: [f, (f + 1, f + 1)],
        lambda f: namedtuple("Both", "logits aux")(f, f + 1),
    ],
)
@pytest.mark.parametrize("criterion", [CrossEntropy(), SquaredError(), BinaryCrossEntropy()])
def test_logits_are_found_in_what_models_return(wrap, criterion):
    f, y = torch.tensor(F), torch.tensor(SHARES)
    assert criterion(wrap(f), y) == criterion(f, y)


@pytest.mark.parametrize(
    ("criterion", "outputs", "targets", "message"),
    [
        (
            CrossEntropy(),
            (torch.ones(5, 3), torch.ones(5, 3)),
            torch.ones(5).long(),
            r"tuple with several tensors",
        ),
        (SquaredError(), {}, torch.ones(5), r"criterion=squared_error: the model gives dict .* \(none\)"),
        (
            CrossEntropy(),
            torch.ones(2, 4, 3),
            torch.tensor(TOKENS),
            r"criterion.classes_last=true takes outputs",
        ),
        (
            CrossEntropy(),
            torch.ones(5, 3),
            torch.eye(5, 3).long(),
            r"data.map_labels=true makes them of one-hot",
        ),
        (CrossEntropy(), torch.ones(5, 1), torch.ones(5, 1), r"of a single output it is 0"),
        (
            NextToken(),
            torch.ones(2, 4, 2),
            torch.tensor(TOKENS),
            r"run from 0 to 2, .* allow 0 to 1: .*vocabulary",
        ),
        (NextToken(), torch.ones(2, 3), torch.tensor(TOKENS), r"outputs \(N, T, V\) need the ids"),
        (NextToken(), torch.ones(2, 4, 3), torch.ones(2, 4), r"outputs \(N, T, V\) need the ids"),
        (NextToken(), torch.ones(2, 1, 3), torch.ones(2, 1).long(), r"T at least 2"),
    ],
)
def test_what_does_not_belong_together_gets_one_line(criterion, outputs, targets, message):
    with pytest.raises(PipelineError, match=message) as told:
        criterion(outputs, targets)
    assert "\n" not in str(told.value)
