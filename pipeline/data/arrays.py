from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from pipeline.data.samples import Samples
from pipeline.data.split import SplitDataset
from pipeline.errors import PipelineError
from pipeline.validation import check_text

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Arrays(SplitDataset):
    """The user's own samples, from two arrays of one .npz or .h5 file.

    path: of the file; a relative one starts at the working directory.
    inputs: name of the array of samples, (N, ...); (N,) becomes (N, 1). Integers and booleans become float32, floats
        keep their precision.
    targets: name of the array of targets. Integers and booleans are labels, (N,), (N, 1) or (N, T); floats are
        values, (N,) or (N, k).
    """

    path: str
    inputs: str = "x"
    targets: str = "y"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text("data.path", self.path, "samples.npz")
        check_text("data.inputs", self.inputs, "x")
        check_text("data.targets", self.targets, "y")

    def load(self) -> Samples:
        """Read both arrays and split them.

        Raises:
            PipelineError: the file or an array is missing, unreadable, or holds no numbers.
        """
        path = Path(self.path).expanduser()
        found = _read(path, (self.inputs, self.targets))
        for name, values in found.items():
            if values.dtype.kind not in "biuf" or values.ndim == 0:
                raise PipelineError(
                    f"{path}: array {name!r} has dtype {values.dtype} and shape {values.shape}: give "
                    f"numbers, one row a sample."
                )
        return self.split(_as_inputs(found[self.inputs]), _as_targets(found[self.targets]))


def _as_inputs(values: Array) -> Array:
    values = values[:, None] if values.ndim == 1 else values
    wide = values.dtype.kind == "f" and values.dtype.itemsize >= 8
    return values.astype(np.float64 if wide else np.float32)


def _as_targets(values: Array) -> Array:
    if values.dtype.kind not in "biu":
        return _as_inputs(values)
    column = values.ndim == 2 and values.shape[1] == 1
    return (values[:, 0] if column else values).astype(np.int64)


def _read(path: Path, names: Sequence[str]) -> dict[str, Array]:
    if not path.is_file():
        raise PipelineError(f"data.path={path}: no such file; relative paths start at {Path.cwd()}.")
    if path.suffix == ".npz":
        return _read_npz(path, names)
    if path.suffix in {".h5", ".hdf5"}:
        from pipeline.shards.hdf5 import read_arrays

        return read_arrays(path, names)
    raise PipelineError(f"data.path={path}: give a file that ends in .npz, .h5 or .hdf5.")


def _read_npz(path: Path, names: Sequence[str]) -> dict[str, Array]:
    try:
        with path.open("rb") as stream, NpzFile(stream, allow_pickle=False) as file:
            for name in names:
                if name not in file.files:
                    raise PipelineError(
                        f"{path} has no array {name!r}: it has {', '.join(file.files) or 'none'}."
                    )
            return {name: file[name] for name in names}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise PipelineError(f"{path} cannot be read ({reason}): write it anew with numpy.savez.") from error
