"""The numbers and arrays of one step's spectra file, from its shards, their sums and spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.aggregate.moments import TileSums
from pipeline.results import BatchSpectra
from pipeline.shards import Shard
from pipeline.spectrum import (
    Spectrum,
    eigenspace_overlap,
    eigenspace_overlaps,
    share_in_eigenspace,
    sign_threshold,
    summarize,
)


def headline_of(
    mean: Shard,
    whole: Spectrum,
    moments: TileSums,
    shards: Sequence[Shard],
) -> dict[str, float]:
    """The numbers that stand at the top of the report; those that this spectrum does not give are left out."""
    frobenius = float(np.sqrt(moments.block_squares.sum()))
    numbers: dict[str, float | None] = {
        "num_parameters": mean.num_rows,
        "num_samples": mean.attrs["num_samples"],
        "num_batches": len(shards) if "batch_index" in shards[0].attrs else mean.attrs["num_batches"],
        "loss": mean.attrs["loss"],
        "gradient_norm": mean.attrs["gradient_norm"],
        "lambda_max": float(whole.top_eigenvalues[0]),
        "lambda_min": float(whole.eigenvalues[0])
        if len(whole.eigenvalues) > len(whole.top_eigenvalues)
        else None,
        "stable_rank": frobenius**2 / float(np.abs(whole.eigenvalues).max()) ** 2 if frobenius else None,
        **(summarize(whole.eigenvalues, sign_threshold(mean.dtype)) if whole.complete else {}),
        "trace": float(moments.layer_traces.sum()),
        "frobenius_norm": frobenius,
        "num_passes": whole.num_passes or None,
        "num_zero_rows": int((~moments.live).sum()),
        "gradient_share_in_top_eigenspace": share_in_eigenspace(mean.gradient, whole.top_eigenvectors),
    }
    if all("probe_error" in shard.attrs for shard in shards):
        numbers["largest_probe_error"] = max(shard.attrs["probe_error"] for shard in shards)
    return {name: number for name, number in numbers.items() if number is not None}


def batch_spectra(
    shards: Sequence[Shard],
    whole: Spectrum,
    batches: Sequence[Spectrum],
    moments: TileSums,
) -> BatchSpectra:
    """The numbers of each batch's own matrix."""
    frobenius = np.sqrt(moments.block_squares.sum())
    all_known = all(spectrum.complete for spectrum in batches)
    columns: dict[str, Any] = {
        "eigenvalues": [s.eigenvalues if all_known else s.top_eigenvalues for s in batches],
        "num_samples": [shard.attrs["num_samples"] for shard in shards],
        "loss": [shard.attrs["loss"] for shard in shards],
        "gradient_norm": [shard.attrs["gradient_norm"] for shard in shards],
        "trace": moments.traces,
        "frobenius_norm": np.sqrt(moments.squares),
        "lambda_max": [s.top_eigenvalues[0] for s in batches],
        "distance_to_mean": np.sqrt(moments.deviations) / (frobenius or 1.0),
        "overlap_with_mean": [
            eigenspace_overlap(s.top_eigenvectors, whole.top_eigenvectors) for s in batches
        ],
        "overlap": eigenspace_overlaps([each.top_eigenvectors for each in batches]),
    }
    return BatchSpectra(**{name: np.asarray(values) for name, values in columns.items()})
