"""Models linearized at a point: their outputs are linear in the weights, so that only the criterion curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.func import jvp, vmap

from pipeline.errors import PipelineError, first_line, is_out_of_memory
from pipeline.objective.batch import Batch, Inputs
from pipeline.objective.objective import Criterion, Objective, Params, leaves_of
from pipeline.objective.trees import Tree

Tensors = tuple[Tensor, ...]
Way = Callable[[Tensors, bool], Tensors]
AGREED = 1e-3  # relative: a forward-mode derivative that is wrong is far off, not a little


class LinearizedOutputs(NamedTuple):
    """What a linearized model puts out: f(θ₀), constant, and J (θ - θ₀), for its floating-point tensors."""

    outputs: Any
    changes: Tensors


@dataclass(frozen=True, eq=False)
class Jacobian:
    """J, the derivative of a model's outputs by its weights at one point and for one batch, as a linear map.

    Products with J and with its transpose are taken by themselves, never inside another derivative: what is linear
    needs none. So whatever differentiates a linearized model sees a map whose derivative is the map itself, and asks
    of the model first derivatives alone.
    """

    predict: Callable[[Params, Inputs], Any]
    at: Params
    inputs: Inputs
    _way: list[Way] = field(default_factory=list)

    @cached_property
    def tree(self) -> Tree:
        """The outputs at the weights: their floating-point tensors, each with its graph."""
        return Tree.of(self.predict(self._leaves, self.inputs))

    @cached_property
    def _leaves(self) -> Params:
        return leaves_of(self.at)

    @property
    def outputs(self) -> Any:
        """The outputs as the model gives them, without a graph."""
        return self.tree.like([value.detach() for value in self.tree.tensors])

    def pull(self, cotangents: Sequence[Tensor], many: bool = False) -> Tensors:
        """Jᵀ u by one backward pass: u is shaped as the outputs' tensors, the result as the weights.

        many: every u has a first dimension more, and so have the results.
        """
        return self._backward(self.tree.tensors, tuple(self._leaves.values()), tuple(cotangents), many)

    @staticmethod
    def _backward(values: Tensors, by: Tensors, along: Tensors, many: bool) -> Tensors:
        pairs = [(f, u) for f, u in zip(values, along, strict=True) if f.requires_grad]
        if not pairs:
            size = along[0].shape[:1] if many else ()
            return tuple(value.new_zeros(*size, *value.shape) for value in by)
        functions, directions = zip(*pairs, strict=True)
        take = partial(torch.autograd.grad, functions, by, retain_graph=True, allow_unused=True)
        if not many:
            return take(directions, materialize_grads=True)
        try:
            found, size = take(directions, is_grads_batched=True), along[0].shape[:1]
            return tuple(
                v.new_zeros(*size, *v.shape) if part is None else part
                for v, part in zip(by, found, strict=True)
            )
        except RuntimeError as error:  # a layer without a batching rule
            if is_out_of_memory(error):
                raise
            each = [take(one, materialize_grads=True) for one in zip(*directions, strict=True)]
            return tuple(torch.stack(parts) for parts in zip(*each, strict=True))

    def push(self, changes: Tensors, many: bool = False) -> Tensors:
        """J v: v is shaped as the weights, the result as the outputs' tensors; many: as for `pull`."""
        return self.choose()(changes, many)

    @property
    def is_forward(self) -> bool:
        """Whether forward mode gives J v, and rightly."""
        return self.choose() == self._by_forward_mode

    def choose(self) -> Way:
        """How J v is taken: by forward mode, if that agrees with `pull`; else by the derivative of `pull`, which is
        linear too; else from the rows of J, each by a backward pass.

        Raises:
            PipelineError: the model cannot be differentiated in any of these ways.
        """
        if not self._way:
            self._way.append(self._chosen())
        return self._way[0]

    def _chosen(self) -> Way:
        generator = torch.Generator().manual_seed(0)

        def drawn(like: Sequence[Tensor]) -> Tensors:
            return tuple(torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v) for v in like)

        v, u = drawn(tuple(self.at.values())), drawn(self.tree.tensors)
        try:
            pulled = self.pull(u)
        except Exception as error:  # a derivative inside the model that has none itself
            if is_out_of_memory(error):
                raise
            raise _refused(error) from error
        expected = _inner(pulled, v)
        size = sum(float((a.abs() * b.abs()).sum()) for a, b in zip(pulled, v, strict=True))
        reason: Exception | None = None
        for way in (self._by_forward_mode, self._by_two_backward_passes, self._by_rows):
            try:
                found = _inner(u, way(v, False))
            except Exception as error:  # whatever a layer that cannot be differentiated so may raise
                if is_out_of_memory(error):
                    raise
                reason = reason or error
                continue
            if abs(found - expected) <= AGREED * size:
                return way
        raise _refused(reason)

    def _by_forward_mode(self, changes: Tensors, many: bool) -> Tensors:
        def model(*weights: Tensor) -> Tensors:
            return Tree.of(self.predict(dict(zip(self.at, weights, strict=True)), self.inputs)).tensors

        def one(*change: Tensor) -> Tensors:
            result: Tensors = jvp(model, tuple(self.at.values()), change)[1]
            return result

        results: Tensors = vmap(one)(*changes) if many else one(*changes)
        return results

    def _by_two_backward_passes(self, changes: Tensors, many: bool) -> Tensors:
        """Jᵀu as a function of u is linear, and its derivative along v is J v."""
        cotangents, pulled = self._pulled
        return self._backward(pulled, cotangents, changes, many)

    @cached_property
    def _pulled(self) -> tuple[Tensors, Tensors]:
        cotangents = tuple(torch.zeros_like(f).requires_grad_() for f in self.tree.tensors)
        pairs = [(f, u) for f, u in zip(self.tree.tensors, cotangents, strict=True) if f.requires_grad]
        values, along = zip(*pairs, strict=True)
        weights = tuple(self._leaves.values())
        return cotangents, torch.autograd.grad(
            values, weights, along, retain_graph=True, create_graph=True, materialize_grads=True
        )

    def _by_rows(self, changes: Tensors, many: bool) -> Tensors:
        flat = torch.cat([change.flatten(1 if many else 0) for change in changes], -1)
        parts = (flat @ self._rows.T).split([f.numel() for f in self.tree.tensors], -1)
        return tuple(
            part.reshape(*part.shape[:-1], *f.shape) for part, f in zip(parts, self.tree.tensors, strict=True)
        )

    @cached_property
    def _rows(self) -> Tensor:
        """J, (outputs, P)."""
        rows = []
        for index, f in enumerate(self.tree.tensors):
            for unit in torch.eye(f.numel(), dtype=f.dtype, device=f.device):
                u = [torch.zeros_like(value) for value in self.tree.tensors]
                u[index] = unit.reshape(f.shape)
                rows.append(torch.cat([part.reshape(-1) for part in self.pull(u)]))
        return torch.stack(rows)


