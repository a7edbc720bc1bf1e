"""What a run is told of its plan before anything is trained, and what a finished one writes down."""

import json
import logging
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.compute import preflight
from pipeline.config.schema import Keep, Stage
from pipeline.criterion import CrossEntropy
from pipeline.errors import PipelineError
from pipeline.experiment.experiment import Experiment, MatrixSpec
from pipeline.matrix import Hessian
from pipeline.objective.batch import Batch
from pipeline.objective.problem import Problem
from pipeline.report.recorder import RunRecorder
from pipeline.spectrum import Exact
from pipeline.strategy import Func
from pipeline.system.run_folder import RunFolder, write_atomically
from pipeline.tracking import NoTracking

EXPERIMENT = Experiment(
    problem=Problem.on(
        torch.device("cpu"),
        torch.float64,
        nn.Linear(3, 2),
        CrossEntropy(),
        Batch(torch.zeros(11, 3), torch.arange(11) % 2),
        None,
        batch_size=4,
    ),
    matrix=MatrixSpec(Hessian(), Func()),
    spectrum=Exact(),
    checkpoint_steps=(),
    last_step=100,
    num_batches=None,
    seed=0,
    slice_points=27,
    stages=frozenset(Stage),
)
MEAN = replace(EXPERIMENT.matrix, keep=Keep.mean)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def asked(monkeypatch):
    """The number of shards that the disk was asked for, and the bytes that memory was asked for."""
    found = {}
    monkeypatch.setattr(preflight, "check_disk", lambda *args: found.update(disk=args[1:]))
    monkeypatch.setattr(preflight, "check_memory", lambda *args: found.update(memory=args))
    return found


def plan(folder, **changes):
    preflight.check_resources(folder, replace(EXPERIMENT, **changes))


@pytest.mark.parametrize(
    ("changes", "num_shards"),
    [
        ({}, 4),  # 4, 4 and 3 samples, and their mean
        ({"num_batches": 2}, 3),
        ({"matrix": MEAN}, 3),  # the mean, the one before it, and the batch that is added
        ({"matrix": MEAN, "checkpoint_steps": [0, 50]}, 5),
        ({"matrix": MEAN, "num_batches": 1}, 1),
        ({"checkpoint_steps": [0, 50]}, 12),
        ({"checkpoint_steps": [0, 100]}, 8),  # 100 is the last one anyway
        ({"checkpoint_steps": [0], "last_step": 0}, 4),
    ],
)
def test_the_disk_must_hold_every_shard_of_every_checkpoint(folder, asked, changes, num_shards):
    plan(folder, **changes)
    assert asked["disk"] == (
        8,
        2**20 + 24 + 8 * (64 + 8),
        num_shards,
    )  # P; one tile, the gradient, 1 MB beside


def test_shards_that_are_there_need_no_room(folder, asked):
    for index in range(3):
        write_atomically(folder.shard(100, index), "")
    plan(folder)
    assert asked["disk"][2] == 1


def test_memory_is_asked_for_by_stage(folder, asked):
    plan(folder)
    needs = {"strategy=func": Func().memory(8, 8), "spectrum=exact": Exact().memory(8, 8)}
    assert asked["memory"] == (8, needs)
    asked.clear()
    plan(folder, stages={Stage.train, Stage.aggregate})
    assert asked == {"memory": (8, {"spectrum=exact": Exact().memory(8, 8)})}


def test_the_plan_is_told(folder, caplog):
    with caplog.at_level(logging.INFO):
        plan(folder, problem=replace(EXPERIMENT.problem, batch_size=None))
    assert caplog.messages[0] == (
        "data: 11 training samples; inputs float64 (3,), 0 to 0; 2 classes, samples of each: 6, 5."
    )
    assert caplog.messages[1].startswith("Linear: P = 8 weights, a matrix of 512 bytes; the run needs up to ")
    assert re.fullmatch(
        r"to compute: 1 matrix of 8 tangents a batch of 11 samples, [\d.]+ M?k?B on disk; "
        r"about [\d.e-]+ s, and what the disk takes\.",
        caplog.messages[2],
    )


def test_nothing_is_told_of_work_that_is_done(folder, caplog):
    for index in range(3):
        write_atomically(folder.shard(100, index), "")
    with caplog.at_level(logging.INFO):
        plan(folder)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0421, "0.042 s"), (99, "99 s"), (900, "15 min"), (9000, "2.5 h")]
)
def test_durations(seconds, said):
    assert preflight._duration(seconds) == said


def test_too_many_batches_are_refused_before_anything_is_trained(folder):
    with pytest.raises(PipelineError, match=r"^num_batches=4: 11 training samples make 3 batches of 4"):
        plan(folder, num_batches=4)


def test_a_batch_size_that_is_none_is_refused():
    with pytest.raises(
        PipelineError, match=r"^data\.batch_size='many': give a whole number of at least 1, or null"
    ):
        Problem.on(None, None, None, None, None, None, batch_size="many")


def test_the_recorder_keeps_the_times_of_stages_that_did_not_run_again(folder, capsys):
    folder.config.write_text("seed: 0\n")
    with NoTracking().start(folder, "", {}, {}, None) as tracked:
        recorder = RunRecorder(folder, tracked)
        with recorder.stage(Stage.train):
            pass
        recorder.close()
        first = json.loads(folder.summary.read_text())
        recorder = RunRecorder(folder, tracked)
        with recorder.stage(Stage.compute):
            pass
        recorder.close()
    second = json.loads(folder.summary.read_text())
    assert second["seconds_train"] == first["seconds_train"]
    assert second.keys() == {"seconds_train", "seconds_compute"}
    assert capsys.readouterr().out.splitlines()[-1] == f"run folder: {folder.path}"
