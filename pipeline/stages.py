"""The four stages of a run, and the diary in which each writes down its numbers."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.bands import Band, dealt
from pipeline.cluster import Cluster
from pipeline.config import Blocks, Keep, Stage, Verify
from pipeline.errors import DamagedFile, PipelineError
from pipeline.folder import RunFolder, set_aside, write_atomically
from pipeline.headline import HEADLINE
from pipeline.limits import available_memory, check_disk, check_memory, in_words
from pipeline.matrix import MATRICES, Matrix
from pipeline.objective import Batch, objective_of
from pipeline.plan import Plan, expected_seconds
from pipeline.results import open_run
from pipeline.shards import file_size
from pipeline.spectrum import Decomposition
from pipeline.storage import Plain, Storage
from pipeline.strategy import STRATEGIES, Strategy
from pipeline.subject import Subject
from pipeline.terminal import say, table
from pipeline.tiles import Grid
from pipeline.tracking import TrackedRun
from pipeline.training import Training

if TYPE_CHECKING:
    from pipeline.compute import Recipe
    from pipeline.figures_beside import Drawer

AS_COMPUTED = Plain()
log = logging.getLogger("pipeline")

Work = tuple[int, int, Band | None]  # a step, a batch, and a band of its matrix; None for all of it
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
            numbers |= headline(run.spectra[max(run.spectra)].attrs)
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
        rows = {label: form.format(numbers[key]) for key, (label, form) in HEADLINE.items() if key in numbers}
        seconds = [
            f"{stage.value} {numbers[f'seconds_{stage.value}']:.1f} s"
            for stage in Stage
            if f"seconds_{stage.value}" in numbers
        ]
        table("Hessian spectrum", rows, note=", ".join(seconds))
        report, path = self.folder.report, self.folder.path
        say(f"report: {report}" if report.exists() else f"run folder: {path}")


def headline(attrs: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among a spectra file's attributes."""
    return {
        key: value
        for key, value in attrs.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and key not in ("format_version", "num_top")
    }


def check_plan(
    folder: RunFolder,
    subject: Subject,
    settings: Mapping[str, Any],
    matrix: Matrix,
    strategy: Strategy,
    spectrum: Decomposition,
    storage: Storage = AS_COMPUTED,
) -> None:
    """Say how large the matrices will be and what they will take, and refuse now what would not fit later.

    Raises:
        PipelineError: with P, the bytes needed, the bytes there, and what to do.
    """
    layout = subject.layout(settings["parameters"])
    num_parameters = layout.num_parameters
    itemsize = 4 if settings["dtype"] == "float32" else 8
    needs, batches, bytes_each, num_matrices = {}, [], 0, 0
    if "compute" in settings["stages"]:
        from pipeline.compute import split

        batches = split(subject.train, subject.batch_size, settings["num_batches"], settings["seed"])
        steps = {*settings["checkpoint_steps"], settings["training"].get("num_steps", 0)}
        num_matrices, num_files = _to_make(folder, steps, len(batches), settings["keep"])
        stored = 4 if storage.precision == "float32" else itemsize
        bytes_each = file_size(layout, stored, settings["blocks"], storage.tile)
        check_disk(folder.path, num_parameters, bytes_each, num_files)
        needs[f"strategy={_name(strategy, STRATEGIES)}"] = strategy.memory(num_parameters, itemsize)
    if "aggregate" in settings["stages"]:
        needs[f"spectrum={type(spectrum).__name__.lower()}"] = spectrum.memory(num_parameters, itemsize)
    check_memory(num_parameters, needs)
    log.info(
        "%s: P = %s weights, a matrix of %s; the run needs up to %s of memory for matrices, %s are free.",
        type(subject.model).__name__,
        f"{num_parameters:,}",
        in_words(num_parameters**2 * itemsize),
        in_words(max(needs.values(), default=0)),
        in_words(available_memory()),
    )
    if num_matrices > 0:
        plan, seconds = _work(subject, settings, matrix, strategy, batches[0])
        log.info(
            "to compute: %d %s of %s, %s on disk; about %s, and what the disk takes.",
            num_matrices,
            "matrix" if num_matrices == 1 else "matrices",
            plan,
            in_words(num_files * bytes_each),
            _duration(num_matrices * seconds),
        )


def _to_make(folder: RunFolder, steps: Iterable[int], num_batches: int, keep: str) -> tuple[int, int]:
    """How many matrices are to be computed, and how many more files of one matrix there will be on the disk."""
    from pipeline.running_mean import num_in_mean

    num_matrices = num_files = 0
    for step in steps:
        shards = [folder.shard(step, index) for index in range(num_batches)]
        num_missing = sum(not shard.exists() for shard in shards)
        if num_batches > 1 and not folder.mean(step).exists():
            num_files += 1  # the mean of one shard is that shard
        if keep == "mean" and num_batches > 1:
            num_missing = min(num_missing, num_batches - num_in_mean(folder, step))
        else:
            num_files += num_missing
        num_matrices += num_missing
    if keep == "mean" and num_batches > 1 and num_matrices:
        num_files += 2  # the mean so far, and the batch that is added to it
    return num_matrices, num_files


