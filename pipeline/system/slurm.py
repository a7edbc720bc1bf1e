"""What is asked of SLURM's own commands: where jobs are, and why one ended without a word of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.errors import PipelineError

COMMANDS = ("sbatch", "squeue", "scontrol", "sinfo", "srun")
ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
        *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    )
)
UNKNOWN = "UNKNOWN"
STUCK = "[Hh]eld|Hold|NeverSatisfied|BadConstraints|Invalid|Partition(Time|Node)Limit|MaxWallDuration"  # why jobs wait
PATIENCE = 60  # seconds for one answer of the controller
# What the job script says must not be said otherwise by the environment, which sbatch gives precedence.
OURS = "ARRAY_INX ERROR EXPORT JOB_NAME NO_REQUEUE OPEN_MODE OUTPUT REQUEUE SIGNAL WAIT WAIT_ALL_NODES"
NAMES = {
    "account": "ACCOUNT",
    "constraint": "CONSTRAINT",
    "cpus_per_task": "CPUS_PER_GPU CPUS_PER_TASK",
    "gpus_per_node": "GPUS GPUS_PER_NODE GPUS_PER_TASK GRES",
    "mem_gb": "MEM_PER_NODE MEM_PER_CPU MEM_PER_GPU",
    "partition": "PARTITION",
    "qos": "QOS",
    "timeout_min": "TIMELIMIT",
}


@dataclass(frozen=True)
class JobState:
    """SLURM's word for where a job is, and why it waits there or how it ended."""

    state: str
    detail: str = ""

    @property
    def ended(self) -> bool:
        """Whether SLURM will do no more about it."""
        return self.state in ENDED or self.state == UNKNOWN


def check_commands(what: str) -> None:
    """Refuse what needs SLURM where there is none.

    Raises:
        PipelineError: naming `what` and the commands that are not there.
    """
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise PipelineError(
            f"{what} needs SLURM, but {', '.join(missing)} cannot be found: run it on a login node of a cluster, "
            "or start one on this machine with scripts/slurm_local.sh."
        )


def states(ids: Collection[str]) -> dict[str, JobState]:
    """The state of each job (`12`, or `12_3` for a task of an array), one call of squeue for all.

    What the controller has forgotten (it does after some minutes) is looked up in the accounts; a job that is
    in neither is `UNKNOWN`.

    Raises:
        PipelineError: the controller does not answer.
    """
    found = {
        name: JobState(state, reason)
        for name, state, reason in _rows("squeue", "--me", "-h", "-r", "-t", "all", "-o", "%i|%T|%r")
        if name in ids
    }
    forgotten = sorted(set(ids) - found.keys())
    if forgotten:
        try:
            accounts = _rows(
                "sacct", "-n", "-X", "-P", "-o", "JobID,State,ExitCode", "-j", ",".join(forgotten)
            )
        except PipelineError:
            accounts = []  # this cluster keeps none
        found |= {name: _accounted(state, code) for name, state, code in accounts if name in forgotten}
    return {name: found.get(name, JobState(UNKNOWN, "SLURM no longer knows it")) for name in ids}


def hosts(partition: str | None) -> list[str]:
    """The machines on which the jobs of a partition may run, or those of any."""
    where = ("-p", partition) if partition else ()
    return [row[0] for row in _rows("sinfo", "-h", "-N", "-o", "%n", *where)]


def is_held(state: JobState) -> bool:
    """Whether a waiting job will wait until a person does something about it."""
    return state.state == "PENDING" and re.search(STUCK, state.detail) is not None


@contextmanager
def clean_environment(**settings: object) -> Iterator[None]:
    """Without the variables that would overrule the job script, or come from a job in which this process runs.

    `settings` are those of the job script; one that is None leaves the user's SBATCH_ variable in force.
    """
    ruled = set(OURS.split())
    for name, value in settings.items():
        ruled |= set(NAMES.get(name, "").split()) if value is not None else set()
    inside = "SLURM_JOB_ID" in os.environ
    dropped = {
        name: value
        for name, value in os.environ.items()
        if name.removeprefix("SBATCH_") in ruled
        or (inside and re.match("SLURM_(?!CONF$|TIME_FORMAT$)|SRUN_", name))
    }
    for name in dropped:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(dropped)


def _accounted(state: str, code: str) -> JobState:
    """The words of sacct: `CANCELLED by 1000`."""
    word, _, by = state.partition(" ")
    return JobState(word, by or (f"exit code {code.partition(':')[0]}" if code not in ("", "0:0") else ""))


def _rows(*command: str) -> list[list[str]]:
    """The lines that a command prints, split at the bars."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise PipelineError(f"{command[0]} does not answer ({said[-1] if said else 'no word'}).") from error
    return [line.strip().split("|") for line in done.stdout.splitlines() if line.strip()]
