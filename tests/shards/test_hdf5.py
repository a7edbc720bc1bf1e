"""Files of results: numbers, arrays and texts, whole or found to be damaged."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.shard_files import run_without_room

from pipeline.errors import DamagedFile, PipelineError
from pipeline.shards.hdf5 import read_array_file, read_arrays, write_array_file


def test_results_keep_numbers_arrays_and_texts(tmp_path: Path) -> None:
    attrs = {"step": 120, "loss": 0.25, "spectrum": "exact", "complete": True}
    arrays = {
        "a/values": np.linspace(-1, 5, 9),
        "a/counts": np.array([5, 5, 1]),
        "b/names": ["fc1.weight", "größe"],
        "b/texts": np.array(["(16, 1)", "()"]),
        "b/fc1.weight/none": np.zeros((0,), np.float32),
        "scalar": 3.5,
    }
    write_array_file(tmp_path / "spectra" / "step-000120.h5", attrs, arrays)
    found = read_array_file(tmp_path / "spectra" / "step-000120.h5")
    assert found.attrs == attrs
    assert all(type(found.attrs[name]) is type(value) for name, value in attrs.items())
    assert found.arrays.keys() == arrays.keys()
    for name, values in arrays.items():
        assert np.array_equal(found.arrays[name], values)
    assert all(isinstance(name, str) for name in found.arrays["b/names"])
    assert found.arrays["b/fc1.weight/none"].dtype == np.float32
    assert [entry.name for entry in (tmp_path / "spectra").iterdir()] == ["step-000120.h5"]


def test_results_with_a_flipped_bit_are_found(tmp_path: Path) -> None:
    path = tmp_path / "step-000120.h5"
    attrs = {"step": 120, "loss": 0.25, "spectrum": "exact", "whole": True}
    arrays = {"a/values": np.linspace(-1, 5, 900), "b/names": np.array(["fc1", "größe"])}
    write_array_file(path, attrs, arrays)
    content, chance, told = path.read_bytes(), np.random.default_rng(0), list[str]()
    for _ in range(200):
        altered = bytearray(content)
        altered[chance.integers(len(content))] ^= 1 << chance.integers(8)
        path.write_bytes(altered)
        with pytest.raises(DamagedFile) as found:
            read_array_file(path)
        told.append(str(found.value))
    assert all(re.fullmatch(r"\S+ is damaged \(.+\): delete it and run again, .*", line) for line in told)


def test_results_of_version_0_1_are_read(tmp_path: Path) -> None:
    """Their texts have any length, they have no checksum, and a seal stands behind HDF5's last byte."""
    path = tmp_path / "old.h5"
    with h5py.File(path, "w", libver=("earliest", "v110")) as file:
        file.attrs.update({"step": 120, "spectrum": "exact", "loss": 0.5})
        file["group/values"] = np.arange(3.0)
        file["parameters/names"] = np.array(["fc1", "größe"], dtype=object)
    path.write_bytes(path.read_bytes() + bytes(36) + b"\nsealed\n")
    found = read_array_file(path)
    assert found.attrs == {"step": 120, "spectrum": "exact", "loss": 0.5}
    assert list(found.arrays["parameters/names"]) == ["fc1", "größe"]
    assert list(found.arrays["group/values"]) == [0, 1, 2]


def test_results_are_the_same_to_the_byte_whenever_they_are_written(tmp_path: Path) -> None:
    made = []
    for name in ("one.h5", "two.h5"):
        write_array_file(
            tmp_path / name, {"step": 120}, {"group/fc1/eigenvalues": np.ones(3), "names": ["a"]}
        )
        made.append((tmp_path / name).read_bytes())
        time.sleep(1.1)  # HDF5's clock shows seconds
    assert made[0] == made[1]


def test_results_that_are_not_what_was_written_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "step-000120.h5"
    write_array_file(path, {"step": 120}, {"x": np.ones(3)})
    altered = path.read_bytes().replace(np.ones(3).tobytes(), np.array([1.0, 1.0, 2.0]).tobytes())
    path.write_bytes(altered)
    with pytest.raises(DamagedFile, match="it is not what was written"):
        read_array_file(path)


def test_results_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "step-000120.h5"
    write_array_file(target, {"step": 120}, {"x": np.ones(3)})
    ended = run_without_room(
        5_000, f'write_array_file(Path({str(target)!r}), {{"step": 121}}, {{"x": np.ones(3000)}})'
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(r".*\.h5 could not be written \(.*\): make room .* is kept\.\n", ended.stdout)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000120.h5"]
    assert read_array_file(target).attrs == {"step": 120}


def test_arrays_of_other_files(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["group/x"], file["y"], file["names"] = np.eye(3), np.arange(3), ["a", "b"]
    found = read_arrays(tmp_path / "data.h5", ["y", "group/x", "names"])
    assert list(found) == ["y", "group/x", "names"]
    assert np.array_equal(found["group/x"], np.eye(3))
    assert list(found["names"]) == ["a", "b"]
    with pytest.raises(PipelineError, match=r"data\.h5 has no array 'x': it has group/x, names, y"):
        read_arrays(tmp_path / "data.h5", ["x"])
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(PipelineError, match="give another file"):
        read_arrays(tmp_path / "text.h5", ["x"])


WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import psutil
from pipeline.shards.hdf5 import read_array_file
limit = psutil.Process().memory_info().vms + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    print(read_array_file(Path(sys.argv[1])).attrs)
except MemoryError:
    print("out of memory")
"""


@pytest.mark.parametrize("num_bytes", [0, 2**18, 2**19, 2**20, 2**21])
def test_a_file_is_not_opened_where_memory_runs_out(tmp_path: Path, num_bytes: int) -> None:
    """HDF5 2.0 ends the process by SIGSEGV where it gets no memory for a file's cache."""
    write_array_file(tmp_path / "a.h5", {"step": 1}, {})
    command = [sys.executable, "-c", WITH_LITTLE_MEMORY, tmp_path / "a.h5", str(num_bytes)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout in ("out of memory\n", "{'step': 1}\n")


def test_memory_that_runs_out_in_hdf5_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*arguments: object) -> None:
        raise OSError("Unable to synchronously open file (memory allocation failed for raw data chunk)")

    write_array_file(tmp_path / "a.h5", {"step": 1}, {})
    monkeypatch.setattr(h5py, "File", no_room)
    with pytest.raises(MemoryError, match="memory allocation failed"):
        read_array_file(tmp_path / "a.h5")
