"""Criteria with their targets, and the forms in which models hand over what criteria get."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.criterion import BinaryCrossEntropy, CrossEntropy, SquaredError


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


@dataclass
class Record:
    logits: Tensor
    hidden: Tensor | None = None


class ModelOutput(OrderedDict[str, Any]):
    """As transformers' is: entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda y, h: y,
    "tuple": lambda y, h: (y, h),
    "list": lambda y, h: [y, h],
    "dict": lambda y, h: {"logits": y, "hidden": h},
    "named": Pair,
    "dataclass": Record,
    "model_output": lambda y, h: ModelOutput(logits=y, hidden=h),
    "with_none": lambda y, h: ModelOutput(logits=y, past=None, hidden=h),
    "with_numbers": lambda y, h: {"logits": y, "length": len(y), "scale": 0.5, "name": "net"},
    "with_integers": lambda y, h: {"logits": y, "ids": torch.arange(len(y)), "best": y.detach().argmax(-1)},
    "nested": lambda y, h: {"outputs": ({"logits": y}, [h, None])},
    "shared": lambda y, h: (y, y),
    "detached": lambda y, h: {"logits": y, "hidden": h.detach()},
}


def main_of(outputs: Any) -> Tensor:
    """The logits among the outputs."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Record | Pair):
        return outputs.logits
    if isinstance(outputs, dict):
        return outputs["logits"] if "logits" in outputs else main_of(outputs["outputs"])
    return main_of(outputs[0])


class OfLogits(nn.Module):
    """A criterion of the logits, for outputs of any form."""

    def __init__(self, criterion: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        return self.criterion(main_of(outputs), targets)


class LabelLoss(nn.CrossEntropyLoss):
    """Cross-entropy that finds the logits by itself, as a training loop's own subclass does."""

    def forward(self, outputs: Any, targets: Tensor) -> Tensor:
        return super().forward(main_of(outputs), targets)


@dataclass(frozen=True)
class Loss:
    """make(reduction, model) gives the criterion; targets(outputs, n) what goes with outputs of that shape.

    likelihood: whether it is the negative log-likelihood of labels or values, with outputs as natural parameters, so
    that its Fisher matrix is the GGN. by_samples: the mean or the sum of the losses of its samples. of_outputs: a
    function of outputs and targets alone. classes: outputs are (N, C, ...), C at least 2.
    """

    make: Callable[[str, nn.Module], Callable[[Any, Any], Tensor]]
    targets: Callable[[Tensor], Any]
    likelihood: bool = False
    of_outputs: bool = True
    classes: bool = False
    weight: float = 1.0


def values(y: Tensor) -> Tensor:
    return torch.randn(y.shape)


def labels(y: Tensor) -> Tensor:
    return torch.randint(y.shape[1], (len(y), *y.shape[2:]))


def ignored(y: Tensor) -> Tensor:
    found = labels(y)
    found.view(-1)[1::2] = -100
    return found


def shares(y: Tensor) -> Tensor:
    return torch.rand(y.shape).softmax(1)


def reduced(each: Tensor, reduction: str) -> Tensor:
    """Of losses of samples, (N, ...)."""
    total = each.flatten(1).sum(1) if each.ndim > 1 else each
    return total.mean() if reduction == "mean" else total.sum()


def paired(outputs: Tensor, targets: Any) -> Tensor:
    n = len(outputs) // 2 * 2
    apart = (outputs[0:n:2] - outputs[1:n:2]).flatten(1).square().sum(1)
    return (apart - 1).square().sum() + 0.1 * outputs.square().sum()


def contrastive(outputs: Tensor, targets: Any) -> Tensor:
    z = F.normalize(outputs.flatten(1) + 0.1, dim=1)
    return F.cross_entropy(z @ z.roll(1, 0).T / 0.5, torch.arange(len(z)))


def ranked(outputs: Tensor, targets: Any) -> Tensor:
    return -outputs.flatten(1).sum(1).log_softmax(0)[0]


def spread(outputs: Tensor, targets: Any) -> Tensor:
    return (outputs - targets).square().mean() + outputs.var(0, correction=0).sum()


def neighboring(outputs: Tensor, targets: Any) -> Tensor:
    return (outputs[1:] - outputs[:-1]).square().sum() + outputs[0].cos().sum()


def masked(outputs: Tensor, targets: Any) -> Tensor:
    wanted, keep = targets
    return ((outputs - wanted).square() * keep).sum() / keep.sum()


def weighted(reduction: str) -> Callable[[Tensor, Any], Tensor]:
    return lambda outputs, targets: reduced(
        (outputs - targets["values"]).square().flatten(1).sum(1) * targets["weights"], reduction
    )


