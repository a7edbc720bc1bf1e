"""A sweep on the SLURM that SLURM_CONF names, started as a person does, and what can be done to its jobs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command import environment

REASON = "SLURM_CONF names no SLURM: make test-slurm starts one"
NEEDS_SLURM = pytest.mark.skipif("SLURM_CONF" not in os.environ, reason=REASON)
LAUNCHER = (
    "hydra/launcher=slurm",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=0.9",
    "hydra.launcher.array_parallelism=2",
    "hydra.launcher.poll_s=1",
    "hydra.launcher.timeout_min=20",
)
DATA = (  # MLP and CNN of 643 and 1,299 weights on 32 samples in batches of 16
    "data=blobs",
    "data.num_samples=32",
    "data.dimension=16",
    "data.input_shape=[1,4,4]",
    "data.num_clusters=3",
    "data.batch_size=16",
    "data.separation=2.0",
    "training.batch_size=8",
    "model.activation=tanh",
    "training.learning_rate=2e-4",
    "dtype=float64",
    "device=cpu",
    "cluster.num_workers=1",
)
WORDS = "SLURM asks for the node"  # in run.log, at each signal
PATIENCE = 1200  # seconds, for a machine that has other work


def slurm(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


class Started:
    """A sweep's command in the background."""

    def __init__(self, folder, *overrides, script=None, paths=()):
        self.folder = Path(folder)
        self.printed = self.folder.parent / f"{self.folder.name}.out"
        command = [sys.executable, "-m", "pipeline.run", "-m", *overrides, f"hydra.sweep.dir={folder}"]
        with self.printed.open("a") as out:
            self.process = subprocess.Popen(
                script or command,
                cwd=self.folder.parent,
                env=environment(*paths),
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for name in self.ids().values():
            subprocess.run(["scancel", name], check=False)

    def ids(self):
        """The SLURM job of each job that was submitted, by number."""
        path = self.folder / ".submitit" / "jobs.json"
        return (
            {int(number): job[0] for number, job in json.loads(path.read_text()).items()}
            if path.exists()
            else {}
        )

    def state(self, number):
        return (
            slurm("squeue", "-h", "-r", "-t", "all", "-j", self.ids()[number].split("_")[0], "-o", "%i %T")
            .split(f"{self.ids()[number]} ")[1]
            .split()[0]
        )

    def log(self, number):
        path = self.folder / str(number) / "run.log"
        return path.read_text() if path.exists() else ""

    def finish(self):
        """Its exit status and what it printed."""
        status = self.process.wait(PATIENCE)
        return status, self.printed.read_text()

    def until(self, condition, what):
        """Wait for a condition while the command runs; what came out of it."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if found := condition():
                return found
            assert self.process.poll() is None, f"{what}: {self.printed.read_text()}"
            time.sleep(0.05)
        raise AssertionError(f"{what}: {self.printed.read_text()}")


def resumed(folder, *changes, paths=()):
    return Started(
        folder, script=[sys.executable, "-m", "pipeline.sweep", "resume", folder, *changes], paths=paths
    )
