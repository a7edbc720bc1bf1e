"""Imports what runs import, once, then forks a child for each command: imports take most of a small run's time.

    python command_server.py      # each line of standard input asks for a run; the output has a line with the child's
                                  # number, as soon as it runs, and one with its exit status

The child is the command as `python -m pipeline.run` is (or a script, as `python PATH` is), from its first line to what
is done at the end of an interpreter, in a session of its own; it does not take the interpreter itself to pieces, which
would copy all memory of the server. Workers of cluster=local are forks of one process for all runs, as they are for all
waves of one run.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from multiprocessing import forkserver, util
from pathlib import Path

from hydra._internal.hydra import Hydra

from pipeline.cluster.local import IMPORTED as IMPORTED_BY_WORKERS
from pipeline.spectrum.cost import Rates

IMPORTED = (  # what a run imports on its way, but for `pipeline.run` itself; none of these starts a thread
    "dask.threaded",
    "email.policy",
    "hydra._internal.core_plugins.basic_launcher",
    "matplotlib.font_manager",
    "pipeline.aggregate.stage",
    "pipeline.compute.stage",
    "pipeline.data",
    "pipeline.device",
    "pipeline.experiment.instantiate",
    "pipeline.model",
    "pipeline.report.figures",
    "pipeline.report.recorder",
    "pipeline.report.report",
    "pipeline.sweep.hydra_callback",
    "pipeline.sweep.slurm.launcher",
    "rich._emoji_codes",
    "scipy.linalg",
    "sklearn.datasets",
    "torch._decomp.decompositions_for_jvp",
    "torch._dynamo",
    "torch.func",
    "torch.utils.serialization",
)


def serve() -> dict:
    """Answer requests until there are none; returns, in a child, the request that it is to carry out."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what workers print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        if "cluster=local" in request["arguments"]:
            forkserver.ensure_running()
        pid = os.fork()
        if pid == 0:
            os.close(answers)
            return request
        os.write(answers, b"%d\n" % pid)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def start_forkserver(spawn: Callable[[str, list[str], list[int]], int], *how) -> int:
    """In place of `multiprocessing.util.spawnv_passfds`: its server of forks is a fork of this process, and imports
    nothing again; other processes are started as ever.
    """
    _, arguments, handles = how
    if "forkserver" not in arguments[-1]:
        return spawn(*how)
    if pid := os.fork():
        return pid
    for handle in {int(each) for each in os.listdir("/proc/self/fd")} - {0, 1, 2, *handles}:
        with suppress(OSError):
            os.close(handle)
    try:
        exec(arguments[-1])
    finally:
        os._exit(0)


def become(request: dict) -> None:
    """Take the session, output, folder, environment and search path that the command would be started with."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore Ctrl-C
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


def carry_out(first: str, *arguments: str) -> None:
    """What `python -m pipeline.run OPTIONS` does, or `python PATH ARGUMENTS`."""
    status = 0
    try:
        if first == "-m":
            sys.argv[1:] = arguments[1:]
            if not any("hydra.mode" in each for each in arguments):
                Hydra.get_mode = lambda *_, **__: (
                    None
                )  # what it finds by composing the whole config once more
            runpy._run_module_as_main(arguments[0])
        else:
            sys.argv[:] = (first, *arguments)
            sys.path[0] = str(Path(first).resolve().parent)
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:  # another exception, or a text, ends as everywhere
        if isinstance(end.code, str):
            raise
        status = end.code or 0
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    util.spawnv_passfds = partial(start_forkserver, util.spawnv_passfds)
    forkserver.set_forkserver_preload(["distributed", *IMPORTED_BY_WORKERS])
    for name in IMPORTED:
        import_module(name)
    Rates.of("float64")  # of this machine, which each process measures once
    for finalizer in list(weakref.finalize._registry):
        finalizer.atexit = False  # torch would take its libraries of operators to pieces, for 0.05 s
    gc.freeze()  # or a child's garbage collector would touch, and so copy, all of it
    asked = serve()
    become(asked)
    carry_out(*asked["arguments"])
