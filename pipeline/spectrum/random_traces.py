"""Trace, layer traces, Frobenius norm and diagonal from products with random vectors, each with an interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.errors import PipelineError
from pipeline.spectrum.extremal_pairs import Eigenpairs
from pipeline.spectrum.protocol import Array, ProductMatrix, checked_matrix
from pipeline.validation import check_count, check_number

AT_ONCE = 16  # vectors of a product
FEWEST = 12  # products: a third of them are left for the spread


@dataclass(frozen=True)
class Estimate:
    """A number, and the interval that holds what it estimates with the confidence that was asked for."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Traces:
    """The trace of a matrix, those of the diagonal blocks of its layers where these are known, and its norm ‖H‖_F."""

    trace: Estimate
    layers: Mapping[str, Estimate]
    frobenius_norm: Estimate
    num_products: int


@dataclass(frozen=True)
class Diagonal:
    """The diagonal of a matrix, (P,), and the standard error of each of its entries."""

    values: Array
    errors: Array
    num_products: int


def trace(
    matrix: ProductMatrix,
    num_products: int = 96,
    confidence: float = 0.95,
    pairs: Eigenpairs | None = None,
    seed: int = 0,
) -> Traces:
    """The trace, each layer's trace and the Frobenius norm, from the same products.

    A space Q is taken out first: the vectors of `pairs`, or else the image of a third of the vectors, as in Hutch++
    (Meyer, Musco, Musco and Woodruff 2021, arXiv:2010.09649), whose products with H are another third. What H does
    there is exact; the rest is the mean over random signs z of zᵀ (I − QQᵀ) H (I − QQᵀ) z (Hutchinson 1989), and the
    interval is Student's, by their spread. The norm: ‖H‖² = ‖HQ‖² + E ‖H (I − QQᵀ) z‖².

    num_products: vectors to multiply, at least 12; where there are as many as P, all is exact. pairs: eigenpairs of the
    matrix that are known already; they cost nothing, and make intervals narrow. Memory: 2/3 num_products vectors.

    Raises:
        PipelineError: an option is wrong, or a product is not finite.
    """
    check_number("confidence", confidence, above=0, below=1)
    sample = _sampled(matrix, num_products, pairs, seed)
    layout = getattr(matrix, "layout", None)
    spans = layout.layers() if layout is not None else {}
    parts = {name: sample.sums(span) for name, span in spans.items()}
    known = sample.exact_square
    squares = _interval(sample.squares, known, confidence)
    norm = Estimate(
        *(float(np.sqrt(max(value, 0.0))) for value in (squares.value, squares.low, squares.high))
    )
    return Traces(
        _interval(sample.sums(slice(None))[1], sample.sums(slice(None))[0], confidence),
        {name: _interval(each, exact, confidence) for name, (exact, each) in parts.items()},
        norm,
        sample.num_products,
    )


def diagonal(
    matrix: ProductMatrix, num_products: int = 96, pairs: Eigenpairs | None = None, seed: int = 0
) -> Diagonal:
    """The diagonal, an entry a weight, with the standard error of each.

    As `trace` takes it: the part of a space Q exactly, the rest as the mean of z ∘ (I − QQᵀ) H (I − QQᵀ) z over random
    signs z (Bekas, Kokiopoulou and Saad 2007, doi:10.1016/j.apnum.2007.01.003). Arguments are those of `trace`.

    Raises:
        PipelineError: an option is wrong, or a product is not finite.
    """
    sample = _sampled(matrix, num_products, pairs, seed)
    if sample.each is None:
        return Diagonal(sample.exact, np.zeros_like(sample.exact), sample.num_products)
    errors: Array = sample.each.std(axis=0, ddof=1) / np.sqrt(len(sample.each))
    return Diagonal(sample.exact + sample.each.mean(axis=0), errors, sample.num_products)


@dataclass(frozen=True)
class _Sample:
    """What products have told: H = what is exact + the mean of what each random vector gives.

    exact: (P,), of the diagonal. each: (m, P), of the diagonal by each of m vectors; None where all is exact.
    exact_square, squares (m,): of ‖H‖_F².
    """

    exact: Array
    each: Array | None
    exact_square: float
    squares: Array
    num_products: int

    def sums(self, span: slice) -> tuple[float, Array]:
        """The sum of the diagonal over rows: what is exact, and what each vector gives."""
        exact = float(self.exact[span].sum())
        return exact, np.zeros(0) if self.each is None else self.each[:, span].sum(axis=1)


def _sampled(matrix: ProductMatrix, num_products: int, pairs: Eigenpairs | None, seed: int) -> _Sample:
    matrix = checked_matrix(matrix)
    check_count("num_products", num_products, minimum=FEWEST)
    check_count("seed", seed, minimum=0)
    num_rows = matrix.num_rows
    if num_products >= num_rows:
        dense = _times(matrix, np.eye(num_rows))
        return _Sample(np.diag(dense).copy(), None, float((dense**2).sum()), np.zeros(0), num_rows)
    rng = np.random.default_rng([seed, 2])
    space: Array
    image: Array
    if pairs is not None:
        space, image, used = pairs.vectors, pairs.vectors * pairs.values, 0
        if len(space) != num_rows:
            raise PipelineError(f"pairs are of P = {len(space):,} weights, the matrix is of {num_rows:,}.")
    else:
        used = num_products // 3
        space = np.asarray(np.linalg.qr(_times(matrix, _signs(rng, num_rows, used)))[0])
        image = _times(matrix, space)
        used *= 2
    small = space.T @ image
    exact = 2 * (space * image).sum(axis=1) - ((space @ small) * space).sum(axis=1)
    each, squares = [], []
    for first in range(used, num_products, AT_ONCE):
        signs = _signs(rng, num_rows, min(AT_ONCE, num_products - first))
        product = _times(matrix, signs - space @ (space.T @ signs))
        squares.append((product**2).sum(axis=0))
        each.append((signs * (product - space @ (space.T @ product))).T)
    return _Sample(
        exact, np.concatenate(each), float((image**2).sum()), np.concatenate(squares), num_products
    )


def _signs(rng: np.random.Generator, num_rows: int, number: int) -> Array:
    signs: Array = rng.integers(0, 2, (num_rows, number)) * 2.0 - 1
    return signs


def _times(matrix: ProductMatrix, vectors: Array) -> Array:
    """The product, AT_ONCE vectors at once.

    Raises:
        PipelineError: it is not finite.
    """
    parts = [
        np.asarray(matrix.matvec(vectors[:, first : first + AT_ONCE]), np.float64)
        for first in range(0, vectors.shape[1], AT_ONCE)
    ]
    product = np.hstack(parts)
    if not np.isfinite(product).all():
        raise PipelineError(
            "the matrix times a vector holds NaN or infinity: look at the weights and the samples."
        )
    return product


def _interval(each: Array, exact: float, confidence: float) -> Estimate:
    """The mean with Student's interval; nothing but rounding where all is exact.

    With half the degrees of freedom: the spread of squares, which have longer tails than a normal variable, is known
    only as well as from half as many of these.
    """
    if len(each) == 0:
        rounding = 1e-12 * abs(exact)
        return Estimate(exact, exact - rounding, exact + rounding)
    from scipy.stats import t  # slow to import

    value = exact + float(each.mean())
    half = float(t.ppf((1 + confidence) / 2, (len(each) - 1) / 2) * each.std(ddof=1) / np.sqrt(len(each)))
    half += 1e-12 * (abs(exact) + float(np.abs(each).mean()))  # rounding, where the spread is none
    return Estimate(value, value - half, value + half)
