import io
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pipeline import dashboard
from pipeline.folder import RunFolder
from pipeline.tracking import MLflow

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dashboard")
    for seed in range(2):
        run_folder = RunFolder(folder / f"run{seed}")
        with MLflow(root=str(folder)).start(run_folder, f"mlp seed={seed}", {"seed": seed}, {}, None) as run:
            run.log_metrics({"trace": 2.0})
    return folder


def read_until(process, pattern, timeout=60):
    """The match of `pattern` in what the process prints."""
    text, end = "", time.monotonic() + timeout
    while time.monotonic() < end:
        if select.select([process.stdout], [], [], 0.2)[0]:
            received = os.read(process.stdout.fileno(), 65536).decode()
            if not received:
                break
            text += received
            if match := re.search(pattern, text, re.DOTALL):
                return match
    raise AssertionError(f"{pattern} not in: {text}")


def processes():
    """Process ids with their process group: {pid: (parent, group)}, from /proc."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[int(stat.parent.name)] = (int(fields[1]), int(fields[2]))
    return found


def descendants(pid):
    below, table = {pid}, processes()
    while more := {child for child, (parent, _) in table.items() if parent in below} - below:
        below |= more
    return below - {pid}


def alive(pids):
    return {pid for pid in pids if pid in processes()}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_it_serves_the_store_and_leaves_no_process_behind(root):
    """Two at once, since a server takes seconds to start: one ends by Ctrl-C, the other by SIGTERM."""
    with socket.socket() as taken, ExitStack() as stack:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        interrupted = stack.enter_context(running_dashboard(root, port))
        terminated = stack.enter_context(running_dashboard(root, port + 40))
        match = read_until(
            interrupted, r"port (\d+) is taken: using (\d+).*dashboard: +(http\S+)\n.*no login"
        )
        read_until(terminated, "no login")
        front = f"http://127.0.0.1:{match[2]}"
        assert match[1] == str(port)
        assert match[3].startswith(f"{front}/#/experiments/1/runs?")
        with urllib.request.urlopen(front, timeout=10) as page:
            assert b"<title>MLflow" in page.read()
        check_that_a_run_can_be_tracked_there(front, root)
        started = {process: descendants(process.pid) for process in (interrupted, terminated)}
        assert all(started.values())
        for _ in range(3):  # an impatient person
            interrupted.send_signal(signal.SIGINT)
        terminated.send_signal(signal.SIGTERM)
        for process, pids in started.items():
            assert process.wait(20) == 0
            assert alive(pids) == set()


@contextmanager
def running_dashboard(root, port):
    command = [sys.executable, "-u", "-m", "pipeline.dashboard", "--root", str(root), "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:  # a failed test: the dashboard takes its server with it
            process.terminate()
        process.wait(30)
        process.stdout.close()


def check_that_a_run_can_be_tracked_there(uri, root):
    """Through HTTP: a run with its sweep, an artifact and the way back, in the store that the first runs are in."""
    tracking, folder = MLflow(uri=uri), RunFolder(root / "sweep" / "0")
    folder.path.mkdir(parents=True)
    folder.report.write_text("<html></html>")
    for _ in range(2):
        with tracking.start(folder, "remote", {"seed": 0}, {}, root / "sweep") as run:
            run.log_metrics({"trace": 1.0, "nothing": float("nan")}, 1)
            run.log_artifact(folder.report)
    found = run.client.get_run(run.run_id)
    assert (found.info.status, found.data.metrics["trace"]) == ("FINISHED", 1.0)
    assert len(run.client.search_runs([found.info.experiment_id])) == 4
    view = run.client.get_experiment(found.info.experiment_id).tags["mlflow.sharedViewState.compare"]
    assert '"params.`seed`", "metrics.`trace`"' in view
    got = tracking.fetch(f"runs:/{run.run_id}/report.html", root / "got")
    assert got.read_text() == "<html></html>"


def test_no_store_yet(tmp_path, capsys):
    assert dashboard.main(["--root", str(tmp_path)]) == 1
    assert re.search(r"error: no runs yet: .*mlflow\.db is not there\. Run", capsys.readouterr().err)


def test_a_server_is_only_named(capsys):
    assert dashboard.main(["--uri", "http://127.0.0.1:5001"]) == 0
    assert "open it in a browser" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("port", "reason"), [("0", "is no port"), ("70000", "is no port"), ("5060", "browsers refuse")]
)
def test_a_number_that_is_no_port(root, port, reason, capsys):
    assert dashboard.main(["--root", str(root), "--port", port]) == 1
    assert re.search(rf"--port {port} .*{reason}", capsys.readouterr().err)


def test_what_the_server_complains_of_is_told_in_its_last_error():
    log = io.BytesIO(
        b"INFO: starting\nTraceback (most recent call last):\n  File x\n"
        b"sqlalchemy.exc.DatabaseError: (sqlite3.DatabaseError) file is not a database\n(Background on this at: link)\n"
    )
    assert dashboard._complaint(log).endswith("(sqlite3.DatabaseError) file is not a database")
    assert dashboard._complaint(io.BytesIO(b"one\ntwo\n\n")) == "two"
    assert dashboard._complaint(io.BytesIO()) == "it said nothing."


def test_a_server_that_ends_at_once_is_an_error(root, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert dashboard.main(["--root", str(root)]) == 1
    assert "the dashboard's server did not start: it said nothing." in capsys.readouterr().err
