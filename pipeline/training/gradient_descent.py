from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pipeline.errors import PipelineError
from pipeline.objective import Batch
from pipeline.system import RunFolder
from pipeline.training.loop import Schedule, descend
from pipeline.training.task import TrainingTask
from pipeline.validation import check_count, check_number


@dataclass(frozen=True, kw_only=True)
class GradientTraining(ABC):
    """What all ways to descend the loss share; a subclass names its optimizer.

    num_steps: updates of the weights.
    batch_size: samples of one update, drawn without replacement until all were used; null takes all each time.
    weight_decay: λ; λ/2 ‖w‖² is added to the loss that is descended, not to the losses that are reported, nor to the
        Hessian.
    evaluate_every: steps between two rows of the training curve.
    save_every: steps between two training states; after a kill at most so many steps are taken again.
    """

    num_steps: int = 1000
    batch_size: int | None = 128
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    evaluate_every: int = 100
    save_every: int = 100

    def __post_init__(self) -> None:
        for name in ("num_steps", "evaluate_every", "save_every"):
            check_count(f"training.{name}", getattr(self, name))
        check_count("training.batch_size", self.batch_size, or_null="all samples")
        check_number("training.learning_rate", self.learning_rate, above=0)
        check_number("training.weight_decay", self.weight_decay, minimum=0)

    @abstractmethod
    def optimizer(self, weights: list[nn.Parameter]) -> Optimizer: ...

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
            PipelineError: nothing to train, arguments that do not fit, a loss that is not finite, or a run folder
                that belongs to another training.
        """
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        if not weights:
            raise PipelineError(
                f"{type(model).__name__} has no weights that require grad: choose training=none."
            )
        job = TrainingTask(model, criterion, train, test, folder, checkpoint_steps, seed, log)
        job.check(self.num_steps)
        size = f"{train.num_samples} samples and {sum(weight.numel() for weight in weights)} weights"
        owner = f"{self} with seed {seed}, {size} of {weights[0].dtype}"
        schedule = Schedule(self.num_steps, self.batch_size, self.evaluate_every, self.save_every)
        return descend(job, self.optimizer(weights), schedule, owner)
