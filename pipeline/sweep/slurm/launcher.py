"""Sweeps on SLURM: Hydra's submitit launcher, made to see every job to its end.

The stock launcher raises at the first job that is lost and forgets the others, waits for ever for a cancelled job
where SLURM keeps no accounts, and submits everything again when a sweep is taken up. This one waits for all, says of
each that is lost which and why, skips what is finished, and waits for what an earlier launcher left in the queue.

In a job, SLURM's signal (USR2: preempted, or near the time limit) makes submitit queue the job again and leave. Every
file of a run folder is whole at any moment, so any moment is safe; the next start of the job takes the same folder up.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict

from pipeline.config import one_line_message
from pipeline.errors import PipelineError
from pipeline.sweep.slurm.preemption import clear_away, listen, python
from pipeline.sweep.slurm.queue import Job, QueueWatcher, note, still_queued
from pipeline.sweep.slurm.settings import check, for_sbatch
from pipeline.system import RunFolder, is_finished, slurm

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
except ImportError:  # the extra [slurm] is not installed: told when a sweep is launched
    SlurmLauncher = None

LAUNCHER = "hydra_plugins.curvature.Slurm"  # as conf/hydra/launcher/slurm.yaml calls it
log = logging.getLogger("pipeline")


class LaunchError(PipelineError):
    """No job of the sweep was submitted."""


class Slurm(SlurmLauncher or Launcher):  # type: ignore[misc]
    """Each job of a sweep is a task of a SLURM array."""

    def __init__(self, **params: Any) -> None:
        if SlurmLauncher is None:
            raise PipelineError(
                "hydra/launcher=slurm needs Hydra's submitit launcher: pip install 'curvature-pipeline[slurm]'."
            )
        super().__init__(**params)
        check(self.params)
        self.command = sys.argv[1:]

    def __call__(self, *arguments: Any) -> JobReturn:
        """Run in the job itself, at each of its starts."""
        sys.argv[1:] = self.command  # which the run folder and MLflow tell, not submitit's
        clear_away()
        listen(self.params)
        returned: JobReturn = super().__call__(*arguments)
        if returned.status == JobStatus.FAILED:
            error = returned._return_value  # `return_value` raises it
            returned.return_value = PipelineError(
                one_line_message(error) or f"unexpected {type(error).__name__}: {error}"
            )
        return returned

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Submit what is missing, wait for all, and return how each ended.

        Raises:
            LaunchError: no SLURM, a store that the jobs cannot share, or sbatch refuses the jobs.
        """
        try:
            jobs, queued = self._queue(job_overrides, initial_job_idx)
        except PipelineError as error:
            raise LaunchError(str(error)) from error
        try:
            lost = QueueWatcher(self.params).wait(queued)
        except KeyboardInterrupt:
            arrays = " ".join(sorted({job.slurm_id.partition("_")[0] for job in queued}))
            log.warning(
                "the jobs go on without this command: scancel %s ends them, python -m pipeline.sweep resume %s "
                "waits for them and runs what is missing.", arrays, self._sweep
            )  # fmt: skip
            raise
        return [_returned(job, lost.get(job.number)) for job in jobs]

    @property
    def _sweep(self) -> Path:
        return Path(str(self.config.hydra.sweep.dir)).absolute()

    def _queue(self, job_overrides: Sequence[Sequence[str]], first: int) -> tuple[list[Job], list[Job]]:
        """All jobs, and those of them that SLURM has, whether they were submitted now or before."""
        slurm.check_commands("hydra/launcher=slurm")
        self._sweep.mkdir(parents=True, exist_ok=True)
        jobs = [self._job(first + place, list(given)) for place, given in enumerate(job_overrides)]
        missing = [job for job in jobs if not is_finished(job.folder, job.overrides)]
        if len(missing) < len(jobs):
            log.info("%d of %d jobs are finished: taken as they are.", len(jobs) - len(missing), len(jobs))
        self._check_stores({job.store for job in missing if job.store})
        queued = still_queued(self._sweep, missing)
        if queued:
            log.info("%d jobs are in SLURM's queue already: waiting for them.", len(queued))
        there = {job.number for job in queued}
        if new := [job for job in missing if job.number not in there]:
            queued += self._submit(new)
        return jobs, queued

    def _job(self, number: int, overrides: list[str]) -> Job:
        """The job, with its folder as Hydra will call it."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)  # what ${hydra:...} is taken from
        try:
            folder = Path(str(config.hydra.sweep.dir)).absolute() / str(config.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = before
        tracking = config.get("tracking")
        store = (tracking.get("uri"), tracking.root) if tracking and "root" in tracking else None
        return Job(number, overrides, RunFolder(folder), store)

    def _check_stores(self, stores: set[tuple[str | None, str]]) -> None:
        """Refuse a store that the jobs cannot share.

        Raises:
            PipelineError: SQLite on a network disk, or jobs on other machines than its disk.
        """
        from pipeline.tracking import check_shared

        hosts = slurm.hosts(self.params["partition"]) if stores else []
        for uri, root in stores:
            check_shared(uri, root, hosts, socket.gethostname())

    def _submit(self, jobs: list[Job]) -> list[Job]:
        """One array; an earlier start's status is taken away, so that it is not taken for this one's."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError
        from submitit.slurm.slurm import SlurmExecutor

        executor = SlurmExecutor(
            self.params["submitit_folder"], max_num_timeout=self.params["max_num_timeout"], python=python()
        )
        executor.update_parameters(**for_sbatch(self.params))
        for job in jobs:
            job.folder.status.unlink(missing_ok=True)
        state = Singleton.get_state()
        calls = [(job.overrides, "hydra.sweep.dir", job.number, str(job.number), state) for job in jobs]
        ruling = {name: self.params.get(name) for name in slurm.NAMES}
        try:
            with slurm.clean_environment(**ruling):
                submitted = executor.map_array(self, *zip(*calls, strict=True))
        except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
            said = [line.strip() for line in str(error).splitlines() if line.strip()] or ["without a word"]
            why = next((line for line in said if "error" in line), said[0])
            raise PipelineError(f"sbatch refuses the sweep ({why}): correct hydra.launcher.") from error
        queued = [replace(job, slurm_id=one.job_id) for job, one in zip(jobs, submitted, strict=True)]
        note(self._sweep, queued)
        log.info(
            "%d jobs are in SLURM's queue as %s; what they print is in %s.",
            len(queued), queued[0].slurm_id.partition("_")[0], self._sweep / ".submitit",
        )  # fmt: skip
        return queued


def _returned(job: Job, why: str | None) -> JobReturn:
    """What Hydra is told of a job."""
    returned = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
    if why is not None:
        returned.status, returned.return_value = JobStatus.FAILED, PipelineError(why)
    return returned
