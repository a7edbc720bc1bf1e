import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
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
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_the_store_and_leaves_no_process_behind(root, stop):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-u", "-m", "pipeline.dashboard", "--root", str(root), "--port", str(port)]
        environment = os.environ | {"PYTHONPATH": str(PROJECT)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
        try:
            match = read_until(
                process, r"port (\d+) is taken: using (\d+).*dashboard: +(http\S+)\n.*no login"
            )
            front = f"http://127.0.0.1:{match[2]}"
            assert match[1] == str(port)
            assert match[3].startswith(f"{front}/#/experiments/1/runs?")
            with urllib.request.urlopen(front, timeout=10) as page:
                assert b"<title>MLflow" in page.read()
            started = descendants(process.pid)
            assert started
            if stop == signal.SIGINT:
                check_that_a_run_can_be_tracked_there(front, root)
            process.send_signal(stop)
            assert process.wait(20) == 0
            assert alive(started) == set()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


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
    got = tracking.fetch(f"runs:/{run.run_id}/report.html", root / "got")
    assert got.read_text() == "<html></html>"


def test_the_table_has_columns_for_what_differs(root):
    """Left in the store by the servers of the test above."""
    with MLflow(root=str(root)).start(RunFolder(root / "look"), "look", {}, {}, None) as run:
        tags = run.client.get_experiment("1").tags
    assert '"params.`seed`", "metrics.`trace`"' in tags["mlflow.sharedViewState.compare"]


def test_no_store_yet(tmp_path, capsys):
    assert dashboard.main(["--root", str(tmp_path)]) == 1
    assert re.search(r"error: no runs yet: .*mlflow\.db is not there\. Run", capsys.readouterr().err)


def test_a_server_is_only_named(capsys):
    assert dashboard.main(["--uri", "http://127.0.0.1:5001"]) == 0
    assert "open it in a browser" in capsys.readouterr().out


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_number_that_is_no_port(root, port, capsys):
    assert dashboard.main(["--root", str(root), "--port", port]) == 1
    assert f"--port {port} is no port" in capsys.readouterr().err


def test_a_store_that_the_server_refuses(tmp_path, capsys):
    (tmp_path / "mlflow.db").write_text("this is no database, " * 100)
    assert dashboard.main(["--root", str(tmp_path)]) == 1
    assert "not a database" in capsys.readouterr().err
