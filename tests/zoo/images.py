"""A U-Net and a narrow ResNet, as they stand in public code."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo.problem import Problem, labels


class DoubleConv(nn.Sequential):
    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(
            nn.Conv2d(num_inputs, num_outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(num_outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(num_outputs),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """Down, up by a transposed convolution, a skip connection, classes of pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.down = DoubleConv(1, width), DoubleConv(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.leave, self.head = DoubleConv(2 * width, width), nn.Conv2d(width, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        skip = self.enter(images)
        x = self.up(self.down(F.max_pool2d(skip, 2)))
        x = F.pad(x, [0, skip.size(3) - x.size(3), 0, skip.size(2) - x.size(2)])
        return self.head(self.leave(torch.cat([skip, x], 1)))


def unet(n: int, width: int) -> Problem:
    return Problem(
        UNet(width // 2).eval(), nn.CrossEntropyLoss(), torch.randn(n, 1, 6, 6), labels(n, 2, 6, 6)
    )


class BasicBlock(nn.Module):
    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_inputs, num_outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_outputs)
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_outputs)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(num_inputs, num_outputs, 1, stride, bias=False), nn.BatchNorm2d(num_outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    """The usual ResNet for CIFAR, narrow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2 = BasicBlock(width, width, 1), BasicBlock(width, 2 * width, 2)
        self.linear = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))


def resnet(training: bool):
    def make(n: int, width: int) -> Problem:
        model = ResNet(width // 2).train(training)
        return Problem(model, nn.CrossEntropyLoss(), torch.randn(n, 3, 8, 8), labels(n, 3))

    return make
