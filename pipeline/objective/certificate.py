"""The certificate of a matrix: random products, checked in a way that shares nothing with its strategy."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cache
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import first_line, must_reach_user
from pipeline.objective.differences import SAFETY, SHARP, Product
from pipeline.objective.objective import Objective, Params, leaves_of
from pipeline.objective.reference import Reference

log = logging.getLogger(__name__)
NUM_PROBES = 2
ROUNDING = 1000  # machine epsilons that the entries of a matrix may be off, relative to its size
NEARLY = 10  # times its tolerance: up to which an error may be that of the difference quotient
SMALL = 0.03  # relative error up to which rounding of single precision is the likely reason
COARSE = (
    1e-3  # relative rounding up to which two ways that autograd takes may differ: single precision inside
)
LOOSE = 0.1  # tolerance above which a comparison says nothing
UNCHECKED = "H v cannot be checked"
OWN_PRECISION = 1e-6  # relative difference that gradients of module and objective, in float64, may have


@dataclass(frozen=True)
class Certificate:
    """How far products with the matrix are from those found on the user's own module, relative to the latter.

    probe_error: ‖Hv − D(v)‖ / ‖D(v)‖, the largest over random v. tolerance: what rounding of the matrix and the
    error of the difference quotient D(v) may add up to, and the error that the strategy declares. reference: what D(v)
    is. declared: that error alone, 0 for a strategy that is exact to rounding.
    why: what is wrong, where it is known; else the error says it.
    """

    probe_error: float
    tolerance: float
    reference: str = "differences of the gradient"
    why: str = ""
    declared: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.why and isfinite(self.probe_error) and self.probe_error <= self.tolerance

    def remedy(self, computed: torch.dtype) -> str:
        """What may help where the matrix fails, which was computed in this dtype."""
        if self.why.startswith(UNCHECKED):
            return "verify=False takes the matrix as it is"
        if self.declared > LOOSE:
            return "choose its options so that it declares less, or verify=False takes the matrix as it is"
        if self.why:
            return (
                "let the loss depend on its weights through the model alone, or verify=False takes the matrix as "
                "it is"
            )
        if self.declared:
            return "choose a strategy that is exact to rounding, such as strategy=auto, or other options of this one"
        if computed != torch.float64 and self.probe_error < SMALL:
            return "use dtype=torch.float64, since weights, inputs or targets are scaled badly for single precision"
        return "use strategy=auto, which tries others, or look for a layer with a wrong derivative"

    def __str__(self) -> str:
        if self.why:
            return self.why
        return (
            f"H v differs from central differences of the model by {self.probe_error:.2g} of its size, "
            f"{self.tolerance:.2g} is allowed{self._declaration}"
        )

    @property
    def _declaration(self) -> str:
        return (
            f" ({self.declared:.2g} of it for a strategy that is not exact to rounding)"
            if self.declared
            else ""
        )


def directions(num_parameters: int) -> Tensor:
    """Random directions v, (P, NUM_PROBES), float64; always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_parameters, NUM_PROBES, generator=generator, dtype=torch.float64)


def certify(
    reference: Reference,
    matrix: Any,
    products: Tensor,
    precision: torch.dtype,
    targets: Any,
    probes: Tensor | None = None,
    objective: tuple[Objective, Params] | None = None,
    declared: float = 0.0,
) -> Certificate:
    """Compare the products H v, (P, NUM_PROBES), with those that the reference finds on the user's own module.

    matrix: what it is; its `product` says how the reference takes H v. targets: those of the batch, or what the
    matrix has drawn in their place. precision: the dtype in which it was computed. probes: the directions v;
    `directions(P)` by default. objective: what the strategy differentiated, in the precision of the reference: its
    loss and gradient must be the module's own. declared: the error of a strategy that is not exact to rounding, as
    it declares it (`tolerance_of`); it is allowed in addition.

    Where H v is nearly what differences say, or they are not sharp (a kink), or not those of a symmetric matrix (the
    module hides a part from autograd, by `no_grad` or `detach`), H v is compared with two backward passes through the
    module.

    Cost: 14 gradients in float64 for the Hessian, and the gradient of the objective; up to 50 for piecewise linear
    nets.
    """
    try:
        if objective is not None and (why := _differs(reference, *objective)):
            return Certificate(float("nan"), 0.0, why=why)
        found = _certify(reference, matrix, products, precision, targets, probes, declared)
        return found if not declared else _with_declaration(found, declared)
    except Exception as error:  # whatever the model and its loss raise, at these weights or beside them
        if must_reach_user(error):
            raise
        raised = f"{type(error).__name__} when it is called again ({first_line(error)})"
        why = f"{UNCHECKED}: the model or its loss raises {raised}"
        return Certificate(float("nan"), 0.0, why=why)


