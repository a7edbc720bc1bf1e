"""Numbers and names as people read them: digits, symbols, and what each headline number means in one line."""

from __future__ import annotations

import math
from dataclasses import dataclass

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MINUS = "\N{MINUS SIGN}"
UNKNOWN = "\N{EN DASH}"

MATRICES = {
    "hessian": "Hessian",
    "ggn": "generalized Gauss-Newton matrix",
    "fisher": "Fisher matrix",
    "empirical_fisher": "empirical Fisher matrix",
    "residual": "residual (Hessian minus GGN)",
}


def matrix_name(matrix: str) -> str:
    """The name of a matrix in running text."""
    return MATRICES.get(matrix, matrix.replace("_", " "))


def number(value: object, num_digits: int = 4) -> str:
    """A whole number in full, another one with `num_digits` significant digits, an undefined one as a dash.

    >>> number(2410), number(0.97193593), number(-3.2e-7), number(None)
    ('2,410', '0.9719', '−3.200×10⁻⁷', '–')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS)
    if not isinstance(value, float) or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    mantissa, power = f"{value:.{num_digits - 1}e}".split("e")
    exponent = int(power)
    if -3 <= exponent <= 4:
        return f"{value:,.{max(0, num_digits - 1 - exponent)}f}".replace("-", MINUS)
    return f"{mantissa.replace('-', MINUS)}×10{str(exponent).translate(SUPERSCRIPTS)}"


def short(name: str, width: int = 32) -> str:
    """A name cut in its middle where it is longer than `width` characters."""
    if len(name) <= width:
        return name
    head = (width - 1) // 3
    return f"{name[:head]}…{name[head + 1 - width :]}"


def percent(value: float) -> str:
    """A share of one in percent, with one decimal."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else UNKNOWN


@dataclass(frozen=True)
class Quantity:
    """A headline number: its key in the spectra file, its name, symbol (HTML) and meaning.

    A meaning may name attributes of the spectra file in braces.
    """

    key: str
    name: str
    symbol: str
    meaning: str


HEADLINE = {
    "The run": (
        Quantity("num_parameters", "weights", "P", "Rows and columns of the matrix."),
        Quantity("num_samples", "samples", "N", "Samples in all batches together."),
        Quantity("num_batches", "batches", "B", "Each has its own matrix, weighted by its samples."),
        Quantity("loss", "loss", "L", "Mean of the batches' losses, at the weights of this step."),
        Quantity(
            "gradient_norm",
            "gradient norm",
            "‖g‖",
            "Length of the mean gradient; zero at a stationary point.",
        ),
        Quantity(
            "largest_probe_error",
            "certificate",
            "‖Hv − D(v)‖ / ‖D(v)‖",
            "Largest error of a batch's matrix: products against differences of the gradient.",
        ),
    ),
    "The mean matrix": (
        Quantity(
            "lambda_max", "largest eigenvalue", "λ<sub>max</sub>", "The sharpest direction of the loss."
        ),
        Quantity(
            "lambda_min",
            "smallest eigenvalue",
            "λ<sub>min</sub>",
            "Negative where the loss curves down in a direction.",
        ),
        Quantity("trace", "trace", "tr H", "Sum of all eigenvalues: P times the mean curvature."),
        Quantity(
            "frobenius_norm",
            "Frobenius norm",
            "‖H‖<sub>F</sub>",
            "Root of the sum of all squared eigenvalues.",
        ),
        Quantity(
            "num_negative_eigenvalues",
            "negative eigenvalues",
            "",
            "Below −{negative_threshold}: nearer to zero is rounding error.",
        ),
        Quantity(
            "num_zero_rows",
            "zero rows",
            "",
            "Weights without influence on the loss, as of dead units.",
        ),
        Quantity(
            "effective_rank",
            "effective rank",
            "exp(−Σ p ln p)",
            "Over how many directions the curvature is spread.",
        ),
        Quantity(
            "stable_rank",
            "stable rank",
            "‖H‖²<sub>F</sub> / λ²<sub>max</sub>",
            "The same, counting outliers more.",
        ),
        Quantity(
            "gradient_share_in_top_eigenspace",
            "gradient in top eigenspace",
            "‖Uᵀg‖² / ‖g‖²",
            "Share of the gradient along the top eigenvectors, 0 to 1.",
        ),
    ),
    "Between batches": (
        Quantity(
            "mean_distance_between_batch_and_mean",
            "mean distance to the mean",
            "‖H<sub>b</sub> − H‖<sub>F</sub> / ‖H‖<sub>F</sub>",
            "How far a batch's matrix is from the mean matrix.",
        ),
        Quantity(
            "mean_overlap_between_batches",
            "mean overlap of eigenspaces",
            "",
            "1: batches share their sharp directions; 0: orthogonal.",
        ),
    ),
}

TILES = {  # the first things that a reader wants to know, at the top of the page
    "lambda_max": "largest eigenvalue",
    "lambda_min": "smallest eigenvalue",
    "trace": "trace",
    "effective_rank": "effective rank",
    "loss": "loss",
    "test_accuracy": "test accuracy",
    "largest_probe_error": "certificate: error of <i>H v</i>",
}
