"""The Gauss-Newton matrix of cross-entropy, taken apart by classes and labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.shards import Array


class ClassParts(NamedTuple):
    """GGN = between + within, (P, P) each.

    between: of the means over the samples of a class, for each label. between_classes: of their means over the labels
    other than the class; cross_classes: what these labels differ from that. within: of samples from their mean.
    probabilities: (N, C) of the net. labels: (N,).
    """

    between: Tensor
    between_classes: Tensor
    cross_classes: Tensor
    within: Tensor
    probabilities: Array
    labels: Array


def class_parts(net: nn.Module, inputs: Tensor, targets: Tensor) -> ClassParts:
    """Papyan's decomposition: with g_nk the gradient for label k, GGN = Σ_n Σ_k (p_nk / N) g_nk g_nkᵀ.

    Its weighted means over the samples n of class c are g_ck, with the weight w_ck. between = Σ w_ck g_ck g_ckᵀ over
    all c and k; Papyan has the terms k = c apart. Cost: N·C backward passes, and N·C·P numbers.
    """
    outputs = net(inputs)
    N, C = outputs.shape
    p = outputs.detach().softmax(1)
    params = {name: each.detach() for name, each in net.named_parameters()}
    jacobians = torch.func.jacrev(lambda new: torch.func.functional_call(net, new, (inputs,)))(params)
    J = torch.cat([each.reshape(N, C, -1) for each in jacobians.values()], dim=2)
    one = torch.eye(C, dtype=p.dtype)
    g = torch.einsum("nkc,ncp->nkp", p[:, None] - one, J)
    classes = one[targets]  # (N, C), the class of each sample
    w = classes.T @ p / N
    means = torch.einsum("nc,nk,nkp->ckp", classes, p / N, g) / w[..., None]
    off = w * (1 - one)
    centers = torch.einsum("ck,ckp->cp", off, means) / off.sum(1, keepdim=True)
    rest = g - means[targets]
    return ClassParts(
        _moment(w, means),
        _moment(off.sum(1, keepdim=True), centers[:, None]),
        _moment(off, means - centers[:, None]),
        _moment(p / N, rest),
        p.numpy(),
        targets.numpy(),
    )


def descending(symmetric: Tensor) -> Array:
    """All eigenvalues, the largest first."""
    values: Array = np.linalg.eigvalsh(symmetric.numpy())[::-1]
    return values


def _moment(weights: Tensor, vectors: Tensor) -> Tensor:
    """Σ w_ab v_ab v_abᵀ of vectors (a, b, P)."""
    scaled = (weights.sqrt()[..., None] * vectors).flatten(0, 1)
    return scaled.T @ scaled
