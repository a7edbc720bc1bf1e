"""Runs in MLflow: one MLflow run for each run folder, however often the folder is started again."""

from __future__ import annotations

import getpass
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.system import RunFolder, git_commit, locked, versions, write_atomically
from pipeline.tracking import error_messages, store
from pipeline.tracking.background import Recorder, recorder
from pipeline.tracking.key_format import flat_texts, key_text, value_text
from pipeline.validation import check_bool

RECORD = "mlflow.json"  # in a run folder: which MLflow run it is; in a sweep's folder: the parent of its runs
PARENT = "mlflow.parentRunId"
ERROR = "error"
NUM_METRICS = 1000  # what MLflow takes in one request
NUM_PARAMS = 100
TAG_LENGTH = 8000
log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class MLflow:
    """An MLflow experiment in an embedded SQLite store, or on a server.

    `uri` is a server (`http://127.0.0.1:5000`) or `sqlite:////absolute/path/mlflow.db`; None stands for
    MLFLOW_TRACKING_URI of the environment, or else `<root>/mlflow.db`, with artifacts in `<root>/mlflow-artifacts`.
    SQLite needs a local disk: its locks fail on a network disk.

    Starting a run takes about 2 s, nearly all of it the import of mlflow; a metric or a tag takes about 5 ms. With
    `background` all of that happens in a process beside the work (`ready`).
    """

    uri: str | None = None
    experiment: str = "curvature"
    root: str = "outputs"
    background: bool = True

    def __post_init__(self) -> None:
        for name, value in (("experiment", self.experiment), ("root", self.root)):
            if not isinstance(value, str) or not value.strip():
                raise PipelineError(
                    f"tracking.{name} is a name, not {value!r}: give a word such as {name}=curvature."
                )
        if self.uri is not None and not isinstance(self.uri, str):
            raise PipelineError(
                f"tracking.uri is an address, not {self.uri!r}: give http://HOST:PORT, or null."
            )
        check_bool("tracking.background", self.background)
        store.resolve(self.uri, self.root)

    def ready(self) -> MLflow | Recorder:
        """What has `start`: this, or a process that begins to import mlflow now and takes the calls of the run."""
        if not self.uri and os.environ.get(store.VARIABLE):
            log.info("MLflow records at %s (%s).", store.resolve(None, self.root), store.VARIABLE)
        if not self.background:
            return self
        return recorder(asdict(self))

    @contextmanager
    def start(
        self,
        folder: RunFolder,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        sweep: Path | None,
    ) -> Iterator[MLflowRun]:
        """The run of `folder`: RUNNING inside the block, then FINISHED, FAILED on an error, KILLED on Ctrl-C.

        `folder/mlflow.json` says which run it is, so the next start of the same folder continues it. MLflow
        cannot change a param: one that has another value now is recorded as the tag `changed.<param>`.

        Raises:
            PipelineError: the store cannot be used; the line says why.
        """
        uri = store.resolve(self.uri, self.root)
        client, experiment_id = store.connect(uri, self.experiment)
        with error_messages.one_line(uri):
            parent = self._parent(client, experiment_id, uri, sweep) if sweep else None
            run_id = self._run_of(
                client, experiment_id, uri, folder.path, name, {PARENT: parent} if parent else {}
            )
            run = MLflowRun(client, run_id, uri)
            places = {"folder": str(folder.path.absolute()), "shards": str(folder.shards.absolute())}
            run.describe(flat_texts(params), {**places, **_origin_tags(), **tags})
        try:
            yield run
        except BaseException as error:
            # the reason that the body gave counts, even if the store is gone as well
            with suppress(PipelineError):
                run.set_tags({ERROR: str(error) or type(error).__name__})
                run.close("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        run.close("FINISHED")

    def fetch(self, uri: str, to: Path) -> Path:
        """Copy the artifact `runs:/<run id>/<artifact path>` into the folder `to` and return the copy's path.

        Raises:
            PipelineError: no such run, no such file, or no such form of address.
        """
        run_id, _, path = uri.removeprefix("runs:/").strip("/").partition("/")
        if not uri.startswith("runs:/") or not run_id or not path:
            raise PipelineError(f"{uri} names no artifact: write runs:/<run id>/<artifact path>.")
        where = store.resolve(self.uri, self.root)
        client, _ = store.connect(where, self.experiment)
        with error_messages.one_line(where):
            _check_artifact(client, where, uri, run_id, path)
            to.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=to) as fresh:
                got = Path(client.download_artifacts(run_id, path, fresh))
                return got.replace(to / got.name)

    def _parent(self, client: Any, experiment_id: str, uri: str, sweep: Path) -> str:
        """The run under which all jobs of `sweep` hang, made by whichever job comes first."""
        name = " ".join(("sweep", *sweep.absolute().parts[-2:]))
        with locked(sweep / f".{RECORD}.lock", store.OTHER_STORE):
            run_id = _recorded(client, experiment_id, sweep)
            if run_id is None:
                run_id = self._run_of(client, experiment_id, uri, sweep, name, {})
                MLflowRun(client, run_id, uri).set_tags({"folder": str(sweep.absolute())} | _origin_tags())
                client.set_terminated(run_id, "FINISHED")  # it has no process of its own that could end it
        return run_id

    def _run_of(
        self, client: Any, experiment_id: str, uri: str, folder: Path, name: str, tags: Mapping[str, str]
    ) -> str:
        """The run recorded in `folder`, set back to RUNNING; a new one if this experiment has none."""
        run_id = _recorded(client, experiment_id, folder)
        if run_id is None:
            run = client.create_run(experiment_id, run_name=name, tags={"mlflow.user": _user(), **tags})
            run_id = str(run.info.run_id)
            record = {"run_id": run_id, "experiment": self.experiment, "uri": uri}
            write_atomically(folder / RECORD, json.dumps(record, indent=2) + "\n")
        else:
            client.update_run(run_id, status="RUNNING")
            for key, value in tags.items():
                client.set_tag(run_id, key, value)
        return run_id


