from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipeline.errors import PipelineError
from pipeline.objective.checkpoints import load_weights
from pipeline.training.untrained import Untrained
from pipeline.validation import check_text


@dataclass(frozen=True)
class Pretrained(Untrained):
    """Weights from a file: step 0, and no other.

    path: a .safetensors file, or a state dict that `torch.save` wrote, alone or under "state_dict" or "model"; names
        and shapes must be exactly the model's. A relative path starts at the working directory.
    """

    path: str

    def __post_init__(self) -> None:
        check_text("training.path", self.path, "outputs/run/checkpoints/step-001000.safetensors")

    def prepare(self, model: nn.Module) -> None:
        load_weights(Path(self.path).expanduser(), model)

    def check_kept(self, checkpoint: Path, model: nn.Module) -> None:
        """Refuse weights that the file held once and does not now; a file that is gone says nothing.

        Raises:
            PipelineError: they differ.
        """
        if not Path(self.path).expanduser().is_file():
            return
        self.prepare(model)
        given = {name: value.clone() for name, value in model.state_dict().items()}
        load_weights(checkpoint, model)
        if not all(torch.equal(value, given[name]) for name, value in model.state_dict().items()):
            raise PipelineError(
                f"{checkpoint} holds other weights than {self.path} does now: one folder holds one experiment; "
                "choose another with hydra.run.dir=FOLDER."
            )
