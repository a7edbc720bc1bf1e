"""How batches make up the loss of all samples: added, or weighted by the terms that their mean is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline.criterion import BinaryCrossEntropy, CrossEntropy, SquaredError
from pipeline.errors import PipelineError, first_line, must_reach_user
from pipeline.objective import Batch, Criterion, Objective, Params, Tree, leaves_of, num_labels, num_terms

ENTRYWISE = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
)
LABELLED = (CrossEntropy, nn.CrossEntropyLoss, nn.NLLLoss)
ADDED = 1e-4  # relative: by how much the losses of parts may differ from that of the whole
HOW = (
    "give all samples as one batch, or the criterion an attribute reduction='sum' or 'mean', and for a mean over "
    "something else than samples a method num_terms(targets)"
)


class UnknownReduction(PipelineError):
    """A loss that is neither the sum nor the mean over terms that are known."""


@dataclass(frozen=True)
class LossTerms:
    """How many terms a batch adds to the loss: for a mean loss L = Σ_b (t_b / Σ t) L_b, for a summed one L = Σ_b L_b.

    A term is a sample for most losses; an entry for losses that average over entries; a label that counts, times the
    weight of its class, for cross-entropy with ignore_index and class weights. A criterion of the user's own may say
    so by a method `num_terms(targets)`. Each batch is checked for it, unless the criterion is one of torch's own.

    _ratios: outputs for each sample, of the batches that were checked. _first: a sample of the first of these.
    """

    criterion: Criterion
    is_sum: bool
    _ratios: list[float] = field(default_factory=list, compare=False)
    _first: list[Batch] = field(default_factory=list, compare=False)

    @staticmethod
    def of(objective: Objective, params: Params, first: Batch) -> LossTerms:
        """The terms of a criterion, which is tried on the first batch if it does not say how it reduces.

        Raises:
            UnknownReduction: it is neither a sum nor a mean.
        """
        reduction = getattr(objective.criterion, "reduction", None)
        if reduction not in ("mean", "sum"):
            reduction = _tried(objective, params, first)
        return LossTerms(objective.criterion, reduction == "sum")

    def weight(self, batch: Batch) -> float:
        """The terms of a batch; 1 for a summed loss, whose batches are added as they are."""
        return 1.0 if self.is_sum else self._count(batch)

    def check(self, objective: Objective, params: Params, batch: Batch) -> None:
        """Refuse a batch whose loss is not made up of the losses of its parts in that way.

        Raises:
            UnknownReduction: it is not.
        """
        known = type(self.criterion) in (*ENTRYWISE, *LABELLED, SquaredError, BinaryCrossEntropy)
        if known and batch.num_samples in map(len, _counting(batch.targets)):
            return
        if self.weight(batch) == 0:
            return
        judged = _judged(objective, params, batch)
        self._check_ratio(self.weight(judged) / self.weight(batch))
        if judged.num_samples > 1:
            cut = judged.num_samples // 3 or 1
            parts = [judged.chunk(0, cut), judged.chunk(cut, judged.num_samples)]
            self._check_parts(objective, params, judged, parts)
        if self._first and not self._says_terms() and _are_of_other_shapes(self._first[0], judged):
            raise _refused(
                "a sample has other shapes in one batch than in another, and the loss names no terms"
            )
        if self._first and (both := _joined([*self._first, judged])) is not None:
            self._check_parts(objective, params, both, [*self._first, judged])
        if not self._first and self.weight(sample := judged.chunk(0, 1)):
            copied = pytree.tree_map_only(Tensor, Tensor.clone, sample)  # a view would keep all outputs
            self._first.append(copied)

    def _says_terms(self) -> bool:
        """Whether it needs no terms, being a sum, or says itself what its mean is over."""
        return self.is_sum or hasattr(self.criterion, "reduction") or hasattr(self.criterion, "num_terms")

    def _check_ratio(self, ratio: float) -> None:
        """Refuse batches whose inputs and outputs count samples differently from batch to batch.

        Raises:
            UnknownReduction: they do.
        """
        self._ratios.append(ratio)
        if ratio != self._ratios[0]:
            raise _refused(
                f"there are {self._ratios[0]:g} times as many outputs as samples in one batch and {ratio:g} times as "
                "many in another"
            )

    def _count(self, batch: Batch) -> float:
        if (own := num_terms(self.criterion, batch)) is not None:
            return own
        if isinstance(self.criterion, CrossEntropy):
            return num_labels(self.criterion, batch.targets)
        if isinstance(self.criterion, (*ENTRYWISE, BinaryCrossEntropy)):
            return float(batch.targets.numel())
        return float(batch.num_samples)

    def _check_parts(
        self, objective: Objective, params: Params, whole: Batch, parts: Sequence[Batch]
    ) -> None:
        """Refuse a loss of outputs and targets together that their parts do not make up.

        Raises:
            UnknownReduction: they do not.
        """
        try:
            terms = [self.weight(part) for part in parts]
            losses = [_loss_and_slopes(objective, params, part) for part in (whole, *parts)]
            values = [t * loss if t else 0.0 for t, (loss, _) in zip(terms, losses[1:], strict=True)]
            total, expected = self.weight(whole) * losses[0][0], sum(values)
        except Exception as error:  # a criterion may raise anything where it does not take a part
            if must_reach_user(error):
                raise
            raise _refused(first_line(error)) from error
        if not abs(total - expected) <= ADDED * sum(map(abs, values)):
            n = whole.num_samples
            raise _refused(f"a batch of {n} adds {total:.6g} to it, in two parts it adds {expected:.6g}")
        slopes = [each for _, each in losses]
        if self.is_sum and float((slopes[0] - slopes[1] - slopes[2]).norm()) > ADDED * float(
            slopes[0].norm()
        ):
            raise _refused(
                "a part of it, such as a penalty, depends on the weights alone and would be added for each batch"
            )


def _joined(batches: Sequence[Batch]) -> Batch | None:
    """Outputs and targets of several batches as one; None where some do not count samples, or are of other shapes.

    So batches are seen to weigh alike that hold one sample, or samples of one class, each.
    """
    if not all(all(batch.counted()) for batch in batches):
        return None
    trees = [Tree.of(tuple(batch), every=True) for batch in batches]
    columns = list(zip(*(tree.tensors for tree in trees), strict=True))
    if any(value.shape[1:] != column[0].shape[1:] for column in columns for value in column):
        return None
    return Batch(*trees[0].like([torch.cat(column) for column in columns]))


def _are_of_other_shapes(one: Batch, other: Batch) -> bool:
    """Whether tensors of their outputs or targets differ in more than the number of samples: in length, say."""
    pairs = zip(*(Tree.of(tuple(batch), every=True).tensors for batch in (one, other)), strict=False)
    return any(a.shape[1:] != b.shape[1:] for a, b in pairs)


def _counting(targets: Any) -> tuple[Tensor, ...]:
    return tuple(value for value in Tree.of(targets, every=True).tensors if value.ndim > 0)


def _judged(objective: Objective, params: Params, batch: Batch) -> Batch:
    """What the criterion is given of a batch, the outputs moved a little.

    At outputs as they are a loss of zero would tell nothing. Moved towards
    zero, probabilities stay what a criterion takes.
    """
    tree = Tree.of(objective.predict(leaves_of(params), batch.inputs))
    generator = torch.Generator().manual_seed(0)
    moved = [f.detach() * (1 - torch.rand(f.shape, generator=generator).to(f) / 2) for f in tree.tensors]
    return Batch(tree.like(moved), batch.targets)


def _loss_and_slopes(objective: Objective, params: Params, judged: Batch) -> tuple[float, Tensor]:
    """The criterion of outputs and targets, and its derivative by the weights that it reads itself, (P,)."""
    leaves = leaves_of(params)
    loss = objective.loss_of(leaves, judged.inputs, judged.targets)
    if not loss.requires_grad:
        return float(loss), torch.zeros(1, dtype=torch.float64)
    slopes = torch.autograd.grad(loss, tuple(leaves.values()), materialize_grads=True)
    return float(loss.detach()), torch.cat([slope.reshape(-1).double() for slope in slopes])


def _tried(objective: Objective, params: Params, batch: Batch) -> str:
    """Whether the loss of every sample twice is the same ("mean") or twice as large ("sum")."""
    judged = _judged(objective, params, batch)
    try:
        once, twice = (_loss_and_slopes(objective, params, each)[0] for each in (judged, judged.doubled()))
    except Exception as error:  # a criterion may raise anything where it does not take so many outputs
        if must_reach_user(error):
            raise
        raise _refused(first_line(error)) from error
    for reduction, ratio in (("mean", 1.0), ("sum", 2.0)):
        if abs(twice - ratio * once) <= ADDED * abs(once):
            return reduction
    raise _refused(f"of every sample twice it is {twice / once if once else twice:.3g} times as large")


def _refused(why: str) -> UnknownReduction:
    return UnknownReduction(
        f"the loss is neither the sum nor the mean over samples ({why}), so that it is not known how batches add up: "
        f"{HOW}."
    )
