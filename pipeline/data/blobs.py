from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.samples import Samples
from pipeline.data.split import SplitDataset
from pipeline.validation import check_count, check_number


@dataclass(frozen=True, kw_only=True)
class Blobs(SplitDataset):
    """Gaussian clusters: sample n is class n mod C's center plus standard normal noise, float32; C labels.

    separation: distance of two centers, in standard deviations of the noise. Exact where C ≤ dimension (the centers
        are then orthogonal); with more clusters than dimensions directions are random, and it holds on average.
    num_samples: training samples; as many test samples are drawn on top as `test_fraction` asks for.
    split_seed: also of the centers and the noise.
    """

    num_clusters: int = 10
    dimension: int = 20
    separation: float = 6.0
    num_samples: int | None = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("data.num_clusters", self.num_clusters, minimum=2)
        check_count("data.dimension", self.dimension)
        check_number("data.separation", self.separation, minimum=0)
        check_count("data.num_samples", self.num_samples)

    def load(self) -> Samples:
        assert self.num_samples is not None
        rng = np.random.default_rng(self.split_seed)
        centers = self.centers(rng)
        # rounded up, so that never fewer than num_samples are left for training
        num_drawn = int(np.ceil((self.num_samples + 0.5) / (1 - self.test_fraction)))
        labels = np.arange(num_drawn) % self.num_clusters
        noise = rng.standard_normal((num_drawn, self.dimension))
        return self.split((centers[labels] + noise).astype(np.float32), labels.astype(np.int64))

    def centers(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """One center a row, (C, dimension), each at a distance of separation / √2 from the origin."""
        directions = rng.standard_normal((self.num_clusters, self.dimension))
        if self.num_clusters <= self.dimension:
            directions = np.linalg.qr(directions.T)[0].T
        lengths = np.linalg.norm(directions, axis=1, keepdims=True)
        return np.asarray(directions * (self.separation / np.sqrt(2) / lengths))
