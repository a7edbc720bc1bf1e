import multiprocessing
import random
import signal
import time

import pytest
import torch
from support.interrupted import CHECKPOINT_STEPS, SHORT, TRAININGS, train

from pipeline.errors import PipelineError
from pipeline.objective.checkpoints import load_state
from pipeline.system.run_folder import RunFolder

ROWS = [0, 7, 14, 21, 28, 35, 42, 45]
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "torch._dynamo", "safetensors.torch", "rich.progress"])


def outcome(path):
    """What must not depend on kills: every checkpoint, what Adam leaves beside it, the history and the last state."""
    folder = RunFolder(path)
    names = sorted(file.name for file in folder.checkpoints.glob("*") if file.suffix != ".partial")
    state = torch.load(folder.checkpoints / "state.pt", weights_only=True)
    steps = [*CHECKPOINT_STEPS, 45]
    is_adam = "exp_avg_sq" in repr(state["optimizer"])
    moments = [folder.second_moments(step).name for step in steps if step and is_adam]
    checkpoints = [folder.checkpoint(step).name for step in steps]
    assert names == sorted([*checkpoints, *moments, "history.csv", "state.pt"])
    files = {name: (folder.checkpoints / name).read_bytes() for name in names if name != "state.pt"}
    return files, repr(state["optimizer"]), state["random"].tolist(), state["rows"]


def logged(path):
    return (path / "logged").read_text().splitlines()


@pytest.fixture(scope="module", params=TRAININGS)
def undisturbed(request, tmp_path_factory):
    torch_state = torch.get_rng_state()
    path = tmp_path_factory.mktemp(request.param)
    num_moments = train(path, request.param, ("step", "file"))
    torch.set_rng_state(torch_state)
    return request.param, num_moments, outcome(path), logged(path)


def run_killed(path, name, kinds, fatal):
    """Whether the process got to its end."""
    process = PROCESSES.Process(target=train, args=(path, name, kinds, fatal))
    process.start()
    process.join()
    assert process.exitcode in {0, -signal.SIGKILL}
    return process.exitcode == 0


@pytest.mark.parametrize("seed", range(2))
def test_a_training_killed_again_and_again_ends_in_the_same_bits(undisturbed, tmp_path, seed):
    name, num_moments, expected, expected_log = undisturbed
    rng = random.Random(seed)
    num_kills = 0
    while not run_killed(tmp_path, name, ("step", "file"), rng.randrange(1, num_moments)):
        num_kills += 1
    assert num_kills
    assert outcome(tmp_path) == expected
    assert sorted(set(logged(tmp_path)), key=expected_log.index) == expected_log


def test_each_row_is_logged_once_when_killed_between_rows(undisturbed, tmp_path):
    name, _, expected, expected_log = undisturbed
    for fatal in (3, 30, 25, 15):
        assert not run_killed(tmp_path, name, ("step",), fatal)
    assert run_killed(tmp_path, name, (), 0)
    assert logged(tmp_path) == expected_log
    assert [int(row.split()[0]) for row in expected_log] == ROWS
    assert outcome(tmp_path) == expected


def test_killed_from_outside_at_any_time(undisturbed, tmp_path):
    name, _, expected, _ = undisturbed
    rng = random.Random(0)
    exitcode = None
    for _ in range(3):
        process = PROCESSES.Process(target=train, args=(tmp_path, name), kwargs={"delay": 0.002})
        process.start()
        time.sleep(rng.uniform(0.05, 0.25))
        process.kill()
        process.join()
        exitcode = process.exitcode
        process.close()
    assert exitcode is not None
    assert run_killed(tmp_path, name, (), 0)
    assert outcome(tmp_path) == expected


def test_a_finished_training_does_nothing(tmp_path):
    train(tmp_path, "adam")
    before, log = outcome(tmp_path), logged(tmp_path)
    times = {file: file.stat().st_mtime_ns for file in RunFolder(tmp_path).checkpoints.iterdir()}
    assert train(tmp_path, "adam", ("file",)) == 0
    assert {file: file.stat().st_mtime_ns for file in RunFolder(tmp_path).checkpoints.iterdir()} == times
    assert (outcome(tmp_path), logged(tmp_path)) == (before, log)
    RunFolder(tmp_path).history.unlink()
    train(tmp_path, "adam")
    assert outcome(tmp_path) == before


def test_a_checkpoint_that_is_wanted_later_is_made_by_training_anew(tmp_path):
    train(tmp_path, "adam")
    before = outcome(tmp_path)
    RunFolder(tmp_path).checkpoint(13).unlink()
    train(tmp_path, "adam")
    assert outcome(tmp_path) == before


def test_a_state_of_another_training_is_refused(tmp_path):
    train(tmp_path, "adam")
    with pytest.raises(
        PipelineError, match=r"is the state of Adam\(.*, not of SGD\(.*choose another run folder"
    ):
        train(tmp_path, "sgd")


def test_a_damaged_state_gets_one_line(tmp_path):
    train(tmp_path, "adam")
    state = RunFolder(tmp_path).checkpoints / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(
        PipelineError, match=r"state.pt cannot be read .*: delete .*checkpoints to train from the start"
    ):
        train(tmp_path, "adam")


def test_a_damaged_history_gets_one_line(tmp_path):
    train(tmp_path, "adam")
    RunFolder(tmp_path).history.write_text("step,train_loss\nx,1\n")
    with pytest.raises(PipelineError, match=r"history.csv is not a training curve .*: delete it"):
        train(tmp_path, "adam")


def test_the_last_checkpoint_holds_the_last_weights(tmp_path):
    train(tmp_path, "gd")
    folder = RunFolder(tmp_path)
    assert folder.checkpoint_steps() == [*CHECKPOINT_STEPS, SHORT["num_steps"]]
    last = torch.load(folder.checkpoints / "state.pt", weights_only=True)["model"]
    found = load_state(folder.checkpoint(45))
    assert all(torch.equal(found[name], last[name]) for name in last)
