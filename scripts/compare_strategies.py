"""Time, memory and agreement of all strategies, on the forum thread's net and on an MLP for digits.

    python scripts/compare_strategies.py --threads 2

What is measured is `pipeline.hessian`, from the module to the dense and symmetric matrix.

Seconds: the median of `--repeats` runs in one process, strategies taken in turn, after one run that is not counted.
Peak memory: a fresh process for each strategy loads torch, the net and the data, and computes the Hessian of a
    net of 17 weights, so that what is imported or set up once is there. Then it has the system forget its peak
    (Linux: 5 into /proc/self/clear_refs), and the figure is the new peak of its resident memory (VmHWM) above what
    was resident before (VmRSS). The result itself, P² numbers, is part of it.
Difference: the largest one to the matrix by `autograd` in float64, as a part of that matrix's largest entry.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import re
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.criterion import CrossEntropy, SquaredError
from pipeline.data import Digits
from pipeline.dense import hessian
from pipeline.objective import Batch
from pipeline.strategy import STRATEGIES

DTYPES = {"float32": torch.float32, "float64": torch.float64}
MIB = 2**20


@dataclass(frozen=True)
class Problem:
    title: str
    model: nn.Module
    criterion: Callable[[Tensor, Tensor], Tensor]
    batch: Batch

    def hessian(self, strategy: str, dtype: torch.dtype) -> Tensor:
        return hessian(self.model, self.criterion, *self.batch, strategy=strategy, dtype=dtype)

    @property
    def num_parameters(self) -> int:
        return sum(value.numel() for value in self.model.parameters())


def net(*sizes: int) -> nn.Module:
    fc1, fc2 = nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], sizes[2])
    return nn.Sequential(OrderedDict(fc1=fc1, act=nn.Tanh(), fc2=fc2))


def thread() -> Problem:
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 100)[:, None]
    return Problem("1-16-1 tanh, squared error", net(1, 16, 1), SquaredError(), Batch(x, torch.sin(x)))


def digits() -> Problem:
    torch.manual_seed(0)
    batch = Digits(input_shape=[64]).load().train.chunk(0, 256)
    return Problem("digits, 64-32-10 tanh, cross-entropy", net(64, 32, 10), CrossEntropy(), batch)


def warm_up() -> Problem:
    return Problem("2-3-2 tanh", net(2, 3, 2), CrossEntropy(), Batch(torch.eye(2), torch.arange(2)))


PROBLEMS = {"thread": thread, "digits": digits}


def seconds(problem: Problem, dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """The median time of each strategy."""
    times: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    for _ in range(repeats + 1):
        for name, taken in times.items():
            start = time.perf_counter()
            problem.hessian(name, dtype)
            taken.append(time.perf_counter() - start)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def peak_memory(which: str, strategy: str, dtype: str, threads: int) -> int:
    """Bytes above what was resident before; to be called in a process of its own."""
    torch.set_num_threads(threads)
    problem = PROBLEMS[which]()
    warm_up().hessian(strategy, DTYPES[dtype])
    gc.collect()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    problem.hessian(strategy, DTYPES[dtype])
    return _resident("VmHWM") - before


def _resident(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit(f"/proc/self/status has no {what}: memory is measured on Linux only.")
    return 1024 * int(found[1])


def in_a_fresh_process(which: str, strategy: str, dtype: str, threads: int) -> int:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(peak_memory, which, strategy, dtype, threads).result()


def difference(found: Tensor, reference: Tensor) -> float:
    return float((found.double() - reference).abs().max() / reference.abs().max())


def table(which: str, dtype: str, threads: int, repeats: int) -> Iterator[str]:
    problem = PROBLEMS[which]()
    reference = problem.hessian("autograd", torch.float64)
    times = seconds(problem, DTYPES[dtype], repeats)
    peaks = {name: in_a_fresh_process(which, name, dtype, threads) for name in STRATEGIES}
    matrix = problem.num_parameters**2 * DTYPES[dtype].itemsize / MIB
    sizes = f"P = {problem.num_parameters:,}, N = {problem.batch.num_samples}"
    yield f"{problem.title}: {sizes} (the matrix: {matrix:.2f} MiB)"
    yield f"  {'strategy':<12}{'seconds':>10}{'peak MiB':>11}{'difference':>13}"
    for name in STRATEGIES:
        agreement = difference(problem.hessian(name, DTYPES[dtype]), reference)
        yield f"  {name:<12}{times[name]:>10.4f}{peaks[name] / MIB:>11.1f}{agreement:>13.1e}"
    for one, other in (("triangular", "autograd"), ("hvp", "func")):
        line = f"  {one} takes {times[one] / times[other]:.2f} of the time of {other}"
        if min(peaks[one], peaks[other]) > MIB:
            line += f", {peaks[one] / peaks[other]:.2f} of its memory"
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare all strategies: time, peak memory, agreement.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of one torch operation")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median is taken")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, {options.dtype}, {options.threads} threads, median of {options.repeats}"
    )
    for which in PROBLEMS:
        print()
        for line in table(which, options.dtype, options.threads, options.repeats):
            print(line, flush=True)


if __name__ == "__main__":
    main()
