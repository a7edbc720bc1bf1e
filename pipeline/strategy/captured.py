"""A net at one point and on one batch: the uses of its weights, and the guards that make them sound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.linearised import Difference, Linear, Linearisation
from pipeline.objective import Batch, Objective, Params
from pipeline.strategy.capture import Capture
from pipeline.strategy.chunks import weighted_chunks
from pipeline.strategy.uses import Call, Use


@dataclass(frozen=True)
class Net:
    """The parameters `names` enter through `uses` and in no other way, and no sample influences another.

    witness: an objective of the same model whose gradient vanishes nowhere by construction, see `_witness`.
    inputs[m]: ã of use m, (N, T, G·p). deltas[m]: δ = ∂L/∂z of use m for the loss of the witness, (N, T, G·d).
    Uses are in order of execution. most_samples: of this net and others that take parts of the same batch.
    """

    objective: Objective
    params: Params
    batch: Batch
    names: tuple[str, ...]
    uses: tuple[Use, ...]
    inputs: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    most_samples: int

    @staticmethod
    def of(objective: Objective, params: Params, batch: Batch) -> Net:
        """Capture as many parameters as enter linearly; those that do not are left out of `names`.

        Two guards decide. Capture: Σ δ ãᵀ over the uses of a parameter must be its gradient, else it is used in
        some other way too. Coupling: when the outputs of one half of the samples move, δ and ã of the other half must
        stay, else samples mix, and nothing is captured. Cost: a few gradients.
        """
        witness = _witness(objective, params, batch)
        names = tuple(params)
        while True:
            uses = uses_of(objective, params, batch, names)
            seen = _Seen.by_one_backward(witness, params, batch, names, uses)
            kept = tuple(name for name in names if name in seen.sound_names())
            if kept == names:
                break
            names = kept
        if uses and seen.mixes_samples():
            return Net.of_nothing(objective, params, batch)
        return Net(objective, params, batch, names, uses, seen.inputs, seen.deltas, batch.num_samples)

    @staticmethod
    def of_nothing(objective: Objective, params: Params, batch: Batch) -> Net:
        """The net with no parameter captured."""
        return Net(objective, params, batch, (), (), (), (), batch.num_samples)

    @staticmethod
    def in_parts(objective: Objective, params: Params, batch: Batch, most_samples: int) -> list[Net]:
        """The net on parts of the batch, whose matrices add up; on all of it, where the loss is no sum over samples."""
        nets = [
            replace(Net.of(_weighted(objective, weight), params, part), most_samples=most_samples)
            for weight, part in weighted_chunks(objective, params, batch, most_samples)
        ]
        if len({net.names for net in nets}) > 1:
            return [Net.of(objective, params, batch)]
        return nets


def uses_of(objective: Objective, params: Params, batch: Batch, names: tuple[str, ...]) -> tuple[Use, ...]:
    """The uses of the named parameters, in order of execution; empty if the dimensions of the samples are not known.

    Which dimension of each z counts samples is seen by running the model on another number of them.
    """
    model = model_of(objective)
    with torch.no_grad(), Capture(params, names) as capture:
        model.predict(params, batch.inputs)
    uses = tuple(call.use for call in capture.calls)
    n = batch.num_samples
    if all(_samples_can_only_come_first(use, n) for use in uses):
        return tuple(replace(use, samples=0, num_samples=n) for use in uses)
    other = batch.chunk(0, n - 1) if n > 1 else _doubled(batch)
    with torch.no_grad(), Capture(params, names) as again:
        model.predict(params, other.inputs)
    if len(again.calls) != len(uses):
        return ()
    found = [
        one.use.with_samples(one.z, n, two.z, other.num_samples)
        for one, two in zip(capture.calls, again.calls, strict=True)
    ]
    lost = {name for use, known in zip(uses, found, strict=True) if known is None for name in use.names}
    if lost:
        return uses_of(objective, params, batch, tuple(name for name in names if name not in lost))
    return tuple(use for use in found if use is not None)


def model_of(objective: Objective) -> Objective:
    """The objective whose `predict` is the model itself, not a linearised one."""
    if isinstance(objective, Difference):
        return model_of(objective.whole)
    if isinstance(objective.predict, Linearisation):
        return Objective(objective.predict.predict, objective.criterion)
    return objective


def _weighted(objective: Objective, weight: float) -> Objective:
    """The objective times a number."""
    if isinstance(objective, Difference):
        return Difference.of(_weighted(objective.whole, weight), _weighted(objective.part, weight))

    def criterion(outputs: Any, targets: Any) -> Any:
        return weight * objective.criterion(outputs, targets)

    return Objective(objective.predict, criterion)


def _samples_can_only_come_first(use: Use, num_samples: int) -> bool:
    others = [n for dim, n in enumerate(use.shape) if dim and dim not in use.unit_dims]
    first = 0 not in use.unit_dims and use.shape[0] == num_samples
    return first and not any(n % num_samples == 0 for n in others)


def _doubled(batch: Batch) -> Batch:
    return Batch(*pytree.tree_map(lambda v: torch.cat([v, v]) if isinstance(v, Tensor) else v, tuple(batch)))


def _witness(objective: Objective, params: Params, batch: Batch) -> Objective:
    """The objective itself; for a linearised model f(θ₀) + Δ, the criterion at Δ = f(θ) - f(θ₀) + r with r random.

    At Δ = 0 the gradient of a Fisher's criterion is zero, and zeros would pass every guard.
    """
    if isinstance(objective, Difference):
        return objective.whole
    if not isinstance(objective.predict, Linearisation):
        return objective
    model, criterion = objective.predict.predict, objective.criterion
    with torch.no_grad():
        here = model(params, batch.inputs)
    generator = torch.Generator().manual_seed(0)
    away = pytree.tree_map(lambda f: torch.randn(f.shape, generator=generator).to(f), here)

    def moved(outputs: Any, targets: Any) -> Any:
        changes = pytree.tree_map(lambda f, f0, r: f - f0 + r, outputs, here, away)
        return criterion(Linear(here, changes), targets)

    return Objective(model, moved)


@dataclass(frozen=True)
class _Seen:
    """One forward and one backward pass: the calls, and the gradients by every z and by every parameter."""

    witness: Objective
    params: Params
    batch: Batch
    names: tuple[str, ...]
    uses: tuple[Use, ...]
    inputs: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    gradient: Params

    @staticmethod
    def by_one_backward(
        witness: Objective, params: Params, batch: Batch, names: tuple[str, ...], uses: tuple[Use, ...]
    ) -> _Seen:
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        with Capture(leaves, [name for use in uses for name in use.names], _branch) as capture:
            loss = witness.loss(leaves, batch)
        wanted = [*(call.z for call in capture.calls), *leaves.values()]
        parts: Any = torch.zeros(len(wanted))
        if loss.requires_grad:
            parts = torch.autograd.grad(loss, wanted, materialize_grads=True)
        else:
            parts = [torch.zeros_like(value) for value in wanted]
        gradient = dict(zip(leaves, parts[len(capture.calls) :], strict=True))
        inputs, deltas = _arranged(uses, capture.calls, parts)
        return _Seen(witness, params, batch, names, uses, inputs, deltas, gradient)

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

    def mixes_samples(self) -> bool:
        """Whether δ or ã of the second half of the samples change when every z of the first half moves."""
        half = self.batch.num_samples // 2
        generator = torch.Generator().manual_seed(0)
        names = [name for use in self.uses for name in use.names]

        def shift(index: int, z: Tensor) -> Tensor:
            use = self.uses[index]
            move = torch.randn(z.shape, generator=generator).to(z) * 0.1
            arranged = use.units(move[None])
            arranged[:, half:] = 0
            return z + use.shaped(arranged)[0]

        leaves = {name: value.detach() for name, value in self.params.items()}
        moved: list[Tensor] = []

        def tracked(index: int, z: Tensor) -> Tensor:
            z = shift(index, z).requires_grad_()
            moved.append(z)
            return z.clone()  # the model may write into what it gets

        with Capture(leaves, names, tracked) as capture:
            loss = self.witness.loss(leaves, self.batch)
        parts = torch.autograd.grad(loss, moved, materialize_grads=True)
        inputs, deltas = _arranged(self.uses, capture.calls, parts)
        tolerance = torch.finfo(deltas[0].dtype).eps ** 0.75
        for before, after in zip((*self.inputs, *self.deltas), (*inputs, *deltas), strict=True):
            change = (after - before).abs()
            largest = torch.maximum(change.max(), before.abs().max()) if change.numel() else change.sum()
            if not bool((change[half:] <= tolerance * largest).all()):
                return True
        return False


def gradient_of(use: Use, delta: Tensor, a: Tensor) -> Tensor:
    """Σ δ ãᵀ over samples and positions: what the use adds to the gradient of its weight, flat, as it is stored."""
    g = use.num_groups
    part = torch.einsum("ntgd,ntgp->gdp", delta.unflatten(-1, (g, -1)), a.unflatten(-1, (g, -1))).flatten()
    return part if use.order is None else torch.zeros_like(part).index_copy_(0, use.order, part)


def _branch(index: int, z: Tensor) -> Tensor:
    return z.requires_grad_().clone()  # the model may write into what it gets


def _arranged(
    uses: tuple[Use, ...], calls: list[Call], parts: Any
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    inputs = tuple(use.inputs(call.inputs.detach()[None])[0] for use, call in zip(uses, calls, strict=True))
    deltas = tuple(use.units(part[None])[0] for use, part in zip(uses, parts, strict=False))
    return inputs, deltas
