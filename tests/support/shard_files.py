"""Shard files of random symmetric matrices, written in one go."""

from __future__ import annotations

import subprocess
import textwrap
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from support.command import python

from pipeline.layout import Layout
from pipeline.shards import write_shard

Array = NDArray[Any]
ATTRS = {"matrix": "hessian", "strategy": "hvp", "num_samples": 7, "loss": 0.25, "reduction": "mean"}


def symmetric(num_rows: int, dtype: str = "float64", seed: int = 0) -> Array:
    matrix = np.random.default_rng(seed).normal(size=(num_rows, num_rows))
    return (matrix + matrix.T).astype(dtype)


def layout_of(num_rows: int) -> Layout:
    """A weight, a bias and a scale without dimensions, where there are rows enough."""
    if num_rows < 4:
        return Layout(("w",), ((num_rows,),))
    return Layout(("net.weight", "net.bias", "scale"), ((num_rows - 3, 1), (2,), ()))


def gradient_of(num_rows: int) -> Array:
    return np.arange(num_rows) / 7


def write(path: Path, matrix: Array, tile: int = 8, **attrs: Any) -> Path:
    with writing(path, matrix, tile, **attrs) as writer:
        writer.add(slice(0, len(matrix)), slice(0, len(matrix)), matrix)
    return path


def writing(path: Path, matrix: Array, tile: int = 8, **attrs: Any) -> Any:
    n = len(matrix)
    return write_shard(path, layout_of(n), str(matrix.dtype), {**ATTRS, **attrs}, gradient_of(n), tile)


def tile_bytes(path: Path) -> list[tuple[int, int]]:
    """Where each tile lies in the file: (offset, number of bytes)."""
    with h5py.File(path) as file:
        chunks = (file["matrix"].id.get_chunk_info(k) for k in range(file["matrix"].id.get_num_chunks()))
        return [(chunk.byte_offset, chunk.size) for chunk in chunks]


def alter(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def run_without_room(room: int, body: str) -> subprocess.CompletedProcess[str]:
    """The body in a process whose files may not grow beyond `room` bytes, which is a full disk to every library."""
    program = f"""
        import resource, signal
        from pathlib import Path
        import numpy as np
        from pipeline.errors import PipelineError
        from pipeline.layout import Layout
        from pipeline.shards.hdf5 import write_array_file
        from pipeline.shards import write_shard
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
        try:
            {body}
        except PipelineError as error:
            print(error)
    """
    return python("-c", textwrap.dedent(program))
