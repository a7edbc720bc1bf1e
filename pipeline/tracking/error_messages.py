"""What goes wrong between a run and its MLflow store, each as one line for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import PipelineError


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def database(uri: str) -> Path:
    """The file behind `sqlite:////…`."""
    return Path(uri.removeprefix("sqlite:///"))


@contextmanager
def one_line(uri: str) -> Iterator[None]:
    """Turn what mlflow raises about the store at `uri` into one line for the user."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except OSError as error:
        if error.errno is not None:  # of this machine's files
            place = f"{error.filename}: " if error.filename else ""
            raise PipelineError(f"MLflow at {uri} failed: {place}{error.strerror}.") from error
        if getattr(error, "response", None) is not None:  # of the connection, and the server gave an answer
            raise PipelineError(refused(uri, str(error))) from error
        raise PipelineError(unreachable(uri, str(error))) from error
    except MlflowException as error:
        message = str(error)
        if "database is locked" in message and not is_server(uri):
            raise PipelineError(in_use(uri)) from error
        if "failed with exception" in message and is_server(uri):
            raise PipelineError(unreachable(uri, "it stopped answering")) from error
        raise PipelineError(refused(uri, message)) from error


def unreachable(uri: str, reason: str) -> str:
    remedy = "start it, correct tracking.uri, or use tracking=none."
    return f"no MLflow server answers at {uri} ({shortened(reason, 120)}): {remedy}"


def in_use(uri: str) -> str:
    return (
        f"{database(uri)} is locked by another process: wait for it, end it, or use a server with "
        "tracking.uri=http://HOST:PORT if many runs write at once."
    )


def refused(uri: str, reason: str) -> str:
    return f"MLflow at {uri} refused: {shortened(reason, 300)}"


def shortened(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
