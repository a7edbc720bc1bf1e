"""Which loss: a function of the outputs of all samples of a batch and their targets, one number."""

from typing import Protocol

from torch import Tensor

from pipeline.criterion.bce import BinaryCrossEntropy
from pipeline.criterion.cross_entropy import CrossEntropy
from pipeline.criterion.squared_error import SquaredError


class Criterion(Protocol):
    """A loss of a batch, 0-d.

    reduction: "mean" or "sum" over its samples. It says how losses, gradients and Hessians of batches combine:
        weighted by their numbers of samples, or added.
    """

    @property
    def reduction(self) -> str: ...

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor: ...
