"""The table of models, losses and data that every strategy must be right on: small, float64, seeded.

It is one file, long as it is, since it is one table.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from support import layers
from support.layers import perturb
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.criterion import BinaryCrossEntropy, CrossEntropy, SquaredError
from pipeline.objective.batch import Batch

N = 7  # odd and prime: no chunk divides it


class Problem(NamedTuple):
    model: nn.Module
    criterion: Callable[[Any, Any], Tensor]
    batch: Batch
    parameters: Sequence[str] | str | None


@dataclass(frozen=True, eq=False)
class Case:
    """Factories, called under a seed that is the case's own; everything is built in float64.

    parameters: the selection given to the code under test.
    double_backward: whether PyTorch differentiates the plain module twice, and rightly.
    refused_by: the strategies that refuse it.
    takes_products: whether some weights do not enter linearly, or samples mix, so that khatri_rao takes products.
    """

    id: str
    model: Callable[[], nn.Module]
    criterion: Callable[[], Callable[[Any, Any], Tensor]]
    data: Callable[[], tuple[Any, Any]]
    parameters: Sequence[str] | str | None = None
    double_backward: bool = True
    refused_by: tuple[str, ...] = ()
    takes_products: bool = False

    def build(self) -> Problem:
        before = torch.get_default_dtype()
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(self.id.encode()))
            torch.set_default_dtype(torch.float64)
            try:
                return Problem(self.model(), self.criterion(), Batch(*self.data()), self.parameters)
            finally:
                torch.set_default_dtype(before)


def vectors(num_inputs: int, num_samples: int = N) -> Tensor:
    return torch.randn(num_samples, num_inputs)


def labelled(inputs: Callable[[], Any], num_classes: int, *shape: int) -> Callable[[], tuple[Any, Tensor]]:
    """Inputs with labels (N, *shape)."""

    def data() -> tuple[Any, Tensor]:
        values = inputs()
        return values, torch.randint(num_classes, (Batch(values, None).num_samples, *shape))

    return data


def mlp(*sizes: int, activation: type[nn.Module] = nn.Tanh, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


def thread_net() -> nn.Sequential:
    """The 1-16-1 net of the forum thread."""
    return nn.Sequential(OrderedDict(fc1=nn.Linear(1, 16), act=nn.Tanh(), fc2=nn.Linear(16, 1)))


def strided_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 2, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(2, 2), nn.GroupNorm(1, 2)
        self.conv1 = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(2, 2, 3, padding=1)
        self.head = nn.Linear(2, 3)
        perturb(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """One pre-norm block of two heads, plain products and a softmax; tokens (N, T, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.qkv, self.out, self.head = nn.Linear(4, 12), nn.Linear(4, 4), nn.Linear(4, 3)
        perturb(self)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(self.norm(tokens)).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        )  # each (N, heads, T, 2)
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 2**0.5, -1) @ v
        x = tokens + self.out(mixed.transpose(1, 2).flatten(2))
        return self.head(x.mean(1))


def batchnorm(model: nn.Module) -> nn.Module:
    """In eval mode, with running statistics as training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    perturb(model)
    return model.eval()


def tied_layers() -> nn.Module:
    model = mlp(3, 4, 4, 4, 3)
    model[4].weight = model[2].weight
    return model


class TiedAutoencoder(nn.Module):
    """The decoder is the transpose of the encoder; the weight is not square."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * torch.randn(3, 5))
        self.hidden, self.visible = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(x, self.weight, self.hidden)), self.weight.T, self.visible)


def frozen() -> nn.Module:
    model = mlp(3, 5, 4, 2)
    model[0].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model


class WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.unused, self.last = nn.Linear(3, 4), nn.Linear(2, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Scaled(nn.Module):
    """A parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.sin(self.scale * x))


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, right: Tensor, left: Tensor) -> Tensor:
        return torch.tanh(self.left(left)) * self.right(right)


class Heads(nn.Module):
    """Two outputs, as a dict or as a tuple."""

    def __init__(self, as_dict: bool) -> None:
        super().__init__()
        self.body, self.label, self.value = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(4, 1)
        self.as_dict = as_dict

    def forward(self, x: Tensor) -> dict[str, Tensor] | tuple[Tensor, Tensor]:
        x = torch.tanh(self.body(x))
        outputs = {"label": self.label(x), "value": self.value(x)}
        return outputs if self.as_dict else tuple(outputs.values())


def two_losses(outputs: Any, targets: Any) -> Tensor:
    label, value = outputs.values() if isinstance(outputs, dict) else outputs
    return F.cross_entropy(label, targets[0]) + 0.5 * F.mse_loss(value, targets[1])


class Tagger(nn.Module):
    """Scores of three classes at each of T positions, (N, 3, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.conv(x)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 3), nn.Linear(3, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens).mean(1)))


def fitted_line() -> nn.Module:
    """Weights that `line_through` fits without a residual: the gradient is exactly zero."""
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0, 0.5], [0.25, 1.0, 3.0]]))
    return model


def line_through() -> tuple[Tensor, Tensor]:
    x = torch.randint(-4, 5, (N, 3)).double()
    return x, fitted_line()(x).detach()


def with_values(
    num_inputs: int, num_outputs: int, num_samples: int = N
) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (vectors(num_inputs, num_samples), vectors(num_outputs, num_samples))


