"""A net at one point and on one batch: the uses of its weights, and the guard that makes them sound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import must_reach_user
from pipeline.objective import (
    Batch,
    DifferenceObjective,
    LinearizedModel,
    LinearizedOutputs,
    Objective,
    Params,
    Tree,
    leaves_of,
)
from pipeline.strategy.khatri_rao.interception import LinearUseInterceptor
from pipeline.strategy.khatri_rao.linear_use import Call, LinearUse
from pipeline.strategy.loss_chunks import moved, weighted_chunks


@dataclass(frozen=True)
class CapturedNet:
    """The parameters `names` enter through `uses` and in no other way, and no sample influences another.

    witness: an objective of the same model whose gradient vanishes nowhere by construction, see `_witness`.
    inputs[m]: ã of use m, (N, T, G·p). deltas[m]: δ = ∂L/∂z of use m for the loss of the witness, (N, T, G·d).
    Uses are in order of execution. most_samples: of this net and others that take parts of the same batch.
    is_part: whether the batch is a part of another, so that what is made of it is added to what others make.
    """

    objective: Objective
    params: Params
    batch: Batch
    names: tuple[str, ...]
    uses: tuple[LinearUse, ...]
    inputs: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    most_samples: int
    is_part: bool = False

    @staticmethod
    def of(objective: Objective, params: Params, batch: Batch) -> CapturedNet:
        """Capture as many parameters as enter linearly; those that do not are left out of `names`.

        Σ δ ãᵀ over the uses of a parameter must be its gradient, else it is used in some other way too: at these
        weights, and at others, since a term may be flat here and curved (a penalty where a weight is zero). Whether
        samples influence each other is for `response.mixes_samples` to say. Cost: a few gradients.
        """
        if not _forward_mode_is_right(objective, batch):
            return CapturedNet.of_nothing(objective, params, batch)
        witness = _witness(objective, params, batch)
        names = tuple(params)
        while True:
            uses = uses_of(objective, params, batch, names)
            seen = _BackwardTrace.by_one_backward(witness, params, batch, names, uses)
            sound = seen.sound_names() & _sound_elsewhere(witness, params, batch, names, uses)
            kept = tuple(name for name in names if name in sound)
            if kept == names:
                break
            names = kept
        return CapturedNet(objective, params, batch, names, uses, seen.inputs, seen.deltas, batch.num_samples)

    @staticmethod
    def of_nothing(objective: Objective, params: Params, batch: Batch) -> CapturedNet:
        """The net with no parameter captured."""
        return CapturedNet(objective, params, batch, (), (), (), (), batch.num_samples)

    @staticmethod
    def in_parts(objective: Objective, params: Params, batch: Batch, most_samples: int) -> list[CapturedNet]:
        """The net on parts of the batch, whose matrices add up; on all of it, where the loss is no sum over
        samples.
        """
        chunks = weighted_chunks(objective, params, batch, most_samples)
        if len(chunks) > 1:
            nets = [
                replace(
                    CapturedNet.of(_weighted(objective, weight), params, part),
                    most_samples=most_samples,
                    is_part=True,
                )
                for weight, part in chunks
            ]
            if len({(net.names, len(net.uses)) for net in nets}) == 1:
                return nets
        return [CapturedNet.of(objective, params, batch)]


def uses_of(
    objective: Objective, params: Params, batch: Batch, names: tuple[str, ...]
) -> tuple[LinearUse, ...]:
    """The uses of the named parameters, in order of execution; empty if the dimensions of the samples are not known.

    Which dimension of each z counts samples is seen by running the model on another number of them.
    """
    try:
        calls = _calls(objective, params, batch, names)
    except (
        Exception
    ) as error:  # nothing that a transform of the model's own sees may leave it, and it uses a weight
        if must_reach_user(error):
            raise
        return ()
    uses = tuple(call.use for call in calls)
    n = batch.num_samples
    if all(_samples_can_only_come_first(use, n) for use in uses):
        return tuple(replace(use, samples=0, num_samples=n) for use in uses)
    for squares in (True, False):
        other = batch.chunk(0, n - 1, squares) if n > 1 else batch.doubled(squares)
        try:
            again = _calls(objective, params, other, names)
        except Exception as error:  # a model may raise anything where its inputs do not fit together
            if must_reach_user(error):
                raise
            continue
        if len(again) == len(uses):
            break
    else:
        return ()
    found = [
        one.use.with_samples(one.z, n, two.z, n - 1 if n > 1 else 2)
        for one, two in zip(calls, again, strict=True)
    ]
    lost = {name for use, known in zip(uses, found, strict=True) if known is None for name in use.names}
    if lost:
        return uses_of(objective, params, batch, tuple(name for name in names if name not in lost))
    return tuple(use for use in found if use is not None)


def _calls(objective: Objective, params: Params, batch: Batch, names: tuple[str, ...]) -> list[Call]:
    """The calls of one run of the model in which the named parameters are used."""
    leaves = leaves_of(params)
    with LinearUseInterceptor(leaves, names) as capture:
        model_of(objective).predict(leaves, batch.inputs)
    return [replace(call, inputs=call.inputs.detach(), z=call.z.detach()) for call in capture.calls]


def model_of(objective: Objective) -> Objective:
    """The objective whose `predict` is the model itself, not a linearized one."""
    if isinstance(objective, DifferenceObjective):
        return model_of(objective.minuend)
    if isinstance(objective.predict, LinearizedModel):
        return replace(objective, predict=objective.predict.predict)
    return objective


def _weighted(objective: Objective, weight: float) -> Objective:
    """The objective times a number."""
    if isinstance(objective, DifferenceObjective):
        return DifferenceObjective.of(
            _weighted(objective.minuend, weight), _weighted(objective.subtrahend, weight)
        )

    def criterion(outputs: Any, targets: Any) -> Any:
        return weight * objective.criterion(outputs, targets)

    return replace(objective, criterion=criterion)


def _samples_can_only_come_first(use: LinearUse, num_samples: int) -> bool:
    others = [n for dim, n in enumerate(use.shape) if dim and dim not in use.unit_dims]
    first = 0 not in use.unit_dims and use.shape[0] == num_samples
    return first and not any(n % num_samples == 0 for n in others)


def _witness(objective: Objective, params: Params, batch: Batch) -> Objective:
    """The objective itself; for a linearized model f(θ₀) + Δ, the criterion at Δ = f(θ) - f(θ₀) + r with r random.

    At Δ = 0 the gradient of a Fisher's criterion is zero, and zeros would pass every guard.
    """
    if isinstance(objective, DifferenceObjective):
        return objective.minuend
    if not isinstance(objective.predict, LinearizedModel):
        return objective
    criterion, here = objective.criterion, objective.predict.jacobian(batch.inputs).outputs
    generator = torch.Generator().manual_seed(0)
    tensors = Tree.of(here).tensors
    away = [torch.randn(f.shape, generator=generator).to(f) for f in tensors]

    def reaching(outputs: Any, targets: Any) -> Any:
        reached = Tree.of(outputs).tensors
        changes = tuple(f - f0 + r for f, f0, r in zip(reached, tensors, away, strict=True))
        return criterion(LinearizedOutputs(here, changes), targets)

    return replace(objective, predict=objective.predict.predict, criterion=reaching)


def _forward_mode_is_right(objective: Objective, batch: Batch) -> bool:
    """Whether a linearized model is differentiated rightly in forward mode, which is what units are moved by."""
    if isinstance(objective, DifferenceObjective):
        return _forward_mode_is_right(objective.subtrahend, batch)
    return (
        not isinstance(objective.predict, LinearizedModel)
        or objective.predict.jacobian(batch.inputs).is_forward
    )


def _sound_elsewhere(
    witness: Objective, params: Params, batch: Batch, names: tuple[str, ...], uses: tuple[LinearUse, ...]
) -> set[str]:
    """The names whose gradient the uses account for at other weights; all, where these make another net of it."""
    try:
        seen = _BackwardTrace.by_one_backward(witness, moved(params), batch, names, uses)
    except Exception as error:  # other weights may choose other branches, with other shapes
        if must_reach_user(error):
            raise
        return set(names)
    finite = all(bool(part.isfinite().all()) for part in seen.gradient.values())
    return seen.sound_names() if finite else set(names)


@dataclass(frozen=True)
class _BackwardTrace:
    """One forward and one backward pass: the calls, and the gradients by every z and by every parameter."""

    witness: Objective
    params: Params
    batch: Batch
    names: tuple[str, ...]
    uses: tuple[LinearUse, ...]
    inputs: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    gradient: Params

    @staticmethod
    def by_one_backward(
        witness: Objective, params: Params, batch: Batch, names: tuple[str, ...], uses: tuple[LinearUse, ...]
    ) -> _BackwardTrace:
        leaves = leaves_of(params)
        with LinearUseInterceptor(leaves, [name for use in uses for name in use.names], branch) as capture:
            loss = witness.loss(leaves, batch)
        wanted = [*(call.z for call in capture.calls), *leaves.values()]
        parts: Any = torch.zeros(len(wanted))
        if loss.requires_grad:
            parts = torch.autograd.grad(loss, wanted, materialize_grads=True)
        else:
            parts = [torch.zeros_like(value) for value in wanted]
        gradient = dict(zip(leaves, parts[len(capture.calls) :], strict=True))
        inputs, deltas = arranged(uses, capture.calls, parts)
        return _BackwardTrace(witness, params, batch, names, uses, inputs, deltas, gradient)

    def sound_names(self) -> set[str]:
        """The names whose gradient the uses account for."""
        sums: Params = {}
        for use, a, delta in zip(self.uses, self.inputs, self.deltas, strict=True):
            if use.weight is not None:
                part = gradient_of(use, delta, a).reshape(self.params[use.weight].shape)
                sums[use.weight] = sums[use.weight] + part if use.weight in sums else part
            if use.bias is not None:
                part = delta.sum((0, 1)).reshape(self.params[use.bias].shape)
                sums[use.bias] = sums[use.bias] + part if use.bias in sums else part
        if not sums:
            return set()
        eps = torch.finfo(self.deltas[0].dtype).eps
        scale = torch.stack([value.norm() for value in self.gradient.values()]).max()
        return {
            name
            for name, total in sums.items()
            if (total - self.gradient[name]).norm()
            <= eps**0.5 * (total.norm() + self.gradient[name].norm()) + eps * scale
        }


def gradient_of(use: LinearUse, delta: Tensor, a: Tensor) -> Tensor:
    """Σ δ ãᵀ over samples and positions: what the use adds to the gradient of its weight, flat, as it is stored."""
    g = use.num_groups
    part = torch.einsum("ntgd,ntgp->gdp", delta.unflatten(-1, (g, -1)), a.unflatten(-1, (g, -1))).flatten()
    return part if use.order is None else torch.zeros_like(part).index_copy_(0, use.order, part)


def branch(index: int, z: Tensor) -> Tensor:
    """The output of a call, with a gradient of its own."""
    return z.requires_grad_().clone()  # the model may write into what it gets


def arranged(
    uses: tuple[LinearUse, ...], calls: list[Call], parts: Any
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """ã of each use, (N, T, G·p), and values shaped as its z, as (N, T, G·d)."""
    calls = calls[: len(uses)]  # what comes later is the criterion's own: the model called again, say
    inputs = tuple(use.inputs(call.inputs.detach()[None])[0] for use, call in zip(uses, calls, strict=True))
    deltas = tuple(use.units(part[None])[0] for use, part in zip(uses, parts, strict=False))
    return inputs, deltas
