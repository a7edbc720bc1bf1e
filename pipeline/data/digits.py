from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.samples import Samples
from pipeline.data.split import SplitDataset


@dataclass(frozen=True, kw_only=True)
class Digits(SplitDataset):
    """Handwritten digits: the 1,797 gray images of 8 × 8 pixels that come with scikit-learn, labels 0 to 9.

    Pixels are scaled from 0..16 to 0..1, float32.
    Source: Alpaydin & Kaynak 1998, doi:10.24432/C50P49 (the test half).
    """

    input_shape: Sequence[int] | None = (1, 8, 8)

    def load(self) -> Samples:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        return self.split((images / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels.astype(np.int64))
