"""What a matrix, or a spectrum, is of: the attributes that files of one experiment and checkpoint share."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from pipeline.experiment import MatrixSpec
from pipeline.matrix import MATRICES
from pipeline.objective import Params, Problem
from pipeline.strategy import STRATEGIES, WITHOUT_MATRIX
from pipeline.validation import name_of


def identity_of(problem: Problem, spec: MatrixSpec, params: Params, step: int) -> dict[str, Any]:
    """The attributes, by their names in a shard. params: the weights at that step of training."""
    return {
        "strategy": name_of(spec.strategy, {**STRATEGIES, **WITHOUT_MATRIX}),
        "matrix": name_of(spec.matrix, MATRICES),
        "reduction": str(getattr(problem.criterion, "reduction", "mean")),
        "config_hash": spec.hash(),
        "train_hash": problem.hashes["train_hash"],
        "blocks": spec.blocks.value,
        "step": step,
        "weights_hash": _hash(params),
        "torch_version": str(torch.__version__),
    }


def _hash(params: Params) -> str:
    """16 hexadecimal digits of the SHA-256 of the weights: two files are of one checkpoint if these agree."""
    digest = hashlib.sha256()
    for value in params.values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
