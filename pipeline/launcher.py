"""Sweeps on SLURM: Hydra's submitit launcher, made to see every job to its end.

The stock launcher raises at the first job that is lost and forgets the others, waits for ever for a cancelled job
where SLURM keeps no accounts, and submits everything again when a sweep is taken up. This one waits for all, says of
each that is lost which and why, skips what is finished, and waits for what an earlier launcher left in the queue.

In a job, SLURM's signal (USR2: preempted, or near the time limit) makes submitit queue the job again and leave. Every
file of a run folder is whole at any moment, so any moment is safe; the next start of the job takes the same folder up.
"""

from __future__ import annotations

import json
import logging
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict

from pipeline import slurm
from pipeline.errors import PipelineError
from pipeline.explain import explain
from pipeline.folder import RunFolder, write_atomically
from pipeline.options import check_count, check_number, check_switch, check_text
from pipeline.status import CANCELLED, FAILED, FINISHED, status_of, tell

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
except ImportError:  # the extra [slurm] is not installed: told when a sweep is launched
    SlurmLauncher = None

NAME = "hydra_plugins.curvature.Slurm"  # as conf/hydra/launcher/slurm.yaml calls it
DONE = ".hydra/finished.json"  # in a job's folder
QUEUED = "jobs.json"  # in <sweep>/.submitit: which SLURM job does which job of the sweep
GRACE = 10.0  # seconds that the files of a job which has ended may take to appear on a network disk
OWN = ("submitit_folder", "requeue", "max_num_timeout", "poll_s", "setup", "additional_parameters")
# srun does not take the cores of a task from sbatch any more
SETUP = "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"
log = logging.getLogger("pipeline")


class LaunchError(PipelineError):
    """No job of the sweep was submitted."""


@dataclass(frozen=True)
class Job:
    """One job of the sweep: its number, overrides and run folder, and its name in SLURM once it has one."""

    number: int
    overrides: list[str]
    folder: RunFolder
    store: tuple[str | None, str] | None = None  # tracking.uri and tracking.root, where there is tracking
    slurm_id: str = ""

    def __str__(self) -> str:
        told = " ".join(text for text in self.overrides if not text.startswith("hydra"))
        return f"job {self.number} ({told})"


def is_finished(folder: RunFolder, overrides: Sequence[str]) -> bool:
    """Whether the folder holds the whole run that a job with these overrides would make."""
    path = folder.path / DONE
    try:
        done = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return bool(done == list(overrides)) and status_of(folder).state == FINISHED


def note_finished(folder: RunFolder, overrides: Sequence[str]) -> None:
    """Note with which overrides the run was finished; Hydra's own notes are of the last start, finished or not."""
    write_atomically(folder.path / DONE, json.dumps(list(overrides)) + "\n")


