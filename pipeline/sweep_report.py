"""The page of a sweep: the spectra of its jobs over each other, the table, and the way to each job's own page."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.chart_sweep import Line, charts_of
from pipeline.errors import PipelineError
from pipeline.page import Arrays, render
from pipeline.report_words import UNKNOWN, matrix_name, number, percent
from pipeline.status import FINISHED

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.sweep_jobs import Job, Sweep

TEMPLATE = "sweep.html.jinja"
COLUMNS = {
    "num_parameters": "P",
    "lambda_max": "λ max",
    "lambda_min": "λ min",
    "trace": "trace",
    "num_negative_eigenvalues": "negative",
    "effective_rank": "effective rank",
    "train_loss": "training loss",
    "test_accuracy": "test accuracy",
    "largest_probe_error": "certificate",
}


def page_of(sweep: Sweep) -> str:
    """The page as HTML, with plotly and all numbers inside."""
    arrays = Arrays()
    matrices: set[str] = set()
    lines = list(_lines(sweep, matrices))
    sections = charts_of(lines, arrays)
    return render(
        TEMPLATE,
        [chart for charts in sections.values() for chart in charts],
        arrays,
        {},
        sections=sections,
        sweep=sweep,
        matrices=sorted(matrix_name(matrix) for matrix in matrices),
        num_finished=len(sweep.jobs) - len(sweep.unfinished),
        head=["job", "state", *(key.rpartition(".")[2] for key in sweep.varying), *_columns(sweep).values()],
        rows=[_row(sweep, job) for job in sweep.jobs],
        unfinished=[[str(job.number), job.status.state, job.status.reason] for job in sweep.unfinished],
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _lines(sweep: Sweep, matrices: set[str]) -> Iterator[Line]:
    """What is drawn of each job that has a spectrum; one job's files at a time are in memory."""
    from pipeline.hdf5 import read_results

    for job in sweep.jobs:
        steps = job.folder.spectrum_steps()
        if not steps or job.status.state != FINISHED:
            continue
        try:
            found = read_results(job.folder.spectrum(steps[-1]))
        except PipelineError:  # the table has what its summary says
            continue
        matrices.add(str(found.attrs["matrix"]))
        yield Line(
            job.number,
            {key: job.overrides.get(key, UNKNOWN) for key in sweep.varying},
            {key: value for key, value in job.summary.items() if isinstance(value, int | float)},
            np.asarray(found.arrays["mean/eigenvalues"], float),
            found.arrays.get("density/grid"),
            found.arrays.get("density/values"),
        )


def _columns(sweep: Sweep) -> dict[str, str]:
    """Those that some job has; the number of weights only where it differs."""
    found = {key: {job.summary[key] for job in sweep.jobs if key in job.summary} for key in COLUMNS}
    least = {"num_parameters": 2}
    return {key: label for key, label in COLUMNS.items() if len(found[key]) >= least.get(key, 1)}


def _row(sweep: Sweep, job: Job) -> list[Any]:
    from markupsafe import Markup

    name: Any = str(job.number)
    if job.folder.report.exists():
        name = Markup('<a href="{}">{}</a>').format(_link(sweep.folder, job.folder.report), job.number)
    choices = [job.overrides.get(key, UNKNOWN) for key in sweep.varying]
    return [name, job.status.state, *choices, *(_text(key, job.summary.get(key)) for key in _columns(sweep))]


def _text(key: str, value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return (
        percent(value)
        if key.endswith("accuracy")
        else number(value, 2 if key == "largest_probe_error" else 4)
    )


def _link(start: Path, target: Path) -> str:
    from urllib.parse import quote

    return quote(str(target.relative_to(start)))
