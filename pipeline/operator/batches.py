"""The samples that an operator sums over, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.objective import Batch, Tree

ALIKE = 1e-6  # relative: by how much sums over the same samples in another order may differ
SHAPES = "give one pair (inputs, targets), a list of such pairs, or a DataLoader"


@dataclass(frozen=True)
class Batches:
    """One pair (inputs, targets), a list of them, or anything that can be iterated over again and again.

    A tuple is one pair; a list holds pairs. Batches are brought to a device and a dtype when their turn comes; those
    of a pair or a list are brought there once. example: the first batch, as it was given: of what is iterated over in
    another order each time, it is one and the same. versions: of the tensors that are held, by their ids.
    """

    source: Any
    example: Batch
    held: tuple[Batch, ...] | None
    device: torch.device | None
    dtype: torch.dtype | None
    versions: Mapping[int, int] = field(default_factory=dict)

    @staticmethod
    def of(source: Any, device: torch.device | None, dtype: torch.dtype | None) -> Batches:
        """Raises a PipelineError for what holds no batches, or gives them only once."""
        pairs = [source] if isinstance(source, tuple) else source
        if isinstance(pairs, list):
            if not pairs:
                raise PipelineError(f"batches is empty: {SHAPES}.")
            held = tuple(_pair(pair).to(device, dtype) for pair in pairs)
            return Batches(source, _pair(pairs[0]), held, device, dtype, _versions(held))
        if isinstance(source, Tensor) or not hasattr(source, "__iter__"):
            raise PipelineError(f"batches is of type {type(source).__name__}: {SHAPES}.")
        if iter(source) is source:
            raise PipelineError(
                f"batches is of type {type(source).__name__}, which gives its batches only once, but each product "
                f"needs all of them: {SHAPES}."
            )
        for pair in source:
            return Batches(source, _pair(pair), None, device, dtype)
        raise PipelineError(f"batches is empty: {SHAPES}.")

    def __iter__(self) -> Iterator[Batch]:
        if self.held is not None:
            yield from self.held
            return
        for pair in self.source:
            yield _pair(pair).to(self.device, self.dtype)

    def check_unchanged(self) -> None:
        """Refuse samples that are held, and whose tensors have been written into.

        Raises:
            PipelineError: they have.
        """
        if any(self.versions[key] != version for key, version in _versions(self.held or ()).items()):
            raise PipelineError(
                "samples have been changed in place, by you or by the model, since the operator was made, whose matrix "
                "is of the samples then: give it a copy of them (.clone()), or make it again."
            )

    def at(self, dtype: torch.dtype) -> Batches:
        """The same batches in another precision, made of what was given."""
        if self.held is None:
            return replace(self, dtype=dtype)
        return Batches.of(self.source, self.device, dtype)

    def first(self) -> Batch:
        """The example, where and as batches are computed."""
        return self.example.to(self.device, self.dtype) if self.held is None else self.held[0]


def _pair(pair: Any) -> Batch:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        got = f"{len(pair)} values" if isinstance(pair, tuple | list) else f"a {type(pair).__name__}"
        raise PipelineError(f"a batch is {got}, not a pair: {SHAPES}.")
    return Batch.of(*pair)


def _versions(batches: Sequence[Batch]) -> dict[int, int]:
    """How often each tensor has been written into, by its id."""
    tensors = (value for batch in batches for value in Tree.of(tuple(batch), every=True).tensors)
    return {id(value): value._version for value in tensors}


@dataclass
class Fingerprint:
    """Sums over all samples, which do not depend on how they are dealt to batches, or in which order.

    hashes: of the batches, where the matrix depends on how they are dealt.
    """

    num_samples: int = 0
    total: float = 0.0
    squares: float = 0.0
    hashes: list[str] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        self.num_samples += batch.num_samples
        for value in Tree.of(tuple(batch), every=True).tensors:
            numbers = value.detach().abs().double() if value.is_complex() else value.detach().double()
            numbers = numbers.nan_to_num(nan=1.0, posinf=2.0, neginf=-2.0)  # a mask may hold infinities
            self.total += float(numbers.sum())
            self.squares += float(numbers.square().sum())

    def check(self, expected: Fingerprint) -> None:
        """Refuse other samples than those of the first pass.

        Raises:
            PipelineError: the batches differ from one pass to the next.
        """
        scale = ALIKE * max(1.0, expected.squares)
        alike = (
            self.num_samples == expected.num_samples
            and abs(self.total - expected.total) <= scale
            and abs(self.squares - expected.squares) <= scale
        )
        if not alike:
            raise PipelineError(
                f"the batches hold other samples at each pass ({expected.num_samples} samples at first, "
                f"{self.num_samples} now): a matrix has one set of samples; take out random augmentation, and "
                "drop_last=True of a shuffled DataLoader."
            )
        if sorted(self.hashes) != sorted(expected.hashes):
            raise PipelineError(
                "the matrix draws targets batch by batch, and batches hold other samples at each pass: give a list of "
                "batches, or a DataLoader with shuffle=False."
            )
