"""Watching a model run: which calls use a weight linearly, and what goes into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.objective import Params
from pipeline.strategy.khatri_rao.linear_functions import LINEAR_CALLS
from pipeline.strategy.khatri_rao.linear_use import Call


class LinearUseInterceptor(TorchFunctionMode):
    """Records every use and adds `shift(index, z)` to its output; `index` counts the uses in order of execution."""

    def __init__(
        self, params: Params, names: Sequence[str], shift: Callable[[int, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.names = {id(params[name]): name for name in names}
        self.shift = shift
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reader = LINEAR_CALLS.get(func)
        if reader is None:
            return func(*args, **kwargs)
        found = reader(self.name_of, *args, **kwargs)
        if found is None:
            return func(*args, **kwargs)
        self.calls.append(found)
        return found.z if self.shift is None else self.shift(len(self.calls) - 1, found.z)

    def name_of(self, tensor: Any) -> str | None:
        """The name of a parameter that is differentiated by."""
        return self.names.get(id(tensor))