def _with_declaration(found: Certificate, declared: float) -> Certificate:
    """The certificate of a strategy that is not exact to rounding; it fails where that declares too large an error."""
    if declared > LOOSE:
        why = (
            f"the strategy declares an error of {declared:.2g} of the matrix, and a comparison that allows more than "
            f"{LOOSE:g} says nothing"
        )
        return replace(found, declared=declared, why=why)
    log_declared(declared)
    return replace(found, declared=declared)


@cache
def log_declared(declared: float) -> None:
    """Say once in a process that the matrices are not exact to rounding."""
    log.info(
        "the strategy is not exact to rounding: the certificate allows the error %.2g that it declares.",
        declared,
    )


def _certify(
    reference: Reference,
    matrix: Any,
    products: Tensor,
    precision: torch.dtype,
    targets: Any,
    probes: Tensor | None,
    declared: float,
) -> Certificate:
    probes = (directions(len(products)) if probes is None else probes).to(products.device)
    products = products.double()
    rounding = ROUNDING * torch.finfo(max_precision(precision, reference.dtype)).eps + declared
    found = [matrix.product(reference, v, targets, False) for v in probes.T]
    first = _compared(products, found, rounding, reference)
    sharp = all(_is_sharp(product) for product in found)
    if first.passed and sharp:
        return first
    if sharp and first.probe_error > NEARLY * first.tolerance and _is_symmetric(found, probes):
        return first
    try:
        exact = [matrix.product(reference, v, targets, True) for v in probes.T]
    except RuntimeError as error:
        if must_reach_user(error):
            raise
        if first.passed and first.tolerance <= LOOSE:
            return first
        return Certificate(
            first.probe_error,
            first.tolerance,
            why=f"{UNCHECKED}: differences of the gradient disagree with themselves (a kink, or a part of the "
            "model behind no_grad or detach), and autograd cannot differentiate the module twice "
            f"({first_line(error)})",
        )
    noise = min(
        COARSE, SAFETY * max(product.noise for product in found)
    )  # on a kink a jump looks like rounding
    second = _compared(products, exact, rounding + noise, reference)
    return Certificate(second.probe_error, second.tolerance, "two backward passes")


def max_precision(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The coarser of two dtypes."""
    return max(one, other, key=lambda dtype: torch.finfo(dtype).eps)


def _compared(products: Tensor, found: list[Product], rounding: float, reference: Reference) -> Certificate:
    errors, tolerances = [], []
    for product, (value, uncertainty, _) in zip(products.T, found, strict=True):
        size, error = float(value.norm()), float((product - value).norm())
        errors.append(error / size if size > 0 else error)
        tolerances.append(rounding + (uncertainty / size if size > 0 else 1e-8))
    ratios = [error / tolerance for error, tolerance in zip(errors, tolerances, strict=True)]
    worst = max(range(len(errors)), key=lambda i: ratios[i] if isfinite(ratios[i]) else inf)
    return Certificate(errors[worst], tolerances[worst])


def _is_sharp(product: Product) -> bool:
    return product.uncertainty <= SHARP * float(product.value.norm()) or product.uncertainty < 1e-12


def _is_symmetric(found: list[Product], probes: Tensor) -> bool:
    """Whether uᵀ D(v) = vᵀ D(u), as far as differences tell."""
    (one, first, _), (other, second, _) = found
    u, v = probes.T
    gap = abs(float(v @ one - u @ other))
    sizes = float(v.norm() * one.norm() + u.norm() * other.norm())
    return gap <= 10 * (first * float(v.norm()) + second * float(u.norm())) + 1e-6 * sizes


def _differs(reference: Reference, objective: Objective, params: Params) -> str:
    """What is wrong, where loss or gradient of the objective are not those of the module."""
    batch = reference.batch
    loss, own_loss = float(objective.loss(leaves_of(params), batch).detach()), reference.loss()
    eps = float(torch.finfo(reference.dtype).eps)
    allowed = max(OWN_PRECISION, 1000 * eps)
    if not abs(loss - own_loss) <= allowed * max(abs(own_loss), 1e-3):
        return f"the loss as it is differentiated is {loss:.6g}, the module's own is {own_loss:.6g}"
    gradient, own = objective.gradient(params, batch).double(), reference.gradient()
    if float((gradient - own).norm()) <= allowed * float(own.norm()) + 1e-9:
        return ""
    sizes = [value.numel() for value in params.values()]
    gaps = [float(part.norm()) for part in (gradient - own).split(sizes)]
    name = list(params)[gaps.index(max(gaps))]
    return (
        f"the gradient by {name} as it is differentiated differs from the module's own by "
        f"{max(gaps) / max(float(own.norm()), 1e-300):.2g} of the gradient: the loss reaches it in a way "
        "that cannot be followed"
    )
