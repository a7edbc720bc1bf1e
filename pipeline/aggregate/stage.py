"""The aggregate stage: from a folder of shards to spectra, by Dask. Needs no torch model, no data and no GPU.

For each step: one pass over all shards, tile by tile, gives the weighted mean (stored as `mean.h5`, a shard
    like the others) and all sums; then the mean is decomposed, and each batch's and each parameter's matrix
    as a task of its own.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from dask.delayed import delayed
from threadpoolctl import threadpool_limits

from pipeline.aggregate.decomposition import preconditioned_sharpness, spectra_of_step
from pipeline.aggregate.moments import TileSums, Weighting, counts_of, pool_tiles, weighting_of
from pipeline.aggregate.partial_results import PartialResults
from pipeline.aggregate.spectrum_choice import settled
from pipeline.aggregate.step_densities import densities
from pipeline.aggregate.step_summary import batch_spectra, headline_of
from pipeline.aggregate.tasks import results_in_order
from pipeline.cluster import Cluster
from pipeline.errors import PipelineError
from pipeline.results import (
    LayerBlocks,
    MeanSpectrum,
    SecondMoments,
    SpectraFile,
    second_moments_at,
    store_of,
)
from pipeline.shards import SHARED, Array, Shard, Tile, TileStore, open_shard, write_shard
from pipeline.spectrum import Auto, SpectrumMethod, sign_threshold
from pipeline.system import RunFolder, check_memory, difference, shared_evidence

log = logging.getLogger(__name__)

TILES_PER_TASK = 8
SAVE_EVERY = 10.0  # seconds of sums over tiles that a kill may lose


def aggregate(
    folder: RunFolder, spectrum: SpectrumMethod | Auto, cluster: Cluster, num_batches: int | None = None
) -> Iterator[SpectraFile]:
    """Write the spectra file of each step that has shards, and give it.

    A spectra file that was made from the same shards by the same choices is taken as it is. Where no matrix was stored,
    the files that the stage compute has written are given.
    num_batches: aggregate the first so many batches; None takes all that were computed.

    Raises:
        PipelineError: there are no shards, some are missing or damaged, or they do not belong together; or
            the matrices do not fit into memory.
    """
    steps = folder.shard_steps()
    if not steps and (files := _without_matrix(folder)):
        yield from files
        return
    if not steps:
        raise PipelineError(f"{folder.shards} holds no shards: run the stage compute first.")
    store = store_of(folder)
    with cluster.open(folder.path / ".dask") as num_workers:
        for step in steps:
            shards = [open_shard(path, store) for path in folder.shard_paths(step)][:num_batches]
            _check_together(shards, num_batches)
            about = (shards[0].parameters, shards[0].dtype, len(steps), len(shards))
            spectrum = settled(folder, spectrum, *about)
            _check_memory(shards[0], spectrum, num_workers)
            moments = second_moments_at(folder.second_moments(step))
            inputs_hash = _hash(shards, spectrum, moments)
            path = folder.spectrum(step)
            file = SpectraFile.read_if_sound(path)
            unfinished = PartialResults(folder.unfinished(step), inputs_hash)
            has_mean = len(shards) == 1 or folder.mean(step).exists()
            complete = (
                file is not None and file.modules is not None
            )  # one of a version before 0.3 is made again
            if has_mean and complete and file is not None and file.inputs_hash == inputs_hash:
                log.info("%s is up to date: taken as it is.", path.relative_to(folder.path))
            else:
                file = _aggregate_step(folder, step, shards, spectrum, num_workers, unfinished, moments)
                file.write(path)
            unfinished.remove()  # also what a run has left that ended between these two lines
            if file.numbers["frobenius_norm"] == 0:
                log.warning(
                    "the matrix at step %d is zero: look at the loss, and for units that are saturated.", step
                )
            yield file


def _without_matrix(folder: RunFolder) -> list[SpectraFile]:
    """The spectra files of the folder that the stage compute has written."""
    files = [SpectraFile.read(folder.spectrum(step)) for step in folder.spectrum_steps()]
    return [file for file in files if file.without_matrix]


def _check_memory(shard: Shard, spectrum: SpectrumMethod, num_workers: int) -> None:
    """One decomposition of the whole matrix, or one of a batch's matrix in each worker."""
    num_rows, itemsize = shard.num_rows, shard.dtype.itemsize
    held = num_rows**2 * itemsize if spectrum.in_memory else 0
    together = num_workers * (held + spectrum.of_batch().memory(num_rows, itemsize))
    check_memory(
        num_rows,
        {f"spectrum={_name(spectrum)}": spectrum.memory(num_rows, itemsize), "cluster.num_workers": together},
    )


