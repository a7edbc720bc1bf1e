import os
import socket
import sqlite3
from contextlib import closing

import pytest

from pipeline.errors import PipelineError
from pipeline.system.run_folder import RunFolder
from pipeline.tracking import MLflow, store


@pytest.fixture
def made(tmp_path):
    """A tracking with a store of its own, made by a first run."""
    tracking = MLflow(root=str(tmp_path))
    with tracking.start(RunFolder(tmp_path / "first"), "first", {}, {}, None):
        pass
    return tracking


def start(tracking, tmp_path):
    with tracking.start(RunFolder(tmp_path / "run"), "run", {}, {}, None):
        pass


def test_a_server_that_is_not_there_is_named_at_once(tmp_path, monkeypatch):
    asked, ask = [], store.urllib.request.urlopen
    monkeypatch.setattr(
        store.urllib.request, "urlopen", lambda url, **of: asked.append(url) or ask(url, **of)
    )
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(PipelineError, match=rf"no MLflow server answers at {uri} .*start it.*tracking=none"):
        start(MLflow(uri=uri), tmp_path)
    assert asked == [f"{uri}/health"]  # once, and mlflow, which would try again, not at all


def test_a_server_that_does_not_answer_is_named_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PATIENCE", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(PipelineError, match=r"no MLflow server answers at .*timed out"):
            start(MLflow(uri=f"http://127.0.0.1:{silent.getsockname()[1]}"), tmp_path)


def test_a_locked_database(made, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LOCK_PATIENCE", 0.2)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(
            PipelineError, match=r"mlflow\.db is locked by another process: .*tracking\.uri=http"
        ):
            start(made, tmp_path)
    start(made, tmp_path)


def test_a_database_of_another_version(made, tmp_path):
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'f00d'")
        connection.execute("DROP TABLE trace_info")  # else mlflow migrates it without a word
    before = (tmp_path / "mlflow.db").read_bytes()
    with pytest.raises(
        PipelineError, match=r"another version of MLflow \(schema f00d, .*mlflow db upgrade sqlite:////"
    ):
        start(made, tmp_path)
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database, " * 100)
    with pytest.raises(
        PipelineError, match=r"cannot be used as an MLflow store \(file is not a database\): move it away"
    ):
        start(MLflow(root=str(tmp_path)), tmp_path)


def test_a_kill_while_the_store_is_made_leaves_no_broken_store(tmp_path):
    """What a killed process leaves: an empty file that was only opened, and half a schema under the partial name."""
    (tmp_path / "mlflow.db").touch()
    with closing(sqlite3.connect(tmp_path / "mlflow.db.partial")) as connection, connection:
        connection.execute("CREATE TABLE experiments (half INTEGER)")
    (tmp_path / "mlflow.db.partial-journal").write_bytes(b"journal of the dead")
    start(MLflow(root=str(tmp_path)), tmp_path)
    assert not list(tmp_path.glob("*.partial*"))


def test_a_deleted_experiment(made, tmp_path):
    client, experiment_id = store.connect(store.resolve(None, str(tmp_path)), "curvature")
    client.delete_experiment(experiment_id)
    with pytest.raises(PipelineError, match=r"experiment 'curvature' .*was deleted: restore it"):
        start(made, tmp_path)
    start(MLflow(root=str(tmp_path), experiment="another"), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PipelineError, match=r"cannot be written .*tracking\.root=FOLDER"):
        start(MLflow(root=str(tmp_path)), tmp_path)


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "outputs").touch()
    with pytest.raises(PipelineError, match=r"outputs.* cannot be written .*tracking\.root=FOLDER"):
        start(MLflow(root=str(tmp_path / "outputs")), tmp_path)


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "sqlite:///", "127.0.0.1:5000"])
def test_an_address_of_another_kind(uri):
    with pytest.raises(PipelineError, match=rf"tracking\.uri={uri} is no store"):
        MLflow(uri=uri)


@pytest.mark.parametrize("options", [{"uri": 5000}, {"experiment": ""}, {"experiment": 3}, {"root": None}])
def test_options_of_the_wrong_type(options):
    with pytest.raises(PipelineError, match=rf"tracking\.{next(iter(options))} is"):
        MLflow(**options)
