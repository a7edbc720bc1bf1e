"""The last stage: figures and a self-contained page, made from the files of a run folder and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import report_tables as tables
from pipeline.config import class_names
from pipeline.errors import PipelineError
from pipeline.figures_beside import Drawer, drawing
from pipeline.findings import Findings
from pipeline.folder import RunFolder, write_atomically
from pipeline.report_words import matrix_name

TEMPLATE = "report.html.jinja"
EXTENT = {
    "exact": "every eigenvalue of the mean matrix",
    "topk": "the extreme eigenvalues of the mean matrix",
    "slq": "the extreme eigenvalues and an estimated density of the mean matrix",
}


def make_report(
    folder: RunFolder, config: Mapping[str, Any] | None = None, drawers: Sequence[Drawer] = ()
) -> Path:
    """Draw the figures of a run folder and write its report.html; needs no model, no data and no GPU.

    config: the resolved config; None reads the one that the run left in its folder. The page opens from disk
    with no network: plotly, numbers and style are inside. Each file is written whole or not at all.
    drawers: processes that draw the figures meanwhile; what they do not, and all where there are none, is drawn here.

    Raises:
        PipelineError: there are no spectra yet, or a file of the folder is damaged.
    """
    found = _findings(folder, config)
    with drawing(drawers, found, folder.figures) as left:
        folder.figures.mkdir(parents=True, exist_ok=True)  # the page names it
        page = _page(folder, config, found)
    if left:
        _draw(found, set(left), folder.figures)
    write_atomically(folder.report, page)
    return folder.report


def _draw(found: Findings, names: Collection[str], folder: Path) -> None:
    from pipeline.figures import figures_of, save_figures  # matplotlib: not before it is needed
    from pipeline.terminal import progress

    figures = {name: draw for name, draw in figures_of(found).items() if name in names}
    for _ in progress(save_figures(figures, folder), "report", total=len(figures)):
        pass


def _findings(folder: RunFolder, config: Mapping[str, Any] | None) -> Findings:
    """What the files of the folder hold; of the loss along eigenvectors what belongs to the spectra of now."""
    from pipeline.evolution import stability_limit
    from pipeline.hdf5 import read_results

    steps = folder.spectrum_steps()
    if not steps:
        raise PipelineError(
            f"{folder.spectra} has no spectra to report on: run the stage aggregate before report."
        )
    results = {step: read_results(folder.spectrum(step)) for step in steps}
    chosen, *_ = tables.load_config(folder, config)
    slices = {step: read_results(folder.slices(step)) for step in steps if folder.slices(step).exists()}
    return Findings(
        results,
        tables.read_history(folder.history),
        stability_limit(
            class_names(chosen).get("training", ""),
            chosen.get("training") or {},
            str(results[steps[-1]].attrs["matrix"]),
        ),
        {
            step: each
            for step, each in slices.items()
            if each.attrs["inputs_hash"] == results[step].attrs.get("inputs_hash")
        },
    )


def _page(folder: RunFolder, config: Mapping[str, Any] | None, found: Findings) -> str:
    from pipeline.charts import charts_of
    from pipeline.page import Arrays, render

    results, last = found.results, found.last_step
    chosen, yaml, command = tables.load_config(folder, config)
    attrs, arrays = results[last].attrs, Arrays()
    sections = charts_of(found, arrays)
    headline = tables.headline(found.last, found.history)
    return render(
        TEMPLATE,
        [chart for charts in sections.values() for chart in charts],
        arrays,
        {"step": str(last)},
        sections=sections,
        name=folder.path.resolve().name,
        path=folder.path,
        step=last,
        all_steps=list(results),
        attrs=attrs,
        extent=EXTENT.get(str(attrs["spectrum"]), f"spectrum={attrs['spectrum']} of the mean matrix"),
        matrix=matrix_name(str(attrs["matrix"])),
        choices=list(class_names(chosen).items()),
        seed=chosen.get("seed"),
        config=yaml,
        command=command,
        headline=headline,
        tiles=tables.tiles(headline),
        batches=tables.batches(results[last]),
        layers=tables.layers(results[last]),
        steps=tables.steps(results) if len(results) > 1 else [],
        files=tables.files(folder),
        shard=next(iter(folder.shard_paths(last)), folder.shard(last, 0)),
        spectrum=folder.spectrum(last),
        versions=tables.versions(results[last]),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
