"""What a run is told of its plan before anything is trained, and what a finished one writes down."""

import json
import logging
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.aggregate.spectrum_choice import SpectrumChoice
from pipeline.cluster import Address, Local, Threads
from pipeline.compute import preflight, stage_costs
from pipeline.compute.stage_costs import Work
from pipeline.config.schema import Keep, Stage
from pipeline.criterion import CrossEntropy
from pipeline.errors import PipelineError
from pipeline.experiment.experiment import Experiment, MatrixSpec
from pipeline.matrix import Hessian
from pipeline.objective.batch import Batch
from pipeline.objective.problem import Problem
from pipeline.report.recorder import RunRecorder
from pipeline.spectrum import Auto, Exact, TopK
from pipeline.strategy import Func, MatrixFree
from pipeline.system.resources import format_seconds
from pipeline.system.run_folder import RunFolder, write_atomically
from pipeline.tracking import NoTracking
from pipeline.training import SGD

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
    monkeypatch.setattr(preflight, "check_disk", lambda *args: found.update(disk=args[1:4]))
    monkeypatch.setattr(preflight, "check_memory", lambda *args: found.update(memory=args[:2]))
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


def lines(caplog):
    """What was told of each stage: seconds, memory and work by its name."""
    found = [
        re.fullmatch(r"  ([a-z ]+?) +about ([\d.e+-]+ (?:s|min|h)) +([\d.]+ \w+)  (.*)", m)
        for m in caplog.messages
    ]
    return {each[1]: each.groups()[1:] for each in found if each}


@pytest.fixture
def run_of_11_samples(folder, caplog):
    """The plan of a run of one batch and a training that can be tried."""

    def planned(**changes):
        caplog.clear()
        experiment = replace(EXPERIMENT, problem=replace(EXPERIMENT.problem, batch_size=None), **changes)
        with caplog.at_level(logging.INFO):
            return preflight.check_resources(folder, experiment, SGD(num_steps=100))

    return planned


def test_every_stage_is_told_with_seconds_memory_and_work(run_of_11_samples, caplog):
    costs = run_of_11_samples()
    assert caplog.messages[0] == (
        "data: 11 training samples; inputs float64 (3,), 0 to 0; 2 classes, samples of each: 6, 5."
    )
    assert caplog.messages[1].startswith("Linear: P = 8 weights, a matrix of 512 bytes; ")
    told = lines(caplog)
    assert list(told) == ["train", "matrices", "mean", "spectrum", "landscape", "report", "in all"]
    assert told["train"][2] == "100 steps"
    assert re.fullmatch(r"1 of 8 tangents a batch of 11 samples, [\d.]+ MB on disk", told["matrices"][2])
    assert told["spectrum"][2] == "all eigenvalues of 8 rows"
    assert (
        told["landscape"][2] == "252 losses of 11 samples"
    )  # 3 lines of 27, a plane of 13 by 13, and the two before
    assert [cost.stage for cost in costs] == list(told)[:-1]
    assert format_seconds(sum(cost.seconds for cost in costs)) == told["in all"][0]


def test_checkpoints_and_batches_multiply_the_cost(run_of_11_samples, caplog):
    costs = {cost.stage: cost for cost in run_of_11_samples(checkpoint_steps=[0, 10, 20])}
    assert costs["matrices"].work.startswith("4 of 8 tangents")
    assert costs["spectrum"].work == "all eigenvalues of 8 rows at each of 4 checkpoints"
    assert costs["mean"].work == "norms of 1 matrix at each of 4 checkpoints"


def test_workers_share_the_blocks_and_not_the_mean(folder, monkeypatch):
    monkeypatch.setattr(Work, "_decomposition", lambda *_: 1.0)
    monkeypatch.setattr(stage_costs, "slowness", lambda: 0.0)

    def seconds(num_workers):
        costs = preflight.check_resources(folder, EXPERIMENT, None, None, Threads(num_workers))
        return next(cost.seconds for cost in costs if cost.stage == "spectrum")

    # Two parameters, three batches, and λmax of their layer; then the mean.
    assert (seconds(1), seconds(2)) == (7, 4)


@pytest.mark.parametrize(
    ("cluster", "batch_size", "told"),
    [
        (Threads(4), 4, "of 3 batches"),
        (Local(2), 4, "of 3 batches, dealt to 2 workers"),
        (Local(9), 4, "of 3 batches, dealt to 3 workers"),
        (Address(), 4, "of 3 batches, dealt to the workers of the cluster"),
        (Address(), None, "of 1 batches"),
    ],
)
def test_the_plan_says_how_many_workers_products_are_dealt_to(folder, cluster, batch_size, told):
    free = replace(
        EXPERIMENT,
        problem=replace(EXPERIMENT.problem, batch_size=batch_size),
        matrix=MatrixSpec(Hessian(), MatrixFree()),
        spectrum=TopK(num_top=2),
        stages={Stage.compute},
    )
    [cost] = preflight.check_resources(folder, free, cluster=cluster)
    assert cost.work.endswith(told)


def test_nothing_is_told_of_work_that_is_done(run_of_11_samples, folder, caplog):
    write_atomically(folder.shard(100, 0), "")
    write_atomically(folder.checkpoint(100), "")
    write_atomically(folder.spectrum(100), "")
    assert [cost.stage for cost in run_of_11_samples()] == ["report"]


def test_seconds_of_a_training_of_the_users_own_are_not_known(folder, caplog):
    with caplog.at_level(logging.INFO):
        preflight.check_resources(folder, EXPERIMENT, training=object())
    [line] = [message for message in caplog.messages if message.startswith("  train")]
    assert " not known " in line
    assert caplog.messages[-1].endswith("seconds on cores that are free, and what is not known")


def test_a_net_that_cannot_be_tried_is_not_refused_by_the_plan(folder):
    class Once(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("only one")

    problem = replace(EXPERIMENT.problem, model=Once(3, 2).double())
    costs = preflight.check_resources(folder, replace(EXPERIMENT, problem=problem), SGD(num_steps=100))
    assert costs[0].seconds is None


def test_the_plan_changes_nothing(run_of_11_samples):
    before = [value.clone() for value in EXPERIMENT.problem.model.state_dict().values()]
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    run_of_11_samples()
    assert torch.equal(torch.rand(3), expected)
    assert all(map(torch.equal, before, EXPERIMENT.problem.model.state_dict().values()))


def test_auto_is_told_and_noted_before_the_work(run_of_11_samples, folder, caplog):
    run_of_11_samples(spectrum=Auto())
    assert re.fullmatch(
        r"spectrum=auto takes exact: all 8 eigenvalues take about [\d.e-]+ s\.", caplog.messages[-1]
    )
    assert SpectrumChoice.read(folder).spectrum == "exact"
    costs = {cost.stage: cost for cost in run_of_11_samples(spectrum=Auto(max_seconds=0), last_step=100)}
    assert costs["spectrum"].work == "slq of 8 rows"


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
