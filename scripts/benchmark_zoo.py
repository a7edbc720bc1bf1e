"""Dense Hessians of real nets by `pipeline.hessian` and as people write them by hand: time, and whether they are right.

    python scripts/benchmark_zoo.py                                  # every net whose library is installed
    python scripts/benchmark_zoo.py --nets nano-gpt,hf-llama --json outputs/zoo.json

The nets are those of `tests/zoo/` (the extra `zoo`), float32. A net is measured in a process of its own, on one
thread: each method runs once uncounted, then all in turn, `--rounds` times. A method that takes longer than `--limit`
seconds or more than `--memory` GiB is out, and the process is begun anew without it. Seconds are those that the
process had a core, so that other work on the machine counts for little.

verified, unverified: seconds of `pipeline.hessian(strategy="auto")` with and without `verify`, the median.
others: `torch.func.hessian` and vmap(jvp(grad)) in chunks (the best of three sizes), over `functional_call`, attention
    in plain products where the fused one has no second derivative; where neither works, double backward in chunks.
error: the largest over random v of ‖Hv − D(v)‖ / ‖D(v)‖, D(v) differences of the plain module's gradient in float64.
x: times as fast as the best other way, verified and unverified.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from benchmark import resident
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from zoo.nets import NETS
from zoo.problem import Problem
from zoo.reference import Reference, chosen

import pipeline

Method = Callable[[], Tensor]
CHUNKS = (32, 128, 512)
OURS = ("verified", "unverified")
OTHERS = ("torch.func.hessian", "chunked jvp(grad)")
LAST_RESORT = "double backward"
NUM_DIRECTIONS = 3
SHARP = (
    1e-6  # of D(v), which may be unsure by so much: more, and a kink of a piecewise linear net is too near
)


class ByHand:
    """The loss as a function of the flat weights, on the plain module."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        names = chosen(problem.model, problem.parameters)
        every = dict(problem.model.named_parameters())
        self.params = {name: every[name].detach() for name in names}
        self.sizes = [value.numel() for value in self.params.values()]
        self.theta = torch.cat([value.reshape(-1) for value in self.params.values()])

    def loss(self, params: dict[str, Tensor]) -> Tensor:
        model, criterion, inputs, targets, call, _ = self.problem
        with sdpa_kernel(SDPBackend.MATH):
            outputs = call(Functional(model, params), inputs)
        return criterion(outputs, targets)

    def flat_loss(self, theta: Tensor) -> Tensor:
        parts = zip(self.params.items(), theta.split(self.sizes), strict=True)
        return self.loss({name: part.view(value.shape) for (name, value), part in parts})

    def func_hessian(self) -> Method:
        def dense() -> Tensor:
            nested, params = torch.func.hessian(self.loss)(self.params), self.params
            rows = [
                torch.cat([nested[r][c].reshape(params[r].numel(), params[c].numel()) for c in params], 1)
                for r in params
            ]
            return torch.cat(rows)

        return dense

    def chunked(self) -> Method:
        size = min(CHUNKS, key=self.seconds_per_row)
        gradient, theta = grad(self.flat_loss), self.theta

        def dense() -> Tensor:
            result = theta.new_empty(len(theta), len(theta))
            for start in range(0, len(theta), size):
                write_rows(result, gradient, theta, start, min(start + size, len(theta)))
            return result

        return dense

    def seconds_per_row(self, size: int) -> float:
        """Of one chunk, the second time."""
        gradient, theta, stop = grad(self.flat_loss), self.theta, min(size, len(self.theta))
        result = theta.new_empty(stop, len(theta))
        for _ in range(2):
            seconds = timed(lambda: write_rows(result, gradient, theta, 0, stop))[0]
        return seconds / stop

    def double_backward(self) -> Method:
        """Rows of the gradient's derivative, 64 at a time."""
        theta = self.theta

        def dense() -> Tensor:
            leaf = theta.clone().requires_grad_()
            slope = torch.autograd.grad(self.flat_loss(leaf), leaf, create_graph=True)[0]
            unit = torch.eye(len(theta), dtype=theta.dtype)
            parts = [
                torch.autograd.grad(slope, leaf, rows, retain_graph=True, is_grads_batched=True)[0]
                for rows in unit.split(64)
            ]
            return torch.cat(parts)

        return dense


