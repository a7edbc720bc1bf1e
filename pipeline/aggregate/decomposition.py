"""Spectra of the matrices of one step, each made once: the mean, its diagonal blocks, and each batch's own matrix."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from dask.delayed import delayed
from threadpoolctl import threadpool_limits

from pipeline.aggregate.matrix_views import Scaled, StoredMatrix
from pipeline.aggregate.moments import TileSums
from pipeline.aggregate.partial_results import CachedMatrix, PartialResults, remembered
from pipeline.aggregate.tasks import results_in_order
from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.results import ModuleBlocks
from pipeline.shards import Array, Shard
from pipeline.spectrum import SPEEDUP, Rates, Spectrum, SpectrumMethod, TopK
from pipeline.system import format_bytes, format_seconds

MANY_ROWS = 10_000  # from which on a person is told how long passes over a file take
USUAL_PASSES = 10  # until the ends of a spectrum have converged
LARGE_BLOCK = 4 * 2**30  # bytes on disk from which a block is not read as often as the whole
# Of the matrices of which λmax alone is taken. The tolerance is within reach of products in float32.
LARGEST = TopK(num_top=1, num_bottom=0, tolerance=1e-5, block_size=8, max_passes=300)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepSpectra:
    """mean: of the mean matrix. batches: of each batch's own; where there is one, of the mean.

    parameters: ascending eigenvalues of the parameters' diagonal blocks, of those that were decomposed.
    """

    mean: Spectrum
    batches: Sequence[Spectrum]
    parameters: Mapping[str, Array]
    modules: ModuleBlocks


def spectra_of_step(
    mean: Shard,
    moments: TileSums,
    shards: Sequence[Shard],
    method: SpectrumMethod,
    num_workers: int,
    unfinished: PartialResults,
) -> StepSpectra:
    """Decompose the batches' matrices and the mean's diagonal blocks side by side, then the mean with all threads."""
    in_memory, of_batch, bare = method.in_memory, method.of_batch(), replace(mean)
    spans = affordable_spans(mean, mean.parameters.slices(), in_memory)
    layers = layers_of_several(mean, in_memory)
    kept = (in_memory, unfinished)
    batches = [
        delayed(decompose)(
            StoredMatrix(replace(shard), None, of_batch.single), of_batch, *kept, shard.path.stem
        )
        for shard in (shards if len(shards) > 1 else ())
    ]
    blocks = [
        delayed(decompose)(StoredMatrix(bare, span, method.single), method, *kept, f"rows-{span.start}")
        for span in spans.values()
    ]
    largest = [
        delayed(largest_eigenvalue)(StoredMatrix(bare, span, LARGEST.single), *kept, f"layer-{span.start}")
        for span in layers.values()
    ]
    # Here too, as tasks that overlap in threads would put back each other's limit of one, and `whole` be slow.
    with threadpool_limits(1):
        step = mean.attrs["step"]
        made = results_in_order([*batches, *blocks, *largest], num_workers, f"spectra at step {step}")
        of_batches, of_blocks, of_layers = (
            [*islice(made, len(tasks))] for tasks in (batches, blocks, largest)
        )
    _announce(mean, method)
    whole = decompose(StoredMatrix(bare, None, method.single), method, *kept, "mean", num_threads=None)
    eigenvalues = {name: block.eigenvalues for name, block in zip(spans, of_blocks, strict=True)}
    modules = module_blocks(
        mean.parameters, moments.layer_traces, eigenvalues, dict(zip(layers, of_layers, strict=True))
    )
    return StepSpectra(whole, of_batches or [whole], eigenvalues, modules)


def _announce(mean: Shard, method: SpectrumMethod) -> None:
    """Say how long the passes over the mean's file will take, which say nothing themselves."""
    if method.in_memory or mean.num_rows < MANY_ROWS:
        return
    num_passes = getattr(method, "num_steps", USUAL_PASSES)
    width = getattr(method, "num_columns_per_pass", 2 * method.num_top)
    rates = Rates.of(mean.dtype)
    seconds = rates.passes(mean.num_rows, width, num_passes, mean.dtype.itemsize) / rates.num_threads**SPEEDUP
    name, rows = type(method).__name__.lower(), f"{mean.num_rows:,}"
    log.info(
        "%s of the mean, %s rows: %d passes or more, about %s.",
        name,
        rows,
        num_passes,
        format_seconds(seconds),
    )


