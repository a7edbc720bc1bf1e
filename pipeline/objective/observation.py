"""The evidence of `system/evidence.py`, taken of samples, a model and a criterion at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from math import nan, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline.errors import PipelineError
from pipeline.objective.batch import Batch
from pipeline.objective.objective import Objective, Params
from pipeline.system import CHECKSUMS

NUM_FIRST = 64  # samples, of which evidence is taken that all files of a checkpoint share
NUM_PRODUCTS = 3
AT_ONCE = 2**20  # numbers
AGREEMENT = {torch.float64: 1e-8, torch.float32: 1e-4}  # relative
ROUGHLY = 1e-2  # of products that a GPU rounds to TF32
OF_A_MISFIT = (
    ArithmeticError,
    AssertionError,
    LookupError,
    PipelineError,
    RuntimeError,
    TypeError,
    ValueError,
)


def hash_of(samples: Batch | None) -> str:
    """16 hexadecimal digits of the SHA-256 of all tensors: their places in the batch, dtypes, shapes and bytes."""
    if samples is None:
        return ""
    digest = hashlib.sha256()
    named = [(pytree.keystr(path), leaf) for path, leaf in pytree.tree_flatten_with_path(tuple(samples))[0]]
    for name, leaf in sorted(named, key=lambda pair: pair[0]):
        if isinstance(leaf, Tensor):
            digest.update(f"{name} {leaf.dtype} {tuple(leaf.shape)}\n".encode())
            values = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(values.numpy().data)
        else:
            digest.update(f"{name} {leaf!r}\n".encode())
    return digest.hexdigest()[:16]


def joined_hash(one: str, other: str) -> str:
    """Of a mean with one more batch, from the checksums of both."""
    return hashlib.sha256((one + other).encode()).hexdigest()[:16]


def hashes_of(train: Batch, test: Batch | None) -> dict[str, str]:
    """The checksums of a data set."""
    return dict(zip(CHECKSUMS, (hash_of(train), hash_of(test)), strict=False))


def observed(kind: str, objective: Objective, params: Params, batch: Batch) -> dict[str, Any]:
    """Evidence of a shard; kind: `first` or `batch`.

    Raises:
        PipelineError: the model cannot be differentiated, or draws random numbers.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    outputs = objective.predict(leaves, batch.inputs)
    slope = _slope(outputs, leaves)

    def loss(outputs: Any) -> Tensor:
        given = Objective(lambda *_: outputs, objective.criterion)
        return given.loss(params, batch)

    with torch.no_grad():
        return _summary(kind, outputs, loss, next(iter(params.values()))) | {f"{kind}_slope": slope}


def observed_first(
    model: nn.Module,
    outputs: Callable[[nn.Module, Any], Any],
    criterion: Callable[[Any, Any], Any],
    train: Batch,
) -> dict[str, Any]:
    """Evidence of a checkpoint: of the first training samples, without derivatives, which training may not need.

    The model is left as it is, and torch's random numbers too. outputs: calls the model with inputs.
    """
    few = train.chunk(0, NUM_FIRST)
    weight = next(model.parameters(), torch.zeros(0))
    buffers = [(value, value.clone()) for value in model.buffers()]
    with torch.random.fork_rng([weight.device] if weight.is_cuda else []), torch.no_grad():
        torch.manual_seed(0)
        summary = _summary(
            "first", outputs(model, few.inputs), partial(_value, criterion, few.targets), weight
        )
        for value, before in buffers:
            value.copy_(before)
    return summary


def _summary(kind: str, outputs: Any, loss: Callable[[Any], Any], weight: Tensor) -> dict[str, Any]:
    return {
        f"{kind}_outputs": _products(outputs),
        f"{kind}_losses": [float(loss(outputs)), _crossed(outputs, loss)],
        "agreement": _agreement(weight),
    }


def _value(criterion: Callable[[Any, Any], Any], targets: Any, outputs: Any) -> Any:
    return criterion(outputs, targets)


def _crossed(outputs: Any, loss: Callable[[Any], Any]) -> float:
    """The loss of outputs that belong to the sample before: large, and so telling, where the model fits its samples."""
    others = pytree.tree_map(
        lambda value: value.roll(1, 0) if isinstance(value, Tensor) and value.ndim else value, outputs
    )
    try:
        return float(loss(others))
    except OF_A_MISFIT:  # of a criterion that wants more of outputs than their shapes
        return nan


def _products(outputs: Any) -> list[float]:
    """The root mean square of all outputs, and their products with random vectors that are always the same."""
    draws, number, squares, sums = np.random.default_rng(0), 0, 0.0, np.zeros(NUM_PRODUCTS)
    for leaf in _numbers(outputs):
        flat = leaf.detach().reshape(-1).cpu().numpy()
        flat = flat.view(flat.real.dtype) if np.iscomplexobj(flat) else flat
        flat = np.nan_to_num(flat.astype(np.float64), posinf=0.0, neginf=0.0)  # infinities may mask logits
        number, squares = number + len(flat), squares + float(flat @ flat)
        for start in range(0, len(flat), AT_ONCE):
            part = flat[start : start + AT_ONCE]
            sums += draws.standard_normal((NUM_PRODUCTS, len(part))) @ part
    scale = max(number, 1)
    return [sqrt(squares / scale), *(sums / sqrt(scale)).tolist()]


def _slope(outputs: Any, leaves: Params) -> float:
    """The root mean square of the derivatives, by the weights, of the outputs' product with a fixed random vector."""
    found = [leaf for leaf in _numbers(outputs) if leaf.requires_grad]
    if not found:
        return 0.0
    draws = np.random.default_rng(1)
    along = [torch.from_numpy(draws.standard_normal(tuple(leaf.shape))).to(leaf) for leaf in found]
    slopes = torch.autograd.grad(found, tuple(leaves.values()), along, materialize_grads=True)
    squares = sum(float(slope.double().square().sum()) for slope in slopes)
    return sqrt(squares / max(sum(leaf.numel() for leaf in found), 1))


def _numbers(outputs: Any) -> list[Tensor]:
    named = pytree.tree_flatten_with_path(outputs)[0]
    ordered = sorted(named, key=lambda pair: pytree.keystr(pair[0]))
    return [leaf for _, leaf in ordered if isinstance(leaf, Tensor)]


def _agreement(weight: Tensor) -> float:
    rounded = weight.is_cuda and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
    return ROUGHLY if rounded and weight.dtype is torch.float32 else AGREEMENT.get(weight.dtype, ROUGHLY)
