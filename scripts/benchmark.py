"""Dense Hessians (or GGNs) by every strategy and by other tools: time, memory, agreement, and how far from the limit.

    python scripts/benchmark.py --nets mlp,residual
    python scripts/benchmark.py --nets 64-32-10@128,64-64-10@128 --json outputs/cost.json     # 64-width-10, N = 128

A method is measured in a process of its own, which is stopped after `--limit` seconds or when it takes more memory than
`--memory` GiB. There it runs once uncounted, then in `--rounds` rounds, all methods in turn; what is over in less than
`TURN` seconds runs several times in its turn, after one run that is not counted: others have had the machine, and a
virtual machine may have given the memory back to its host, which then takes 0.9 s in place of 0.05 s to touch 440 MB.
Peers stand in brackets; they are the extra `bench`.

seconds: the median, from the module to the dense symmetric matrix; "(blocks)" makes the blocks and drops them.
peak: resident memory above what was there after a net of 17 weights, in MiB; the matrix itself is part of it.
error: the largest difference to the matrix by khatri_rao in float64, as a part of its largest entry (which for nets
    up to 3,000 weights is itself compared with hvp).
x: times as fast as the best peer. GEMM: N P² FLOP a second, as a part of what multiplying square matrices reaches here.
write: the bytes of the result a second, as a part of what writing as much fresh memory reaches. Both limits hold for a
    method, one after the other.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from benchmark_nets import NETS, Problem, problem_of, warm_up
from benchmark_peers import CHUNKED, PEERS, NotApplicable, seconds_per_row
from benchmark_rates import SIDE, Rates, timed
from torch import Tensor

from pipeline.compute.dense import hessian
from pipeline.matrix import MATRICES
from pipeline.objective.objective import objective_of
from pipeline.strategy import STRATEGIES

DTYPES = {"float32": torch.float32, "float64": torch.float64}
MIB = 2**20
TURN = 0.5  # seconds
SHORT = 5.0  # seconds of a run, under which each turn begins with one that is not counted
ALONE = "khatri_rao (blocks)"
CHUNKS = (32, 128, 512)


def method_of(name: str, problem: Problem, matrix: str) -> Callable[[], Tensor | None]:
    """A function that computes the matrix once; for "blocks alone" it gives nothing."""
    peers = PEERS[matrix]
    if name in peers:
        chunk = min(CHUNKS, key=lambda size: seconds_per_row(problem, size)) if name in CHUNKED else 0
        return peers[name](problem, chunk)
    if name == ALONE:
        objective, params = objective_of(problem.model, problem.criterion)
        work = *MATRICES[matrix]().problem(objective, params, problem.batch), params

        def blocks_alone() -> None:
            for _ in STRATEGIES["khatri_rao"]().blocks(work[0], work[2], work[1]):
                pass

        return blocks_alone
    return lambda: hessian(problem.model, problem.criterion, *problem.batch, strategy=name, matrix=matrix)


def serve(pipe: Connection, net: str, name: str, options: argparse.Namespace) -> None:
    """The life of a child: one uncounted run, its memory and error, then a run for each request."""
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    try:
        problem = problem_of(net).to(device, dtype)
        for _ in range(2):
            method_of(name, warm_up().to(device, dtype), options.matrix)()
        run = method_of(name, problem, options.matrix)
        gc.collect()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        seconds, result = timed(run)
        peak = resident("VmHWM") - before
        error = None if result is None else difference(result, options.reference)
        del result
        pipe.send({"seconds": seconds, "peak": peak, "error": error})
        while pipe.recv():
            if seconds < SHORT:
                seconds = timed(run)[0]
            times = max(1, int(TURN / seconds))
            pipe.send({"seconds": statistics.median(timed(run)[0] for _ in range(times))})
    except EOFError:  # the parent has ended
        pass
    except (NotApplicable, ImportError) as reason:
        pipe.send({"failed": "not installed" if isinstance(reason, ImportError) else str(reason)})
    except (MemoryError, RuntimeError) as reason:
        told = str(reason)
        pipe.send({"failed": "out of memory" if "memory" in told else told.splitlines()[0][:60]})


def resident(what: str, process: int | None = None) -> int:
    """Bytes; 0 for a process that has just ended."""
    path = Path(f"/proc/{process or 'self'}/status")
    found = re.search(rf"{what}:\s+(\d+) kB", path.read_text() if path.exists() else "")
    return 1024 * int(found[1]) if found else 0


def difference(found: Tensor, path: str) -> float:
    """The largest one to the matrix that the file holds, strip by strip, as a part of its largest entry."""
    reference = torch.load(path, mmap=True)
    largest = scale = 0.0
    for start in range(0, len(found), 256):
        rows = slice(start, start + 256)
        largest = max(largest, float((found[rows].cpu().double() - reference[rows]).abs().max()))
        scale = max(scale, float(reference[rows].abs().max()))
    return largest / scale


class Child:
    """One method on one net, in a process of its own that ends when asked, at its limits, or with this one."""

    def __init__(self, net: str, name: str, options: argparse.Namespace) -> None:
        context = multiprocessing.get_context(options.start)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, net, name, options), daemon=True)
        self.process.start()
        theirs.close()
        self.limit, self.memory = options.limit, options.memory * 2**30
        self.alive = True

    def answer(self) -> dict[str, Any]:
        """What the child says next; it is ended if that takes too long or too much memory."""
        end = time.monotonic() + self.limit
        while not self.pipe.poll(0.02):
            if not self.process.is_alive():
                return self.close({"failed": "ended"})
            if time.monotonic() > end:
                return self.close({"failed": f"> {self.limit:g} s"})
            if resident("VmRSS", self.process.pid) > self.memory:
                return self.close({"failed": f"> {self.memory / 2**30:g} GiB"})
        try:
            told: dict[str, Any] = self.pipe.recv()
        except EOFError:
            told = {"failed": "ended"}
        return self.close(told) if "failed" in told else told

    def again(self) -> dict[str, Any]:
        self.pipe.send(True)
        return self.answer()

    def close(self, last: dict[str, Any] | None = None) -> dict[str, Any]:
        self.alive = False
        self.process.kill()
        self.process.join()
        return last or {}


def measure(net: str, names: list[str], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every method on one net."""
    rows, children = {}, {}
    for name in names:
        child = Child(net, name, options)
        rows[name] = child.answer() | {"times": []}
        if rows[name].get("seconds", options.limit) > options.patience:
            rows[name]["times"] = [rows[name]["seconds"]] if "seconds" in rows[name] else []
            child.close()
        if child.alive:
            children[name] = child
    for _ in range(options.rounds):
        for name, child in children.items():
            if child.alive:
                told = child.again()
                rows[name]["times"] += [told["seconds"]] if "seconds" in told else []
    for child in children.values():
        child.close()
    return rows


