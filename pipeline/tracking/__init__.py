"""Where runs are recorded so that they can be compared: `mlflow`, or `none`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pipeline.system import RunFolder
from pipeline.tracking import error_messages, store
from pipeline.tracking.mlflow import RECORD, MLflow, MLflowRun
from pipeline.tracking.network_disk import check_shared
from pipeline.tracking.none import NoTracking


class TrackedRun(Protocol):
    """What can be told about a run while it works; carried out in this order, and all of it when the run ends."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None: ...

    def log_artifact(self, path: Path, under: str | None = None) -> None: ...

    def set_tags(self, tags: Mapping[str, str]) -> None: ...


class Starter(Protocol):
    def start(
        self,
        folder: RunFolder,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        sweep: Path | None,
    ) -> AbstractContextManager[TrackedRun]:
        """Begin the run that belongs to `folder`, or go on with it where an earlier process left off.

        `params` may be nested: `{"model": {"bias": True}}` is the param `model.bias`. `sweep` is the folder
        of a multirun, whose jobs are grouped; None for a single run.
        """
        ...


class Tracking(Protocol):
    def ready(self) -> Starter:
        """What starts runs; to be called well before, as it may take its time to get ready beside the caller."""
        ...

    def fetch(self, uri: str, to: Path) -> Path:
        """Copy `runs:/<run id>/<artifact path>` into the folder `to` and return the path of the copy."""
        ...
