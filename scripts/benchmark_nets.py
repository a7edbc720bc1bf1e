"""The nets that `benchmark.py` measures on: seeded, float32, on the digits or on a sine."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.criterion import CrossEntropy, SquaredError
from pipeline.data import Digits
from pipeline.objective.batch import Batch


@dataclass(frozen=True)
class Problem:
    """A net, its loss and the batch that the matrix is taken on."""

    title: str
    model: nn.Module
    criterion: Callable[[Tensor, Tensor], Tensor]
    batch: Batch

    @property
    def num_parameters(self) -> int:
        return sum(value.numel() for value in self.model.parameters())

    def to(self, device: torch.device, dtype: torch.dtype) -> Problem:
        """The same problem elsewhere; the model itself is moved."""
        model = self.model.to(device=device, dtype=dtype)
        return Problem(self.title, model, self.criterion, self.batch.to(device, dtype))


class Residual(nn.Module):
    """h = tanh(conv(tanh(conv x))), outputs linear(h + σ(conv h)): 3×3 convolutions, the second of stride 2."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.head = nn.Linear(16 * channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        h = torch.tanh(self.conv2(torch.tanh(self.conv1(images))))
        outputs: Tensor = self.head((h + torch.sigmoid(self.conv3(h))).flatten(1))
        return outputs


class Block(nn.Module):
    """One pre-norm transformer block on the tokens of an 8×8 image: single-head attention, a GELU MLP."""

    def __init__(self, width: int = 24, num_tokens: int = 8, hidden: int = 96) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.embed = nn.Linear(64 // num_tokens, width)
        self.position = nn.Parameter(0.1 * torch.randn(num_tokens, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images.reshape(len(images), self.num_tokens, -1)) + self.position
        h = self.norm1(x)
        weights = torch.softmax(self.q(h) @ self.k(h).transpose(1, 2) / x.shape[-1] ** 0.5, -1)
        x = x + self.out(weights @ self.v(h))
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        outputs: Tensor = self.head(x.mean(1))
        return outputs


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def on_a_sine(title: str, sizes: Sequence[int], num_samples: int) -> Problem:
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, num_samples)[:, None]
    return Problem(title, mlp(*sizes), SquaredError(), Batch(x, torch.sin(x)))


def on_digits(
    title: str, model: Callable[[], nn.Module], num_samples: int, shape: Sequence[int], num_pixels: int = 64
) -> Problem:
    """num_pixels: how many of the 64 pixels of each image a net on vectors is given, from the middle."""
    torch.manual_seed(0)
    images, labels = Digits(input_shape=shape).load().train.chunk(0, num_samples)
    if num_pixels < 64:
        first = 32 - num_pixels // 2
        images = images[:, first : first + num_pixels]
    return Problem(title, model(), CrossEntropy(), Batch(images, labels))


def mlp_on_digits(width: int, num_samples: int) -> Problem:
    """64-width-10, tanh: P = 75·width + 10."""
    title = f"64-{width}-10 tanh, cross-entropy"
    return on_digits(title, partial(mlp, 64, width, 10), num_samples, [64])


def warm_up() -> Problem:
    """A net of 17 weights, on which everything is imported and set up before memory is measured."""
    torch.manual_seed(0)
    return Problem("2-3-2 tanh", mlp(2, 3, 2), CrossEntropy(), Batch(torch.eye(2), torch.arange(2)))


def problem_of(name: str) -> Problem:
    """The net of that name, or 64-width-10@samples."""
    if found := re.fullmatch(r"64-(\d+)-10@(\d+)", name):
        return mlp_on_digits(int(found[1]), int(found[2]))
    if name not in NETS:
        raise SystemExit(f"--nets: {name!r} is unknown: choose of {', '.join(NETS)}, or 64-100-10@128.")
    return NETS[name]()


IMAGE = (1, 8, 8)

NETS: dict[str, Callable[[], Problem]] = {
    "line": partial(on_a_sine, "1-3-1 tanh, squared error", [1, 3, 1], 16),
    "thread": partial(on_a_sine, "1-16-1 tanh, squared error", [1, 16, 1], 100),
    "softmax": partial(on_digits, "8-10 linear, cross-entropy", partial(mlp, 8, 10), 64, [64], 8),
    "tiny": partial(on_digits, "64-8-10 tanh, cross-entropy", partial(mlp, 64, 8, 10), 64, [64]),
    "deep": partial(
        on_digits, "16-8-8-8-10 tanh, cross-entropy", partial(mlp, 16, 8, 8, 8, 10), 64, [64], 16
    ),
    "main": partial(mlp_on_digits, 32, 256),
    "mlp": partial(mlp_on_digits, 100, 128),
    "conv": partial(on_digits, "three 3×3 convolutions, linear 256-10", conv, 128, IMAGE),
    "residual": partial(on_digits, "residual conv net, 16 channels", Residual, 128, IMAGE),
    "block": partial(on_digits, "transformer block, width 24, 8 tokens", Block, 128, IMAGE),
    "wide_block": partial(
        on_digits,
        "transformer block, width 64, 16 tokens, MLP 64-64-64",
        partial(Block, 64, 16, 64),
        32,
        IMAGE,
    ),
    "large": partial(mlp_on_digits, 267, 256),
}
