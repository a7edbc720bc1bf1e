from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.validation import check_count


@dataclass(frozen=True)
class Cpu:
    """The processor.

    num_threads: threads of one torch operation; null leaves torch's own choice (one for each core). Results repeat
        bit for bit as long as this number stays the same.
    """

    num_threads: int | None = None

    def __post_init__(self) -> None:
        check_count("device.num_threads", self.num_threads, or_null="one for each core")

    def setup(self) -> torch.device:
        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        return torch.device("cpu")
