"""Where the wall clock of a run goes, from the start of its process to its end: `python scripts/profile_run.py`.

Each moment of the main thread is counted once, for the innermost of the parts below; what of `run` none of them claims
is "rest". What other threads and processes do meanwhile costs what the main thread waits for it. Modules are compiled
once and kept, as Python does where PYTHONDONTWRITEBYTECODE does not forbid it. Arguments go to the run:

    python scripts/profile_run.py --repeat 5 model=mlp strategy=auto
"""

from __future__ import annotations

import argparse
import builtins
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
WORK = ("training", "Hessians and shards", "mean and eigenvalues")  # all else is overhead
PARTS = {  # functions and methods, by what they are timed as
    "training": ("pipeline.run.command:train",),
    "Hessians and shards": ("pipeline.run.command:compute",),
    "mean and eigenvalues": ("pipeline.run.command:aggregate",),
    "Hydra": ("pipeline.run.command:main",),
    "rest": ("pipeline.run.command:run",),
    "data and model": ("pipeline.experiment.instantiate:build_experiment",),
    "plan": ("pipeline.compute.preflight:check_resources",),
    "loss along eigenvectors": ("pipeline.run.command:slices",),
    "figures and report": ("pipeline.report.report:make_report",),
    "MLflow, summary and table": (
        "pipeline.tracking.mlflow:MLflow.start",
        "pipeline.tracking.mlflow:MLflowRun.log_metrics",
        "pipeline.tracking.mlflow:MLflowRun.log_artifact",
        "pipeline.tracking.mlflow:MLflowRun.set_tags",
        "pipeline.tracking.mlflow:MLflowRun.close",
        "pipeline.report.recorder:RunRecorder.close",
    ),
    "config": (
        "pipeline.experiment.instantiate:prepare",
        "pipeline.experiment.instantiate:resolved_settings",
        "pipeline.experiment.instantiate:build",
    ),
}
START, END = "PROFILE_START", "PROFILE_END"


class Clock:
    """Seconds of the main thread by the innermost part that is open."""

    def __init__(self, start: float) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open, self._last = ["interpreter"], start

    def _pass(self) -> None:
        now = time.monotonic()
        self.seconds[self._open[-1]] += now - self._last
        self._last = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._pass()
        # what is imported on the way is told apart from the work, and by what asked for it first
        nested = name.startswith("import") and self._open[-1].startswith("import")
        self._open.append(self._open[-1] if nested else name)
        try:
            yield
        finally:
            self._pass()
            self._open.pop()

    def begin(self, name: str) -> None:
        """All that follows and is no part belongs to `name`."""
        self._pass()
        self._open[0] = name

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        if isgeneratorfunction(function.__dict__.get("__wrapped__", function)):  # a context manager
            manager = function

            @wraps(function)
            @contextmanager
            def around(*arguments: Any, **options: Any) -> Iterator[Any]:
                with self.part(name):
                    opened = manager(*arguments, **options)
                    value = opened.__enter__()
                try:
                    yield value
                except BaseException:
                    if not opened.__exit__(*sys.exc_info()):
                        raise
                else:
                    with self.part(name):
                        opened.__exit__(None, None, None)

            return around

        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*arguments, **options)

        return call


def watch(clock: Clock) -> None:
    """Time every import, and every function of PARTS from the moment that its module is there."""
    wanted = {place: part for part, places in PARTS.items() for place in places}
    plain_import = builtins.__import__

    def watched(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        known = len(sys.modules)
        package: str = (globals or {}).get("__package__", "") if level else name  # from . import x
        with clock.part(f"import {package.partition('.')[0]}"):
            module = plain_import(name, globals, locals, fromlist, level)
        if len(sys.modules) != known:
            for place in [place for place in wanted if place.partition(":")[0] in sys.modules]:
                _replace(place, clock, wanted)
        return module

    builtins.__import__ = watched


def _replace(place: str, clock: Clock, wanted: dict[str, str]) -> None:
    module, _, path = place.partition(":")
    owner: Any = sys.modules[module]
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part, None)
    if owner is not None and hasattr(owner, name):  # else the module is still being imported
        setattr(owner, name, clock.timed(getattr(owner, name), wanted.pop(place)))


def child(arguments: list[str]) -> None:
    """The run itself, in this process."""
    clock = Clock(float(os.environ[START]))
    clock.begin("rest")
    watch(clock)
    sys.argv = ["pipeline/run", *arguments]
    from pipeline import run

    try:
        run.main()
    finally:
        clock.begin("end of the process")
        Path(os.environ[END]).write_text(json.dumps({"last": time.monotonic(), "seconds": clock.seconds}))


def measure(arguments: list[str]) -> dict[str, float]:
    """Seconds by part of one run in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="profile-") as scratch:
        told = Path(scratch) / "told.json"
        own = [f"hydra.run.dir={scratch}/run", f"tracking.root={scratch}"]
        command = [sys.executable, __file__, "--child", *arguments, *own]
        path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
        start = time.monotonic()
        environment = os.environ | {START: str(start), END: str(told), "PYTHONPATH": path}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        end = time.monotonic()
        if done.returncode:
            raise SystemExit(done.stdout)
        found = json.loads(told.read_text())
    seconds: dict[str, float] = found["seconds"]
    seconds["end of the process"] = end - found["last"]
    return seconds


def show(runs: list[dict[str, float]]) -> None:
    """Print the fastest run by part, and how the share of overhead spreads over all runs."""
    fastest = min(runs, key=total)
    print(f"{'seconds':>8}  {'share':>6}")
    for name in (*WORK, *sorted(set(fastest) - set(WORK), key=lambda name: -fastest[name])):
        if fastest.get(name, 0) >= 0.02:
            print(f"{fastest[name]:8.2f}  {fastest[name] / total(fastest):6.1%}  {name}")
    print(f"{total(fastest):8.2f}  {1:6.0%}  from the start of the process to its end")
    shares = [overhead(run) / total(run) for run in runs]
    print(
        f"overhead (all but {', '.join(WORK)}): {overhead(fastest):.2f} s, {overhead(fastest) / total(fastest):.0%}"
        f" of the fastest of {len(runs)} runs; median {statistics.median(shares):.0%}"
    )


def total(run: Mapping[str, float]) -> float:
    return sum(run.values())


def overhead(run: Mapping[str, float]) -> float:
    return total(run) - sum(run.get(name, 0.0) for name in WORK)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/profile_run.py", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--repeat", type=int, default=3, help="runs, each in a process and a folder of its own"
    )
    parser.add_argument("overrides", nargs="*", default=["model=mlp", "strategy=func"])
    options = parser.parse_args()
    print(f"python -m pipeline.run {' '.join(options.overrides)}")
    show([measure(options.overrides) for _ in range(options.repeat)])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
