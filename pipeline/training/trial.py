"""How long a training will take: a few steps and one evaluation on copies, which leave no trace."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pipeline.objective import Batch, Criterion, evaluate, predict
from pipeline.training.gradient_descent import GradientTraining

NUM_STEPS = 8  # that are tried, after one in which libraries start
PATIENCE = 0.5  # seconds after which no more are tried
SAVING = 0.004  # seconds for a training state on the disk, beside its bytes


@dataclass(frozen=True)
class Trial:
    """Seconds of one step, and of one evaluation of all training and test samples."""

    step: float
    evaluation: float

    def total(self, training: GradientTraining) -> float:
        """Seconds of all steps, with the evaluations and training states between them."""
        num_evaluations = training.num_steps // training.evaluate_every + 1
        num_states = training.num_steps // training.save_every + 1
        return training.num_steps * self.step + num_evaluations * self.evaluation + num_states * SAVING


def trial_of(
    training: object, model: nn.Module, criterion: Criterion, train: Batch, test: Batch | None
) -> Trial | None:
    """Measured on copies of model and criterion; None for a training that takes no gradient steps, or that fails."""
    if not isinstance(training, GradientTraining):
        return None
    size = min(training.batch_size or train.num_samples, train.num_samples)
    try:
        with same_random_numbers():
            model, criterion = copy.deepcopy((model, criterion))
            weights = [weight for weight in model.parameters() if weight.requires_grad]
            optimizer, batch = training.optimizer(weights), train.chunk(0, size)

            def step() -> None:
                optimizer.zero_grad()
                criterion(predict(model, batch.inputs), batch.targets).backward()
                optimizer.step()

            model.train()
            seconds = _median_seconds(step)
            parts = [part for part in (train, test) if part is not None]
            evaluation = _seconds(lambda: [evaluate(model, criterion, part) for part in parts])
    except Exception:  # whatever the model raises is told by the training itself
        return None
    return Trial(seconds, evaluation)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Leave the generators of torch, NumPy and Python as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)


def clock() -> float:
    """Seconds of the processor where torch has one thread, so that other work counts little; else of the wall."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def _seconds(run: Callable[[], object]) -> float:
    start = clock()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def _median_seconds(run: Callable[[], object]) -> float:
    began, found = time.perf_counter(), [_seconds(run)]
    while len(found) <= NUM_STEPS and time.perf_counter() - began < PATIENCE:
        found.append(_seconds(run))
    return float(np.median(found[1:] or found))
