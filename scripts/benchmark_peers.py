"""How other tools give the dense Hessian or GGN, each as its own documentation writes it, on the plain module.

A peer is a function of a problem and a chunk size that returns a callable; a call of that gives the (P, P) matrix with
rows and columns in the order of `model.named_parameters()`. Peers that know no chunks ignore the chunk size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from benchmark_nets import Problem
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from pipeline.criterion import CrossEntropy

Dense = Callable[[], Tensor]


class NotApplicable(Exception):
    """The peer does not know such nets, losses or matrices."""


class HalfSquaredError(nn.MSELoss):
    """½ ‖f - y‖², averaged over samples, as a loss module: what MSELoss gives for one output, halved."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return 0.5 * super().forward(input, target) * input.shape[1]


def weights(problem: Problem) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in problem.model.named_parameters()}


def loss_of(problem: Problem) -> Callable[[dict[str, Tensor]], Tensor]:
    def loss(params: dict[str, Tensor]) -> Tensor:
        outputs = functional_call(problem.model, params, (problem.batch.inputs,))
        return problem.criterion(outputs, problem.batch.targets)

    return loss


def flat_gradient(problem: Problem) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The gradient as a function of the flat weights, and these."""
    params = weights(problem)
    names, shapes = list(params), [value.shape for value in params.values()]
    sizes, loss = [value.numel() for value in params.values()], loss_of(problem)

    def flat_loss(theta: Tensor) -> Tensor:
        parts = (part.view(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True))
        return loss(dict(zip(names, parts, strict=True)))

    return grad(flat_loss), torch.cat([value.reshape(-1) for value in params.values()])


def func_hessian(problem: Problem, chunk: int) -> Dense:
    """`torch.func.hessian` over a dict of weights; the nested blocks are put together."""
    params, loss = weights(problem), loss_of(problem)

    def dense() -> Tensor:
        nested = torch.func.hessian(loss)(params)
        rows = [
            torch.cat([nested[r][c].reshape(params[r].numel(), params[c].numel()) for c in params], 1)
            for r in params
        ]
        return torch.cat(rows)

    return dense


def chunked_jvp(problem: Problem, chunk: int) -> Dense:
    """Forward over reverse on chunks of unit vectors, each written into the result as it comes."""
    gradient, theta = flat_gradient(problem)

    def dense() -> Tensor:
        result = theta.new_empty(len(theta), len(theta))
        for start in range(0, len(theta), chunk):
            write_rows(result, gradient, theta, start, min(start + chunk, len(theta)))
        return result

    return dense


def write_rows(
    result: Tensor, gradient: Callable[[Tensor], Tensor], theta: Tensor, start: int, stop: int
) -> None:
    tangents = theta.new_zeros(stop - start, len(theta))
    tangents[torch.arange(stop - start), torch.arange(start, stop)] = 1
    result[start:stop] = vmap(lambda tangent: jvp(gradient, (theta,), (tangent,))[1])(tangents)


def operator(problem: Problem, kind: str) -> Dense:
    import curvlinops

    params = list(problem.model.parameters())
    loss = nn.CrossEntropyLoss() if isinstance(problem.criterion, CrossEntropy) else HalfSquaredError()
    first = params[0]
    data = [(problem.batch.inputs, problem.batch.targets)]
    make = getattr(curvlinops, kind)

    def dense() -> Tensor:
        linear = make(problem.model, loss, params, data, check_deterministic=False)
        result: Tensor = linear @ torch.eye(problem.num_parameters, dtype=first.dtype, device=first.device)
        return result.detach()

    return dense


def curvlinops_hessian(problem: Problem, chunk: int) -> Dense:
    """`HessianLinearOperator @ I`."""
    return operator(problem, "HessianLinearOperator")


def curvlinops_ggn(problem: Problem, chunk: int) -> Dense:
    """`GGNLinearOperator @ I`."""
    return operator(problem, "GGNLinearOperator")


def jacobian_ggn(problem: Problem, chunk: int) -> Dense:
    """JᵀΛJ from the Jacobian of all outputs (vmap over samples) and the Hessian of the loss by them."""
    params = weights(problem)
    inputs, targets = problem.batch

    def outputs(params: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = functional_call(problem.model, params, (x[None],))
        return result[0]

    def sample_loss(f: Tensor, y: Tensor) -> Tensor:
        return problem.criterion(f[None], y[None])

    def dense() -> Tensor:
        jacobian = vmap(jacrev(outputs), (None, 0))(params, inputs)
        f = functional_call(problem.model, params, (inputs,)).detach()
        num_samples, num_outputs = f.shape
        J = torch.cat([part.reshape(num_samples, num_outputs, -1) for part in jacobian.values()], -1)
        curvature = vmap(torch.func.hessian(sample_loss))(f, targets) / num_samples  # (N, C, C)
        return J.flatten(0, 1).T @ (curvature @ J).flatten(0, 1)

    return dense


def backpack_ggn(problem: Problem, chunk: int) -> Dense:
    """The product of BackPACK's `SqrtGGNExact` with its transpose; it knows sequences of layers that it extends."""
    import copy

    from backpack import backpack, extend
    from backpack.extensions import SqrtGGNExact

    if not isinstance(problem.model, nn.Sequential) or not isinstance(problem.criterion, CrossEntropy):
        raise NotApplicable("needs nn.Sequential and cross-entropy")
    model, loss = extend(copy.deepcopy(problem.model)), extend(nn.CrossEntropyLoss())

    def dense() -> Tensor:
        with warnings.catch_warnings(), backpack(SqrtGGNExact()):
            warnings.filterwarnings(
                "ignore", "Full backward hook"
            )  # the inputs need no gradient, and get none
            loss(model(problem.batch.inputs), problem.batch.targets).backward()
        factors = [
            value.sqrt_ggn_exact.flatten(2).flatten(0, 1) for value in model.parameters()
        ]  # (C·N, P_l)
        V = torch.cat(factors, 1)
        return V.T @ V

    return dense


CHUNKED = ("chunked jvp(grad)",)
PEERS: dict[str, dict[str, Callable[[Problem, int], Dense]]] = {
    "hessian": {
        "torch.func.hessian": func_hessian,
        "chunked jvp(grad)": chunked_jvp,
        "curvlinops": curvlinops_hessian,
    },
    "ggn": {
        "jacobian": jacobian_ggn,
        "curvlinops": curvlinops_ggn,
        "backpack": backpack_ggn,
    },
}


def seconds_per_row(problem: Problem, chunk: int) -> float:
    """Of forward over reverse on one chunk, the second time."""
    import time

    gradient, theta = flat_gradient(problem)
    stop = min(chunk, len(theta))
    result = theta.new_empty(stop, len(theta))
    taken = 0.0
    for _ in range(2):
        start = time.perf_counter()
        write_rows(result, gradient, theta, 0, stop)
        float(result[0, 0])
        taken = time.perf_counter() - start
    return taken / stop
