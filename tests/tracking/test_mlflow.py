"""Oracle: what MLflow's own client, or SQLite, says is in the store."""

import json
import logging
import math
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
from support.command import python

from pipeline.errors import PipelineError
from pipeline.system.run_folder import RunFolder
from pipeline.tracking import MLflow
from pipeline.tracking.mlflow import RECORD


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One store for the module, in a folder whose name must be quoted in a URI."""
    return tmp_path_factory.mktemp("tracking") / "outputs é 1"


@pytest.fixture
def tracking(root):
    return MLflow(root=str(root))


@pytest.fixture
def folder(root, request):
    return RunFolder(root / "runs" / request.node.name)


def start(tracking, folder, params=None, tags=None, sweep=None, name="mlp func seed=0"):
    return tracking.start(folder, name, params or {}, tags or {}, sweep)


def stored(run):
    return run.client.get_run(run.run_id)


run_python = partial(python, "-W", "error", "-c")


def test_a_run_holds_what_was_logged(tracking, folder):
    params = {"model": {"hidden_sizes": [32, 16], "bias": True}, "seed": 0, "num_batches": None}
    with start(tracking, folder, params, {"group": "trial"}) as run:
        assert stored(run).info.status == "RUNNING"
        run.log_metrics({"loss": 2.5}, step=0)
        run.log_metrics({"loss": 0.5, "lambda_max": 20}, step=100)
        run.set_tags({"note": "so far so good"})
    data, info = stored(run).data, stored(run).info
    assert (info.status, info.run_name) == ("FINISHED", "mlp func seed=0")
    assert data.params == {
        "model.hidden_sizes": "[32, 16]",
        "model.bias": "true",
        "seed": "0",
        "num_batches": "null",
    }
    assert data.metrics == {"loss": 0.5, "lambda_max": 20.0}
    assert [(row.step, row.value) for row in run.client.get_metric_history(run.run_id, "loss")] == [
        (0, 2.5),
        (100, 0.5),
    ]
    assert data.tags["group"] == "trial"
    assert data.tags["note"] == "so far so good"
    assert data.tags["shards"] == str(folder.shards)
    assert data.tags["version.python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"version.torch", "version.mlflow"} <= set(data.tags)


def test_the_store_is_where_it_was_asked_for(tracking, folder, root, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with start(tracking, folder) as run:
        run.log_artifact(Path(__file__), "code")
    assert (root / "mlflow.db").is_file()
    assert (root / "mlflow-artifacts" / run.run_id / "artifacts" / "code" / Path(__file__).name).is_file()
    assert list(tmp_path.iterdir()) == []
    record = json.loads((folder.path / RECORD).read_text())
    assert record == {
        "run_id": run.run_id,
        "experiment": "curvature",
        "uri": f"sqlite:///{root / 'mlflow.db'}",
    }


def test_a_relative_root_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with start(MLflow(root="here"), RunFolder(tmp_path / "run")) as run:
        assert run.uri == f"sqlite:///{tmp_path}/here/mlflow.db"
    assert stored(run).info.artifact_uri.startswith(f"file://{tmp_path}/here/mlflow-artifacts/")


def test_the_same_folder_continues_its_run(tracking, folder):
    with start(tracking, folder, {"seed": 0, "stages": ["train"]}) as first:
        first.log_metrics({"loss": 1.0}, step=1)
    with start(tracking, folder, {"seed": 0, "stages": ["report"], "new": 1}) as second:
        assert stored(second).info.status == "RUNNING"
        second.log_metrics({"loss": 0.5}, step=2)
    assert second.run_id == first.run_id
    data = stored(second).data
    assert data.params == {"seed": "0", "stages": "[train]", "new": "1"}
    assert data.tags["changed.stages"] == "[report]"
    assert "changed.seed" not in data.tags
    assert len(second.client.get_metric_history(second.run_id, "loss")) == 2


def test_an_error_makes_the_run_failed_and_the_next_start_clears_it(tracking, folder):
    with pytest.raises(ValueError, match="diverged"), start(tracking, folder) as run:
        raise ValueError("the loss diverged")
    assert stored(run).info.status == "FAILED"
    assert stored(run).data.tags["error"] == "the loss diverged"
    with start(tracking, folder):
        assert "error" not in stored(run).data.tags
    assert stored(run).info.status == "FINISHED"


def test_ctrl_c_makes_the_run_killed(tracking, folder):
    with pytest.raises(KeyboardInterrupt), start(tracking, folder) as run:
        raise KeyboardInterrupt
    assert stored(run).info.status == "KILLED"


def test_a_killed_process_is_continued(tracking, folder, root):
    with start(tracking, RunFolder(folder.path / "other")):
        pass
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from pipeline.system.run_folder import RunFolder; from pipeline.tracking import MLflow\n"
        "with MLflow(root=sys.argv[1]).start(RunFolder(Path(sys.argv[2])), 'n', {'a': 1}, {}, None) as run:\n"
        "    run.log_metrics({'loss': 1.0}, 1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run_python(code, root, folder.path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    killed = json.loads((folder.path / RECORD).read_text())["run_id"]
    with start(tracking, folder, {"a": 1}) as run:
        run.log_metrics({"loss": 0.5}, 2)
    assert run.run_id == killed
    assert [row.step for row in run.client.get_metric_history(killed, "loss")] == [1, 2]
    assert stored(run).info.status == "FINISHED"


def test_a_run_deleted_in_the_dashboard_is_not_written_to(tracking, folder):
    with start(tracking, folder) as first:
        pass
    first.client.delete_run(first.run_id)
    with start(tracking, folder) as second:
        pass
    assert second.run_id != first.run_id
    assert json.loads((folder.path / RECORD).read_text())["run_id"] == second.run_id


def test_a_folder_moved_to_another_store_gets_a_run_there(tracking, folder, tmp_path):
    with start(tracking, folder) as first:
        pass
    with start(MLflow(root=str(tmp_path)), folder) as second:
        pass
    assert second.run_id != first.run_id


def test_jobs_of_a_sweep_share_one_parent_that_is_finished(tracking, root):
    sweep = root / "multirun" / "2026-01-31" / "12-00-00"
    runs = []
    for number in range(2):
        with start(tracking, RunFolder(sweep / str(number)), {"seed": number}, sweep=sweep) as run:
            runs.append(run)
    parents = {stored(run).data.tags["mlflow.parentRunId"] for run in runs}
    parent = run.client.get_run(parents.pop())
    assert not parents
    assert (parent.info.run_name, parent.info.status) == ("sweep 2026-01-31 12-00-00", "FINISHED")
    with start(tracking, RunFolder(sweep)) as again:  # what belongs to the whole sweep is logged there
        again.log_metrics({"num_jobs": 2})
    assert again.run_id == parent.info.run_id


def test_jobs_that_begin_at_once_share_one_parent(tracking, root, monkeypatch):
    sweep, begin = root / "multirun" / "at once", Barrier(4)
    parent_of, run_of = MLflow._parent, MLflow._run_of

    def together(*args):
        begin.wait()
        return parent_of(*args)

    def slow(*args):
        time.sleep(0.05)  # the others come meanwhile
        return run_of(*args)

    def parent(number):
        with start(tracking, RunFolder(sweep / str(number)), sweep=sweep) as run:
            return stored(run).data.tags["mlflow.parentRunId"]

    monkeypatch.setattr(MLflow, "_parent", together)
    monkeypatch.setattr(MLflow, "_run_of", slow)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(parent, range(4)))) == 1


def test_values_that_are_no_numbers_do_not_break(tracking, folder):
    with start(tracking, folder) as run:
        run.log_metrics({"nan": math.nan, "up": math.inf, "down": -math.inf, "good": 1.0})
    metrics = stored(run).data.metrics
    assert metrics.pop("good") == 1.0
    assert all(math.isnan(value) for value in metrics.values())
    assert len(metrics) == 3


def test_more_metrics_and_params_than_fit_one_request(tracking, folder):
    with start(tracking, folder, {f"p{i}": i for i in range(250)}, {f"t{i}": "x" for i in range(150)}) as run:
        run.log_metrics({f"layer/{i}": i for i in range(2100)})
    assert stored(run).data.metrics == {f"layer/{i}": float(i) for i in range(2100)}
    assert stored(run).data.params == {f"p{i}": str(i) for i in range(250)}


def test_what_is_too_long_or_has_other_characters_is_made_to_fit(tracking, folder):
    params = {"long": "x" * 9000, "k" * 300: 1, "a@b": 2}
    for _ in range(2):
        with start(tracking, folder, params, {"text": "y" * 9000}) as run:
            run.log_metrics({"λ max (top)": 1.0, "../up": 2.0})
    data = stored(run).data
    assert data.params["long"].endswith("(9000 characters)")
    assert (data.params["k" * 250], data.params["a_b"]) == ("1", "2")
    assert not [key for key in data.tags if key.startswith("changed.")]
    assert data.metrics == {"λ max _top_": 1.0, "up": 2.0}


def test_four_processes_on_a_fresh_store_lose_nothing(tmp_path):
    """All four stand at a barrier with mlflow imported, so that they open the store at the same moment."""
    code = """
