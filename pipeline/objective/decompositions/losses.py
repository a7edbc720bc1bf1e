"""Losses spelled out; each equals the function of the same name in `torch.nn.functional` to rounding."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction
from torch.nn.utils.rnn import pad_sequence

IMPOSSIBLE = (
    -1e30
)  # the logarithm of a probability of zero, but finite, so that differences of two are defined


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """PyTorch's fails in forward mode where one argument has no tangent: it writes into a shared zero (2.11, 2.13)."""
    _compare("mse_loss", input, target)
    squares = (input - target).square()
    if weight is None:
        return _reduced(squares, reduction, size_average, reduce)
    total = squares * weight
    mean = _name(reduction, size_average, reduce) == "mean"
    return total.sum() / weight.sum() if mean else _reduced(total, reduction, size_average, reduce)


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    _compare("huber_loss", input, target)
    distance = (input - target).abs()
    losses = torch.where(distance < delta, 0.5 * distance.square(), delta * (distance - 0.5 * delta))
    return _reduced(losses if weight is None else losses * weight, reduction)


def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    return _reduced(F.softplus(-target * input), reduction, size_average, reduce)


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """(1/C) Σ_{c ≠ y} w_y max(0, margin - f_y + f_c)^p."""
    scores, labels = torch.atleast_2d(input), target.reshape(-1, 1)
    terms = F.relu(margin - scores.gather(1, labels) + scores) ** p
    terms = terms if weight is None else terms * weight[labels]
    others = torch.arange(scores.shape[1], device=scores.device) != labels
    losses = torch.where(others, terms, 0).sum(1) / scores.shape[1]
    return _reduced(losses if input.ndim > 1 else losses[0], reduction, size_average, reduce)


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """(1/C) Σ max(0, 1 - f_j + f_i) over labels j, which end at the first -1, and all i that are none of them."""
    scores, labels = torch.atleast_2d(input), torch.atleast_2d(target)
    listed = (labels < 0).cumsum(1) == 0
    chosen = scores.gather(1, labels.clamp(min=0))
    is_label = torch.zeros_like(scores).scatter_add(1, labels.clamp(min=0), listed.to(scores)) > 0
    terms = F.relu(1 - chosen[:, :, None] + scores[:, None, :])
    counted = listed[:, :, None] & ~is_label[:, None, :]
    losses = torch.where(counted, terms, 0).sum((1, 2)) / scores.shape[1]
    return _reduced(losses if input.ndim > 1 else losses[0], reduction, size_average, reduce)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Minus the log-probability of all alignments, by the forward recursion of Graves et al. 2006.

    log_probs (T, N, C) or (T, C); targets (N, S) or all of them in a row.
    """
    single = log_probs.ndim == 2
    log_probs = log_probs[:, None] if single else log_probs
    lengths, sizes = (
        torch.as_tensor(x, device=log_probs.device).reshape(-1) for x in (input_lengths, target_lengths)
    )
    labels = _padded(targets, sizes).to(log_probs.device)
    extended = torch.full((len(labels), 2 * labels.shape[1] + 1), blank, device=labels.device)  # (N, 2S + 1)
    extended[:, 1::2] = labels
    before = F.pad(extended, (2, 0), value=blank)[:, :-2]
    may_skip = (extended != blank) & (extended != before)
    places = torch.arange(extended.shape[1], device=labels.device)
    alphas = torch.where(places < 2, log_probs[0].gather(1, extended), IMPOSSIBLE)
    for t in range(1, len(log_probs)):
        one = F.pad(alphas, (1, 0), value=IMPOSSIBLE)[:, :-1]
        two = torch.where(may_skip, F.pad(alphas, (2, 0), value=IMPOSSIBLE)[:, :-2], IMPOSSIBLE)
        paths = torch.stack([alphas, one, two]).logsumexp(0).clamp(min=IMPOSSIBLE)
        alphas = torch.where((t < lengths)[:, None], log_probs[t].gather(1, extended) + paths, alphas)
    last = alphas.gather(1, 2 * sizes[:, None])
    other = torch.where(
        sizes[:, None] > 0, alphas.gather(1, (2 * sizes[:, None] - 1).clamp(min=0)), IMPOSSIBLE
    )
    losses = -torch.cat([last, other], 1).logsumexp(1)
    impossible = losses > -IMPOSSIBLE / 2
    losses = losses.masked_fill(impossible, 0 if zero_infinity else torch.inf)
    if reduction == "mean":
        return (losses / sizes.clamp(min=1)).mean()
    return losses.sum() if reduction == "sum" else losses[0] if single else losses


def _padded(targets: Tensor, sizes: Tensor) -> Tensor:
    """Targets as (N, S), whatever stands behind a target's own labels."""
    if targets.ndim == 2:
        return targets.long()
    parts: list[Tensor] = list(targets.split(sizes.tolist()))
    return pad_sequence(parts, batch_first=True).long()


def _compare(name: str, input: Tensor, target: Tensor) -> None:
    if input.shape != target.shape:
        warnings.warn(
            f"{name}: outputs {tuple(input.shape)} and targets {tuple(target.shape)} are broadcast.",
            stacklevel=4,
        )


def _reduced(
    losses: Tensor, reduction: str, size_average: bool | None = None, reduce: bool | None = None
) -> Tensor:
    name = _name(reduction, size_average, reduce)
    if name not in {"mean", "sum", "none"}:
        raise ValueError(f"{name!r} is not a valid value for reduction: choose mean, sum or none")
    return losses.mean() if name == "mean" else losses.sum() if name == "sum" else losses


def _name(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """The reduction, which two older options override."""
    if size_average is None and reduce is None:
        return reduction
    return _reduction.legacy_get_string(size_average, reduce)


DECOMPOSITIONS: dict[Any, Callable[..., Tensor]] = {
    F.mse_loss: mse_loss,
    F.huber_loss: huber_loss,
    F.soft_margin_loss: soft_margin_loss,
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
    F.ctc_loss: ctc_loss,
}
