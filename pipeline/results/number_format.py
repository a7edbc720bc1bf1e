"""Numbers and names as people read them: digits, and names of matrices."""

from __future__ import annotations

import math

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
