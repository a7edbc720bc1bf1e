"""The composition root: from the command line to a report.

    python -m pipeline.run model=mlp strategy=func

Config -> experiment -> train, compute, aggregate, slices, law, report, in a folder that no other process works in.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from pipeline.config import (
    CONF,
    Config,
    Stage,
    merge_with_saved,
    one_line_message,
    read_arguments,
    save_settings,
    settings_of,
    stages_of,
)
from pipeline.experiment import (
    NEED_MODEL,
    build,
    build_experiment,
    build_training,
    check_results,
    law_settings,
    prepare,
    resolved_settings,
)
from pipeline.run.stages import aggregate, compute, law, slices, train
from pipeline.sweep import LAUNCHER, Slurm, carry_out, conclude, sweep_folder, tracking_labels
from pipeline.system import RunFolder, prepare_terminal, print_line, recorded_status

if TYPE_CHECKING:
    from pipeline.tracking import Tracking

AGAIN = "to go on after a kill: the same command, with hydra.run.dir=that folder"
log = logging.getLogger("pipeline")
ConfigStore.instance().store(name="schema", node=Config)
Plugins.instance().class_name_to_class[LAUNCHER] = Slurm  # Hydra's search misses plugins of editable installs


def run(config: DictConfig, folder: RunFolder) -> None:
    """Do what the config asks for, and leave it in the folder."""
    with folder.lock(), recorded_status(folder, one_line_message):
        prepare(config)
        chosen, settings = stages_of(config.stages), settings_of(folder)
        tracking: Tracking = build(config, "tracking")
        tracker = tracking.ready()
        experiment = build_experiment(config) if chosen & NEED_MODEL else None
        if experiment is not None:
            # not before the config is known to be right
            from pipeline.compute import check_resources, settle_strategy

            settings = merge_with_saved(
                folder, resolved_settings(config), experiment.problem.hashes, experiment.environment()
            )
            experiment = settle_strategy(folder, experiment)
            training = build(config, "training") if config.training.get("num_steps") else None
            check_resources(folder, experiment, training, sweep_folder(), build(config, "cluster"))
            save_settings(folder, settings)
            log.info("run folder: %s (%s)", folder.path, AGAIN)
        else:
            check_results(config, folder)
            settings = settings or law_settings(config)
        from pipeline.report import RunRecorder, make_report

        with tracker.start(folder, *tracking_labels(settings), sweep_folder()) as tracked:
            recorder = RunRecorder(folder, tracked)
            if experiment is not None and Stage.train in chosen:
                train(recorder, experiment, build_training(config, folder, tracking))
            if experiment is not None and Stage.compute in chosen:
                compute(recorder, experiment, build(config, "cluster"))
            if Stage.aggregate in chosen:
                spectrum, cluster = build(config, "spectrum"), build(config, "cluster")
                aggregate(recorder, spectrum, cluster, config.num_batches)
            if experiment is not None and Stage.slices in chosen and experiment.slice_points is not None:
                slices(recorder, experiment, experiment.slice_points)
            if config.law is not None and Stage.law in chosen:
                law(recorder, build(config, "law"))
            if Stage.report in chosen:
                with recorder.stage(Stage.report):
                    make_report(folder, config.figure_formats)
            recorder.close()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> None:
    """What Hydra calls once for a run, and once for each job of a sweep."""
    carry_out(run, config)


def main() -> None:
    """The command: mistakes are told in one line, with status 1; HYDRA_FULL_ERROR=1 shows the traceback instead."""
    prepare_terminal()
    sys.path.insert(0, os.getcwd())  # classes of one's own, also for the installed command
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would otherwise print in a form of its own
    ending: BaseException | None = None
    try:
        if page := read_arguments():
            print_line(page)
        else:
            job()
    except (Exception, KeyboardInterrupt) as error:
        ending = error
    sys.exit(conclude(ending))