def _refused(reason: Exception | None) -> PipelineError:
    return PipelineError(
        f"the outputs of the model cannot be differentiated by its weights ({first_line(reason)}): use matrix=hessian."
    )


def _inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))


class _Push(torch.autograd.Function):
    """v ↦ J v, whose derivatives are J and Jᵀ; `num_dims` dimensions before those of v count vectors."""

    @staticmethod
    def forward(jacobian: Jacobian, num_dims: int, *changes: Tensor) -> Tensors:
        return _each(jacobian.push, num_dims, changes)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.jacobian, ctx.num_dims = inputs[:2]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, None, *_pull(ctx.jacobian, ctx.num_dims, *cotangents)

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *tangents: Tensor) -> Any:
        return _push(ctx.jacobian, ctx.num_dims, *tangents)

    @staticmethod
    def vmap(info: Any, in_dims: Any, jacobian: Jacobian, num_dims: int, *changes: Tensor) -> Any:
        results = _push(jacobian, num_dims + 1, *_first(info, in_dims, changes))
        return results, (0,) * len(results)


class _Pull(torch.autograd.Function):
    """u ↦ Jᵀ u, whose derivatives are Jᵀ and J."""

    @staticmethod
    def forward(jacobian: Jacobian, num_dims: int, *cotangents: Tensor) -> Tensors:
        return _each(jacobian.pull, num_dims, cotangents)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.jacobian, ctx.num_dims = inputs[:2]

    @staticmethod
    def backward(ctx: Any, *changes: Tensor) -> Any:
        return None, None, *_push(ctx.jacobian, ctx.num_dims, *changes)

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *tangents: Tensor) -> Any:
        return _pull(ctx.jacobian, ctx.num_dims, *tangents)

    @staticmethod
    def vmap(info: Any, in_dims: Any, jacobian: Jacobian, num_dims: int, *cotangents: Tensor) -> Any:
        results = _pull(jacobian, num_dims + 1, *_first(info, in_dims, cotangents))
        return results, (0,) * len(results)


