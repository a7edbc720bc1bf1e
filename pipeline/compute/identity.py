"""What a matrix, or a spectrum, is of: the attributes that files of one experiment and checkpoint share."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from pipeline.compute.batch_terms import reduction_of
from pipeline.experiment import MatrixSpec
from pipeline.matrix import MATRICES
from pipeline.objective import Batch, Objective, Params, Problem
from pipeline.strategy import STRATEGIES, WITHOUT_MATRIX
from pipeline.validation import name_of


def identity_of(
    problem: Problem, spec: MatrixSpec, at: tuple[Objective, Params], step: int, first: Batch
) -> dict[str, Any]:
    """The attributes, by their names in a shard. at: the loss and the weights at that step. first: batch."""
    return {
        "strategy": name_of(spec.strategy, {**STRATEGIES, **WITHOUT_MATRIX}),
        "matrix": name_of(spec.matrix, MATRICES),
        "reduction": reduction_of(*at, first),
        "config_hash": spec.hash(),
        "train_hash": problem.hashes["train_hash"],
        "blocks": spec.blocks.value,
        "step": step,
        "weights_hash": _hash(at[1]),
        "torch_version": str(torch.__version__),
    }


def _hash(params: Params) -> str:
    """16 hexadecimal digits of the SHA-256 of the weights: two files are of one checkpoint if these agree."""
    digest = hashlib.sha256()
    for value in params.values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
