"""Padding rows of embeddings: the other weights against differences of the loss, zeros in their own rows and columns.

Second derivatives are differences of the plain net's loss alone: no gradient is taken, so none is masked.
"""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pipeline
from pipeline.errors import PipelineError
from pipeline.objective import Batch, Reference
from pipeline.operator import gram_spectrum
from pipeline.strategy import STRATEGIES

TOKENS = torch.tensor([[0, 1, 2], [3, 1, 0], [2, 2, 1], [0, 0, 3]])
LABELS = torch.tensor([0, 1, 0, 2])
STEP = 2e-3  # error of a second difference: some 1e-6 by the step, 1e-10 by rounding
WAYS = ("reverse over reverse, graph kept", "forward over reverse", "central differences of the gradient")


class Words(nn.Module):
    """Three tokens a sample, looked up by a function; `moves` says which rows of the table have a derivative."""

    def __init__(self, look_up, moves=(False, True, True, True)):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.scale = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.rand(2) + 0.5)
        self.head, self.look_up, self.moves = nn.Linear(6, 3), look_up, moves
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.look_up(tokens, self.table, self.scale)).flatten(1))


class Module(Words):
    """The same through the module of PyTorch."""

    def __init__(self, **options):
        super().__init__(None)
        self.table = self.scale = None
        self.words = nn.Embedding(4, 2, padding_idx=0, **options).double()
        self.words.weight.data[0] = 0.3  # a user's own

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(tokens)).flatten(1))


class Bag(Words):
    """A bag leaves the padding out; beside it a look-up, since a plain bag is not differentiable twice."""

    def __init__(self):
        super().__init__(None)
        self.scale = None
        self.bag = nn.EmbeddingBag(4, 2, padding_idx=1, mode="sum").double()

    def forward(self, tokens: Tensor) -> Tensor:
        both = F.embedding(tokens, self.table, padding_idx=0) + self.bag(tokens)[:, None]
        return self.head(torch.tanh(both).flatten(1))


NETS = {
    "functional": lambda: Words(lambda x, w, s: F.embedding(x, w, 0) * s),
    "keyword, counted from the end": lambda: Words(
        lambda x, w, s: F.embedding(input=x, weight=w, padding_idx=-3) * s, (True, False, True, True)
    ),
    "sparse": lambda: Words(lambda x, w, s: F.embedding(x, w, 0, sparse=True) * s),
    "torch.embedding": lambda: Words(lambda x, w, s: torch.embedding(w, x, 0) * s),
    "random numbers": lambda: Words(lambda x, w, s: F.dropout(F.embedding(x, w, 0) * s, 0.4)),
    "module": Module,
    "module, sparse": lambda: Module(sparse=True),
    "bag": Bag,
}


def masked(net: Words) -> Tensor:
    """Which weights have no derivative, (P,)."""
    marks = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in net.named_parameters()}
    for name, mark in marks.items():
        if name in ("table", "words.weight"):
            mark[~torch.tensor(net.moves)] = True
        if name == "bag.weight":
            mark[1] = True
    return torch.cat([mark.flatten() for mark in marks.values()])


def at(net: nn.Module, by: Tensor, value) -> Tensor:
    """A value of the net whose weights are moved by a vector."""
    before = nn.utils.parameters_to_vector(net.parameters()).detach()
    with torch.no_grad():
        nn.utils.vector_to_parameters(before + by, net.parameters())
        result = value(net)
        nn.utils.vector_to_parameters(before, net.parameters())
    return result


def second_differences(net: nn.Module, free: Tensor, value) -> Tensor:
    """The Hessian by the free weights from the value alone, zero elsewhere."""
    units = torch.eye(len(free), dtype=torch.float64) * STEP
    result = torch.zeros(len(free), len(free), dtype=torch.float64)
    for i in free.nonzero().flatten().tolist():
        for j in free.nonzero().flatten().tolist():
            if j <= i:
                corners = [
                    at(net, a * units[i] + b * units[j], value) * a * b for a in (1, -1) for b in (1, -1)
                ]
                result[i, j] = result[j, i] = sum(corners) / (4 * STEP**2)
    return result


def jacobian(net: nn.Module, free: Tensor, value) -> Tensor:
    """Derivatives of values by the free weights, (values, P), zero elsewhere."""
    columns = [
        (at(net, u, value) - at(net, -u, value)).flatten() / (2 * STEP) * bool(is_free)
        for u, is_free in zip(torch.eye(len(free), dtype=torch.float64) * STEP, free, strict=True)
    ]
    return torch.stack(columns, 1)


def loss_of(net: nn.Module) -> Tensor:
    return F.cross_entropy(net(TOKENS), LABELS)


