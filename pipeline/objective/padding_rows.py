"""Padding rows of embeddings while the weights of a module are moved: PyTorch gives them no gradient.

`F.embedding(…, padding_idx=i)` masks the gradient of row i, in every backward pass. The loss that autograd
differentiates is thus that of a look-up whose row i is a constant, and the rows and columns of its Hessian that belong
to this row are zero, unless the weight enters the loss in another way too (a tied decoder). `F.embedding_bag` leaves
the row out of its sum, so that nothing depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PaddingRows:
    """The padding rows of the look-ups of a model, in the order of its calls, as they are where nothing is moved.

    The order, and not the weight, tells look-ups apart: a weight may be made anew in each call, by a parametrization.
    A look-up that is made only where weights are moved keeps PyTorch's form.
    """

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within it the rows are noted, at weights that are not moved."""
        self._rows = rows = []

        def note(output: Tensor, mask: Tensor, row: Tensor) -> Tensor:
            rows.append(row.detach().clone())
            return output

        with _PaddedLookups(note):
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it each look-up of a padding row gives the row that was noted, whatever the weights are now."""
        if not self._rows:
            yield
            return
        rows = iter(self._rows)

        def hold(output: Tensor, mask: Tensor, row: Tensor) -> Tensor:
            noted = next(rows, None)
            if noted is None or noted.shape != row.shape:
                return output
            return torch.where(mask[..., None], noted, output)

        with _PaddedLookups(hold):
            yield


class _PaddedLookups(TorchFunctionMode):
    """Changes the output of each look-up that has a padding row, given where the padding is and its row."""

    def __init__(self, change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._change = change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is not F.embedding and func is not torch.embedding:
            return output
        tokens, weight, index = (_from_functional if func is F.embedding else _from_torch)(*args, **kwargs)
        if index is None:
            return output
        index = index % len(weight)
        return self._change(output, tokens == index, weight[index])


def _from_functional(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor, int | None]:
    return input, weight, padding_idx


def _from_torch(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor, int | None]:
    """`torch.embedding`, for which -1 means none."""
    return indices, weight, padding_idx if padding_idx >= 0 else None
