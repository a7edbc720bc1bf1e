"""Workers that are SLURM jobs."""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster.local import ALLOCATOR
from pipeline.errors import PipelineError
from pipeline.system import slurm
from pipeline.validation import check_count, check_number

log = logging.getLogger("pipeline")
PATIENCE = 10  # seconds between two looks at workers that have not come


@dataclass(frozen=True)
class Slurm:
    """A dask_jobqueue SLURMCluster: one single-threaded process a job; a job that is lost is replaced.

    Scheduler and workers talk under TLS with keys made for this run, on 127.0.0.1 or on `interface`. What workers
    print is in `.dask` of the run folder, and stays there if the work fails.
    """

    num_workers: int = 4
    memory_gb: float = 8
    walltime_min: int = 60
    partition: str | None = None
    account: str | None = None
    interface: str | None = None

    def __post_init__(self) -> None:
        check_count("cluster.num_workers", self.num_workers)
        check_number("cluster.memory_gb", self.memory_gb, above=0)
        check_count("cluster.walltime_min", self.walltime_min)

    @contextmanager
    def open(self, scratch: Path) -> Iterator[int]:
        slurm.check_commands("cluster=slurm")
        try:
            from dask_jobqueue.slurm import SLURMCluster
        except ImportError as error:
            raise PipelineError(
                "cluster=slurm needs dask-jobqueue: pip install 'curvature-pipeline[slurm]'."
            ) from error
        from distributed import Client

        if shlex.quote(str(scratch)) != str(scratch):
            raise PipelineError(
                f"{scratch.parent}: dask_jobqueue puts this path into a shell script as it is: choose a folder without "
                "spaces and quotes for cluster=slurm, with hydra.run.dir=FOLDER."
            )
        logging.getLogger("distributed").setLevel(logging.ERROR)  # workers come and go without saying so
        scratch.mkdir(parents=True, exist_ok=True)
        ruling = {"timeout_min": self.walltime_min, "cpus_per_task": 1, "mem_gb": self.memory_gb}
        with (
            slurm.clean_environment(partition=self.partition, account=self.account, **ruling),
            SLURMCluster(**self.settings(scratch)) as cluster,
        ):
            _try(cluster.job_script())
            cluster.adapt(minimum_jobs=self.num_workers, maximum_jobs=self.num_workers, interval="2s")
            with Client(cluster) as client:
                log.info("Dask asks SLURM for %d workers; the work begins with the first.", self.num_workers)
                _wait_for_one(client, cluster, scratch)
                yield self.num_workers
        shutil.rmtree(scratch, ignore_errors=True)

    def settings(self, scratch: Path) -> Mapping[str, Any]:
        """What dask_jobqueue is told."""
        seconds = 60 * self.walltime_min
        where = {"interface": self.interface} if self.interface else {"host": "127.0.0.1"}
        return {
            "cores": 1,
            "processes": 1,
            "memory": f"{round(self.memory_gb * 1024)}MiB",
            "walltime": f"{self.walltime_min // 60:02d}:{self.walltime_min % 60:02d}:00",
            "queue": self.partition,
            "account": self.account,
            "python": shlex.quote(sys.executable),
            "interface": self.interface,
            "local_directory": str(scratch),
            "job_script_prologue": [f"export {name}={value}" for name, value in ALLOCATOR.items()],
            "job_extra_directives": [f"-o {scratch / 'worker-%j.out'}"],
            # a worker that leaves in time hands over what it holds
            "worker_extra_args": [
                *("--lifetime", f"{max(seconds - 120, seconds * 8 // 10)}s", "--no-dashboard"),
                # without a dashboard too each has a page for its health, on all devices if not told otherwise
                *("--dashboard-address", "127.0.0.1:0"),
                *(() if self.interface else ("--host", "127.0.0.1")),
            ],
            "scheduler_options": {**where, "dashboard": False, "dashboard_address": "127.0.0.1:0"},
            "security": _keys(scratch),
            "silence_logs": logging.ERROR,
        }


def _keys(scratch: Path) -> Any:
    """Keys for one run, in files that its owner alone can read; dask_jobqueue leaves its own to garbage collection."""
    from distributed.security import Security

    made = Security.temporary()
    certificate, key = scratch / "certificate.pem", scratch / "key.pem"
    for path, text in ((certificate, made.tls_ca_file), (key, made.tls_client_key)):
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
    paths = {f"tls_{role}_cert": str(certificate) for role in ("client", "scheduler", "worker")}
    paths |= {f"tls_{role}_key": str(key) for role in ("client", "scheduler", "worker")}
    return Security(require_encryption=True, tls_ca_file=str(certificate), **paths)


def _try(script: str) -> None:
    """Have SLURM judge the job script: Dask would not say why no worker ever comes.

    Raises:
        PipelineError: what SLURM says.
    """
    done = subprocess.run(
        ["sbatch", "--test-only"], input=script, text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["without a word"]
        raise PipelineError(f"sbatch refuses the workers ({said[-1]}): correct cluster.")


def _wait_for_one(client: Any, cluster: Any, scratch: Path) -> None:
    """Wait for the first worker, as long as SLURM has one that may come: Dask would wait for ever.

    Raises:
        PipelineError: the jobs ended before they became workers.
    """
    while True:
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=PATIENCE)
            return
        ids = [job.job_id for job in list(cluster.workers.values()) if job.job_id]
        states = slurm.states(ids)
        if ids and all(state.ended for state in states.values()):
            ends = ", ".join(f"{name}: {state.state}" for name, state in sorted(states.items()))
            raise PipelineError(
                f"the SLURM jobs that were to be workers have ended ({ends}); what they print is in {scratch}."
            )
