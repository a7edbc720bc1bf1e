"""The process that `background.py` starts: it carries out, with MLflow, what comes by standard input."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.system import RunFolder
from pipeline.tracking import store
from pipeline.tracking.background import DONE
from pipeline.tracking.mlflow import MLflow, MLflowRun

# They are for the run, which tells this process.
IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class Failed(Exception):
    """What the run gave as the reason of its failure."""


class Stopped(BaseException):
    """The run was stopped: by Ctrl-C, or a kill."""


def main() -> int:
    """The recorder: carry out what comes by standard input; say at the end of a run, or at a failure, how it went."""
    for name in IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    words, sys.stdout = sys.stdout, sys.stderr  # whatever mlflow prints is none of our words
    tracking = MLflow(**json.loads(sys.argv[1]))
    try:
        store.load()
        while first := sys.stdin.readline():
            with suppress(Failed, Stopped):
                _serve(tracking, *json.loads(first)["arguments"])
            print(json.dumps(DONE), file=words, flush=True)
    except PipelineError as error:
        with suppress(OSError):
            print(json.dumps({"error": str(error)}), file=words, flush=True)
        return 1
    return 0


def _serve(
    tracking: MLflow, folder: str, name: str, params: dict[str, str], tags: dict[str, str], sweep: str | None
) -> None:
    """Carry out the calls of one run."""
    with tracking.start(RunFolder(Path(folder)), name, params, tags, Path(sweep) if sweep else None) as run:
        for line in sys.stdin:
            message: dict[str, Any] = json.loads(line)
            match message["call"], message["arguments"]:
                case "end", _:
                    return
                case "fail", [True, reason]:
                    raise Failed(reason)
                case "fail", [_, reason]:
                    raise Stopped(reason)
                case call, arguments:
                    _carry_out(run, call, arguments)
        raise Stopped("its process was killed.")


def _carry_out(run: MLflowRun, call: str, arguments: list[Any]) -> None:
    if call == "log_artifact":
        run.log_artifact(Path(arguments[0]), arguments[1])
    else:
        getattr(run, call)(*arguments)


if __name__ == "__main__":
    raise SystemExit(main())
