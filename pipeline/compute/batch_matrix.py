"""The matrix of one batch, from the strategy's blocks to its file, and its certificate; whole, or band by band."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.compute.recipe import DiagonalBlock, blocks_of, certified
from pipeline.errors import DamagedFile, PipelineError, StrategyError
from pipeline.experiment import MatrixSpec
from pipeline.layout import Layout
from pipeline.objective import Batch, Objective, Params, directions, observed
from pipeline.shards import (
    Array,
    Band,
    Shard,
    ShardWriter,
    TileGrid,
    TileJournal,
    TileStore,
    open_shard,
    row_bands,
    write_shard,
)
from pipeline.strategy import Failures
from pipeline.system import CHECKSUMS, check_evidence, set_aside

MAY_DIFFER = ("torch_version", "num_batches")  # in a shard that is there, from the run that takes it as it is
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchMatrix:
    """The matrix of one batch at one checkpoint, which is to be at `path`. Holds nothing large that it computes.

    identity: attributes that say what it is of. at: the objective and its weights. parts: see `parts_of`.
    first: evidence that all matrices of the checkpoint share.
    """

    path: Path
    identity: dict[str, Any]
    at: tuple[Objective, Params]
    parts: Sequence[DiagonalBlock]
    batch: Batch
    spec: MatrixSpec
    first: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"batch {self.identity['batch_index']} at step {self.identity['step']}"

    def there(self, path: Path | None = None) -> Shard | None:
        """The shard, if it is there: at `path` or at its own.

        Raises:
            PipelineError: it is of another config or experiment or of other weights.
        """
        if (shard := shard_at(path or self.path, self.spec.storage.store)) is not None:
            check_same(shard, self.identity, self.evidence)
            TileJournal.beside(
                shard.path, {}
            ).remove()  # of a process that was killed just before it would have
        return shard

    def write(self) -> dict[str, Any]:
        """Write the shard and certify it; gives its attributes. If bands of it have been begun, they are completed.

        Raises:
            PipelineError: the loss is not finite, the matrix holds NaN or fails its certificate, a band is of another
                config, or a file cannot be written.
        """
        start = time.perf_counter()
        number = row_bands.number_there(self.path)
        attrs = self._write_whole() if number is None else self._join(number)
        return {**attrs, "seconds": time.perf_counter() - start}

    def write_band(self, band: Band) -> Shard:
        """Write one band, unless it is there.

        Raises:
            PipelineError: as `write`; nothing is certified before all bands are there.
        """
        path, own = band.path(self.path), {**band.attrs, "tile": self._grid.size}
        if (there := shard_at(path, self.spec.storage.store)) is not None:
            check_same(there, {**self.identity, **own}, self.evidence)
            return there

        def write(attrs: dict[str, Any], gradient: Array, failures: Failures) -> None:
            attrs |= own
            with self._writing(path, attrs, gradient, band, failures) as writer:
                writer.extra_arrays["products"] = writer.products

        self._by_a_way_that_does(write)
        return open_shard(path, self.spec.storage.store)

    @cached_property
    def evidence(self) -> dict[str, Any]:
        """Of model and criterion, by the samples that all matrices of the checkpoint share, and by the batch's."""
        return {**self.first, **observed("batch", *self.at, self.batch)}

    def _write_whole(self, failures: Failures = ()) -> dict[str, Any]:
        def write(attrs: dict[str, Any], gradient: Array, failures: Failures) -> None:
            with self._writing(self.path, attrs, gradient, failures=failures) as writer:
                attrs |= self._certified(writer.products)

        return self._by_a_way_that_does(write, failures)

    def _by_a_way_that_does(
        self, write: Callable[[dict[str, Any], Array, Failures], None], failures: Failures = ()
    ) -> dict[str, Any]:
        """The attributes with which `write` has written the matrix, after as many ways as it took.

        failures: of ways that are not to be tried again.

        Raises:
            PipelineError: no way gives the right matrix.
        """
        measured, gradient = self._measured()
        failures = list(failures)
        while True:
            attrs = dict(measured)
            try:
                write(attrs, gradient, failures)
            except StrategyError as error:
                # One that was asked for, or none is left for auto.
                if attrs["strategy"] == self.identity["strategy"]:
                    raise PipelineError(f"{self.name}: {error}") from error
                failures.append((attrs["strategy"], error))
            else:
                return attrs

    def _join(self, number: int) -> dict[str, Any]:
        """Write the manifest of bands, after those that are missing."""
        found = [self.write_band(Band(index, number)) for index in range(number)]
        products = sum(band.array("products") for band in found)
        own = ("band", "num_bands", "checksum")
        attrs = {key: value for key, value in found[0].attrs.items() if key not in own}
        attrs["num_batches"] = self.identity["num_batches"]  # it may have grown since the band was written
        if "rounding_abs" in attrs:
            attrs |= _rounding_of_all(found)
        try:
            attrs |= self._certified(np.asarray(products))
        except StrategyError as error:
            row_bands.remove(self.path)  # refused numbers are not kept
            if attrs["strategy"] == self.identity["strategy"]:
                raise PipelineError(f"{self.name}: {error}") from error
            return self._write_whole([(attrs["strategy"], error)])
        store = self.spec.storage.store
        row_bands.write_manifest(self.path, self._layout, self._grid, attrs, found[0].gradient, number, store)
        return attrs

    def _measured(self) -> tuple[dict[str, Any], Array]:
        """Attributes: identity, loss and the norm of the gradient; and the gradient."""
        objective, params = self.at
        loss = float(objective.loss(params, self.batch))
        if not isfinite(loss):
            raise PipelineError(
                f"the loss of {self.name} is {loss}: "
                "look at the weights of this checkpoint and at the data, or use dtype=float64."
            )
        gradient = objective.gradient(params, self.batch)
        attrs = {**self.identity, **self.evidence, "loss": loss, "gradient_norm": float(gradient.norm())}
        return attrs, gradient.cpu().numpy()

    @contextmanager
    def _writing(
        self,
        path: Path,
        attrs: dict[str, Any],
        gradient: Array,
        band: Band | None = None,
        failures: Failures = (),
    ) -> Iterator[ShardWriter]:
        """A writer that has been given all blocks; the file is whole when the body has ended.

        Raises:
            StrategyError: another way is to be taken.
        """
        storage, computed = self.spec.storage, str(gradient.dtype)
        stored = storage.precision or computed
        depends_on = {key: value for key, value in self.identity.items() if key != "num_batches"}
        if failures:
            depends_on["after"] = [name for name, _ in failures]
        with write_shard(
            path,
            self._layout,
            stored,
            attrs,
            gradient,
            storage.tile,
            directions(self._layout.num_parameters).numpy(),
            depends_on,
            part=None if band is None else band.tiles(self._grid),
            computed=computed,
            packed=storage.compression,
            store=storage.store,
        ) as writer:
            if writer.num_there:
                name, there, to_do = path.name, writer.num_there, writer.num_to_do
                log.info("%s: %d tiles are there already, %d are to do.", name, there, to_do)
            for part in self.parts:
                for block in blocks_of(self.spec, part, self.batch, writer.is_missing, attrs, failures):
                    writer.add(block.rows, block.cols, block.values.detach().cpu().numpy())
            if stored != computed:
                attrs |= writer.rounding
            yield writer

    def _certified(self, products: Array) -> dict[str, float]:
        weights = next(iter(self.at[1].values()))
        stored = torch.float32 if self.spec.storage.precision == "float32" else weights.dtype
        there = torch.from_numpy(products).to(weights.device)
        return certified(self.spec, self.parts, self.batch, there, stored, self.name)

    @property
    def _layout(self) -> Layout:
        return Layout.of(self.at[1])

    @property
    def _grid(self) -> TileGrid:
        return TileGrid.of(self._layout, self.spec.storage.tile, self.spec.blocks.value)


