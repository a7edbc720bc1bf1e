"""The one tensor of a model's outputs that a loss is taken of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.errors import PipelineError

NAMES = ("logits", "out")  # Hugging Face's name, and torchvision's for segmentation


def logits_of(criterion: str, outputs: Any) -> Tensor:
    """The outputs; of an object, mapping or tuple its logits, or the only tensor of floats in it.

    Raises:
        PipelineError: there is none, or there are several.
    """
    if isinstance(outputs, Tensor):
        return outputs
    parts = _parts(outputs)
    for name in NAMES:
        if isinstance(parts.get(name), Tensor):
            return parts[name]  # type: ignore[no-any-return]
    tensors = {
        name: part for name, part in parts.items() if isinstance(part, Tensor) and part.is_floating_point()
    }
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    listed = ", ".join(f"{name} {tuple(part.shape)}" for name, part in tensors.items()) or "none"
    raise PipelineError(
        f"criterion={criterion}: the model gives {type(outputs).__name__} with several tensors or none ({listed}), and "
        "none is called logits: choose one in a criterion of your own (criterion._target_=his_package.his_loss)."
    )


def _parts(outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, Mapping):
        return {str(name): part for name, part in outputs.items()}
    if isinstance(outputs, tuple | list):
        names = getattr(outputs, "_fields", range(len(outputs)))
        return dict(zip(map(str, names), outputs, strict=True))
    return dict(vars(outputs)) if hasattr(outputs, "__dict__") else {}
