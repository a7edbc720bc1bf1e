"""Commands that stop before their first file, and go on in a child for each time that they are to run.

    python server.py failing.so [{"argv": ["model=mlp", ..., "hydra.run.dir=FOLDER"], "requests": 5, "answers": 6}, ...]

Importing torch and composing the config take seconds, a small run a tenth of one; so hundreds of runs, each with
another fault, need this. All is imported once; then a child for each command composes its config and waits. Each line
from the descriptor `requests` asks for one run (a `Fault`, and where its output goes), each line to `answers` answers.
The run is a child again: it goes on from Hydra's `run_job` to the end of the interpreter, as the command itself does.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import threading
import time
from importlib import import_module

import psutil

PATIENCE = 180.0  # seconds: a run that takes longer hangs
IMPORTED = (  # what a run imports on its way; none of these starts a thread
    "dask.threaded",
    "matplotlib.font_manager",
    "pipeline.aggregate.stage",
    "pipeline.compute.stage",
    "pipeline.data",
    "pipeline.report.figures",
    "pipeline.report.recorder",
    "pipeline.report.report",
    "pipeline.run",
    "scipy.linalg",
    "sklearn.datasets",
    "torch._dynamo",
    "torch.func",
)


def import_all() -> None:
    for name in IMPORTED:
        import_module(name)
    for constant, value in json.loads(os.environ["FAULTS_CONSTANTS"]).items():
        module, _, name = constant.rpartition(".")
        found = import_module(module)
        if not hasattr(found, name):
            raise AttributeError(f"{module} has no {name}")
        setattr(found, name, value)


def serve(shim: ctypes.CDLL, requests: int, answers: int) -> bool:
    """Answer requests; returns in a child, which has a run to do: whether it may then skip the interpreter's end."""
    gc.freeze()  # or a child's garbage collector would touch, and so copy, all of it
    answer_to = os.fdopen(answers, "w")
    print(json.dumps({"ready": True}), file=answer_to, flush=True)
    for line in os.fdopen(requests):
        request = json.loads(line)
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            become_a_run(request, shim)
            return bool(request["quick"])
        status, hung = watch(pid, request["kill_after"])
        answer = {
            "status": os.waitstatus_to_exitcode(status),
            "hung": hung,
            "seconds": time.monotonic() - start,
            "count": shim.failing_count(),
            "what": shim.failing_what().decode(),
        }
        print(json.dumps(answer), file=answer_to, flush=True)
    os._exit(0)


def become_a_run(request: dict, shim: ctypes.CDLL) -> None:
    os.setpgid(0, 0)
    for target, flags, stream in (
        (os.devnull, os.O_RDONLY, 0),
        (request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 1),
        (request["output"], os.O_WRONLY | os.O_APPEND, 2),
    ):
        handle = os.open(target, flags, 0o644)
        os.dup2(handle, stream)
        os.close(handle)
    if request["memory"]:
        limit = psutil.Process().memory_info().vms + request["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    shim.failing_arm(
        request["folder"].encode(), *(request[key] for key in ("number", "code", "mode", "reads"))
    )


def watch(pid: int, kill_after: float | None) -> tuple[int, bool]:
    """The status with which the child ends; it is killed after so many seconds, or when it hangs."""
    end = time.monotonic() + (PATIENCE if kill_after is None else kill_after)
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status, False
        time.sleep(0.001)
    os.killpg(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1], kill_after is None


def main() -> None:
    shim = ctypes.CDLL(sys.argv[1])
    shim.failing_what.restype = ctypes.c_char_p
    import_all()
    commands = json.loads(sys.argv[2])
    for command in commands:
        if os.fork() == 0:
            be(shim, command)
    for _ in commands:
        os.wait()


def be(shim: ctypes.CDLL, command: dict) -> None:
    """Be that command."""
    import hydra._internal.hydra as inside

    import pipeline.run

    shim.failing_begin()
    sys.argv = ["run.py", *command["argv"]]
    run_job, quick = inside.run_job, False

    def fork_first(*arguments, **options):
        nonlocal quick
        quick = serve(shim, command["requests"], command["answers"])
        return run_job(*arguments, **options)

    inside.run_job = fork_first
    try:
        pipeline.run.main()
    finally:
        if quick:
            end_at_once()


def end_at_once() -> None:
    """Do what the interpreter does at its end, but for taking to pieces all that lies in memory: it takes longest.

    HDF5 closes its files at the end of the C library, as ever.
    """
    end = sys.exc_info()[1]
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    ctypes.CDLL(None).exit(end.code or 0 if isinstance(end, SystemExit) else 1)


if __name__ == "__main__":
    main()
