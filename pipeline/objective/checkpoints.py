"""Weights on disk: written in safetensors, read from that or torch files, put into a model or refused."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline.errors import PipelineError, first_line, must_reach_user
from pipeline.system import fault_behind, unreadable, write_atomically

NUM_NAMED = 5
FAULTS = (errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE)  # of the system, not of the file
FINGERPRINT = "sha256"
EVIDENCE = "evidence"  # under which a checkpoint tells what it was made of
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
UNPICKLED = re.compile(r"(?:GLOBAL|global:?|[Cc]lass) ([\w.]*\.\w+)")
REWRITE = (
    "import torch; c = torch.load({path!r}, weights_only=False); "
    "torch.save(c.state_dict() if hasattr(c, 'state_dict') else c.get('state_dict', c), 'weights.pt')"
)


def save_weights(path: Path, model: nn.Module, evidence: Mapping[str, Any] | None = None) -> None:
    """Write all weights and buffers, in the model's dtype, each under every name it has.

    A tied weight is therefore written twice, and the file can be read by any program as a complete state dict.
    evidence: of what they were made of, see `system/evidence.py`.

    Raises:
        PipelineError: a weight is NaN or infinite.
    """
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    metadata = {FINGERPRINT: fingerprint(state)}
    if evidence:  # one entry alone: safetensors writes several in any order
        sealed = {**evidence, FINGERPRINT: fingerprint(state | _as_metadata(evidence))}
        metadata = {EVIDENCE: json.dumps(sealed)}
    _check_finite(state, model, f"the weights for {path.name} are", "lower training.learning_rate")
    content = save(state, metadata)
    if (
        not path.exists() or path.read_bytes() != content
    ):  # a training that repeats its last steps finds it there
        write_atomically(path, content)


def load_weights(path: Path, model: nn.Module) -> None:
    """Put the weights of a file into a model, cast to the model's dtype and device.

    Raises:
        PipelineError: the file cannot be read, holds NaN, or its names and shapes are not exactly the model's.
    """
    state = load_state(path)
    check_weights(state, model, str(path))
    put_weights(state, model, str(path))


def check_weights(state: Mapping[str, Tensor], model: nn.Module, source: str) -> None:
    """Refuse weights that are NaN or infinite; what is no parameter of the model is not looked at."""
    _check_finite(state, model, f"the weights in {source} are", "give another file")


def evidence_in(path: Path) -> dict[str, Any]:
    """The evidence in a checkpoint, which `load_weights` has found to be whole; none in one of an earlier version."""
    with _opened(path) as file:
        return _evidence(file.metadata())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A .safetensors file.

    Raises:
        PipelineError: it cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _unread(path, error, "safetensors", "give another file") from error


def _unread(path: Path, error: Exception, kind: str, remedy: str) -> Exception:
    """A fault of the disk, or memory that ran out, says nothing of the file."""
    if must_reach_user(error):
        return error
    fault = fault_behind(error)
    if fault is not None and fault.errno in FAULTS:
        return unreadable(path, fault)
    return PipelineError(f"{path} cannot be read as {kind} ({first_line(error)}): {remedy}.")


def _evidence(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        return dict(json.loads((metadata or {}).get(EVIDENCE, "{}")))
    except (TypeError, ValueError):
        return {FINGERPRINT: "unreadable"}


def _as_metadata(evidence: Mapping[str, Any]) -> dict[str, str]:
    """As it goes into the fingerprint."""
    return {EVIDENCE: json.dumps(evidence)} if evidence else {}


def load_state(path: Path) -> dict[str, Tensor]:
    """The named tensors of a .safetensors file, or of what `torch.save(model.state_dict(), ...)` wrote.

    In the latter case a dict under "state_dict" or another of `WRAPPERS` is taken instead of the whole, else the only
    dict of tensors in it. No code that a file may contain is run.

    Raises:
        PipelineError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise PipelineError(f"{path}: no such file of weights; relative paths start at {Path.cwd()}.")
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            state, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        evidence = _evidence(metadata)
        expected = evidence.pop(FINGERPRINT, (metadata or {}).get(FINGERPRINT))
        if expected not in (None, fingerprint(state | _as_metadata(evidence))):
            raise PipelineError(
                f"{path} is damaged (its weights are not those that were written): delete it and train again."
            )
        return state
    loaded = load_torch(path, "give a .safetensors file or what torch.save(model.state_dict(), ...) wrote")
    if not _is_state(loaded) and isinstance(loaded, Mapping):
        inside = [key for key, value in loaded.items() if _is_state(value) and value]
        named = [key for key in WRAPPERS if key in inside]
        if not named and len(inside) > 1:
            raise PipelineError(
                f"{path} holds several state dicts ({', '.join(map(str, inside))}): save the model's alone, or under "
                "'state_dict'."
            )
        loaded = loaded[(named or inside)[0]] if inside else None
    if not _is_state(loaded):
        raise PipelineError(
            f"{path} holds no state dict: save model.state_dict(), alone or under 'state_dict'."
        )
    return {str(name): value for name, value in loaded.items()}


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(part, Tensor) for part in value.values())


