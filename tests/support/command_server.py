"""Imports what runs import, once, then forks a child for each command: imports take most of a small run's time.

    python command_server.py      # each line of standard input asks for a run; the output has a line with the child's
                                  # number, as soon as it runs, and one with its exit status

The child is the command as `python -m pipeline.run` is, from its first line to the end of the interpreter, in a session
of its own. Workers of cluster=local are forks of one process for all runs, as they are for all waves of one run.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
from importlib import import_module
from multiprocessing import forkserver

from pipeline.cluster.local import IMPORTED as IMPORTED_BY_WORKERS

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
    answers = os.dup(1)
    os.dup2(2, 1)  # what workers print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        if "cluster=local" in request["overrides"]:
            forkserver.ensure_running()
        pid = os.fork()
        if pid == 0:
            os.close(answers)
            return request
        os.write(answers, b"%d\n" % pid)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def become(request: dict) -> None:
    """Take the session, output, folder, environment and search path that the command would be started with."""
    os.setsid()
    forkserver._forkserver.ensure_running = lambda: (
        None
    )  # it runs; that it is no child of this process is no matter
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
    forkserver.set_forkserver_preload(["distributed", *IMPORTED_BY_WORKERS])
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # or a child's garbage collector would touch, and so copy, all of it
    become(serve())
    runpy._run_module_as_main("pipeline.run")  # what `python -m` calls
