"""A small training that another process can take up, and that kills itself at a moment that can be chosen.

Moments are counted: every call of the criterion, and before and after every file that takes its final name.
"""

from __future__ import annotations

import os
import signal
import time

import torch
from torch import nn

from pipeline.criterion import CrossEntropy
from pipeline.data import Blobs
from pipeline.system.run_folder import RunFolder
from pipeline.training import GD, SGD, Adam

SHORT = {"num_steps": 45, "evaluate_every": 7, "save_every": 10}
TRAININGS = {
    "adam": Adam(batch_size=10, **SHORT),
    "sgd": SGD(batch_size=16, learning_rate=0.05, weight_decay=0.01, **SHORT),
    "gd": GD(**SHORT),
}
CHECKPOINT_STEPS = [0, 13, 20]


class Moments:
    """Counts moments of the kinds asked for, and kills the process at the one with number `fatal`."""

    def __init__(self, kinds, fatal):
        self.kinds, self.fatal, self.count = kinds, fatal, 0

    def pass_by(self, kind):
        if kind in self.kinds:
            self.count += 1
            if self.count == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)


class Watched:
    """A criterion that passes a moment at each call, slowly if asked to."""

    reduction = "mean"

    def __init__(self, moments, delay):
        self.moments, self.delay = moments, delay

    def __call__(self, outputs, targets):
        self.moments.pass_by("step")
        time.sleep(self.delay)
        return CrossEntropy()(outputs, targets)


def train(path, name, kinds=(), fatal=0, delay=0.0):
    """Train in the run folder `path`; returns the number of moments. Logged rows go to `path/logged`."""
    torch.set_num_threads(1)
    moments, replace = Moments(kinds, fatal), os.replace

    def watched_replace(*arguments):
        moments.pass_by("file")
        replace(*arguments)
        moments.pass_by("file")

    def log(step, metrics):
        with (path / "logged").open("a") as file:
            file.write(f"{step} {metrics}\n")

    path.mkdir(exist_ok=True)
    samples = Blobs(num_samples=47, num_clusters=3, dimension=4, separation=1.0).load()
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    os.replace = watched_replace
    try:
        TRAININGS[name].run(
            model,
            Watched(moments, delay),
            samples.train,
            samples.test,
            RunFolder(path),
            checkpoint_steps=CHECKPOINT_STEPS,
            seed=5,
            log=log,
        )
    finally:
        os.replace = replace
    return moments.count
