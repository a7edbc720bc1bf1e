"""Symmetric matrices whose eigenvalues are known before anything is computed."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Stored:
    """A matrix in memory that counts passes, as a file would be read."""

    matrix: np.ndarray
    num_passes: int = field(default=0)

    @property
    def num_rows(self):
        return len(self.matrix)

    def dense(self):
        return self.matrix.copy()

    def matvec(self, vectors):
        self.num_passes += 1
        return self.matrix @ vectors


@dataclass
class Laplacian:
    """Second differences with zero ends; eigenvalues 2 - 2 cos(j pi / (P + 1)), all simple. Never dense."""

    num_rows: int
    num_passes: int = field(default=0)

    def dense(self):
        raise AssertionError("a matrix on disk must not be loaded")

    def matvec(self, vectors):
        self.num_passes += 1
        padded = np.pad(vectors, ((1, 1), (0, 0)))
        return 2 * vectors - padded[:-2] - padded[2:]

    @property
    def eigenvalues(self):
        return 2 - 2 * np.cos(np.arange(1, self.num_rows + 1) * np.pi / (self.num_rows + 1))


def with_spectrum(eigenvalues, seed=0):
    """A full matrix with these eigenvalues: a diagonal one, reflected three times from both sides."""
    matrix = np.diag(np.asarray(eigenvalues, float))
    rng = np.random.default_rng(seed)
    for _ in range(3):
        normal = rng.standard_normal(len(matrix))
        normal /= np.linalg.norm(normal)
        matrix = matrix - 2 * np.outer(normal, normal @ matrix)
        matrix = matrix - 2 * np.outer(matrix @ normal, normal)
    return (matrix + matrix.T) / 2


def like_a_hessian(num_rows, seed=0, num_outliers=10):
    """Ascending: a bulk of both signs over eight decades, and outliers from 3 to 10."""
    rng = np.random.default_rng(seed)
    num_bulk = num_rows - num_outliers
    bulk = np.where(rng.random(num_bulk) < 0.3, -1, 1) * 10 ** rng.uniform(-10, -2, num_bulk)
    return np.sort(np.concatenate([bulk, np.linspace(3, 10, num_outliers)]))


def _spectra():
    rng = np.random.default_rng(7)
    wigner = rng.standard_normal((350, 350))
    return {
        "hessian": like_a_hessian(500),
        "wigner": np.linalg.eigvalsh((wigner + wigner.T) / np.sqrt(700)),
        "low_rank": np.concatenate([np.zeros(296), [1, 2, 3, 4]]),
        "low_rank_indefinite": np.concatenate([[-5, -4], np.zeros(295), [1, 2, 3]]),
        "rank_one_negative": np.concatenate([[-1], np.zeros(99)]),
        "zero": np.zeros(80),
        "multiple": np.repeat([-1.0, 0.5, 2.0, 3.0], [60, 150, 7, 4]),
        "multiple_beyond_a_block": np.repeat([0.0, 1.0], [250, 60]),
        "identity": np.full(90, 3.0),
        "negative_definite": -(np.linspace(1, 9, 200) ** 2),
        "both_signs_alike": np.concatenate([-np.arange(100, 0, -1.0), np.arange(1.0, 101)]),
        "cluster": np.concatenate([np.linspace(-0.1, 0.1, 290), 1 + 1e-9 * np.arange(10)]),
        "one_outlier": np.concatenate([np.linspace(-1e-3, 1e-3, 399), [1e6]]),
        "tiny_scale": 1e-30 * like_a_hessian(300),
        "one_row": np.array([-2.0]),
        "two_rows": np.array([-2.0, 1.0]),
        "fewer_than_asked": np.arange(-3.0, 5.0),
        "as_many_as_asked": np.arange(13.0),
        "fewer_than_a_block": np.arange(17.0),
        "blocks_and_a_bit": np.arange(47.0),
    }


SPECTRA = {name: np.sort(values) for name, values in _spectra().items()}