class Slurm(SlurmLauncher or Launcher):  # type: ignore[misc]
    """Each job of a sweep is a task of a SLURM array."""

    def __init__(self, **params: Any) -> None:
        if SlurmLauncher is None:
            raise PipelineError(
                "hydra/launcher=slurm needs Hydra's submitit launcher: pip install 'curvature-pipeline[slurm]'."
            )
        super().__init__(**params)
        _check(self.params)
        self.command = sys.argv[1:]

    def __call__(self, *arguments: Any) -> JobReturn:
        """Run in the job itself, at each of its starts."""
        sys.argv[1:] = self.command  # which the run folder and MLflow tell, not submitit's
        _clear_away()
        _listen(self.params)
        returned: JobReturn = super().__call__(*arguments)
        if returned.status == JobStatus.FAILED:
            error = returned._return_value  # `return_value` raises it
            returned.return_value = PipelineError(
                explain(error) or f"unexpected {type(error).__name__}: {error}"
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
            lost = self._wait(queued)
        except KeyboardInterrupt:
            arrays = " ".join(sorted({job.slurm_id.partition("_")[0] for job in queued}))
            log.warning(
                "the jobs go on without this command: scancel %s ends them, scripts/resume_sweep %s waits for "
                "them and runs what is missing.", arrays, self._sweep
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
        queued = self._still_queued(missing)
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
        store = (tracking.uri, tracking.root) if tracking and "root" in tracking else None
        return Job(number, overrides, RunFolder(folder), store)

    def _check_stores(self, stores: set[tuple[str | None, str]]) -> None:
        """Refuse a store that the jobs cannot share.

        Raises:
            PipelineError: SQLite on a network disk, or jobs on other machines than its disk.
        """
        from pipeline.tracking.disks import check_shared

        hosts = slurm.hosts(self.params["partition"]) if stores else []
        for uri, root in stores:
            check_shared(uri, root, hosts, socket.gethostname())

    def _submit(self, jobs: list[Job]) -> list[Job]:
        """One array; an earlier start's status is taken away, so that it is not taken for this one's."""
        from hydra.core.singleton import Singleton
        from submitit.core.utils import FailedJobError, FailedSubmissionError
        from submitit.slurm.slurm import SlurmExecutor

        executor = SlurmExecutor(
            self.params["submitit_folder"], max_num_timeout=self.params["max_num_timeout"]
        )
        executor.update_parameters(**_sbatch(self.params))
        for job in jobs:
            job.folder.status.unlink(missing_ok=True)
        state = Singleton.get_state()
        calls = [(job.overrides, "hydra.sweep.dir", job.number, str(job.number), state) for job in jobs]
        ruling = {name: self.params.get(name) for name in slurm.NAMES}
        try:
            with slurm.clean_environment(**ruling):
                submitted = executor.map_array(self, *zip(*calls, strict=True))
        except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
            said = [line for line in str(error).splitlines() if line.strip()]
            raise PipelineError(
                f"sbatch refuses the sweep ({said[-1] if said else 'without a word'}): correct hydra.launcher."
            ) from error
        queued = [replace(job, slurm_id=one.job_id) for job, one in zip(jobs, submitted, strict=True)]
        known = {**_noted(self._sweep), **{str(job.number): [job.slurm_id, *job.overrides] for job in queued}}
        write_atomically(self._sweep / ".submitit" / QUEUED, json.dumps(known, indent=2) + "\n")
        log.info(
            "%d jobs are in SLURM's queue as %s; what they print is in %s.",
            len(queued), queued[0].slurm_id.partition("_")[0], self._sweep / ".submitit",
        )  # fmt: skip
        return queued

    def _still_queued(self, jobs: Sequence[Job]) -> list[Job]:
        """Those that an earlier launcher submitted and SLURM still has."""
        noted = _noted(self._sweep)
        ids = {job.number: noted[str(job.number)][0] for job in jobs if str(job.number) in noted}
        if not ids:
            return []
        states = slurm.states(set(ids.values()))
        queued = []
        for job in jobs:
            name = ids.get(job.number)
            if name is None or states[name].ended:
                continue
            if noted[str(job.number)][1:] != job.overrides:
                raise PipelineError(
                    f"{job}: SLURM still has job {name} for its folder, with other overrides: "
                    f"scancel {name}, or choose another folder with hydra.sweep.dir=FOLDER."
                )
            queued.append(replace(job, slurm_id=name))
        if queued:
            log.info("%d jobs are in SLURM's queue already: waiting for them.", len(queued))
        return queued

    def _wait(self, jobs: Sequence[Job]) -> dict[int, str]:
        """Wait until each job has left its result or SLURM has given it up; why the lost ones are, by number."""
        left = {job.slurm_id: job for job in jobs}
        ended_at: dict[str, float] = {}
        lost: dict[int, str] = {}
        said = Said()
        asked = -float("inf")
        while left:
            for name, job in list(left.items()):
                why = _result(self._path(name, "result.pkl"))
                if why is None:
                    continue
                del left[name]
                if why:
                    lost[job.number] = why
            if left and time.monotonic() - asked >= self.params["poll_s"]:
                asked = time.monotonic()
                for name, state in said.ask(left).items():
                    if not state.ended:
                        ended_at.pop(name, None)
                    elif asked - ended_at.setdefault(name, asked) >= GRACE:
                        job = left.pop(name)
                        lost[job.number] = self._obituary(job, name, state)
            time.sleep(min(1.0, self.params["poll_s"]))
        return lost

    def _path(self, slurm_id: str, kind: str) -> Path:
        return (
            Path(self.params["submitit_folder"].replace("%j", slurm_id)).absolute() / f"{slurm_id}_0_{kind}"
        )

    def _obituary(self, job: Job, name: str, state: slurm.JobState) -> str:
        """Why a job is lost that could not say so itself; it is left in its folder too."""
        remedy = {
            "CANCELLED": "it was cancelled",
            "OUT_OF_MEMORY": f"it took more than hydra.launcher.mem_gb={self.params['mem_gb']}",
            "TIMEOUT": f"its {self.params['timeout_min']} min were over before it could stop: raise "
            "hydra.launcher.timeout_min or signal_delay_s",
        }.get(state.state, "it ended without a word of its own")
        printed = self._path(name, "log.err")
        detail = f", {state.detail}" if state.detail not in ("", "None") else ""
        where = f"; what it printed is in {printed}" if printed.exists() and printed.stat().st_size else ""
        why = f"{remedy} (SLURM job {name}: {state.state}{detail}{where})."
        tell(job.folder, CANCELLED if state.state == "CANCELLED" else FAILED, why)
        log.error("%s is lost: %s", job, why)
        return why


class Said:
    """What was said of the queue, so that it is said again only when it has changed."""

    def __init__(self) -> None:
        self.line = ""
        self.held: set[str] = set()

    def ask(self, left: Mapping[str, Job]) -> dict[str, slurm.JobState]:
        """The states of the jobs, told in a line; none while the controller does not answer."""
        try:
            found = slurm.states(left.keys())
        except PipelineError as error:
            self._say(f"{error} The jobs go on; asking again.")
            return {}
        counts = Counter(_word(state) for state in found.values() if not state.ended)
        if counts:
            self._say(
                "SLURM: " + ", ".join(f"{number} {word}" for word, number in sorted(counts.items())) + "."
            )
        for name, state in found.items():
            if slurm.is_held(state) and name not in self.held:
                self.held.add(name)
                log.warning(
                    "%s waits for a person: %s (scontrol release %s, or scancel %s).",
                    left[name], state.detail, name, name,
                )  # fmt: skip
        return found

    def _say(self, line: str) -> None:
        if line != self.line:
            self.line = line
            log.info("%s", line)


def _word(state: slurm.JobState) -> str:
    if state.state == "PENDING":
        return f"waiting ({state.detail})" if state.detail not in ("", "None") else "waiting"
    return state.state.lower()


def _check(params: Mapping[str, Any]) -> None:
    """Refuse settings that sbatch would refuse later, or take for something else."""
    for key in ("timeout_min", "cpus_per_task", "array_parallelism"):
        check_count(f"hydra.launcher.{key}", params[key])
    check_count("hydra.launcher.max_num_timeout", params["max_num_timeout"], minimum=0)
    check_count("hydra.launcher.signal_delay_s", params["signal_delay_s"])
    check_count("hydra.launcher.gpus_per_node", params["gpus_per_node"], or_null="no GPU")
    check_number("hydra.launcher.mem_gb", params["mem_gb"], above=0)
    check_number("hydra.launcher.poll_s", params["poll_s"], above=0)
    check_switch("hydra.launcher.requeue", params["requeue"])
    check_text("hydra.launcher.submitit_folder", params["submitit_folder"], "${hydra.sweep.dir}/.submitit/%j")
    if params["signal_delay_s"] >= 60 * params["timeout_min"]:
        raise PipelineError(
            f"hydra.launcher.signal_delay_s={params['signal_delay_s']} is all of timeout_min={params['timeout_min']}: "
            "give a shorter delay or more time."
        )


def _sbatch(params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as submitit's executor for SLURM calls them."""
    names = {"timeout_min": "time", "name": "job_name"}
    given = {
        names.get(key, key): value
        for key, value in params.items()
        if value is not None and key not in (*OWN, "mem_gb")
    }
    return {
        **given,
        "mem": f"{round(params['mem_gb'] * 1024)}M",
        "nodes": 1,
        "ntasks_per_node": 1,
        "setup": [SETUP, *params["setup"]],
        "additional_parameters": {
            "requeue" if params["requeue"] else "no-requeue": True,
            **params["additional_parameters"],
        },
    }


def _noted(sweep: Path) -> dict[str, list[str]]:
    """The SLURM job of each job of the sweep, and its overrides, by number."""
    try:
        found: dict[str, list[str]] = json.loads((sweep / ".submitit" / QUEUED).read_text())
    except (OSError, ValueError):
        return {}
    return found


def _result(path: Path) -> str | None:
    """What a job left: empty if all is well, why it failed if not, None if there is nothing yet."""
    try:
        outcome, returned = pickle.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (EOFError, pickle.UnpicklingError):
        return None  # not all of it has arrived
    if outcome == "error":
        return str(returned).strip().splitlines()[-1]
    return "" if returned.status == JobStatus.COMPLETED else str(returned._return_value)


def _returned(job: Job, why: str | None) -> JobReturn:
    """What Hydra is told of a job."""
    returned = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
    if why is not None:
        returned.status, returned.return_value = JobStatus.FAILED, PipelineError(why)
    return returned


def _clear_away() -> None:
    """Remove what a kill in the middle of submitit's own writing left: it refuses to write while that is there."""
    import submitit

    paths = submitit.JobEnvironment().paths
    for path in (paths.submitted_pickle, paths.result_pickle):
        path.with_suffix(path.suffix + ".save_tmp").unlink(missing_ok=True)


def _listen(params: Mapping[str, Any]) -> None:
    """Say in run.log that SLURM wants its node back, and in one line why the job cannot be queued again."""
    import submitit
    from submitit.core.utils import UncompletedJobError

    number = submitit.JobEnvironment()._usr_sig()
    queue_again: Any = signal.getsignal(number)

    def stop(signum: int, frame: object) -> None:
        with suppress(RuntimeError):  # a handler may have come between two halves of a line
            log.warning("SLURM asks for the node: what is whole stays, and the job is queued again to go on.")
        try:
            queue_again(signum, frame)
        except UncompletedJobError as error:
            raise PipelineError(
                f"its time limit of {params['timeout_min']} min came once more than "
                f"hydra.launcher.max_num_timeout={params['max_num_timeout']}: give it more time; it goes on from here."
            ) from error
        except (OSError, subprocess.SubprocessError) as error:
            raise PipelineError(
                f"SLURM wants the node back and does not queue the job again ({error})."
            ) from error

    logging.getLogger("submitit").setLevel(
        logging.ERROR
    )  # it takes a preemption for a time limit, and says so
    signal.signal(number, stop)
