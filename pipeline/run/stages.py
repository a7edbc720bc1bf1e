"""The stages of a run: what each is given, and what it leaves in the run folder.

A stage imports its room when it begins, so that a run imports no more than its stages need.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from pipeline.config import Stage
from pipeline.errors import DamagedFile
from pipeline.system import set_aside

if TYPE_CHECKING:
    from pipeline.cluster import Cluster
    from pipeline.experiment import Experiment
    from pipeline.law import Law
    from pipeline.report import RunRecorder
    from pipeline.spectrum import SpectrumMethod


def train(recorder: RunRecorder, experiment: Experiment, training: Any) -> None:
    """Weights: a checkpoint at each step asked for and at the last one."""
    problem = experiment.problem
    with recorder.stage(Stage.train):
        training.run(
            *(problem.model, problem.criterion, problem.train, problem.test, recorder.folder),
            checkpoint_steps=experiment.checkpoint_steps,
            seed=experiment.seed,
            log=lambda step, metrics: recorder.log(metrics, step),
        )


def compute(recorder: RunRecorder, experiment: Experiment, cluster: Cluster) -> None:
    """Shards: one for each batch at each checkpoint, or their mean alone; spectra, where no matrix is computed."""
    from pipeline.compute import ProductWorkers, estimate_spectra, processes_of
    from pipeline.compute import compute as compute_shards

    with recorder.stage(Stage.compute):
        if not experiment.matrix.is_computed:
            with ProductWorkers.of(cluster, experiment, recorder.folder) or nullcontext() as workers:
                estimate_spectra(recorder.folder, experiment, workers)
            return
        processes = processes_of(cluster, experiment, recorder.folder)
        compute_shards(recorder.folder, experiment, recorder.tracked.log_metrics, processes)
    recorder.tracked.set_tags({"shards": str(recorder.folder.shards)})


def aggregate(
    recorder: RunRecorder, spectrum: SpectrumMethod, cluster: Cluster, num_batches: int | None
) -> None:
    """Spectra: one file for each checkpoint."""
    from pipeline.aggregate import aggregate as aggregate_folder

    with recorder.stage(Stage.aggregate):
        try:
            for file in aggregate_folder(recorder.folder, spectrum, cluster, num_batches):
                recorder.log(file.metrics, file.step)
        except DamagedFile as damage:
            raise set_aside(damage) from damage


def slices(recorder: RunRecorder, experiment: Experiment, num_points: int) -> None:
    """The loss along the top eigenvectors: one file for each step."""
    from pipeline.compute import compute_slices

    with recorder.stage(Stage.slices):
        compute_slices(recorder.folder, experiment, num_points)


def law(recorder: RunRecorder, measured: Law) -> None:
    """The law of an experiment, and whether it holds: law.h5."""
    from pipeline.law import measure

    with recorder.stage(Stage.law):
        recorder.log(measure(recorder.folder, measured).metrics, 0)
