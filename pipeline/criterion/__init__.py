"""Which loss: a function of the outputs of all samples of a batch and their targets, one number."""

from typing import Any, Protocol

from torch import Tensor

from pipeline.criterion.bce import BinaryCrossEntropy
from pipeline.criterion.cross_entropy import CrossEntropy
from pipeline.criterion.next_token import NextToken
from pipeline.criterion.squared_error import SquaredError


class Criterion(Protocol):
    """A loss of a batch, 0-d.

    reduction: "mean" or "sum" over its samples. It says how losses, gradients and Hessians of batches combine:
        weighted by their numbers of samples (or by `num_terms(targets)`, where there is such a method), or added.

    A method `scores_and_labels(outputs, targets)`, where there is one, gives the scores (N, C, ...) and labels (N, ...)
    of which the accuracy is taken.
    """

    @property
    def reduction(self) -> str: ...

    def __call__(self, outputs: Any, targets: Any) -> Tensor: ...
