"""Unfinished shards: what of them survives, what the next process takes up, and what it never believes."""

from __future__ import annotations

import os
import random
import signal
import textwrap
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from support.command import PROJECT, python
from support.outcome import content

from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.shards import tile_writer, writer
from pipeline.shards.hdf5 import Output
from pipeline.shards.shard import open_shard
from pipeline.shards.tile_journal import Entry, TileJournal
from pipeline.shards.writer import ShardWriter, write_shard
from pipeline.system.run_folder import partial_of

Array = NDArray[Any]
NUM_ROWS, TILE = 45, 8  # 6 rows of tiles, 21 tiles
IDENTITY = {"config_hash": "abc", "step": 120, "batch_index": 0}


def symmetric(num_rows: int = NUM_ROWS) -> Array:
    matrix = np.random.default_rng(0).normal(size=(num_rows, num_rows))
    return matrix + matrix.T


MATRIX = symmetric()
DIRECTIONS = np.random.default_rng(1).normal(size=(NUM_ROWS, 2))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "batch-00000.h5"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile is recorded as soon as it is written."""
    monkeypatch.setattr(tile_writer, "RECORD_BYTES", 0)


def writing(path: Path, identity: dict[str, Any] | None = IDENTITY, **options: Any) -> Any:
    arguments = (
        Layout(("w",), ((NUM_ROWS,),)),
        "float64",
        {"loss": 0.5},
        np.arange(NUM_ROWS) / 7,
        TILE,
        DIRECTIONS,
    )
    return write_shard(path, *arguments, identity, **options)


def fill(writer: ShardWriter, stop: int = NUM_ROWS) -> int:
    """Hand over rows up to `stop`, three at a time, but those that are there; gives how many."""
    num_rows = 0
    for start in range(0, stop, 3):
        rows = slice(start, min(start + 3, stop))
        if writer.is_missing(rows, slice(0, NUM_ROWS)):
            writer.add(rows, slice(0, NUM_ROWS), MATRIX[rows])
            num_rows += rows.stop - rows.start
    return num_rows


def cut_short(path: Path, stop: int, error: type[BaseException] = KeyboardInterrupt, **options: Any) -> None:
    def body() -> None:
        with writing(path, **options) as writer:
            fill(writer, stop)
            raise error(28, "No space left on device")

    with pytest.raises(PipelineError if error is OSError else error):
        body()


def all_of(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    arrays: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: content(item)}))
        return {key: repr(value) for key, value in file.attrs.items()}, arrays


@pytest.fixture
def undisturbed(tmp_path: Path) -> tuple[Any, Array]:
    with writing(tmp_path / "other" / "batch-00000.h5") as writer:
        fill(writer)
        products = writer.products.copy()
    return all_of(tmp_path / "other" / "batch-00000.h5"), products


@pytest.mark.parametrize("stop", [0, 3, 9, 24, 44])
def test_what_was_cut_short_is_taken_up_and_ends_with_the_same_bits(
    path: Path, undisturbed: tuple[Any, Array], stop: int
) -> None:
    cut_short(path, stop)
    complete = stop // TILE
    num_tiles = complete * (complete + 1) // 2
    assert partial_of(path).exists() == (num_tiles > 0)
    with writing(path) as writer:
        assert (writer.num_there, writer.num_to_do) == (num_tiles, 21 - num_tiles)
        assert fill(writer) == NUM_ROWS - complete * TILE // 3 * 3
        assert np.array_equal(writer.products, undisturbed[1])
    assert all_of(path) == undisturbed[0]
    assert (
        path.stat().st_size <= (path.parent / "other" / path.name).stat().st_size + 4096
    )  # no room left over
    assert [entry.name for entry in path.parent.iterdir() if entry.is_file()] == [path.name]


def test_it_may_be_cut_short_again_and_again(path: Path, undisturbed: tuple[Any, Array]) -> None:
    for stop in (10, 10, 17, 30, 45):
        cut_short(path, stop)
    with writing(path) as writer:
        assert writer.num_to_do == 0
        assert np.array_equal(writer.products, undisturbed[1])
    assert all_of(path) == undisturbed[0]


@pytest.mark.parametrize("error", [RuntimeError, OSError, MemoryError, SystemExit])
def test_what_an_error_cuts_short_is_kept(path: Path, error: type[BaseException]) -> None:
    cut_short(path, 20, error)
    with writing(path) as writer:
        assert writer.num_there == 3
        fill(writer)


def test_a_matrix_that_is_refused_is_not_kept(path: Path, at_once: None) -> None:
    cut_short(path, 20, PipelineError)
    assert not list(path.parent.iterdir())
    matrix = MATRIX.copy()
    matrix[30, 2] = np.nan

    def write_it() -> None:
        with writing(path) as writer:
            writer.add(slice(0, NUM_ROWS), slice(0, NUM_ROWS), matrix)

    with pytest.raises(PipelineError, match="NaN or infinite entries"):
        write_it()
    assert not list(path.parent.iterdir())


def test_without_an_identity_nothing_is_kept(path: Path, at_once: None) -> None:
    cut_short(path, 20, identity=None)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("other", [{**IDENTITY, "config_hash": "abd"}, {**IDENTITY, "step": 121}, {}])
def test_tiles_of_another_identity_are_never_taken(path: Path, other: dict[str, Any]) -> None:
    cut_short(path, 44)
    with writing(path, other) as writer:
        assert writer.num_there == 0
        fill(writer)
    assert np.array_equal(open_shard(path).dense(), MATRIX)


def test_a_damaged_tile_is_made_again(path: Path, undisturbed: tuple[Any, Array]) -> None:
    cut_short(path, 44)
    with h5py.File(partial_of(path)) as file:
        chunk = file["matrix"].id.get_chunk_info(4)
    with partial_of(path).open("r+b") as file:
        file.seek(chunk.byte_offset + 17)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))
    with writing(path) as writer:
        assert (writer.num_there, writer.num_to_do) == (14, 7)
        fill(writer)
    shard = open_shard(path)
    assert np.array_equal(shard.dense(), MATRIX)
    assert all_of(path)[1] == undisturbed[0][1]


@pytest.mark.parametrize("damage", ["cut", "zeros", "gone", "not HDF5"])
def test_a_partial_file_that_cannot_be_used_is_begun_anew(path: Path, damage: str) -> None:
    cut_short(path, 44)
    partial = partial_of(path)
    size = partial.stat().st_size
    if damage == "gone":
        partial.unlink()
    elif damage == "cut":
        os.truncate(partial, size // 2)
    else:
        partial.write_bytes(bytes(size) if damage == "zeros" else b"text" * (size // 4))
    with writing(path) as writer:
        fill(writer)
    assert np.array_equal(open_shard(path).dense(), MATRIX)


def test_entries_of_tiles_that_never_were_written_are_not_believed(path: Path) -> None:
    cut_short(path, 9)
    [journal] = path.parent.glob("*.journal")
    own = TileJournal(journal, journal.read_text().partition("\n")[0])
    own.add([Entry(4, 1, 0), Entry(5, 5, 12345), Entry(40, 2, 7)])
    with writing(path) as writer:
        assert writer.num_there == 1
        fill(writer)
    assert np.array_equal(open_shard(path).dense(), MATRIX)


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_at_any_moment_loses_no_recorded_tile(
    path: Path, undisturbed: tuple[Any, Array], seed: int
) -> None:
    """SIGKILL from within, in the middle of what the threads do."""
    program = f"""
        import os, signal, sys, threading, time
        sys.path.insert(0, {str(PROJECT / "tests")!r})
        from pathlib import Path
        from pipeline.shards import tile_writer
        from shards.test_writer import fill, writing
        tile_writer.RECORD_BYTES = 0
        delay = float(sys.argv[1])
        with writing(Path({str(path)!r})) as writer:
            threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGKILL))).start()
            fill(writer, 30)
            time.sleep(10)
    """
    chance = random.Random(seed)
    for _ in range(2):
        killed = python("-c", textwrap.dedent(program), chance.random() * 0.05)
        assert killed.returncode == -signal.SIGKILL
        assert not path.exists()
    journals = list(path.parent.glob("*.journal"))
    recorded = journals[0].read_bytes().count(b"\n") - 1 if journals else 0
    with writing(path) as writer:
        assert writer.num_there >= recorded
        fill(writer)
        assert np.array_equal(writer.products, undisturbed[1])
    assert all_of(path) == undisturbed[0]


def test_a_part_holds_its_tiles_alone(path: Path) -> None:
    part = [(4, j) for j in range(5)] + [(5, 2)]
    with writing(path, part=part) as writer:
        assert (writer.num_there, writer.num_to_do) == (0, 6)
        assert not writer.is_missing(slice(0, 32), slice(0, 32))
        assert writer.is_missing(slice(0, 8), slice(32, 40))  # the mirror image of (4, 0)
        fill(writer)
    found = dict(open_shard(path).tiles(part))
    assert np.array_equal(found[5, 2], MATRIX[40:, 16:24])
    with h5py.File(path) as file:
        assert file["matrix"].id.get_num_chunks() == 6
        assert np.count_nonzero(file["checksums"][:]) == 6


def test_writing_goes_on_beside_computing_and_waits_for_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more tiles lie in memory than the queue takes, however slow the disk is."""
    monkeypatch.setattr(tile_writer, "QUEUE_BYTES", 3 * TILE**2 * 8)
    gate, write, made = threading.Semaphore(0), Output.write_chunk, []

    def slow(*arguments: Any) -> None:
        gate.acquire()
        write(*arguments)

    monkeypatch.setattr(Output, "write_chunk", slow)
    monkeypatch.setattr(writer.ShardWriter, "_begin", watched(made, writer.ShardWriter._begin))

    def compute() -> None:
        with writing(path) as writer:
            fill(writer)

    thread = threading.Thread(target=compute)
    thread.start()
    while len(made) < 4:  # of the first rows, though none is written
        pass
    thread.join(0.2)
    assert thread.is_alive()
    assert len(made) <= 10  # three wait, one is written, one is handed over, and a row of tiles is begun
    for _ in range(21):
        gate.release()
    thread.join()
    assert np.array_equal(open_shard(path).dense(), MATRIX)


