"""All charts of a run's page, in the sections in which they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import chart_batches, chart_slices, chart_spectrum, chart_training
from pipeline.page import Arrays, Chart

if TYPE_CHECKING:
    from pipeline.findings import Findings

Sections = dict[str, list[Chart]]


def charts_of(found: Findings, arrays: Arrays) -> Sections:
    """The charts by section, an empty list where there is nothing to draw; their numbers are put into `arrays`.

    A chart of one step holds all steps, of which the reader chooses one.
    """
    results, slices = found.results, found.slices
    kinds = ("loss", "accuracy")
    return {
        "spectrum": _drawn(chart_spectrum.density(results, arrays), chart_spectrum.by_rank(results, arrays)),
        "landscape": _drawn(chart_slices.lines(slices, arrays), chart_slices.plane(slices, arrays))
        if slices
        else [],
        "batches": _drawn(
            chart_batches.top_eigenvalues(results, arrays),
            chart_batches.distances(results, arrays),
            chart_batches.overlaps(results, arrays),
        )
        if found.last.several_batches is not None
        else [],
        "layers": [chart_batches.block_norms(results, arrays)],
        "along": _drawn(
            *chart_training.along_steps(results, found.limit, arrays),
            chart_training.overlaps_along(results, arrays),
            chart_training.densities_along(results, arrays),
        )
        if len(results) > 1
        else [],
        "training": _drawn(
            *(chart_training.training_curve(found.history, list(results), kind, arrays) for kind in kinds)
        ),
    }


def _drawn(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]
