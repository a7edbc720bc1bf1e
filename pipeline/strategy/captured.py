"""A net at one point and on one batch: the uses of its weights, and how it responds when their outputs move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from pipeline.objective import Batch, Objective, Params
from pipeline.strategy.capture import Use, run_captured
from pipeline.strategy.tangent import push


@dataclass(frozen=True)
class Net:
    """The parameters `names` enter through `uses` and in no other way, and no sample influences another.

    inputs[m]: ã of use m, (N, T, p). deltas[m]: δ = ∂L/∂z of use m, (N, T, d). Uses are in order of execution.
    """

    objective: Objective
    params: Params
    batch: Batch
    names: tuple[str, ...]
    uses: tuple[Use, ...]
    inputs: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]

    @staticmethod
    def of(objective: Objective, params: Params, batch: Batch) -> Net:
        """Capture as many parameters as enter linearly; those that do not are left out of `names`.

        Two guards decide. Capture: Σ δ ãᵀ over the uses of a parameter must be its gradient, else it is used in
        some other way too. Coupling: when the outputs of one half of the samples move, δ and ã of the other half must
        stay, else samples mix, and nothing is captured.
        """
        names = tuple(params)
        while True:
            net = Net._seen(objective, params, batch, names)
            kept = tuple(name for name in names if name in net._sound_names())
            if kept == names:
                return net if not net._mixes_samples() else Net._seen(objective, params, batch, ())
            names = kept

    @staticmethod
    def _seen(objective: Objective, params: Params, batch: Batch, names: tuple[str, ...]) -> Net:
        loss, calls = run_captured(objective, params, names, batch, lambda index, z: z)
        uses = tuple(call.use for call in calls)
        net = Net(objective, params, batch, names, uses, (), ())
        if any(use.shape[0] != batch.num_samples for use in uses):
            return net
        zeros = {m: loss.new_zeros(use.shape) for m, use in enumerate(uses)}
        deltas = net._reverse(zeros, {})[0]
        inputs = tuple(use.inputs(call.inputs[None])[0] for use, call in zip(uses, calls, strict=True))
        outputs = tuple(use.units(deltas[m][None])[0] for m, use in enumerate(uses))
        return Net(objective, params, batch, names, uses, inputs, outputs)

    def respond(self, row: int, tangents: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """How δ and ã of the uses from `row` on change when the output of use `row` moves.

        tangents: (c, N, T, d). Gives for uses row, row + 1, ...: δ̇ (c, N, T_m, d_m), and ȧ (c, N, T_m, p_m) for those
        after `row`. What runs before `row` is computed once, and not differentiated by.
        """
        zeros = {m: tangents.new_zeros(use.shape) for m, use in enumerate(self.uses) if m >= row}

        def response(tangent: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
            return push(lambda move: self._reverse(zeros, {row: move}), zeros[row], tangent)

        deltas, inputs = vmap(response)(self.uses[row].shaped(tangents))
        later = range(row + 1, len(self.uses))
        return (
            [use.units(deltas[row + m]) for m, use in enumerate(self.uses[row:])],
            [self.uses[m].inputs(inputs[m]) for m in later],
        )

    def _reverse(
        self, zeros: Mapping[int, Tensor], moves: Mapping[int, Tensor]
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """δ of the uses in `zeros`, and the inputs of all of them but the first, when outputs are moved by `moves`."""
        first = min(zeros, default=0)

        def loss(shifts: dict[int, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
            def shift(index: int, z: Tensor) -> Tensor:
                if index in shifts:
                    z = z + shifts[index]
                return z + moves[index] if index in moves else z

            value, calls = run_captured(self.objective, self.params, self.names, self.batch, shift)
            return value, {m: calls[m].inputs for m in zeros if m > first}

        result: tuple[dict[int, Tensor], dict[int, Tensor]] = grad(loss, has_aux=True)(dict(zeros))
        return result

    def _sound_names(self) -> set[str]:
        """The names whose gradient the uses account for."""
        if not self.deltas:
            return self._names_with_samples_first()
        sums: Params = {}
        for use, a, delta in zip(self.uses, self.inputs, self.deltas, strict=True):
            if use.weight is not None:
                part = torch.einsum("ntd,ntp->dp", delta, a).reshape(self.params[use.weight].shape)
                sums[use.weight] = sums[use.weight] + part if use.weight in sums else part
            if use.bias is not None:
                part = delta.sum((0, 1))
                sums[use.bias] = sums[use.bias] + part if use.bias in sums else part
        gradient = grad(lambda params: self.objective.loss(params, self.batch))(self.params)
        eps = torch.finfo(self.deltas[0].dtype).eps
        scale = torch.stack([value.norm() for value in gradient.values()]).max()
        return {
            name
            for name, total in sums.items()
            if (total - gradient[name]).norm()
            <= eps**0.5 * (total.norm() + gradient[name].norm()) + eps * scale
        }

    def _names_with_samples_first(self) -> set[str]:
        """The names of which every use has the samples as its first dimension."""
        n = self.batch.num_samples
        first, other = (
            {
                name
                for use in self.uses
                for name in (use.weight, use.bias)
                if name and (use.shape[0] == n) == fits
            }
            for fits in (True, False)
        )
        return first - other

    def _mixes_samples(self) -> bool:
        if not self.uses:
            return False
        half = self.batch.num_samples // 2
        generator = torch.Generator().manual_seed(0)
        zeros = {m: self.deltas[0].new_zeros(use.shape) for m, use in enumerate(self.uses)}
        tangents = {}
        for m, zero in zeros.items():
            tangents[m] = torch.randn(zero.shape, generator=generator).to(zero)
            tangents[m][half:] = 0
        moved = push(lambda moves: self._reverse(zeros, moves), zeros, tangents)
        tolerance = torch.finfo(self.deltas[0].dtype).eps ** 0.75
        for part in moved:
            for change in part.values():
                if change[half:].abs().max() > tolerance * change.abs().max():
                    return True
        return False
