"""Weights where others left them: a file, or a folder that a Trainer of Hugging Face saved."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.objective import load_state

WHOLE = ("model.safetensors", "pytorch_model.bin")
PARTS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
NUM_SHOWN = 4


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a file, see `load_state`, or of a folder with a model in one file or in parts.

    Raises:
        PipelineError: there is nothing of that kind, or it cannot be read.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        there = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        if close := difflib.get_close_matches(path.name, there, n=1):
            raise PipelineError(
                f"{path}: no such file of weights, did you mean {path.parent / close[0]}? Relative paths start at "
                f"{Path.cwd()}."
            )
    return load_state(path)


def _read_folder(folder: Path) -> dict[str, Tensor]:
    for name in WHOLE:
        if (folder / name).is_file():
            return load_state(folder / name)
    for name in PARTS:
        if (folder / name).is_file():
            return _read_parts(folder / name)
    steps = sorted((int(each.name.partition("-")[2]), each.name) for each in folder.glob("checkpoint-[0-9]*"))
    files = [name for _, name in reversed(steps)]
    files += sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.suffix in SUFFIXES)
    listed = ", ".join(files[:NUM_SHOWN]) or "none"
    raise PipelineError(
        f"training.path={folder} is a folder without {' or '.join(WHOLE)}: give a file of weights, or a folder that "
        f"has one (there: {listed})."
    )


def _read_parts(index: Path) -> dict[str, Tensor]:
    """Of the files that an index names."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{index} is no index of parts of a model: save the model anew.") from error
    return {name: value for part in names for name, value in load_state(index.parent / part).items()}
