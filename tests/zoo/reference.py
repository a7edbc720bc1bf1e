"""Products of a matrix with a vector, from the plain module's own gradients alone: nothing of the pipeline is used.

H v is the derivative of the gradient along v, J v that of the outputs, both by central differences at the steps h and
h / 2, extrapolated; Jᵀ w is an ordinary backward pass. All of it is in float64: what a model itself casts to float32
(norms, positions, a router's softmax) is cast to float64 here, so that differences are not lost in rounding.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from zoo.problem import Problem

# Of the size of the weights; the one whose two quotients agree best is taken. The last are for kinks that lie near.
STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
SHARP = 1e-6  # of the value: what two quotients may differ by for smaller steps to be left out


class Product(NamedTuple):
    """uncertainty: the norm of the difference of two estimates of the value."""

    value: Tensor
    uncertainty: float


class InDouble(TorchFunctionMode):
    """Every float32 that is asked for becomes float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        if func is torch._grouped_mm or func is getattr(F, "grouped_mm", None):
            func = grouped_mm
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {key: torch.float64 if arg is torch.float32 else arg for key, arg in (kwargs or {}).items()}
        return func(*args, **kwargs)


def grouped_mm(input: Tensor, weight: Tensor, offs: Tensor, **none: None) -> Tensor:
    """Rows of the input times the matrix of their group; PyTorch has it in single precision only."""
    ends = [0, *offs.tolist()]
    rows = [input[start:end] for start, end in pairwise(ends)]
    return torch.cat([part @ matrix for part, matrix in zip(rows, weight, strict=True)])


def padding_stays(row: Tensor, module: nn.Embedding, args: tuple[Tensor], output: Tensor) -> Tensor:
    """PyTorch gives the row of the padding no gradient: it is a constant, and does not move with the weight."""
    return torch.where((args[0] == module.padding_idx)[..., None], row.detach(), output)


