from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.objective import Batch, evidence_in, load_weights
from pipeline.system import RunFolder
from pipeline.training.history import History
from pipeline.training.task import TrainingTask


@dataclass(frozen=True)
class Untrained:
    """The weights as the model was built with them: step 0, and no other.

    A run folder that has step 0 keeps it: it is read, not written again.
    """

    def prepare(self, model: nn.Module) -> None:
        """What happens to the weights before they are recorded."""

    def check_kept(self, checkpoint: Path, model: nn.Module) -> None:
        """Refuse step 0 of a run folder where it is no longer what `prepare` would make."""

    def run(
        self,
        model: nn.Module,
        criterion: Callable[[Any, Any], Any],
        train: Batch,
        test: Batch | None,
        folder: RunFolder,
        *,
        checkpoint_steps: Sequence[int],
        seed: int,
        log: Callable[[int, dict[str, float]], None],
    ) -> int:
        """See `Training.run`.

        Raises:
            PipelineError: another step than 0 is asked for, arguments do not fit, a loss is not finite, or the folder
                holds another experiment.
        """
        job = TrainingTask(model, criterion, train, test, folder, checkpoint_steps, seed, log)
        if folder.checkpoint(0).exists():
            self.check_kept(folder.checkpoint(0), model)
            load_weights(folder.checkpoint(0), model)
            job.check(last_step=0)
            job.check_evidence(folder.checkpoint(0), evidence_in(folder.checkpoint(0)))
        else:
            self.prepare(model)
            job.check(last_step=0)
            History(folder.history, log).add(0, job.measure(0))
            job.save(0)
        model.eval()
        return 0
