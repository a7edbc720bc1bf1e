"""Collects a run's headline numbers: writes summary.json, logs to the tracker, prints the final table."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from pipeline.config import FIGURE_FORMATS, Stage
from pipeline.errors import PipelineError
from pipeline.results import FIRST_CHARTS, QUANTITIES, TABLE, Run, matrix_name, open_run
from pipeline.system import LOG_ONLY, RunFolder, print_line, table, write_atomically
from pipeline.tracking import TrackedRun

log = logging.getLogger("pipeline")


class RunRecorder:
    """The numbers of one run, the seconds of its stages, and where both are written."""

    def __init__(self, folder: RunFolder, tracked: TrackedRun) -> None:
        self.folder = folder
        self.tracked = tracked
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Time one stage."""
        start = time.perf_counter()
        yield
        seconds = self._seconds[f"seconds_{stage.value}"] = time.perf_counter() - start
        log.info("%s: %.1f s", stage.value, seconds, extra=LOG_ONLY)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers of a step of training; those that a person looks for also under `headline/`.

        MLflow draws a section for each prefix, in the order of their names, and numbers without a prefix after them.
        """
        first = {f"headline/{key}": metrics[key] for key in FIRST_CHARTS if key in metrics}
        self.tracked.log_metrics({**metrics, **first}, step)

    def _summary(self, run: Run) -> dict[str, float]:
        """The headline numbers of the last step that was aggregated, of the training, and the times; a flat dict."""
        numbers: dict[str, float] = {}
        with suppress(PipelineError):  # a summary that is damaged is about to be replaced
            numbers = {key: run.summary[key] for key in run.summary if key.startswith("seconds_")}
        numbers |= self._seconds
        if self.folder.history.exists():
            with self.folder.history.open(newline="", encoding="utf-8") as file:
                *_, last = csv.DictReader(file)
            numbers |= {key: float(value) for key, value in last.items() if key != "step" and value}
        if run.spectra:
            numbers |= run.spectra[max(run.spectra)].metrics
        if run.law is not None:
            numbers |= run.law.metrics
        return numbers

    def close(self) -> None:
        """Write summary.json, log its numbers and all files that are there, and print the table."""
        run = open_run(self.folder.path)
        numbers = self._summary(run)
        write_atomically(self.folder.summary, json.dumps(numbers, indent=2) + "\n")
        self.tracked.log_metrics({key: value for key, value in numbers.items() if key.startswith("seconds_")})
        for path in (self.folder.config, self.folder.summary, self.folder.report):
            if path.exists():
                self.tracked.log_artifact(path)
        for path in sorted(self.folder.figures.iterdir() if self.folder.figures.exists() else ()):
            if path.suffix[1:] in FIGURE_FORMATS:
                self.tracked.log_artifact(path, under="figures")
        rows = {QUANTITIES[key].label: QUANTITIES[key].plain(numbers[key]) for key in TABLE if key in numbers}
        seconds = [
            f"{stage.value} {numbers[f'seconds_{stage.value}']:.1f} s"
            for stage in Stage
            if f"seconds_{stage.value}" in numbers
        ]
        if rows:
            table(_title(run), rows)
        report, path = self.folder.report, self.folder.path
        for line in (", ".join(seconds), f"report: {report}" if report.exists() else f"run folder: {path}"):
            print_line(line)
            log.info("%s", line, extra=LOG_ONLY)


def _title(run: Run) -> str:
    """Of the table: which matrix the spectrum is of, where there is one."""
    if not run.spectra:
        return "Results"
    name = matrix_name(run.spectra[max(run.spectra)].matrix)
    return f"{name[0].upper()}{name[1:]} spectrum"
