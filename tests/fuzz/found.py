"""A model, object by object, as a photograph: whether two of them are the same."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def photograph(model: nn.Module) -> dict[str, Any]:
    """Everything that a call must leave as it was: objects by identity, tensors by their values too."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found[name] = module
        for key, value in vars(module).items():
            _note(found, f"{name}.{key}", value)
    return found


def _note(found: dict[str, Any], place: str, value: Any) -> None:
    found[place] = value
    if isinstance(value, Tensor):
        try:
            found[f"{place} (values)"] = value.detach().clone()
        except RuntimeError:  # of a transform that is over
            found[f"{place} (escaped)"] = True
            return
        found[f"{place} (requires_grad)"] = value.requires_grad
        found[f"{place} (grad)"] = value.grad if value.is_leaf else None
        found[f"{place} (dtype)"] = value.dtype
    elif isinstance(value, dict):
        for key, inner in value.items():
            _note(found, f"{place}[{key!r}]", inner)
        found[f"{place} (keys)"] = tuple(map(repr, value))
    elif type(value) is list:
        for k, inner in enumerate(value):
            _note(found, f"{place}[{k}]", inner)
        found[f"{place} (length)"] = len(value)


def difference(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """The first place that is not as it was."""
    for place in {**before, **after}:
        if place not in before:
            return f"{place} is new"
        if place not in after:
            return f"{place} is gone"
        one, other = before[place], after[place]
        if place.endswith(" (values)"):
            if one.shape != other.shape or not _equal(one, other):
                return f"{place} changed"
        elif one is not other and (type(one) not in {bool, int, float, str, tuple} or one != other):
            return f"{place} is another object ({type(one).__name__}, now {type(other).__name__})"
    return None


def _equal(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())
