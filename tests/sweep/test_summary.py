"""Sweeps from their folders: made by hand, run by the command, killed, and recorded in MLflow."""

import csv
import fcntl
import json
import math
import os
import signal
import time

import pytest
import yaml
from support.command import SMALL, environment, fork
from support.command import command as run_command

import pipeline
from pipeline.config.messages import one_line_message
from pipeline.errors import PipelineError
from pipeline.sweep import summary
from pipeline.sweep.jobs import has_jobs, job_name, plan
from pipeline.system import status
from pipeline.system.run_folder import RunFolder
from pipeline.system.status import Status, recorded_status, status_of, write_status
from pipeline.tracking import MLflow, store

JOBS = [
    ["model=mlp", "strategy=func", "training.learning_rate=1e-3", "hydra.verbose=false"],
    ["model=mlp", "strategy=hvp", "training.learning_rate=1e-3", "hydra.verbose=true"],
    ["model=mlp", "strategy=func", "training.learning_rate=0.01"],
    ["model=mlp", "strategy=hvp", "training.learning_rate=0.01"],
]


def job(folder, overrides, state, reason="", **summary):
    """The folder of a job as Hydra and the run leave it."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (folder / "config.yaml").write_text("seed: 0\n")
    write_status(RunFolder(folder), state, reason)
    if summary:
        RunFolder(folder).summary.write_text(json.dumps(summary))
    return RunFolder(folder)


@pytest.fixture
def folder(tmp_path):
    """Four jobs: finished, failed, killed at work, and never begun."""
    folder = tmp_path / "2026-01-31" / "12-00-00"
    folder.mkdir(parents=True)
    plan(folder, "python -m pipeline.run -m …", JOBS)
    numbers = {"lambda_max": 2.5, "trace": 7.0, "test_accuracy": 0.5, "seconds_train": 1.5, "step": 20}
    job(folder / "0", JOBS[0], "finished", **numbers)
    job(folder / "1", JOBS[1], "failed", "the loss, it exploded: lower it.", lambda_max=0.5)
    job(folder / "2", JOBS[2], "running")
    return folder


def test_the_table_has_a_row_a_job_and_the_choices_that_vary(folder):
    found = pipeline.open_sweep(folder)
    assert found.varying == ("strategy", "training.learning_rate")
    table = found.table
    assert list(table.index) == [0, 1, 2, 3]
    assert list(table.columns) == [
        "state", "strategy", "training.learning_rate", "test_accuracy", "lambda_max", "trace", "seconds_train",
        "reason", "folder",
    ]  # fmt: skip
    assert list(table["state"]) == ["finished", "failed", "killed", "missing"]
    assert list(table["training.learning_rate"]) == [1e-3, 1e-3, 0.01, 0.01]
    assert table.loc[0, "lambda_max"] == 2.5
    assert math.isnan(table.loc[2, "lambda_max"])
    assert table.loc[1, "reason"] == "the loss, it exploded: lower it."
    assert sorted(found.runs) == [0, 1, 2]
    assert found.runs[0].summary["trace"] == 7.0


def test_a_table_by_the_csv_module_says_the_same(folder, capsys):
    assert summary.main([str(folder)]) == 1
    with (folder / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[1]["reason"] == "the loss, it exploded: lower it."
    assert (rows[0]["lambda_max"], rows[3]["lambda_max"]) == ("2.5", "")
    lines = capsys.readouterr().out.splitlines()
    assert (
        "job 1 (strategy=hvp training.learning_rate=1e-3) failed: the loss, it exploded: lower it." in lines
    )
    assert "job 3 (strategy=hvp training.learning_rate=0.01) missing: it has not begun." in lines
    assert "1 of 4 jobs finished." in lines


def test_a_job_at_work_is_running(folder):
    with (folder / "2" / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert status_of(RunFolder(folder / "2")) == Status("running")


def test_looking_at_a_run_does_not_keep_it_from_starting(folder, monkeypatch):
    """While somebody looks, the folder is held for a moment; a run that starts just then waits for it."""
    (folder / "2" / ".lock").touch()
    looking = (folder / "2" / ".lock").open()
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda _: looking.close())
    with RunFolder(folder / "2").lock():
        assert looking.closed


def test_all_jobs_finished(folder, capsys):
    for number in range(4):
        write_status(RunFolder(folder / str(number)), "finished")
    assert summary.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "state" not in out
    assert "4 of 4 jobs finished." in out


def test_without_a_plan_the_jobs_that_are_there_count(folder):
    (folder / "sweep.json").unlink()
    assert list(pipeline.open_sweep(folder).table["strategy"]) == ["func", "hvp", "func"]


def test_jobs_in_folders_of_any_name(tmp_path):
    for number, name in enumerate(["b/seed=0", "a/seed=1", "alone"]):
        made = job(tmp_path / name, [f"seed={number}"], "finished")
        noted = {"hydra": {"job": {"num": number if name != "alone" else "???"}}}
        (made.path / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(noted))
    found = pipeline.open_sweep(tmp_path)
    assert [(each.number, each.overrides["seed"]) for each in found.jobs] == [(0, "0"), (1, "1"), (2, "2")]


def test_a_sweep_begun_again_with_some_of_its_jobs_keeps_the_plan(folder):
    plan(folder, "again", JOBS[:2])
    assert len(pipeline.open_sweep(folder).jobs) == 4
    plan(folder, "another", JOBS[2:])
    assert json.loads((folder / "sweep.json").read_text())["command"] == "another"


def test_a_job_is_named_by_what_varies(folder):
    assert job_name(folder, 1) == "1 strategy=hvp learning_rate=1e-3"
    assert job_name(folder, 4) is None
    assert job_name(folder / "nowhere", 0) is None


def test_no_sweep(tmp_path, folder, capsys):
    with pytest.raises(PipelineError, match=r"is not the folder of a sweep: it has neither sweep\.json nor"):
        pipeline.open_sweep(tmp_path / "nowhere")
    assert not has_jobs(tmp_path / "nowhere")
    (folder / "sweep.json").write_text("[]")
    assert summary.main([str(folder)]) == 1
    assert "sweep.json cannot be read" in capsys.readouterr().err


def test_how_a_run_ends_is_told(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.lock():
        with recorded_status(folder, one_line_message):
            assert status_of(folder).state == "running"
        assert status_of(folder).state == "finished"
        for error, state, reason in (
            (PipelineError("too large: take less."), "failed", "too large: take less."),
            (ZeroDivisionError("oh"), "failed", "unexpected ZeroDivisionError: oh"),
            (KeyboardInterrupt(), "cancelled", "interrupted by Ctrl-C."),
        ):
            with pytest.raises(type(error)), recorded_status(folder, one_line_message):
                raise error
            assert status_of(folder) == Status(state, reason)
    with pytest.raises(SystemExit), folder.lock(), recorded_status(folder, one_line_message):
        raise SystemExit  # to be started again
    assert status_of(folder).state == "killed"
    folder.status.write_text("{")
    assert status_of(folder).state == "missing"


def test_a_run_that_ends_while_it_is_looked_at_is_not_killed(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    write_status(folder, status.RUNNING)
    monkeypatch.setattr(RunFolder, "is_held", lambda self: write_status(self, status.FINISHED))
    assert status_of(folder).state == "finished"


def test_mlflow_has_one_run_for_the_sweep_with_the_table_and_aggregates(folder, tmp_path):
    tracking = MLflow(root=str(tmp_path))
    for number in range(3):
        with tracking.start(RunFolder(folder / str(number)), f"job {number}", {}, {}, folder) as run:
            client = run.client
            if number == 2:
                client.update_run(run.run_id, status="RUNNING")
                killed = run.run_id
    client.update_run(killed, status="RUNNING")  # as a killed process leaves it
    assert summary.main([str(folder)]) == 1
    record = json.loads((folder / "mlflow.json").read_text())
    parent = client.get_run(record["run_id"])
    assert parent.info.run_name == "sweep strategy × training.learning_rate 2026-01-31 12-00-00"
    assert parent.info.status == "FAILED"
    assert parent.data.metrics["sweep/num_jobs"] == 4
    assert parent.data.metrics["sweep/num_finished"] == 1
    assert parent.data.metrics["sweep/lambda_max/max"] == 2.5  # of finished jobs alone
    assert parent.data.tags["varies"] == "strategy=func,hvp training.learning_rate=1e-3,0.01"
    assert "job 1 failed: the loss, it exploded" in parent.data.tags["not_finished"]
    assert {entry.path for entry in client.list_artifacts(record["run_id"])} == {"report.html", "summary.csv"}
    assert client.get_run(killed).info.status == "KILLED"

    for number in range(4):
        write_status(RunFolder(folder / str(number)), "finished")
    assert summary.main([str(folder)]) == 0
    assert client.get_run(record["run_id"]).info.status == "FINISHED"


def test_a_store_that_is_gone_costs_no_table(folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(store, "LOCK_PATIENCE", 0.1)
    with MLflow(root=str(tmp_path)).start(RunFolder(folder / "0"), "job 0", {}, {}, folder):
        pass
    (tmp_path / "mlflow.db").write_text("no database")
    assert summary.main([str(folder)]) == 1
    assert (folder / "summary.csv").exists()
    assert "the sweep is not in MLflow: " in caplog.text


def test_a_sweep_whose_launcher_is_killed_is_summed_up_afterwards(tmp_path, capsys):
    """SIGKILL in the second of three jobs."""
    folder = tmp_path / "jobs"
    options = [*(option for option in SMALL if "num_steps" not in option), "training.num_steps=20,3000000,21"]
    begin = run_command(tmp_path / "unused", "-m", *options, "stages=[train]", f"hydra.sweep.dir={folder}")
    server, pid = fork(begin, tmp_path, environment())
    try:
        end = time.monotonic() + 300
        while not (folder / "1" / "status.json").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert pipeline.open_sweep(folder).jobs[1].status.state == "running"
    finally:
        os.kill(pid, signal.SIGKILL)
        assert int(server.stdout.readline()) == -signal.SIGKILL
    end = time.monotonic() + 30  # a command that it has just started may hold the lock until it has begun
    while pipeline.open_sweep(folder).jobs[1].status.state == "running" and time.monotonic() < end:
        time.sleep(0.05)
    assert list(pipeline.open_sweep(folder).table["state"]) == ["finished", "killed", "missing"]
    assert summary.main([str(folder)]) == 1
    assert "job 1 (training.num_steps=3000000) killed: its process ended" in capsys.readouterr().out
