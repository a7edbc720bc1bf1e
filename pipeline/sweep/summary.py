"""The end of a sweep: one table, one report and one MLflow run over all its jobs. `python -m pipeline.sweep FOLDER`.

    sweep.json      what was to be run: the command, and the overrides of each job by its number
    0/ 1/ 2/ …      the run folders of the jobs
    summary.csv     a row a job: its state, the choices that vary, the headline numbers, why it is not finished
    seeds.csv       mean and standard deviation over the seeds, a row for the jobs that share all other choices
    report.html     the spectra of all jobs over each other, headline numbers against the choices, the table
    mlflow.json     the MLflow run under which those of the jobs hang; it carries the table and the page

All of it is made from the folder, so it does not matter where the jobs ran, which of them failed, or whether the
process that launched them lived to see their end.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.report import column_heads
from pipeline.results import COLUMNS, QUANTITIES
from pipeline.sweep.jobs import Job, Sweep, open_sweep
from pipeline.sweep.mlflow_run import record
from pipeline.system import locked, print_line, print_rows, write_atomically

TABLE, SEEDS, REPORT = "summary.csv", "seeds.csv", "report.html"
log = logging.getLogger("pipeline")


def conclude(folder: Path) -> Sweep:
    """Write the table and the page, log both to the sweep's MLflow run, and print the table.

    Raises:
        PipelineError: no sweep was begun there, or a file cannot be written.
    """
    from pipeline.sweep.page import page_of

    sweep = open_sweep(folder)
    files = {sweep.folder / TABLE: sweep.table.to_csv(), sweep.folder / REPORT: page_of(sweep)}
    if sweep.over_seeds is not None:
        files[sweep.folder / SEEDS] = sweep.over_seeds.to_csv(index=False)
    with locked(
        sweep.folder / ".summary.lock", "hydra.sweep.dir=FOLDER"
    ):  # the command may be given twice at once
        for path, content in files.items():
            write_atomically(path, content)
    try:
        record(sweep, list(files))
    except PipelineError as error:  # the files are there: `python -m pipeline.sweep` records them again
        log.warning("the sweep is not in MLflow: %s", error)
    show(sweep)
    return sweep


def exit_status(folder: Path) -> int:
    """Sum up the sweep in a folder; 1 if a job is not finished or the table cannot be made."""
    try:
        return 1 if conclude(folder).unfinished else 0
    except PipelineError as error:
        log.error("%s", error)
        return 1


def show(sweep: Sweep) -> None:
    """Print the table, each job that is not finished with its reason, and where the files are."""
    unfinished = sweep.unfinished
    head = ["job", *(["state"] if unfinished else []), *(key.rpartition(".")[2] for key in sweep.varying)]
    head += column_heads([key for key in COLUMNS if key in sweep.table])
    print_rows(f"sweep of {_count(len(sweep.jobs))}", head, [_cells(sweep, job) for job in sweep.jobs])
    for job in unfinished:
        choices = " ".join(f"{key}={job.overrides[key]}" for key in sweep.varying if key in job.overrides)
        print_line(f"job {job.number} ({choices}) {job.status.state}: {job.status.reason}", "bold red")
    done = len(sweep.jobs) - len(unfinished)
    print_line(f"{done} of {_count(len(sweep.jobs))} finished.")
    if unfinished:
        print_line(
            f"to run what is missing: python -m pipeline.sweep resume {shlex.quote(str(sweep.folder))}"
        )
    print_line(f"table: {sweep.folder / TABLE}")
    print_line(f"report: {sweep.folder / REPORT}")


def _cells(sweep: Sweep, job: Job) -> list[str]:
    state = [job.status.state] if sweep.unfinished else []
    shown = [key for key in COLUMNS if key in sweep.table]
    numbers = [QUANTITIES[key].text(job.summary[key]) if key in job.summary else "" for key in shown]
    return [str(job.number), *state, *(job.overrides.get(key, "") for key in sweep.varying), *numbers]


def _count(jobs: int) -> str:
    return "1 job" if jobs == 1 else f"{jobs} jobs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Sum up the sweep in a folder; 0 if all of its jobs are finished."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.sweep",
        description="Sum up a sweep: its table, its page and its run in MLflow. Status 1 if a job is not finished. "
        "`python -m pipeline.sweep resume FOLDER` runs what is missing.",
    )
    parser.add_argument(
        "folder", type=Path, help="of the sweep, such as outputs/multirun/2026-01-31/12-00-00"
    )
    try:
        return 1 if conclude(parser.parse_args(arguments).folder).unfinished else 0
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
