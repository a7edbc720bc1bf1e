"""The weighted sum of the products of all batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.layout import Layout
from pipeline.matrix import Matrix
from pipeline.objective import (
    Batch,
    Certificate,
    Criterion,
    Objective,
    Params,
    Reference,
    certify,
    hash_of,
    objective_of,
)
from pipeline.operator.batches import Batches, Fingerprint
from pipeline.operator.central_difference import CentralDifference
from pipeline.operator.checkpointed import Checkpointed
from pipeline.operator.forward_over_reverse import ForwardOverReverse
from pipeline.operator.loss_terms import LossTerms
from pipeline.operator.protocol import Product, Way
from pipeline.operator.reverse_over_reverse import ReverseOverReverse
from pipeline.operator.selection import Certified, Selected, select_way
from pipeline.strategy import count_numbers
from pipeline.system import available_memory

COPIES = 4  # of what the model computes on a batch, that the graph of a gradient holds
MOST_AT_ONCE = 64  # vectors of a pass of forward over reverse
SHARE = 4  # a fourth of the free memory is for graphs that are kept, and a fourth for a pass


@dataclass(frozen=True)
class Net:
    """The user's own net and loss, and the weights that they are differentiated by.

    is_checkpointed: whether `torch.utils.checkpoint` inside the net saves memory, see `Objective.checkpointed`.
    """

    model: nn.Module
    criterion: Criterion
    parameters: Sequence[str] | str | None
    device: torch.device | None
    randomness: int | None
    is_checkpointed: bool = False

    def at(self, dtype: torch.dtype | None) -> tuple[Objective, Params]:
        about = (self.model, self.criterion, self.parameters)
        objective, params = objective_of(*about, dtype, self.device, self.randomness)
        return objective.checkpointed() if self.is_checkpointed else objective, params

    def certificate(
        self, matrix: Matrix, batch: Batch, products: Tensor, precision: torch.dtype, targets: object
    ) -> Certificate:
        """Of products on one batch, which is as the user gave it. targets: those that the matrix takes."""
        about = (self.model, self.criterion, self.parameters)
        reference = Reference(*about, batch, self.device, self.randomness)
        return certify(reference, matrix, products, precision, targets, objective=self.at(reference.dtype))


@dataclass
class BatchSum:
    """V ↦ Σ_b w_b H_b V, (P, m) to (P, m) in float64, or in the dtype of the weights where there is one batch.

    way: how H_b V is computed; `select` finds it. weights: terms of the batches, where they are counted already. share:
    of the free memory, that this process may use. expected: of the samples of the first pass. kept: products of
    batches, and their weights, where memory holds them.
    """

    objective: Objective
    params: Params
    matrix: Matrix
    batches: Batches
    way: Way | None = None
    weights: Sequence[float] | None = None
    share: float = 1.0
    expected: Fingerprint = field(default_factory=Fingerprint)
    kept: dict[int, tuple[Product, float]] = field(default_factory=dict)

    @staticmethod
    def of(net: Net, matrix: Matrix, source: Any, dtype: torch.dtype | None) -> BatchSum:
        objective, params = net.at(dtype)
        example = next(iter(params.values()))
        return BatchSum(objective, params, matrix, Batches.of(source, example.device, example.dtype))

    def at(self, net: Net, dtype: torch.dtype) -> BatchSum:
        """The same sum in another precision."""
        objective, params = net.at(dtype)
        return BatchSum(objective, params, self.matrix, self.batches.at(dtype))

    def on(self, batch: Batch) -> BatchSum:
        """The same matrix on one batch, which is as the user gives it."""
        place = next(iter(self.params.values())).device
        return BatchSum(
            self.objective, self.params, self.matrix, Batches.of([tuple(batch)], place, self.dtype)
        )

    def of_batch(self, index: int) -> BatchSum:
        """The matrix of one of the batches that are held, by the way that was selected; a kept graph is shared.

        Else it keeps a graph of its own while a fourth of the free memory holds those of all batches.
        """
        held = self.batches.held
        assert held is not None, "batches are a list"
        only = replace(self.batches, example=held[index], held=(held[index],))
        kept = {0: (self.kept[index][0], 1.0)} if index in self.kept else {}
        share = self.share / len(held)
        one = replace(self, batches=only, kept=kept, share=share, weights=None, expected=Fingerprint())
        if not kept:
            _ = one.is_kept  # known from now on, without what it was found from
            one.forget_trial()
        return one

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.params.values())).dtype

    @cached_property
    def first(self) -> Batch:
        return self.batches.first()

    @cached_property
    def problem(self) -> tuple[Objective, Params, Batch]:
        """What is differentiated on the first batch."""
        objective, batch = self.matrix.problem(self.objective, self.params, self.first)
        return objective, self.params, batch

    @cached_property
    def bytes_of_a_graph(self) -> int:
        """What a gradient with its graph holds on the first batch, about."""
        objective, params, batch = self.problem
        numbers = COPIES * count_numbers(objective, params, batch).numbers
        return (numbers + 2 * Layout.of(params).num_parameters) * self.dtype.itemsize

    @cached_property
    def is_kept(self) -> bool:
        held = self.batches.held
        return held is not None and self.bytes_of_a_graph * len(held) <= self.room

    @cached_property
    def room(self) -> int:
        """Bytes that graphs, or the vectors of a pass, may take."""
        place = next(iter(self.params.values())).device
        free = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else available_memory()
        return int(self.share * free) // SHARE

    @property
    def memory(self) -> int:
        """Bytes of graphs that are held at once, about."""
        return self.bytes_of_a_graph * (len(self.batches.held) if self.is_kept and self.batches.held else 1)

    @cached_property
    def terms(self) -> LossTerms | None:
        """How batches make up the loss; None where there is one batch."""
        if self.batches.held is not None and len(self.batches.held) == 1:
            return None
        return LossTerms.of(self.objective, self.params, self.first)

    def select(self, certified: Certified | None, name: str | None = None) -> Selected:
        """Find the way by a trial on the first batch. name: of the only one that is tried.

        Raises:
            NoWay: none gives right products.
        """
        columns = min(MOST_AT_ONCE, Layout.of(self.params).num_parameters, self.room // self.bytes_of_a_graph)
        ways: list[Way] = [ReverseOverReverse(self.is_kept), ForwardOverReverse(max(1, columns))]
        ways = [way for way in ways if name is None or _is_named(way, name)]
        ways = [Checkpointed()] if name == Checkpointed.NAME else ways
        return self._take(select_way(ways, self.problem, self.is_kept, certified))

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The loss of all batches and its gradient, (P,) in float64.

        Raises:
            PipelineError: it is not known how the batches add up.
        """
        loss, terms = 0.0, 0.0
        gradient = torch.zeros(Layout.of(self.params).num_parameters, dtype=torch.float64)
        for index, batch in enumerate(self.batches):
            if (weight := self._weight(index, batch)) == 0:
                continue
            with torch.no_grad():
                loss += weight * float(self.objective.loss(self.params, batch))
            gradient += weight * self.objective.gradient(self.params, batch).double().cpu()
            terms += weight
        if self.terms is None or self.terms.is_sum or terms == 0:
            return loss, gradient
        return loss / terms, gradient / terms

    def counted(self) -> list[float]:
        """The terms of each batch.

        Raises:
            PipelineError: it is not known how the batches add up.
        """
        return [self._weight(index, batch) for index, batch in enumerate(self.batches)]

    def by_differences(self, certified: Certified | None) -> Selected:
        """Take differences of gradients.

        Raises:
            NoWay: they are not right.
        """
        return self._take(select_way([CentralDifference()], self.problem, False, certified))

    def _take(self, selected: Selected) -> Selected:
        self.way = selected.trial.way
        if self.is_kept:
            self.kept[0] = selected.trial.product, self._weight(0, self.first)
        return selected

    def forget_trial(self) -> None:
        """Let go of what was differentiated on the first batch: a linearized model holds a graph."""
        self.__dict__.pop("problem", None)

    def __call__(self, vectors: Tensor) -> Tensor:
        vectors = vectors.to(self.dtype)
        if self.terms is None:
            return next(self._products())[0](vectors)
        return self.normalized(*self.weighted(vectors))

    def weighted(self, vectors: Tensor) -> tuple[Tensor, float]:
        """Σ_b t_b H_b V in float64, and Σ_b t_b, for the terms t_b of each batch."""
        vectors = vectors.to(self.dtype)
        total, terms = torch.zeros(vectors.shape, dtype=torch.float64, device=vectors.device), 0.0
        for product, weight in self._products():
            total += weight * product(vectors).double()
            terms += weight
        return total, terms

    def normalized(self, total: Tensor, terms: float) -> Tensor:
        """Σ_b w_b H_b V of what `weighted` gives over all batches: divided by the terms if the loss is a mean."""
        if terms == 0:
            return total * float("nan")
        return total if self.terms is None or self.terms.is_sum else total / terms

    def _products(self) -> Iterator[tuple[Product, float]]:
        """The product of each batch, and its weight.

        Raises:
            PipelineError: the batches hold other samples than at the pass before.
        """
        seen, drawn = Fingerprint(), self.batches.held is None and getattr(self.matrix, "num_draws", None)
        self.batches.check_unchanged()
        for index, batch in enumerate(self.batches):
            if self.batches.held is None or not self.expected.num_samples:
                seen.add(batch)
            if drawn:
                seen.hashes.append(hash_of(batch))
            if index not in self.kept:
                made = self._made(index, batch)
                if self.is_kept:
                    self.kept[index] = made
            else:
                made = self.kept[index]
            if made[1] > 0:  # a mean over no terms counts nothing
                yield made
        self.expected = self.expected if self.expected.num_samples else seen
        if self.batches.held is None:
            seen.check(self.expected)

    def _made(self, index: int, batch: Batch) -> tuple[Product, float]:
        weight = self._weight(index, batch)
        if weight == 0:
            return torch.zeros_like, 0.0
        objective, drawn = self.matrix.problem(self.objective, self.params, batch)
        assert self.way is not None, "a way is selected first"
        return self.way.product(objective, self.params, drawn), weight

    def _weight(self, index: int, batch: Batch) -> float:
        if self.weights is not None:
            return self.weights[index]
        if self.terms is None:
            return 1.0
        if not self.expected.num_samples:  # at the first pass
            self.terms.check(self.objective, self.params, batch)
        return self.terms.weight(batch)


def _is_named(way: Way, name: str) -> bool:
    """Whether it has that name, but for whether graphs are kept: memory decides that, and it changes no bit."""
    return way.name.partition(",")[0] == name.partition(",")[0]
