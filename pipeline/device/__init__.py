"""Where tensors live and computations run."""

from typing import Protocol

import torch

from pipeline.device.auto import Auto
from pipeline.device.cpu import Cpu
from pipeline.device.cuda import Cuda


class Device(Protocol):
    """A choice of device; `setup` applies its settings to torch, once per process."""

    def setup(self) -> torch.device: ...
