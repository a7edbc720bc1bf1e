"""A person's own samples, whatever form they come in."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from pipeline.data.columns import Columns, Names, check_names
from pipeline.data.conversion import ConvertedDataset
from pipeline.data.samples import Samples, as_samples
from pipeline.data.sources import Source, errors_of, joined, num_classes_of, stacked
from pipeline.errors import PipelineError
from pipeline.validation import check_text

TEST = ("test", "validation", "valid", "val")
FORMS = (
    "a torch Dataset or DataLoader, a pair (inputs, targets) of arrays, a dict of columns, or an object with "
    ".batch_size and .load()"
)


@dataclass(frozen=True, kw_only=True)
class Own(ConvertedDataset):
    """What the pipeline does with samples of a class or function that is not its own.

    inputs: the column, or columns, of samples that have named parts; null takes all but the targets. Several become
        keyword arguments of the model.
    targets: the column of targets; null takes labels, label, targets, target or y.
    """

    inputs: Names = None
    targets: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("data.inputs", self.inputs)
        if self.targets is not None:
            check_text("data.targets", self.targets, "label")

    @property
    def columns(self) -> Columns:
        return Columns(self.inputs, self.targets)

    def of(self, given: Any) -> Samples:
        """Samples of a Dataset, a DataLoader, arrays, columns, or of a mapping or object with `train` and `test`.

        Raises:
            PipelineError: it is nothing of that kind, or samples cannot be read.
        """
        with _seeded(self.split_seed):
            train, test = self._parts(given)
            return self.samples(self._source(train), None if test is None else self._source(test))

    def _parts(self, given: Any) -> tuple[Any, Any]:
        if not _is_dataset(given):
            if isinstance(given, Mapping) and "train" in given:
                return given["train"], next((given[name] for name in TEST if name in given), None)
            if isinstance(given, tuple | list) and len(given) == 2 and all(map(_is_dataset, given)):
                return given[0], given[1]
            if getattr(given, "train", None) is not None:
                return given.train, getattr(given, "test", None)
        return given, None

    def _source(self, given: Any) -> Source:
        name = type(given).__name__
        if isinstance(given, DataLoader):
            return self._of_loader(given)
        if isinstance(given, IterableDataset) or (_is_dataset(given) and not hasattr(given, "__len__")):
            return self._of_stream(given)
        if _is_dataset(given):
            return Source.of_dataset(given, self.columns)
        if isinstance(given, Mapping) or (isinstance(given, tuple | list) and len(given) == 2):
            return Source.of_arrays(*self.columns.pair(given, name), name)
        raise PipelineError(f"data: {name} is nothing that samples can be read from: give {FORMS}.")

    def _of_loader(self, loader: DataLoader[Any]) -> Source:
        """Each sample once: of the dataset where batches are only drawn and stacked, else of the batches."""
        if loader.collate_fn is default_collate:
            if isinstance(loader.dataset, IterableDataset):
                return self._of_stream(loader.dataset)
            once = type(loader.sampler) in (RandomSampler, SequentialSampler)
            once = once and type(loader.batch_sampler) is BatchSampler
            if once and not getattr(loader.sampler, "replacement", False):
                return Source.of_dataset(loader.dataset, self.columns)
        name = "DataLoader"
        with errors_of(name):
            batches = [self.columns.pair(batch, name) for batch in loader]
        source = Source.of_arrays(*joined(batches, name), name)
        return Source(source.num_samples, source.read, num_classes_of(loader.dataset, self.columns))

    def _of_stream(self, dataset: Any) -> Source:
        """The first samples of what has no length: as many as are needed, with those that are held back for tests."""
        name = type(dataset).__name__
        if self.num_samples is None:
            raise PipelineError(
                f"data: {name} is read from its beginning and does not say its length: give data.num_samples=N, "
                "of its first samples."
            )
        needed = (
            ceil((self.num_samples + 0.5) / (1 - self.test_fraction))
            if self.test_fraction
            else self.num_samples
        )
        with errors_of(name):
            items = [self.columns.pair(item, name) for item in islice(iter(dataset), needed)]
        return Source.of_arrays(*stacked(items, name, range(len(items))), name)


def samples_of(source: Any, options: Mapping[str, Any]) -> tuple[Samples, int | None]:
    """The samples of what a `data._target_` gave, and the number of samples of one Hessian.

    options: those that the class did not take, see `Own`. An object with `load` and `batch_size` says all by itself.

    Raises:
        PipelineError: nothing can be read from it.
    """
    if callable(getattr(source, "load", None)) and not (
        _is_dataset(source) and not hasattr(source, "batch_size")
    ):
        if options:
            raise PipelineError(
                f"data.{next(iter(options))}: {type(source).__name__}, which has a method load, takes no such option: "
                "let it take it, or give samples in another form."
            )
        return as_samples(source.load()), getattr(source, "batch_size", None)
    if isinstance(source, DataLoader) and "batch_size" not in options:
        options = {**options, "batch_size": source.batch_size}
    own = Own(**options)
    return own.of(source), own.batch_size


def _is_dataset(value: Any) -> bool:
    """Whether it gives samples by number, or in a row, and is no array of them."""
    if isinstance(value, Dataset | DataLoader):
        return True
    rows = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    stream = hasattr(value, "__iter__") and not hasattr(value, "__len__")
    plain = isinstance(value, tuple | list | str | bytes | Mapping) or hasattr(value, "__array__")
    return (rows or stream) and not plain


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """What samples draw at random (their augmentation, say) is the same in each process, and others' draws are not."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