def _name(spectrum: SpectrumMethod) -> str:
    return type(spectrum).__name__.lower()


def _check_together(shards: Sequence[Shard], num_batches: int | None) -> None:
    if "batch_index" not in shards[0].attrs:  # the mean alone
        num_there = shards[0].attrs["num_batches"]
        if num_batches not in (None, num_there):
            raise PipelineError(
                f"{shards[0].path} is the mean of {num_there} batches, whose shards are gone: "
                f"num_batches={num_batches} cannot be taken from it; leave it out, "
                "or choose another folder with hydra.run.dir=FOLDER."
            )
        return
    indices = [shard.attrs["batch_index"] for shard in shards]
    for index, shard in zip(indices, shards, strict=True):
        if shard.path.stem != f"batch-{index:05d}":
            raise PipelineError(
                f"{shard.path} holds batch {index}: one shard a batch; delete it and run the stage compute again."
            )
    expected = num_batches or max(shard.attrs["num_batches"] for shard in shards)
    missing = sorted(set(range(expected)) - set(indices))
    if missing:
        raise PipelineError(
            f"{shards[0].path.parent} lacks the shards of batches {missing}: run the stage compute again."
        )
    first = shards[0]
    for shard in shards[1:]:
        for key in SHARED:
            if shard.attrs[key] != first.attrs[key]:
                raise PipelineError(
                    f"{shard.path} holds {key}={shard.attrs[key]!r}, {first.path.name} holds {first.attrs[key]!r}: "
                    "one folder holds one config; move one of them away."
                )
        if differs := difference(shared_evidence(shard.attrs), shared_evidence(first.attrs)):
            raise PipelineError(
                f"{shard.path} was made with {differs[0]} than {first.path.name} ({differs[1]} differ): "
                "one folder holds one experiment; move one of them away."
            )


def _hash(shards: Sequence[Shard], spectrum: SpectrumMethod, moments: SecondMoments | None) -> str:
    """Of all that the spectra file is made from; a shard's checksum covers every number in it."""
    keys = (*SHARED, "batch_index", "num_samples", "checksum")
    identity = [[shard.attrs[key] for key in keys if key in shard.attrs] for shard in shards]
    further = () if moments is None else (moments.fingerprint,)
    return hashlib.sha256(repr((identity, spectrum, *further)).encode()).hexdigest()[:16]


def _aggregate_step(
    folder: RunFolder,
    step: int,
    shards: Sequence[Shard],
    spectrum: SpectrumMethod,
    num_workers: int,
    unfinished: PartialResults,
    second_moments: SecondMoments | None,
) -> SpectraFile:
    """The spectra file of one step, from its shards and what Adam has left beside the checkpoint."""
    weighting = weighting_of(shards)
    with threadpool_limits(1):  # its threads are Dask's
        mean, moments = write_mean(folder, step, shards, weighting, num_workers, unfinished)
    found = spectra_of_step(mean, moments, shards, spectrum, num_workers, unfinished)
    top = found.mean
    batches = batch_spectra(shards, top, found.batches, moments)
    diagonal = second_moments.preconditioner(mean.parameters) if second_moments is not None else None
    sharpness = preconditioned_sharpness(mean, diagonal, spectrum.in_memory, unfinished)
    origin = {key: shards[0].attrs[key] for key in SHARED} | shared_evidence(shards[0].attrs)
    of_origin = {key: origin.pop(key) for key, value in [*origin.items()] if isinstance(value, float)}
    return SpectraFile(
        step=origin.pop("step"),
        matrix=origin.pop("matrix"),
        spectrum=_name(spectrum),
        inputs_hash=unfinished.identity,
        origin=origin,
        numbers={
            **of_origin,
            "negative_threshold": sign_threshold(mean.dtype) * float(np.abs(top.eigenvalues).max()),
            **headline_of(mean, top, moments, shards),
            **batches.headline,
            **sharpness,
        },
        mean=MeanSpectrum(
            top.eigenvalues, top.top_eigenvalues, top.top_eigenvectors, top.residuals, mean.gradient
        ),
        layers=LayerBlocks(
            mean.parameters.names,
            mean.parameters.shapes,
            np.asarray(mean.parameters.offsets),
            block_norms=np.sqrt(moments.block_squares),
            trace=moments.layer_traces,
            eigenvalues=found.parameters,
        ),
        modules=found.modules,
        batches=batches,
        density=densities(top, found.batches),
    )