def _work(
    subject: Subject, settings: Mapping[str, Any], matrix: Matrix, strategy: Strategy, batch: Batch
) -> tuple[Plan, float]:
    """The plan of one batch, and how long it will take in seconds."""
    from pipeline.compute import parts_of

    about = (subject.model, subject.criterion, settings["parameters"])
    plans = []
    for part in parts_of(*about, Blocks[settings["blocks"]]):
        transformed, drawn = matrix.problem(part.objective, part.params, batch)
        plans.append(Plan.of(strategy, transformed, part.params, drawn))
    plan = Plan.together(plans)
    return plan, expected_seconds(plan, *objective_of(*about), batch)


def _duration(seconds: float) -> str:
    """In the unit that a person would use."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


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
    elsewhere: Callable[[Callable[[int], list[Work]]], None] | None = None,
    storage: Storage = AS_COMPUTED,
) -> None:
    """Shards: one for each batch at each checkpoint.

    elsewhere: does in other processes what a function of their number says; the shards are checked here.

    Raises:
        PipelineError: the folder has no checkpoint.
    """
    from pipeline.checkpoints import load_weights
    from pipeline.compute import compute_mean, compute_step

    steps = diary.folder.checkpoint_steps()
    if not steps:
        raise PipelineError(
            f"{diary.folder.checkpoints} holds no weights: add train to stages (training=none draws them)."
        )
    batches, recipe = _recipe(subject, settings, matrix, strategy, storage)
    keeps_mean = recipe.keeps_mean(len(batches))
    place = diary.folder.passing if keeps_mean else diary.folder.shard
    grid = Grid.of(subject.layout(settings["parameters"]), storage.tile, settings["blocks"])

    def hand_out(step: int | None, indices: Iterable[int], most: int | None = None) -> None:
        """Have other processes compute the shards of these batches that are not there; `most`: so many a process."""
        chosen = steps if step is None else [step]
        missing = [(at, index) for at in chosen for index in indices if not place(at, index).exists()]

        def work(num_workers: int) -> list[Work]:
            taken = missing[: most and most * num_workers]
            calls = dealt([place(*each) for each in taken], grid, num_workers)
            return [(*taken[index], band) for index, band in calls]

        if elsewhere is not None and missing:
            elsewhere(work)

    with diary.stage(Stage.compute):
        if not keeps_mean:
            hand_out(None, range(len(batches)))
        for step in steps:
            load_weights(diary.folder.checkpoint(step), subject.model)
            about = (diary.folder, step, subject.model, subject.criterion, batches, recipe)
            made = (
                compute_mean(*about, partial(hand_out, step, most=1)) if keeps_mean else compute_step(*about)
            )
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
    from pipeline.checkpoints import load_weights
    from pipeline.compute import compute_band, compute_step

    step, batch, band = work
    load_weights(folder.checkpoint(step), subject.model)
    batches, recipe = _recipe(subject, settings, matrix, strategy, storage)
    about = (folder, step, subject.model, subject.criterion, batches, recipe, batch)
    if band is not None:
        compute_band(*about, band)
    else:
        deque(compute_step(*about), maxlen=0)


def _recipe(
    subject: Subject,
    settings: Mapping[str, Any],
    matrix: Matrix,
    strategy: Strategy,
    storage: Storage = AS_COMPUTED,
) -> tuple[list[Batch], Recipe]:
    from pipeline.compute import Recipe, split

    batches = split(subject.train, subject.batch_size, settings["num_batches"], settings["seed"])
    names = {
        "strategy": _name(strategy, STRATEGIES),
        "matrix": _name(matrix, MATRICES),
        "reduction": str(getattr(subject.criterion, "reduction", "mean")),
        "config_hash": settings["config_hash"],
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


def _name(choice: object, kinds: Mapping[str, type]) -> str:
    """The name of a choice in `conf/`; that of its class, where it is the user's own."""
    return next((name for name, kind in kinds.items() if type(choice) is kind), type(choice).__name__)


def aggregate(diary: Diary, spectrum: Decomposition, cluster: Cluster, num_batches: int | None) -> None:
    """Spectra: one file for each checkpoint."""
    from pipeline.aggregate import aggregate as aggregate_folder

    with diary.stage(Stage.aggregate):
        try:
            for attrs in aggregate_folder(diary.folder, spectrum, cluster, num_batches):
                diary.tracked.log_metrics(headline(attrs), attrs["step"])
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
        for _ in slice_steps(diary.folder, Landscape(*about, settings["slice_points"])):
            pass


def report(diary: Diary, settings: Mapping[str, Any], drawers: Sequence[Drawer] = ()) -> None:
    """Figures and the page."""
    from pipeline.report import make_report

    with diary.stage(Stage.report):
        make_report(diary.folder, settings, drawers)
