"""All eigenvalues of a dense symmetric matrix, on the CPU or a GPU, by the fastest driver that is installed.

That is torch.linalg.eigvalsh, MKL's ssyevd and dsyevd in PyTorch's package: `scripts/benchmark_eigenvalues.py` compares
it with the drivers of the OpenBLAS that NumPy and SciPy bring, see docs/decisions/spectra.md.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np

from pipeline.errors import PipelineError, is_out_of_memory
from pipeline.spectrum.protocol import Array
from pipeline.system import format_bytes

DEVICES = ("auto", "cpu", "cuda")
NO_GPU = "torch finds no GPU"
GPU_COPIES = 3  # of the matrix: itself, the one that is overwritten, and room to work in
ONE_AT_A_TIME = threading.Lock()
log = logging.getLogger(__name__)


def eigenvalues_of(matrix: Array, device: str = "cpu") -> Array:
    """All eigenvalues of a symmetric matrix, ascending, in its dtype; its lower triangle alone is read.

    Raises:
        PipelineError: device=cuda, and there is no GPU, or not enough room on it.
    """
    import torch  # here, so that aggregation with spectrum=topk never loads it

    writable = np.require(matrix, requirements=["C", "W"])  # torch takes no other memory without a warning
    held = torch.from_numpy(writable)
    if device != "cpu":
        with ONE_AT_A_TIME:  # workers share the card
            found, why_not = _on_gpu(held)
        if found is not None:
            return found
        if device == "cuda":
            raise PipelineError(f"spectrum.device=cuda: {why_not}: choose spectrum.device=cpu.")
        if why_not != NO_GPU:
            log.info("eigenvalues on the CPU, as %s.", why_not)
    eigenvalues: Array = torch.linalg.eigvalsh(held).numpy()
    return eigenvalues


def _on_gpu(matrix: Any) -> tuple[Array | None, str]:
    """Eigenvalues by the GPU, or why there are none."""
    import torch

    if (gpu := gpu_and_room()) is None:
        return None, NO_GPU
    device, there = gpu
    needed = GPU_COPIES * matrix.numel() * matrix.element_size()
    too_small = f"the GPU has {format_bytes(there)} free, and {format_bytes(needed)} are needed"
    if needed > there:
        return None, too_small
    try:
        return torch.linalg.eigvalsh(matrix.to(device)).cpu().numpy(), ""
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None, too_small


def gpu_and_room() -> tuple[Any, int] | None:
    """The GPU of this process and its free bytes; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.device("cuda", torch.cuda.current_device()), int(torch.cuda.mem_get_info()[0])
