"""What each matrix of a generated net is, found without any code of the pipeline.

Hessian: extrapolated central differences of the plain module's own gradients in float64, by its own parameters, which
are moved in place and put back.
Autograd's convention is the truth where a net detaches: no derivative flows through. Differences would see it flow,
and a double backward, which does not, is wrong or missing for other parts of such nets. So the net is built `exact`:
what is behind a detach keeps the values of the first run. Then both are the same (`test_reference.py` compares them).
GGN: JᵀΛJ, J by one plain backward pass for each output, Λ by the criterion alone, at detached outputs.
Empirical Fisher: from J and the slopes of the criterion; the first dimension of the outputs counts samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from fuzz.generator import Problem, Recipe
from fuzz.parts import as_found
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

STEP = 2.0**-11
SHARP = 1e-5  # of a matrix; where differences tell no more, a kink is near
MATRICES = ("hessian", "ggn", "fisher", "empirical_fisher", "residual")


class NotSharp(Exception):
    """This net cannot be judged."""


@dataclass(frozen=True)
class Reference:
    """matrix: None where there is none, because of `why`; a refusal is then the only right answer.

    tolerance: what a right matrix may be off, in the norm of Frobenius.
    """

    matrix: Tensor | None
    tolerance: float = 0.0
    why: str = ""

    def error(self, found: Tensor) -> float:
        """As a multiple of the tolerance."""
        if self.matrix is None or found.shape != self.matrix.shape:
            return float("inf")
        return float((found.double() - self.matrix).norm()) / self.tolerance


def references(recipe: Recipe) -> dict[str, Reference]:
    """The reference for each matrix.

    Raises:
        NotSharp: the differences do not settle, or something is not finite.
    """
    problem = recipe.build(exact=True)
    weights = weights_of(problem.model)
    if not weights:
        raise NotSharp("no weights")
    gradient = gradient_of(problem, weights)  # the first run
    if not torch.isfinite(gradient).all():
        raise NotSharp("the gradient is not finite")
    hessian, uncertainty = differences(problem, weights)
    size, rough = float(hessian.norm()), roughness(recipe, gradient)
    parts = of_outputs(recipe, problem, weights) if recipe.criterion.of_outputs else {}
    scale = max([size, *(float(r.norm()) for r in parts.values() if isinstance(r, Tensor))])
    if not uncertainty <= SHARP * max(scale, 1e-3) or not scale < 1e6:
        raise NotSharp("the differences do not settle")
    if scale < 1e-6:
        raise NotSharp("all matrices are zero")
    base = max(rough * 100, 1e-4 if is_single(recipe) else 1e-7)
    found = {"hessian": Reference(hessian, base * scale + uncertainty)}
    for name in MATRICES[1:]:
        part = parts.get(name, "the loss depends on the weights in other ways than through the outputs")
        if isinstance(part, str):
            found[name] = Reference(None, why=part)
        else:
            found[name] = Reference(part, base * max(scale, float(part.norm())) + uncertainty)
    if found["ggn"].matrix is not None:
        residual = hessian - found["ggn"].matrix
        found["residual"] = Reference(residual, base * scale + uncertainty)
    return found


def is_single(recipe: Recipe) -> bool:
    """Whether something is computed in single precision."""
    return recipe.single or any("in_float32" in block.tags() for block in recipe.blocks)


def roughness(recipe: Recipe, gradient: Tensor) -> float:
    """How far the gradient of the net itself, in its own precision, is off."""
    if not is_single(recipe):
        return 0.0
    problem = recipe.build()
    own = gradient_of(problem, weights_of(problem.model)).double()
    rough = float((own - gradient).norm() / gradient.norm().clamp(min=1e-3))
    if not rough < 1e-4:
        raise NotSharp("single precision is too coarse here")
    return rough


def weights_of(model: nn.Module) -> list[Tensor]:
    return [value for _, value in model.named_parameters() if value.requires_grad]


def called(problem: Problem) -> Any:
    inputs = problem.inputs
    if isinstance(inputs, dict):
        return problem.model(**inputs)
    return problem.model(*inputs) if isinstance(inputs, tuple) else problem.model(inputs)


def gradient_of(problem: Problem, weights: list[Tensor], create_graph: bool = False) -> Tensor:
    with as_found(problem.model):
        loss = problem.criterion(called(problem), problem.targets)
        if not loss.requires_grad:
            return torch.cat([torch.zeros_like(value).flatten() for value in weights])
        parts = torch.autograd.grad(loss, weights, create_graph=create_graph, materialize_grads=True)
    flat = torch.cat([part.reshape(-1) for part in parts])
    return flat if create_graph else flat.detach()


def differences(problem: Problem, weights: list[Tensor]) -> tuple[Tensor, float]:
    """(4 D(h/2) - D(h)) / 3 of central quotients D, made symmetric; and how far off it may be."""
    wide, narrow = [], []
    largest = 0.0
    for value in weights:
        flat = value.data.view(-1) if value.is_contiguous() else None
        if flat is None:
            raise NotSharp("a weight that is not contiguous")
        for k in range(len(flat)):
            here = flat[k].clone()
            for found, step in ((wide, STEP), (narrow, STEP / 2)):
                flat[k] = here + step
                above = gradient_of(problem, weights)
                flat[k] = here - step
                found.append((above - gradient_of(problem, weights)) / (2 * step))
                largest = max(largest, float(above.norm()))
            flat[k] = here
    coarse, fine = torch.stack(wide), torch.stack(narrow)
    matrix = (4 * fine - coarse) / 3
    if not torch.isfinite(matrix).all():
        raise NotSharp("a difference is not finite")
    rounding = 1e-15 * (1 + largest) / STEP * len(matrix) ** 0.5
    apart = float((matrix - matrix.T).norm())
    # what is left after the extrapolation is of the order of the difference times h²; a tenth is on the safe side
    return (matrix + matrix.T) / 2, float((coarse - fine).norm()) / 10 + rounding + apart


def double_backward(problem: Problem, weights: list[Tensor]) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        flat = gradient_of(problem, weights, create_graph=True) + 0 * sum(value.sum() for value in weights)
    rows = [torch.autograd.grad(g, weights, retain_graph=True, materialize_grads=True) for g in flat]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows]).detach()


def of_outputs(recipe: Recipe, problem: Problem, weights: list[Tensor]) -> dict[str, Tensor | str]:
    """The matrices that are made of J, or why there is none."""
    with as_found(problem.model):
        outputs = called(problem)
        leaves = floats_of(outputs)
        flat = torch.cat([leaf.flatten() for leaf in leaves])
        rows = []
        for f in flat:
            parts = (
                torch.autograd.grad(f, weights, retain_graph=True, materialize_grads=True)
                if f.requires_grad
                else [torch.zeros_like(value) for value in weights]
            )
            rows.append(torch.cat([part.flatten() for part in parts]))
    jacobian = torch.stack(rows).detach()
    constant = [leaf.detach() for leaf in leaves]
    sizes = [leaf.numel() for leaf in constant]

    def loss(flat: Tensor) -> Tensor:
        parts = [part.reshape(leaf.shape) for part, leaf in zip(flat.split(sizes), constant, strict=True)]
        return problem.criterion(with_floats(outputs, iter(parts)), problem.targets)

    at = torch.cat([leaf.flatten() for leaf in constant])
    curvature = torch.autograd.functional.hessian(loss, at)
    slope = torch.autograd.functional.jacobian(loss, at)
    if not (torch.isfinite(curvature).all() and torch.isfinite(jacobian).all()):
        raise NotSharp("the curvature of the criterion is not finite")
    ggn = jacobian.T @ curvature @ jacobian
    found: dict[str, Tensor | str] = {"ggn": ggn}
    found["fisher"] = ggn if recipe.criterion.likelihood else "the loss is no likelihood of labels or values"
    found["empirical_fisher"] = second_moment(problem, outputs, constant, slope, jacobian, recipe.samples)
    return found


def second_moment(
    problem: Problem, outputs: Any, leaves: list[Tensor], slope: Tensor, jacobian: Tensor, n: int
) -> Tensor | str:
    """w Σ g gᵀ over samples, g = Jᵀ times the slope of a sample's own loss by its outputs."""
    slopes = slope.split([leaf.numel() for leaf in leaves])
    read = [bool(part.abs().max() > 0) for part in slopes]  # others do not enter
    if any(leaf.ndim == 0 for leaf, is_read in zip(leaves, read, strict=True) if is_read):
        return "the outputs have no dimension of samples"
    sizes = {len(leaf) for leaf, is_read in zip(leaves, read, strict=True) if is_read}
    if len(sizes) != 1:
        return "the outputs do not agree about the number of samples"
    (rows,) = sizes
    if rows % n:
        return "the outputs do not count the samples of the batch"
    weight = 1.0
    if n > 1:
        kinds = {
            kind
            for kind in ("mean", "sum")
            if all(reduces_as(problem, outputs, leaves, n, shift, kind) for shift in (0.0, 0.5))
        }
        if not kinds:
            return "the loss is neither the mean nor the sum of its samples' losses"
        weight = float(n) if "mean" in kinds else 1.0
    at, total = 0, torch.zeros(n, jacobian.shape[1], dtype=jacobian.dtype)
    for part, is_read in zip(slopes, read, strict=True):
        if is_read:
            moves = part[:, None] * jacobian[at : at + len(part)]
            total += moves.reshape(n, -1, jacobian.shape[1]).sum(1)
        at += len(part)
    return weight * total.T @ total


