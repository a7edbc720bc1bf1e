"""Where MLflow keeps runs: an embedded SQLite store that is made once and whole, or a server.

mlflow takes more than a second to import, so nothing imports it before it is needed; that a server does not
answer is said without it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.system import locked, replacing
from pipeline.tracking.error_messages import database, in_use, is_server, one_line, shortened, unreachable

# A server is first asked whether it is there; later calls may be slow, yet must not hang a run for long
# (mlflow's own defaults are 7 retries of 120 s).
PATIENCE = 5.0  # seconds: a server's first answer
LOCK_PATIENCE = 10.0  # seconds: SQLite's lock
SPECIAL, HANDLES = frozenset("?%#"), Path("/proc/self/fd")  # see proc(5)
OTHER_STORE = "tracking.root=FOLDER, or use tracking=none"  # the remedy where a store cannot be locked
VARIABLE = "MLFLOW_TRACKING_URI"
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# The page of an experiment then opens in the view for training runs, not in the one for language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def resolve(uri: str | None, root: str) -> str:
    """The store's address, absolute: a server's, or `sqlite:////…`.

    Where `uri` is None, MLFLOW_TRACKING_URI of the environment counts, and without it `<root>/mlflow.db`.

    Raises:
        PipelineError: the address is neither.
    """
    name = "tracking.uri" if uri else VARIABLE
    uri = uri or os.environ.get(VARIABLE)
    if not uri:
        return f"sqlite:///{Path(root).absolute() / 'mlflow.db'}"
    if is_server(uri):
        return uri.rstrip("/")
    if uri.startswith("sqlite:///") and uri != "sqlite:///":
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    other = "null for <root>/mlflow.db" if name != VARIABLE else "unset it; tracking.uri counts over it"
    raise PipelineError(
        f"{name}={uri} is no store that is known: give a server (http://127.0.0.1:5000), a file "
        f"(sqlite:////absolute/path/mlflow.db), or {other}."
    )


@cache
def engine_uri(uri: str) -> str:
    """The address of a SQLite store as SQLAlchemy and MLflow take it, in this process.

    `?`, `%` and `#` of a path mean something in a URL, to each of the two something else: a folder with such a name is
    held open, and reached by the number of its handle.

    Raises:
        PipelineError: the file itself has such a name, or the system has no such numbers.
    """
    path = database(uri)
    if not SPECIAL & set(str(path)):
        return uri
    if SPECIAL & set(path.name) or not HANDLES.is_dir():
        raise PipelineError(
            f"{path}: MLflow takes none of ? % # in it: choose another with tracking.root=FOLDER."
        )
    return f"sqlite:///{HANDLES / str(os.open(path.parent, os.O_RDONLY))}/{path.name}"


def artifacts(uri: str) -> Path:
    """The folder of the artifacts that belong to a SQLite store: `mlflow.db` has `mlflow-artifacts`."""
    path = database(uri)
    return path.with_name(f"{path.stem}-artifacts")


def load() -> Any:
    """Import mlflow without telemetry and without its chatter, and return the module."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    # Whatever is worth an error line comes as an exception; the log repeats it with a traceback.
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return mlflow


def connect(uri: str, experiment: str) -> tuple[Any, str]:
    """A client for the store at `uri`, and the id of the experiment there; what is missing is made.

    Raises:
        PipelineError: the server does not answer; the database is locked, damaged, or of another mlflow
            version; the experiment was deleted.
    """
    if is_server(uri):
        _reach(uri)
        load()
        from mlflow import MlflowClient

        with one_line(uri):
            client = MlflowClient(tracking_uri=uri)
            return client, _experiment(client, uri, experiment, None)
    return _connect_sqlite(uri, experiment)


def _connect_sqlite(uri: str, experiment: str) -> tuple[Any, str]:
    path = database(uri)
    load()
    with locked(path.with_name(path.name + ".lock"), OTHER_STORE), one_line(uri):
        client = _client(uri, experiment)
        return client, _experiment(client, uri, experiment, artifacts(uri))


def open_sqlite(uri: str) -> Any:
    """A client for the store in a SQLite file that exists; nothing is made.

    Raises:
        PipelineError: the database is locked, damaged, or of another mlflow version.
    """
    load()
    with one_line(uri):
        return _client(uri, None)


