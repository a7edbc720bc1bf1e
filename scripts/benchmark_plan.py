"""What the plan of a run says of each stage, beside what the stage took: seconds, and bytes at the peak.

    python scripts/benchmark_plan.py                 # five runs, each in a process of its own
    python scripts/benchmark_plan.py --threads 1     # on a machine that has other work: seconds of the processor

With one thread the seconds of the processor are what the wall would show on free cores; with several, those of the wall
are compared. Memory is what the process holds beyond what it held when the plan was told, looked at a hundred times a
second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RUNS = {
    "main job": ["strategy=func"],
    "22,510 weights": ["model.hidden_sizes=[300]"],
    "along training": ["checkpoint_steps=[0,100,1000]", "training=sgd", "model.hidden_sizes=[24,24]"],
    "GGN, float64": [
        *("matrix=ggn", "model.activation=relu", "dtype=float64"),
        *("model.hidden_sizes=[48,48]", "num_batches=3"),
    ],
    "layers of a transformer": [
        *("model=transformer", "blocks=layer", "num_batches=1", "training.num_steps=100"),
    ],
}
GIVE = "benchmark_plan.json"


class Meter:
    """Seconds and peak memory of what runs inside `of`; a thread looks at the memory."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self.found: dict[str, dict[str, float]] = {}
        self.at_plan, self._peak = 0, 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, self._process.memory_info().rss)
            time.sleep(0.01)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        wall, processor, self._peak = time.perf_counter(), time.process_time(), 0
        yield
        there = self.found.setdefault(name, {"wall": 0.0, "processor": 0.0, "memory": 0.0})
        there["wall"] += time.perf_counter() - wall
        there["processor"] += time.process_time() - processor
        there["memory"] = max(there["memory"], self._peak - self.at_plan)


def child(out: Path) -> None:
    """A run whose stages are measured; arguments of the command follow."""
    import pipeline.compute as room
    from pipeline import run
    from pipeline.aggregate import stage as aggregation
    from pipeline.report.recorder import RunRecorder

    meter, planned = Meter(), []
    names = {"compute": "matrices", "slices": "landscape", "aggregate": "spectrum"}
    check, write_mean, stage = room.check_resources, aggregation.write_mean, RunRecorder.stage

    def checked(*args: Any) -> Any:
        start = time.perf_counter()
        planned.extend(check(*args))
        meter.found["plan"] = {"wall": time.perf_counter() - start, "processor": 0, "memory": 0}
        meter.at_plan = meter._process.memory_info().rss
        return planned

    def mean(*args: Any) -> Any:
        with meter.of("mean"):
            return write_mean(*args)

    @contextmanager
    def measured(recorder: RunRecorder, which: Any) -> Iterator[None]:
        with meter.of(names.get(which.value, which.value)), stage(recorder, which):
            yield

    room.check_resources, aggregation.write_mean = checked, mean
    RunRecorder.stage = measured  # type: ignore[method-assign]
    try:
        run.main()
    finally:
        spectrum, average = (meter.found.get(name, {}) for name in ("spectrum", "mean"))
        for clock in ("wall", "processor"):
            if average:
                spectrum[clock] -= average[clock]
        out.write_text(json.dumps([[vars(cost) for cost in planned], meter.found]))


def measure(overrides: list[str], num_threads: int | None) -> Any:
    environment = dict(os.environ)
    own = [] if num_threads is None else [f"cluster.num_workers={num_threads}"]
    if num_threads is not None:
        environment["OMP_NUM_THREADS"] = str(num_threads)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, GIVE)
        command = [sys.executable, __file__, "--child", str(out), *overrides, *own]
        command += [f"hydra.run.dir={folder}/run", "tracking=none"]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return json.loads(out.read_text())


def tell(
    name: str, overrides: list[str], planned: list[dict[str, Any]], found: Any, clock: str
) -> list[float]:
    print(f"\n{name}: {' '.join(overrides)} (the plan itself took {found['plan']['wall']:.1f} s)")
    print(
        f"  {'stage':<10}{'planned':>10}{clock:>12}{'ratio':>8}{'wall':>10}   {'memory planned':>16}{'taken':>10}"
    )
    ratios = []
    for cost in planned:
        took = found[cost["stage"]]
        ratio = cost["seconds"] / max(took[clock], 1e-9)
        ratios.append(ratio)
        memory = f"{cost['memory'] / 1e6:>13,.0f} MB{took['memory'] / 1e6:>7,.0f} MB"
        print(
            f"  {cost['stage']:<10}{cost['seconds']:>8.2f} s{took[clock]:>10.2f} s{ratio:>8.2f}"
            f"{took['wall']:>8.2f} s   {memory}",
            flush=True,
        )
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, help="of each run; left out: all cores")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    told = parser.parse_args()
    clock, ratios = "processor" if told.threads == 1 else "wall", []
    for name in told.runs:
        planned, found = measure(RUNS[name], told.threads)
        ratios += tell(name, RUNS[name], planned, found, clock)
    within = sum(0.5 <= ratio <= 2 for ratio in ratios)
    print(
        f"\n{within} of {len(ratios)} stages within a factor of two; load of the machine {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        target = Path(sys.argv[2])
        del sys.argv[1:3]
        child(target)
    else:
        main()
