"""Tangents in unit space, rows of parameter space by matrix products over the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.objective import Batch, Objective, Params
from pipeline.strategy.block_filter import BlockFilter, all_blocks
from pipeline.strategy.blocks import Block
from pipeline.strategy.hvp import rows_by_products
from pipeline.strategy.khatri_rao.accumulator import BlockAccumulator
from pipeline.strategy.khatri_rao.captured_net import CapturedNet, uses_of
from pipeline.strategy.khatri_rao.linear_use import LinearUse
from pipeline.strategy.khatri_rao.passes import contributions, numbers_of, tangents_of_use
from pipeline.strategy.khatri_rao.perturbation import mixes_samples
from pipeline.strategy.protocol import Cost
from pipeline.validation import check_count


@dataclass(frozen=True)
class KhatriRao:
    """H[(i, p), (k, q)] = Σ_n ã_l[n, p] · d/dε_l[n, i] (δ_m[n, k] ã_m[n, q]), for uses l, m of weights, m not before l.

    A weight that enters as z = W ã + b is differentiated through z: δ = ∂L/∂z comes from one ordinary backward
    pass, and its derivative by unit i of layer l, for all samples at once, from one tangent pass, because samples do
    not mix. So a layer costs min(P_l, d_l·T_l) tangent passes (d_l units, T_l positions that share the weight) instead
    of P_l, and the rest is a matrix product over the samples. Parameters that enter in another way, and all of them
    where samples mix, take Hessian-vector products. For a linearized model δ̇ = JᵀΛJ t and ã stays.

    megabytes: for the tangents that are pushed through the net at once. tangents_per_product: in the rows of
    parameters that take Hessian-vector products.
    Cost: N·P² FLOP in matrix products for the triangle, and the tangent passes. Memory: a few times `megabytes`; the
    weights that are used more than once, and embeddings, are summed up in memory.
    Sources: Bishop 1992, doi:10.1162/neco.1992.4.4.494; Mizutani and Dreyfus 2007, doi:10.1109/IJCNN.2007.4371146.
    """

    megabytes: int = 256
    tangents_per_product: int = 128

    def __post_init__(self) -> None:
        check_count("strategy.megabytes", self.megabytes)
        check_count("strategy.tangents_per_product", self.tangents_per_product)

    def blocks(
        self, objective: Objective, params: Params, batch: Batch, block_filter: BlockFilter = all_blocks
    ) -> Iterator[Block]:
        nets = self._nets(objective, params, batch)
        net = nets[0]
        sums = BlockAccumulator.over(net, block_filter)
        for piece in contributions(nets, self.megabytes * 2**20, sums.is_needed):
            yield from sums.blocks_of(piece)
        yield from sums.blocks_at_the_end()
        columns, rest = list(net.names), {}
        for name in params:
            if name not in net.names:
                columns.append(name)
                rest[name] = tuple(columns)
        yield from rows_by_products(objective, params, batch, rest, self.tangents_per_product, block_filter)

    def _nets(self, objective: Objective, params: Params, batch: Batch) -> list[CapturedNet]:
        """The net on the batch, or on parts of it; with nothing captured where samples influence each other."""
        nets = self._captured(objective, params, batch)
        if any(mixes_samples(net) for net in nets):
            return [CapturedNet.of_nothing(objective, params, batch)]
        return nets

    def _captured(self, objective: Objective, params: Params, batch: Batch) -> list[CapturedNet]:
        """The net on the batch; on parts of it where the tangents of one unit would take four times `megabytes`."""
        uses = uses_of(objective, params, batch, tuple(params))
        if uses:
            itemsize = next(iter(params.values())).element_size()
            tangents = max(use.num_positions for use in uses)
            most_samples = max(1, 4 * self.megabytes * 2**20 // (3 * tangents * numbers_of(uses) * itemsize))
            if most_samples < batch.num_samples:
                return CapturedNet.in_parts(objective, params, batch, most_samples)
        return [CapturedNet.of(objective, params, batch)]

    def cost(self, objective: Objective, params: Params, batch: Batch) -> Cost:
        """As long as the guards find nothing: only the shapes are looked at."""
        return self.cost_of(uses_of(objective, params, batch, tuple(params)), params, batch)

    def cost_of(self, uses: Sequence[LinearUse], params: Params, batch: Batch) -> Cost:
        """The cost where the uses of the weights are known."""
        captured = {name for use in uses for name in use.names}
        rest = sum(value.numel() for name, value in params.items() if name not in captured)
        flop = 0.0
        for first, use in enumerate(uses):
            for other in uses[first:]:
                shared = min(use.num_positions, other.num_positions)
                pairs = use.num_weights * other.num_weights * (1 if other is use else 2)
                flop += batch.num_samples * shared * pairs
        return Cost(sum(tangents_of_use(use) for use in uses) + rest, flop)

    def memory(self, num_parameters: int, itemsize: int) -> int:
        return 4 * self.megabytes * 2**20 + 2 * self.tangents_per_product * num_parameters * itemsize
