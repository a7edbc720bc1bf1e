"""Numbers that sum up a spectrum, and the angles between a vector or a space and an eigenspace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from pipeline.spectrum.protocol import Array


def sign_threshold(dtype: DTypeLike) -> float:
    """The share of |λ|max under which no sign of an eigenvalue is believed: 1e-5 in float32, 1e-6 in float64.

    In float32 the eigensolver alone errs by about 4 eps |λ|max = 5e-7 |λ|max, and the entries of the matrix
    carry rounding of their own; in float64, too, signs below about 1e-6 |λ|max were found to be noise.
    """
    return 1e-5 if np.dtype(dtype).itemsize < 8 else 1e-6


def num_negative(eigenvalues: Array, threshold: float | None = None) -> int:
    """Eigenvalues below −threshold · |λ|max; None takes the `sign_threshold` of their dtype."""
    if threshold is None:
        threshold = sign_threshold(eigenvalues.dtype)
    return int((eigenvalues < -threshold * np.abs(eigenvalues).max(initial=0.0)).sum())


def effective_rank(eigenvalues: Array) -> float | None:
    """The exponential of the entropy of |λ_i| / Σ|λ|, between 1 and P; None for the zero matrix.

    Needs all eigenvalues. Source: Roy and Vetterli 2007, "The effective rank: a measure of effective
    dimensionality".
    """
    sizes = np.abs(np.asarray(eigenvalues, np.float64))
    if not sizes.any():
        return None
    shares = sizes[sizes > 0] / sizes.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def participation_ratio(eigenvalues: Array) -> float | None:
    """(Σ|λ_i|)² / Σλ_i², between 1 and P: how many eigenvalues of one size would give both sums; None for zero.

    Needs all eigenvalues. Of a matrix with no negative ones it is (tr H)² / ‖H‖_F². Source: Gao et al. 2017,
    doi:10.1101/214262, of covariances; sizes take the place of variances here, as λ may be negative.
    """
    sizes = np.abs(np.asarray(eigenvalues, np.float64))
    if not sizes.any():
        return None
    sizes = sizes / sizes.max()
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def stable_rank(eigenvalues: Array) -> float | None:
    """‖H‖_F² / |λ|max², between 1 and the rank; None for the zero matrix. Needs all eigenvalues."""
    sizes = np.abs(np.asarray(eigenvalues, np.float64))
    if not sizes.any():
        return None
    return float(((sizes / sizes.max()) ** 2).sum())


def summarize(eigenvalues: Array, threshold: float | None = None) -> dict[str, float]:
    """Headline numbers of a complete spectrum, named as in summary.json; the undefined ones are left out."""
    values = np.asarray(eigenvalues, np.float64)
    numbers = {
        "trace": float(values.sum()),
        "lambda_max": float(values.max()),
        "lambda_min": float(values.min()),
        "frobenius_norm": float(np.linalg.norm(values)),
        "num_negative_eigenvalues": num_negative(eigenvalues, threshold),
        "effective_rank": effective_rank(values),
        "participation_ratio": participation_ratio(values),
        "stable_rank": stable_rank(values),
    }
    return {name: number for name, number in numbers.items() if number is not None}


def eigenspace_overlap(first: Array, second: Array) -> float:
    """‖UᵀV‖_F² / k of two spaces with orthonormal bases U, V (P, k).

    The mean squared cosine of their principal angles: 1 for the same space, 0 for orthogonal ones, k / P on
    average for random ones.
    """
    if first.shape != second.shape:
        raise ValueError(f"bases of shapes {first.shape} and {second.shape}: both must be (P, k).")
    product = np.asarray(first, np.float64).T @ np.asarray(second, np.float64)
    return float((product**2).sum() / first.shape[1])


def eigenspace_overlaps(bases: Sequence[Array]) -> Array:
    """`eigenspace_overlap` of any two of B bases, (B, B)."""
    return np.array([[eigenspace_overlap(one, other) for other in bases] for one in bases])


def cosines(vector: Array, basis: Array) -> Array:
    """|uᵢᵀg| / ‖g‖ of a vector g (P,) and each of k unit vectors u, the columns of (P, k); NaN for the zero vector."""
    vector = np.asarray(vector, np.float64)
    largest = float(np.abs(vector).max(initial=0.0))
    if largest == 0:
        return np.full(basis.shape[1], np.nan)
    vector = vector / largest  # a gradient of 1e-200 has a direction too
    products: Array = np.abs(np.asarray(basis, np.float64).T @ vector) / np.linalg.norm(vector)
    return products


def share_in_eigenspace(vector: Array, basis: Array) -> float | None:
    """‖Uᵀg‖² / ‖g‖² of a vector g (P,) and an orthonormal basis U (P, k); None for the zero vector."""
    shares = cosines(vector, basis) ** 2
    return None if np.isnan(shares).any() else float(shares.sum())
