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
from PIL import Image
from report_cases import put, spectra

from pipeline import dashboard
from pipeline.folder import RunFolder
from pipeline.report import make_report
from pipeline.tracking import MLflow
from scripts.screenshot import browser, find_chromium

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dashboard")
    for seed in range(2):
        run_folder = RunFolder(folder / f"run{seed}")
        with MLflow(root=str(folder)).start(run_folder, f"mlp seed={seed}", {"seed": seed}, {}, None) as run:
            run.log_metrics({"trace": 2.0})
    return folder


def read_until(process, pattern, timeout=200):
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
    """Processes by id, with their state and parent: {pid: ("S", 1)}, from /proc."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[int(stat.parent.name)] = (fields[0], int(fields[1]))
    return found


def descendants(pid):
    below, table = {pid}, processes()
    while more := {child for child, (_, parent) in table.items() if parent in below} - below:
        below |= more
    return below - {pid}


def alive(pids):
    """Those that are there and not merely waiting for somebody to take note of their end."""
    return {pid for pid in pids if processes().get(pid, ("Z",))[0] != "Z"}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_it_serves_the_store_and_leaves_no_process_behind(root):
    """Two at once, since a server takes seconds to start: one ends by SIGTERM and Ctrl-C, the other by SIGKILL."""
    with socket.socket() as taken, ExitStack() as stack:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        interrupted = stack.enter_context(running_dashboard(root, port))
        killed = stack.enter_context(running_dashboard(root, port + 40))
        match = read_until(
            interrupted, r"port (\d+) is taken: using (\d+).*dashboard: +(http\S+)\n.*no login"
        )
        read_until(killed, "no login")
        front = f"http://127.0.0.1:{match[2]}"
        assert match[1] == str(port)
        assert match[3].startswith(f"{front}/#/experiments/1/runs?")
        with urllib.request.urlopen(front, timeout=100) as page:
            assert b"<title>MLflow" in page.read()
        check_that_a_run_can_be_tracked_there(front, root)
        started = {process: descendants(process.pid) for process in (interrupted, killed)}
        assert all(started.values())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):  # an impatient person
            interrupted.send_signal(number)
        killed.kill()
        assert interrupted.wait(100) == 0
        end = time.monotonic() + 100  # nobody waits for what a killed process leaves
        while alive(started[killed] | started[interrupted]) and time.monotonic() < end:
            time.sleep(0.1)
        assert alive(started[killed] | started[interrupted]) == set()


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
        process.wait(100)
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


RUNS = "/#/experiments/1/runs"
VISIBLE = "[...document.querySelectorAll('{}')].some(e => e.getBoundingClientRect().height > 100)"


@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium here")
def test_a_browser_shows_the_runs_a_metric_a_figure_and_the_report(root, tmp_path):
    """The table with its columns side by side, and what each run carries, by the addresses that a person would open."""
    run_id = a_run_with_everything(root)
    with ExitStack() as stack:
        server = stack.enter_context(running_dashboard(root, 5700))
        front = read_until(server, r"side by side: (http://[^/]+)/.*no login")[1]
        page = stack.enter_context(browser(find_chromium()))
        page.appearance(1600, 900)
        table = "document.querySelector('[role=grid], [role=treegrid]').innerText"
        page.open(
            f"{front}{RUNS}?workflowType=machine_learning&viewStateShareKey=compare",
            f"{table}.length > 0",
            120,
        )
        for told in ("mlp seed=0", "mlp seed=1", "tanh of all", "activation", "lambda_max", "0.625"):
            page.wait(f"{table}.includes({told!r})", 60)
        page.open(f"{front}{RUNS}/{run_id}/model-metrics", VISIBLE.format("svg.main-svg"), 120)
        drawn = "[...document.images].some(e => e.naturalWidth === 640 && e.complete)"
        page.open(f"{front}{RUNS}/{run_id}/artifacts/figures/density.png", drawn, 120)
        page.open(f"{front}{RUNS}/{run_id}/artifacts/report.html", VISIBLE.format("iframe"), 120)
        assert [line for line in page.console if "net::ERR" in line] == []  # nothing was sought elsewhere


def a_run_with_everything(root):
    folder = RunFolder(root / "everything")
    put(folder, spectra(num_batches=2))
    make_report(folder, {})
    with MLflow(root=str(root)).start(
        folder, "tanh of all", {"seed": 2, "activation": "tanh"}, {}, None
    ) as run:
        for step in range(5):
            run.log_metrics({"lambda_max": 1 / (step + 1), "train_loss": 0.625}, step)
        run.log_metrics({"lambda_max": 0.625}, 5)
        run.log_artifact(folder.report)
        Image.new("RGB", (640, 360)).save(root / "density.png")
        run.log_artifact(root / "density.png", "figures")
    return run.run_id
