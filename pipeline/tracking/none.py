"""No tracking: the run folder is all there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.system import RunFolder


class UntrackedRun:
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        pass

    def log_artifact(self, path: Path, under: str | None = None) -> None:
        pass

    def set_tags(self, tags: Mapping[str, str]) -> None:
        pass


@dataclass(frozen=True)
class NoTracking:
    """Records nothing, imports nothing."""

    def ready(self) -> NoTracking:
        return self

    @contextmanager
    def start(
        self,
        folder: RunFolder,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        sweep: Path | None,
    ) -> Iterator[UntrackedRun]:
        yield UntrackedRun()

    def fetch(self, uri: str, to: Path) -> Path:
        raise PipelineError(
            f"{uri} lies in MLflow, and tracking=none reads nothing from there: use tracking=mlflow."
        )