def gaussian(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean and log-scale are the two halves of the outputs, if there are two."""
    flat, wanted = outputs.flatten(1), targets.flatten(1)
    half = max(1, flat.shape[1] // 2)
    mean, log = flat[:, :half], flat[:, half:].mean(1, keepdim=True) if flat.shape[1] > 1 else flat
    return (0.5 * (mean - wanted[:, :half]).square() * (-2 * log).exp() + log).mean()


def penalised(power: str) -> Callable[[str, nn.Module], Callable[[Any, Any], Tensor]]:
    def make(reduction: str, model: nn.Module) -> Callable[[Any, Any], Tensor]:
        def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
            terms = {
                "squares": lambda p: p.square().sum(),
                "smooth": lambda p: (p.square() + 0.1).sqrt().sum(),
                "quartic": lambda p: (p**4).sum(),
            }
            weights = [p for p in model.parameters() if p.requires_grad]
            return F.mse_loss(outputs, targets, reduction=reduction) + 0.1 * sum(map(terms[power], weights))

        return criterion

    return make


LOSSES: dict[str, Loss] = {
    "mse": Loss(lambda r, m: nn.MSELoss(reduction=r), values, likelihood=True, weight=3),
    "mse_function": Loss(lambda r, m: lambda f, y: F.mse_loss(f, y, reduction=r), values),
    "squared_error": Loss(lambda r, m: SquaredError(r), values, likelihood=True),
    "cross_entropy": Loss(
        lambda r, m: nn.CrossEntropyLoss(reduction=r), labels, likelihood=True, classes=True, weight=4
    ),
    "own_cross_entropy": Loss(lambda r, m: CrossEntropy(r), labels, likelihood=True, classes=True),
    "label_loss": Loss(lambda r, m: LabelLoss(reduction=r), labels, likelihood=True, classes=True),
    "ignored": Loss(
        lambda r, m: nn.CrossEntropyLoss(reduction=r), ignored, likelihood=True, classes=True, weight=2
    ),
    "class_weights": Loss(
        lambda r, m: nn.CrossEntropyLoss(torch.tensor([0.5, 2.0, 1.0, 1.5, 0.7, 1.2])[: _classes(m)], reduction=r),
        labels,
        classes=True,
    ),
    "smoothed": Loss(lambda r, m: nn.CrossEntropyLoss(label_smoothing=0.1, reduction=r), labels, classes=True),
    "shares": Loss(lambda r, m: nn.CrossEntropyLoss(reduction=r), shares, likelihood=True, classes=True),
    "nll": Loss(lambda r, m: lambda f, y: F.nll_loss(f.log_softmax(1), y, reduction=r), labels, classes=True),
    "bce": Loss(
        lambda r, m: nn.BCEWithLogitsLoss(reduction=r), lambda y: torch.rand(y.shape), likelihood=True, weight=2
    ),
    "bce_weighted": Loss(
        lambda r, m: nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0), reduction=r), lambda y: torch.rand(y.shape)
    ),
    "own_bce": Loss(
        lambda r, m: BinaryCrossEntropy(r), lambda y: torch.randint(2, y.shape), likelihood=True
    ),
    "huber": Loss(lambda r, m: nn.HuberLoss(reduction=r, delta=0.7), values),
    "smooth_l1": Loss(lambda r, m: nn.SmoothL1Loss(reduction=r, beta=0.4), values),
    "poisson": Loss(lambda r, m: nn.PoissonNLLLoss(reduction=r), lambda y: torch.poisson(torch.ones(y.shape))),
    "log_cosh": Loss(lambda r, m: lambda f, y: reduced((f - y).cosh().log(), r), values),
    "no_targets": Loss(lambda r, m: lambda f, _: f.cos().mean(), lambda y: None),
    "gaussian": Loss(lambda r, m: gaussian, values),
    "kl": Loss(
        lambda r, m: lambda f, y: F.kl_div(f.log_softmax(1), y, reduction="batchmean"), shares, classes=True
    ),
    "masked": Loss(lambda r, m: masked, lambda y: (torch.randn(y.shape), (torch.rand(y.shape) < 0.7).double() + 0.1)),
    "weights_of_samples": Loss(
        lambda r, m: weighted(r), lambda y: {"values": torch.randn(y.shape), "weights": 0.5 + torch.rand(len(y))}
    ),
    "pairs": Loss(lambda r, m: paired, lambda y: None),
    "contrastive": Loss(lambda r, m: contrastive, lambda y: None),
    "ranked": Loss(lambda r, m: ranked, lambda y: None),
    "spread": Loss(lambda r, m: spread, values),
    "neighboring": Loss(lambda r, m: neighboring, lambda y: None),
    "penalty_squares": Loss(penalised("squares"), values, of_outputs=False),
    "penalty_smooth": Loss(penalised("smooth"), values, of_outputs=False),
    "penalty_quartic": Loss(penalised("quartic"), values, of_outputs=False),
}  # fmt: skip


def _classes(model: nn.Module) -> int:
    found: int = model.num_classes
    return found
