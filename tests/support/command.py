"""The command as a person gives it: `python -m pipeline.run ...` in a process of its own, far from the repository."""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
SERVER = Path(__file__).with_name("command_server.py")
PATIENCE = 300.0  # seconds: a run that takes longer hangs
SMALL = (  # 49 weights; 40 samples in batches of 16, so the last one has 8
    "data=blobs",
    "data.num_samples=40",
    "data.dimension=4",
    "data.num_clusters=3",
    "data.batch_size=16",
    "data.separation=2.0",
    "model.hidden_sizes=[5]",
    "training.num_steps=20",
    "training.batch_size=8",
    "strategy=hvp",
    "dtype=float64",
    "device=cpu",
    "tracking=none",
    "figure_formats=[]",  # they take half the time of such a run
)
PROGRESS = (
    " training samples; inputs",
    " test samples; inputs",
    " of memory are free.",
    *(f"  {stage} " for stage in ("train", "matrices", "mean", "spectrum", "landscape", "report", "in all")),
    "spectrum=auto takes ",
    "to go on after a kill",
    "shards are there already.",
    "is up to date: taken as it is.",
)


def environment(*extra_paths, **variables):
    paths = os.pathsep.join(map(str, (PROJECT, *extra_paths)))
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("HYDRA_", "MLFLOW_"))
    }
    return {**inherited, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **variables}


def python(*arguments, cwd=PROJECT, text=True):
    """An interpreter with these arguments, run to its end."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=text,
        timeout=PATIENCE,
        check=False,
    )


def script(path, *arguments, cwd=PROJECT, paths=()):
    """`python PATH ARGUMENTS` in a child of `command_server`, run to its end; its output is as that of `run`."""
    given = [sys.executable, *map(str, (path, *arguments))]
    return _run_forked(given, str(cwd), environment(*paths))


def command(folder, *overrides):
    return [sys.executable, "-m", "pipeline.run", *overrides, f"hydra.run.dir={folder}"]


def start(folder, *overrides):
    """It at work, as `run` would have it end."""
    return subprocess.Popen(
        command(folder, *overrides),
        cwd=folder.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder, *overrides, cwd=None, paths=(), fresh=False, **variables):
    """Run it to the end; standard error is put into standard output, as a terminal does.

    fresh: in an interpreter of its own, which imports all itself; else in a child of `command_server`.
    """
    work = _run_fresh if fresh else _run_forked
    return work(command(folder, *overrides), str(cwd or folder.parent), environment(*paths, **variables))


def _run_fresh(arguments, cwd, variables):
    return subprocess.run(
        arguments,
        cwd=cwd,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def _run_forked(arguments, cwd, variables):
    with tempfile.NamedTemporaryFile("r") as output:
        server, child = fork(arguments, cwd, variables, output.name)
        if not select.select([server.stdout], [], [], PATIENCE)[0]:
            os.kill(child, signal.SIGKILL)  # it does not end with the server
            server.kill()
            _server.cache_clear()
            raise subprocess.TimeoutExpired(arguments, PATIENCE, output.read())
        return subprocess.CompletedProcess(arguments, int(server.stdout.readline()), output.read())


def fork(arguments, cwd, variables, output=os.devnull):
    """It at work in a child of `command_server`: the server, whose next line is the exit status, and its number."""
    server = _server()
    request = {"arguments": arguments[1:], "cwd": str(cwd), "environment": variables, "output": output}
    server.stdin.write(json.dumps(request).encode() + b"\n")
    return server, int(server.stdout.readline())


@cache
def _server():
    """One for each process of tests, until that ends."""
    server = subprocess.Popen(
        [sys.executable, SERVER],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # or a line that is read ahead would be waited for in vain
    )
    atexit.register(server.communicate)  # closes its input, and waits
    return server


def succeed(folder, *overrides, **options):
    """The lines that a run prints that must end well."""
    done = run(folder, *overrides, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


def fail(folder, *overrides, **options):
    """The one line that a run prints that must be refused, after what it may have said of its plan and progress."""
    done = run(folder, *overrides, **options)
    lines = [line for line in done.stdout.splitlines() if not any(said in line for said in PROGRESS)]
    assert done.returncode == 1, done.stdout
    assert len(lines) == 1, done.stdout
    assert "Traceback" not in lines[0]
    return lines[0]


def contents(folder):
    """Every file of a folder that holds results: its bytes, and the inode and time that betray a rewriting."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not str(path.relative_to(folder)).startswith((".hydra", "run.log", ".lock", "status.json"))
    }
