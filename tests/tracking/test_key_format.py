"""Names and values, versions and commits, columns, and the tracking that does nothing."""

import json
import subprocess
import sys

import pytest

from pipeline.errors import PipelineError
from pipeline.system.run_folder import RunFolder
from pipeline.tracking import NoTracking, dashboard_views, key_format, provenance


def test_no_tracking_records_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with NoTracking().start(folder, "run", {"seed": 0}, {}, None) as run:
        run.log_metrics({"loss": 1.0}, 3)
        run.set_tags({"a": "b"})
        run.log_artifact(tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []


def test_no_tracking_fetches_nothing(tmp_path):
    with pytest.raises(PipelineError, match=r"runs:/1/w\.pt lies in MLflow.*use tracking=mlflow"):
        NoTracking().fetch("runs:/1/w.pt", tmp_path)


def test_values_are_written_as_they_are_typed():
    nested = {"a": {"b": {"c": 1e-6}, "empty": {}}, "list": (1, None, True), "text": "mlp"}
    assert key_format.flat_texts(nested) == {
        "a.b.c": "1e-06",
        "a.empty": "{}",
        "list": "[1, null, true]",
        "text": "mlp",
    }


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("fc1.weight", "fc1.weight"),
        ("a/b c:d-e_f", "a/b c:d-e_f"),
        ("a[0]", "a_0_"),
        ("/a//b/", "a/b"),
        ("..", "_"),
    ],
)
def test_keys(key, expected):
    assert key_format.key_text(key) == expected


def test_a_cut_value_has_the_length_of_the_limit():
    assert key_format.value_text("x" * 6000) == "x" * 6000
    assert len(key_format.value_text("x" * 6001)) == 6000


def test_versions_are_those_of_this_interpreter():
    import torch

    found = provenance.versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] == torch.__version__


def test_the_commit_is_that_of_the_project_alone(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert provenance.git_commit(tmp_path) is None
    git("init")
    assert provenance.git_commit(tmp_path) is None
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a hook
    assert provenance.git_commit(tmp_path) == commit
    (tmp_path / "untracked").touch()
    assert provenance.git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert provenance.git_commit(tmp_path) == f"{commit} (changed)"
    (tmp_path / "site-packages").mkdir()
    assert provenance.git_commit(tmp_path / "site-packages") is None


def test_columns_are_what_differs_and_what_was_measured():
    runs = [
        ({"model": m, "strategy": "func", "seed": s, "a.b": s}, {"trace": 1.0, "x": 1.0})
        for m, s in ["c0", "m1"]
    ]
    parent = ({}, {"num_jobs": 2.0})
    assert dashboard_views.columns([*runs, parent]) == [
        "params.`model`",
        "params.`seed`",
        "params.`a.b`",
        "metrics.`trace`",
    ]


def test_columns_leave_out_what_changes_no_number_and_what_a_choice_says():
    runs = [
        (
            {
                "strategy": name,
                "strategy._target_": f"pipeline.strategy.{name}",
                "model._target_": f"his.{name}",
                "stages": name,
                "cluster.num_workers": name,
                "strategy.chunk_size": name,
            },
            {},
        )
        for name in "ab"
    ]
    assert dashboard_views.columns(runs) == [
        "params.`strategy`",
        "params.`model._target_`",
        "params.`strategy.chunk_size`",
    ]


def test_a_single_run_shows_its_choices():
    assert dashboard_views.columns([({"strategy": "func", "model": "mlp", "n": "1"}, {})]) == [
        "params.`model`",
        "params.`strategy`",
    ]
    assert dashboard_views.columns([]) == []


def test_views_are_json_that_fits_a_tag():
    names = [f"{i:060}" for i in range(900)]
    runs = [({name: str(n) for name in names}, dict.fromkeys(dashboard_views.COLUMNS, 1.0)) for n in range(2)]
    tags = dashboard_views.views(runs)
    assert set(tags) == {"mlflow.sharedViewState.newest", "mlflow.sharedViewState.compare"}
    for value in tags.values():
        state = json.loads(json.loads(value)["state"])
        assert len(state["selectedColumns"]) == dashboard_views.NUM_PARAMS + len(dashboard_views.COLUMNS)
        assert len(value) < 5000
