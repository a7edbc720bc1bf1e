"""How a run ended, told by the run itself in `status.json`: what a sweep needs to know of jobs that it cannot see.

    {"state": "failed", "reason": "num_batches=9: 40 training samples make 3 batches of 16: lower num_batches."}

A launcher that knows more than the job could say (cancelled in the queue, out of time) may write it with `tell`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from pipeline.errors import PipelineError
from pipeline.system.run_folder import RunFolder, write_atomically

RUNNING, FINISHED, FAILED, CANCELLED, KILLED, MISSING = (
    "running",
    "finished",
    "failed",
    "cancelled",
    "killed",
    "missing",
)
FINISHED_WITH = ".hydra/finished.json"


@dataclass(frozen=True)
class Status:
    """The state of a run, and one line on why it is not `finished`."""

    state: str
    reason: str = ""


def write_status(folder: RunFolder, state: str, reason: str = "") -> None:
    """Write the status of a run."""
    write_atomically(folder.status, json.dumps(asdict(Status(state, reason)), ensure_ascii=False) + "\n")


@contextmanager
def recorded_status(folder: RunFolder, explain: Callable[[Exception], str | None]) -> Iterator[None]:
    """Record how the body ends. To be used while the folder is locked: the status is of the run that holds it.

    explain: an exception in one line, or None if it is not known.

    A process that is killed, or leaves by SystemExit to be started again, tells nothing: `status_of` sees that.
    """
    write_status(folder, RUNNING)
    try:
        yield
    except Exception as error:
        with suppress(PipelineError):  # the reason that the body gave counts
            write_status(folder, FAILED, explain(error) or f"unexpected {type(error).__name__}: {error}")
        raise
    except KeyboardInterrupt:
        with suppress(PipelineError):
            write_status(folder, CANCELLED, "interrupted by Ctrl-C.")
        raise
    write_status(folder, FINISHED)


def status_of(folder: RunFolder) -> Status:
    """What the run told; `killed` if it was at work and no process is any more, `missing` if it never began."""
    status = _read(folder)
    if status.state != RUNNING or folder.is_held():
        return status
    status = _read(folder)  # it may have ended in between
    if status.state != RUNNING:
        return status
    return Status(KILLED, "its process ended without a word: killed, or its machine stopped.")


def _read(folder: RunFolder) -> Status:
    try:
        found = json.loads(folder.status.read_text(encoding="utf-8"))
        return Status(str(found["state"]), str(found.get("reason", "")))
    except FileNotFoundError:
        return Status(MISSING, "it has not begun.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Status(MISSING, f"{folder.status} cannot be read ({error}).")


def note_finished(folder: RunFolder, overrides: Sequence[str]) -> None:
    """Note with which overrides a job was finished; Hydra's own notes are of the last start, finished or not."""
    write_atomically(folder.path / FINISHED_WITH, json.dumps(list(overrides)) + "\n")


def is_finished(folder: RunFolder, overrides: Sequence[str]) -> bool:
    """Whether the folder holds the whole run that a job with these overrides would make."""
    try:
        done = json.loads((folder.path / FINISHED_WITH).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(done == list(overrides)) and status_of(folder).state == FINISHED