def watched(seen: list[Any], function: Any) -> Any:
    def call(*arguments: Any) -> Any:
        seen.append(arguments)
        return function(*arguments)

    return call


def test_a_kill_between_two_writes_of_a_flush_loses_no_recorded_tile(
    path: Path, undisturbed: tuple[Any, Array], at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes half of one write and nothing after it, as if the process were killed there."""
    write, writes = os.pwrite, list[int]()

    def dying(handle: int, content: memoryview, offset: int) -> int:
        writes.append(offset)
        if len(writes) > at:
            write(handle, content[: len(content) // 2 if len(writes) == at + 1 else 0], offset)
            raise KeyboardInterrupt
        return write(handle, content, offset)

    for at in range(60):
        writes.clear()
        cut_short(path, 9)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", dying)
            cut_short(path, 30)
        [journal] = path.parent.glob("*.journal")
        recorded = journal.read_bytes().count(b"\n") - 1
        assert recorded >= 1
        with writing(path) as writer:
            assert writer.num_there >= recorded
            fill(writer)
            assert np.array_equal(writer.products, undisturbed[1])
        assert all_of(path) == undisturbed[0]
        assert [entry.name for entry in path.parent.iterdir() if entry.is_file()] == [path.name]
        path.unlink()
        if len(writes) <= at:
            break
    assert at > 6
