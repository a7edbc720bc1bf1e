from __future__ import annotations

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.data.samples import Samples
from pipeline.data.split import SplitDataset
from pipeline.validation import check_count


@dataclass(frozen=True, kw_only=True)
class Digits(SplitDataset):
    """Handwritten digits: the 1,797 gray images of 8 × 8 pixels that come with scikit-learn, labels 0 to 9.

    Pixels are scaled from 0..16 to 0..1, float32.
    Source: Alpaydin & Kaynak 1998, doi:10.24432/C50P49 (the test half).

    size: pixels each way; other than 8, the images are interpolated linearly. 28 gives inputs as wide as MNIST's.
    """

    size: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("data.size", self.size)

    def load(self) -> Samples:
        rows = _rows()
        pixels, labels = rows[:, :64] / 16, rows[:, 64]
        images = torch.from_numpy(pixels.astype(np.float32)).reshape(-1, 1, 8, 8)
        if self.size != 8:
            images = nn.functional.interpolate(images, size=(self.size, self.size), mode="bilinear")
        return self.split(images.numpy(), labels.astype(np.int64))


def _rows() -> NDArray[np.float64]:
    """64 pixels and the label of each image (1797, 65), read from the file that scikit-learn's `load_digits` reads.

    The import of scikit-learn takes a second; where the file is not where it was, it is asked after all.
    """
    found = find_spec("sklearn")  # imports nothing
    for place in (found.submodule_search_locations or ()) if found else ():
        path = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    return np.column_stack(load_digits(return_X_y=True))
