from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import DamagedFile, PipelineError
from pipeline.hdf5 import read_arrays, read_results, sound_results, write_results
from pipeline.layout import Layout
from pipeline.shards import FORMAT_VERSION, Shard, mirrored, open_shard, write_shard
from pipeline.tile_stream import TileStream

Array = NDArray[Any]
ROOT = Path(__file__).parents[1]
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "step-000120" / "batch-00000.h5"


@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 9, 16, 23, 24, 25])
@pytest.mark.parametrize("tile", [1, 5, 8, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_read_is_what_was_written(path: Path, num_rows: int, tile: int, dtype: str) -> None:
    matrix = symmetric(num_rows, dtype)
    shard = open_shard(write(path, matrix, tile))
    assert np.array_equal(shard.dense(), matrix)
    assert shard.dense().dtype == shard.dtype == np.dtype(dtype)
    assert shard.tile == min(tile, num_rows)
    assert shard.num_rows == num_rows
    assert np.array_equal(shard.gradient, gradient_of(num_rows))
    assert shard.parameters == layout_of(num_rows)


def rectangles(num_rows: int, rng: np.random.Generator) -> list[tuple[slice, slice]]:
    """A random grid's cells that touch the lower triangle, in random order."""
    row_cuts, column_cuts = (
        [0, *sorted(rng.choice(np.arange(1, num_rows), size=rng.integers(0, 6), replace=False)), num_rows]
        for _ in range(2)
    )
    spans = [[slice(*pair) for pair in pairwise(cuts)] for cuts in (row_cuts, column_cuts)]
    cells = [(rows, cols) for rows in spans[0] for cols in spans[1] if cols.start < rows.stop]
    rng.shuffle(cells)
    return [(slice(int(r.start), int(r.stop)), slice(int(c.start), int(c.stop))) for r, c in cells]


@pytest.mark.parametrize("seed", range(40))
def test_blocks_may_be_any_rectangles_in_any_order(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(7, 40))
    matrix = symmetric(num_rows, seed=seed)
    above = np.where(np.tri(num_rows, dtype=bool), matrix, rng.choice([1e9, np.nan]))
    with writing(path, matrix, int(rng.integers(3, 12))) as writer:
        for rows, cols in rectangles(num_rows, rng):
            writer.add(rows, cols, above[rows, cols])
    assert np.array_equal(open_shard(path).dense(), matrix)


def test_rows_one_by_one_and_whole_tiles(path: Path) -> None:
    matrix = symmetric(19)
    with writing(path, matrix) as writer:
        for i in range(19):
            writer.add(slice(i, i + 1), slice(0, i + 1), matrix[i : i + 1, : i + 1])
    copy = path.with_name("batch-00001.h5")
    shard = open_shard(path)
    with writing(copy, matrix) as writer:
        for tile, values in shard.tiles():
            padded = np.full((8, 8), np.nan)
            padded[: values.shape[0], : values.shape[1]] = values
            writer.put(tile, padded)
    assert np.array_equal(open_shard(copy).dense(), matrix)


def test_memory_is_the_tiles_that_are_begun(path: Path) -> None:
    matrix = symmetric(40)
    with writing(path, matrix) as writer:
        for i in range(40):
            writer.add(slice(i, i + 1), slice(0, 40), matrix[i : i + 1])
            assert len(writer._begun) <= 5
        assert not writer._begun


def test_any_hdf5_tool_reads_the_lower_triangle_and_nan_above(path: Path) -> None:
    matrix = symmetric(23)
    write(path, matrix)
    with h5py.File(path) as file:
        found, triangle = file["matrix"][:], file["matrix"].attrs["triangle"]
        assert file["matrix"].shape == (23, 23)
        assert np.isnan(file["matrix"].fillvalue)
    lower = np.tri(23, dtype=bool)
    assert triangle == "lower"
    assert np.array_equal(found[lower], matrix[lower])
    assert np.isnan(found[~lower]).all()


@pytest.mark.parametrize("what", ["attribute", "gradient", "checksums", "names"])
def test_what_is_altered_beside_the_tiles_is_found(path: Path, what: str) -> None:
    write(path, symmetric(23))
    with h5py.File(path, "r+") as file:
        if what == "attribute":
            file.attrs["loss"] = np.nextafter(file.attrs["loss"], 1)
        elif what == "gradient":
            file["gradient"][3] = np.nextafter(file["gradient"][3], 1)
        elif what == "checksums":
            file["checksums"][1, 0] += 1
        else:
            file["parameters/names"][1] = "net.other"
    with pytest.raises(PipelineError, match=r"damaged \(its attributes or gradient"):
        open_shard(path)


def test_attributes_and_names(path: Path) -> None:
    write(path, symmetric(23), step=120, batch_index=3, config_hash="abc", none_is_text="")
    shard = open_shard(path)
    expected = {**ATTRS, "step": 120, "batch_index": 3, "config_hash": "abc", "none_is_text": ""}
    own = {"format_version": FORMAT_VERSION, "dtype": "float64", "complete": True, "blocks": "all"}
    assert shard.attrs == {**expected, **own, "checksum": shard.attrs["checksum"]}
    assert {name: type(value) for name, value in shard.attrs.items() if name in ATTRS} == {
        name: type(value) for name, value in ATTRS.items()
    }
    json.dumps(shard.attrs)
    with h5py.File(path) as file:
        assert list(file["parameters/names"].asstr()[:]) == ["net.weight", "net.bias", "scale"]
        assert list(file["parameters/shapes"].asstr()[:]) == ["[20, 1]", "[2]", "[]"]
        assert list(file["parameters/offsets"][:]) == [0, 20, 22, 23]
        assert file["checksums"].shape == (3, 3)


def test_older_readers_are_kept_in_mind(path: Path) -> None:
    """HDF5 1.10 reads superblocks up to version 3; a newer one here would shut it out."""
    assert write(path, symmetric(9)).read_bytes()[8] <= 3


def test_size_is_little_over_half_of_the_dense_one(path: Path) -> None:
    write(path, symmetric(1100, "float32"), tile=64)
    num_tiles = 18 * 19 // 2
    tiles = num_tiles * 64 * 64 * 4
    assert tiles < path.stat().st_size < tiles + 60_000
    assert path.stat().st_size < 0.6 * 1100**2 * 4


def test_shape_of_tiles(path: Path) -> None:
    matrix = symmetric(19)
    shard = open_shard(write(path, matrix))
    found = dict(shard.tiles())
    assert list(found) == shard.tile_indices() == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert found[1, 0].shape == (8, 8)
    assert found[2, 1].shape == (3, 8)
    assert found[2, 2].shape == (3, 3)
    assert np.isnan(found[2, 2][np.triu_indices(3, 1)]).all()
    assert np.array_equal(mirrored(found[2, 2]), matrix[16:, 16:])
    assert [index for index, _ in shard.tiles([(2, 0), (1, 1)])] == [(2, 0), (1, 1)]


@pytest.mark.parametrize("shape", [(23,), (23, 1), (23, 5)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matvec_is_the_product_of_the_dense_matrix(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    matrix, vectors = symmetric(23, dtype), np.random.default_rng(1).normal(size=shape)
    product = open_shard(write(path, matrix)).matvec(vectors)
    assert product.shape == shape
    assert product.dtype == np.float64
    assert np.abs(product - matrix.astype("float64") @ vectors).max() < 1e-13


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("span", [None, slice(0, 1), slice(5, 90), slice(64, 100)])
def test_matvec_of_many_tiles_has_the_same_bits_on_any_number_of_threads(
    path: Path, dtype: str, span: slice | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors of the matrix's dtype are multiplied in it, and summed up in float64."""
    matrix = symmetric(100, dtype)
    shard = open_shard(write(path, matrix))
    rows = span or slice(0, 100)
    vectors = np.random.default_rng(1).normal(size=(rows.stop - rows.start, 3)).astype(dtype)
    expected = matrix[rows, rows].astype("float64") @ vectors.astype("float64")
    products = []
    for num_threads, many in ((1, 1), (3, 1), (1, 10**6)):
        monkeypatch.setattr("pipeline.multiply._num_threads", lambda n=num_threads: n)
        monkeypatch.setattr("pipeline.multiply.MANY_TILES", many)
        products.append(shard.matvec(vectors, span))
    assert products[0].dtype == np.float64
    assert np.abs(products[0] - expected).max() < (1e-12 if dtype == "float64" else 3e-5)
    assert np.array_equal(products[0], products[1])
    assert np.array_equal(products[0], products[2])


def test_rows_and_blocks_by_slices_and_names(path: Path) -> None:
    matrix = symmetric(23)
    shard = open_shard(write(path, matrix))
    assert np.array_equal(shard.rows(5, 17), matrix[5:17])
    assert np.array_equal(shard.rows(22, 23), matrix[22:])
    assert np.array_equal(shard.block("net.bias", "net.weight"), matrix[20:22, :20])
    assert np.array_equal(shard.block("net.weight", slice(3, 9)), matrix[:20, 3:9])
    assert np.array_equal(shard.block(slice(None), slice(-3, None)), matrix[:, 20:])
    assert shard.block("scale", "scale").shape == (1, 1)
    with pytest.raises(PipelineError, match=r"has no parameter 'bias': it has net\.weight, net\.bias, scale"):
        shard.block("bias", "scale")
    for wrong in (slice(0, 24), slice(9, 3), slice(0, 10, 2)):
        with pytest.raises(PipelineError, match=r"has no rows slice.*: give a slice within 0 to 23"):
            shard.block(wrong, slice(0, 3))


@pytest.mark.parametrize("tiles_per_chunk", [1, 2, 5])
def test_a_shard_as_a_dask_array(path: Path, tiles_per_chunk: int) -> None:
    matrix = symmetric(23)
    lazy = open_shard(write(path, matrix)).as_dask(tiles_per_chunk)
    assert lazy.shape == (23, 23)
    assert lazy.dtype == matrix.dtype
    assert lazy.chunks[0][0] == min(8 * tiles_per_chunk, 23)
    with dask.config.set(scheduler="threads"):
        assert np.array_equal(lazy.compute(), matrix)
        assert np.array_equal(lazy[3:20, 7].compute(), matrix[3:20, 7])
        assert float(lazy.trace().compute()) == pytest.approx(np.trace(matrix), rel=1e-13)
    alter(path, tile_bytes(path)[0][0], b"12345678")
    with (
        pytest.raises(PipelineError, match="does not match its checksum"),
        dask.config.set(scheduler="threads"),
    ):
        lazy.compute()


def test_an_open_shard_can_be_handed_to_another_process(path: Path) -> None:
    matrix = symmetric(23)
    shard = pickle.loads(pickle.dumps(open_shard(str(write(path, matrix)))))
    assert isinstance(shard, Shard)
    assert np.array_equal(shard.dense(), matrix)
    assert np.array_equal(shard.gradient, gradient_of(23))


def tile_bytes(path: Path) -> list[tuple[int, int]]:
    """Where each tile lies in the file: (offset, number of bytes)."""
    with h5py.File(path) as file:
        chunks = (file["matrix"].id.get_chunk_info(k) for k in range(file["matrix"].id.get_num_chunks()))
        return [(chunk.byte_offset, chunk.size) for chunk in chunks]


def alter(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


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
        PipelineError, match=r"has format version 2, this program reads up to 1: use a newer program"
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
    for name in ("nothing.h5", "."):
        with pytest.raises(PipelineError, match="no such file"):
            open_shard(tmp_path / name)


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
        PipelineError, match=r"NaN or infinite entries \(near row \d+, column \d+\): .*dtype=float64"
    ):
        write(path, matrix)
    assert not list(path.parent.iterdir())


def run_without_room(room: int, body: str) -> subprocess.CompletedProcess[str]:
    """The body in a process whose files may not grow beyond `room` bytes, which is a full disk to every library."""
    program = f"""
        import resource, signal
        from pathlib import Path
        import numpy as np
        from pipeline.errors import PipelineError
        from pipeline.layout import Layout
        from pipeline.hdf5 import write_results
        from pipeline.shards import write_shard
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
        try:
            {body}
        except PipelineError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("room", [0, 1_000, 20_000, 50_000, 75_000])
def test_no_room_leaves_nothing_behind_and_keeps_what_was_there(path: Path, room: int) -> None:
    """The file takes 76,000 bytes; the system refuses at the first write, in between, or on closing.

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
    assert 75_000 < write(path, new).stat().st_size < 85_000
    assert np.array_equal(open_shard(path).dense(), new)


def test_an_error_of_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TileStream, "_store", fail)
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
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    matrix = symmetric(19)
    assert np.array_equal(open_shard(write(path, matrix)).dense(), matrix)
    assert [entry.name for entry in path.parent.iterdir()] == ["batch-00000.h5"]


def test_reading_shards_needs_no_torch() -> None:
    program = "import sys, pipeline.shards; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_results_keep_numbers_arrays_and_texts(tmp_path: Path) -> None:
    attrs = {"step": 120, "loss": 0.25, "spectrum": "exact", "complete": True}
    arrays = {
        "mean/eigenvalues": np.linspace(-1, 5, 9),
        "batches/num_samples": np.array([5, 5, 1]),
        "parameters/names": ["fc1.weight", "größe"],
        "parameters/shapes": np.array(["(16, 1)", "()"]),
        "layers/fc1.weight/eigenvalues": np.zeros((0,), np.float32),
        "scalar": 3.5,
    }
    write_results(tmp_path / "spectra" / "step-000120.h5", attrs, arrays)
    found = read_results(tmp_path / "spectra" / "step-000120.h5")
    assert found.attrs == attrs
    assert all(type(found.attrs[name]) is type(value) for name, value in attrs.items())
    assert found.arrays.keys() == arrays.keys()
    for name, values in arrays.items():
        assert np.array_equal(found.arrays[name], values)
    assert all(isinstance(name, str) for name in found.arrays["parameters/names"])
    assert found.arrays["layers/fc1.weight/eigenvalues"].dtype == np.float32
    assert [entry.name for entry in (tmp_path / "spectra").iterdir()] == ["step-000120.h5"]


def test_results_with_a_flipped_bit_are_found(tmp_path: Path) -> None:
    path = tmp_path / "step-000120.h5"
    attrs = {"step": 120, "loss": 0.25, "spectrum": "exact", "whole": True}
    arrays = {"mean/eigenvalues": np.linspace(-1, 5, 900), "parameters/names": np.array(["fc1", "größe"])}
    write_results(path, attrs, arrays)
    content, chance, told = path.read_bytes(), np.random.default_rng(0), list[str]()
    for _ in range(200):
        altered = bytearray(content)
        altered[chance.integers(len(content))] ^= 1 << chance.integers(8)
        path.write_bytes(altered)
        with pytest.raises(DamagedFile) as found:
            read_results(path)
        told.append(str(found.value))
    assert all(re.fullmatch(r"\S+ is damaged \(.+\): delete it and run again, .*", line) for line in told)


def test_results_of_earlier_versions_have_no_seal(tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    write_results(path, {"step": 120}, {"x": np.ones(3)})
    sealed = path.stat().st_size
    with h5py.File(path, "r+") as file:  # another program that changes it cuts the seal off
        file["x"][0] = 2
    assert path.stat().st_size == sealed - 40
    assert read_results(path).arrays["x"][0] == 2


def test_results_that_are_damaged_are_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "step-000120.h5"
    assert sound_results(path) is None
    write_results(path, {"step": 120}, {"x": np.ones(3)})
    altered = path.read_bytes().replace(np.ones(3).tobytes(), np.array([1.0, 1.0, 2.0]).tobytes())
    path.write_bytes(altered)
    assert sound_results(path) is None
    assert caplog.messages == [
        f"{path} is damaged (it is not what was written): it is now {path.name}.damaged; it is made again."
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == [f"{path.name}.damaged"]
    assert (tmp_path / f"{path.name}.damaged").read_bytes() == altered


def test_results_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "step-000120.h5"
    write_results(target, {"step": 120}, {"x": np.ones(3)})
    ended = run_without_room(
        5_000, f'write_results(Path({str(target)!r}), {{"step": 121}}, {{"x": np.ones(3000)}})'
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(r".*\.h5 could not be written \(.*\): make room .* is kept\.\n", ended.stdout)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000120.h5"]
    assert read_results(target).attrs == {"step": 120}


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
