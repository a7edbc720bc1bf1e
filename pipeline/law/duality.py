"""Duality: the eigenvalues of a P × P Gauss-Newton matrix are those of an NC × NC one; softmax regression in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.law.nets import ROUNDING, agree, matrix, normal, perceptron
from pipeline.operator import gram_spectrum
from pipeline.results import Check, Outcome, Panel, Series
from pipeline.shards import Array
from pipeline.system import RunFolder
from pipeline.validation import check_count


@dataclass(frozen=True)
class Duality:
    """Nonzero eigenvalues of JᵀΛJ against those of √Λ J Jᵀ √Λ, and H of softmax regression in closed form.

    num_samples, dimension, hidden_size, num_classes: of Gaussian samples with random labels, and of a tanh net.
    """

    TITLE: ClassVar[str] = "Duality of the Gauss-Newton matrix, and softmax regression"
    SOURCE: ClassVar[str] = (
        "Dangel, Tatzel and Hennig 2022, arXiv:2106.02624; Böhning 1992, doi:10.1007/BF00048682"
    )

    seed: int
    num_samples: int = 40
    dimension: int = 12
    hidden_size: int = 24
    num_classes: int = 10

    def __post_init__(self) -> None:
        for name in ("num_samples", "dimension", "hidden_size", "num_classes"):
            check_count(f"law.{name}", getattr(self, name), minimum=2)

    def measure(self, folder: RunFolder) -> Outcome:
        """Cost: two P × P matrices and their eigenvalues, N·C gradients."""
        torch.manual_seed(self.seed)
        N, d, C = self.num_samples, self.dimension, self.num_classes
        inputs, labels = normal(N, d), torch.randint(C, (N,))
        net, criterion = perceptron([d, self.hidden_size, C], nn.Tanh()), nn.CrossEntropyLoss()
        ggn = _descending(matrix(net, criterion, inputs, labels, "ggn"))
        dual = _descending(dual_matrix(net, inputs))
        gram = np.zeros(len(dual))
        found = gram_spectrum(net, criterion, inputs, labels).eigenvalues
        gram[: len(found)] = found  # it leaves out those that are zero in any case
        size, rank = min(len(ggn), len(dual)), min(N * (C - 1), len(ggn))
        above = float((ggn > ROUNDING * ggn[0]).sum())
        regression = perceptron([d, C], bias=False)
        closed = softmax_regression(next(regression.parameters()).detach(), inputs)
        H = matrix(regression, criterion, inputs, labels)
        checks = [
            agree("dual_eigenvalues", "eigenvalues of JᵀΛJ and √ΛJJᵀ√Λ", ggn[:size], dual[:size], dual[0]),
            agree(
                "gram_eigenvalues", "eigenvalues of JᵀΛJ and gram_spectrum", ggn[:size], gram[:size], dual[0]
            ),
            Check("rank", "eigenvalues that are not zero, at most N (C − 1)", above, "≤", float(rank)),
            agree("softmax_hessian", "H of softmax regression", H, closed, float(closed.abs().max())),
        ]
        sentence = (
            f"Of {len(ggn):,} eigenvalues of the Gauss-Newton matrix {above:,.0f} are not zero, "
            f"and they are those of the {len(dual)} × {len(dual)} matrix on the other side."
        )
        return Outcome(sentence, checks, [_panel(ggn[:rank], dual[:rank])])


def dual_matrix(net: nn.Module, inputs: Tensor) -> Tensor:
    """√Λ J Jᵀ √Λ of the mean cross-entropy, (NC, NC), from one plain backward pass for each output of each sample.

    Λ = (diag(p) − ppᵀ) / N for each sample; its root comes from its eigenvectors.
    """
    outputs, weights = net(inputs), tuple(net.parameters())
    gradients = [torch.autograd.grad(output, weights, retain_graph=True) for output in outputs.flatten()]
    J = torch.stack([torch.cat([each.flatten() for each in row]) for row in gradients])
    p = outputs.detach().softmax(1)
    values, vectors = torch.linalg.eigh((torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / len(p))
    roots = vectors * values.clamp(min=0).sqrt()[:, None, :] @ vectors.mT  # (N, C, C)
    rows = (roots @ J.reshape(*p.shape, -1)).reshape(p.numel(), -1)
    dual: Tensor = rows @ rows.T
    return dual


def softmax_regression(weight: Tensor, inputs: Tensor) -> Tensor:
    """H = (1/N) Σ_n (diag(p_n) − p_n p_nᵀ) ⊗ x_n x_nᵀ, the weights (C, d) flattened row-major."""
    p = (inputs @ weight.T).softmax(1)
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    H = torch.einsum("nij,np,nq->ipjq", blocks, inputs, inputs) / len(inputs)
    return H.reshape(weight.numel(), -1)


def _descending(symmetric: Tensor) -> Array:
    values: Array = torch.linalg.eigvalsh(symmetric).flip(0).numpy()
    return values


def _panel(ggn: Array, dual: Array) -> Panel:
    ranks = np.arange(1, len(ggn) + 1)
    return Panel(
        "Eigenvalues of both matrices",
        "rank",
        "eigenvalue",
        [
            Series("JᵀΛJ: a row for each weight", ranks, ggn, "points"),
            Series("√ΛJJᵀ√Λ: a row for each output of each sample", ranks, dual, "line"),
        ],
        "The eigenvalues that are not zero: points of the P × P matrix lie on the line of the NC × NC one.",
        "y",
    )