import multiprocessing, sys
from pathlib import Path
from pipeline.system.run_folder import RunFolder
from pipeline.tracking import MLflow, store

def job(number, barrier, root):
    barrier.wait()
    sweep = root / "multirun" / "a" / "b"
    folder = RunFolder(sweep / str(number))
    with MLflow(root=str(root)).start(folder, f"job {number}", {"seed": number}, {}, sweep) as run:
        for step in range(5):
            run.log_metrics({"loss": float(step), "number": number}, step)
        run.log_artifact(Path(sys.argv[1]) / "figure.png", "figures")

store.load(); store._sqlalchemy_store()
context = multiprocessing.get_context("fork")
barrier = context.Barrier(4)
jobs = [context.Process(target=job, args=(n, barrier, Path(sys.argv[1]))) for n in range(4)]
for process in jobs: process.start()
for process in jobs: process.join()
sys.exit(sum(process.exitcode != 0 for process in jobs))
"""
    (tmp_path / "figure.png").write_bytes(b"png")
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")

    with start(MLflow(root=str(tmp_path)), RunFolder(tmp_path / "look")) as run:
        client, experiment_id = run.client, stored(run).info.experiment_id
    runs = [found for found in client.search_runs([experiment_id]) if found.info.run_name.startswith("job")]
    assert sorted(found.data.params["seed"] for found in runs) == [str(n) for n in range(4)]
    assert {found.info.status for found in runs} == {"FINISHED"}
    assert len({found.data.tags["mlflow.parentRunId"] for found in runs}) == 1
    for found in runs:
        history = client.get_metric_history(found.info.run_id, "loss")
        assert [row.value for row in sorted(history, key=lambda row: row.step)] == [
            float(step) for step in range(5)
        ]
        assert [entry.path for entry in client.list_artifacts(found.info.run_id, "figures")] == [
            "figures/figure.png"
        ]


def test_fetch_copies_an_artifact(tracking, folder, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    with start(tracking, folder) as run:
        run.log_artifact(tmp_path / "weights.safetensors", "checkpoints")
    got = tracking.fetch(f"runs:/{run.run_id}/checkpoints/weights.safetensors", tmp_path / "to")
    assert got == tmp_path / "to" / "weights.safetensors"
    assert got.read_bytes() == b"weights"
    assert list(got.parent.iterdir()) == [got]

    with pytest.raises(PipelineError, match=r"no file weights\.pt \(there is: checkpoints/\)"):
        tracking.fetch(f"runs:/{run.run_id}/weights.pt", tmp_path)
    with pytest.raises(PipelineError, match=r"no file checkpoints \(there is: checkpoints/\)"):
        tracking.fetch(f"runs:/{run.run_id}/checkpoints", tmp_path)
    with pytest.raises(PipelineError, match="no run 0123 at sqlite"):
        tracking.fetch("runs:/0123/weights.pt", tmp_path)


@pytest.mark.parametrize("uri", ["weights.pt", "runs:/0123", "runs:/", "models:/a/1"])
def test_fetch_refuses_what_is_no_artifact(tracking, uri, tmp_path):
    with pytest.raises(PipelineError, match=r"write runs:/<run id>/<artifact path>"):
        tracking.fetch(uri, tmp_path)


def test_nothing_reaches_the_terminal_or_the_log_of_the_caller(tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    with start(MLflow(root=str(tmp_path)), RunFolder(tmp_path / "run")) as run:
        run.log_metrics({"loss": 1.0})
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name.startswith(("mlflow", "alembic"))] == []


def test_importing_the_package_does_not_import_mlflow():
    done = run_python(
        "import sys, pipeline.tracking, pipeline.tracking.dashboard; sys.exit('mlflow' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr
