"""Matrices of any scale, multiplied in single precision."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, log2
from typing import Any

from pipeline.spectrum.protocol import ProductMatrix, product_of

FAR = 1e8  # entries of a product below 1 / FAR or above FAR are brought near to 1


@dataclass
class UnitScale:
    """A matrix times a power of two, by which its first product that is not zero is brought near to 1 if it is far off.

    The squares of entries of 1e-20 are nothing in single precision, and those of 1e20 infinite.
    """

    matrix: ProductMatrix
    factor: float = 1.0
    is_known: bool = False

    @property
    def num_rows(self) -> int:
        return self.matrix.num_rows

    def matvec(self, vectors: Any) -> Any:
        product = product_of(self.matrix, vectors)
        largest = 0.0 if self.is_known else float(abs(product).max())
        if isfinite(largest) and largest > 0:
            self.is_known = True
            if not 1 / FAR < largest < FAR:
                self.factor = 2.0 ** -round(log2(largest))
        return product * self.factor if self.factor != 1 else product