def decompose(
    matrix: StoredMatrix | Scaled,
    decomposition: SpectrumMethod,
    in_memory: bool,
    unfinished: PartialResults,
    name: str,
    num_threads: int | None = 1,
) -> Spectrum:
    """The spectrum of a stored matrix.

    in_memory: read the matrix once; else each product is a pass over the file. name: under which `unfinished` keeps it.
    """

    def make() -> Spectrum:
        return decomposition.decompose(matrix.held() if in_memory else CachedMatrix(matrix, unfinished, name))

    with threadpool_limits(num_threads):
        return remembered(unfinished, name, make)


def largest_eigenvalue(
    matrix: StoredMatrix | Scaled,
    in_memory: bool,
    unfinished: PartialResults,
    name: str,
    num_threads: int | None = 1,
) -> float:
    """The algebraically largest eigenvalue, to 1e-5 |λ|max; NaN, with a warning, where it does not converge."""
    try:
        spectrum = decompose(matrix, LARGEST, in_memory, unfinished, name, num_threads)
    except PipelineError as error:
        log.warning("no largest eigenvalue of %s: %s", name, error)
        return math.nan
    return float(spectrum.top_eigenvalues[0])


def preconditioned_sharpness(
    mean: Shard, diagonal: Array | None, in_memory: bool, unfinished: PartialResults
) -> dict[str, float]:
    """λmax of P^(−1/2) H P^(−1/2) under its key, with the diagonal of P, (P,); nothing where that is not known.

    It has the eigenvalues of P⁻¹ H. Cost: some ten passes over the matrix, none in memory more than the mean's own.
    """
    if diagonal is None:
        return {}
    matrix = Scaled(StoredMatrix(mean, None, LARGEST.single), 1 / np.sqrt(diagonal))
    largest = largest_eigenvalue(matrix, in_memory, unfinished, "preconditioned", num_threads=None)
    return {"lambda_max_preconditioned": largest} if math.isfinite(largest) else {}


def affordable_spans(mean: Shard, spans: Mapping[str, slice], in_memory: bool) -> dict[str, slice]:
    """The diagonal blocks that are decomposed: all that have rows.

    Not: one that is most of a large matrix on disk. It would take as many passes as the whole once more.
    """
    spans = {name: span for name, span in spans.items() if span.stop > span.start}
    if in_memory or len(spans) == 1:
        return spans
    taken = {}
    for name, span in spans.items():
        num_rows = span.stop - span.start
        num_bytes = num_rows**2 * mean.dtype.itemsize // 2
        if num_bytes > LARGE_BLOCK and 2 * num_rows**2 > mean.num_rows**2:
            log.info(
                "%s: no spectrum of its own block (%s on disk): it is most of the matrix, and would take as long.",
                name,
                format_bytes(num_bytes),
            )
        else:
            taken[name] = span
    return taken


def layers_of_several(mean: Shard, in_memory: bool) -> dict[str, slice]:
    """The layers whose λmax is not that of one parameter's block, and their rows."""
    layout = mean.parameters
    rows = layout.slices()
    several = {
        name: span
        for name, span in layout.layers().items()
        if sum(rows[inside].stop > rows[inside].start for inside in layout.names_in(span)) > 1
    }
    return affordable_spans(mean, several, in_memory)


def module_blocks(
    layout: Layout, traces: Array, eigenvalues: Mapping[str, Array], largest: Mapping[str, float]
) -> ModuleBlocks:
    """Trace and λmax of each layer.

    traces: of each parameter's block. eigenvalues: of the parameters' blocks. largest: λmax of the layers that have
    several parameters with weights; another layer's is that of its one parameter.
    """
    trace_of, layers = dict(zip(layout.names, traces, strict=True)), layout.layers()
    lambda_max = []
    for name, span in layers.items():
        blocks = [eigenvalues[inside] for inside in layout.names_in(span) if inside in eigenvalues]
        alone = float(blocks[0].max()) if len(blocks) == 1 else math.nan
        lambda_max.append(largest.get(name, alone))
    return ModuleBlocks(
        np.array([*layers]),
        np.array([span.stop - span.start for span in layers.values()]),
        np.array([sum(trace_of[inside] for inside in layout.names_in(span)) for span in layers.values()]),
        np.array(lambda_max),
    )
