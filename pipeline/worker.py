"""A batch's matrix, or a band of it, in another process, which is told the settings and the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.bands import Band
from pipeline.folder import RunFolder

_settings: dict[str, Mapping[str, Any]] = {}


def compute_shard(settings: Mapping[str, Any], folder: str, work: tuple[int, int, Band | None]) -> None:
    """Compute a shard of a run, or a band of one, unless it is there; weights come from the checkpoint.

    work: the step, the batch, and the band of its matrix; None for all of it.
    """
    from pipeline import stages

    _settings[settings["config_hash"]] = settings
    subject, matrix, strategy, storage = _built(settings["config_hash"])
    stages.compute_one(RunFolder(Path(folder)), subject, settings, matrix, strategy, work, storage)


@lru_cache(maxsize=1)
def _built(config_hash: str) -> tuple[Any, Any, Any, Any]:
    """Subject, matrix, strategy and storage: once in each worker, not once for each batch."""
    from pipeline.run import as_config, build, build_subject

    config = as_config(_settings[config_hash])
    _take_a_device()
    return build_subject(config), *(build(config, group) for group in ("matrix", "strategy", "storage"))


def _take_a_device() -> None:
    """One of several GPUs for each worker of a machine, in turn."""
    import torch
    from distributed import get_worker

    if torch.cuda.is_available():
        name = str(get_worker().name)
        torch.cuda.set_device((int(name) if name.isdigit() else 0) % torch.cuda.device_count())