def _push(jacobian: Jacobian, num_dims: int, *changes: Tensor) -> Tensors:
    result: Tensors = _Push.apply(jacobian, num_dims, *changes)  # type: ignore[no-untyped-call]
    return result


def _pull(jacobian: Jacobian, num_dims: int, *cotangents: Tensor) -> Tensors:
    result: Tensors = _Pull.apply(jacobian, num_dims, *cotangents)  # type: ignore[no-untyped-call]
    return result


def _first(info: Any, in_dims: Any, vectors: Tensors) -> Tensors:
    """The vectors with the dimension that `vmap` counts in the first place."""
    return tuple(
        vector.expand(info.batch_size, *vector.shape) if dim is None else vector.movedim(dim, 0)
        for vector, dim in zip(vectors, in_dims[2:], strict=True)
    )


def _each(map_: Callable[[Tensors, bool], Tensors], num_dims: int, vectors: Tensors) -> Tensors:
    """The map of every vector, whose count stands in the first dimensions."""
    if num_dims == 0:
        return map_(vectors, False)
    sizes = vectors[0].shape[:num_dims]
    results = map_(tuple(vector.reshape(-1, *vector.shape[num_dims:]) for vector in vectors), True)
    return tuple(result.reshape(*sizes, *result.shape[1:]) for result in results)


@dataclass(frozen=True)
class LinearizedModel:
    """A model linearized at the weights `at`: a `predict` whose outputs are `LinearizedOutputs`."""

    predict: Callable[[Params, Inputs], Any]
    at: Params
    _latest: list[tuple[Inputs, Jacobian]] = field(default_factory=list, compare=False)

    def __call__(self, params: Params, inputs: Inputs) -> LinearizedOutputs:
        jacobian = self.jacobian(inputs)
        change = tuple(params[name] - value for name, value in self.at.items())
        return LinearizedOutputs(jacobian.outputs, _push(jacobian, 0, *change))

    def jacobian(self, inputs: Inputs) -> Jacobian:
        """J for a batch; that of the latest one is kept, with the graph of its outputs."""
        if not self._latest or self._latest[0][0] is not inputs:
            # Its own graph, whatever is being differentiated around it.
            with temporarily_clear_interpreter_stack():
                jacobian = Jacobian(self.predict, self.at, inputs)
                jacobian.choose()
            self._latest[:] = [(inputs, jacobian)]
        return self._latest[0][1]


@dataclass(frozen=True)
class LinearizedCriterion:
    """A criterion of the outputs, at f(θ₀) + J (θ - θ₀)."""

    criterion: Criterion

    def __call__(self, outputs: LinearizedOutputs, targets: Any) -> Any:
        tree = Tree.of(outputs.outputs)
        return self.criterion(
            tree.like([f + c for f, c in zip(tree.tensors, outputs.changes, strict=True)]), targets
        )


def linearized(
    objective: Objective,
    at: Params,
    batch: Batch,
    criterion: Callable[[Criterion], Criterion] = LinearizedCriterion,
) -> Objective:
    """The objective of the linearized model. Its Hessian is the generalised Gauss-Newton matrix JᵀΛJ.

    criterion: what becomes of the objective's, as a function of `LinearizedOutputs`.

    Raises:
        PipelineError: the criterion depends on the weights in another way than through the outputs, or all outputs
            that it can use are numbers.
    """
    linear = LinearizedModel(objective.predict, at)
    outputs = linear.jacobian(batch.inputs).outputs
    if objective.loss_of(leaves_of(at), outputs, batch.targets).requires_grad:
        raise PipelineError(
            "the loss reads weights in another way than through the model's outputs (a penalty over its parameters?), "
            "and only the Hessian of such a loss is defined: use matrix=hessian, or leave that term out."
        )
    if all(value.ndim == 0 for value in Tree.of(outputs).tensors):
        raise PipelineError(
            "the model returns numbers alone (its loss?), so that nothing curves between its outputs and the loss: let "
            "it return what the loss is computed from, or use matrix=hessian."
        )
    return Objective(linear, criterion(objective.criterion), lambda params: objective.within(at))


@dataclass(frozen=True)
class DifferenceObjective(Objective):
    """loss = minuend.loss - subtrahend.loss."""

    minuend: Objective = field(kw_only=True)
    subtrahend: Objective = field(kw_only=True)

    @staticmethod
    def of(minuend: Objective, subtrahend: Objective) -> DifferenceObjective:
        return DifferenceObjective(
            minuend.predict, minuend.criterion, minuend.within, minuend=minuend, subtrahend=subtrahend
        )

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return self.minuend.loss(params, batch) - self.subtrahend.loss(params, batch)
