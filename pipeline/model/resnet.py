from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pipeline.errors import PipelineError
from pipeline.model.activation import activation_named
from pipeline.model.shapes import image_shape
from pipeline.validation import check_count, check_counts


class ResidualBlock(nn.Module):
    """x ↦ φ(norm(conv(φ(norm(conv(x))))) + shortcut(x)), the shortcut 1 × 1 where shapes change, else x."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, num_groups: int, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(num_groups, fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(num_groups, fan_out)
        self.activation = activation_named(activation)
        same = stride == 1 and fan_in == fan_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(fan_in, fan_out, 1, stride=stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.activation(self.norm1(self.conv1(images)))
        changed: Tensor = self.activation(self.norm2(self.conv2(hidden)) + self.shortcut(images))
        return changed


class ResNet(nn.Sequential):
    """A residual network: a convolution, residual blocks, the mean over the image, one affine layer.

    He et al. 2016, doi:10.1109/CVPR.2016.90, with GroupNorm (Wu & He 2018, doi:10.1007/978-3-030-01261-8_1) in place
    of BatchNorm, so that samples do not mix and the loss of a batch is the mean of the losses of its samples.

    num_channels: output channels of each block; every block but the first halves the image.
    P = 2,932 for gray images of any size, 10 outputs and the defaults.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        num_channels: Sequence[int] = (6, 12),
        num_groups: int = 2,
        activation: str = "relu",
    ) -> None:
        channels, _, _ = image_shape("resnet", input_shape, num_outputs)
        widths = check_counts("model.num_channels", num_channels)
        check_count("model.num_groups", num_groups)
        if not widths or any(width % num_groups for width in widths):
            raise PipelineError(
                f"model.num_channels={list(widths)}: give at least one number, each divisible by "
                f"model.num_groups={num_groups}."
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=nn.Conv2d(channels, widths[0], 3, padding=1, bias=False),
            norm=nn.GroupNorm(num_groups, widths[0]),
            activation=activation_named(activation),
        )
        for i, (fan_in, fan_out) in enumerate(pairwise((widths[0], *widths)), start=1):
            layers[f"block{i}"] = ResidualBlock(fan_in, fan_out, 1 if i == 1 else 2, num_groups, activation)
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(widths[-1], num_outputs)
        super().__init__(layers)
