"""Faults of the disk under an HDF5 file that is being written: each is raised, and HDF5 is left with nothing open."""

import errno
import os
from contextlib import closing

import h5py
import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.shards import open_shard, write_shard
from pipeline.shards.write_ahead_file import RawFile

OPEN = h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_GROUP | h5py.h5f.OBJ_DATASET
MATRIX = np.arange(24 * 24, dtype=float).reshape(24, 24)
MATRIX += MATRIX.T


class Disk:
    """Takes the place of `os.pwrite` and fails at the write with number `fatal`, or from it on."""

    def __init__(self, monkeypatch):
        self.write, self.count, self.fatal, self.for_good = os.pwrite, 0, 0, False
        monkeypatch.setattr(os, "pwrite", self)

    def __call__(self, handle, content, offset):
        self.count += 1
        if self.fatal and (self.count == self.fatal or (self.for_good and self.count > self.fatal)):
            raise OSError(errno.EIO, "Input/output error")
        return self.write(handle, content[: max(1, len(content) // 2)], offset)  # as much as it likes


def write(path):
    with write_shard(path, Layout(("w",), ((24,),)), "float64", {"loss": 1.0}, MATRIX[0], tile=8) as writer:
        for row in range(0, 24, 6):
            writer.add(slice(row, row + 6), slice(0, 24), MATRIX[row : row + 6])


@pytest.mark.parametrize("for_good", [False, True])
def test_every_write_that_fails_is_told_and_leaves_nothing(tmp_path, monkeypatch, for_good):
    path, disk = tmp_path / "batch-00000.h5", Disk(monkeypatch)
    write(path)
    np.testing.assert_array_equal(open_shard(path).dense(), MATRIX)
    whole, num_writes = path.read_bytes(), disk.count
    assert num_writes > 20
    for disk.fatal in range(1, num_writes + 1):
        disk.count, disk.for_good = 0, for_good
        with pytest.raises(
            PipelineError, match=r"batch-00000\.h5 could not be written \(Input/output error\)"
        ):
            write(path)
        assert h5py.h5f.get_obj_count(types=OPEN) == 0
        assert [found.name for found in tmp_path.iterdir()] == [path.name]
        assert path.read_bytes() == whole


def test_it_reads_what_was_written_even_where_the_disk_took_nothing(tmp_path, monkeypatch):
    disk, rng = Disk(monkeypatch), np.random.default_rng(0)
    for disk.fatal in (0, 1, 30):
        disk.count, disk.for_good = 0, True
        expected = np.zeros(1000, np.uint8)
        raw = RawFile(tmp_path / f"{disk.fatal}")
        for _ in range(60):
            start, size = (int(number) for number in rng.integers((0, 1), (900, 100)))
            expected[start : start + size] = content = rng.integers(0, 256, size, np.uint8)
            raw.seek(start)
            raw.write(memoryview(content))
            start, size = (int(number) for number in rng.integers((0, 1), (900, 100)))
            found = bytearray(size)
            raw.seek(start)
            raw.readinto(memoryview(found))
            assert bytes(found) == expected[start : start + size].tobytes()
        if disk.fatal:
            with pytest.raises(OSError, match="Input/output"), closing(raw):
                pass
        else:
            raw.close()
            size = (tmp_path / "0").stat().st_size
            assert (tmp_path / "0").read_bytes() == expected[:size].tobytes()
            assert not expected[size:].any()


def test_room_that_was_not_needed_is_given_back(tmp_path):
    with closing(RawFile(tmp_path / "x", num_bytes=1_000_000)) as raw:
        assert (tmp_path / "x").stat().st_size == 1_000_000
        raw.write(memoryview(b"content"))
    assert (tmp_path / "x").read_bytes() == b"content"
