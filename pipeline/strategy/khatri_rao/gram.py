"""The Gram matrix of a Gauss-Newton matrix: its nonzero eigenvalues, from as many rows as there are outputs.

G = Σ_n J_nᵀ Λ_n J_n over samples n, J_n (C, P) the derivative of the outputs, Λ_n (C, C) the curvature of the
criterion. With Λ_n = L_n L_nᵀ and A the rows L_nᵀ J_n of all samples, G = AᵀA, and K = AAᵀ (C·N, C·N) has the same
nonzero eigenvalues. For a use z = W ã the row of a sample and of a column of L is δ ãᵀ, δ the backward pass of that
column; so what the weight adds to K is (ã · ã')(δ · δ') for one position, and for several the product of rows that are
made for a few units at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.objective import (
    Batch,
    DifferenceObjective,
    LinearizedModel,
    LinearizedOutputs,
    Objective,
    Params,
    Tree,
    check_samples_apart,
    leaves_of,
)
from pipeline.strategy.khatri_rao.captured_net import CapturedNet, arranged, branch
from pipeline.strategy.khatri_rao.interception import LinearUseInterceptor
from pipeline.strategy.khatri_rao.linear_use import LinearUse

NUMBERS_AT_ONCE = 2**24  # of rows that are made at a time
NEGATIVE = 1e-6  # relative: more negative than that the curvature of a convex criterion is not by rounding
AGREED = 1e-3  # relative difference of K u by two ways; both round in the precision of the weights


class _Seen(NamedTuple):
    """Of each use ã, (N, T, G·p), and δ of each column, (C, N, T, G·d); rows (C·N, P_o) of each other parameter."""

    uses: tuple[LinearUse, ...]
    inputs: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    rest: dict[str, Tensor]


class GramMatrix(NamedTuple):
    """K = AAᵀ, (C·N, C·N) in float64; the trace of each parameter's diagonal block of AᵀA; and u ↦ Aᵀu, (P,)."""

    values: Tensor
    traces: dict[str, float]
    pull: Callable[[Tensor], Tensor]