@dataclass(frozen=True)
class MLflowRun:
    """One run of the store at `uri`. What is logged is stored when the call returns."""

    client: Any
    run_id: str
    uri: str

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log at `step` (0 if None). MLflow would store infinity as 1.8e308, so it is stored as NaN."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        values = {key_text(name): float(value) for name, value in metrics.items()}
        rows = [
            Metric(name, math.nan if math.isinf(value) else value, now, step or 0)
            for name, value in values.items()
        ]
        self._log(metrics=rows)

    def log_artifact(self, path: Path, under: str | None = None) -> None:
        """Copy a file, or a folder with all that is in it, into the artifact folder `under` of the run."""
        with error_messages.one_line(self.uri):
            self.client.log_artifact(self.run_id, str(path), under)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._log(tags=_tags(tags))

    def describe(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Log the params that MLflow does not have yet, and the tags; a param that differs becomes a tag."""
        from mlflow.entities import Param

        with error_messages.one_line(self.uri):
            known = self.client.get_run(self.run_id).data
        changed = {
            f"changed.{key}": text for key, text in params.items() if known.params.get(key, text) != text
        }
        new = [Param(key, text) for key, text in params.items() if key not in known.params]
        self._log(params=new, tags=_tags({**changed, **tags}))
        if ERROR in known.tags:  # of the start before this one
            with error_messages.one_line(self.uri):
                self.client.delete_tag(self.run_id, ERROR)

    def close(self, status: str) -> None:
        with error_messages.one_line(self.uri):
            self.client.set_terminated(self.run_id, status)

    def _log(self, metrics: Sequence[Any] = (), params: Sequence[Any] = (), tags: Sequence[Any] = ()) -> None:
        with error_messages.one_line(self.uri):
            for first in range(0, len(metrics), NUM_METRICS):
                self.client.log_batch(self.run_id, metrics=metrics[first : first + NUM_METRICS])
            for first in range(0, max(len(params), len(tags)), NUM_PARAMS):
                group = slice(first, first + NUM_PARAMS)
                self.client.log_batch(self.run_id, params=params[group], tags=tags[group])


def _tags(tags: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(key_text(key), value_text(value, TAG_LENGTH)) for key, value in tags.items()]


def _origin_tags() -> dict[str, str]:
    """Versions and commit; under MLflow's own names too where its table has a column for them."""
    commit = git_commit()
    tags = {f"version.{name}": version for name, version in versions().items()}
    tags |= {"mlflow.source.name": "pipeline.run", "mlflow.source.type": "LOCAL"}
    return tags | ({"git_commit": commit, "mlflow.source.git.commit": commit.split()[0]} if commit else {})


def _recorded(client: Any, experiment_id: str, folder: Path) -> str | None:
    """The id of the run that `folder` records, if it is still in the experiment."""
    from mlflow.exceptions import MlflowException

    try:
        run_id = json.loads((folder / RECORD).read_text(encoding="utf-8"))["run_id"]
        info = client.get_run(run_id).info
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another store, or deleted for good
            return None
        raise
    return str(run_id) if info.lifecycle_stage == "active" and info.experiment_id == experiment_id else None


def _check_artifact(client: Any, where: str, uri: str, run_id: str, path: str) -> None:
    """That the run is there and has a file at `path`."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise PipelineError(
            f"{uri}: no run {run_id} at {where}: copy the id from the dashboard, or correct tracking.uri."
        ) from error
    beside = client.list_artifacts(run_id, str(Path(path).parent) if "/" in path else None)
    if path not in [entry.path for entry in beside if not entry.is_dir]:
        there = ", ".join(sorted(entry.path + "/" * entry.is_dir for entry in beside)) or "nothing"
        raise PipelineError(f"{uri}: the run has no file {path} (there is: {there}).")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return "unknown"
