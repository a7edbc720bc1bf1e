"""Shards that are damaged, and writes that fail or are cut short: nothing wrong is read, nothing half is left."""

from __future__ import annotations

import os
import re
import signal
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.command import python
from support.shard_files import alter, run_without_room, symmetric, tile_bytes, write, writing

from pipeline.errors import PipelineError
from pipeline.shards import open_shard
from pipeline.shards.hdf5 import Output
from pipeline.shards.writer import FORMAT_VERSION


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "step-000120" / "batch-00000.h5"


@pytest.mark.parametrize("seed", range(50))
def test_a_flipped_bit_in_a_tile_is_found(path: Path, seed: int) -> None:
    write(path, symmetric(19))
    rng = np.random.default_rng(seed)
    start, size = tile_bytes(path)[rng.integers(6)]
    offset = start + int(rng.integers(size))
    alter(path, offset, bytes([path.read_bytes()[offset] ^ 1 << int(rng.integers(8))]))
    shard = open_shard(path)
    with pytest.raises(
        PipelineError, match=r"damaged \(tile \(\d, \d\) does not match its checksum\): delete it and run"
    ):
        shard.dense()
    with pytest.raises(PipelineError, match="checksum"):
        shard.matvec(np.ones(19))


@pytest.mark.parametrize("which", range(6))
def test_a_tile_of_zeros_is_found(path: Path, which: int) -> None:
    write(path, symmetric(19))
    offset, size = tile_bytes(path)[which]
    alter(path, offset, bytes(size))
    with pytest.raises(PipelineError, match="checksum"):
        open_shard(path).dense()


def test_two_tiles_that_changed_places_are_found(path: Path) -> None:
    write(path, symmetric(19))
    content, ((one, size), (two, _), *_) = path.read_bytes(), tile_bytes(path)
    alter(path, one, content[two : two + size])
    alter(path, two, content[one : one + size])
    with pytest.raises(PipelineError, match="checksum"):
        open_shard(path).dense()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.3, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_found(path: Path, kept: float) -> None:
    write(path, symmetric(40))
    size = path.stat().st_size
    os.truncate(path, kept if isinstance(kept, int) else int(kept * size))
    with pytest.raises(PipelineError, match=r"batch-00000\.h5 is damaged .*: delete it and run again"):
        open_shard(path).dense()


@pytest.mark.parametrize("name", ["checksums", "gradient", "parameters/names"])
def test_a_missing_part_is_found(path: Path, name: str) -> None:
    write(path, symmetric(19))
    with h5py.File(path, "r+") as file:
        del file[name]
    with pytest.raises(PipelineError, match="is damaged"):
        (shard := open_shard(path)).dense(), shard.gradient


def test_a_newer_format(path: Path) -> None:
    write(path, symmetric(7))
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = FORMAT_VERSION + 1
    with pytest.raises(
        PipelineError, match=r"has format version 3, this program reads up to 2: use a newer program"
    ):
        open_shard(path)


def test_an_incomplete_shard(path: Path) -> None:
    write(path, symmetric(7))
    with h5py.File(path, "r+") as file:
        file.attrs["complete"] = False
    with pytest.raises(PipelineError, match=r"damaged .*never completed"):
        open_shard(path)


def test_files_that_are_no_shards(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    (tmp_path / "text.h5").write_text("not HDF5")
    (tmp_path / "empty.h5").touch()
    with pytest.raises(PipelineError, match=r"other\.h5 is not a shard"):
        open_shard(tmp_path / "other.h5")
    for name in ("text.h5", "empty.h5"):
        with pytest.raises(PipelineError, match="HDF5 cannot open it"):
            open_shard(tmp_path / name)
    with pytest.raises(PipelineError, match="no such file"):
        open_shard(tmp_path / "nothing.h5")
    with pytest.raises(PipelineError, match="is a folder, not a shard"):
        open_shard(tmp_path)


@pytest.mark.parametrize("missing", range(6))
def test_a_missing_tile_is_not_written_off(path: Path, missing: int) -> None:
    matrix = symmetric(19)
    spans = [slice(0, 8), slice(8, 16), slice(16, 19)]
    tiles = [(rows, cols) for i, rows in enumerate(spans) for cols in spans[: i + 1]]
    del tiles[missing]

    def write_the_others() -> None:
        with writing(path, matrix) as writer:
            for rows, cols in tiles:
                writer.add(rows, cols, matrix[rows, cols])

    with pytest.raises(ValueError, match="1 of 6 tiles of the triangle were never filled"):
        write_the_others()
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("entry", [(0, 0), (18, 18), (18, 17), (9, 3)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_entry_that_is_not_finite(path: Path, entry: tuple[int, int], value: float) -> None:
    matrix = symmetric(19)
    matrix[entry] = value
    with pytest.raises(
        PipelineError, match=r"NaN or infinite entries \(near row \d+, column \d+\): look at the loss [^=]*$"
    ):
        write(path, matrix)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("room", [0, 1_000, 20_000, 50_000, 68_000])
def test_no_room_leaves_nothing_behind_and_keeps_what_was_there(path: Path, room: int) -> None:
    """The file takes 69,000 bytes; the system refuses at the first write, in between, or on closing.

    A tile that does not fit ends the work there and then, lest hours of it be lost.
    """
    old, new = symmetric(9), symmetric(120, seed=1)
    write(path, old)
    end = "print('computed on')" if room < 60_000 else "pass"
    target = f"Path({str(path)!r}), Layout(('w',), ((120,),)), 'float64', {{}}, np.ones(120), 8"
    body = f"""with write_shard({target}) as writer:
                writer.add(slice(0, 120), slice(0, 120), np.eye(120))
                {end}"""
    ended = run_without_room(room, body)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(r".*\.h5 could not be written \(.*\): make room .* is kept\.\n", ended.stdout)
    assert [entry.name for entry in path.parent.iterdir()] == ["batch-00000.h5"]
    assert np.array_equal(open_shard(path).dense(), old)
    assert 68_000 < write(path, new).stat().st_size < 75_000
    assert np.array_equal(open_shard(path).dense(), new)


def test_an_error_of_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Output, "write_chunk", fail)
    with pytest.raises(PipelineError, match=r"could not be written \(No space left on device\)"):
        write(path, symmetric(9))
    assert not list(path.parent.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match="could not be written"):
        write(tmp_path / "file" / "batch-00000.h5", symmetric(9))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_write_leaves_no_file(path: Path, interruption: type[BaseException]) -> None:
    matrix = symmetric(19)

    def write_a_tile() -> None:
        with writing(path, matrix) as writer:
            writer.add(slice(0, 8), slice(0, 8), matrix[:8, :8])
            raise interruption

    with pytest.raises(interruption):
        write_a_tile()
    assert not list(path.parent.iterdir())


def test_a_killed_write_leaves_no_file_of_that_name(path: Path) -> None:
    program = f"""
        import os, signal, numpy as np
        from pathlib import Path
        from pipeline.layout import Layout
        from pipeline.shards import write_shard
        with write_shard(Path({str(path)!r}), Layout(("w",), ((19,),)), "float64", {{}}, np.zeros(19), 8) as writer:
            writer.add(slice(0, 16), slice(0, 16), np.ones((16, 16)))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert python("-c", textwrap.dedent(program)).returncode == -signal.SIGKILL
    assert not path.exists()
    matrix = symmetric(19)
    assert np.array_equal(open_shard(write(path, matrix)).dense(), matrix)
    assert [entry.name for entry in path.parent.iterdir()] == ["batch-00000.h5"]
