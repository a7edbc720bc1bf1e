"""What a job of a sweep does when SLURM wants its node back: it says so, is queued again, and leaves."""

from __future__ import annotations

import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pipeline.errors import PipelineError

log = logging.getLogger("pipeline")
# A signal that comes while Python still imports would end the job for good: it is kept until `listen`.
BLOCK = "import os,signal,sys; signal.pthread_sigmask(signal.SIG_BLOCK,[{number}]); os.execv(sys.argv[1],sys.argv[1:])"


def python() -> str:
    """The shell command for the interpreter of a job, deaf to SLURM's signal until the job listens."""
    from submitit import JobEnvironment

    this = shlex.quote(sys.executable)
    number = int(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"))
    return f"{this} -I -S -c {shlex.quote(BLOCK.format(number=number))} {this}"


def clear_away() -> None:
    """Remove what a kill in the middle of submitit's own writing left: it refuses to write while that is there."""
    import submitit

    paths = submitit.JobEnvironment().paths
    for path in (paths.submitted_pickle, paths.result_pickle):
        path.with_suffix(path.suffix + ".save_tmp").unlink(missing_ok=True)


def listen(params: Mapping[str, Any]) -> None:
    """Say in run.log that SLURM wants its node back, and in one line why the job cannot be queued again."""
    import submitit
    from submitit.core.utils import UncompletedJobError

    number = submitit.JobEnvironment()._usr_sig()
    queue_again: Any = signal.getsignal(number)

    def stop(signum: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough
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

    logging.getLogger("submitit").setLevel(logging.ERROR)  # it calls a preemption a time limit
    signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
