"""The five stages of a run, and the diary in which each writes down its numbers."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.cluster import Cluster
from pipeline.config import Blocks, Keep, Stage, Verify
from pipeline.elsewhere import Elsewhere, Processes, Work
from pipeline.errors import DamagedFile, PipelineError
from pipeline.folder import RunFolder, set_aside, write_atomically
from pipeline.matrix import MATRICES, Matrix
from pipeline.objective import Batch
from pipeline.options import name_of
from pipeline.quantities import QUANTITIES, TABLE
from pipeline.results import open_run
from pipeline.spectrum import Decomposition
from pipeline.storage import AS_COMPUTED, Storage
from pipeline.strategy import STRATEGIES, Strategy
from pipeline.subject import Subject
from pipeline.terminal import say, table
from pipeline.tiles import Grid
from pipeline.tracking import TrackedRun
from pipeline.training import Training

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

log = logging.getLogger("pipeline")

MEASURED = ("loss", "gradient_norm", "probe_error", "seconds")  # of each batch, for the tracker


class Diary:
    """What a run has to say: to the terminal, to the tracker, and in summary.json."""

    def __init__(self, folder: RunFolder, tracked: TrackedRun) -> None:
        self.folder = folder
        self.tracked = tracked
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Time one stage."""
        start = time.perf_counter()
        yield
        self._seconds[f"seconds_{stage.value}"] = time.perf_counter() - start

    def summary(self) -> dict[str, float]:
        """The headline numbers of the last step that was aggregated, of the training, and the times; a flat dict."""
        run = open_run(self.folder.path)
        numbers: dict[str, float] = {}
        with suppress(PipelineError):  # a summary that is damaged is about to be replaced
            numbers = {key: run.summary[key] for key in run.summary if key.startswith("seconds_")}
        numbers |= self._seconds
        if self.folder.history.exists():
            with self.folder.history.open(newline="") as file:
                *_, last = csv.DictReader(file)
            numbers |= {key: float(value) for key, value in last.items() if key != "step" and value}
        if run.spectra:
            numbers |= run.spectra[max(run.spectra)].metrics
        return numbers

    def close(self) -> None:
        """Write summary.json, log its numbers and all files that are there, and print the table."""
        numbers = self.summary()
        write_atomically(self.folder.summary, json.dumps(numbers, indent=2) + "\n")
        self.tracked.log_metrics({key: value for key, value in numbers.items() if key.startswith("seconds_")})
        for path in (self.folder.config, self.folder.summary, self.folder.report):
            if path.exists():
                self.tracked.log_artifact(path)
        for path in sorted(self.folder.figures.glob("*.png")):
            self.tracked.log_artifact(path, under="figures")
        rows = {QUANTITIES[key].label: QUANTITIES[key].plain(numbers[key]) for key in TABLE if key in numbers}
        seconds = [
            f"{stage.value} {numbers[f'seconds_{stage.value}']:.1f} s"
            for stage in Stage
            if f"seconds_{stage.value}" in numbers
        ]
        table("Hessian spectrum", rows, note=", ".join(seconds))
        report, path = self.folder.report, self.folder.path
        say(f"report: {report}" if report.exists() else f"run folder: {path}")


def train(
    diary: Diary, subject: Subject, settings: Mapping[str, Any], build_training: Callable[[], Training]
) -> None:
    """Weights: a checkpoint at each step asked for and at the last one."""
    with diary.stage(Stage.train):
        build_training().run(
            subject.model,
            subject.criterion,
            subject.train,
            subject.test,
            diary.folder,
            checkpoint_steps=settings["checkpoint_steps"],
            seed=settings["seed"],
            log=lambda step, metrics: diary.tracked.log_metrics(metrics, step),
        )