def reference_of(net: str, matrix: str) -> Tensor:
    problem = problem_of(net).to(torch.device("cpu"), torch.float64)

    def by(strategy: str) -> Tensor:
        return hessian(problem.model, problem.criterion, *problem.batch, strategy=strategy, matrix=matrix)

    dense = by("khatri_rao")
    if problem.num_parameters <= 3000:
        error = float((dense - by("hvp")).abs().max() / dense.abs().max())
        if error > 1e-10:
            raise SystemExit(f"{net}: khatri_rao and hvp differ by {error:.1e} in float64")
    return dense


def table(net: str, rows: dict[str, dict[str, Any]], rates: Rates, peers: set[str]) -> str:
    problem = problem_of(net)
    P, N = problem.num_parameters, problem.batch.num_samples
    seconds = {name: statistics.median(row["times"]) for name, row in rows.items() if row["times"]}
    best = min((value for name, value in seconds.items() if name in peers), default=None)
    lines = [
        f"{net}: {problem.title}: P = {P:,}, N = {N}",
        f"  {'':<26}{'seconds':>10}{'x':>8}{'peak MiB':>10}{'error':>10}{'GEMM':>7}{'write':>7}",
    ]
    for name, row in rows.items():
        label = name if name not in peers else f"({name})"
        if name not in seconds:
            lines.append(f"  {label:<26}{row.get('failed', '?'):>10}")
            continue
        times = f"{best / seconds[name]:.1f}" if best is not None and name not in peers else ""
        error = f"{row['error']:.0e}" if row["error"] is not None else ""
        products = f"{N * P**2 / rates.flop / seconds[name]:.0%}"
        writing = f"{P**2 * rates.itemsize / rates.bytes / seconds[name]:.0%}" if name != ALONE else ""
        peak = f"{row['peak'] / MIB:.0f}"
        lines.append(
            f"  {label:<26}{seconds[name]:>10.4f}{times:>8}{peak:>10}{error:>10}{products:>7}{writing:>7}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Dense Hessians by every strategy and by other tools.")
    parser.add_argument(
        "--nets", default=",".join(NETS), help="of " + ", ".join(NETS) + ", or 64-width-10@samples"
    )
    parser.add_argument("--methods", default="", help="strategies and peers; all by default")
    parser.add_argument("--matrix", choices=list(PEERS), default="hessian")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of one torch operation")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", type=int, default=SIDE, help="of the matrices whose product is timed")
    parser.add_argument("--rounds", type=int, default=7, help="runs of which the median is taken")
    parser.add_argument("--limit", type=float, default=120, help="seconds, of one run")
    parser.add_argument("--patience", type=float, default=20, help="seconds above which one run is enough")
    parser.add_argument("--memory", type=float, default=18, help="GiB that a method may take")
    parser.add_argument(
        "--start",
        choices=("spawn", "fork"),
        default="spawn",
        help="how a process begins; fork is sooner, for a try",
    )
    parser.add_argument("--json", type=Path, help="a file to which the figures are added")
    options = parser.parse_args()
    names = options.methods.split(",") if options.methods else [*STRATEGIES, ALONE, *PEERS[options.matrix]]
    torch.set_num_threads(options.threads)
    rates = Rates.of(DTYPES[options.dtype], torch.device(options.device), options.side)
    print(f"torch {torch.__version__}, {options.dtype}, {options.threads} threads: {rates}")
    with tempfile.TemporaryDirectory() as folder:
        options.reference = str(Path(folder) / "reference.pt")
        for net in options.nets.split(","):
            torch.save(reference_of(net, options.matrix), options.reference)
            rows = measure(net, names, options)
            print("\n" + table(net, rows, rates, set(PEERS[options.matrix])), flush=True)
            problem = problem_of(net)
            sizes = {"P": problem.num_parameters, "N": problem.batch.num_samples}
            if options.json:
                found = json.loads(options.json.read_text()) if options.json.exists() else {}
                found[net] = {
                    **sizes,
                    "gemm": rates.flop,
                    "write": rates.bytes / rates.itemsize,
                    "methods": rows,
                }
                options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
