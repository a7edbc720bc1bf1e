"""Products with a matrix, found on the user's own module, by a way that shares nothing with any strategy.

The module itself is called, as the user calls it, but for `torch.utils.checkpoint`, of whose reentrant form
`autograd.grad` leaves out the weights, without a word, where its inputs need no gradient. Its parameters are moved in
place, and it is differentiated once, by plain backward passes: no functional call, no forward mode, no vmap, and no
function mode, but for padding rows of embeddings, which move with no weight (`padding_rows.py`), and random numbers.
What is a second derivative elsewhere is a difference quotient here, in float64, extrapolated, with the rounding of what
is differenced measured.

Autograd does not see through `torch.no_grad()` and `detach()`; differences do. Where the two disagree in that way,
and where a difference quotient is not sharp, as on a kink, `by_autograd` gives what two backward passes through the
module give.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.errors import PipelineError, first_line, must_reach_user
from pipeline.objective.activation_checkpoints import checkpoints
from pipeline.objective.batch import Batch
from pipeline.objective.decompositions.mode import DecompositionMode
from pipeline.objective.decompositions.randomness import SeededRandomness
from pipeline.objective.differences import Product, Start, derivative
from pipeline.objective.module_state import ModuleState
from pipeline.objective.objective import Criterion, arguments, compiled_inside, eager, select
from pipeline.objective.padding_rows import PaddingRows
from pipeline.objective.trees import Tree


class Reference:
    """The loss of the user's own module on one batch, by the chosen parameters.

    The module is as it was found whenever no method is running: every parameter is the same object with the same
    memory.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        parameters: Sequence[str] | str | None,
        batch: Batch,
        device: torch.device | None = None,
        randomness: int | None = None,
    ) -> None:
        """Raises a PipelineError where the module cannot be called on the batch at all."""
        chosen = select(model, parameters)
        if any(
            value.is_inference() for value in model.parameters()
        ):  # autograd cannot differentiate by these at all
            model = copy.deepcopy(model)
        self._run, self.criterion, self._randomness = compiled_inside(model), criterion, randomness
        self._state = ModuleState(model)
        self._criterion_state = ModuleState(criterion) if isinstance(criterion, nn.Module) else None
        self.names = [name for name, _ in model.named_parameters() if name in chosen]
        own = dict(model.named_parameters())
        self._parameters = [own[name] for name in self.names]
        self._others = [value for name, value in own.items() if name not in chosen]
        self._buffers = [value for _, value in model.named_buffers()]
        if isinstance(criterion, nn.Module):
            self._buffers += [
                *criterion.buffers(),
                *(p for p in criterion.parameters() if id(p) not in map(id, own.values())),
            ]
        self._device = device
        self._start: Start | None = None
        self._padding = PaddingRows()
        self.dtype = torch.float64
        self._as(torch.float64, batch)
        try:
            self._record_padding()
        except (
            Exception
        ) as error:  # a part is fixed to another precision: then all is computed in the module's own
            if must_reach_user(error):
                raise
            self.dtype = self._parameters[0].dtype
            self._as(None, batch)
            try:
                self._record_padding()
            except Exception as again:
                if must_reach_user(again):
                    raise
                raise PipelineError(
                    f"the model or its loss cannot be computed on this batch ({type(again).__name__}: "
                    f"{first_line(again)}): call criterion(model(inputs), targets) by itself to see where."
                ) from again

    def _as(self, dtype: torch.dtype | None, batch: Batch) -> None:
        """Take weights, buffers and batch in a dtype, None for their own."""

        def cast(value: Tensor) -> Tensor:
            kind = dtype if value.is_floating_point() else None
            return value.detach().clone().to(device=self._device, dtype=kind)

        self.batch = batch.to(self._device, dtype)
        self._weights = [cast(value) for value in self._parameters]
        self._fixed = [cast(value) for value in self._others]
        self._kept = {id(value): cast(value) for value in self._buffers}
        self._sizes = [value.numel() for value in self._weights]
        self.size = max(
            1e-3, float(torch.cat([value.reshape(-1) for value in self._weights]).double().norm())
        )

    def _record_padding(self) -> None:
        with self._moved(None, self._padding.recorded()):
            self.criterion(self._outputs(), self.batch.targets)

    @contextmanager
    def _moved(
        self, by: Tensor | None, lookups: AbstractContextManager[None] | None = None
    ) -> Iterator[None]:
        """The module's own parameters at the weights plus `by`, (P,).

        lookups: a function mode of embeddings, entered last; where weights move, that which holds padding rows.
        """
        lookups = lookups or (self._padding.held() if by is not None else nullcontext())
        parameters = [*self._parameters, *self._others]
        found = [(value, value.data, value.requires_grad) for value in parameters]
        parts = by.split(self._sizes) if by is not None else [None] * len(self._sizes)
        drawn = (
            DecompositionMode(SeededRandomness(self._randomness))
            if self._randomness is not None
            else nullcontext()
        )
        buffers = {identity: value.clone() for identity, value in self._kept.items()}
        outer = self._criterion_state.replaced(buffers) if self._criterion_state else nullcontext()
        try:
            for parameter, weight, part in zip(self._parameters, self._weights, parts, strict=True):
                parameter.data = weight if part is None else weight + part.reshape(weight.shape).to(weight)
                parameter.requires_grad_(True)
            for parameter, weight in zip(self._others, self._fixed, strict=True):
                parameter.data = weight
            replaced = self._state.replaced(buffers)
            with torch.enable_grad(), checkpoints(), eager(), outer, replaced, drawn, lookups:
                yield
        finally:
            for parameter, data, requires_grad in found:
                parameter.data = data
                parameter.requires_grad_(requires_grad)

    def _outputs(self) -> Any:
        args, kwargs = arguments(self._run, self.batch.inputs)
        return self._run(*args, **kwargs)

    def _loss_at(self, by: Tensor | None) -> float:
        with self._moved(by):
            return float(self.criterion(self._outputs(), self.batch.targets).detach())

    def loss(self) -> float:
        """The loss as the user computes it."""
        return self._loss_at(None)

    def gradient(self, by: Tensor | None = None) -> Tensor:
        """The gradient of the loss at weights moved by a vector, (P,), in float64."""
        with self._moved(by):
            loss = self.criterion(self._outputs(), self.batch.targets)
            return self._flat(_plain_gradient(loss, self._parameters))

    def hessian(self, direction: Tensor) -> Product:
        """The derivative of the gradient along a direction, (P,)."""
        if self._start is None and float(direction.norm()) > 0:
            self._start = Start.of(self.gradient, direction / direction.norm(), self.size)
        return derivative(self.gradient, direction, self.size, self._start)

    def hessian_by_autograd(self, direction: Tensor) -> Tensor:
        """The same by a second backward pass, which fused attention has none of: it takes the form in matrix
        products.
        """
        with sdpa_kernel(SDPBackend.MATH), self._moved(None):
            loss = self.criterion(self._outputs(), self.batch.targets)
            gradient = _plain_gradient(loss, self._parameters, create_graph=True)
            along = self._parts(direction)
            product = sum((g * v).sum() for g, v in zip(gradient, along, strict=True))
            return self._flat(_plain_gradient(product, self._parameters))

    def outputs(self) -> Any:
        """What the module returns, without a graph."""
        with self._moved(None):
            tree = Tree.of(self._outputs())
            return tree.like([value.detach() for value in tree.tensors])

    def push(self, direction: Tensor) -> tuple[list[Tensor], Product]:
        """J v, the derivative of the outputs' tensors along a direction, by differences; and the same as one
        vector.
        """
        shapes: list[Tensor] = []

        def flat(by: Tensor) -> Tensor:
            with self._moved(by):
                shapes[:] = [value.detach() for value in Tree.of(self._outputs()).tensors]
            return _flat(shapes)

        found = derivative(flat, direction, self.size)
        return _split(found.value, shapes), found

    def push_by_autograd(self, direction: Tensor) -> list[Tensor]:
        """J v by two backward passes, or from the rows of J where a layer allows one only."""
        along = self._parts(direction)
        with sdpa_kernel(SDPBackend.MATH), self._moved(None):
            tensors = Tree.of(self._outputs()).tensors
            try:
                u = [torch.zeros_like(value).requires_grad_() for value in tensors]
                total = sum((f * c).sum() for f, c in zip(tensors, u, strict=True))
                pulled = _plain_gradient(total, self._parameters, create_graph=True)
                product = sum((g * v).sum() for g, v in zip(pulled, along, strict=True))
                return [value.detach() for value in _plain_gradient(product, u)]
            except RuntimeError:
                rows = [
                    torch.stack(
                        [
                            sum(
                                (
                                    (g * v).sum()
                                    for g, v in zip(
                                        _plain_gradient(entry, self._parameters), along, strict=True
                                    )
                                ),
                                start=entry.detach() * 0,
                            )
                            for entry in value.reshape(-1)
                        ]
                    )
                    for value in tensors
                ]
                return [row.reshape(value.shape).detach() for row, value in zip(rows, tensors, strict=True)]

    def pull(self, cotangents: Sequence[Tensor]) -> Tensor:
        """Jᵀ u, (P,), by one backward pass."""
        with self._moved(None):
            tensors = Tree.of(self._outputs()).tensors
            total = sum((f * u.to(f)).sum() for f, u in zip(tensors, cotangents, strict=True))
            return self._flat(_plain_gradient(total, self._parameters))

    @property
    def num_samples(self) -> int:
        return self.batch.num_samples

    def evaluate(self, outputs: Any, targets: Any) -> Tensor:
        """The criterion alone."""
        with self._moved(None):
            loss: Tensor = self.criterion(outputs, targets)
        return loss

    def slopes(self, outputs: Any, targets: Any, moved_by: Sequence[Tensor] | None = None) -> list[Tensor]:
        """∂L/∂f of the criterion alone, at outputs that may be moved."""
        tree = Tree.of(outputs)
        by = moved_by or [torch.zeros_like(value) for value in tree.tensors]
        with self._moved(None):
            leaves = [
                (f + change).detach().requires_grad_() for f, change in zip(tree.tensors, by, strict=True)
            ]
            loss = self.criterion(tree.like(leaves), targets)
            return [value.detach() for value in _plain_gradient(loss, leaves)]

    def curve(self, outputs: Any, changes: Sequence[Tensor]) -> tuple[list[Tensor], float]:
        """Λ c, the derivative of the criterion's slopes along a change of the outputs, by differences."""
        tensors = Tree.of(outputs).tensors
        flat = _flat(tensors)

        def slopes(by: Tensor) -> Tensor:
            return _flat(self.slopes(outputs, self.batch.targets, _split(by, tensors)))

        found = derivative(slopes, _flat(changes), max(1e-3, float(flat.norm())))
        return _split(found.value, tensors), found.uncertainty

    def curve_by_autograd(self, outputs: Any, changes: Sequence[Tensor]) -> list[Tensor]:
        """The same by two backward passes through the criterion."""
        tree = Tree.of(outputs)
        with self._moved(None):
            leaves = [value.detach().requires_grad_() for value in tree.tensors]
            slopes = _plain_gradient(
                self.criterion(tree.like(leaves), self.batch.targets), leaves, create_graph=True
            )
            product = sum((g * c.to(g)).sum() for g, c in zip(slopes, changes, strict=True))
            return [value.detach() for value in _plain_gradient(product, leaves)]

    def _parts(self, direction: Tensor) -> list[Tensor]:
        return [
            part.reshape(weight.shape).to(weight)
            for part, weight in zip(direction.split(self._sizes), self._weights, strict=True)
        ]

    def _flat(self, parts: Sequence[Tensor]) -> Tensor:
        return _flat(parts)


def _plain_gradient(value: Any, by: Sequence[Tensor], create_graph: bool = False) -> Sequence[Tensor]:
    if not isinstance(value, Tensor) or not value.requires_grad:
        return [torch.zeros_like(tensor) for tensor in by]
    parts = torch.autograd.grad(
        value, list(by), create_graph=create_graph, retain_graph=True, materialize_grads=True
    )
    return [part.to_dense() if part.is_sparse else part for part in parts]  # of an embedding that asks for it


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().reshape(-1).double() for part in parts])


def _split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split([value.numel() for value in like])
    return [part.reshape(value.shape).to(value) for part, value in zip(parts, like, strict=True)]
