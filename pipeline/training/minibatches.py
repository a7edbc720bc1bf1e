"""The order of minibatches: a function of seed and epoch alone, so that a training can go on at any step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.objective import Batch


def minibatches(train: Batch, batch_size: int | None, seed: int, first: int) -> Iterator[Batch]:
    """Minibatches number first, first + 1, ... of an endless row of epochs.

    Each epoch is a new permutation of all samples, cut every `batch_size`; what is left over is a smaller minibatch.
    Null, or more than there are samples, gives all samples in their own order.
    """
    num_samples = train.num_samples
    if batch_size is None or batch_size >= num_samples:
        while True:
            yield train
    num_an_epoch = -(-num_samples // batch_size)
    first_epoch, skipped = divmod(first, num_an_epoch)
    for epoch in count(first_epoch):
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(num_samples))
        for start in range(skipped * batch_size, num_samples, batch_size):
            yield _rows(train, order[start : start + batch_size])
        skipped = 0


def _rows(samples: Batch, indices: Tensor) -> Batch:
    return Batch(*pytree.tree_map(lambda values: values[indices.to(values.device)], tuple(samples)))
