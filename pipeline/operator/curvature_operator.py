"""Products with the curvature matrix of a loss over all batches, which is never formed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.matrix import MATRICES, Matrix
from pipeline.objective import Certificate, Criterion, check_loss, device_named, differentiation, honored
from pipeline.operator.batch_sum import SHARE, BatchSum, Net
from pipeline.operator.checkpointed import Checkpointed
from pipeline.operator.protocol import SumOverBatches
from pipeline.operator.selection import Certified, NoWay, Selected
from pipeline.operator.verification import Verification
from pipeline.validation import named

COLUMNS_PER_PASS = 1
Vectors = TypeVar("Vectors", Tensor, np.ndarray[Any, Any])
log = logging.getLogger(__name__)


@dataclass
class CurvatureOperator:
    """A symmetric (P, P) matrix H = Σ_b w_b H_b over batches, known by its products with vectors.

    Made by `curvature_operator`. Weights, buffers, modes and attributes of the model are those at that time, whatever
    becomes of the model.

    way: how products are computed. certificate: how far products on the first batch were from differences of the
    module's own gradient, in float64; None with verify=False. rounding: how far products in single precision were from
    those, relative. seconds: for one vector on one batch, in a trial. memory: bytes of
    the graphs that are kept, or of the one that is made for a batch (by checkpoints: of what it would hold without).
    num_products: vectors multiplied so far.
    """

    layout: Layout
    dtype: torch.dtype
    device: torch.device
    way: str
    certificate: Certificate | None
    rounding: float
    seconds: float
    memory: int
    _sum: SumOverBatches = field(repr=False)
    num_products: int = 0

    @property
    def num_rows(self) -> int:
        return self.layout.num_parameters

    @property
    def columns_per_pass(self) -> int:
        """How many vectors a search multiplies at once: each costs a product, and one at a time takes the fewest."""
        return COLUMNS_PER_PASS

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_rows, self.num_rows

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters, in the order of rows and columns."""
        return self.layout.names

    def matvec(self, vectors: Vectors) -> Vectors:
        """H times (P,) or (P, m) vectors: a tensor for a tensor, an array for an array, on the same device.

        Batches are summed in float64. The result has the dtype of the vectors, or of the operator if that is finer.

        Raises:
            PipelineError: the vectors do not have P rows, or are not real floating-point numbers; or the batches hold
                other samples than before.
        """
        given = _floating_point(vectors)
        if given.ndim not in (1, 2) or len(given) != self.num_rows:
            raise PipelineError(
                f"the vectors have shape {tuple(given.shape)}: give ({self.num_rows},) or ({self.num_rows}, m)."
            )
        columns = given.detach().to(self.device, self.dtype).reshape(self.num_rows, -1)
        with differentiation():
            total = self._sum(columns)
        self.num_products += columns.shape[1]
        result = total.to(given.device, torch.promote_types(given.dtype, self.dtype)).reshape(given.shape)
        return result.numpy() if isinstance(vectors, np.ndarray) else result

    def __matmul__(self, vectors: Vectors) -> Vectors:
        return self.matvec(vectors)

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The loss over all batches, and its gradient, (P,) in float64 on the CPU. Cost: one gradient."""
        with differentiation():
            return self._sum.loss_and_gradient()

    def to_scipy(self) -> Any:
        """The same operator as a `scipy.sparse.linalg.LinearOperator`; complex vectors are multiplied part by part."""
        from scipy.sparse.linalg import LinearOperator

        dtype = np.dtype(str(self.dtype).removeprefix("torch."))

        def product(vectors: np.ndarray) -> np.ndarray:
            if np.iscomplexobj(vectors):
                return product(vectors.real) + 1j * product(vectors.imag)
            return self.matvec(np.asarray(vectors, dtype))

        return LinearOperator(
            self.shape, matvec=product, rmatvec=product, matmat=product, rmatmat=product, dtype=dtype
        )


def _floating_point(vectors: Any) -> Tensor:
    """The vectors as a tensor with numbers, in their own precision, or in float64 where torch has none like it.

    Raises:
        PipelineError: they are none, or not real floating-point numbers.
    """
    if isinstance(vectors, np.ndarray) and vectors.dtype.kind == "f" and not np.ma.is_masked(vectors):
        kind = vectors.dtype.newbyteorder("=") if vectors.dtype.itemsize <= 8 else np.float64
        array = np.ascontiguousarray(vectors, kind)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    if isinstance(vectors, Tensor) and vectors.is_floating_point() and _is_dense(vectors):
        return vectors
    kind = getattr(vectors, "dtype", type(vectors).__name__)
    raise PipelineError(
        f"the vectors are {kind}: give a tensor or an array of floating-point numbers, dense and not masked."
    )


def _is_dense(vectors: Tensor) -> bool:
    return vectors.layout == torch.strided and vectors.device.type != "meta"


def curvature_operator(
    model: nn.Module,
    criterion: Criterion,
    batches: Any,
    matrix: str | Matrix = "hessian",
    parameters: Sequence[str] | str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    verify: bool = True,
    randomness: int | None = None,
    way: str | None = None,
) -> CurvatureOperator:
    """Products with the curvature matrix of a loss over batches, at any number of weights: P² numbers are never held.

    The matrix is that of the loss of all samples: for a mean loss the batches are weighted by the terms that the mean
    is over (samples, or the labels that count), for a summed one they are added; sums are taken in float64. How a
    product is computed is chosen by a short trial on the first batch, and told in one line of the log.

    batches: one pair (inputs, targets), a list of such pairs, or what can be iterated over again and again, such as a
        DataLoader, in any order. Inputs and targets are as `hessian` takes them.
    model, criterion, matrix, parameters, dtype, device, randomness: as for `hessian`.
    way: how a product is computed, by the name that `.way` of an operator has; None takes the fastest that is right.
    verify: compare products on the first batch with differences of the module's own gradient in float64, at the cost
        of about 15 gradients.

    Cost: one to three gradients a product and vector, see docs/howto/matrix_free.md. Memory: the graph of a gradient
    for each batch while a fourth of the free memory holds them, else of one; where that does not fit, what
    `torch.utils.checkpoint` inside the model leaves of it, at about four gradients a product.

    Raises:
        PipelineError: as `hessian`; or it is not known how the batches add up.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> pair = (torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1))
    >>> operator = curvature_operator(net, lambda outputs, targets: (outputs - targets).square().sum() / 2, pair)
    >>> operator @ torch.ones(2)
    tensor([1., 4.])
    """
    kind, place = named(matrix, MATRICES, "matrix"), device_named(device)
    with differentiation():
        net = Net(model, criterion, parameters, place, randomness)
        total = BatchSum.of(net, kind, batches, dtype)
        if way in (None, Checkpointed.NAME) and _is_checkpointed(total, way is not None):
            net, way = replace(net, is_checkpointed=True), Checkpointed.NAME
            total = replace(total, objective=total.objective.checkpointed())
        check_loss(total.objective, total.params, total.first)
        layout, example = Layout.of(total.params), next(iter(total.params.values()))

        verification = Verification(net, total)
        try:
            selected = total.select(verification if verify else None, way)
        except NoWay as none:
            if verification.double.dtype != total.dtype:
                total = total.at(net, torch.float64)
            verification = Verification(net, total)
            selected = _by_differences(total, verification if verify else None, none)
        total.forget_trial()
        _tell(selected, verification.rounding)
        return CurvatureOperator(
            layout,
            example.dtype,
            example.device,
            selected.trial.way.name,
            selected.certificate,
            verification.rounding,
            selected.trial.per_vector,
            total.memory,
            total,
        )


def _is_checkpointed(total: BatchSum, is_asked_for: bool) -> bool:
    """Whether checkpoints inside the net save memory: asked for, or the graph of a gradient does not fit without.

    Raises:
        PipelineError: it is asked for, and the net calls no checkpoints.
    """
    lean = replace(total, objective=total.objective.checkpointed())
    with honored() as seen:
        try:
            check_loss(lean.objective, lean.params, lean.first)
        except PipelineError:
            if is_asked_for:
                raise
            return False
    if is_asked_for and not seen.count:
        raise PipelineError(
            f"way={Checkpointed.NAME!r}: the model does not call torch.utils.checkpoint: wrap its blocks in it."
        )
    return is_asked_for or (seen.count > 0 and lean.bytes_of_a_graph > SHARE * lean.room)


def _by_differences(total: BatchSum, certified: Certified | None, before: NoWay) -> Selected:
    try:
        selected = total.by_differences(certified)
    except NoWay as none:
        raise NoWay([*before.failures, *none.failures], before.remedy) from none
    return selected._replace(failures=before.failures)


def _tell(selected: Selected, rounding: float) -> None:
    """Say which way is taken, and why others are not."""
    trial, certificate = selected.trial, selected.certificate
    error = f", H v right to {certificate.probe_error:.1e}" if certificate else ", not verified"
    if rounding:
        error += f" in float64, and to {rounding:.1e} in single precision"
    others = "".join(f"; not by {name}: {why}" for name, why in selected.failures)
    log.info(
        "products by %s: %.2g s a vector on the first batch%s%s.",
        trial.way.name,
        trial.per_vector,
        error,
        others,
    )
