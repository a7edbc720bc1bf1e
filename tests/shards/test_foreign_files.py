"""Files of somebody else: each is said to be no shard in one line, and is neither moved nor to be deleted."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.command import python
from support.report_cases import spectra
from support.shard_cases import known, write
from support.shard_files import symmetric
from support.shard_files import write as write_shard_file

import pipeline
from pipeline.cluster import Threads
from pipeline.config.schema import settings_of
from pipeline.errors import DamagedFile, PipelineError
from pipeline.report.recorder import RunRecorder
from pipeline.run.stages import aggregate
from pipeline.spectrum import Exact
from pipeline.system.run_folder import RunFolder
from pipeline.tracking import NoTracking


def png() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        told = kind + content
        return struct.pack(">I", len(content)) + told + struct.pack(">I", zlib.crc32(told))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0\0"))
        + chunk(b"IEND", b"")
    )


def his_hdf5(path: Path, **attrs: object) -> None:
    with h5py.File(path, "w") as file:
        file.attrs.update(attrs)
        file["x"] = np.arange(3.0)


def make(kind: str, path: Path) -> Path:
    """A file of a kind at a path."""
    if kind == "npz":
        np.savez(path.with_suffix(".npz"), x=np.arange(3))
        path.with_suffix(".npz").rename(path)
    elif kind == "png":
        path.write_bytes(png())
    elif kind == "csv":
        path.write_text("step,loss\n1,0.5\n")
    elif kind == "empty":
        path.touch()
    elif kind == "hdf5":
        his_hdf5(path)
    elif kind == "hdf5 with a version of its own":
        his_hdf5(path, format_version="1.0.3")
        with h5py.File(path, "r+") as file:
            file["matrix"] = np.eye(3)
    elif kind == "hdf5 with a matrix":
        his_hdf5(path, format_version=1)
        with h5py.File(path, "r+") as file:
            file["matrix"] = np.eye(3)
    elif kind == "hdf5 with a group of that name":
        his_hdf5(path, format_version=1)
        with h5py.File(path, "r+") as file:
            file["matrix/data"] = np.eye(3)
    elif kind == "hdf5 with a user block":
        with h5py.File(path, "w", userblock_size=512) as file:
            file["x"] = 1
    elif kind == "hdf5 with something behind it":
        his_hdf5(path)
        path.write_bytes(path.read_bytes() + b"a signature")
    elif kind == "hdf5 cut short":
        his_hdf5(path)
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "netcdf":
        with h5py.File(path, "w", libver="latest") as file:
            file.attrs["_NCProperties"] = "version=2"
            file["temperature"] = np.zeros(4)
    elif kind == "spectra":
        spectra(num_layers=1).write(path)
    return path


KINDS = (
    "npz",
    "png",
    "csv",
    "empty",
    "hdf5",
    "hdf5 with a version of its own",
    "hdf5 with a matrix",
    "hdf5 with a group of that name",
    "hdf5 with a user block",
    "hdf5 with something behind it",
    "hdf5 cut short",
    "netcdf",
    "spectra",
)
EVERY = pytest.mark.parametrize("kind", KINDS)


verify = partial(python, "-m", "pipeline.shards", "verify")


def check_line(line: str, path: Path) -> None:
    assert line.startswith(f"{path} is not a shard")
    assert "\n" not in line.rstrip("\n")
    for word in ("delete", "run again", "recompute", "Traceback"):
        assert word not in line


@EVERY
@pytest.mark.parametrize("name", ["good.npz", "step-000120/notes.h5", "step-000120/batch-notes.h5"])
def test_a_file_that_is_no_shard_is_said_to_be_none(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    path = make(kind, tmp_path / name)
    before = path.read_bytes()
    with pytest.raises(PipelineError) as caught:
        pipeline.open_shard(path)
    check_line(str(caught.value), path)
    assert not isinstance(caught.value, DamagedFile)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["npz", "empty", "hdf5", "spectra"])
def test_verify_says_so_too(tmp_path: Path, kind: str) -> None:
    path = make(kind, tmp_path / "good.npz")
    done = verify(path)
    assert (done.returncode, done.stdout) == (1, "")
    check_line(done.stderr, path)


def test_a_spectra_file_is_told_as_one(tmp_path: Path) -> None:
    path = make("spectra", tmp_path / "step-000003.h5")
    with pytest.raises(
        PipelineError, match=r"not a shard but a spectra file: pipeline\.open_run\(FOLDER\)\.spectra"
    ):
        pipeline.open_shard(path)


def test_a_folder_is_no_shard(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"is a folder, not a shard: pipeline\.open_run\(FOLDER\)"):
        pipeline.open_shard(tmp_path)


@EVERY
def test_verify_leaves_foreign_files_in_a_run_folder_where_they_are(tmp_path: Path, kind: str) -> None:
    """Beside whole shards, and one that is damaged, which alone is set aside."""
    folder = RunFolder(tmp_path / "run")
    write(folder, known())
    foreign = make(kind, folder.shard(120, 0).with_name("a-notes.h5"))
    before = foreign.read_bytes()
    os.truncate(folder.shard(120, 1), 3000)
    done = verify(folder.path)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    check_line(first, foreign)
    assert second.startswith(f"{folder.shard(120, 1)} is damaged (")
    assert foreign.read_bytes() == before
    assert sorted(path.name for path in foreign.parent.iterdir()) == [
        "a-notes.h5",
        "batch-00000.h5",
        "batch-00001.h5.damaged",
        "batch-00002.h5",
    ]


def test_aggregation_refuses_a_foreign_file_among_shards_and_leaves_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    write(folder, known())
    foreign = make("npz", folder.shard(120, 0).with_name("batch-mine.h5"))
    with NoTracking().start(folder, "", {}, {}, None) as tracked, pytest.raises(PipelineError) as caught:
        aggregate(RunRecorder(folder, tracked), Exact(), Threads(1), None)
    check_line(str(caught.value), foreign)
    assert foreign.exists()


def test_a_shard_that_is_damaged_is_still_said_to_be(tmp_path: Path) -> None:
    """By what is in it, wherever it lies."""
    path = write_shard_file(tmp_path / "mine.h5", symmetric(19))
    with h5py.File(path, "r+") as file:
        file.attrs["loss"] = 7.0
    with pytest.raises(DamagedFile, match="is damaged"):
        pipeline.open_shard(path)


@EVERY
def test_a_file_is_neither_a_run_nor_a_sweep(tmp_path: Path, kind: str) -> None:
    path = make(kind, tmp_path / "file")
    for opened, what in ((pipeline.open_run, "a run folder"), (pipeline.open_sweep, "the folder of a sweep")):
        with pytest.raises(PipelineError) as caught:
            opened(path)
        assert str(caught.value).startswith(f"{path} is not {what}: it is a file")
        assert "delete" not in str(caught.value)


def test_what_is_neither_file_nor_folder_is_neither() -> None:
    for opened in (pipeline.open_shard, pipeline.open_run, pipeline.open_sweep):
        with pytest.raises(PipelineError, match=r"^/dev/null(:| is not)") as caught:
            opened("/dev/null")
        assert "delete" not in str(caught.value)


def test_folders_of_somebody_else_are_neither(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults: [_self_]\nlearning: 3\n")
    (tmp_path / "sweep.json").write_text(json.dumps({"method": "grid"}))
    for opened, what in ((pipeline.open_run, "a run folder"), (pipeline.open_sweep, "the folder of a sweep")):
        with pytest.raises(PipelineError) as caught:
            opened(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path} is not {what}")
        assert "delete" not in str(caught.value)
    with pytest.raises(PipelineError, match=r"config\.yaml is not that of a run: choose another folder"):
        settings_of(RunFolder(tmp_path))
    shutil.rmtree(tmp_path)
    for opened in (pipeline.open_run, pipeline.open_sweep):
        with pytest.raises(PipelineError, match=f"^{tmp_path} is not "):
            opened(tmp_path)
