"""Open the MLflow dashboard on the project's store: `python -m pipeline.tracking.dashboard`.

MLflow's server runs in this very process, so nothing outlives it, and listens on this machine alone. From another
machine reach it through `ssh -L 5000:127.0.0.1:5000 HOST`.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from pipeline.errors import PipelineError
from pipeline.tracking import dashboard_views, error_messages, store

HOST = "127.0.0.1"
APPLICATION = "mlflow.server.fastapi_app:app"  # what `mlflow server` starts in processes of its own
SHUTDOWN_SECONDS = 2  # for open requests, after the first signal to stop


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        uri = store.resolve(options.uri, options.root)
        if error_messages.is_server(uri):
            print(f"{uri} is a server that runs already: open it in a browser.")
            return 0
        if not error_messages.database(uri).exists():
            raise PipelineError(
                f"no runs yet: {error_messages.database(uri)} is not there. Run `python -m pipeline.run` first, "
                "or name another folder with --root FOLDER."
            )
        _serve(uri, _listen(options.port), options.experiment)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nthe dashboard has ended.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tracking.dashboard", description="Open the MLflow dashboard."
    )
    parser.add_argument("--root", default="outputs", help="folder of mlflow.db (default: outputs)")
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default: 5000)")
    parser.add_argument("--uri", help="another store: sqlite:////absolute/path/mlflow.db")
    parser.add_argument(
        "--experiment", default="curvature", help="experiment to open at (default: curvature)"
    )
    return parser


def _listen(port: int) -> socket.socket:
    """A socket that listens at `port`, or at another port with a message if that one is taken."""
    if not 0 < port < 65536:
        raise PipelineError(f"--port {port} is not a port: give a number from 1 to 65535.")
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        listener = socket.create_server((HOST, 0))
        print(f"port {port} cannot be used ({error.strerror}): using {listener.getsockname()[1]}.")
        return listener


def _serve(uri: str, listener: socket.socket, experiment: str) -> None:
    """Run MLflow's server until Ctrl-C, SIGTERM or a closed terminal, each a KeyboardInterrupt."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    client = store.open_sqlite(uri)
    with error_messages.one_line(uri):
        experiments = {found.name: found.experiment_id for found in client.search_experiments()}
        for experiment_id in experiments.values():
            dashboard_views.save(client, experiment_id)
    import uvicorn

    server: Any = import_module("mlflow.server")
    os.environ[server.BACKEND_STORE_URI_ENV_VAR] = store.engine_uri(uri)
    os.environ[server.REGISTRY_STORE_URI_ENV_VAR] = store.engine_uri(uri)
    os.environ[server.ARTIFACT_ROOT_ENV_VAR] = store.artifacts(uri).as_uri()
    config = uvicorn.Config(
        APPLICATION, log_level="warning", timeout_graceful_shutdown=SHUTDOWN_SECONDS, workers=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what MLflow imports is nothing to a user
        config.load()
    front = f"http://{HOST}:{listener.getsockname()[1]}"
    if experiment in experiments:
        runs = f"{front}/#/experiments/{experiments[experiment]}/runs?workflowType=machine_learning&viewStateShareKey="
        print(f"dashboard:    {runs}newest\nside by side: {runs}compare")
    else:
        print(f"dashboard: {front}")
    print(f"It has no login and listens on this machine alone ({HOST}). Ctrl-C ends it.", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    raise SystemExit(main())