@cache
def expected(name: str, matrix: str) -> Tensor:
    net = NETS[name]()
    free = ~masked(net)
    if matrix == "hessian":
        return second_differences(net, free, loss_of)
    if matrix == "empirical_fisher":
        each = jacobian(net, free, lambda net: F.cross_entropy(net(TOKENS), LABELS, reduction="none"))
        return each.T @ each / 4
    rows = jacobian(net, free, lambda net: net(TOKENS)).reshape(4, 3, -1)
    p = net(TOKENS).detach().softmax(-1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("ncp,ncd,ndq->pq", rows, inner, rows) / 4


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", [name for name in NETS if name != "random numbers"])
def test_hessian_is_that_of_the_other_weights(name: str, strategy: str) -> None:
    net = NETS[name]()
    found = pipeline.hessian(net, nn.CrossEntropyLoss(), TOKENS, LABELS, strategy=strategy)
    torch.testing.assert_close(found, expected(name, "hessian"), rtol=1e-4, atol=1e-5)
    assert not found[masked(net)].any()
    assert not found[:, masked(net)].any()


@pytest.mark.parametrize("name", NETS)
def test_products_of_the_reference_are_those_of_a_symmetric_matrix(name: str) -> None:
    net = NETS[name]()
    randomness = 3 if name == "random numbers" else None
    reference = Reference(net, nn.CrossEntropyLoss(), None, Batch(TOKENS, LABELS), randomness=randomness)
    units = torch.eye(len(masked(net)), dtype=torch.float64)
    found = torch.stack([reference.hessian(unit).value for unit in units], 1)
    assert float((found - found.T).abs().max()) < 1e-9
    assert float(found[:, masked(net)].abs().max()) < 1e-9
    if name != "random numbers":
        torch.testing.assert_close(found, expected(name, "hessian"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("matrix", ["ggn", "fisher", "empirical_fisher"])
def test_gauss_newton_matrices_are_those_of_the_other_weights(matrix: str) -> None:
    for name in ("functional", "module", "bag"):
        net = NETS[name]()
        found = pipeline.hessian(net, nn.CrossEntropyLoss(), TOKENS, LABELS, matrix=matrix)
        torch.testing.assert_close(found, expected(name, matrix), rtol=1e-4, atol=1e-5)
        assert not found[masked(net)].any()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["functional", "module, sparse", "bag"])
def test_operator_gives_the_same_products(name: str, way: str) -> None:
    net = NETS[name]()
    op = pipeline.curvature_operator(net, nn.CrossEntropyLoss(), (TOKENS, LABELS), way=way)
    assert op.way == way
    found = op @ torch.eye(len(masked(net)), dtype=torch.float64)
    torch.testing.assert_close(found, expected(name, "hessian"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["functional", "module"])
def test_spectrum_of_the_gram_matrix(name: str) -> None:
    net = NETS[name]()
    found = gram_spectrum(net, nn.CrossEntropyLoss(), TOKENS, LABELS, num_vectors=2)
    values = torch.linalg.eigvalsh(expected(name, "ggn")).flip(0)[: len(found.eigenvalues)]
    torch.testing.assert_close(torch.tensor(found.eigenvalues.copy()), values, rtol=1e-4, atol=1e-6)
    assert not found.vectors[masked(net).numpy()].any()


class Tied(nn.Module):
    """The table embeds and decodes; `constant` stands in for what the look-up of the padding gives."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.hidden = nn.Embedding(4, 2, padding_idx=0), nn.Linear(6, 2)
        self.words.weight.data[0] = 0.7
        self.double()
        self.constant: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.words(tokens)
        if self.constant is not None:
            rows = torch.where(tokens[..., None] == 0, self.constant, rows)
        return torch.tanh(self.hidden(torch.tanh(rows).flatten(1))) @ self.words.weight.T


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tied_row_moves_through_the_decoder_alone(strategy: str) -> None:
    net = Tied()
    found = pipeline.hessian(net, nn.CrossEntropyLoss(), TOKENS, LABELS, strategy=strategy)
    net.constant = net.words.weight[0].detach().clone()
    by_loss = second_differences(net, torch.ones(len(found), dtype=torch.bool), loss_of)
    torch.testing.assert_close(found, by_loss, rtol=1e-4, atol=1e-5)
    assert float(found[:2].abs().max()) > 0.01  # the row has a curvature of its own


def test_row_of_a_reparametrized_table_is_the_one_at_the_weights() -> None:
    """The padding's row of w · s is constant, though s moves the other rows."""
    net = Words(lambda x, w, s: F.embedding(x, w * s, 0))
    found = pipeline.hessian(net, nn.CrossEntropyLoss(), TOKENS, LABELS)
    row = (net.table[0] * net.scale).detach()
    net.look_up = lambda x, w, s: torch.where(x[..., None] == 0, row, (w * s)[x])
    free = torch.ones(len(found), dtype=torch.bool)
    torch.testing.assert_close(found, second_differences(net, free, loss_of), rtol=1e-4, atol=1e-5)
    assert not found[:2].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_norm": 0.5}, "rewrites its weights"),
        ({"scale_grad_by_freq": True}, "a gradient that is not its loss's"),
    ],
)
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_gradients_that_are_no_derivatives_are_refused(kind, options, message) -> None:
    net = nn.Sequential(kind(4, 2, **options), nn.Flatten(), nn.LazyLinear(3))
    net(TOKENS)
    for compute in (pipeline.hessian, gram_spectrum):
        with pytest.raises(PipelineError, match=message):
            compute(net, nn.CrossEntropyLoss(), TOKENS, LABELS)
    with pytest.raises(PipelineError, match=message):
        pipeline.curvature_operator(net, nn.CrossEntropyLoss(), (TOKENS, LABELS))
