"""The exceptions that are meant for the user."""

from __future__ import annotations

import re
from pathlib import Path

MEMORY_MESSAGES = re.compile(
    "can't allocate memory|out of memory|can't start new thread|bad_alloc|_ALLOC_FAILED"
)  # of PyTorch's CPU allocator, GPUs, threads, C++, and CUDA's libraries


class PipelineError(Exception):
    """A mistake of the user or a fault of the machine, in one line: what is wrong, the value, the remedy.

    `pipeline.run` prints it without a traceback and exits with status 1.
    """


class DamagedFile(PipelineError):
    """A file that is not what was written. path: which one; why: what is wrong with it; remedy: what to do."""

    def __init__(self, path: Path, why: str, remedy: str) -> None:
        super().__init__(path, why, remedy)  # all of them, so that another process can raise it here
        self.path, self.why, self.remedy = path, why, remedy

    def __str__(self) -> str:
        return f"{self.path} is damaged ({self.why}): {self.remedy}."


class NotAShard(PipelineError):
    """A file of somebody else's, or of another kind: neither damaged nor this program's to move or to replace."""


class StrategyError(PipelineError):
    """One way of computing a matrix does not do for this model; another may.

    why: what is wrong. remedy: what to do, where no other way is left to be tried.
    """

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why, remedy)
        self.why, self.remedy = why, remedy

    def __str__(self) -> str:
        return f"{self.why}: {self.remedy}."


class NotFiniteError(StrategyError):
    """A matrix with NaN or infinite entries; whoever knows of which batch it is says so."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the computer or of a GPU did not do: PyTorch has a class of its own for GPUs alone."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or bool(MEMORY_MESSAGES.search(str(error))))
    )


def must_reach_user(error: BaseException) -> bool:
    """Whether no other way may be tried in place of what raised this, and nothing else be said of it."""
    return isinstance(error, PipelineError) or is_out_of_memory(error)


def first_line(error: BaseException | None) -> str:
    """The first line of a message; of an error that says nothing, what kind it is."""
    return str(error).partition("\n")[0] or type(error).__name__
