"""What a net of the zoo is: a model as its library makes it, its loss, and data as its users hand them over."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def as_usual(model: nn.Module, inputs: Any) -> Any:
    """A mapping gives keyword arguments, a tuple positional ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


class Problem(NamedTuple):
    """call: how users of the plain module run it on these inputs. parameters: the selection to differentiate by."""

    model: nn.Module
    criterion: Callable[[Any, Any], Tensor]
    inputs: Any
    targets: Any
    call: Callable[[nn.Module, Any], Any] = as_usual
    parameters: Any = None


@dataclass(frozen=True, eq=False)
class Net:
    """A lazy case: nothing is imported or built before `build`.

    make: gives the problem for a number of samples and a width. requires: the module that must be installed. width: of
    the tests; wide: of the benchmark. samples: whether the loss is the "mean" or the "sum" of the losses of samples;
    None where it is neither, so that there is no empirical Fisher matrix. draws_targets: whether the criterion says how
    targets are drawn, so that there is a Fisher matrix. mixes: whether outputs depend on other samples too, so that the
    empirical Fisher matrix may be refused. castable: whether inputs can be taken to another dtype. refused: a pattern,
    where there is no Hessian.
    """

    id: str
    make: Callable[[int, int], Problem]
    requires: str | None = None
    width: int = 4
    wide: int = 8
    samples: str | None = None
    draws_targets: bool = False
    refused: str | None = None
    num_samples: int = 16
    mixes: bool = False
    castable: bool = True

    @property
    def missing(self) -> str | None:
        """The library that is not installed."""
        return self.requires if self.requires and find_spec(self.requires) is None else None

    def build(self, num_samples: int = 5, wide: bool = False) -> Problem:
        """The problem in float32, the same each time, its weights away from zeros and ones."""
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(self.id.encode()))
            problem = self.make(num_samples, self.wide if wide else self.width)
            perturb(problem.model)
            return problem


def perturb(model: nn.Module) -> None:
    """Biases, scales and shifts are made 0 and 1: as after training, they are moved away from that."""
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim < 2 or not value.any():
                value.add_(0.1 * torch.randn_like(value))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)


def labels(num_samples: int, num_classes: int, *shape: int) -> Tensor:
    return torch.randint(num_classes, (num_samples, *shape))


def own_loss(outputs: Any, targets: Any) -> Tensor:
    """The loss that a model returns with its outputs."""
    return outputs.loss
