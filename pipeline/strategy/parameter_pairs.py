"""Which side of each pair of parameters is differentiated: symmetry at the level of whole parameters."""

from __future__ import annotations

from torch import Tensor

from pipeline.layout import Layout
from pipeline.objective import Params


def columns_of(params: Params) -> dict[str, tuple[str, ...]]:
    """For the rows of each parameter, the parameters whose columns are to be computed.

    H is symmetric, so of the blocks (j, k) and (k, j) one is enough; a row of block (j, k) is one derivative
    by an entry of j. The smaller parameter of a pair gives the rows, because it has fewer of them: the rows
    of the largest one are differentiated by itself alone, those of the smallest one by all. (Within one parameter
    nothing can be left out: the derivative by a weight matrix is one product, whichever entries are wanted.)
    """
    by_size = sorted(params, key=lambda name: -params[name].numel())
    return {name: tuple(by_size[: place + 1]) for place, name in enumerate(by_size)}


def rows_of(layout: Layout, name: str, chunk_size: int) -> list[slice]:
    """The rows of a parameter in chunks of at most `chunk_size`."""
    whole = layout.slices()[name]
    return [slice(i, min(i + chunk_size, whole.stop)) for i in range(whole.start, whole.stop, chunk_size)]


def unit_vectors(like: Tensor, start: int, stop: int) -> Tensor:
    """Unit vectors start..stop-1 of the space of a parameter, (stop - start, *shape)."""
    vectors = like.new_zeros(stop - start, like.numel())
    vectors[:, start:stop].fill_diagonal_(1)
    return vectors.reshape(-1, *like.shape)
