"""What a killed training needs to go on as if nothing had happened."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.errors import PipelineError
from pipeline.objective import FINGERPRINT, fingerprint, load_torch, put_weights
from pipeline.results import SecondMoments
from pipeline.system import write_atomically
from pipeline.training.history import Row


@dataclass(frozen=True)
class TrainingState:
    """The file that holds weights, optimizer, random numbers and history of one step.

    owner: the options, seed, number of samples and number of weights in words; a state of another owner is refused.
    """

    path: Path
    owner: str

    def save(
        self, step: int, model: nn.Module, optimizer: Optimizer, rows: list[Row], evidence: dict[str, Any]
    ) -> None:
        content = {
            "owner": self.owner,
            "step": step,
            "rows": rows,
            "evidence": evidence,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if _on_gpu(model) else [],
        }
        file = io.BytesIO()  # given a path, torch tells of a full disk in words of its own
        torch.save(content | {FINGERPRINT: fingerprint(content)}, file)
        write_atomically(self.path, file.getvalue())

    def read(self) -> dict[str, Any]:
        """What `save` wrote.

        Raises:
            PipelineError: the file is damaged, or belongs to another training.
        """
        remedy = f"delete {self.path.parent} to train from the start"
        content = load_torch(self.path, remedy)
        owner = content.get("owner") if isinstance(content, dict) else None
        if owner and content.pop(FINGERPRINT, None) not in (None, fingerprint(content)):
            raise PipelineError(f"{self.path} is damaged (it is not what was written): {remedy}.")
        if owner != self.owner:
            raise PipelineError(
                f"{self.path} is the state of {owner}, not of {self.owner}: "
                f"choose another run folder or {remedy}."
            )
        return dict(content)

    def restore(self, content: dict[str, Any], model: nn.Module, optimizer: Optimizer) -> None:
        """Put weights, optimizer and random numbers back."""
        put_weights(content["model"], model, str(self.path))
        optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["random"])
        if _on_gpu(model) and len(content["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(content["random_cuda"])


def second_moments(model: nn.Module, optimizer: Optimizer) -> SecondMoments | None:
    """What Adam keeps of the gradient's size; None of another optimizer, and before the first update."""
    if not isinstance(optimizer, torch.optim.Adam) or not optimizer.state:
        return None
    group = optimizer.param_groups[0]
    state: dict[str, dict[str, Tensor]] = {
        name: optimizer.state[weight]
        for name, weight in model.named_parameters()
        if weight in optimizer.state
    }
    return SecondMoments(
        {name: each["exp_avg_sq"].detach().cpu().numpy() for name, each in state.items()},
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        epsilon=group["eps"],
        num_updates=int(max(each["step"].item() for each in state.values())),
    )


def _on_gpu(model: nn.Module) -> bool:
    return any(weight.is_cuda for weight in model.parameters())
