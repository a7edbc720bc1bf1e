"""Models linearised at a point: their outputs are linear in the weights, so that only the criterion curves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.func import grad, jvp, vjp
from torch.utils import _pytree as pytree

from pipeline.objective import Criterion, Inputs, Objective, Params


class Linear(NamedTuple):
    """What a linearised model puts out: f(θ₀), constant, and J (θ - θ₀), two trees of the same form."""

    outputs: Any
    changes: Any


@dataclass(frozen=True)
class Linearisation:
    """A model linearised at the weights `at`: a `predict` whose outputs are `Linear`.

    Cost: one forward-mode pass; where a layer has no formula for it, two reverse passes, of which the second
    differentiates the first, linear in its cotangent.
    """

    predict: Callable[[Params, Inputs], Any]
    at: Params

    def __call__(self, params: Params, inputs: Inputs) -> Linear:
        change = {name: params[name] - value for name, value in self.at.items()}

        def model(here: Params) -> Any:
            return self.predict(here, inputs)

        try:
            return Linear(*jvp(model, (self.at,), (change,)))
        except (NotImplementedError, RuntimeError) as error:
            if "forward" not in str(error):
                raise
        outputs, pull = vjp(model, self.at)[:2]

        def along_change(cotangents: Any) -> Any:
            return sum((part * change[name]).sum() for name, part in pull(cotangents)[0].items())

        return Linear(outputs, grad(along_change)(pytree.tree_map(lambda f: f.new_zeros(f.shape), outputs)))


@dataclass(frozen=True)
class OfLinear:
    """A criterion of the outputs, at f(θ₀) + J (θ - θ₀)."""

    criterion: Criterion

    def __call__(self, outputs: Linear, targets: Any) -> Any:
        moved = pytree.tree_map(lambda f, change: f + change, outputs.outputs, outputs.changes)
        return self.criterion(moved, targets)


def linearised(objective: Objective, at: Params) -> Objective:
    """The objective of the linearised model. Its Hessian is the generalised Gauss-Newton matrix JᵀΛJ."""
    return Objective(Linearisation(objective.predict, at), OfLinear(objective.criterion))


@dataclass(frozen=True)
class Difference(Objective):
    """loss = whole.loss - part.loss."""

    whole: Objective
    part: Objective

    @staticmethod
    def of(whole: Objective, part: Objective) -> Difference:
        def predict(params: Params, inputs: Inputs) -> Any:
            return whole.predict(params, inputs), part.predict(params, inputs)

        def criterion(outputs: Any, targets: Any) -> Any:
            return whole.criterion(outputs[0], targets) - part.criterion(outputs[1], targets)

        return Difference(predict, criterion, whole, part)
