"""The training loop: the same for every optimizer, and the same whether it was interrupted or not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from pipeline.objective import Batch, predict
from pipeline.system import progress
from pipeline.training.history import History
from pipeline.training.minibatches import minibatches
from pipeline.training.state import TrainingState, second_moments
from pipeline.training.task import TrainingTask


@dataclass(frozen=True)
class Schedule:
    """How many steps, on how many samples each (null: all), and how often to look and to save."""

    num_steps: int
    batch_size: int | None
    evaluate_every: int
    save_every: int


def descend(job: TrainingTask, optimizer: Optimizer, schedule: Schedule, owner: str) -> int:
    """Take the steps that the run folder does not have yet, up to `schedule.num_steps`, which is returned.

    Step s takes the weights from s - 1 to s. What it does is a function of the weights, the optimizer, torch's random
    numbers and s; all of these are in the training state, written after everything else that belongs to its step. So
    a training that was killed repeats the steps since its last state, and on a CPU gets the same bits again.
    Cost: a forward and a backward pass a step; a state takes about three times the memory of the weights under Adam.
    """
    history = History(job.folder.history, job.log)
    state = TrainingState(job.folder.checkpoints / "state.pt", owner)
    last, wanted = schedule.num_steps, {*job.checkpoint_steps, schedule.num_steps}

    def settle(step: int) -> None:
        if step == last or step % schedule.evaluate_every == 0:
            history.add(step, job.measure(step))
        if step in wanted:
            if (moments := second_moments(job.model, optimizer)) is not None:
                moments.write(job.folder.second_moments(step))
            job.save(step)
        if step == last or step % schedule.save_every == 0:
            state.save(step, job.model, optimizer, history.rows, job.evidence())

    torch.manual_seed(job.seed)
    first = resume(job, optimizer, state, history, wanted)
    if first is None:
        first = 0
        settle(0)
    job.model.train()
    steps = progress(range(first + 1, last + 1), "training", total=last, initial=first)
    for step, batch in zip(steps, minibatches(job.train, schedule.batch_size, job.seed, first), strict=False):
        take_step(job, optimizer, step, batch)
        settle(step)
    if first < last:
        history.write()
    optimizer.zero_grad()
    job.model.eval()
    return last


def take_step(job: TrainingTask, optimizer: Optimizer, step: int, batch: Batch) -> None:
    optimizer.zero_grad()
    loss = job.criterion(predict(job.model, batch.inputs), batch.targets)
    job.check_loss(step, loss.item())
    loss.backward()
    optimizer.step()


def resume(
    job: TrainingTask, optimizer: Optimizer, state: TrainingState, history: History, expected: set[int]
) -> int | None:
    """Put the last training state back and return its step, or None where training starts from the beginning.

    That is so where there is no state, or a checkpoint from before it is wanted now and was not then.

    Raises:
        PipelineError: what is there is damaged, or of another training or experiment.
    """
    content = state.read() if state.path.exists() else None
    step: int = content["step"] if content else -1
    if not content or not all(job.folder.checkpoint(early).exists() for early in expected if early <= step):
        job.check_folder()
        return None
    state.restore(content, job.model, optimizer)
    job.check_evidence(state.path, content.get("evidence", {}))
    history.restore(content["rows"])
    return step
