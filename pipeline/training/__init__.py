"""How the weights come about at which Hessians are taken: trained, read from a file, or just drawn."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import nn

from pipeline.objective import Batch, accuracy, check_fit, evaluate, observe
from pipeline.system import RunFolder
from pipeline.training.adam import Adam
from pipeline.training.gd import GD
from pipeline.training.gradient_descent import GradientTraining
from pipeline.training.pretrained import Pretrained
from pipeline.training.sgd import SGD
from pipeline.training.trial import Trial, clock, same_random_numbers, trial_of
from pipeline.training.untrained import Untrained


class Training(Protocol):
    """A way to weights, with a checkpoint at each of the steps asked for and at the last one."""

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
        """Write `folder.checkpoint(step)` and `folder.history`, leave the last weights in the model, in eval
        mode.

        Model and data are on one device and in one dtype. `log` gets each row of the history once, also when a
        training that was killed goes on. Returns the last step.
        """
        ...