def each_tensor(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A tree with its tensors changed: mappings, sequences, dataclasses; all else stays as it is."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        changed = {key: each_tensor(value, change) for key, value in tree.items()}
        return type(tree)(**changed) if dataclasses.is_dataclass(tree) else type(tree)(changed)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(each_tensor(value, change) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(each_tensor(value, change) for value in tree)
    if dataclasses.is_dataclass(tree):
        fields = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **{key: each_tensor(value, change) for key, value in fields.items()})
    return tree


def double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value.clone()


def chosen(model: nn.Module, patterns: Sequence[str] | str | None) -> list[str]:
    """The names that are differentiated by, in the order of the module."""
    wanted = [patterns] if isinstance(patterns, str) else patterns
    return [
        name
        for name, value in model.named_parameters()
        if (value.requires_grad if wanted is None else any(fnmatchcase(name, one) for one in wanted))
    ]


class Reference:
    """A problem in float64, in a copy of the model."""

    def __init__(self, problem: Problem, parameters: Sequence[str] | str | None = None) -> None:
        self.model = copy.deepcopy(problem.model).double()
        self.criterion = copy.deepcopy(problem.criterion)
        if isinstance(self.criterion, nn.Module):
            self.criterion.double()
        self.inputs, self.targets = (each_tensor(tree, double) for tree in problem[2:4])
        self.call = problem.call
        every = dict(self.model.named_parameters())
        selection = problem.parameters if parameters is None else parameters
        self.weights = [every[name].requires_grad_() for name in chosen(self.model, selection)]
        self.here = [value.detach().clone() for value in self.weights]
        self.buffers = [value.clone() for value in self.model.buffers()]
        for module in self.model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.register_forward_hook(
                    partial(padding_stays, module.weight[module.padding_idx].clone())
                )

    @property
    def size(self) -> int:
        return sum(value.numel() for value in self.here)

    def outputs(self) -> Any:
        with InDouble(), torch.no_grad():
            for value, before in zip(self.model.buffers(), self.buffers, strict=True):
                value.copy_(before)
        with InDouble():
            return self.call(self.model, self.inputs)

    def loss_of(self, outputs: Any) -> Tensor:
        with InDouble():
            return self.criterion(outputs, self.targets)

    def backward(self, value: Tensor) -> Tensor:
        """The gradient of a number by the weights, flat."""
        if not value.requires_grad:
            return torch.zeros(self.size, dtype=torch.float64)
        parts = torch.autograd.grad(value, self.weights, allow_unused=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts])

    def gradient(self) -> Tensor:
        return self.backward(self.loss_of(self.outputs()))

    def leaves(self) -> Tensor:
        """All numbers that the model puts out, flat."""
        found: list[Tensor] = []
        each_tensor(self.outputs(), lambda value: found.append(value.reshape(-1)) or value)
        return torch.cat([value for value in found if value.is_floating_point()])

    def along(self, function: Callable[[], Tensor], direction: Tensor) -> Product:
        """The derivative of a function of the weights along a direction."""
        length = float(direction.norm())
        size = max(float(torch.cat([value.reshape(-1) for value in self.here]).norm()), 1e-3)
        steps = direction.split([value.numel() for value in self.here])

        def at(amount: float) -> Tensor:
            with torch.no_grad():
                for value, before, step in zip(self.weights, self.here, steps, strict=True):
                    value.copy_(before + amount * step.reshape(before.shape))
            return function().detach()

        try:
            return best_of(at, [relative * size / length for relative in STEPS])
        finally:
            at_rest = torch.no_grad()
            with at_rest:
                for value, before in zip(self.weights, self.here, strict=True):
                    value.copy_(before)

    def hessian(self, direction: Tensor) -> Product:
        return self.along(self.gradient, direction)

    def ggn(self, direction: Tensor) -> Product:
        """Jᵀ Λ J v, Λ J v by differences of the slope of the criterion."""
        moved = self.along(self.leaves, direction)
        outputs = self.outputs()

        def slope(by: Tensor) -> Tensor:
            start, leaves = 0, []

            def displaced(value: Tensor) -> Tensor:
                nonlocal start
                if not value.is_floating_point():
                    return value.detach()
                part = by[start : start + value.numel()].reshape(value.shape)
                start += value.numel()
                leaves.append((value.detach() + part).requires_grad_())
                return leaves[-1]

            loss = self.loss_of(each_tensor(outputs, displaced))
            parts = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            return torch.cat([part.reshape(-1) for part in parts])

        reach = float(moved.value.abs().max())
        if reach == 0:
            return Product(torch.zeros(self.size, dtype=torch.float64), 0.0)
        curved = best_of(lambda amount: slope(amount * moved.value), [step / reach for step in STEPS])
        total, start = torch.zeros((), dtype=torch.float64), 0

        def dotted(value: Tensor) -> Tensor:
            nonlocal total, start
            if value.is_floating_point():
                part = curved.value[start : start + value.numel()].reshape(value.shape)
                total, start = total + (value * part).sum(), start + value.numel()
            return value

        each_tensor(outputs, dotted)
        value = self.backward(total)
        relative = (moved.uncertainty / float(moved.value.norm())) + (
            curved.uncertainty / max(float(curved.value.norm()), 1e-300)
        )
        return Product(value, relative * float(value.norm()))

    def residual(self, direction: Tensor) -> Product:
        whole, part = self.hessian(direction), self.ggn(direction)
        return Product(whole.value - part.value, whole.uncertainty + part.uncertainty)

    def empirical_fisher(self, direction: Tensor, samples: str) -> Product:
        """Σ_n g_n (g_n · v), over N for a mean, of the criterion at the outputs of each sample alone."""
        outputs = self.outputs()
        found: list[int] = []
        each_tensor(
            self.targets if self.targets is not None else outputs, lambda v: found.append(len(v)) or v
        )
        total = torch.zeros(self.size, dtype=torch.float64)
        targets = self.targets
        for n in range(found[0]):
            one, self.targets = (
                each_tensor(tree, lambda v, n=n: v[n : n + 1]) for tree in (outputs, targets)
            )
            loss = self.loss_of(one)
            self.targets = targets
            parts = torch.autograd.grad(
                loss, self.weights, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            g = torch.cat([part.reshape(-1) for part in parts])
            total += g * (g @ direction)
        return Product(total / (found[0] if samples == "mean" else 1), 0.0)


def best_of(at: Callable[[float], Tensor], steps: Sequence[float]) -> Product:
    """(4 D(h / 2) - D(h)) / 3 for the step h at which both central differences D agree best."""
    found = []
    for step in steps:
        wide, narrow = ((at(h) - at(-h)) / (2 * h) for h in (step, step / 2))
        found.append(Product((4 * narrow - wide) / 3, float((narrow - wide).norm())))
        if len(found) > 3 and found[-1].uncertainty <= SHARP * float(narrow.norm()):
            break
    return min(found, key=lambda product: product.uncertainty)
