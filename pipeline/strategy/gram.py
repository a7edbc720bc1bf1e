from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gram:
    """All eigenvalues of the GGN, the Fisher matrix or the empirical one at any number of weights P, with no matrix of
    P rows: they are those of a matrix with a row for each output of each sample, of N·C rows, and zeros.

    Cost and sources: see `pipeline.gram_spectrum`.
    """