def shard_at(path: Path, store: TileStore) -> Shard | None:
    """A shard that is there; one that is damaged is set aside."""
    try:
        return open_shard(path, store) if path.exists() else None
    except DamagedFile as damage:
        log.warning("%s", set_aside(damage, "it is computed again"))
        return None


def check_same(shard: Shard, expected: Mapping[str, Any], evidence: Mapping[str, Any]) -> None:
    """Raise a PipelineError where a shard says something else of itself, or was made of something else."""
    for key, value in expected.items():
        by_auto = (
            key == "strategy" and value == "auto"
        )  # the shard names what was taken; config_hash says the rest
        found = shard.attrs.get(key)
        if key == "num_terms" and found is None:  # version 0.2 took the samples for them
            found = float(expected["num_samples"])
        if key not in (*MAY_DIFFER, *CHECKSUMS) and not by_auto and found != value:
            raise PipelineError(
                f"{shard.path} has {key}={found!r}, this run has {value!r}: one folder holds one "
                "config; choose another with hydra.run.dir=FOLDER."
            )
    check_evidence(shard.path, shard.attrs, {**expected, **evidence})


def _rounding_of_all(bands: Sequence[Shard]) -> dict[str, float]:
    """Of bands, as a whole shard says it: by how much an entry was moved at most, and that of the largest entry."""
    moved = max(band.attrs["rounding_abs"] for band in bands)
    largest = max(
        band.attrs["rounding_abs"] / band.attrs["rounding_rel"] if band.attrs["rounding_rel"] else 0.0
        for band in bands
    )
    return {"rounding_abs": moved, "rounding_rel": moved / largest if largest else 0.0}
