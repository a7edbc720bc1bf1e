"""The recorder: a real process that is fed, killed, and left behind. Oracle: what SQLite says is in the store."""

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.command import python

from pipeline.errors import PipelineError
from pipeline.system.run_folder import RunFolder
from pipeline.tracking import MLflow
from pipeline.tracking.background import recorders

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    yield folder
    tracking(folder).ready().close()
    recorders.clear()


def tracking(root):
    return MLflow(root=str(root), background=True)


def start(root, name, params=None, sweep=None):
    return tracking(root).ready().start(RunFolder(root / name), name, params or {}, {}, sweep)


def ask(root, question, *values):
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        return connection.execute(question, values).fetchall()


def status(root, name):
    return ask(root, "select status from runs where name = ?", name)[0][0]


def metrics(root, name):
    question = (
        "select m.step, m.value from metrics m join runs r using (run_uuid) where r.name = ? and key = 'loss'"
    )
    return sorted(ask(root, question, name))


def test_all_calls_are_carried_out_in_the_run_before_it_ends(root, tmp_path):
    (tmp_path / "figure.png").write_bytes(b"png")
    with start(root, "whole", {"model": {"bias": True}, "none": None}) as run:
        for step in range(100):
            run.log_metrics({"loss": step / 8, "nan": float("nan")}, step)
        run.set_tags({"note": "λ"})
        run.log_artifact(tmp_path / "figure.png", "figures")
    assert metrics(root, "whole") == [(step, step / 8) for step in range(100)]
    assert status(root, "whole") == "FINISHED"
    assert ("λ",) in ask(root, "select value from tags where key = 'note'")
    assert ("model.bias", "true") in ask(root, "select key, value from params")
    assert list(root.glob("mlflow-artifacts/*/artifacts/figures/figure.png"))


def test_one_process_serves_run_after_run(root):
    before = tracking(root).ready().process.pid
    for name in ("one", "other"):
        with start(root, name, sweep=root / "sweep") as run:
            run.log_metrics({"loss": 1.0}, 1)
    assert tracking(root).ready().process.pid == before
    assert (status(root, "one"), status(root, "other")) == ("FINISHED", "FINISHED")
    assert ask(root, "select count(distinct value) from tags where key = 'mlflow.parentRunId'") == [(1,)]


@pytest.mark.parametrize(("error", "expected"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_how_the_run_ends_is_recorded(root, error, expected):
    with pytest.raises(error), start(root, expected):
        raise error("the reason")
    assert status(root, expected) == expected
    assert ("the reason",) in ask(root, "select value from tags where key = 'error'")


def log_for_a_while(root):
    with start(root, "run") as run:
        for _ in range(600):
            run.log_metrics({"loss": 1.0})
            time.sleep(0.01)


def test_a_store_that_cannot_be_used_is_told_in_one_line_and_the_next_run_gets_another_recorder(tmp_path):
    """By a call on the way, or at the end."""
    (tmp_path / "mlflow.db").write_text("this is no database, " * 100)
    first = tracking(tmp_path).ready().process
    with pytest.raises(PipelineError, match=r"cannot be used as an MLflow store \(file is not a database\)"):
        log_for_a_while(tmp_path)
    another = tracking(tmp_path).ready()
    assert another.process.pid != first.pid
    another.close()


def test_a_recorder_that_dies_is_told(tmp_path):
    tracker = tracking(tmp_path).ready()
    tracker.process.kill()
    tracker.process.stdin.close()
    tracker.process.stdin = open(os.devnull, "wb")  # noqa: SIM115 - what is sent arrives nowhere
    with pytest.raises(PipelineError, match=r"MLflow's process ended by itself \(it said nothing\)"):
        tracker.start(RunFolder(tmp_path / "run"), "run", {}, {}, None).__enter__().log_metrics({"loss": 1.0})


PARENT = """
import os, signal, sys
from pathlib import Path
from pipeline.system.run_folder import RunFolder
from pipeline.tracking import MLflow
root, how = Path(sys.argv[1]), sys.argv[2]
tracker = MLflow(root=str(root), background=True).ready()
print(tracker.process.pid, flush=True)
if how == "refused": sys.exit(1)
with tracker.start(RunFolder(root / how), how, {}, {}, None) as run:
    for step in range(100):
        run.log_metrics({"loss": float(step)}, step)
    if how == "killed": os.kill(os.getpid(), signal.SIGKILL)
    assert "mlflow" not in sys.modules
"""


def is_gone(pid, patience):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:
            return True  # nobody has taken note of its end yet, as in a container without an init
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("how", "code", "patience"), [("well", 0, 0.5), ("refused", 1, 0.5), ("killed", -signal.SIGKILL, 60)]
)
def test_nothing_is_lost_and_no_process_left_however_the_run_ends(root, how, code, patience):
    done = python("-c", PARENT, root, how)
    assert done.returncode == code, done.stderr
    assert is_gone(int(done.stdout), patience)
    if how != "refused":
        assert metrics(root, how) == [(step, float(step)) for step in range(100)]
        assert status(root, how) == {"well": "FINISHED", "killed": "KILLED"}[how]
