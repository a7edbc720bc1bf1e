"""How a command ends where people use it: Ctrl-C, `| head`, terminals in ASCII, folders with odd names."""

import json
import os
import re
import select
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

from support.command import PATIENCE, SMALL, command, environment, fork

TRACKED = [option for option in SMALL if not option.startswith("tracking")]
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def runs_in(store):
    """Status and parent of each MLflow run."""
    tags = "(select run_uuid, value from tags where key = 'mlflow.parentRunId')"
    query = f"select status, value from runs left join {tags} as parents on runs.run_uuid = parents.run_uuid"
    with closing(sqlite3.connect(store)) as connection:
        return connection.execute(query).fetchall()


def test_ctrl_c_says_the_command_that_goes_on(tmp_path):
    folder, output = tmp_path / "a b", tmp_path / "output"
    given = command(folder, *SMALL, "training.num_steps=1000000")
    server, pid = fork(given, tmp_path, environment(), str(output))
    end = time.monotonic() + PATIENCE
    while not (output.exists() and "run folder: " in output.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(pid, signal.SIGINT)
    if not select.select([server.stdout], [], [], PATIENCE)[0]:
        os.kill(pid, signal.SIGKILL)  # or the server, and all tests after this one, would wait for it
    assert int(server.stdout.readline()) == 130
    rest = output.read_text()
    assert "Traceback" not in rest
    [told] = re.findall(r"interrupted: what is whole stays; to go on: python -m pipeline\.run (.*)", rest)
    *given, last = shlex.split(told)
    assert given == [*SMALL, "training.num_steps=1000000"]
    assert last == "hydra.run.dir=a b"
    assert told in (folder / "run.log").read_text()
    assert json.loads((folder / "status.json").read_text())["state"] == "cancelled"


def test_a_run_whose_output_is_closed_goes_on_to_its_end(tmp_path):
    """In the store of the environment, with names and stages that are a plain text."""
    folder, store = tmp_path / "folder", tmp_path / "elsewhere.db"
    arguments = command(folder, *TRACKED, "parameters=fc1.*", "stages=train")
    uri = f"sqlite:///{store}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    variables = environment(MLFLOW_TRACKING_URI=uri)
    with subprocess.Popen(arguments, cwd=tmp_path, env=variables, **pipes) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert f"MLflow records at {uri} (MLFLOW_TRACKING_URI)." in (folder / "run.log").read_text()
    assert [status for status, _ in runs_in(store)] == ["FINISHED"]
    config = (folder / "config.yaml").read_text()
    assert "parameters:\n- fc1.*\n" in config
    assert "stages:\n- train\n" in config


def test_a_sweep_in_a_folder_with_an_odd_name_in_a_terminal_without_utf_8(tmp_path):
    """A flag at the end, jobs that work in their own folders: one store, one sweep, tables of straight lines."""
    folder = tmp_path / "50%25 (a?b) #1"
    folder.mkdir()
    options = [*TRACKED, "seed=0,1", "hydra.job.chdir=True", "stages=[train,compute,aggregate]", "-m"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.run", *options],
        cwd=folder,
        env=environment(**C_LOCALE),
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    printed = done.stdout.decode("ascii")
    assert "| lambda max " in printed
    assert "2 of 2 jobs finished." in printed
    [store] = tmp_path.rglob("*.db")
    assert store == folder / "outputs" / "mlflow.db"
    (first, _), *others = sorted(runs_in(store), key=lambda found: found[1] is not None)
    assert first == "FINISHED"
    assert [status for status, _ in others] == ["FINISHED", "FINISHED"]
    assert len({parent for _, parent in others}) == 1
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    [log, _] = sorted(folder.glob("outputs/multirun/*/*/*/run.log"))
    text = log.read_text(encoding="utf-8")
    for told in ("train: ", "compute: ", "aggregate: ", "Hessian spectrum:", "  λ max  ", "finished after "):
        assert told in text
