"""Imports what runs import, once, then forks a child for each command: imports take most of a small run's time.

    python command_server.py      # each line of standard input asks for a run; its exit status is a line of the output

The child is the command as `python -m pipeline.run` is, from its first line to the end of the interpreter.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
from importlib import import_module

IMPORTED = (  # what a run imports on its way, but for `pipeline.run` itself; none of these starts a thread
    "dask.threaded",
    "matplotlib.font_manager",
    "pipeline.aggregate.stage",
    "pipeline.compute.stage",
    "pipeline.data",
    "pipeline.experiment.instantiate",
    "pipeline.report.figures",
    "pipeline.report.recorder",
    "pipeline.report.report",
    "pipeline.sweep.hydra_callback",
    "pipeline.sweep.slurm.launcher",
    "scipy.linalg",
    "sklearn.datasets",
    "torch._dynamo",
    "torch.func",
)


def serve() -> dict:
    """Answer requests until there are none; returns, in a child, the request that it is to carry out."""
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return request
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os._exit(0)


def become(request: dict) -> None:
    """Take the output, folder, environment and search path that the command would be started with."""
    for target, flags, stream in (
        (os.devnull, os.O_RDONLY, 0),
        (request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 1),
        (request["output"], os.O_WRONLY | os.O_APPEND, 2),
    ):
        handle = os.open(target, flags, 0o644)
        os.dup2(handle, stream)
        os.close(handle)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:] = [request["cwd"], *request["environment"]["PYTHONPATH"].split(os.pathsep), *sys.path[2:]]
    sys.argv[1:] = request["overrides"]


if __name__ == "__main__":
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # or a child's garbage collector would touch, and so copy, all of it
    become(serve())
    runpy._run_module_as_main("pipeline.run")  # what `python -m` calls