def fingerprint(content: Any) -> str:
    """The SHA-256 of tensors, numbers and texts in dicts and lists: safetensors and torch see no flipped bit."""
    digest = hashlib.sha256()
    ordered = dict(sorted(content.items())) if isinstance(content, dict) else content
    leaves, form = pytree.tree_flatten(ordered)
    digest.update(str(form).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(leaf.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


def load_torch(path: Path, remedy: str) -> Any:
    """Tensors, numbers and containers that `torch.save` wrote, on the CPU.

    Raises:
        PipelineError: the file is damaged, or holds other Python objects.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        if isinstance(error, UnpicklingError) and (kind := UNPICKLED.search(str(error))):
            raise PipelineError(
                f"{path} holds objects of {kind[1]}, and reading these could run any code: if you trust the file, take "
                f'its weights out with python -c "{REWRITE.format(path=str(path))}", and give weights.pt.'
            ) from error
        raise _unread(path, error, "a state dict", remedy) from error


def put_weights(state: Mapping[str, Tensor], model: nn.Module, source: str) -> None:
    """Copy named tensors into a model whose names and shapes are exactly these; a tied weight needs one of
    its names.

    Raises:
        PipelineError: in one line, every name that is missing, unexpected or of another shape.
    """
    own: dict[str, Tensor] = model.state_dict(keep_vars=True)
    given = {id(own[name]): name for name in state if name in own}
    faults = [f"{name} is missing" for name, value in own.items() if id(value) not in given]
    for name, value in state.items():
        if name not in own:
            faults.append(f"{name} is unexpected")
        elif value.shape != own[name].shape:
            faults.append(f"{name} has shape {tuple(value.shape)}, not {tuple(own[name].shape)}")
        elif not torch.equal(value, state[given[id(own[name])]]):
            faults.append(f"{name} differs from {given[id(own[name])]}, the same weight in the model")
    if faults:
        raise PipelineError(f"{source} does not fit {type(model).__name__}: {_some(faults)}.")
    with torch.no_grad():
        for name in given.values():
            own[name].copy_(state[name])


def _check_finite(state: Mapping[str, Tensor], model: nn.Module, where: str, remedy: str) -> None:
    """Refuse NaN and infinity in weights; in a buffer they may be meant, as in the mask of an attention."""
    names = [name for name, _ in model.named_parameters() if name in state]
    bad = [name for name in names if not torch.isfinite(state[name]).all()]
    if bad:
        raise PipelineError(f"{where} NaN or infinite in {_some(bad)}: {remedy}.")


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - NUM_NAMED} more" if len(items) > NUM_NAMED else ""
    return "; ".join(items[:NUM_NAMED]) + more
