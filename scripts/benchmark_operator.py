"""What a product with the Hessian or the GGN costs, in gradients of the same net: FLOP, and CPU seconds, by each way.

    python scripts/benchmark_operator.py [--threads 1] [--quick]

FLOP are those of matrix products and convolutions, counted by torch's FlopCounterMode; a gradient is one forward and
one backward pass of the plain module. Seconds are of the processor, the least of several, all in one process. Where
curvlinops is installed (`pip install curvlinops-for-pytorch`), its Hessian is timed beside.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import matmul

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.matrix import GGN, Hessian
from pipeline.objective import Batch, Objective, Params, objective_of
from pipeline.operator.central_difference import CentralDifference
from pipeline.operator.forward_over_reverse import ForwardOverReverse
from pipeline.operator.protocol import Way
from pipeline.operator.reverse_over_reverse import ReverseOverReverse


@dataclass
class Net:
    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor


class Block(nn.Module):
    """A pre-norm transformer block over tokens, and a linear head."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(tokens).mean(1))


def nets(quick: bool) -> list[Net]:
    torch.manual_seed(0)
    width, n = (64, 16) if quick else (1024, 128)
    mlp = nn.Sequential(
        *(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    )
    conv = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(4, 64), nn.ReLU()),
        *(
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        ),
    )
    tokens = 32 if quick else 128
    labels = torch.randint(10, (n,))
    return [
        Net(f"MLP 784-{width}-{width}-10, N = {n}", mlp, torch.randn(n, 784), labels),
        Net(f"conv net, 16×16, N = {n}", conv, torch.randn(n, 3, 16, 16), labels),
        Net(
            "transformer block, 16 tokens, N = 32",
            Block(tokens, 10),
            torch.randn(32, 16, tokens),
            labels[:32],
        ),
    ]


def flop_of(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def seconds_of(run: Callable[[], object], times: int) -> float:
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return best


def compare(net: Net, times: int) -> None:
    criterion = nn.CrossEntropyLoss()
    weights = [value.detach().requires_grad_() for value in net.model.parameters()]
    num_weights = sum(value.numel() for value in weights)

    def gradient() -> object:
        return torch.autograd.grad(
            criterion(net.model(net.inputs), net.targets), list(net.model.parameters())
        )

    objective, params = objective_of(net.model, criterion)
    batch = Batch.of(net.inputs, net.targets)
    unit = flop_of(partial(objective.gradient, params, batch))  # fused attention would not be counted
    second = seconds_of(gradient, times)
    print(f"\n{net.name}: P = {num_weights:,}, a gradient is {unit / 1e9:.3g} GFLOP, {second:.3f} CPU s")
    print(f"{'':56}{'FLOP':>8}{'CPU s':>9}   in gradients, a vector")
    for matrix in (Hessian(), GGN()):
        problem = matrix.problem(objective, params, batch)
        name = type(matrix).__name__
        ways = [(ReverseOverReverse(), 1), (ForwardOverReverse(8), 8), (ForwardOverReverse(1), 1)]
        if name == "Hessian":
            ways.append((CentralDifference(), 1))
        for way, width in ways:
            vectors = torch.randn(num_weights, width)
            product = way.product(problem[0], params, problem[1])
            product(vectors)
            show(
                f"{name}, {way.name}, {width} at once", partial(product, vectors), width, unit, second, times
            )
        fresh, vector = ReverseOverReverse(is_kept=False), torch.randn(num_weights, 1)
        run = partial(once, fresh, (problem[0], params, problem[1]), vector)
        show(f"{name}, {fresh.name}, fresh", run, 1, unit, second, times)
    peer(net, unit, second, times)


def once(way: Way, problem: tuple[Objective, Params, Batch], vector: Tensor) -> Tensor:
    return way.product(*problem)(vector)


def show(label: str, run: Callable[[], object], width: int, unit: int, second: float, times: int) -> None:
    flop, seconds = flop_of(run) / width / unit, seconds_of(run, times) / width / second
    print(f"{label:56}{flop:8.2f}{seconds:9.2f}", flush=True)


def peer(net: Net, unit: int, second: float, times: int) -> None:
    try:
        from curvlinops import HessianLinearOperator
    except ImportError:
        print("curvlinops is not installed: not compared")
        return
    params = [value for value in net.model.parameters() if value.requires_grad]
    data = [(net.inputs, net.targets)]
    operator = HessianLinearOperator(
        net.model, nn.CrossEntropyLoss(), params, data, check_deterministic=False
    )
    for width in (1, 8):
        vectors = torch.randn(operator.shape[1], width)
        show(
            f"curvlinops, Hessian, {width} at once",
            partial(matmul, operator, vectors),
            width,
            unit,
            second,
            times,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small nets, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for net in nets(options.quick):
        compare(net, options.times)


if __name__ == "__main__":
    main()
