from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipeline.errors import PipelineError
from pipeline.objective import check_weights, load_weights, matched, put_weights
from pipeline.training.untrained import Untrained
from pipeline.training.weight_files import read_weights
from pipeline.validation import check_text

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Pretrained(Untrained):
    """Weights from a file: step 0, and no other.

    path: a .safetensors file, a state dict that `torch.save` wrote, alone or under a key such as "state_dict", as in
        a checkpoint of Lightning, or a folder that a Trainer of Hugging Face saved. Names and shapes must be exactly
        the model's, but for a prefix of all names. A relative path starts at the working directory.
    prefix: of the names that are meant; null finds it where there is one only.
    """

    path: str
    prefix: str | None = None

    def __post_init__(self) -> None:
        check_text("training.path", self.path, "outputs/run/checkpoints/step-001000.safetensors")
        if self.prefix is not None:
            check_text("training.prefix", self.prefix, "model")

    def prepare(self, model: nn.Module) -> None:
        state, renamed = matched(read_weights(Path(self.path).expanduser()), model, self.prefix, self.path)
        if renamed:
            log.info("%s", renamed)
        check_weights(state, model, self.path)
        put_weights(state, model, self.path)

    def check_kept(self, checkpoint: Path, model: nn.Module) -> None:
        """Refuse weights that the file held once and does not now; a file that is gone says nothing.

        Raises:
            PipelineError: they differ.
        """
        if not Path(self.path).expanduser().exists():
            return
        self.prepare(model)
        given = {name: value.clone() for name, value in model.state_dict().items()}
        load_weights(checkpoint, model)
        if not all(torch.equal(value, given[name]) for name, value in model.state_dict().items()):
            raise PipelineError(
                f"{checkpoint} holds other weights than {self.path} does now: one folder holds one experiment; "
                "choose another with hydra.run.dir=FOLDER."
            )