def gram_matrix(
    model: Objective, params: Params, batch: Batch, objective: Objective, drawn: Batch
) -> GramMatrix:
    """K, rows in the order of columns and then samples; columns that are zero are left out.

    model: the objective of the model. objective, drawn: what a matrix makes of it and of the batch: of the linearized
    model, as the GGN, the Fisher matrix and the empirical one have it.
    Cost: C backward passes, and (C·N)² (p + d) FLOP for each layer, or (C·N)² P_l where positions share its weight; N·C
    backward passes for parameters that do not enter linearly. Memory: K, and δ of all layers, C times as large as the
    outputs of these layers.

    Raises:
        PipelineError: the objective is of another kind, its criterion is not convex or couples samples, samples mix in
            the model, or K fails its check against products with the Jacobian.
    """
    if isinstance(objective, DifferenceObjective) or not isinstance(objective.predict, LinearizedModel):
        raise PipelineError(
            "a Gram matrix is that of a Gauss-Newton matrix: use matrix=ggn, fisher or empirical_fisher."
        )
    check_samples_apart(model.predict, params, batch, "a Gram matrix")
    jacobian = objective.predict.jacobian(batch.inputs)
    outputs = [value.detach() for value in jacobian.tree.tensors]
    if len(outputs) != 1 or len(outputs[0]) != batch.num_samples:
        raise PipelineError(
            "a Gram matrix needs a model that returns one floating-point tensor (N, ...): let it return that alone."
        )
    factors = _factors(_curvature(objective, jacobian.outputs, drawn))  # (columns, N, outputs of a sample)
    gram, traces = _of_rows(_seen(model, params, batch, factors.reshape(-1, *outputs[0].shape)))

    def pull(vector: Tensor) -> tuple[Tensor, ...]:
        weights = vector.to(factors.device).reshape(factors.shape[:2])
        cotangent = (factors.double() * weights[..., None]).sum(0)
        return jacobian.pull((cotangent.to(outputs[0]).reshape(outputs[0].shape),))

    vector = torch.randn(len(gram), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pushed = jacobian.push(pull(vector))[0]
    expected = (factors.double() * pushed.double().reshape(1, len(pushed), -1)).sum(2).flatten()
    found = gram @ vector.to(gram)
    if not float((found - expected).norm()) <= AGREED * float(expected.norm()):
        gap = float((found - expected).norm() / expected.norm())
        raise PipelineError(
            f"the Gram matrix differs from products with the Jacobian by {gap:.2g}: use curvature_operator and "
            "eigenpairs."
        )
    return GramMatrix(gram, traces, lambda vector: torch.cat([part.flatten() for part in pull(vector)]))


def _curvature(objective: Objective, outputs: object, batch: Batch) -> Tensor:
    """Λ, (N, C, C), for all samples at once: C derivatives of the criterion's gradient.

    Raises:
        PipelineError: the criterion couples samples.
    """
    like = Tree.of(outputs).tensors[0].detach()
    change = torch.zeros_like(like).requires_grad_()
    n = len(like)

    with torch.enable_grad():
        loss = objective.criterion(LinearizedOutputs(outputs, (change,)), batch.targets)
        slope = torch.autograd.grad(loss, change, create_graph=True)[0]

    def times(direction: Tensor) -> Tensor:
        if not slope.requires_grad:
            return torch.zeros_like(direction)
        return torch.autograd.grad(slope, change, direction, retain_graph=True, materialize_grads=True)[0]

    columns = []
    flat = like.reshape(n, -1)
    for unit in torch.eye(flat.shape[1], dtype=like.dtype, device=like.device):
        columns.append(times(unit.expand(n, -1).reshape(like.shape)).reshape(n, -1))
    curvature = torch.stack(columns, 2)
    # The sums over samples are those of each sample alone, whatever samples the criterion might couple.
    drawn = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(flat)
    whole = times(drawn.reshape(like.shape)).reshape(n, -1)
    if float((whole - (curvature @ drawn[..., None])[..., 0]).norm()) > 1e-4 * float(whole.norm()):
        raise PipelineError(
            "the criterion couples samples, and a Gram matrix takes them apart: use curvature_operator."
        )
    return curvature


def _factors(curvature: Tensor) -> Tensor:
    """L of Λ = L Lᵀ, as (columns, N, C), without the columns that are zero for all samples.

    Raises:
        PipelineError: Λ is not positive semidefinite.
    """
    values, vectors = torch.linalg.eigh((curvature + curvature.mT).double() / 2)
    largest = float(values.abs().max())
    if float(values.min()) < -NEGATIVE * largest:
        raise PipelineError(
            f"the criterion is not convex (its curvature is {float(values.min()):.3g}, at most {largest:.3g}), so that "
            "a Gram matrix does not tell the eigenvalues: use curvature_operator and eigenpairs."
        )
    kept = values.amax(0) > 10 * torch.finfo(curvature.dtype).eps * largest  # a null space, but for rounding
    kept[-1] = True  # where nothing curves
    factors: Tensor = (vectors * values.clamp(min=0).sqrt()[:, None, :])[..., kept]
    columns: Tensor = factors.permute(2, 0, 1).to(curvature.dtype)
    return columns


def _seen(model: Objective, params: Params, batch: Batch, cotangents: Tensor) -> _Seen:
    """What the rows are made of: one forward pass and a backward pass for each column; cotangents (C, N, ...)."""
    net = CapturedNet.of(model, params, batch)
    single = [use for use in net.uses if all(_times_used(name, net.uses) == 1 for name in use.names)]
    linear = {name for use in single for name in use.names}
    leaves = leaves_of(params)
    with LinearUseInterceptor(leaves, [name for use in net.uses for name in use.names], branch) as capture:
        outputs = Tree.of(model.predict(leaves, batch.inputs)).tensors[0]
    calls = capture.calls[: len(net.uses)]
    arguments = [call.z for call in calls]
    each = []
    for cotangent in cotangents:
        parts = (
            torch.autograd.grad(outputs, arguments, cotangent, retain_graph=True, materialize_grads=True)
            if calls
            else ()
        )
        each.append(arranged(net.uses, calls, parts)[1])
    chosen = [index for index, use in enumerate(net.uses) if use in single]
    deltas = tuple(torch.stack([parts[index] for parts in each]) for index in chosen)
    inputs = tuple(arranged(net.uses, calls, [call.z for call in calls])[0][index] for index in chosen)
    others = {name: leaves[name] for name in params if name not in linear}
    return _Seen(tuple(single), inputs, deltas, _rows(outputs, others, cotangents))


def _times_used(name: str, uses: tuple[LinearUse, ...]) -> int:
    return sum(name in use.names for use in uses)


def _rows(outputs: Tensor, others: Params, cotangents: Tensor) -> dict[str, Tensor]:
    """The rows by parameters that do not enter linearly, or in several places: a backward pass for each row."""
    if not others:
        return {}
    rows: dict[str, list[Tensor]] = {name: [] for name in others}
    for cotangent in cotangents:
        for n in range(len(cotangent)):
            alone = torch.zeros_like(cotangent)
            alone[n] = cotangent[n]
            leaves = tuple(others.values())
            parts = torch.autograd.grad(outputs, leaves, alone, retain_graph=True, materialize_grads=True)
            for name, part in zip(others, parts, strict=True):
                rows[name].append(part.flatten())
    return {name: torch.stack(parts) for name, parts in rows.items()}


def _of_rows(seen: _Seen) -> tuple[Tensor, dict[str, float]]:
    """K, the sum over parameters, and the trace of what each of them adds."""
    gram: Tensor | None = None
    traces: dict[str, float] = {}
    for name, part in _parts(seen):
        traces[name] = traces.get(name, 0.0) + float(part.diagonal().sum())
        gram = part if gram is None else gram.add_(part)
    assert gram is not None, "there are parameters"
    return gram, traces


def _parts(seen: _Seen) -> Iterator[tuple[str, Tensor]]:
    """What each parameter adds to K, some of them in several parts."""
    for name, rows in seen.rest.items():
        yield name, rows.double() @ rows.double().T
    for use, a, delta in zip(seen.uses, seen.inputs, seen.deltas, strict=True):
        delta = delta.flatten(0, 1)  # (C·N, T, G·d)
        columns = len(delta) // len(a)
        if use.bias is not None:
            rows = delta.sum(1).double()
            yield use.bias, rows @ rows.T
        if use.weight is None:
            continue
        if use.num_positions == 1 and use.num_groups == 1:
            inputs = a[:, 0].double()
            outer = delta[:, 0].double() @ delta[:, 0].double().T
            yield use.weight, outer * (inputs @ inputs.T).repeat(columns, columns)
            continue
        for rows in _rows_of_units(use, a.repeat(columns, 1, 1), delta):
            yield use.weight, rows @ rows.T


def _rows_of_units(use: LinearUse, a: Tensor, delta: Tensor) -> Iterator[Tensor]:
    """Rows Σ_t δ ãᵀ by the weights of a few units at a time, (C·N, units · p)."""
    a, delta = a.unflatten(-1, (use.num_groups, -1)), delta.unflatten(-1, (use.num_groups, -1))
    at_once = max(1, NUMBERS_AT_ONCE // (len(delta) * a.shape[-1]))
    for group in range(use.num_groups):
        for units in delta[:, :, group].split(at_once, dim=-1):
            yield (units.mT.double() @ a[:, :, group].double()).flatten(1)
