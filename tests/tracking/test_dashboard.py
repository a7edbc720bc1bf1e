import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from support.report_cases import put, spectra

from pipeline.report.report import make_report
from pipeline.system.run_folder import RunFolder
from pipeline.tracking import MLflow, dashboard, dashboard_views, store
from scripts.screenshot import browser, find_chromium

PROJECT = Path(__file__).resolve().parents[2]


def put_two_runs(folder):
    for seed in range(2):
        run_folder = RunFolder(folder / f"run{seed}")
        with MLflow(root=str(folder)).start(run_folder, f"mlp seed={seed}", {"seed": seed}, {}, None) as run:
            run.log_metrics({"trace": 2.0})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dashboard")
    put_two_runs(folder)
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


def processes_of(pid):
    """What the system knows of processes that a process has started, and of theirs."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(child) for file in children for child in file.read_text().split()]
    return found + [each for child in found for each in processes_of(child)]


def sockets_of(pid):
    """The addresses at which a process listens, in hexadecimal as in /proc/net/tcp."""
    inodes = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    fields = [line.split() for table in tables for line in table]
    return [each[1] for each in fields if each[3] == "0A" and f"socket:[{each[9]}]" in inodes]


class Served(NamedTuple):
    """A dashboard at work, what it said, and what its store holds."""

    process: subprocess.Popen
    said: re.Match
    front: str
    taken: int
    root: Path
    run_id: str


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """On three runs; at last it is ended by SIGTERM and an impatient Ctrl-C, and must end in order."""
    folder = tmp_path_factory.mktemp("served")
    put_two_runs(folder)
    run_id = put_a_run_with_everything(folder)
    with socket.socket() as taken, ExitStack() as stack:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = stack.enter_context(running_dashboard(folder, port))
        addresses = r"dashboard: +(http\S+)\nside by side: (http\S+)\n"
        said = read_until(process, rf"port (\d+) cannot be .*using (\d+).*{addresses}.*no login")
        yield Served(process, said, f"http://127.0.0.1:{said[2]}", port, folder, run_id)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            process.send_signal(number)
        assert process.wait(100) == 0


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_it_serves_the_store_on_this_machine_alone_and_is_one_process(served):
    """So there is nothing that could outlive a SIGKILL."""
    match, front = served.said, served.front
    assert match[1] == str(served.taken)
    assert match[3].startswith(f"{front}/#/experiments/1/runs?")
    with urllib.request.urlopen(front, timeout=100) as page:
        assert b"<title>MLflow" in page.read()
    check_that_a_run_can_be_tracked_there(front, served.root)
    assert processes_of(served.process.pid) == []
    assert sockets_of(served.process.pid) == [f"0100007F:{int(match[2]):04X}"]


@contextmanager
def running_dashboard(root, port):
    command = [
        sys.executable,
        "-u",
        "-m",
        "pipeline.tracking.dashboard",
        "--root",
        str(root),
        "--port",
        str(port),
    ]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    try:
        yield process
    finally:
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
    assert len(run.client.search_runs([found.info.experiment_id])) == 5
    folder.report.unlink()
    address = f"{uri}/get-artifact?path=report.html&run_uuid={run.run_id}"
    with urllib.request.urlopen(address, timeout=100) as answer:
        assert answer.read() == b"<html></html>"
    got = tracking.fetch(f"runs:/{run.run_id}/report.html", root / "got")
    assert got.read_text() == "<html></html>"


def test_no_store_yet(tmp_path, capsys):
    assert dashboard.main(["--root", str(tmp_path)]) == 1
    assert re.search(r"error: no runs yet: .*mlflow\.db is not there\. Run", capsys.readouterr().err)


def test_a_server_is_only_named(capsys):
    assert dashboard.main(["--uri", "http://127.0.0.1:5001"]) == 0
    assert "open it in a browser" in capsys.readouterr().out


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_number_that_is_not_a_port(root, port, capsys):
    assert dashboard.main(["--root", str(root), "--port", port]) == 1
    assert f"--port {port} is not a port: give a number from 1 to 65535." in capsys.readouterr().err


def test_a_file_that_is_not_a_store_is_an_error_of_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mlflow.db").write_text("text")
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: pytest.fail("it was served"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            monkeypatch.setattr(dashboard, "_listen", lambda port: listener)
            assert dashboard.main(["--root", str(tmp_path)]) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert re.fullmatch(
        r"error: \S+mlflow\.db cannot be used as an MLflow store \(.*\): .*\n", capsys.readouterr().err
    )


def test_an_experiment_has_saved_views_with_the_columns_that_differ(root):
    client, experiment_id = store.connect(store.resolve(None, str(root)), "curvature")
    dashboard_views.save(client, experiment_id)
    tags = client.get_experiment(experiment_id).tags
    saved = {key: json.loads(tags[f"mlflow.sharedViewState.{key}"]) for key in ("newest", "compare")}
    assert {key: one["name"] for key, one in saved.items()} == {
        "newest": "newest first",
        "compare": "side by side",
    }
    for one in saved.values():
        assert json.loads(one["state"])["selectedColumns"] == ["params.`seed`", "metrics.`trace`"]


RUNS = "/#/experiments/1/runs"
VISIBLE = "[...document.querySelectorAll('{}')].some(e => e.getBoundingClientRect().height > 100)"


@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium here")
def test_a_browser_shows_the_runs_a_metric_a_figure_and_the_report(served):
    """The table with its columns side by side, and what each run carries, by the addresses that a person would open."""
    front, run_id = served.front, served.run_id
    assert served.said[4] == f"{front}{RUNS}?workflowType=machine_learning&viewStateShareKey=compare"
    with browser(find_chromium()) as page:
        page.appearance(1600, 900)
        table = "document.querySelector('[role=grid], [role=treegrid]').innerText"
        page.open(served.said[4], f"{table}.length > 0", 120)
        for told in ("mlp seed=0", "mlp seed=1", "tanh of all", "activation", "lambda_max", "0.625"):
            page.wait(f"{table}.includes({told!r})", 60)
        page.open(f"{front}{RUNS}/{run_id}/model-metrics", VISIBLE.format("svg.main-svg"), 120)
        drawn = "[...document.images].some(e => e.naturalWidth === 640 && e.complete)"
        page.open(f"{front}{RUNS}/{run_id}/artifacts/figures/density.png", drawn, 120)
        page.open(f"{front}{RUNS}/{run_id}/artifacts/report.html", VISIBLE.format("iframe"), 120)
        assert [line for line in page.console if "net::ERR" in line] == []  # nothing was sought elsewhere


def put_a_run_with_everything(root):
    folder = RunFolder(root / "everything")
    put(folder, spectra(num_batches=2))
    make_report(folder)
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
