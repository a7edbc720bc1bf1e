from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from pipeline.errors import PipelineError
from pipeline.model.activation import activation_named
from pipeline.model.shapes import image_shape
from pipeline.validation import check_count, check_counts


class CNN(nn.Sequential):
    """Convolutions of stride 2, each halving the image (rounded up), then one affine layer on what is left.

    num_channels: output channels of each convolution.
    P = Σ_l c_l (c_{l-1} k² + 1) + K (c_L h w + 1), with kernels k × k, K outputs and h × w the last image:
    1,898 for images of 8 × 8 and the defaults.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        num_channels: Sequence[int] = (8, 16),
        kernel_size: int = 3,
        activation: str = "relu",
    ) -> None:
        channels, height, width = image_shape("cnn", input_shape, num_outputs)
        check_count("model.kernel_size", kernel_size)
        if kernel_size % 2 == 0:
            raise PipelineError(
                f"model.kernel_size={kernel_size}: give an odd number, so that a kernel has a center."
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        widths = (channels, *check_counts("model.num_channels", num_channels))
        for i, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
            layers[f"conv{i}"] = nn.Conv2d(fan_in, fan_out, kernel_size, stride=2, padding=kernel_size // 2)
            layers[f"activation{i}"] = activation_named(activation)
            height, width = -(-height // 2), -(-width // 2)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(widths[-1] * height * width, num_outputs)
        super().__init__(layers)