def reduces_as(problem: Problem, outputs: Any, leaves: list[Tensor], n: int, shift: float, kind: str) -> bool:
    """Whether the loss of the batch is the mean, or the sum, of its samples' losses, at outputs moved by a shift."""
    criterion, targets = problem.criterion, problem.targets
    moved = [leaf + shift * torch.arange(leaf.numel()).to(leaf).sin().reshape(leaf.shape) for leaf in leaves]
    try:
        whole = float(criterion(with_floats(outputs, iter(moved)), targets))
        each = [
            float(criterion(part_of(with_floats(outputs, iter(moved)), k, n), part_of(targets, k, n)))
            for k in range(n)
        ]
    except Exception:
        return False
    wanted = sum(each) / (n if kind == "mean" else 1)
    return abs(whole - wanted) <= 1e-9 * (1 + sum(map(abs, each)))


def floats_of(tree: Any) -> list[Tensor]:
    """The floating-point tensors of a tree, in order."""
    if isinstance(tree, Tensor):
        return [tree] if tree.is_floating_point() else []
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in floats_of(value)]
    if isinstance(tree, tuple | list):
        return [leaf for value in tree for leaf in floats_of(value)]
    if is_dataclass(tree):
        return [leaf for field in fields(tree) for leaf in floats_of(getattr(tree, field.name))]
    return []


def mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tree with other tensors."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return type(tree)([(name, mapped(value, change)) for name, value in tree.items()])
    if isinstance(tree, tuple | list):
        values = [mapped(value, change) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    if is_dataclass(tree) and not isinstance(tree, type):
        return type(tree)(*(mapped(getattr(tree, field.name), change) for field in fields(tree)))
    return tree


def with_floats(tree: Any, values: Any) -> Any:
    return mapped(tree, lambda leaf: next(values) if leaf.is_floating_point() else leaf)


def part_of(tree: Any, k: int, n: int) -> Any:
    return mapped(
        tree,
        lambda leaf: (
            leaf[k * len(leaf) // n : (k + 1) * len(leaf) // n] if leaf.ndim and len(leaf) % n == 0 else leaf
        ),
    )
