"""Vectors as the rows of a NumPy array or of a torch tensor: the few operations that Lanczos needs, for both.

All results that are small are NumPy arrays in float64. Vectors in single precision are multiplied in it over a few
thousand entries, and these parts are summed in float64: an inner product is right to about the rounding of its factors,
whatever P is.

Tensors are multiplied as a batch of small products: a product of a (100, P) with a (P, 4) matrix reorders the larger
one for each call, and takes up to three times as long.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeAlias

import numpy as np

from pipeline.spectrum.protocol import Array
from pipeline.system import available_memory

Rows: TypeAlias = Any  # (m, P) a NumPy array or a torch tensor
CHUNK = 2048  # entries of a vector whose products are summed in its own precision
WIDE = 32 * CHUNK  # entries combined at a time where rows are overwritten by combinations of themselves


def plain_arithmetic(like: Rows | None) -> AbstractContextManager[Any]:
    """No gradients, and no autocast, which would round inner products to half precision."""
    stack = ExitStack()
    if like is not None:
        import torch

        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(like.device.type, enabled=False))
    return stack


def rows_like(matrix: Any) -> Rows | None:
    """A tensor in the dtype and on the device of a matrix that multiplies tensors; None for one that takes arrays."""
    dtype, device = getattr(matrix, "dtype", None), getattr(matrix, "device", None)
    if device is None or not str(dtype).startswith("torch."):
        return None
    import torch

    return torch.empty(0, dtype=dtype, device=device)


def free_memory(like: Rows | None) -> int:
    """Bytes that are free where rows lie."""
    if like is not None and like.device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(like.device)[0])
    return available_memory()


def is_tensor(rows: Rows) -> bool:
    return not isinstance(rows, np.ndarray)


def empty(num_rows: int, length: int, like: Rows | None) -> Rows:
    """Room for rows: as `like`, a tensor, else of float64 in NumPy."""
    if like is None:
        return np.empty((num_rows, length))
    return like.new_empty((num_rows, length))


def epsilon(rows: Rows) -> float:
    """The rounding of the rows' precision."""
    if is_tensor(rows):
        import torch

        return float(torch.finfo(rows.dtype).eps)
    return float(np.finfo(rows.dtype).eps)


def assign(target: Rows, source: Rows) -> None:
    """Copy rows of any kind into others of the same shape."""
    if is_tensor(target):
        import torch

        target.copy_(source if is_tensor(source) else torch.from_numpy(np.ascontiguousarray(source)))
    else:
        target[:] = source.detach().cpu().numpy() if is_tensor(source) else source


def copied(rows: Rows) -> Rows:
    return rows.clone() if is_tensor(rows) else rows.copy()


def inner(left: Rows, right: Rows) -> Array:
    """All inner products, (k, m) in float64."""
    if not is_tensor(left):
        product: Array = left @ right.T
        return product
    import torch

    blocks = left.shape[1] // CHUNK
    whole = blocks * CHUNK
    total = left[:, whole:].double() @ right[:, whole:].double().T
    if blocks:
        first, second = _batch(left[:, :whole]), _batch(right[:, :whole])
        if len(left) < len(right):
            total += torch.bmm(first, second.transpose(1, 2)).sum(0, dtype=torch.float64)
        else:
            total += torch.bmm(second, first.transpose(1, 2)).sum(0, dtype=torch.float64).T
    result: Array = total.cpu().numpy()
    return result


def lengths(rows: Rows) -> Array:
    """The norm of each row, (m,)."""
    if is_tensor(rows):
        import torch

        whole = rows.shape[1] // CHUNK * CHUNK
        parts = (
            torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, CHUNK)), dim=2)
            .double()
            .square()
            .sum(1)
        )
        rest = rows[:, whole:].double().square().sum(1)
        norms: Array = (parts + rest).sqrt().cpu().numpy()
        return norms
    return np.asarray(np.linalg.norm(rows, axis=1))


def subtract(target: Rows, weights: Array, rows: Rows) -> None:
    """Target −= weightsᵀ rows, in place; weights: (k, m)."""
    if not is_tensor(target):
        target -= weights.T @ rows
        return
    import torch

    small = torch.from_numpy(np.ascontiguousarray(weights.T)).to(target)
    whole = target.shape[1] // CHUNK * CHUNK
    target[:, whole:].addmm_(small, rows[:, whole:], alpha=-1)
    if whole:
        part = _batch(target[:, :whole])
        each = small.expand(len(part), *small.shape)
        part.copy_(torch.baddbmm(part, each, _batch(rows[:, :whole]), alpha=-1))


def combine(weights: Array, rows: Rows) -> Rows:
    """weightsᵀ rows, (m, P); weights: (k, m)."""
    result = empty(weights.shape[1], rows.shape[1], rows if is_tensor(rows) else None)
    _combine_into(result, weights, rows)
    return result


def rotate(rows: Rows, weights: Array) -> None:
    """The first m rows become weightsᵀ rows, in place; weights: (k, m) with m ≤ k."""
    _combine_into(rows[: weights.shape[1]], weights, rows)


def _combine_into(target: Rows, weights: Array, rows: Rows) -> None:
    small: Any = weights.T
    if is_tensor(rows):
        import torch

        small = torch.from_numpy(np.ascontiguousarray(weights.T)).to(rows)
    for first in range(0, rows.shape[1], WIDE):
        part = slice(first, first + WIDE)
        target[:, part] = small @ rows[:, part]


def random_rows(target: Rows, rng: np.random.Generator) -> None:
    """Fill rows with normal numbers, of about unit length; the same on every device."""
    scale = 1 / np.sqrt(target.shape[1])
    for row in target:
        assign(row, rng.standard_normal(target.shape[1]) * scale)


def _batch(rows: Rows) -> Rows:
    """(m, n · CHUNK) seen as n parts (m, CHUNK)."""
    return rows.unflatten(1, (-1, CHUNK)).transpose(0, 1)
