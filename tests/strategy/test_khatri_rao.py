"""What `khatri_rao` sees of a model: every weight that enters linearly, in whichever call, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.layout import Layout
from pipeline.objective.batch import Batch
from pipeline.objective.linearized import DifferenceObjective, linearized
from pipeline.objective.objective import Objective, objective_of
from pipeline.strategy import HVP, KhatriRao
from pipeline.strategy.blocks import assemble
from pipeline.strategy.khatri_rao.captured_net import CapturedNet
from pipeline.strategy.khatri_rao.passes import tangents_of_use
from pipeline.strategy.khatri_rao.perturbation import mixes_samples

N = 5
CRITERION = nn.CrossEntropyLoss()
IMAGES = (2, 4, 4)


class Pooled(nn.Module):
    """A body over tokens (N, T, 4), their mean, a linear head."""

    def __init__(self, body: nn.Module, time_first: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.time_first = body, nn.Linear(4, 3), time_first

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.body(tokens.transpose(0, 1)).transpose(0, 1) if self.time_first else self.body(tokens)
        return self.head(mixed.mean(1))


class SelfAttention(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class Loop(nn.Module):
    """A weight used once for each of T steps."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.state, self.head = nn.Linear(4, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 3)
        for t in range(x.shape[1]):
            state = torch.tanh(self.inputs(x[:, t]) + self.state(state))
        return self.head(state)


class Folded(nn.Module):
    """Samples and tokens in one dimension, samples first or tokens first."""

    def __init__(self, samples_first: bool) -> None:
        super().__init__()
        self.body, self.head, self.samples_first = nn.Linear(4, 3), nn.Linear(3, 3), samples_first

    def forward(self, x: Tensor) -> Tensor:
        n, t, e = x.shape
        if self.samples_first:
            return self.head(torch.tanh(self.body(x.reshape(-1, e))).reshape(n, t, -1).mean(1))
        return self.head(torch.tanh(self.body(x.transpose(0, 1).reshape(-1, e))).reshape(t, n, -1).mean(0))


class Positions(nn.Module):
    """A table of words, learned positions that are added, a product with the stored transpose of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(6, 4), nn.Parameter(torch.randn(3, 4))
        self.scale, self.matrix = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.tanh(self.words(tokens) + self.positions)
        return (self.scale * x.mean(1)) @ self.matrix


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class StoredTransposed(nn.Module):
    """Bias and product in one call over folded samples and tokens, the weight stored as (inputs, units)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.addmm(self.bias, x.reshape(-1, 4), self.weight).reshape(*x.shape[:-1], 6)
        return self.head(torch.tanh(z).mean(1))


def convolutions(*layers: nn.Module) -> nn.Module:
    body = nn.Sequential(*layers)
    return nn.Sequential(body, nn.Flatten(), nn.Linear(body(torch.randn(1, *IMAGES)).numel(), 3))


def norms() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.LayerNorm([4, 2, 2]),
        nn.Flatten(),
        nn.RMSNorm(16),
        nn.Linear(16, 3),
    )
    for value in model.parameters():
        value.data += 0.3 * torch.randn_like(value)
    return model.eval()


def tokens() -> Tensor:
    return torch.randn(N, 3, 4)


def images() -> Tensor:
    return torch.randn(N, *IMAGES)


def words() -> Tensor:
    return torch.tensor([[0, 1, 1], [2, 3, 4], [5, 5, 5], [1, 0, 2], [3, 3, 1]])


CAPTURED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "groups, dilation": (lambda: convolutions(nn.Conv2d(2, 4, 2, groups=2, dilation=2), nn.Tanh()), images),
    "depthwise": (lambda: convolutions(nn.Conv2d(2, 2, 3, groups=2), nn.Tanh()), images),
    "same, circular": (
        lambda: convolutions(nn.Conv2d(2, 3, 2, padding="same", padding_mode="circular")),
        images,
    ),
    "same, zeros": (lambda: convolutions(nn.Conv2d(2, 3, 3, padding="same", dilation=2), nn.Tanh()), images),
    "transposed": (
        lambda: convolutions(
            nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
            nn.Tanh(),
            nn.AvgPool2d(4),
        ),
        images,
    ),
    "transposed, cut": (
        lambda: convolutions(nn.ConvTranspose2d(2, 3, 2, dilation=2, padding=2), nn.Tanh()),
        images,
    ),
    "one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 2, 3, padding=1, padding_mode="reflect"),
            nn.ConvTranspose1d(2, 2, 2),
            nn.Flatten(),
            nn.Linear(10, 3),
        ),
        tokens,
    ),
    "three dimensions": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 3)),
            nn.Conv3d(1, 2, 2),
            nn.Tanh(),
            nn.ConvTranspose3d(2, 1, 2),
            nn.Flatten(),
            nn.Linear(48, 3),
        ),
        lambda: torch.randn(N, 3, 4, 4),
    ),
    "norms": (norms, images),
    "attention": (lambda: Pooled(SelfAttention(True)), tokens),
    "attention, time first": (lambda: Pooled(SelfAttention(False), time_first=True), tokens),
    "attention, as many tokens as samples": (
        lambda: Pooled(SelfAttention(False), time_first=True),
        lambda: torch.randn(N, N, 4),
    ),
    "encoder layer": (lambda: Pooled(nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True)), tokens),
    "loop over time": (Loop, tokens),
    "samples and tokens folded": (lambda: Folded(True), tokens),
    "tokens and samples folded": (lambda: Folded(False), tokens),
    "words, positions, products": (Positions, words),
    "in place": (InPlace, images),
    "bias and product in one call": (StoredTransposed, tokens),
}