class Functional(nn.Module):
    """Calls a module with other weights."""

    def __init__(self, model: nn.Module, params: dict[str, Tensor]) -> None:
        super().__init__()
        vars(self).update(inner=model, given=params)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.inner, self.given, args, kwargs)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of this process, and what it gave."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def write_rows(
    result: Tensor, gradient: Callable[[Tensor], Tensor], theta: Tensor, start: int, stop: int
) -> None:
    tangents = theta.new_zeros(stop - start, len(theta))
    tangents[torch.arange(stop - start), torch.arange(start, stop)] = 1
    result[start:stop] = vmap(lambda tangent: jvp(gradient, (theta,), (tangent,))[1])(tangents)


def method_of(name: str, problem: Problem) -> Method:
    if name in OURS:
        model, criterion, inputs, targets, _, parameters = problem
        return lambda: pipeline.hessian(
            model, criterion, inputs, targets, parameters=parameters, verify=name == "verified"
        )
    by_hand = ByHand(problem)
    if name == "torch.func.hessian":
        return by_hand.func_hessian()
    return by_hand.chunked() if name == "chunked jvp(grad)" else by_hand.double_backward()


def serve(pipe: Connection, net: str, names: list[str], options: argparse.Namespace) -> None:
    """The life of a child: says what it is about to run, then how it went; at last, what could not be run."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    problem = NETS[net].build(options.samples or NETS[net].num_samples, wide=True)
    reference = Reference(problem)
    pipe.send({"P": reference.size, "N": options.samples or NETS[net].num_samples})
    problem.call(problem.model, problem.inputs)  # what libraries set up at the first call
    products = [
        (direction, reference.hessian(direction))
        for direction in torch.randn(NUM_DIRECTIONS, reference.size, dtype=torch.float64).unbind()
    ]
    sharp = [(v, value) for v, (value, unsure) in products if unsure < SHARP * float(value.norm())]
    del reference
    runs: dict[str, Method] = {}
    for name in names:
        pipe.send({"begins": name})
        try:
            run = method_of(name, problem)
            seconds, dense = timed(run)
        except Exception as reason:
            pipe.send(
                {"failed": name, "reason": f"{type(reason).__name__}: {str(reason).partition(chr(10))[0]}"}
            )
            continue
        errors = [float((dense.double() @ v - value).norm() / value.norm()) for v, value in sharp]
        del dense
        gc.collect()
        pipe.send({"first": name, "seconds": seconds, "error": max(errors, default=math.nan)})
        if seconds < options.patience:
            runs[name] = run
    for _ in range(options.rounds):
        for name, run in runs.items():
            pipe.send({"begins": name})
            pipe.send({"again": name, "seconds": timed(run)[0]})
            gc.collect()
    pipe.send({"ends": True})


def measure(net: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the children of a net say; each goes on where one that was ended had come to."""
    found: dict[str, Any] = {"methods": {}}
    names = [*OURS, *OTHERS]
    while names:
        stopped = _measure(net, names, found, options)
        if "failed" in found:
            break
        if not stopped:
            others = [found["methods"][name] for name in OTHERS]
            if all("failed" in one for one in others) and LAST_RESORT not in found["methods"]:
                names = [LAST_RESORT]
                continue
            break
        done = {name for name, row in found["methods"].items() if row.get("times")}
        names = [
            name for name in names if name not in done and "failed" not in found["methods"].get(name, {})
        ]
    return found