def images(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(N, *shape)


def class_weights(*weights: float) -> Callable[[], nn.Module]:
    return lambda: nn.CrossEntropyLoss(torch.tensor(weights))


def spread(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that mixes samples."""
    return (outputs - targets).square().mean() + outputs.var(0, correction=0).sum()


def ignoring() -> tuple[Tensor, Tensor]:
    """Most samples are ignored, so a chunk may have no loss at all."""
    return vectors(3), torch.tensor([-100, -100, -100, 1, -100, 0, 2])


def inputs_and_weights() -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return vectors(3), (torch.randint(3, (N,)), torch.randn(N, 1))


CASES = [
    Case(
        "mlp-relu",
        lambda: mlp(3, 5, 4, 3, activation=nn.ReLU),
        nn.CrossEntropyLoss,
        labelled(lambda: vectors(3), 3),
    ),
    Case("mlp-tanh-sum", lambda: mlp(3, 5, 2), lambda: SquaredError("sum"), with_values(3, 2)),
    Case("mlp-gelu", lambda: mlp(3, 4, 3, activation=nn.GELU), CrossEntropy, labelled(lambda: vectors(3), 3)),
    Case("thread", thread_net, nn.MSELoss, with_values(1, 1)),
    Case("convolutions", strided_convolutions, CrossEntropy, labelled(images(2, 6, 5), 3)),
    Case("residual-groupnorm", Residual, nn.CrossEntropyLoss, labelled(images(1, 4, 3), 3)),
    Case(
        "batchnorm-eval",
        lambda: batchnorm(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))),
        SquaredError,
        with_values(3, 2),
    ),
    Case(
        "batchnorm-2d-eval",
        lambda: batchnorm(
            nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
        ),
        lambda: CrossEntropy("sum"),
        labelled(images(1, 4, 3), 2),
    ),
    Case("attention-layernorm", Attention, nn.CrossEntropyLoss, labelled(images(3, 4), 3)),
    Case("tied", tied_layers, SquaredError, with_values(3, 3)),
    Case(
        "tied-transposed",
        TiedAutoencoder,
        SquaredError,
        lambda: (x := vectors(5), x.clone()),
        takes_products=True,
    ),
    Case("frozen", frozen, nn.CrossEntropyLoss, labelled(lambda: vectors(3), 2)),
    Case("unused", WithUnused, nn.CrossEntropyLoss, labelled(lambda: vectors(3), 2), takes_products=True),
    Case("selected", lambda: mlp(3, 5, 4, 2), nn.MSELoss, with_values(3, 2), ["4.*", "0.weight"]),
    Case("selected-frozen", frozen, nn.MSELoss, with_values(3, 2), "0.*"),
    Case("selected-unused", WithUnused, nn.MSELoss, with_values(3, 2), "unused.*", takes_products=True),
    Case(
        "linear-in-some", lambda: mlp(3, 4, 2), lambda: lambda outputs, _: outputs.mean(), with_values(3, 2)
    ),
    Case(
        "linear-in-all", lambda: nn.Linear(3, 2), lambda: lambda outputs, _: outputs.sum(), with_values(3, 2)
    ),
    Case("no-dimension", Scaled, SquaredError, with_values(3, 2), takes_products=True),
    Case(
        "dict-inputs",
        Keywords,
        nn.CrossEntropyLoss,
        labelled(lambda: {"left": vectors(3), "right": vectors(2)}, 4),
    ),
    Case("tuple-inputs", Keywords, nn.MSELoss, lambda: ((vectors(2), vectors(3)), vectors(4))),
    Case("dict-outputs", lambda: Heads(True), lambda: two_losses, inputs_and_weights),
    Case("tuple-outputs", lambda: Heads(False), lambda: two_losses, inputs_and_weights),
    Case("sequences", Tagger, CrossEntropy, labelled(images(2, 3), 3, 3)),
    Case("embedding", Words, nn.CrossEntropyLoss, labelled(lambda: torch.randint(6, (N, 3)), 4)),
    Case(
        "cross-entropy-sum",
        lambda: mlp(3, 4, 3),
        lambda: CrossEntropy("sum"),
        labelled(lambda: vectors(3), 3),
    ),
    Case("class-weights", lambda: mlp(3, 4, 3), class_weights(0.2, 3, 1), labelled(lambda: vectors(3), 3)),
    Case(
        "class-weights-close",
        lambda: mlp(3, 4, 3),
        class_weights(1, 1.0002, 0.9999),
        labelled(lambda: vectors(3), 3),
    ),
    Case("ignored-labels", lambda: mlp(3, 4, 3), nn.CrossEntropyLoss, ignoring),
    Case("coupled-samples", lambda: mlp(3, 4, 2), lambda: spread, with_values(3, 2), takes_products=True),
    Case("bce-labels", lambda: mlp(3, 4, 1), BinaryCrossEntropy, labelled(lambda: vectors(3), 2)),
    Case(
        "bce-sum",
        lambda: mlp(3, 4, 2),
        lambda: nn.BCEWithLogitsLoss(reduction="sum"),
        lambda: (vectors(3), torch.rand(N, 2)),
    ),
    Case("no-residual", fitted_line, SquaredError, line_through),
    Case("no-residual-sum", fitted_line, lambda: SquaredError("sum"), line_through),
    Case(
        "no-targets",
        lambda: mlp(3, 4, 2),
        lambda: lambda outputs, _: outputs.cos().mean(),
        lambda: (vectors(3), None),
    ),
    Case(
        "one-parameter",
        lambda: nn.Linear(1, 1, bias=False),
        BinaryCrossEntropy,
        labelled(lambda: vectors(1), 2),
    ),
    Case("one-sample", lambda: mlp(3, 4, 3), nn.CrossEntropyLoss, labelled(lambda: vectors(3, 1), 3)),
    Case("conv1d-groups-dilated", layers.conv1d_dilated_in_groups, CrossEntropy, labelled(images(2, 4), 2)),
    Case("conv3d", layers.conv3d, SquaredError, lambda: (images(1, 2, 4, 2)(), images(4)())),
    Case("conv-padding-modes", layers.padded_convolutions, CrossEntropy, labelled(images(1, 2, 2), 2)),
    Case("conv-transposed", layers.transposed_convolutions, CrossEntropy, labelled(images(2, 2, 2), 3)),
    Case(
        "pooling",
        layers.pooled,
        lambda: nn.HuberLoss(delta=0.5),
        lambda: (images(1, 4, 4)(), vectors(2)),
        takes_products=True,
    ),
    Case("norms", layers.norms, nn.CrossEntropyLoss, labelled(lambda: vectors(3), 2)),
    Case("instancenorm", layers.instance_norm, SquaredError, lambda: (images(1, 4)(), vectors(2))),
    Case(
        "batchnorm-training",
        layers.batchnorm_training,
        SquaredError,
        with_values(3, 2),
        refused_by=("func",),
        takes_products=True,
    ),
    Case(
        "batchnorm-2d-training",
        layers.batchnorm_2d_training,
        CrossEntropy,
        labelled(images(1, 3, 2), 2),
        refused_by=("func",),
        takes_products=True,
    ),
    Case("multihead-self", layers.self_attention, CrossEntropy, labelled(images(3, 4), 2)),
    Case(
        "multihead-cross",
        layers.cross_attention,
        SquaredError,
        lambda: (images(3, 3)(), images(3, 2)()),
        takes_products=True,
    ),
    Case("attention-fused", layers.fused_attention, nn.CrossEntropyLoss, labelled(images(3, 3), 2)),
    Case(
        "transformer-layer",
        lambda: layers.transformer_layer(False),
        SquaredError,
        lambda: (images(2, 3)(), vectors(3)),
    ),
    Case(
        "transformer-layer-norm-first",
        lambda: layers.transformer_layer(True).eval(),
        CrossEntropy,
        labelled(images(2, 3), 3),
    ),
    Case(
        "embedding-padded", layers.padded_words, CrossEntropy, labelled(lambda: torch.randint(4, (N, 3)), 3)
    ),
    Case("embedding-tied", layers.tied_decoder, CrossEntropy, labelled(lambda: torch.randint(5, (N, 2)), 5)),
    Case(
        "embedding-bag",
        lambda: layers.bags("mean"),
        CrossEntropy,
        labelled(lambda: torch.randint(5, (N, 3)), 3),
        double_backward=False,
    ),
    Case(
        "embedding-bag-max",
        lambda: layers.bags("max"),
        CrossEntropy,
        labelled(lambda: torch.randint(5, (N, 3)), 3),
        double_backward=False,
    ),
    Case("functional", layers.functional, nn.MSELoss, with_values(4, 2), takes_products=True),
    Case(
        "loop-batch-first", lambda: layers.looped(False), SquaredError, lambda: (images(3, 3)(), vectors(2))
    ),
    Case("loop-time-first", lambda: layers.looped(True), CrossEntropy, labelled(images(3, 3), 2)),
    Case("rnn", lambda: layers.recurrent(nn.RNN, num_layers=2), CrossEntropy, labelled(images(2, 2), 2)),
    Case(
        "gru", lambda: layers.recurrent(nn.GRU, bidirectional=True), CrossEntropy, labelled(images(2, 2), 2)
    ),
    Case("lstm", lambda: layers.recurrent(nn.LSTM), nn.MSELoss, lambda: (images(3, 2)(), vectors(2))),
    Case(
        "lstm-projected",
        lambda: layers.recurrent(nn.LSTM, proj_size=1, bias=False),
        CrossEntropy,
        labelled(images(2, 2), 2),
    ),
    Case("cells", layers.cells, SquaredError, lambda: (images(2, 1)(), vectors(1))),
    Case(
        "weight-norm",
        lambda: layers.weight_norm(old=False),
        SquaredError,
        with_values(3, 6),
        double_backward=False,
        takes_products=True,
    ),
    Case(
        "weight-norm-old",
        lambda: layers.weight_norm(old=True),
        CrossEntropy,
        labelled(lambda: vectors(3), 6),
        double_backward=False,
        takes_products=True,
    ),
    Case("spectral-norm", layers.spectral_norm, SquaredError, with_values(3, 2), takes_products=True),
    Case("folded", layers.folded, CrossEntropy, labelled(images(2, 2), 2)),
    Case(
        "alignments",
        layers.speech,
        lambda: layers.alignment_loss,
        lambda: (images(4, 2)(), torch.randint(1, 3, (N, 2))),
        double_backward=False,
    ),
]
