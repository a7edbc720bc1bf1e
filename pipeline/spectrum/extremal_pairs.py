"""Eigenpairs at both ends of a spectrum, with a check that none is missing, from products alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.errors import PipelineError
from pipeline.spectrum import rows as on
from pipeline.spectrum.pair_search import Eigenpairs, PairSearch
from pipeline.spectrum.protocol import Array, ProductMatrix, Watch, checked_matrix
from pipeline.spectrum.rows import Rows
from pipeline.spectrum.unit_scale import UnitScale
from pipeline.system import format_bytes
from pipeline.validation import check_count, check_number

BLOCKS_BESIDE = 15  # blocks of a basis beside twice the pairs that are asked for
COLUMNS_BESIDE = 60  # vectors of it beside these at least


def eigenpairs(
    matrix: ProductMatrix,
    top: int = 20,
    bottom: int = 1,
    tolerance: float = 1e-6,
    max_products: int = 10_000,
    block_size: int | None = None,
    max_columns: int | None = None,
    seed: int = 0,
    start: Array | None = None,
    watch: Watch | None = None,
    memory: int | None = None,
) -> Eigenpairs:
    """The `top` largest and `bottom` smallest eigenpairs of a symmetric matrix that is known by its products.

    Thick-restart block Lanczos (Wu and Simon 2000, doi:10.1137/S0895479898334605) until all residuals are at most
    tolerance · |λ|max. A Krylov space holds at most as many copies of a multiple eigenvalue as its blocks have columns,
    and none of what its first block does not: so a random block in the space without the pairs found goes the same
    way, until a pair beyond them would have been seen. If there is one, the search goes on with it.

    matrix: what `curvature_operator` or `open_shard` gives, or anything with num_rows and matvec; one that has a torch
        dtype and a device is given tensors in that dtype and on that device, others arrays of float64.
    top, bottom: capped by P.
    block_size: vectors multiplied at once; by default 1 of an operator, of which each costs a product, and twice the
        larger of both numbers of a stored matrix, of which a pass costs the same for one as for many.
    max_columns: vectors of the basis, at which it restarts; more of them mean fewer products.
    start: (P, m) vectors that are close to those wanted, as those of an earlier checkpoint, of which the first block is
        made. It saves few products: what takes most is to tell apart eigenvalues that lie close together.
    watch: is called after each block of products with their number so far, and the largest residual of the pairs that
        are wanted over |λ|max, about; infinity while the basis is too small to hold them.
    memory: bytes that the basis and all beside it may take; None: half of what is free where the vectors lie.

    The same products give the same vectors to multiply, bit for bit, with the same options, where max_columns or memory
    is given too.

    Cost: on Hessians of trained nets some six to ten products a pair, checks included; beside them 4 · P FLOP for each
    product and vector of the basis. Memory: max_columns vectors, by default 2 (top + bottom) + 60 of an operator, and
    the result, in the dtype of the matrix.

    Raises:
        PipelineError: the residuals are above their bound after max_products; the products are too noisy for the
            tolerance, or not finite, or not those of a symmetric matrix; an option is wrong, or memory too small.
    """
    matrix = checked_matrix(matrix)
    check_count("top", top, minimum=0)
    check_count("bottom", bottom, minimum=0)
    check_number("tolerance", tolerance, above=0, below=1)
    check_count("max_products", max_products)
    check_count("block_size", block_size, or_null="what the matrix asks for")
    check_count("seed", seed, minimum=0)
    if top + bottom == 0:
        raise PipelineError("top=0 and bottom=0: ask for one pair at least.")
    top = min(top, matrix.num_rows)
    bottom = min(bottom, matrix.num_rows - top)
    own = getattr(matrix, "columns_per_pass", 2 * max(top, bottom))
    block_size = min(block_size or own, matrix.num_rows)
    check_count("max_columns", max_columns, minimum=top + bottom + 3 * block_size, or_null="by memory")
    like = on.rows_like(matrix)
    room = on.free_memory(like) // 2 if memory is None else memory
    columns = max_columns or _columns_in_memory(room, matrix.num_rows, top + bottom, block_size, like)
    unit = UnitScale(matrix)
    search = PairSearch(unit, top, bottom, tolerance, max_products, block_size, columns, seed, like, watch)
    with on.plain_arithmetic(like):
        found = search.run(None if start is None else _checked_start(start, matrix.num_rows))
    return replace(found, values=found.values / unit.factor, residuals=found.residuals / unit.factor)


def _checked_start(start: Any, num_rows: int) -> Rows:
    """The vectors as rows.

    Raises:
        PipelineError: they are not (P, m), or not real.
    """
    shape = tuple(getattr(start, "shape", ()))
    if len(shape) != 2 or shape[0] != num_rows or not 1 <= shape[1] <= num_rows:
        raise PipelineError(f"start has shape {shape}: give ({num_rows}, m) vectors, an array or a tensor.")
    if not str(start.dtype).removeprefix("torch.").startswith(("float", "bfloat", "int", "uint", "bool")):
        raise PipelineError(
            f"start holds {start.dtype}, not real numbers: give ({num_rows}, m) real vectors."
        )
    return start.T


def _columns_in_memory(num_bytes: int, num_rows: int, wanted: int, block_size: int, like: Rows | None) -> int:
    """Vectors of the basis: as many as are of use, or as so many bytes hold.

    Raises:
        PipelineError: it does not hold the fewest that are needed.
    """
    fewest, best, beside = _numbers(wanted, block_size)
    each = num_rows * (8 if like is None else like.element_size())
    room = num_bytes // each - beside
    if room < min(fewest, num_rows):
        raise PipelineError(
            f"{wanted} eigenpairs of P = {num_rows:,} weights need {format_bytes((fewest + beside) * each)} of memory "
            f"for a basis, {format_bytes((room + beside) * each)} may be taken: ask for fewer pairs, or block_size=1."
        )
    return int(min(best, max(room, fewest)))


def _numbers(wanted: int, block_size: int) -> tuple[int, int, int]:
    """Vectors: of the smallest basis; of one that is as large as is of use; and beside it, of the result and a step."""
    best = 2 * wanted + max(BLOCKS_BESIDE * block_size, COLUMNS_BESIDE)
    return wanted + 3 * block_size, best, wanted + 8 * block_size


def bytes_of_pairs(num_rows: int, wanted: int, block_size: int, itemsize: int, room: int) -> int:
    """Bytes that `eigenpairs` takes where it may take `room`."""
    fewest, best, beside = (min(num_rows, number) for number in _numbers(wanted, block_size))
    return max(min(itemsize * num_rows * (best + beside), room), itemsize * num_rows * (fewest + beside))


def columns_of_basis(wanted: int, block_size: int) -> int:
    """Vectors of the basis of `eigenpairs`, where memory holds them."""
    return _numbers(wanted, block_size)[1]