def _measure(net: str, names: list[str], found: dict[str, Any], options: argparse.Namespace) -> bool:
    """One child. Returns whether it was ended before it was done."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, net, names, options), daemon=True)
    process.start()
    theirs.close()
    running, since = "setting up", 0.0
    try:
        while True:
            reason = None
            if not pipe.poll(0.02):
                if not process.is_alive():
                    reason = "ended"
                elif seconds_taken(process.pid) - since > options.limit:
                    reason = f"> {options.limit:g} s"
                elif resident("VmRSS", process.pid) > options.memory * 2**30:
                    reason = f"> {options.memory:g} GiB"
            if reason is None and not pipe.poll(0):
                continue
            told: dict[str, Any] = {}
            if reason is None:
                try:
                    told = pipe.recv()
                except EOFError:
                    reason = "ended"
            if reason is not None:
                if running == "setting up":
                    found["failed"] = reason
                    return False
                found["methods"].setdefault(running, {})["failed"] = reason
                return True
            since = seconds_taken(process.pid)
            if "ends" in told:
                return False
            if "begins" in told:
                running = told["begins"]
            elif "failed" in told:
                found["methods"][told["failed"]] = {"failed": told["reason"]}
            elif "first" in told:
                row = {"first": told["seconds"], "error": told["error"], "times": []}
                found["methods"][told["first"]] = row
                if told["seconds"] >= options.patience:
                    row["times"].append(told["seconds"])
            elif "again" in told:
                found["methods"][told["again"]]["times"].append(told["seconds"])
            else:
                found.update(told)
    finally:
        process.kill()
        process.join()


def seconds_taken(process: int | None) -> float:
    """Of a core, by a process so far; 0 for one that has ended."""
    try:
        used = psutil.Process(process).cpu_times()
    except psutil.Error:
        return 0.0
    return float(used.user + used.system)


def seconds_of(row: Mapping[str, Any]) -> float | None:
    times = row.get("times") or ([row["first"]] if "first" in row else [])
    return statistics.median(times) if times else None


def line(net: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    if "failed" in found:
        return f"| {net} | | | {found['failed']} | | | | | |"
    rows = found["methods"]
    others = {name: seconds_of(row) for name, row in rows.items() if name not in OURS}
    best = min(((value, name) for name, value in others.items() if value is not None), default=None)
    cells = [net, f"{found['P']:,}", str(found["N"])]
    errors = [rows[name]["error"] for name in OURS if "error" in rows.get(name, {})]
    cells.append(f"{max(errors):.0e}" if errors else "")
    ratios = []
    for name in OURS:
        seconds = seconds_of(rows.get(name, {}))
        cells.append(f"{seconds:.3g}" if seconds is not None else short(rows.get(name, {}).get("failed", "")))
        ratios.append(f"{best[0] / seconds:.2f}" if best and seconds else "")
    if best:
        cells += [f"{best[0]:.3g} ({best[1]})", *ratios]
    else:
        cells += ["; ".join(short(rows[name]["failed"]) for name in others), *ratios]
    return "| " + " | ".join(cells) + " |"


def short(reason: str) -> str:
    return reason.replace("|", "/")[:60]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Dense Hessians of real nets, beside other ways to make them."
    )
    parser.add_argument(
        "--nets", default="", help="ids, or beginnings of them; all that are installed by default"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of which the median is taken")
    parser.add_argument("--samples", type=int, help="in place of each net's own number")
    parser.add_argument("--limit", type=float, default=120, help="seconds, of one run of a method")
    parser.add_argument("--patience", type=float, default=10, help="seconds above which one run is enough")
    parser.add_argument("--memory", type=float, default=8, help="GiB that a method may take")
    parser.add_argument("--json", type=Path, help="a file to which the figures are added")
    options = parser.parse_args()
    wanted = tuple(options.nets.split(",")) if options.nets else ("",)
    nets = [net for net in NETS.values() if net.id.startswith(wanted) and not net.refused]
    if not nets:
        raise SystemExit(f"--nets: {options.nets!r} is unknown: choose of {', '.join(NETS)}.")
    missing = sorted({net.missing for net in nets if net.missing})
    print(
        f"torch {torch.__version__}, float32, one thread"
        + (f"; without {', '.join(missing)}" if missing else "")
    )
    print("\n| net | P | N | error | verified | unverified | best other | x verified | x unverified |")
    print("|---|---:|---:|---:|---:|---:|---|---:|---:|", flush=True)
    for net in nets:
        if net.missing:
            continue
        found = measure(net.id, options)
        print(line(net.id, found), flush=True)
        if options.json:
            every = json.loads(options.json.read_text()) if options.json.exists() else {}
            options.json.write_text(json.dumps(every | {net.id: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
