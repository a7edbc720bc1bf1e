from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from pipeline.data.columns import Columns, Names, check_names
from pipeline.data.conversion import ConvertedDataset
from pipeline.data.samples import Samples
from pipeline.data.sources import Source
from pipeline.errors import PipelineError, first_line
from pipeline.validation import check_text

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Arrays(ConvertedDataset):
    """The user's own samples, from arrays of one .npz or .h5 file.

    path: of the file; a relative one starts at the working directory.
    inputs: name of the array of samples, (N, ...); or names of several, which become keyword arguments of the model.
    targets: name of the array of targets; that of the inputs is allowed, as a language model needs it.
    """

    path: str
    inputs: Names = "x"
    targets: str = "y"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text("data.path", self.path, "samples.npz")
        check_names("data.inputs", self.inputs)
        check_text("data.targets", self.targets, "y")

    def load(self) -> Samples:
        """Read the arrays, convert and split them.

        Raises:
            PipelineError: the file or an array is missing, unreadable, or holds no numbers.
        """
        path = Path(self.path).expanduser()
        inputs = [self.inputs] if isinstance(self.inputs, str) else list(self.inputs or ())
        arrays = _read(path, list(dict.fromkeys((*inputs, self.targets))))
        for name, values in arrays.items():
            texts = name == self.targets and values.dtype.kind in "US"
            if (values.dtype.kind not in "biuf" and not texts) or values.ndim == 0:
                raise PipelineError(
                    f"{path}: array {name!r} has dtype {values.dtype} and shape {values.shape}: give "
                    f"numbers, one row a sample."
                )
        columns = Columns(self.inputs, self.targets)
        return self.samples(Source.of_arrays(*columns.pair(arrays, path.name), path.name))


def _read(path: Path, names: Sequence[str]) -> dict[str, Array]:
    if not path.is_file():
        raise PipelineError(f"data.path={path}: no such file; relative paths start at {Path.cwd()}.")
    if path.suffix == ".npz":
        return _read_npz(path, names)
    if path.suffix in {".h5", ".hdf5"}:
        from pipeline.shards import read_arrays

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
        reason = first_line(error)
        remedy = "write it anew with numpy.savez"
        if "Object arrays" in reason:
            remedy = (
                "it holds Python objects, as rows of different lengths make them: pad these and save numbers"
            )
        raise PipelineError(f"{path} cannot be read ({reason}): {remedy}.") from error
