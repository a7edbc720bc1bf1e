"""How a net answers when the outputs of uses of its weights move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from pipeline.objective import DifferenceObjective, LinearizedModel, LinearizedOutputs, Objective, Tree
from pipeline.strategy.forward_mode import directional_derivative
from pipeline.strategy.khatri_rao.captured_net import CapturedNet, model_of
from pipeline.strategy.khatri_rao.interception import LinearUseInterceptor

Shifts = dict[int, Tensor]  # of the outputs of uses, by their place in the order of execution


class Response(NamedTuple):
    """Of the uses from `first` on: δ̇ (c, N, T, G·d), and ȧ (c, N, T, G·p), None where ã does not move."""

    first: int
    deltas: list[Tensor]
    inputs: list[Tensor | None]

    def part(self, row: int, tangents: slice) -> Response:
        """The answers to some of the tangents, of the uses from `row` on."""
        deltas = [delta[tangents] for delta in self.deltas[row - self.first :]]
        later = [None if a is None else a[tangents] for a in self.inputs[row + 1 - self.first :]]
        return Response(row, deltas, [None, *later])  # what enters the use itself does not move


def perturb_units(net: CapturedNet, tangents: Mapping[int, Tensor]) -> Response:
    """How δ and ã change when the outputs of some uses move along each of c tangents together.

    tangents: by use, (c, N, T, G·d). What runs before the first of them is computed once, and not differentiated by.
    """
    shaped = {row: net.uses[row].shaped(values) for row, values in tangents.items()}
    return _perturb_units(net, net.objective, min(tangents), shaped)


def _perturb_units(net: CapturedNet, objective: Objective, first: int, tangents: Shifts) -> Response:
    if isinstance(objective, DifferenceObjective):
        whole, part = (
            _perturb_units(net, one, first, tangents) for one in (objective.minuend, objective.subtrahend)
        )
        deltas = [a - b for a, b in zip(whole.deltas, part.deltas, strict=True)]
        return Response(first, deltas, whole.inputs)
    if isinstance(objective.predict, LinearizedModel):
        return _of_linearized(net, objective, first, tangents)
    return _of_loss(net, objective, first, tangents)


def _of_loss(net: CapturedNet, objective: Objective, first: int, tangents: Shifts) -> Response:
    """Forward over reverse: the derivative of one backward pass, and of what enters each later use."""
    zeros = _zeros(net, first)

    def loss(shifts: Shifts) -> tuple[Tensor, Shifts]:
        with _moved(net, shifts) as capture:
            value = objective.loss(net.params, net.batch)
        inputs = {m: capture.calls[m].inputs for m in shifts if m > first}
        return value, {m: a for m, a in inputs.items() if a.is_floating_point()}

    def reverse(moved: Shifts) -> tuple[Shifts, Shifts]:
        result: tuple[Shifts, Shifts] = grad(loss, has_aux=True)({**zeros, **moved})
        return result

    def response(tangent: Shifts) -> tuple[Shifts, Shifts]:
        return directional_derivative(reverse, {row: zeros[row] for row in tangent}, tangent)

    return _arranged(net, first, *vmap(response)(tangents))


def _of_linearized(net: CapturedNet, objective: Objective, first: int, tangents: Shifts) -> Response:
    """δ̇ = JᵀΛJ t: a forward pass of the tangent, the criterion's second derivative, a backward pass. ã stays."""
    zeros = _zeros(net, first)
    model = model_of(objective)
    trees: list[Tree] = []

    def outputs(shifts: Shifts) -> tuple[Tensor, ...]:
        with _moved(net, shifts):
            tree = Tree.of(model.predict(net.params, net.batch.inputs))
        trees.append(tree)
        return tree.tensors

    tensors, pull = vjp(outputs, zeros)[:2]
    here = trees[0].like(tensors)
    no_change = tuple(torch.zeros_like(f) for f in tensors)

    def slope(changes: tuple[Tensor, ...]) -> Any:
        return grad(lambda c: objective.loss_of(net.params, LinearizedOutputs(here, c), net.batch.targets))(
            changes
        )

    def response(tangent: Shifts) -> Shifts:
        at = {row: zeros[row] for row in tangent}
        changes = directional_derivative(lambda shifts: outputs({**zeros, **shifts}), at, tangent)
        result: Shifts = pull(directional_derivative(slope, no_change, changes))[0]
        return result

    return _arranged(net, first, vmap(response)(tangents), {})


def mixes_samples(net: CapturedNet) -> bool:
    """Whether a sample's δ or ã answers when another sample's z moves, in whatever pattern samples are coupled.

    The answer to moves t is linear in them. Where samples are apart, moves that are scaled by a number of each
    sample's own, r_n t_n, are answered by the same numbers times the answer to t; where n answers to m, by a term
    (r_m - r_n) more, which is not zero for random r and t. So two tangents tell of all pairs, to first order, which
    is what the rows are made of.
    """
    if not net.uses or net.batch.num_samples == 1:
        return False
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(net.batch.num_samples, generator=generator, dtype=torch.float64) * 2 - 1
    tangents = {}
    for row, delta in enumerate(net.deltas):
        one = torch.randn(delta.shape, generator=generator).to(delta)
        tangents[row] = torch.stack([one, one * scales.to(delta)[:, None, None]])
    answer = perturb_units(net, tangents)
    tolerance = torch.finfo(net.deltas[0].dtype).eps ** TOLERANCE
    for value in (*answer.deltas, *answer.inputs):
        if value is None or not value.numel():
            continue
        gap = (value[1] - value[0] * scales.to(value)[:, None, None]).abs().max()
        if not bool(gap <= tolerance * value.abs().max()):
            return True
    return False


TOLERANCE = 0.7  # the power of a machine epsilon that answers may be off, relative to the largest


def _zeros(net: CapturedNet, first: int) -> Shifts:
    """No move, of every use from `first` on."""
    return {m: net.deltas[m].new_zeros(use.shape) for m, use in enumerate(net.uses) if m >= first}


def _arranged(net: CapturedNet, first: int, deltas: Shifts, inputs: Shifts) -> Response:
    later = range(first, len(net.uses))
    return Response(
        first,
        [net.uses[m].units(deltas[m]) for m in later],
        [net.uses[m].inputs(inputs[m]) if m in inputs else None for m in later],
    )


def _moved(net: CapturedNet, shifts: Shifts) -> LinearUseInterceptor:
    """Watches a run of the net in which the outputs of some uses are moved."""

    def shift(index: int, z: Tensor) -> Tensor:
        return z + shifts[index] if index in shifts else z

    return LinearUseInterceptor(net.params, net.names, shift)