def write_mean(
    folder: RunFolder,
    step: int,
    shards: Sequence[Shard],
    weighting: Weighting,
    num_workers: int,
    unfinished: PartialResults,
) -> tuple[Shard, TileSums]:
    """The weighted mean of the shards, and the sums over all tiles; the mean of one shard is that shard.

    Cut short, it goes on where it was: with the tiles that the shard's journal holds, and the sums that were saved.
    """
    first, tiles = shards[0], shards[0].tile_indices()
    groups = [tiles[i : i + TILES_PER_TASK] for i in range(0, len(tiles), TILES_PER_TASK)]
    bare = [replace(shard) for shard in shards]  # without what they have read: they go to other processes
    moments = TileSums.zero(len(shards), first.parameters)
    ends = list(accumulate(map(len, groups)))
    num_summed = unfinished.load_sums(moments, ends)

    def pooled(group_indices: Sequence[int]) -> Iterator[list[tuple[Tile, Array]]]:
        """The means of the tiles of some groups; the sums of those that are new are added."""
        following = [*(groups[index] for index in group_indices[num_workers:]), *[[]] * num_workers]
        tasks = [
            delayed(pool_tiles)(bare, weighting, groups[index], following=after)
            for index, after in zip(group_indices, following, strict=False)
        ]
        saved = time.monotonic()
        results = results_in_order(tasks, num_workers, f"mean at step {step}")
        for index, (means, sums) in zip(group_indices, results, strict=True):
            yield means  # first: what is saved as summed has been handed to the writer
            if index >= num_summed:
                moments.add(sums)
                if time.monotonic() - saved >= SAVE_EVERY:
                    unfinished.save_sums(moments, ends[index])
                    saved = time.monotonic()

    there = first if len(shards) == 1 else _mean_of(folder.mean(step), first.store, unfinished.identity)
    if there is not None:
        for _ in pooled(range(num_summed, len(groups))):
            pass
        if len(shards) == 1 and first.path != folder.mean(step):
            first.store.remove(folder.mean(step))  # of more batches, once
        return there, moments
    gradient = weighting.mean([shard.gradient for shard in shards])
    attrs = {key: first.attrs[key] for key in SHARED} | {
        **shared_evidence(first.attrs),
        **counts_of(shards),
        "num_batches": len(shards),
        "loss": float(weighting.mean([shard.attrs["loss"] for shard in shards])),
        "gradient_norm": float(np.linalg.norm(gradient)),
    }
    attrs["inputs_hash"] = unfinished.identity
    about = first.parameters, str(first.dtype), attrs, gradient, first.tile
    with write_shard(folder.mean(step), *about, identity=attrs, store=first.store) as writer:
        grid = first.grid
        missing = [any(writer.is_missing(grid.span(i), grid.span(j)) for i, j in group) for group in groups]
        if not all(missing):
            log.info("the mean at step %d: %d tiles are there already.", step, writer.num_there)
        for means in pooled([k for k in range(len(groups)) if missing[k] or k >= num_summed]):
            for tile, values in means:
                writer.put(tile, values)
        unfinished.save_sums(moments, ends[-1])  # before the mean has its name: what is complete stays
    return open_shard(folder.mean(step), first.store), moments


def _mean_of(path: Path, store: TileStore, inputs_hash: str) -> Shard | None:
    """The mean that is there, if it is of these inputs."""
    try:
        mean = open_shard(path, store) if path.exists() else None
    except PipelineError:  # damaged: it is made again
        return None
    return mean if mean is not None and mean.attrs.get("inputs_hash") == inputs_hash else None
