"""Names and values, columns, and the tracking that does nothing."""

import json

import pytest

from pipeline.errors import PipelineError
from pipeline.system.run_folder import RunFolder
from pipeline.tracking import NoTracking, dashboard_views, key_format


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


def test_columns_are_what_differs_and_what_was_measured():
    runs = [
        ({"model": m, "strategy": "func", "seed": s, "a.b": s}, {"trace": 1.0, "x": 1.0})
        for m, s in ["c0", "m1"]
    ]
    parent = ({}, {"num_jobs": 2.0})
    assert dashboard_views.columns([*runs, parent]) == [
        "params.`model`",
        "params.`seed`",
        "metrics.`trace`",
        "params.`a.b`",
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
    metrics = {"trace": 2.0, "lambda_max": 1.0, "num_batches": 3.0}
    assert dashboard_views.columns([({"strategy": "func", "model": "mlp", "n": "1"}, metrics)]) == [
        "metrics.`lambda_max`",
        "metrics.`trace`",
        "params.`model`",
        "params.`strategy`",
    ]
    assert dashboard_views.columns([]) == []


def test_the_largest_eigenvalue_is_seen_in_a_window_of_1440_pixels():
    """MLflow's own panes leave 818 pixels, of which 73 are taken by a box to tick and an arrow to unfold."""
    for params in ({"seed": "0"}, {"seed": "1", "model": "cnn", "data": "blobs"}):
        runs = [({"seed": "0"}, {"lambda_max": 1.0}), (params, dict.fromkeys(dashboard_views.COLUMNS, 1.0))]
        state = json.loads(json.loads(dashboard_views.views(runs)["mlflow.sharedViewState.newest"])["state"])
        order, widths = state["columnOrder"], state["columnWidths"]
        last = order.index("metrics.`lambda_max`")
        assert sum(widths[name] for name in order[: last + 1]) <= 818 - 73


def test_views_are_json_that_fits_a_tag():
    names = [f"{i:060}" for i in range(900)]
    runs = [({name: str(n) for name in names}, dict.fromkeys(dashboard_views.COLUMNS, 1.0)) for n in range(2)]
    tags = dashboard_views.views(runs)
    assert set(tags) == {"mlflow.sharedViewState.newest", "mlflow.sharedViewState.compare"}
    for value in tags.values():
        state = json.loads(json.loads(value)["state"])
        assert len(state["selectedColumns"]) == dashboard_views.NUM_PARAMS + len(dashboard_views.COLUMNS)
        assert len(value) < 5000
