"""Every strategy on a GPU: right on the table of cases, then timed against the card's own rates, in one call.

    scripts/gpu_check.sh
    python scripts/gpu_check.py --device cpu --sizes 64-100-10@128      # to try it without a GPU

1. Each case of `tests/support/cases.py`, each strategy, float64, on the device, against `triangular` or `hvp`
   on the CPU (1e-10 of the largest entry). A strategy that refuses must refuse by name.
2. Each net of `tests/zoo/` whose library is there, its Hessian and GGN by `auto`, on the device, against products by
   differences of the plain module's gradients on the CPU (1e-5 of their size).
3. Each of these cases once more by `curvature_operator`, for the Hessian and the GGN, on the device, against the dense
   matrix on the CPU (1e-9 of its norm), and its largest eigenpair by `eigenpairs`; then seconds of a gradient, of
   products, and of the five largest eigenpairs of an MLP of 1.86 million weights.
4. For each of `--sizes`: seconds of the blocks alone and of the dense matrix by khatri_rao, float32, beside two limits:
   N P² FLOP at the rate of multiplying square matrices, and the bytes of the matrix at the rate of writing memory.
5. All eigenvalues of a random symmetric matrix of `--rows` rows, float32, by spectrum=exact, there and on the CPU.
Ends with status 1 if any number is wrong. It needs torch, NumPy and h5py only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from fnmatch import fnmatch
from pathlib import Path

import torch
from benchmark_nets import problem_of
from benchmark_rates import SIDE, Rates, timed
from torch import nn

from pipeline import curvature_operator, eigenpairs
from pipeline.compute.dense import hessian
from pipeline.errors import PipelineError
from pipeline.objective.objective import objective_of
from pipeline.spectrum.exact import eigenvalues_of
from pipeline.strategy import STRATEGIES, KhatriRao

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.cases import CASES, Case
from zoo.nets import NETS
from zoo.problem import Net
from zoo.reference import Reference, each_tensor

TOLERANCE = 1e-10
MEMORY = 2**32  # bytes for a basis: what is free is not looked up, as psutil may be missing
TOLERANCE_OF_NETS = 1e-5


def difference(case: Case, name: str, device: torch.device) -> float | str:
    """From the matrix on the CPU, as a part of its largest entry; or in what words the strategy refuses."""
    model, criterion, batch, parameters = case.build()
    oracle = next(one for one in ("triangular", "hvp") if one not in case.refused_by)
    expected = hessian(model, criterion, *batch, strategy=oracle, parameters=parameters)
    model, batch = model.to(device), batch.to(device)
    try:
        found = hessian(model, criterion, *batch, strategy=name, parameters=parameters, device=device)
    except PipelineError as error:
        return str(error)
    return float((found.cpu() - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


def check(device: torch.device, pattern: str) -> int:
    """The number of wrong matrices, of the cases whose names match."""
    cases = [case for case in CASES if fnmatch(case.id, pattern)]
    num_wrong = num_right = num_refused = 0
    for case in cases:
        for name in STRATEGIES:
            found = difference(case, name, device)
            if isinstance(found, str):
                num_refused += 1
                expected = name in case.refused_by
                num_wrong += not expected
                if not expected:
                    print(f"{case.id}, {name}: refused: {found}")
            elif found <= TOLERANCE:
                num_right += 1
            else:
                num_wrong += 1
                print(f"{case.id}, {name}: off by {found:.1e}")
    print(f"{len(cases)} cases: {num_right} right, {num_refused} refused, {num_wrong} wrong")
    return num_wrong


def differences_of_net(net: Net, device: torch.device) -> dict[str, float | str]:
    """By the name of a matrix: of the product with a random direction, as a part of its size and that of the Hessian's,
    as a GGN may be zero; or in what words the matrix is refused.
    """
    problem = net.build()
    reference = Reference(problem)
    direction = torch.randn(reference.size, dtype=torch.float64)
    expected = {matrix: getattr(reference, matrix)(direction).value for matrix in ("hessian", "ggn")}
    inputs, targets = (each_tensor(tree, lambda value: value.to(device)) for tree in problem[2:4])
    model, criterion = problem.model.to(device), problem.criterion
    if isinstance(criterion, torch.nn.Module):
        criterion = criterion.to(device)
    dtype = torch.float64 if net.castable else None
    found: dict[str, float | str] = {}
    for matrix, product in expected.items():
        options = {"matrix": matrix, "parameters": problem.parameters, "dtype": dtype, "device": device}
        try:
            dense = hessian(model, criterion, inputs, targets, **options)
        except PipelineError as error:
            found[matrix] = str(error)
        else:
            size = product.norm() + expected["hessian"].norm()
            found[matrix] = float((dense.cpu().double() @ direction - product).norm() / size)
    return found


def check_nets(device: torch.device, pattern: str) -> int:
    """The number of wrong matrices, of the nets whose names match; a net that raises anything else counts as one."""
    nets = [net for net in NETS.values() if fnmatch(net.id, pattern) and not (net.missing or net.refused)]
    num_wrong = num_right = num_refused = 0
    for net in nets:
        try:
            differences = differences_of_net(net, device)
        except Exception as error:
            num_wrong += 1
            print(f"{net.id}: raw {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            continue
        for matrix, found in differences.items():
            if isinstance(found, str):
                num_refused += 1
                print(f"{net.id}, {matrix}: refused: {found}")
            elif found <= TOLERANCE_OF_NETS:
                num_right += 1
            else:
                num_wrong += 1
                print(f"{net.id}, {matrix}: off by {found:.1e}")
    print(f"{len(nets)} nets: {num_right} right, {num_refused} refused, {num_wrong} wrong or raw")
    return num_wrong


def check_operators(device: torch.device, pattern: str) -> int:
    """The number of operators whose products or largest eigenpair are wrong; refused ones are counted apart."""
    num_right = num_wrong = num_refused = 0
    for case in (case for case in CASES if fnmatch(case.id, pattern)):
        for matrix in ("hessian", "ggn"):
            model, criterion, batch, parameters = case.build()
            try:
                dense = hessian(model, criterion, *batch, matrix=matrix, parameters=parameters)
                there = (model.to(device), criterion, [tuple(batch.to(device))], matrix, parameters)
                operator = curvature_operator(*there, device=device)
                vectors = torch.randn(operator.num_rows, 3, dtype=torch.float64)
                gap = (operator @ vectors.to(device)).cpu() - dense @ vectors
                (value,) = eigenpairs(operator, top=1, bottom=0, tolerance=1e-9, memory=MEMORY).values
            except PipelineError as error:
                num_refused += 1
                print(f"{case.id}, {matrix}: no operator: {error}")
                continue
            size = float(dense.norm()) or 1.0
            expected = float(torch.linalg.eigvalsh(dense)[-1])
            error = max(float(gap.norm()) / (size * float(vectors.norm())), abs(value - expected) / size)
            num_right, num_wrong = num_right + (error <= 1e-9), num_wrong + (not error <= 1e-9)
            if not error <= 1e-9:
                print(f"{case.id}, {matrix}: operator off by {error:.1e}")
    print(f"operators: {num_right} right, {num_refused} refused, {num_wrong} wrong")
    return num_wrong


def time_operator(width: int, device: torch.device) -> None:
    """Seconds of products with the Hessian of 784-width-width-10 on 128 samples, in gradients of it."""
    torch.manual_seed(0)
    layers = [(784, width), (width, width), (width, 10)]
    parts = [part for sizes in layers for part in (nn.Linear(*sizes), nn.ReLU())]
    model = nn.Sequential(*parts[:-1])
    model, x, y = model.to(device), torch.rand(128, 784, device=device), torch.arange(128, device=device) % 10
    criterion = nn.CrossEntropyLoss()

    def gradient() -> None:
        torch.autograd.grad(criterion(model(x), y), list(model.parameters()))

    operator = curvature_operator(model, criterion, (x, y))
    one, four = (torch.randn(operator.num_rows, number, device=device) for number in (1, 4))
    runs = {
        "a gradient": gradient,
        "1 product": lambda: operator @ one,
        "4 products": lambda: operator @ four,
    }
    seconds = {}
    for label, run in runs.items():
        run()
        seconds[label] = statistics.median(timed(run)[0] for _ in range(5))
    told = ", ".join(f"{label} {value:.4f} s" for label, value in seconds.items())
    print(f"operator, P = {operator.num_rows:,}, {operator.way}: {told}")
    taken, found = timed(lambda: eigenpairs(operator, top=5, bottom=0, tolerance=1e-4, memory=MEMORY))
    print(f"  five largest eigenpairs: {taken:.2f} s, {found.num_products} products")


def time_net(name: str, device: torch.device, rates: Rates) -> None:
    problem = problem_of(name).to(device, torch.float32)
    objective, params = objective_of(problem.model, problem.criterion)
    strategy = KhatriRao(megabytes=1024 if device.type == "cuda" else 256)

    def blocks_alone() -> None:
        for _ in strategy.blocks(objective, params, problem.batch):
            pass

    def dense() -> torch.Tensor:
        return hessian(problem.model, problem.criterion, *problem.batch, strategy=strategy)

    P, N = problem.num_parameters, problem.batch.num_samples
    limits = N * P**2 / rates.flop, 4 * P**2 / rates.bytes
    print(f"{name}: P = {P:,}, N = {N}: limits: products {limits[0]:.3f} s, writing {limits[1]:.3f} s")
    for label, run in (("blocks alone", blocks_alone), ("dense", dense)):
        run()
        seconds = statistics.median(timed(run)[0] for _ in range(3))
        shares = ", ".join(
            f"{limit / seconds:.0%} of {what}"
            for limit, what in zip(limits, ("products", "writing"), strict=True)
        )
        print(f"  {label:<14}{seconds:>9.3f} s: {shares}")


def compare_eigenvalues(num_rows: int, device: torch.device) -> int:
    """Whether those of the device are wrong; both are timed once, after a small one."""
    matrix = torch.randn(num_rows, num_rows, generator=torch.Generator().manual_seed(0))
    matrix = (matrix + matrix.T).numpy()
    kind = "cuda" if device.type == "cuda" else "cpu"
    eigenvalues_of(matrix[:100, :100].copy(), kind)
    (there, found), (here, expected) = (timed(lambda k=k: eigenvalues_of(matrix, k)) for k in (kind, "cpu"))
    error = float(abs(found - expected).max() / abs(expected).max())
    print(
        f"eigenvalues, P = {num_rows:,}: {kind} {there:.2f} s, cpu {here:.2f} s, apart by {error:.1e} of the largest"
    )
    return int(not error <= 1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description="Every strategy on a GPU.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--sizes", default="64-100-10@128,64-267-10@256,64-667-10@512", help="64-width-10@samples"
    )
    parser.add_argument("--cases", default="*", help="a glob of their names; all by default")
    parser.add_argument("--real-nets", default="*", help="a glob of the names of nets; all by default")
    parser.add_argument("--width", type=int, default=1024, help="of the net whose products are timed")
    parser.add_argument("--side", type=int, default=SIDE, help="of the matrices whose product is timed")
    parser.add_argument("--rows", type=int, default=7510, help="of the matrix for the eigenvalues")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU: --device cpu tries the script without one.")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device.type == 'cuda' else 'cpu'}")
    num_wrong = check(device, options.cases) + check_nets(device, options.real_nets)
    num_wrong += check_operators(device, options.cases)
    time_operator(options.width, device)
    rates = Rates.of(torch.float32, device, options.side)
    print(rates)
    for name in options.sizes.split(","):
        time_net(name, device, rates)
    num_wrong += compare_eigenvalues(options.rows, device)
    sys.exit(1 if num_wrong else 0)


if __name__ == "__main__":
    main()
