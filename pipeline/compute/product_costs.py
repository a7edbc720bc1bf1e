"""Products, seconds and memory of spectra without a matrix, estimated before any is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.experiment import Experiment
from pipeline.objective import Batch
from pipeline.operator import COLUMNS_PER_PASS, split_evenly
from pipeline.spectrum import SLQ, SPEEDUP, bytes_of_pairs, bytes_of_recurrences, columns_of_basis
from pipeline.strategy import MatrixFree
from pipeline.system import available_memory

PRODUCTS_A_PAIR = 8  # the check that none is missing included
GRADIENTS_A_PRODUCT = 2.5
READING = 10e9  # bytes a second of a basis, where a vector is made orthogonal to it


@dataclass(frozen=True)
class ProductCosts:
    """Of one checkpoint.

    num_workers: processes that products are dealt to, None where their number is not known; 1 for this process.
    """

    experiment: Experiment
    batches: Sequence[Batch]
    num_workers: int | None

    def seconds(self, gradient: float) -> float:
        """Of all products. gradient: seconds of one, by this process, for a sample."""
        num_samples = sum(batch.num_samples for batch in self.batches)
        samples = self.num_products * self._samples_of_a_worker + self.num_products_of_batches * num_samples
        return GRADIENTS_A_PRODUCT * gradient * samples

    @property
    def reading(self) -> float:
        """Seconds in which new vectors are made orthogonal to bases, each of which is read twice for it."""
        numbers = PRODUCTS_A_PAIR * self._wanted * columns_of_basis(self._wanted, COLUMNS_PER_PASS)
        if self._has_density:
            numbers += self._strategy.num_density_vectors * self._strategy.num_density_steps**2
        return numbers * self._num_rows * self._itemsize / READING

    @property
    def num_products(self) -> int:
        """With the matrix of all batches."""
        number = PRODUCTS_A_PAIR * self._wanted + self._strategy.num_trace_products
        if self._has_density:
            number += self._strategy.num_density_vectors * self._strategy.num_density_steps
        return number

    @property
    def num_products_of_batches(self) -> int:
        """With the matrix of each batch."""
        if not self._strategy.each_batch or len(self.batches) == 1:
            return 0
        return (PRODUCTS_A_PAIR + 1) * self._num_top + self._strategy.num_trace_products

    @property
    def memory(self) -> int:
        """Bytes of the vectors of eigenpairs, or of those of the density beside the pairs: as many as memory holds."""
        num_rows, itemsize, room = self._num_rows, self._itemsize, available_memory() // 2
        pairs = bytes_of_pairs(num_rows, self._wanted, COLUMNS_PER_PASS, itemsize, room)
        found = 8 * num_rows * self._wanted
        if of_batches := self._bytes_of_batches:
            pairs += of_batches + found
        if not self._has_density:
            return pairs
        steps = min(self._strategy.num_density_steps, num_rows)
        about = num_rows, self._strategy.num_density_vectors
        if bytes_of_recurrences(*about, steps, itemsize) > room:
            steps = 0
        return max(pairs, bytes_of_recurrences(*about, steps, itemsize) + found)

    @property
    def fewest_bytes(self) -> int:
        """Of the smallest basis that the search for eigenpairs can do with, and of the vectors of batches."""
        about = self._num_rows, self._wanted, COLUMNS_PER_PASS, self._itemsize
        return bytes_of_pairs(*about, room=0) + self._bytes_of_batches

    @property
    def _bytes_of_batches(self) -> int:
        """Of the eigenvectors of each batch, and a product."""
        if not self.num_products_of_batches:
            return 0
        return len(self.batches) * self._num_rows * (self._itemsize * self._num_top + 8)

    def __str__(self) -> str:
        number = self._num_parts
        text = f"about {self.num_products:,} products with the matrix of {len(self.batches)} batches"
        if number != 1:
            text += f", dealt to {number} workers" if number else ", dealt to the workers of the cluster"
        of_batches = self.num_products_of_batches
        return text + (f", {of_batches:,} with that of each" if of_batches else "")

    @property
    def _strategy(self) -> MatrixFree:
        strategy = self.experiment.matrix.strategy
        assert isinstance(strategy, MatrixFree), "a Gram matrix takes no products"
        return strategy

    @property
    def _has_density(self) -> bool:
        return isinstance(self.experiment.spectrum, SLQ)

    @property
    def _num_rows(self) -> int:
        return self.experiment.layout().num_parameters

    @property
    def _itemsize(self) -> int:
        return self.experiment.problem.dtype.itemsize

    @property
    def _num_top(self) -> int:
        return min(self.experiment.spectrum.num_top, self._num_rows)

    @property
    def _wanted(self) -> int:
        """Eigenpairs of both ends."""
        method = self.experiment.spectrum
        return min(method.num_top + getattr(method, "num_bottom", 0), self._num_rows)

    @property
    def _num_parts(self) -> int | None:
        """Of the batches of a product; None where it is not known."""
        number = len(self.batches)
        return 1 if number == 1 else self.num_workers and min(self.num_workers, number)

    @property
    def _samples_of_a_worker(self) -> float:
        """Those that take this process as long as a product: a worker has one thread, and may share its GPU."""
        sizes, number = [batch.num_samples for batch in self.batches], self._num_parts or 1
        if number == 1 or next(self.experiment.problem.model.parameters()).device.type != "cpu":
            return sum(sizes)
        largest = max(sum(sizes[index] for index in part) for part in split_evenly(sizes, number))
        return float(largest * torch.get_num_threads() ** SPEEDUP)
