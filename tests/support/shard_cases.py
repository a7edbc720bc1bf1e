"""Shards of known matrices, written without a model, and what they are in NumPy."""

from dataclasses import dataclass

import numpy as np

from pipeline.layout import Layout
from pipeline.shards import write_shard

# Offsets 0, 21, 24, 24, 25, 37: parameters begin and end inside tiles, one is a scalar, one is empty.
LAYOUT = Layout(
    ("first.weight", "first.bias", "nothing", "scale", "second.weight"), ((7, 3), (3,), (0,), (), (4, 3))
)
NUM_ROWS = 37
NUM_SAMPLES = (16, 16, 5)
ATTRS = {
    "matrix": "hessian",
    "strategy": "hvp",
    "config_hash": "0123456789abcdef",
    "weights_hash": "fedcba9876543210",
    "step": 120,
}


@dataclass
class Known:
    """Matrices (B, P, P), gradients (B, P) and losses (B,) of batches of NUM_SAMPLES samples."""

    matrices: np.ndarray
    gradients: np.ndarray
    losses: np.ndarray
    reduction: str

    @property
    def shares(self):
        return np.array(NUM_SAMPLES) / sum(NUM_SAMPLES)

    @property
    def estimates(self):
        """Each batch's estimate of the matrix of all samples, (B, P, P)."""
        scale = 1 / self.shares if self.reduction == "sum" else np.ones(len(NUM_SAMPLES))
        return self.matrices * scale[:, None, None]

    def pooled(self, values):
        """By hand: a sum over samples adds up; a mean over samples is weighted by the samples."""
        return sum(values) if self.reduction == "sum" else np.tensordot(self.shares, values, 1)

    @property
    def mean(self):
        return self.pooled(self.matrices)


def known(reduction="mean", dtype="float64", dead=()):
    """Matrices with a few outliers of different sizes, much in common, and both signs; rows `dead` are zero."""
    rng = np.random.default_rng(3)
    common = np.linalg.qr(rng.normal(size=(NUM_ROWS, NUM_ROWS)))[0]
    values = np.concatenate([[20.0, 12.0, 7.0, 4.0], np.linspace(-1.5, 1.0, NUM_ROWS - 4)])
    matrices = []
    for _ in NUM_SAMPLES:
        noise = rng.normal(size=(NUM_ROWS, NUM_ROWS))
        matrix = common @ np.diag(values) @ common.T + 0.1 * (noise + noise.T)
        matrix[list(dead)] = matrix[:, list(dead)] = 0
        matrices.append((matrix + matrix.T) / 2)
    matrices = np.array(matrices).astype(dtype)
    gradients = rng.normal(size=(len(NUM_SAMPLES), NUM_ROWS)).astype(dtype)
    return Known(matrices, gradients, rng.uniform(1, 2, len(NUM_SAMPLES)), reduction)


def write(folder, problem, tile=16, **attrs):
    """Shard files in a run folder; keyword arguments replace attributes of all of them."""
    for index, num_samples in enumerate(NUM_SAMPLES):
        write_one(folder, problem, index, tile, **{"num_samples": num_samples, **attrs})
    return folder


def write_one(folder, problem, index, tile=16, **attrs):
    matrix, gradient = problem.matrices[index], problem.gradients[index]
    own = {
        "batch_index": index,
        "num_batches": len(NUM_SAMPLES),
        "reduction": problem.reduction,
        "loss": problem.losses[index],
        "gradient_norm": float(np.linalg.norm(gradient)),
    }
    path = folder.shard(ATTRS["step"], index)
    with write_shard(path, LAYOUT, str(matrix.dtype), {**ATTRS, **own, **attrs}, gradient, tile) as writer:
        writer.add(slice(0, NUM_ROWS), slice(0, NUM_ROWS), matrix)
    return path