def _client(uri: str, experiment: str | None) -> Any:
    """A client for a SQLite store; one that is missing is made with `experiment`, unless that is None."""
    from alembic.util import CommandError
    from mlflow import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    path = database(uri)
    try:
        if experiment is not None and (not path.exists() or path.stat().st_size == 0):
            _create(path, experiment)
        _check(path)
        return MlflowClient(tracking_uri=engine_uri(uri))
    except (SQLAlchemyError, CommandError, sqlite3.Error) as error:
        if "database is locked" in str(error):
            raise PipelineError(in_use(uri)) from error
        raise PipelineError(
            f"{path} cannot be used as an MLflow store ({shortened(str(error), 200)}): "
            "move it away, or choose another folder with tracking.root=FOLDER."
        ) from error


def _create(path: Path, experiment: str) -> None:
    """Make the store under another name and move it into place, so that a kill leaves no half of a schema."""
    store_class = _sqlalchemy_store()
    partial = path.with_name(path.name + ".partial")
    for leftover in (partial, partial.with_name(partial.name + "-journal")):
        leftover.unlink(missing_ok=True)
    where = artifacts(f"sqlite:///{path}")
    with replacing(path) as fresh, _unsynchronized():
        store = store_class(engine_uri(f"sqlite:///{fresh}"), where.as_uri())
        try:
            store.create_experiment(experiment, where.as_uri(), _experiment_tags())
        finally:
            store.engine.dispose()


@contextmanager
def _unsynchronized() -> Iterator[None]:
    """Let SQLite not wait for the disk: the schema takes a hundred writes, and the file is flushed as a whole."""
    from sqlalchemy import Engine, event

    def pragma(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", pragma)
    try:
        yield
    finally:
        event.remove(Engine, "connect", pragma)


def _sqlalchemy_store() -> Any:
    with warnings.catch_warnings():
        # mlflow uses a loader that SQLAlchemy 2.1 calls deprecated, and says so at the import
        warnings.filterwarnings("ignore", message="The ``noload`` loader strategy is deprecated")
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    return SqlAlchemyStore


def _check(path: Path) -> None:
    """Check that the file can be written, and has the schema of this mlflow, which might migrate it unasked.

    Raises:
        PipelineError: another version's schema.
        sqlite3.Error: no database, or locked.
    """
    _sqlalchemy_store()
    import mlflow
    from alembic.script import ScriptDirectory

    with closing(sqlite3.connect(path, timeout=LOCK_PATIENCE)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        known = "alembic_version" in tables
        found = connection.execute("SELECT version_num FROM alembic_version").fetchone() if known else None
        connection.rollback()
    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations"
    expected = ScriptDirectory(str(migrations)).get_current_head()
    if found is None or found[0] != expected:
        schema = found[0] if found else "none"
        raise PipelineError(
            f"{path} was written by another version of MLflow (schema {schema}, MLflow {mlflow.__version__} "
            f"needs {expected}): copy it and run `python -m mlflow db upgrade sqlite:///{path}`, or choose "
            "another folder with tracking.root=FOLDER."
        )


def _experiment(client: Any, uri: str, name: str, where: Path | None) -> str:
    """The id of the experiment `name`; its artifacts lie in `where`, or where the server says."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            location = where.as_uri() if where else None
            return str(client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was quicker
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise PipelineError(
            f"the experiment '{name}' at {uri} was deleted: restore it with `MLFLOW_TRACKING_URI={uri} "
            f"python -m mlflow experiments restore --experiment-id {found.experiment_id}`, or choose another "
            "with tracking.experiment=NAME."
        )
    return str(found.experiment_id)


def _experiment_tags() -> list[Any]:
    from mlflow.entities import ExperimentTag

    return [ExperimentTag(key, value) for key, value in EXPERIMENT_TAGS.items()]


def _reach(uri: str) -> None:
    """Ask the server for its health; any answer will do, since a login or proxy before it may refuse."""
    try:
        urllib.request.urlopen(f"{uri}/health", timeout=PATIENCE).close()
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, HTTPException, ValueError) as error:
        raise PipelineError(unreachable(uri, str(getattr(error, "reason", error)))) from error
