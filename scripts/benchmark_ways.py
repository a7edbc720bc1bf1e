"""Ways to take products that `benchmark_operator.py` does not have: compiled, linearized, and with checkpoints.

    python scripts/benchmark_ways.py graphs [--turns 20] [--quick]
    python scripts/benchmark_ways.py checkpoints [--blocks 12]

graphs: each turn takes a gradient, and a product by each way; told is the median of their ratios, one thread. `traced`
is what `make_fx` records of a product through the kept graph, `compiled` that by `torch.compile`, `linearized` what
`torch.func.linearize` makes of the gradient. Before the turns each is compared with the kept graph.
checkpoints: a transformer each of whose blocks is under `torch.utils.checkpoint`; the most bytes that tensors held
during a product, by PyTorch's profiler, and the least of three CPU seconds.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from benchmark_operator import Net, nets
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from pipeline.matrix import GGN, Hessian, Matrix
from pipeline.objective import Batch, Objective, Params, leaves_of, objective_of
from pipeline.operator.checkpointed import Checkpointed
from pipeline.operator.forward_over_reverse import ForwardOverReverse
from pipeline.operator.protocol import Product
from pipeline.operator.reverse_over_reverse import ReverseOverReverse

AGREED = 1e-4  # relative, in single precision
Problem = tuple[Objective, Params, Batch]


def linearized(problem: Problem) -> Product:
    objective, params, batch = problem
    _, derivative = torch.func.linearize(torch.func.grad(lambda here: objective.loss(here, batch)), params)

    def product(vectors: Tensor) -> Tensor:
        parts = dict(zip(params, split(vectors, params), strict=True))
        return torch.cat([part.reshape(-1) for part in derivative(parts).values()])[:, None]

    return product


def traced(problem: Problem, is_compiled: bool) -> Product:
    objective, params, batch = problem
    leaves = leaves_of(params)
    weights = tuple(leaves.values())
    gradient = torch.autograd.grad(
        objective.loss(leaves, batch), weights, create_graph=True, materialize_grads=True
    )

    def along(*parts: Tensor) -> tuple[Tensor, ...]:
        pairs = [(g, part) for g, part in zip(gradient, parts, strict=True) if g.requires_grad]
        values, ways = zip(*pairs, strict=True)
        return torch.autograd.grad(values, weights, ways, retain_graph=True, materialize_grads=True)

    graph = make_fx(along)(*(torch.ones_like(value) for value in weights))
    run = torch.compile(graph) if is_compiled else graph

    def product(vectors: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([part.reshape(-1) for part in run(*split(vectors, params))])[:, None]

    return product


def split(vectors: Tensor, params: Params) -> list[Tensor]:
    parts = vectors[:, 0].split([value.numel() for value in params.values()])
    return [part.reshape(value.shape) for part, value in zip(parts, params.values(), strict=True)]


MAKERS: dict[str, Callable[[Problem], Product]] = {
    "reverse over reverse, graph kept": lambda problem: ReverseOverReverse().product(*problem),
    "traced": lambda problem: traced(problem, False),
    "compiled": lambda problem: traced(problem, True),
    "linearized": linearized,
}


def compare(net: Net, turns: int) -> None:
    criterion = nn.CrossEntropyLoss()
    objective, params = objective_of(net.model, criterion)
    batch = Batch.of(net.inputs, net.targets)
    print(f"\n{net.name}\n{'':44}{'made, wall s':>14}{'gradients a vector':>20}{'beside kept':>13}")
    vector = torch.randn(sum(value.numel() for value in params.values()), 1)
    for matrix in (Hessian(), GGN()):
        transformed, drawn = matrix.problem(objective, params, batch)
        ways, made, expected = {}, {}, None
        for name, maker in MAKERS.items():
            start = time.perf_counter()
            try:
                product = maker((transformed, params, drawn))
                found = product(vector)
                product(vector)
            except Exception as error:
                print(f"{type(matrix).__name__}, {name}: {str(error).partition(chr(10))[0]}")
                continue
            expected = found if expected is None else expected
            error = float((found - expected).norm() / expected.norm())
            if not error <= AGREED:
                print(f"{type(matrix).__name__}, {name}: wrong by {error:.1e}")
                continue
            ways[name], made[name] = product, time.perf_counter() - start
        ratios: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns):
            unit = cpu_seconds(lambda: objective.gradient(params, batch))
            for name in list(ways):
                try:
                    ratios[name].append(cpu_seconds(partial(ways[name], vector)) / unit)
                except RuntimeError as error:
                    print(f"{type(matrix).__name__}, {name}: {str(error).partition(chr(10))[0]}")
                    del ways[name]
        kept = ratios[next(iter(MAKERS))]
        for name in ways:
            beside = median(one / other for one, other in zip(ratios[name], kept, strict=True))
            print(
                f"{type(matrix).__name__ + ', ' + name:44}{made[name]:14.1f}{median(ratios[name]):20.2f}{beside:13.2f}",
                flush=True,
            )


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return checkpoint(self.layer, tokens, use_reentrant=False)


def with_checkpoints(num_blocks: int) -> None:
    torch.manual_seed(0)
    width, num_tokens, n = 128, 64, 32
    model = nn.Sequential(*(Block(width) for _ in range(num_blocks)), nn.Flatten(), nn.Linear(8192, 10))
    objective, params = objective_of(model, nn.CrossEntropyLoss())
    batch = Batch.of(torch.randn(n, num_tokens, width), torch.randint(10, (n,)))
    vector = torch.randn(sum(value.numel() for value in params.values()), 1)
    lean = objective.checkpointed()
    print(f"{num_blocks} blocks, N = {n}, {num_tokens} tokens: P = {len(vector):,}")
    print(f"{'':56}{'peak MB':>9}{'CPU s':>9}")
    told("gradient", lambda: objective.gradient(params, batch))
    told("gradient, checkpointed", lambda: lean.gradient(params, batch))
    for matrix in (Hessian(), GGN()):
        name = type(matrix).__name__

        def fresh(here: Objective, way: object, matrix=matrix) -> Tensor:
            transformed, drawn = matrix.problem(here, params, batch)
            return way.product(transformed, params, drawn)(vector)

        told(f"{name}, reverse over reverse, fresh", lambda: fresh(objective, ReverseOverReverse()))
        seconds = seconds_kept(matrix, (objective, params, batch), vector)
        print(f"{name + ', reverse over reverse, graph kept':56}{'as fresh':>9}{seconds:9.2f}")
        told(f"{name}, forward over reverse", lambda: fresh(objective, ForwardOverReverse(1)))
        told(f"{name}, {Checkpointed.NAME}", lambda: fresh(lean, Checkpointed()))


def seconds_kept(matrix: Matrix, problem: Problem, vector: Tensor) -> float:
    objective, params, batch = problem
    transformed, drawn = matrix.problem(objective, params, batch)
    kept = ReverseOverReverse().product(transformed, params, drawn)
    return min(cpu_seconds(partial(kept, vector)) for _ in range(3))


def told(label: str, run: Callable[[], object]) -> None:
    seconds = min(cpu_seconds(run) for _ in range(3))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    held = most = 0
    events = profiled.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    print(f"{label:56}{most / 1e6:9.0f}{seconds:9.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["graphs", "checkpoints"])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="small nets, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node")
    if options.what == "checkpoints":
        with_checkpoints(options.blocks)
        return
    for net in nets(options.quick):
        compare(net, options.turns)


if __name__ == "__main__":
    main()
