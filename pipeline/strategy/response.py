"""How a net answers when the outputs of one use of a weight move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.utils import _pytree as pytree

from pipeline.linearised import Difference, Linear, Linearisation
from pipeline.objective import Objective
from pipeline.plain import Plain
from pipeline.strategy.capture import Capture
from pipeline.strategy.captured import Net, model_of
from pipeline.strategy.tangent import push


class Response(NamedTuple):
    """Of the uses from the moved one on: δ̇ (c, N, T, G·d), and ȧ (c, N, T, G·p), None where ã does not move."""

    deltas: list[Tensor]
    inputs: list[Tensor | None]


def respond(net: Net, row: int, tangents: Tensor) -> Response:
    """How δ and ã of the uses from `row` on change when the output of use `row` moves along each of the tangents.

    tangents: (c, N, T, G·d). What runs before `row` is computed once, and not differentiated by.
    """
    return _respond(net, net.objective, row, tangents)


def _respond(net: Net, objective: Objective, row: int, tangents: Tensor) -> Response:
    if isinstance(objective, Difference):
        whole, part = (_respond(net, one, row, tangents) for one in (objective.whole, objective.part))
        return Response([a - b for a, b in zip(whole.deltas, part.deltas, strict=True)], whole.inputs)
    if isinstance(objective.predict, Linearisation):
        return _of_linearised(net, objective, row, tangents)
    return _of_loss(net, objective, row, tangents)


def _of_loss(net: Net, objective: Objective, row: int, tangents: Tensor) -> Response:
    """Forward over reverse: the derivative of one backward pass, and of what enters each later use."""
    zeros = {m: tangents.new_zeros(use.shape) for m, use in enumerate(net.uses) if m >= row}

    def reverse(move: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        def loss(shifts: dict[int, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
            with _moved(net, {**shifts, row: shifts[row] + move}) as capture:
                value = objective.loss(net.params, net.batch)
            inputs = {m: capture.calls[m].inputs for m in shifts if m > row}
            return value, {m: a for m, a in inputs.items() if a.is_floating_point()}

        result: tuple[dict[int, Tensor], dict[int, Tensor]] = grad(loss, has_aux=True)(dict(zeros))
        return result

    def response(tangent: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        return push(reverse, zeros[row], tangent)

    deltas, inputs = vmap(response)(net.uses[row].shaped(tangents))
    return _arranged(net, row, deltas, inputs)


def _of_linearised(net: Net, objective: Objective, row: int, tangents: Tensor) -> Response:
    """δ̇ = JᵀΛJ t: a forward pass of the tangent, the criterion's second derivative, a backward pass. ã stays."""
    zeros = {m: tangents.new_zeros(use.shape) for m, use in enumerate(net.uses) if m >= row}
    model = model_of(objective)

    def outputs(shifts: Mapping[int, Tensor]) -> Any:
        with _moved(net, shifts):
            return model.predict(net.params, net.batch.inputs)

    here, pull = vjp(outputs, zeros)[:2]
    no_change = pytree.tree_map(lambda f: f.new_zeros(f.shape), here)

    def slope(changes: Any) -> Any:
        with Plain():
            return grad(lambda c: objective.criterion(Linear(here, c), net.batch.targets))(changes)

    def response(tangent: Tensor) -> dict[int, Tensor]:
        changes = push(lambda move: outputs({**zeros, row: move}), zeros[row], tangent)
        result: dict[int, Tensor] = pull(push(slope, no_change, changes))[0]
        return result

    return _arranged(net, row, vmap(response)(net.uses[row].shaped(tangents)), {})


def _arranged(net: Net, row: int, deltas: dict[int, Tensor], inputs: dict[int, Tensor]) -> Response:
    later = range(row, len(net.uses))
    return Response(
        [net.uses[m].units(deltas[m]) for m in later],
        [net.uses[m].inputs(inputs[m]) if m in inputs else None for m in later],
    )


def _moved(net: Net, shifts: Mapping[int, Tensor]) -> Capture:
    """Watches a run of the net in which the outputs of some uses are shifted."""

    def shift(index: int, z: Tensor) -> Tensor:
        return z + shifts[index] if index in shifts else z

    return Capture(net.params, net.names, shift)
