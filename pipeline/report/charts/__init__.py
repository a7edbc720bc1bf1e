"""All charts of a run's page, in the sections in which they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.report.charts import batches, directions, evolution, law, layers, loss_landscape, spectrum
from pipeline.report.page.page import Arrays, Chart

if TYPE_CHECKING:
    from pipeline.report.data import ReportData

Sections = dict[str, list[Chart]]


def charts_of(data: ReportData, arrays: Arrays) -> Sections:
    """The charts by section, an empty list where there is nothing to draw; their numbers are put into `arrays`.

    A chart of one step holds all steps, of which the reader chooses one.
    """
    results, slices = data.results, data.slices
    kinds = ("loss", "accuracy")
    return {
        "law": law.panels(data.law, arrays) if data.law is not None else [],
        "spectrum": _drawn(
            spectrum.density(results, arrays),
            spectrum.distribution_band(results, arrays),
            spectrum.by_rank(results, arrays),
            directions.gradient_cosines(results, arrays),
            directions.participation(results, arrays),
        ),
        "landscape": _drawn(loss_landscape.lines(slices, arrays), loss_landscape.plane(slices, arrays))
        if slices
        else [],
        "batches": _drawn(
            batches.top_eigenvalues(results, arrays),
            batches.distances(results, arrays),
            batches.overlaps(results, arrays),
        )
        if data.last.several_batches is not None
        else [],
        "layers": _drawn(*layers.at_each_step(results, arrays), batches.block_norms(results, arrays)),
        "along": _drawn(
            *evolution.along_steps(results, data.limits, arrays),
            *layers.along_steps(results, arrays, evolution.step_axis(list(results))),
            evolution.densities_along(results, arrays),
            directions.cosines_along(results, arrays, evolution.height_of),
            evolution.overlaps_along(results, arrays),
        )
        if len(results) > 1
        else [],
        "training": _drawn(
            *(evolution.training_curve(data.history, list(results), kind, arrays) for kind in kinds)
        ),
    }


def _drawn(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]
