"""`python -m pipeline.shards verify`, and what a run makes of damaged shards."""

from __future__ import annotations

import os
import pickle
from functools import partial
from pathlib import Path

import h5py
import pytest
import torch
from support.command import python
from support.shard_cases import known, write
from torch import nn

from pipeline.cluster import Threads
from pipeline.compute.stage import compute_step
from pipeline.criterion import SquaredError
from pipeline.errors import DamagedFile, PipelineError
from pipeline.experiment.experiment import MatrixSpec
from pipeline.matrix import Hessian
from pipeline.objective.batch import Batch
from pipeline.objective.problem import Problem
from pipeline.report.recorder import RunRecorder
from pipeline.run.stages import aggregate
from pipeline.spectrum import Exact
from pipeline.strategy import HVP
from pipeline.system.run_folder import RunFolder
from pipeline.tracking import NoTracking


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Three whole shards."""
    folder = RunFolder(tmp_path / "run")
    write(folder, known())
    return folder


def damage(path: Path) -> bytes:
    """Flip one bit of a tile; gives the content before."""
    with h5py.File(path) as file:
        chunk = file["matrix"].id.get_chunk_info(2)
    content = path.read_bytes()
    altered = bytearray(content)
    altered[chunk.byte_offset + chunk.size // 3] ^= 16
    path.write_bytes(altered)
    return content


verify = partial(python, "-m", "pipeline.shards", "verify")


def test_whole_shards_are_said_to_be(folder: RunFolder) -> None:
    done = verify(folder.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{folder.path}: every tile is what was written.\n"
    assert verify(folder.shard(120, 1)).returncode == 0
    assert verify(folder.path.parent).returncode == 0


def test_what_is_damaged_is_told_in_a_line_each_and_set_aside(folder: RunFolder) -> None:
    paths = folder.shard_paths(120)
    damage(paths[0])
    os.truncate(paths[2], 5000)
    for look in (verify(folder.path, "--only-look"), verify(folder.path)):
        assert (look.returncode, look.stdout) == (1, "")
        first, last = look.stderr.splitlines()
        assert first.startswith(f"{paths[0]} is damaged (tile (")
        assert last.startswith(f"{paths[2]} is damaged (")
    assert first.endswith("it is now batch-00000.h5.damaged; run again, which makes this file alone again.")
    assert folder.shard_paths(120) == [paths[1]]
    assert paths[0].with_name("batch-00000.h5.damaged").exists()
    assert verify(folder.path).returncode == 0


def test_what_cannot_be_verified_is_told_in_a_line(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "absent"):
        done = verify(nothing)
        assert done.returncode == 1
        assert done.stderr == f"{nothing} holds no shards: give a run folder, or a shard.\n"
    with folder.lock():
        done = verify(folder.path)
        assert done.returncode == 1
        assert "another run is at work" in done.stderr
        assert verify(folder.path, "--only-look").returncode == 0


def test_a_run_computes_a_damaged_shard_alone_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    folder, model = RunFolder(tmp_path), nn.Linear(3, 2).double()
    batches = [Batch(torch.randn(4, 3).double(), torch.randn(4, 2).double()) for _ in range(3)]
    problem = Problem(model, SquaredError(), batches[0], None, None)

    def compute() -> dict[Path, tuple[int, int]]:
        list(compute_step(folder, 5, problem, batches, MatrixSpec(Hessian(), HVP())))
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.shard_paths(5)}

    before = compute()
    path = folder.shard(5, 1)
    content = path.read_bytes()
    os.truncate(path, 3000)
    after = compute()
    assert "batch-00001.h5.damaged; it is computed again" in caplog.text
    assert path.read_bytes() == content
    assert {name for name in after if after[name] != before[name]} == {path}


def test_a_stage_that_meets_a_damaged_tile_sets_the_shard_aside(folder: RunFolder) -> None:
    path = folder.shard(120, 1)
    damage(path)
    with NoTracking().start(folder, "", {}, {}, None) as tracked:
        recorder = RunRecorder(folder, tracked)
        with pytest.raises(DamagedFile, match=r"it is now batch-00001\.h5\.damaged; run again"):
            aggregate(recorder, Exact(), Threads(1), None)
        with pytest.raises(
            PipelineError, match=r"lacks the shards of batches \[1\]: run the stage compute again"
        ):
            aggregate(recorder, Exact(), Threads(1), None)


def test_the_error_can_be_raised_in_another_process(folder: RunFolder) -> None:
    error = pickle.loads(pickle.dumps(DamagedFile(folder.config, "why", "remedy")))
    assert error.path == folder.config
    assert str(error) == f"{folder.config} is damaged (why): remedy."
