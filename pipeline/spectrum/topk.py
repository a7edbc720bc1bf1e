from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import PipelineError
from pipeline.spectrum.lanczos import RitzPairs, extremal_eigenpairs
from pipeline.spectrum.protocol import Spectrum, SymmetricMatrix
from pipeline.validation import check_count, check_number

SINGLE = 1e-5  # tolerance from which products in float32 are good enough for a matrix in float32
BLOCKS_PER_BASIS = 12  # a longer basis saves hardly a pass on spectra of Hessians


@dataclass(frozen=True)
class TopK:
    """The num_top largest and num_bottom smallest eigenvalues (with sign), by block Lanczos passes on disk.

    A pair is taken when ‖H v − θ v‖ ≤ tolerance · |λ|max, so an eigenvalue that stands apart by a gap g from
    the rest is right to tolerance² · |λ|max² / g, and one inside the bulk to tolerance · |λ|max. The basis is
    float64 whatever the matrix is stored in. Both numbers are capped by P.

    Cost: 10 passes over the Hessians of small trained MLPs (P = 2,410, defaults), 2 P² block_size FLOP each.
    Memory: max_columns vectors of float64, and some nine blocks; never the matrix.
    """

    num_top: int = 10
    num_bottom: int = 1
    tolerance: float = 1e-6
    max_passes: int = 100
    block_size: int | None = None  # vectors multiplied in one pass; None: 2 · max(num_top, num_bottom)
    max_columns: int | None = None  # vectors of the basis at which it restarts; None: 12 blocks
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("spectrum.num_top", self.num_top)
        check_count("spectrum.num_bottom", self.num_bottom, minimum=0)
        check_number("spectrum.tolerance", self.tolerance, above=0, below=1)
        check_count("spectrum.max_passes", self.max_passes, minimum=2)  # one may hold less than is wanted
        # A Krylov space holds at most block_size copies of a multiple eigenvalue: fewer would miss some.
        widest = max(self.num_top, self.num_bottom)
        check_count("spectrum.block_size", self.block_size, minimum=widest, or_null=f"{2 * widest}")
        # Each restart forgets a part: with room for less than three new blocks, nearly all that was gained.
        fewest = self.num_top + self.num_bottom + 3 * self.num_columns_per_pass
        check_count("spectrum.max_columns", self.max_columns, minimum=fewest, or_null="12 blocks")
        check_count("spectrum.seed", self.seed, minimum=0)

    @property
    def num_columns_per_pass(self) -> int:
        return self.block_size or 2 * max(self.num_top, self.num_bottom)

    @property
    def num_columns_at_most(self) -> int:
        return self.max_columns or BLOCKS_PER_BASIS * self.num_columns_per_pass

    @property
    def in_memory(self) -> bool:
        return False

    @property
    def single(self) -> bool:
        return self.tolerance >= SINGLE

    def of_batch(self) -> TopK:
        return self

    def decompose(self, matrix: SymmetricMatrix) -> Spectrum:
        """The spectrum's two ends.

        Raises:
            PipelineError: if a residual is above its bound after `max_passes`, or a product is not finite.
        """
        return extremal_spectrum(matrix, self)

    def memory(self, num_rows: int, itemsize: int) -> int:
        """Bytes at the peak; what `matvec` needs beside its result is not in it."""
        return memory_of(self, num_rows, itemsize)


class Options(Protocol):
    """What a search for both ends of a spectrum is told; see `TopK`."""

    @property
    def num_top(self) -> int: ...
    @property
    def num_bottom(self) -> int: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def max_passes(self) -> int: ...
    @property
    def num_columns_per_pass(self) -> int: ...
    @property
    def num_columns_at_most(self) -> int: ...
    @property
    def seed(self) -> int: ...


def extremal_spectrum(matrix: SymmetricMatrix, options: Options, min_passes: int = 0) -> Spectrum:
    """The spectrum's two ends, and what the passes tell of its density.

    Raises:
        PipelineError: if a residual is above its bound after `max_passes`, or a product is not finite.
    """
    num_top = min(options.num_top, matrix.num_rows)
    num_bottom = min(options.num_bottom, matrix.num_rows - num_top)
    pairs = extremal_eigenpairs(
        matrix.matvec,
        matrix.num_rows,
        num_top=num_top,
        num_bottom=num_bottom,
        tolerance=options.tolerance,
        max_passes=options.max_passes,
        block_size=options.num_columns_per_pass,
        max_columns=options.num_columns_at_most,
        seed=options.seed,
        min_passes=min_passes,
    )
    if not pairs.converged:
        raise PipelineError(_not_converged(pairs, options))
    return Spectrum(
        eigenvalues=pairs.values,
        top_eigenvalues=pairs.values[num_bottom:][::-1].copy(),
        top_eigenvectors=pairs.vectors[:, num_bottom:][:, ::-1].copy(),
        residuals=pairs.residuals[num_bottom:][::-1].copy(),
        complete=len(pairs.values) == matrix.num_rows,
        quadrature=pairs.quadrature,
        num_passes=pairs.num_passes,
    )


def memory_of(options: Options, num_rows: int, itemsize: int) -> int:
    """Bytes at the peak, where a block is made orthonormal; what `matvec` needs beside its result is not in it."""
    num_top, num_bottom = min(options.num_top, num_rows), min(options.num_bottom, num_rows)
    block, columns = min(options.num_columns_per_pass, num_rows), min(options.num_columns_at_most, num_rows)
    vectors = min(columns + 3 * block, num_rows) + 5 * block + 2 * (num_top + num_bottom)
    return 8 * num_rows * vectors + 3 * 8 * columns**2 + itemsize * num_rows * block + 16 * 2**20


def _not_converged(pairs: RitzPairs, options: Options) -> str:
    above = pairs.residuals > pairs.bound
    residuals = ", ".join(f"{r:.1e}" for r in pairs.residuals[above][:5])
    more = f" and {above.sum() - 5} more" if above.sum() > 5 else ""
    name = type(options).__name__.lower()
    return (
        f"spectrum={name}: {above.sum()} of {len(above)} eigenpairs have not converged in {pairs.num_passes} "
        f"passes (residuals {residuals}{more}, allowed {pairs.bound:.1e}): raise "
        f"spectrum.max_passes={options.max_passes} or spectrum.tolerance={options.tolerance:g}, "
        "or choose spectrum=exact."
    )
