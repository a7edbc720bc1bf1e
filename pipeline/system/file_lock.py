"""A lock for files that several processes write: the jobs of a sweep, runs that share an MLflow store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import PipelineError

PATIENCE = 120.0  # seconds: that other processes may take


@contextmanager
def locked(path: Path, elsewhere: str) -> Iterator[None]:
    """Hold the lock file `path`, waiting for other processes; the kernel frees it if its holder dies.

    elsewhere: how another folder is chosen, for the message.

    Raises:
        PipelineError: another process holds it for too long, or it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path, timeout=PATIENCE):
            yield
    except Timeout as error:
        raise PipelineError(
            f"{path} has been held by another process for {PATIENCE:.0f} s: end that process, "
            f"or choose another folder with {elsewhere}."
        ) from error
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise PipelineError(
            f"{error.filename or path} cannot be written ({error.strerror}): choose another folder with {elsewhere}."
        ) from error
