from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.errors import PipelineError
from pipeline.validation import check_bool, check_count


@dataclass(frozen=True)
class Cuda:
    """An NVIDIA GPU.

    index: which one, counted from 0 among those that are visible.
    tf32: round the factors of float32 products to 10 bits of mantissa. Faster, but a Hessian then carries an error of
        about 1e-3, relative; so it is off unless asked for.
    """

    index: int = 0
    tf32: bool = False

    def __post_init__(self) -> None:
        check_count("device.index", self.index, minimum=0)
        check_bool("device.tf32", self.tf32)

    def setup(self) -> torch.device:
        """Set the precision of float32 products.

        Raises:
            PipelineError: there is no such GPU.
        """
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.index >= found:
            raise PipelineError(
                f"device=cuda with index {self.index}: torch finds {found} CUDA device{'s' * (found != 1)}; "
                f"{'choose a lower device.index' if found else 'choose device=cpu'}."
            )
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32
        device = torch.device("cuda", self.index)
        torch.cuda.set_device(device)
        return device
