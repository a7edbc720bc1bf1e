"""The page of a sweep: the spectra of its jobs over each other, the table, and the way to each job's own page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.report import Arrays, column_heads, render
from pipeline.results import COLUMNS, QUANTITIES, UNKNOWN, matrix_name, number
from pipeline.sweep.charts import Line, charts_of
from pipeline.sweep.evolution_charts import along_training
from pipeline.sweep.seeds import SEED
from pipeline.system import FINISHED

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.sweep.jobs import Job, Sweep

TEMPLATE = "sweep.html.jinja"


def page_of(sweep: Sweep) -> str:
    """The page as HTML, with plotly and all numbers inside."""
    arrays = Arrays()
    matrices: set[str] = set()
    lines = list(_lines(sweep, matrices))
    sections = charts_of(lines, arrays) | {"along": list(along_training(lines, arrays))}
    return render(
        TEMPLATE,
        [chart for charts in sections.values() for chart in charts],
        arrays,
        {},
        sections=sections,
        sweep=sweep,
        matrices=sorted(matrix_name(matrix) for matrix in matrices),
        num_finished=len(sweep.jobs) - len(sweep.unfinished),
        head=[
            "job",
            "state",
            *(key.rpartition(".")[2] for key in sweep.varying),
            *column_heads(_columns(sweep)),
        ],
        rows=[_row(sweep, job) for job in sweep.jobs],
        seeds=_seeds(sweep),
        unfinished=[[str(job.number), job.status.state, job.status.reason] for job in sweep.unfinished],
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _seeds(sweep: Sweep) -> tuple[list[str], list[list[str]]] | None:
    """Head and rows: mean ± standard deviation over the seeds, a row a group of jobs; None where seeds do not vary."""
    table = sweep.over_seeds
    if table is None:
        return None
    choices = [key for key in sweep.varying if key != SEED]
    keys = [key for key in _columns(sweep) if f"{key}_mean" in table]
    rows = []
    for row in table.to_dict("records"):
        cells = [QUANTITIES[key].text_with_deviation(row[f"{key}_mean"], row[f"{key}_std"]) for key in keys]
        rows.append([*(str(row[key]) for key in choices), number(int(row["num_seeds"])), *cells])
    return [*(key.rpartition(".")[2] for key in choices), "seeds", *column_heads(keys)], rows


def _lines(sweep: Sweep, matrices: set[str]) -> Iterator[Line]:
    """What is drawn of each job that has a spectrum; one job's files at a time are in memory."""
    from pipeline.results import SpectraFile

    for job in sweep.jobs:
        steps: dict[int, Mapping[str, float]] = {}
        if not job.folder.spectrum_steps() or job.status.state != FINISHED:
            continue
        try:
            for step in job.folder.spectrum_steps():
                file = SpectraFile.read(job.folder.spectrum(step))
                steps[step] = file.numbers
        except PipelineError:  # the table has what its summary says
            continue
        matrices.add(file.matrix)
        yield Line(
            job.number,
            {key: job.overrides.get(key, UNKNOWN) for key in sweep.varying},
            {key: value for key, value in job.summary.items() if isinstance(value, int | float)},
            np.asarray(file.mean.eigenvalues, float),
            file.density.grid if file.density is not None else None,
            file.density.values if file.density is not None else None,
            steps,
        )


def _columns(sweep: Sweep) -> list[str]:
    """Those that some job has; the number of weights only where it differs."""
    found = {key: {job.summary[key] for job in sweep.jobs if key in job.summary} for key in COLUMNS}
    least = {"num_parameters": 2}
    return [key for key in COLUMNS if len(found[key]) >= least.get(key, 1)]


def _row(sweep: Sweep, job: Job) -> list[Any]:
    from markupsafe import Markup

    name: Any = str(job.number)
    if job.folder.report.exists():
        name = Markup('<a href="{}">{}</a>').format(_link(sweep.folder, job.folder.report), job.number)
    choices = [job.overrides.get(key, UNKNOWN) for key in sweep.varying]
    numbers = [
        QUANTITIES[key].text(job.summary[key]) if key in job.summary else UNKNOWN for key in _columns(sweep)
    ]
    return [name, job.status.state, *choices, *numbers]


def _link(start: Path, target: Path) -> str:
    from urllib.parse import quote

    return quote(str(target.relative_to(start)))
