"""The modules of a model while other tensors stand in for its parameters and buffers; all is put back as it was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from pipeline.errors import PipelineError


class ModuleState:
    """Every module of a model once, and every place in which one of its parameters or buffers is registered.

    A tensor may be registered in several places, and a module under several names: each place is set, and put back, by
    itself. Attributes are kept as they are now, the tensors among them too, so that no other object takes their ids: a
    model whose mode, buffers or modules are changed later is still called as it is now.

    Raises:
        PipelineError: a module is scripted, or a parameter has not been made yet.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.modules())
        check_parameters(model)
        self._made_with = [_Attributes(vars(module)) for module in self.modules]
        self._places: list[tuple[dict[str, Any], str, int]] = [
            (registered, key, id(value))
            for module in self.modules
            for registered in (vars(module)["_parameters"], vars(module)["_buffers"])
            for key, value in registered.items()
            if value is not None
        ]

    @contextmanager
    def replaced(self, values: Mapping[int, Tensor]) -> Iterator[None]:
        """Each parameter and buffer is replaced by the value of its id, where there is one.

        Within, every other attribute is as it was when this state was made. Afterwards every attribute of every module
        is the object that it was before, and every dictionary, list and set among the attributes holds what it held.
        """
        found = [_Attributes(vars(module)) for module in self.modules]
        for attributes in self._made_with:
            attributes.put_back()
        for registered, key, identity in self._places:
            if identity in values:
                registered[key] = values[identity]
        for module in self.modules:
            if isinstance(module, nn.RNNBase):  # it would copy the weights into one piece of a GPU's memory
                vars(module)["flatten_parameters"] = _nothing
        try:
            yield
        finally:
            for attributes in found:
                attributes.put_back()


class _Attributes:
    """The attributes of a module as they are now."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes  # of the module itself, not a copy
        self.before = dict(attributes)
        self.contents = [
            (value, value.copy() if value else None)
            for value in attributes.values()
            if type(value) in CONTAINERS
        ]

    def put_back(self) -> None:
        self.attributes.clear()
        self.attributes.update(self.before)
        for container, before in self.contents:
            if before is None and not container:
                continue
            container.clear()
            if before is None:
                continue
            if isinstance(container, list):
                container.extend(before)
            else:
                container.update(before)


CONTAINERS = (dict, OrderedDict, list, set)


def _nothing() -> None:
    pass


def check_parameters(model: nn.Module) -> None:
    """Refuse a model whose parameters cannot be replaced by other tensors.

    Raises:
        PipelineError: a module is scripted, or a parameter has not been made yet or is complex.
    """
    for name, module in model.named_modules():
        where = f"{type(module).__name__}{f' ({name})' if name else ''}"
        if isinstance(module, torch.jit.ScriptModule):
            raise PipelineError(
                f"{where} is scripted, and its weights cannot be replaced: give the module that it was scripted from."
            )
        if any(
            isinstance(value, UninitializedParameter | UninitializedBuffer)
            for value in module._parameters.values()
        ):
            raise PipelineError(
                f"{where} has parameters that are made at its first call: call the model once before."
            )
        for key, value in module._parameters.items():
            if value is not None and value.is_complex():
                raise PipelineError(
                    f"{where} has the complex parameter {key!r}: second derivatives are taken by real weights, so "
                    "keep the real and the imaginary part as two parameters (torch.view_as_real)."
                )
