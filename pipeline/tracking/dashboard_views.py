"""The columns of MLflow's table of runs: the params that differ between runs, and the headline metrics.

They are saved views of the experiment, which MLflow's page offers under "Views", and opens at once when its address
ends in `?viewStateShareKey=<id>`. MLflow keeps a saved view in the experiment's tag `mlflow.sharedViewState.<id>`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.results import COLUMNS

VIEW_TAG = "mlflow.sharedViewState."
CHOICES = ("model", "data", "training", "matrix", "strategy", "spectrum", "criterion", "dtype", "seed")
# They change no number, or say what other columns say.
SILENT = (
    "stages",
    "tracking",
    "cluster",
    "device",
    "figure_formats",
    "config_hash",
    "train_hash",
    "test_hash",
)
NUM_RUNS = 500  # the latest, of which the columns are chosen
NUM_PARAMS, LONGEST = 8, 60  # columns, and characters of a name: a tag holds 5,000
NUM_FIRST = (
    2,
    4,
)  # params that differ, then metrics: what a window of 1440 pixels shows beside MLflow's own panes
VIEWS = {  # id: name, what it is sorted by, and whether upwards
    "newest": ("newest first", "attributes.start_time", False),  # jobs are folded away under their sweep
    "compare": ("side by side", "tags.`mlflow.runName`", True),  # every job has a row
}
FIXED_WIDTHS = {"attributes.`Run Name`": 230, "runDateAndNestInfo": 130}  # pixels


def save(client: Any, experiment_id: str) -> None:
    """Save the views of an experiment, by its latest runs."""
    runs = client.search_runs([experiment_id], max_results=NUM_RUNS, order_by=["start_time DESC"])
    for tag, value in views([(run.data.params, run.data.metrics) for run in runs]).items():
        client.set_experiment_tag(experiment_id, tag, value)


def views(runs: Sequence[tuple[Mapping[str, str], Mapping[str, float]]]) -> dict[str, str]:
    """The views for an experiment with these (params, metrics), as values of their tags."""
    shown = columns(runs)
    widths = FIXED_WIDTHS | {name: max(90, min(200, 7 * len(name) - 20)) for name in shown}
    state = {"selectedColumns": shown, "columnOrder": list(widths), "columnWidths": widths}
    made = {"createdAt": int(1000 * time.time())}
    return {
        f"{VIEW_TAG}{key}": json.dumps(
            {"name": name, **made, "state": json.dumps(state | {"orderByKey": by, "orderByAsc": upwards})}
        )
        for key, (name, by, upwards) in VIEWS.items()
    }


def columns(runs: Sequence[tuple[Mapping[str, str], Mapping[str, float]]]) -> list[str]:
    """Some params that differ, the first headline metrics, then the rest of both.

    If no param differs, the choices of groups stand at the end.
    """
    described = [params for params, _ in runs if params]  # the parent of a sweep has none
    names = dict.fromkeys([*CHOICES, *sorted({name for params in described for name in params})])
    differing = [
        name
        for name in names
        if name.partition(".")[0] not in SILENT
        and len(name) <= LONGEST
        and len({params.get(name) for params in described}) > 1
    ]
    # a class says what the choice beside it says already
    differing = [name for name in differing if name.removesuffix("._target_") not in {*differing} - {name}]
    known = [name for name in CHOICES if any(name in params for params in described)]
    measured = [name for name in COLUMNS if any(name in metrics for _, metrics in runs)]
    num_params, num_metrics = NUM_FIRST
    params = [f"params.`{name}`" for name in (differing or known)[:NUM_PARAMS]]
    metrics = [f"metrics.`{name}`" for name in measured]
    if not differing:
        return metrics + params
    return params[:num_params] + metrics[:num_metrics] + params[num_params:] + metrics[num_metrics:]
