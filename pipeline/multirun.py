"""What Hydra tells before it begins: of a sweep, which jobs there will be; beside `run.py` the only importer of Hydra.

Hydra's `on_multirun_end` is not called when a job has failed, so the end of a sweep is seen to in `run.main`.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write

from pipeline.folder import RunFolder
from pipeline.sweep_jobs import plan

launched: list[Path] = []  # folders of the sweeps that this process has set out to launch


class Multirun(Callback):
    """Notes in the sweep's folder which jobs there will be, and here that a sweep has begun."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Let Hydra's notes be where another run is at work in the folder: this one will be refused."""
        if RunFolder(Path(config.hydra.run.dir)).is_held():
            with read_write(config.hydra):
                config.hydra.output_subdir = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute()
        launched.append(folder)
        if config.hydra.sweeper._target_.endswith("BasicSweeper"):  # others choose jobs as they go
            plan(folder, shlex.join(["python", "-m", "pipeline.run", *sys.argv[1:]]), jobs_of(config))


def jobs_of(config: DictConfig) -> list[list[str]]:
    """The overrides of each job that Hydra's own sweeper will launch, in the order of their numbers."""
    parameters = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*parameters, *config.hydra.overrides.task])
    [jobs] = BasicSweeper.split_arguments(overrides, None)
    return jobs
