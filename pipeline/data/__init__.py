"""The samples that a model is trained on and differentiated on."""

from typing import Any, Protocol

from pipeline.data.arrays import Arrays
from pipeline.data.blobs import Blobs
from pipeline.data.digits import Digits
from pipeline.data.own import Own, samples_of
from pipeline.data.samples import Samples, as_samples


class Dataset(Protocol):
    """A choice of samples.

    batch_size: samples of one batch whose Hessian is taken; null takes all of them as one batch.
    `load` returns `Samples`, or anything that `as_samples` turns into them.
    """

    batch_size: int | None

    def load(self) -> Any: ...
