"""Trace, layer traces, Frobenius norm and diagonal from products with random vectors, each with an interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.spectrum.extremal_pairs import Eigenpairs
from pipeline.spectrum.protocol import (
    NOT_FINITE,
    Array,
    ProductMatrix,
    checked_matrix,
    columns_at_once,
    product_of,
)
from pipeline.validation import check_count, check_number

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
    """The trace of a matrix, those of the diagonal blocks of its layers and parameters, and its norm ‖H‖_F.

    layers, parameters: by name; none where it is not known which rows are whose.
    """

    trace: Estimate
    layers: Mapping[str, Estimate]
    parameters: Mapping[str, Estimate]
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
    matrix that are known already; they cost nothing, and make intervals narrow. Memory: 2/3 num_products vectors, or
    those of `pairs`.

    Raises:
        PipelineError: an option is wrong, or a product is not finite.
    """
    check_number("confidence", confidence, above=0, below=1)
    layout = getattr(matrix, "layout", None)  # a tensor's is something else
    layers, parameters = (layout.layers(), layout.slices()) if isinstance(layout, Layout) else ({}, {})
    spans = [slice(None), *layers.values(), *parameters.values()]
    sample = _sums(matrix, num_products, pairs, seed, spans)
    whole, *parts = [
        interval(each, exact, confidence, slack)
        for exact, each, slack in zip(sample.exact, sample.each.T, sample.slack, strict=True)
    ]
    of_layers, of_parameters = parts[: len(layers)], parts[len(layers) :]
    squares = interval(sample.squares, sample.exact_square, confidence, sample.slack_of_square)
    return Traces(
        whole,
        dict(zip(layers, of_layers, strict=True)),
        dict(zip(parameters, of_parameters, strict=True)),
        square_root(squares),
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
    known = _Known.of(matrix, num_products, pairs, seed)
    number, mean, squares = 0, np.zeros_like(known.diagonal), np.zeros_like(known.diagonal)
    for products, _ in known.rest():  # Welford's recurrence, so that no more than a few columns are held
        for column in products.T:
            number += 1
            change = column - mean
            mean += change / number
            squares += change * (column - mean)
    if not number:
        return Diagonal(known.diagonal, squares, known.num_products)
    errors: Array = np.sqrt(squares / max(1, number - 1) / number)
    return Diagonal(known.diagonal + mean, errors, known.num_products)


@dataclass(frozen=True)
class _Sample:
    """What products have told: a number of H = what is exact of it + the mean of what each random vector gives.

    exact: (S,), of the trace, and of each part of the diagonal that was asked for. each: (m, S), by each of m vectors;
    no rows where all is exact. exact_square, squares (m,): of ‖H‖_F². slack (S,), slack_of_square: how far what is
    taken for exact may be off, as the vectors of pairs leave residuals.
    """

    exact: Array
    each: Array
    slack: Array
    exact_square: float
    squares: Array
    slack_of_square: float
    num_products: int


def _sums(
    matrix: ProductMatrix, number: int, pairs: Eigenpairs | None, seed: int, spans: list[slice]
) -> _Sample:
    """Sums of the diagonal over each span of rows."""
    known = _Known.of(matrix, number, pairs, seed)

    def sums(diagonal: Array) -> Array:
        return np.array([diagonal[span].sum(axis=0) for span in spans])  # (S,) or (S, b)

    each: list[Array] = [np.zeros((0, len(spans)))]
    squares: list[Array] = [np.zeros(0)]
    for products, norms in known.rest():
        each.append(sums(products).T)
        squares.append(norms)
    # The diagonal takes v (H v)ᵀ for v λ vᵀ; in the trace the two agree, as λ is a Rayleigh quotient.
    lengths = np.array([np.linalg.norm(known.space[span], axis=0) for span in spans])  # (S, k)
    slack = 2 * lengths @ known.residuals
    slack[0] = 0.0
    vectors, norms = np.concatenate(each), np.concatenate(squares)
    rounding = _rounding_of(matrix)
    slack += rounding * (sums(np.abs(known.diagonal)) + np.abs(vectors).sum(axis=0) / max(1, len(vectors)))
    square = known.square + norms.sum() / max(1, len(norms))
    return _Sample(
        sums(known.diagonal),
        vectors,
        slack,
        known.square,
        norms,
        float((known.residuals**2).sum() + 2 * rounding * square),
        known.num_products,
    )


def _rounding_of(matrix: Any) -> float:
    """How far products may be off, relative to their size: in single precision more than an interval's own rounding."""
    if "float32" not in str(getattr(matrix, "dtype", "")):
        return 0.0
    return max(8 * float(np.finfo(np.float32).eps), float(getattr(matrix, "rounding", 0.0)))


@dataclass(frozen=True)
class _Known:
    """What H does in a space Q with orthonormal columns, which is exact; `rest` estimates the rest.

    residuals: (k,) of the columns of Q, where they are vectors of pairs. diagonal: (P,), of what is exact. square: its
    part of ‖H‖_F². used: products of `num_products` that it took.
    """

    matrix: ProductMatrix
    space: Array
    residuals: Array
    diagonal: Array
    square: float
    used: int
    num_products: int
    rng: np.random.Generator

    @staticmethod
    def of(matrix: ProductMatrix, num_products: int, pairs: Eigenpairs | None, seed: int) -> _Known:
        matrix = checked_matrix(matrix)
        check_count("num_products", num_products, minimum=FEWEST)
        check_count("seed", seed, minimum=0)
        num_rows, rng = matrix.num_rows, np.random.default_rng([seed, 2])
        space: Array
        image: Array
        if num_products >= num_rows:
            dense = _times(matrix, np.eye(num_rows))
            nothing = np.zeros((num_rows, 0))
            square = float((dense**2).sum())
            diagonal = np.diag(dense).copy()
            return _Known(matrix, nothing, np.zeros(0), diagonal, square, num_rows, num_rows, rng)
        if pairs is not None:
            pairs = Eigenpairs.checked(pairs, num_rows)
            space, used = np.asarray(pairs.vectors, np.float64), 0
            image, residuals = space * pairs.values, np.asarray(pairs.residuals, np.float64)
        else:
            used = num_products // 3
            space = np.asarray(np.linalg.qr(_times(matrix, random_signs(rng, num_rows, used)))[0])
            image, residuals = _times(matrix, space), np.zeros(used)
            used *= 2
        small = space.T @ image
        exact: Array = 2 * (space * image).sum(axis=1) - ((space @ small) * space).sum(axis=1)
        square = float((image**2).sum())
        return _Known(matrix, space, residuals, exact, square, used, num_products, rng)

    def rest(self) -> Iterator[tuple[Array, Array]]:
        """Of a few random vectors at once: what each gives of the diagonal, (P, b), and of ‖H‖_F², (b,)."""
        width = columns_at_once(self.matrix)
        for first in range(self.used, self.num_products, width):
            signs = random_signs(self.rng, self.matrix.num_rows, min(width, self.num_products - first))
            product = _times(self.matrix, signs - self.space @ (self.space.T @ signs))
            squares = (product**2).sum(axis=0)
            rest: Array = signs * (product - self.space @ (self.space.T @ product))
            yield rest, squares


def random_signs(rng: np.random.Generator, num_rows: int, number: int) -> Array:
    """(P, number), one vector after the other: how many are drawn at once changes none of them."""
    signs: Array = rng.integers(0, 2, (number, num_rows)) * 2.0 - 1
    return signs.T


def _times(matrix: ProductMatrix, vectors: Array) -> Array:
    """The product, a few vectors at once.

    Raises:
        PipelineError: it is not finite.
    """
    width = columns_at_once(matrix)
    parts = [
        np.asarray(product_of(matrix, vectors[:, first : first + width]), np.float64)
        for first in range(0, vectors.shape[1], width)
    ]
    product = np.hstack(parts)
    if not np.isfinite(product).all():
        raise PipelineError(NOT_FINITE)
    return product


def interval(each: Array, exact: float, confidence: float, slack: float = 0.0) -> Estimate:
    """The mean with Student's interval; nothing but rounding where all is exact.

    With half the degrees of freedom: the spread of squares, which have longer tails than a normal variable, is known
    only as well as from half as many of these. slack: how far `exact` may be off.
    """
    if len(each) == 0:
        rounding = 1e-12 * abs(exact) + slack
        exact = float(exact)
        return Estimate(exact, exact - rounding, exact + rounding)
    from scipy.stats import t  # slow to import

    value = float(exact) + float(each.mean())
    half = float(t.ppf((1 + confidence) / 2, (len(each) - 1) / 2) * each.std(ddof=1) / np.sqrt(len(each)))
    half += 1e-12 * (abs(exact) + float(np.abs(each).mean()))  # rounding, where the spread is none
    half += slack
    return Estimate(value, value - half, value + half)


def square_root(estimate: Estimate) -> Estimate:
    """That of a number which is not negative, though its interval may reach below zero."""
    return Estimate(
        *(float(np.sqrt(max(value, 0.0))) for value in (estimate.value, estimate.low, estimate.high))
    )
