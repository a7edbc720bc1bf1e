"""Whether a way gives right products: its certificate in float64, and what single precision does to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.objective import Certificate, check_loss, directions
from pipeline.operator.batch_sum import BatchSum, Net
from pipeline.operator.protocol import Way
from pipeline.operator.selection import Imprecise, Trial

MOST_ROUNDING = 0.05  # of H v: by which products in single precision may differ from those in float64
FEW = 32  # samples on which a way is certified, if the model takes so few: it is right or wrong whatever their number


@dataclass
class Verification:
    """The certificate of a way, on some samples of the first batch.

    A way is certified in float64, where differences of gradients are sharp. In single precision the same way must give
    nearly the same products: a ReLU whose input is as small as rounding may be on in one and off in the other, which
    moves H v of a large net by some 0.1 to 1 %.

    rounding: ‖H v − Hₛ v‖ / ‖H v‖ of the last way, H in float64 and Hₛ in the precision of the operator. Where it is
    above MOST_ROUNDING, `Imprecise` is raised: another way would not do either.
    """

    net: Net
    total: BatchSum
    rounding: float = field(default=0.0)

    def __call__(self, trial: Trial) -> Certificate:
        own, exact = (_probed(trial.way, each) for each in (self.few, self.double))
        certificate = self.net.certificate(
            self.double.matrix,
            self.double.batches.example,
            exact,
            exact.dtype,
            self.double.problem[2].targets,
        )
        gap, size = (own.double() - exact.double()).norm(dim=0), exact.double().norm(dim=0)
        self.rounding = float((gap / size.clamp(min=1e-300)).max()) if bool(gap.any()) else 0.0
        if certificate.passed and not self.rounding <= MOST_ROUNDING:
            raise Imprecise(
                f"single precision moves H v by {self.rounding:.2g} of its size, {MOST_ROUNDING:g} is allowed "
                "(weights or samples scaled badly, or a loss that is nearly zero?)",
                "use dtype=torch.float64, or verify=False takes products as they are",
            )
        return certificate

    @cached_property
    def few(self) -> BatchSum:
        """The objective on few samples, or on the first batch if the model does not take fewer."""
        whole = self.total.batches.example
        for batch in (whole.chunk(0, FEW), whole):
            total = self.total.on(batch)
            try:
                check_loss(total.objective, total.params, total.first)
            except PipelineError:
                continue
            return total
        return self.total

    @cached_property
    def double(self) -> BatchSum:
        """The same in float64; as it is, if it is so already, or a part of the model is fixed to another precision."""
        if self.few.dtype == torch.float64:
            return self.few
        double = self.few.at(self.net, torch.float64)
        try:
            check_loss(double.objective, double.params, double.first)
        except PipelineError:
            return self.few
        return double


def _probed(way: Way, total: BatchSum) -> Tensor:
    probes = directions(sum(value.numel() for value in total.params.values()))
    return way.product(*total.problem)(probes.to(next(iter(total.params.values()))))
