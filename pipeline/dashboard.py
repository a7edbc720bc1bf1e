"""Open the MLflow dashboard on the project's store: `python -m pipeline.dashboard`.

It listens on this machine alone and takes its whole process group with it when it ends. From another machine
reach it through `ssh -L 5000:127.0.0.1:5000 HOST`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, Any
from urllib.parse import quote

from pipeline import guard
from pipeline.errors import PipelineError
from pipeline.tracking import faults, store, view

HOST = "127.0.0.1"
START_PATIENCE = 180.0  # seconds until the server must answer
NUM_RUNS = 500  # of these, the latest, the columns of the tables are chosen
KINDS = ("params", "metrics")
UNSAFE_PORTS = {
    5060,
    5061,
    6000,
    6566,
    *range(6665, 6670),
    6697,
    10080,
}  # browsers keep them for other protocols
END_PATIENCE = 5.0  # seconds from SIGTERM to SIGKILL
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # seven background consumers for language-model jobs, which would outlive the server
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        uri = store.resolve(options.uri, options.root)
        if faults.is_server(uri):
            print(f"{uri} is a server that runs already: open it in a browser.")
            return 0
        if not faults.database(uri).exists():
            raise PipelineError(
                f"no runs yet: {faults.database(uri)} is not there. Run `python -m pipeline.run` first, "
                "or name another folder with --root FOLDER."
            )
        return _serve(uri, _free_port(options.port), options.experiment)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.dashboard", description="Open the MLflow dashboard."
    )
    parser.add_argument("--root", default="outputs", help="folder of mlflow.db (default: outputs)")
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default: 5000)")
    parser.add_argument("--uri", help="another store: sqlite:////absolute/path/mlflow.db")
    parser.add_argument(
        "--experiment", default="curvature", help="experiment to open at (default: curvature)"
    )
    return parser


def _serve(uri: str, port: int, experiment: str) -> int:
    """Run the server until Ctrl-C, SIGTERM, a closed terminal, or its own end."""
    try:
        with _stop_signals(), tempfile.TemporaryFile() as log, _server(uri, port, log) as process:
            _wait_until_it_answers(process, port, log)
            print(_pages(port, experiment))
            print(f"It has no login and listens on this machine alone ({HOST}). Ctrl-C ends it.", flush=True)
            process.wait()
            raise PipelineError(f"the dashboard's server ended by itself: {_complaint(log)}")
    except KeyboardInterrupt:
        print("\nthe dashboard has ended.")
        return 0


@contextmanager
def _server(uri: str, port: int, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server in a process group of its own, of which nothing is left after the block, nor after a SIGKILL."""
    command = [
        sys.executable,
        guard.__file__,
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        HOST,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", uri, "--default-artifact-root", store.artifacts(uri).as_uri()]
    process = subprocess.Popen(
        command,
        env=os.environ | ENVIRONMENT,
        stdin=subprocess.PIPE,  # the guard sees it close
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)  # the group lives on while any of its processes does
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_PATIENCE)
        process.stdin.close()  # type: ignore[union-attr]


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does; a second one must not cut the unwinding short."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port(wanted: int) -> int:
    """`wanted`, or the next port that is free, with a message."""
    if not 0 < wanted < 65536:
        raise PipelineError(f"--port {wanted} is no port: give a number from 1 to 65535.")
    if wanted in UNSAFE_PORTS:
        raise PipelineError(
            f"--port {wanted} is one that browsers refuse to open: give another, such as 5000."
        )
    following = [port for port in range(wanted, min(wanted + 20, 65536)) if port not in UNSAFE_PORTS]
    for port in [*following, 0]:
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            free = int(probe.getsockname()[1])
            if free != wanted:
                print(f"port {wanted} is taken: using {free}.")
            return free
    raise PipelineError(f"no free port on {HOST}: end a process that listens there.")


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    end = time.monotonic() + START_PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise PipelineError(f"the dashboard's server did not start: {_complaint(log)}")
        with suppress(OSError, http.client.HTTPException):
            _request(port, "/health")
            return
        time.sleep(0.1)
    raise PipelineError(
        f"the dashboard's server did not answer within {START_PATIENCE:.0f} s: {_complaint(log)}"
    )


def _pages(port: int, experiment: str) -> str:
    """The addresses of the experiment's tables of runs; the front page's if there is no such experiment."""
    front = f"http://{HOST}:{port}"
    try:
        found = _call(port, f"/experiments/get-by-name?experiment_name={quote(experiment)}")
        experiment_id = found["experiment"]["experiment_id"]
        _save_views(port, experiment_id)
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return f"dashboard: {front}"
    runs = f"{front}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey="
    return f"dashboard:    {runs}newest\nside by side: {runs}compare"


def _save_views(port: int, experiment_id: str) -> None:
    """Give the experiment its views of the table of runs, made from its latest runs."""
    question = {"experiment_ids": [experiment_id], "max_results": NUM_RUNS, "order_by": ["start_time DESC"]}
    found = [run["data"] for run in _call(port, "/runs/search", question).get("runs", [])]
    runs = [{kind: {e["key"]: e["value"] for e in run.get(kind, [])} for kind in KINDS} for run in found]
    for tag, value in view.views([(run["params"], run["metrics"]) for run in runs]).items():
        _call(
            port,
            "/experiments/set-experiment-tag",
            {"experiment_id": experiment_id, "key": tag, "value": value},
        )


def _call(port: int, path: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
    """One call of MLflow's REST interface; KeyError or ValueError come from an answer that is no result."""
    return dict(json.loads(_request(port, f"/api/2.0/mlflow{path}", question)))


def _request(port: int, path: str, question: dict[str, Any] | None = None) -> bytes:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        if question is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(question), {"Content-Type": "application/json"})
        return connection.getresponse().read()
    finally:
        connection.close()


def _complaint(log: IO[bytes]) -> str:
    """What the server said last; of an exception, its line, not the notes and links that follow."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return (errors or lines or ["it said nothing."])[-1]


if __name__ == "__main__":
    raise SystemExit(main())