def problem(case: str) -> tuple[Objective, dict[str, Tensor], Batch]:
    torch.manual_seed(0)
    build, inputs = CAPTURED[case]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model, batch = build(), Batch(inputs(), torch.tensor([0, 2, 1, 1, 0]))
    finally:
        torch.set_default_dtype(before)
    return *objective_of(model, CRITERION), batch


def dense(strategy: KhatriRao | HVP, objective: Objective, params: dict[str, Tensor], batch: Batch) -> Tensor:
    return assemble(strategy.blocks(objective, params, batch), Layout.of(params).num_parameters)


@pytest.mark.parametrize("case", CAPTURED)
def test_all_weights_are_captured(case: str) -> None:
    objective, params, batch = problem(case)
    assert CapturedNet.of(objective, params, batch).names == tuple(params)


@pytest.mark.parametrize("megabytes", [1, 64])
@pytest.mark.parametrize("case", CAPTURED)
def test_rows_by_units_equal_rows_by_products(case: str, megabytes: int) -> None:
    objective, params, batch = problem(case)
    ggn = linearized(objective, params, batch)
    for one in (objective, ggn, DifferenceObjective.of(objective, ggn)):
        expected = dense(HVP(), one, params, batch)
        found = dense(KhatriRao(megabytes), one, params, batch)
        assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("case", CAPTURED)
def test_one_tangent_at_a_time_is_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, params, batch = problem(case)
    expected = dense(KhatriRao(), objective, params, batch)
    monkeypatch.setattr("pipeline.strategy.khatri_rao.passes._num_tangents", lambda *args: 1)
    assert (
        dense(KhatriRao(), objective, params, batch) - expected
    ).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("most_samples", [1, 2])
@pytest.mark.parametrize("case", CAPTURED)
def test_parts_of_the_batch_add_up(case: str, most_samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, params, batch = problem(case)
    ggn = linearized(objective, params, batch)
    difference = DifferenceObjective.of(objective, ggn)
    expected = dense(KhatriRao(), difference, params, batch)
    parts = CapturedNet.in_parts(difference, params, batch, most_samples)
    assert len(parts) == -(-N // most_samples)
    monkeypatch.setattr(KhatriRao, "_nets", lambda *args: parts)
    assert (
        dense(KhatriRao(), difference, params, batch) - expected
    ).abs().max() <= 1e-12 * expected.abs().max()


class Penalised(nn.Module):
    """The weight enters linearly, and in one more way."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x[:, 0]))) + self.body.weight.square().sum() * x[:, 0, :3]


def test_a_weight_with_another_use_is_left_out() -> None:
    torch.manual_seed(0)
    objective, params = objective_of(Penalised().double(), CRITERION)
    net = CapturedNet.of(objective, params, Batch(tokens().double(), torch.tensor([0, 2, 1, 1, 0])))
    assert net.names == ("body.bias", "head.weight", "head.bias")


def test_nothing_is_captured_where_samples_mix() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3)).double()
    objective, params = objective_of(model, CRITERION)
    batch = Batch(torch.randn(N, 4).double(), torch.tensor([0, 2, 1, 1, 0]))
    assert mixes_samples(CapturedNet.of(objective, params, batch))
    assert not mixes_samples(CapturedNet.of(*objective_of(model.eval(), CRITERION), batch))


def test_out_of_memory_halves_the_tangents(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, params, batch = problem("encoder layer")
    expected = dense(KhatriRao(), objective, params, batch)
    from pipeline.strategy.khatri_rao import passes

    whole, sizes = passes.perturb_units, []

    def limited(net: CapturedNet, tangents: dict[int, Tensor]) -> object:
        sizes.append(len(next(iter(tangents.values()))))
        if sizes[-1] > 6:
            raise torch.OutOfMemoryError("no room")
        return whole(net, tangents)

    monkeypatch.setattr(passes, "perturb_units", limited)
    assert torch.equal(dense(KhatriRao(), objective, params, batch), expected)
    assert max(sizes) > 6


def test_cost_counts_units_and_not_weights() -> None:
    model = nn.Sequential(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 10))
    objective, params = objective_of(model, CRITERION)
    batch = Batch(torch.randn(8, 64), torch.zeros(8, dtype=torch.long))
    cost = KhatriRao().cost(objective, params, batch)
    assert cost.num_tangents == 110
    assert cost.flop == 8 * (6400 + 1000) ** 2
    assert [tangents_of_use(use) for use in CapturedNet.of(objective, params, batch).uses] == [100, 10]
