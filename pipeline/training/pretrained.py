from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pipeline.checkpoints import load_weights
from pipeline.options import check_text
from pipeline.training.untrained import Untrained


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
