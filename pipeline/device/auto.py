from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.device.cpu import Cpu
from pipeline.device.cuda import Cuda
from pipeline.validation import check_bool


@dataclass(frozen=True)
class Auto:
    """The first GPU where there is one, else the processor.

    tf32: as in `Cuda`; without a GPU it changes nothing.
    """

    tf32: bool = False

    def __post_init__(self) -> None:
        check_bool("device.tf32", self.tf32)

    def of_worker(self, number: int) -> Auto | Cuda:
        """The workers of a machine take its GPUs in turn: worker 5 of a machine with 4 takes GPU 1."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return self if count < 2 else Cuda(number % count, self.tf32)

    def setup(self) -> torch.device:
        return Cuda(tf32=self.tf32).setup() if torch.cuda.is_available() else Cpu().setup()
