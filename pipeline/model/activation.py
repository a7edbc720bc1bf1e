from __future__ import annotations

from torch import nn

from pipeline.validation import check_choice

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
}


def activation_named(name: str) -> nn.Module:
    """A new layer of the activation.

    Raises:
        PipelineError: the name is not one of `ACTIVATIONS`.
    """
    check_choice("model.activation", name, tuple(ACTIVATIONS))
    return ACTIVATIONS[name]()
