"""A batch's matrix, or a band of it, in another process, which is told the settings and the run folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.bands import Band
from pipeline.errors import PipelineError
from pipeline.evidence import OtherExperiment
from pipeline.folder import RunFolder

_settings: dict[str, Mapping[str, Any]] = {}


def compute_shard(settings: Mapping[str, Any], folder: str, work: tuple[int, int, Band | None]) -> None:
    """Compute a shard of a run, or a band of one, unless it is there; weights come from the checkpoint.

    work: the step, the batch, and the band of its matrix; None for all of it.
    """
    from pipeline import stages

    key = f"{settings['config_hash']} {settings['train_hash']} {settings['test_hash']}"
    _settings[key] = settings
    subject, matrix, strategy, storage = _built(key)
    try:
        stages.compute_one(RunFolder(Path(folder)), subject, settings, matrix, strategy, work, storage)
    except OtherExperiment as error:  # the run itself has looked before
        raise PipelineError(
            f"a worker has other code or files than the run ({error.where} differ): start the workers anew; "
            "what your own classes draw must be the same in each process."
        ) from error


@lru_cache(maxsize=1)
def _built(key: str) -> tuple[Any, Any, Any, Any]:
    """Subject, matrix, strategy and storage: once in each worker, not once for each batch."""
    from pipeline.run import as_config, build, build_subject

    config = as_config(_on_a_gpu_of_its_own(_settings[key]))
    return build_subject(config), *(build(config, group) for group in ("matrix", "strategy", "storage"))


def _on_a_gpu_of_its_own(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """With device=auto, the workers of a machine take its GPUs in turn, by the number in a worker's name."""
    import torch
    from distributed import get_worker

    device, number = settings["device"], torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number < 2 or device["_target_"] != "pipeline.device.Auto":
        return settings
    found = re.search(r"\d+$", str(get_worker().name))
    index = int(found[0]) % number if found else 0
    return {**settings, "device": {**device, "_target_": "pipeline.device.Cuda", "index": index}}