def compute(
    diary: Diary,
    subject: Subject,
    settings: Mapping[str, Any],
    matrix: Matrix,
    strategy: Strategy,
    processes: Processes | None = None,
    storage: Storage = AS_COMPUTED,
) -> None:
    """Shards: one for each batch at each checkpoint, or their mean alone.

    processes: compute shards elsewhere; they are checked here.

    Raises:
        PipelineError: the folder has no checkpoint, or one of another experiment.
    """
    from pipeline.compute import compute_step, matrices_of
    from pipeline.running_mean import keep_mean

    steps = diary.folder.checkpoint_steps()
    if not steps:
        raise PipelineError(
            f"{diary.folder.checkpoints} holds no weights: add train to stages (training=none draws them)."
        )
    batches, recipe = _recipe(subject, settings, matrix, strategy, storage)
    keeps_mean = recipe.keeps_mean(len(batches))
    grid = Grid.of(subject.layout(settings["parameters"]), storage.tile, settings["blocks"])
    others = Elsewhere(processes, diary.folder.passing if keeps_mean else diary.folder.shard, grid)
    with diary.stage(Stage.compute):
        for step in steps:  # all of them before anything is written
            subject.load(diary.folder.checkpoint(step))
        if not keeps_mean:
            others.compute([(step, index) for step in steps for index in range(len(batches))])
        for step in steps:
            if len(steps) > 1:
                subject.load(diary.folder.checkpoint(step))
            about = (diary.folder, step, subject.model, subject.criterion, batches, recipe)
            if keeps_mean:
                made = keep_mean(diary.folder, step, matrices_of(*about), partial(others.compute_next, step))
            else:
                made = compute_step(*about)
            for attrs in made:
                prefix = "batch/" if step == steps[-1] else f"batch/step-{step:06d}/"
                numbers = {prefix + key: attrs[key] for key in MEASURED if key in attrs}
                diary.tracked.log_metrics(numbers, attrs["batch_index"])
    diary.tracked.set_tags({"shards": str(diary.folder.shards)})


def compute_one(
    folder: RunFolder,
    subject: Subject,
    settings: Mapping[str, Any],
    matrix: Matrix,
    strategy: Strategy,
    work: Work,
    storage: Storage = AS_COMPUTED,
) -> None:
    """One shard, or a band of one, in a process that has nothing else to do."""
    from pipeline.compute import matrices_of

    step, batch, band = work
    subject.load(folder.checkpoint(step))
    batches, recipe = _recipe(subject, settings, matrix, strategy, storage)
    [mine] = matrices_of(folder, step, subject.model, subject.criterion, batches, recipe, only=batch)
    if band is not None:
        mine.write_band(band)
    elif mine.there() is None:
        mine.write()


def _recipe(
    subject: Subject,
    settings: Mapping[str, Any],
    matrix: Matrix,
    strategy: Strategy,
    storage: Storage = AS_COMPUTED,
) -> tuple[list[Batch], Recipe]:
    from pipeline.compute import split
    from pipeline.recipe import Recipe

    batches = split(subject.train, subject.batch_size, settings["num_batches"], settings["seed"])
    names = {
        "strategy": name_of(strategy, STRATEGIES),
        "matrix": name_of(matrix, MATRICES),
        "reduction": str(getattr(subject.criterion, "reduction", "mean")),
        "config_hash": settings["config_hash"],
        "train_hash": subject.hashes["train_hash"],
    }
    return batches, Recipe(
        matrix,
        strategy,
        settings["parameters"],
        names,
        Verify[settings["verify"]],
        Blocks[settings["blocks"]],
        storage,
        Keep[settings["keep"]],
    )


def aggregate(diary: Diary, spectrum: Decomposition, cluster: Cluster, num_batches: int | None) -> None:
    """Spectra: one file for each checkpoint."""
    from pipeline.aggregate import aggregate as aggregate_folder

    with diary.stage(Stage.aggregate):
        try:
            for file in aggregate_folder(diary.folder, spectrum, cluster, num_batches):
                diary.tracked.log_metrics(file.metrics, file.step)
        except DamagedFile as damage:
            raise set_aside(damage) from damage


def slices(diary: Diary, subject: Subject, settings: Mapping[str, Any]) -> None:
    """The loss along the top eigenvectors: one file for each step; none where `slice_points` is null."""
    if settings["slice_points"] is None:
        return
    from pipeline.compute import split
    from pipeline.slices import Landscape, slice_steps

    batches = split(subject.train, subject.batch_size, settings["num_batches"], settings["seed"])
    about = (subject.model, subject.criterion, batches, settings["parameters"])
    with diary.stage(Stage.slices):
        for path in map(diary.folder.checkpoint, diary.folder.spectrum_steps()):
            if path.exists():
                subject.load(path)  # refuses those of another experiment, also where nothing is to do
        for _ in slice_steps(diary.folder, Landscape(*about, settings["slice_points"])):
            pass


def report(diary: Diary, settings: Mapping[str, Any]) -> None:
    """Figures and the page."""
    from pipeline.report import make_report

    with diary.stage(Stage.report):
        make_report(diary.folder, settings)
