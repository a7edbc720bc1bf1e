"""The tensors inside what a model returns: tuples, mappings, dataclasses and other objects, nested in any way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Rebuild = Callable[[Iterator[Any]], Any]


@dataclass(frozen=True)
class Tree:
    """The tensors of a value, in order, and how to make the same value of others.

    tensors: those that are floating-point, or all of them, see `of`.
    """

    tensors: tuple[Tensor, ...]
    _rebuild: Rebuild | None

    @staticmethod
    def of(value: Any, every: bool = False) -> Tree:
        """Look for tensors in tuples, lists, mappings, dataclasses and objects with attributes; modules are left alone.

        every: take the tensors of whole numbers too.
        """
        found: list[Tensor] = []
        rebuild = _collect(value, found, every, ())
        return Tree(tuple(found), rebuild or (lambda tensors: value))

    def like(self, tensors: Sequence[Any]) -> Any:
        """The value with these tensors in place of its own; its containers are copied, never changed."""
        assert self._rebuild is not None
        return self._rebuild(iter(tensors))


def _collect(value: Any, leaves: list[Tensor], every: bool, path: tuple[int, ...]) -> Rebuild | None:
    """Append the tensors of the value; None if there are none, so that it can stay as it is."""
    if isinstance(value, Tensor):
        if not (every or value.is_floating_point() or value.is_complex()):
            return None
        leaves.append(value)
        return next
    if value is None or isinstance(value, str | bytes | int | float | type | nn.Module) or id(value) in path:
        return None
    parts = _parts_of(value)
    if parts is None:
        return None
    keys, values, build = parts
    path = (*path, id(value))
    makers = [_collect(part, leaves, every, path) for part in values]
    if not any(makers):
        return None

    def rebuild(tensors: Iterator[Any]) -> Any:
        made = [part if make is None else make(tensors) for part, make in zip(values, makers, strict=True)]
        return build(keys, made)

    return rebuild


def _parts_of(value: Any) -> tuple[list[Any], list[Any], Callable[[list[Any], list[Any]], Any]] | None:
    """Keys, values, and how the container is made of them."""
    if isinstance(value, tuple | list):
        if hasattr(value, "_make"):
            return [], list(value), lambda _, parts: value._make(parts)
        return [], list(value), lambda _, parts: type(value)(parts)
    if isinstance(value, Mapping):
        return list(value), [value[key] for key in value], lambda keys, parts: _mapping(value, keys, parts)
    if callable(value) or not hasattr(value, "__dict__"):
        return None
    attributes = vars(value)
    return list(attributes), list(attributes.values()), lambda keys, parts: _object(value, keys, parts)


def _mapping(value: Any, keys: list[Any], parts: list[Any]) -> Any:
    if type(value) is dict:
        return dict(zip(keys, parts, strict=True))
    result = copy.copy(value)
    for key, part in zip(keys, parts, strict=True):
        result[key] = part
    return result


def _object(value: Any, keys: list[str], parts: list[Any]) -> Any:
    result = copy.copy(value)
    vars(result).update(zip(keys, parts, strict=True))
    return result
