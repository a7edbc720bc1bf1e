"""What it costs that threads wait for each other by spinning, on idle cores and on busy ones.

    python scripts/benchmark_busy.py

OpenMP threads spin for `GOMP_SPINCOUNT` turns before they sleep; by default for minutes. 300 training steps of the
main job's net in a process of its own, for some counts, the median of three: alone, and beside a busy process a core.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

COUNTS = ("", "0", "1000", "10000", "100000")  # "": OpenMP's own
PROJECT = Path(__file__).parents[1]
IDLING = (
    "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # not longer than who started it
)
TRAINING = """
import time, torch
from pipeline.criterion import CrossEntropy
from pipeline.data import Digits
inputs, labels = Digits(input_shape=[64]).load().train.chunk(0, 256)
net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
optimizer, criterion = torch.optim.Adam(net.parameters()), CrossEntropy()
for step in range(320):
    if step == 20:
        start = time.perf_counter()
    optimizer.zero_grad()
    criterion(net(inputs), labels).backward()
    optimizer.step()
print(time.perf_counter() - start)
"""


@contextmanager
def busy(num_processes: int) -> Iterator[None]:
    """So many processes that do nothing but take time."""
    processes = [subprocess.Popen([sys.executable, "-c", IDLING]) for _ in range(num_processes)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds(count: str) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {"PYTHONPATH": str(PROJECT), **({"GOMP_SPINCOUNT": count} if count else {})}
    done = subprocess.run(
        [sys.executable, "-c", TRAINING], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def row(label: str, values: Sequence[float | str]) -> str:
    cells = (f"{value:>10.2f}" if isinstance(value, float) else f"{value:>10}" for value in values)
    return f"{label:<26}" + "".join(cells)


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    print(row("GOMP_SPINCOUNT", [count or "default" for count in COUNTS]))
    for label, num_busy in (("seconds, idle cores", 0), (f"seconds, {cores} busy processes", cores)):
        with busy(num_busy):
            print(row(label, [statistics.median(seconds(count) for _ in range(3)) for count in COUNTS]))


if __name__ == "__main__":
    main()
