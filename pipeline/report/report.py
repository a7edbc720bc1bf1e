"""The last stage: figures and a self-contained page, made from the files of a run folder and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import SavedConfig, figure_formats
from pipeline.errors import PipelineError
from pipeline.report import tables
from pipeline.report.data import ReportData
from pipeline.results import matrix_name
from pipeline.system import RunFolder, write_atomically

if TYPE_CHECKING:
    from pipeline.report.charts import Sections
    from pipeline.report.page.page import Arrays, Chart

TEMPLATE, LAW_TEMPLATE = "report.html.jinja", "law.html.jinja"
EXTENT = {
    "exact": "every eigenvalue of the mean matrix",
    "topk": "the extreme eigenvalues of the mean matrix (spectrum=exact gets all)",
    "slq": "the extreme eigenvalues and an estimated density of the mean matrix (spectrum=exact gets all eigenvalues)",
}


def make_report(folder: RunFolder, formats: str | Sequence[str] = ("png",)) -> Path:
    """Draw the figures of a run folder and write its report.html; needs no model, no data and no GPU.

    formats: of the figures: png, pdf, svg. Those in other formats, which an earlier report drew, are removed.

    The page opens from disk with no network: plotly, numbers and style are inside. Each file is written whole or not
    at all.

    Raises:
        PipelineError: there are neither spectra nor a law yet, or a file of the folder is damaged.
    """
    from pipeline.report.page.page import Arrays

    config, formats, arrays = SavedConfig.of(folder), figure_formats(formats), Arrays()
    if folder.law.exists() and not folder.spectrum_steps():
        return _report_law(folder, arrays, formats)
    from pipeline.report.charts import charts_of

    found = _data(folder, config)
    sections = charts_of(found, arrays)
    folder.figures.mkdir(parents=True, exist_ok=True)  # the page names it
    page = _page(folder, config, found, sections, arrays)
    charts = [chart for charts in sections.values() for chart in charts]
    _draw(folder, charts, arrays, _choice(found), _context(found), formats)
    write_atomically(folder.report, page)
    return folder.report


def _draw(
    folder: RunFolder,
    charts: Sequence[Chart],
    arrays: Arrays,
    choice: Mapping[str, str],
    context: str,
    formats: Sequence[str],
) -> None:
    from pipeline.report.figures import PICTURES, draw_pictures  # matplotlib: not before it is needed
    from pipeline.system import progress

    drawn = draw_pictures(charts, arrays, choice, context, folder.figures, formats)
    for _ in progress(drawn, "report", total=len(PICTURES) * len(formats)):
        pass


def _report_law(folder: RunFolder, arrays: Arrays, formats: Sequence[str]) -> Path:
    """The page and the figure of a law that was measured without a run of the pipeline."""
    from pipeline.report.charts.law import panels
    from pipeline.report.page.page import render
    from pipeline.results import LawFile

    law = LawFile.read(folder.law)
    charts = panels(law, arrays)
    folder.figures.mkdir(parents=True, exist_ok=True)  # the page names it
    page = render(
        LAW_TEMPLATE,
        charts,
        arrays,
        {},
        sections={"law": charts},
        law=law,
        options=[[key, str(value)] for key, value in law.options.items()],
        files=tables.files(folder),
        versions=tables.versions({}),
        **_about(folder),
    )
    _draw(folder, charts, arrays, {}, f"{law.title}  ·  {law.verdict}", formats)
    write_atomically(folder.report, page)
    return folder.report


def _about(folder: RunFolder) -> dict[str, Any]:
    """What every page says of its folder and of the time."""
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return {"name": folder.path.resolve().name, "path": folder.path, "written": written}


def _choice(data: ReportData) -> dict[str, str]:
    """What a reader sees at first: the last step."""
    return {"step": str(data.last_step)}


def _context(data: ReportData) -> str:
    """Which matrix, at which steps, of how many weights, samples and batches."""
    file, several = data.last, len(data.results) > 1
    counts = [(file.numbers[key], key.removeprefix("num_")) for key in ("num_samples", "num_batches")]
    at = f"step {file.step:,}" + (f", the last of {len(data.results)}" if several else "")
    return "  ·  ".join(
        [
            f"{matrix_name(file.matrix)} at {at}",
            f"P = {file.numbers['num_parameters']:,} weights",
            *(f"{count:,} {name if count != 1 else name.removesuffix('es')}" for count, name in counts),
        ]
    )


def _data(folder: RunFolder, config: SavedConfig) -> ReportData:
    """What the files of the folder hold; of the loss along eigenvectors what belongs to the spectra of now."""
    from pipeline.results import LandscapeFile, LawFile, SpectraFile, limits_of

    steps = folder.spectrum_steps()
    if not steps:
        raise PipelineError(
            f"{folder.spectra} has no spectra to report on: run the stage aggregate before report."
        )
    results = {step: SpectraFile.read(folder.spectrum(step)) for step in steps}
    name, options = config.training
    slices = {step: LandscapeFile.read(folder.slices(step)) for step in steps if folder.slices(step).exists()}
    return ReportData(
        results,
        tables.read_history(folder.history),
        limits_of(name, options, results[steps[-1]].matrix),
        {step: each for step, each in slices.items() if each.inputs_hash == results[step].inputs_hash},
        LawFile.read(folder.law) if folder.law.exists() else None,
    )


def _page(
    folder: RunFolder,
    config: SavedConfig,
    data: ReportData,
    sections: Sections,
    arrays: Arrays,
) -> str:
    from pipeline.report.page.page import render

    results, last = data.results, data.last_step
    file = data.last
    headline = tables.headline(file, data.history)
    return render(
        TEMPLATE,
        [chart for charts in sections.values() for chart in charts],
        arrays,
        _choice(data),
        sections=sections,
        step=last,
        all_steps=list(results),
        attrs=file.attrs,
        extent=EXTENT.get(file.spectrum, f"spectrum={file.spectrum} of the mean matrix"),
        without_matrix=file.without_matrix,
        matrix=matrix_name(file.matrix),
        choices=list(config.choices.items()),
        seed=config.seed,
        config=config.yaml,
        command=config.command,
        environments=config.environments,
        headline=headline,
        tiles=tables.tiles(headline),
        batches=tables.batches(file),
        layers=tables.layers(file),
        estimates=tables.estimates(file),
        steps=tables.steps(results) if len(results) > 1 else [],
        files=tables.files(folder),
        shard=next(iter(folder.shard_paths(last)), folder.shard(last, 0)),
        spectrum=folder.spectrum(last),
        versions=tables.versions(file.origin),
        law=data.law,
        **_about(folder),
    )
