"""What a newcomer brings along, written without a look at the pipeline: a net, samples, a loss, and a strategy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from pipeline.strategy import Block, Cost


class TokenLSTM(nn.Module):
    """Classifies sequences of token ids, (N, T) integers, by the last state of an LSTM."""

    def __init__(self, vocabulary: int = 12, width: int = 8, num_outputs: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(tokens))
        return self.head(states[:, -1])


class Rings(Dataset):
    """Points of the plane on three rings; a sample is (point, ring)."""

    def __init__(self, num_points: int = 150) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ring = torch.arange(num_points) % 3
        angle = 2 * torch.pi * torch.rand(num_points, generator=generator)
        radius = 1 + self.ring + 0.1 * torch.randn(num_points, generator=generator)
        self.points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)

    def __len__(self) -> int:
        return len(self.ring)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.points[index], int(self.ring[index])


class Shapes(Dataset):
    """Gray images of 32 x 32 pixels with a bright square in one of four corners."""

    def __init__(self, num_images: int = 48, channels: int = 3) -> None:
        self.images = 0.1 * torch.randn(
            num_images, channels, 32, 32, generator=torch.Generator().manual_seed(0)
        )
        self.corner = torch.arange(num_images) % 4
        for image, corner in zip(self.images, self.corner, strict=True):
            row, col = 16 * (int(corner) // 2), 16 * (int(corner) % 2)
            image[:, row : row + 16, col : col + 16] += 1

    def __len__(self) -> int:
        return len(self.corner)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.corner[index])


class FocalLoss(nn.Module):
    """Mean over samples of -(1 - p)^gamma log p, with p the probability of the right class (arXiv:1708.02002)."""

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        log_p = F.log_softmax(outputs, 1).gather(1, targets[:, None])[:, 0]
        return -((1 - log_p.exp()) ** self.gamma * log_p).mean()


@dataclass(frozen=True)
class CentralDifferences:
    """A row of the Hessian from two gradients, at either side of a weight."""

    step: float = 1e-5

    def blocks(self, objective, params, batch, block_filter=lambda rows, cols: True) -> Iterator[Block]:
        row = 0
        moved = {name: value.detach().clone() for name, value in params.items()}
        for value in moved.values():
            for entry in value.view(-1).split(1):
                before = entry.clone()
                gradients = []
                for sign in (1, -1):
                    entry.copy_(before + sign * self.step)
                    gradients.append(objective.gradient(moved, batch))
                entry.copy_(before)
                values = (gradients[0] - gradients[1]) / (2 * self.step)
                yield Block(slice(row, row + 1), slice(0, row + 1), values[None, : row + 1])
                row += 1

    def cost(self, objective, params, batch) -> Cost:
        return Cost(2 * sum(value.numel() for value in params.values()), 0.0)

    def memory(self, num_parameters: int, itemsize: int) -> int:
        return num_parameters * itemsize

    def tolerance(self, dtype: torch.dtype) -> float:
        return 1e-6
