"""What Hydra tells of a run and of a sweep: which jobs there will be, in which folder, by which names they are tracked.

Hydra's `on_multirun_end` is not called when a job has failed, so the end of a sweep is seen to in `run.main`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, read_write

from pipeline.config import command, command_of, flat_settings, run_name
from pipeline.sweep.jobs import PLAN, has_jobs, job_name, plan
from pipeline.sweep.slurm.launcher import LaunchError
from pipeline.sweep.slurm.queue import NOTES
from pipeline.system import RunFolder, discard

RUN_NOTES = (
    ".lock",
    "run.log",
    "status.json",
    *(f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")),
)
SWEEP_NOTES = (PLAN, "multirun.yaml")
launched: list[Path] = []  # folders of the sweeps that this process has set out to launch
# By an empty folder of a run or a sweep: it and those above it that are still to be made, the deepest first.
new_folders: dict[Path, list[Path]] = {}


class Multirun(Callback):
    """Notes in the sweep's folder which jobs there will be, and here that a sweep has begun."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Let Hydra's notes be where another run is at work in the folder: this one will be refused."""
        folder = RunFolder(Path(config.hydra.run.dir).absolute())
        _note_missing(folder)
        if folder.is_held():
            with read_write(config.hydra):
                config.hydra.output_subdir = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute()
        launched.append(folder)
        _note_missing(RunFolder(folder))
        if (
            config.hydra.sweeper._target_ == f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}"
        ):  # others choose jobs as they go
            plan(folder, command(), jobs_of(config))


def _note_missing(folder: RunFolder) -> None:
    """Note which folders there will be, unless the folder holds something."""
    if not folder.path.is_dir() or not any(folder.path.iterdir()):
        new_folders[folder.path] = folder.missing()


def discard_refused(folder: RunFolder) -> None:
    """Remove the folder of a run that ended before it began, if nothing but that run has put anything there."""
    if folder.path in new_folders and not folder.config.exists():
        discard(folder.path, RUN_NOTES, [folder.path / ".hydra", *new_folders[folder.path]])


def discard_refused_sweeps() -> None:
    """The same for sweeps of which no job has begun."""
    for folder in launched:
        if folder in new_folders and not has_jobs(folder) and not (folder / NOTES).exists():
            discard(folder, SWEEP_NOTES, new_folders[folder])


def started_sweeps(ending: BaseException | None) -> list[Path]:
    """The folders of the sweeps of this process of which a job has begun; ending: what ended the command."""
    if isinstance(ending, LaunchError):
        return []
    return [folder for folder in launched if has_jobs(folder) or (folder / NOTES).exists()]


def sweep_folder() -> Path | None:
    """The folder of the sweep that this run is a job of; None for a single run."""
    hydra_config = HydraConfig.get()
    began = Path(hydra_config.runtime.cwd)  # hydra.job.chdir=True leaves it
    return began / hydra_config.sweep.dir if hydra_config.mode == RunMode.MULTIRUN else None


def tracking_labels(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The name, params and tags of this run in the tracker."""
    runtime, sweep = HydraConfig.get(), sweep_folder()
    choices = {group: str(choice) for group, choice in runtime.runtime.choices.items() if "/" not in group}
    if "law" in settings and "model" not in settings:  # the other groups play no part
        choices = {group: choices[group] for group in ("law", "experiment") if group in choices}
    name = job_name(sweep, int(runtime.job.num)) if sweep else None
    return (
        name or run_name(choices, runtime.overrides.task, settings),
        {**flat_settings(settings), **choices},  # model=mlp beside model.hidden_sizes=[32]
        {"command": command_of(settings)},
    )


def jobs_of(config: DictConfig) -> list[list[str]]:
    """The overrides of each job that Hydra's own sweeper will launch, in the order of their numbers."""
    parameters = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*parameters, *config.hydra.overrides.task])
    [jobs] = BasicSweeper.split_arguments(overrides, None)
    return jobs
