from __future__ import annotations

from dataclasses import dataclass

from pipeline.spectrum.protocol import Spectrum, SymmetricMatrix
from pipeline.spectrum.topk import SINGLE, extremal_spectrum, memory_of
from pipeline.validation import check_count, check_number


@dataclass(frozen=True)
class SLQ:
    """The density by stochastic Lanczos quadrature, with error bars, and both ends of the spectrum from its passes.

    num_vectors random vectors go through num_steps passes together, as one block: each pass over the file multiplies
    all of them, and all share the nodes of the quadrature. More vectors make the error bars smaller, as
    1 / sqrt(num_vectors); more steps resolve smaller eigenvalues. The eigenpairs are taken when
    ‖H v − θ v‖ ≤ tolerance · |λ|max, after more passes if need be.

    Cost: num_steps passes, or those that the eigenpairs need; 2 P² num_vectors FLOP each. Memory: max_columns
    vectors of float64, and some nine blocks; never the matrix. Sources: Ubaru, Chen and Saad 2017,
    doi:10.1137/16M1104974; Ghorbani, Krishnan and Xiao 2019, arXiv:1901.10159.
    """

    num_top: int = 10
    num_bottom: int = 1
    num_vectors: int | None = None  # null: 2 · max(num_top, num_bottom)
    num_steps: int = 12
    tolerance: float = 1e-4
    max_passes: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("spectrum.num_top", self.num_top)
        check_count("spectrum.num_bottom", self.num_bottom, minimum=0)
        # A Krylov space holds at most num_vectors copies of a multiple eigenvalue; and one vector has no spread.
        widest = max(2, self.num_top, self.num_bottom)
        check_count("spectrum.num_vectors", self.num_vectors, minimum=widest, or_null=f"{2 * widest}")
        check_count("spectrum.num_steps", self.num_steps, minimum=4)
        check_number("spectrum.tolerance", self.tolerance, above=0, below=1)
        check_count("spectrum.max_passes", self.max_passes, minimum=self.num_steps)
        check_count("spectrum.seed", self.seed, minimum=0)

    @property
    def num_columns_per_pass(self) -> int:
        return self.num_vectors or 2 * max(2, self.num_top, self.num_bottom)

    @property
    def num_columns_at_most(self) -> int:
        """Of the basis: no restart before num_steps passes, and then room for three blocks beside what is wanted."""
        wanted = self.num_top + self.num_bottom
        return max(self.num_steps * self.num_columns_per_pass, wanted + 3 * self.num_columns_per_pass)

    @property
    def in_memory(self) -> bool:
        return False

    @property
    def single(self) -> bool:
        return self.tolerance >= SINGLE

    def of_batch(self) -> SLQ:
        return self

    def decompose(self, matrix: SymmetricMatrix) -> Spectrum:
        """The spectrum's two ends, and the quadrature.

        Raises:
            PipelineError: if a residual is above its bound after `max_passes`, or a product is not finite.
        """
        return extremal_spectrum(matrix, self, min_passes=self.num_steps)

    def memory(self, num_rows: int, itemsize: int) -> int:
        """Bytes at the peak; what `matvec` needs beside its result is not in it."""
        return memory_of(self, num_rows, itemsize)
