"""A run as Hydra calls it, alone or as a job of a sweep: what is said of its end, and what stays of it."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from pipeline.config import SHOW_TRACEBACKS, interruption, log_error, one_line_message, print_error
from pipeline.errors import PipelineError
from pipeline.sweep.hydra_callback import discard_refused, discard_refused_sweeps, started_sweeps
from pipeline.sweep.slurm.launcher import LAUNCHER
from pipeline.system import LOG_ONLY, RunFolder, is_finished, note_finished

log = logging.getLogger("pipeline")


def carry_out(run: Callable[[DictConfig, RunFolder], None], config: DictConfig) -> None:
    """Do the run in its folder; a job of a sweep that is finished is taken as it is.

    Raises:
        Exception: what ended a job of a sweep, for Hydra; it has been told.
        SystemExit: what ended a single run has been told.
    """
    hydra, start = HydraConfig.get(), time.perf_counter()
    folder, overrides = RunFolder(Path(hydra.runtime.output_dir)), list(hydra.overrides.task)
    sweeping = hydra.mode == RunMode.MULTIRUN
    if sweeping:
        log.info("job %s: %s", hydra.job.num, " ".join(overrides))
        if is_finished(folder, overrides):
            log.info("it is finished: taken as it is.")
            return
    try:
        if hydra.launcher._target_ == LAUNCHER and not sweeping:
            raise PipelineError("hydra/launcher=slurm is for sweeps: add -m (a sweep may have a single job).")
        run(config, folder)
        log.info("finished after %.1f s.", time.perf_counter() - start, extra=LOG_ONLY)
        if sweeping:
            note_finished(folder, overrides)
    except KeyboardInterrupt:
        log.warning("interrupted%s", "." if sweeping else interruption(folder))
        discard_refused(folder)
        raise
    except Exception as error:
        log_error(error)
        if one_line_message(error):
            discard_refused(folder)
        if sweeping or SHOW_TRACEBACKS:
            raise  # the other jobs of a sweep go on, and Hydra ends with status 1
        sys.exit(1)


def conclude(ending: BaseException | None) -> int:
    """Tell what ended the command, sum up its sweeps, and give its exit status: 0, 1, or 130 after Ctrl-C."""
    sweeps = started_sweeps(ending)
    print_error(ending, in_sweep=bool(sweeps))
    discard_refused_sweeps()
    status = 0
    if sweeps:
        from pipeline.sweep.summary import exit_status  # HDF5, Jinja: not before they are needed

        status = max(map(exit_status, sweeps))
    if ending is not None:
        status = 130 if isinstance(ending, KeyboardInterrupt) else 1
    gc.freeze()  # else Python looks for cycles among all that torch has imported, half a second at the very end
    return status
