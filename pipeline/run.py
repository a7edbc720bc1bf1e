"""The composition root: from the command line to a report.

    python -m pipeline.run model=mlp strategy=func

Config -> experiment -> train, compute, aggregate, slices, report, in a folder that no other process works in.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig

from pipeline.config import CONF, Config, Stage, explain, keep, settings_of, settle
from pipeline.errors import DamagedFile, PipelineError
from pipeline.experiment import NEED_MODEL, build, build_training, instantiate, plain, prepare
from pipeline.sweep import NAME, LaunchError, Slurm, labels, started_sweeps, sweep_folder
from pipeline.system import RunFolder, is_finished, note_finished, recorded_status, set_aside

if TYPE_CHECKING:
    from pipeline.cluster import Cluster
    from pipeline.experiment import Experiment
    from pipeline.report import RunRecorder
    from pipeline.spectrum import SpectrumMethod
    from pipeline.tracking import Tracking

SHOW_TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
log = logging.getLogger("pipeline")
ConfigStore.instance().store(name="schema", node=Config)
Plugins.instance().class_name_to_class[NAME] = Slurm  # Hydra's search misses plugins of editable installs


def run(config: DictConfig, folder: RunFolder) -> None:
    """Do what the config asks for, and leave it in the folder."""
    with folder.lock(), recorded_status(folder, explain):
        prepare(config)
        stages, settings = set(config.stages), settings_of(folder)
        tracking: Tracking = build(config, "tracking")
        tracker = tracking.ready()
        experiment = instantiate(config) if stages & NEED_MODEL else None
        if experiment is not None:
            # not before the config is known to be right
            from pipeline.compute import check_resources

            settings = settle(folder, plain(config), experiment.problem.hashes)
            training = build(config, "training") if config.training.get("num_steps") else None
            check_resources(folder, experiment, training, sweep_folder())
            keep(folder, settings)
            again = "to go on after a kill: the same command, with hydra.run.dir=that folder"
            log.info("run folder: %s (%s)", folder.path, again)
        else:
            for group in ("matrix", "strategy", "storage", "spectrum"):
                build(config, group)  # a value that is wrong is refused, whatever the stages
        from pipeline.report import RunRecorder

        with tracker.start(folder, *labels(settings), sweep_folder()) as tracked:
            recorder = RunRecorder(folder, tracked)
            if experiment is not None and Stage.train in stages:
                train(recorder, experiment, config, tracking)
            if experiment is not None and Stage.compute in stages:
                compute(recorder, experiment, build(config, "cluster"))
            if Stage.aggregate in stages:
                aggregate(recorder, build(config, "spectrum"), build(config, "cluster"), config.num_batches)
            if experiment is not None and Stage.slices in stages:
                slices(recorder, experiment)
            if Stage.report in stages:
                report(recorder)
            recorder.close()


def train(recorder: RunRecorder, experiment: Experiment, config: DictConfig, tracking: Tracking) -> None:
    """Weights: a checkpoint at each step asked for and at the last one."""
    problem = experiment.problem
    with recorder.stage(Stage.train):
        build_training(config, recorder.folder, tracking).run(
            problem.model,
            problem.criterion,
            problem.train,
            problem.test,
            recorder.folder,
            checkpoint_steps=experiment.checkpoint_steps,
            seed=experiment.seed,
            log=lambda step, metrics: recorder.tracked.log_metrics(metrics, step),
        )


def compute(recorder: RunRecorder, experiment: Experiment, cluster: Cluster) -> None:
    """Shards: one for each batch at each checkpoint, or their mean alone."""
    from pipeline.compute import compute as compute_shards
    from pipeline.compute import processes_of

    processes = processes_of(cluster, experiment, recorder.folder)
    with recorder.stage(Stage.compute):
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
                recorder.tracked.log_metrics(file.metrics, file.step)
        except DamagedFile as damage:
            raise set_aside(damage) from damage


def slices(recorder: RunRecorder, experiment: Experiment) -> None:
    """The loss along the top eigenvectors: one file for each step; none where `slice_points` is null."""
    from pipeline.compute import compute_slices

    if experiment.slice_points is not None:
        with recorder.stage(Stage.slices):
            compute_slices(recorder.folder, experiment, experiment.slice_points)


def report(recorder: RunRecorder) -> None:
    """Figures and the page."""
    from pipeline.report import make_report

    with recorder.stage(Stage.report):
        make_report(recorder.folder)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> None:
    """What Hydra calls once for a run, and once for each job of a sweep."""
    hydra_config = HydraConfig.get()
    folder, overrides = RunFolder(Path(hydra_config.runtime.output_dir)), list(hydra_config.overrides.task)
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    if sweeping:
        log.info("job %s: %s", hydra_config.job.num, " ".join(overrides))
        if is_finished(folder, overrides):
            log.info("it is finished: taken as it is.")
            return
    try:
        if hydra_config.launcher._target_ == NAME and not sweeping:
            raise PipelineError("hydra/launcher=slurm is for sweeps: add -m (a sweep may have a single job).")
        run(config, folder)
        if sweeping:
            note_finished(folder, overrides)
    except Exception as error:
        if line := explain(error):
            log.error("%s", line)
        else:
            log.exception("unexpected %s: %s (the traceback is in run.log)", type(error).__name__, error)
        error.add_note("told")
        if sweeping or SHOW_TRACEBACKS:
            raise  # the other jobs of a sweep go on, and Hydra ends with status 1
        sys.exit(1)


def main() -> None:
    """The command: mistakes are told in one line, with status 1; HYDRA_FULL_ERROR=1 shows the traceback instead."""
    logging.raiseExceptions = (
        SHOW_TRACEBACKS  # a line that does not reach run.log is no reason for a traceback
    )
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would otherwise print in a form of its own
    status, untold = 0, None
    try:
        job()
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        status, untold = 1, error
    sweep = [] if isinstance(untold, LaunchError) else started_sweeps()
    if untold and SHOW_TRACEBACKS:
        traceback.print_exception(untold)
    elif untold and not (sweep and _is_a_jobs(untold)):  # the table of a sweep tells what became of its jobs
        print(explain(untold) or f"unexpected {type(untold).__name__}: {untold}", file=sys.stderr)
    if sweep:
        from pipeline.sweep import exit_status

    for folder in sweep:
        status = exit_status(folder) or status
    gc.freeze()  # else Python looks for cycles among all that torch has imported, half a second at the very end
    sys.exit(status)


def _is_a_jobs(error: Exception) -> bool:
    """Whether a job has told it; else it is the launcher's, and keeps jobs from beginning."""
    return isinstance(error, PipelineError) or bool(getattr(error, "__notes__", ()))


if __name__ == "__main__":
    main()
