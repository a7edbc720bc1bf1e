"""Checks of the two sizes that a model takes from the data."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod

from pipeline.errors import PipelineError
from pipeline.validation import check_count, check_counts


def sample_shape(input_shape: Sequence[int], num_outputs: int) -> tuple[int, ...]:
    """The shape of one sample, after both sizes were checked."""
    check_count("model.num_outputs", num_outputs)
    return check_counts("model.input_shape", input_shape)


def image_shape(model: str, input_shape: Sequence[int], num_outputs: int) -> tuple[int, int, int]:
    """The shape (channels, height, width) of one sample, after both sizes were checked.

    Raises:
        PipelineError: samples are not images.
    """
    shape = sample_shape(input_shape, num_outputs)
    if len(shape) != 3:
        raise PipelineError(
            f"model={model} needs images (channels, height, width); the data has samples of shape {shape}: "
            f"choose model=mlp or data.input_shape={_as_image(prod(shape))}."
        )
    return shape[0], shape[1], shape[2]


def _as_image(size: int) -> str:
    """The gray image of `size` pixels that is nearest to a square, as it is written on a command line."""
    height = next(height for height in range(isqrt(size), 0, -1) if size % height == 0)
    return f"[1,{height},{size // height}]"
