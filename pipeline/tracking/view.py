"""Which columns the dashboard's table of runs has: the params that differ between runs, the headline metrics.

MLflow's page takes a view from an experiment's tag `mlflow.sharedViewState.<key>` when its address ends in
`?viewStateShareKey=<key>`; by itself it shows neither params nor metrics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pipeline.quantities import COLUMNS

VIEW_TAG = "mlflow.sharedViewState."
CHOICES = ("model", "data", "training", "matrix", "strategy", "spectrum", "criterion", "dtype", "seed")
# They change no number, or say what other columns say.
SILENT = ("stages", "tracking", "cluster", "device", "config_hash", "train_hash", "test_hash")
NUM_PARAMS = 8
FIXED = {
    "attributes.`Run Name`": 330,
    "runDateAndNestInfo": 150,
}  # columns that are always there, width in pixels
WIDTHS = (90, 200)  # of the others, by the length of their names
ORDERS = {  # name of a view: what it is sorted by, and whether upwards
    "newest": ("attributes.start_time", False),  # jobs are folded away under their sweep
    "compare": ("tags.`mlflow.runName`", True),  # every job has a row
}


def views(runs: Sequence[tuple[Mapping[str, str], Mapping[str, float]]]) -> dict[str, str]:
    """The views for an experiment with these (params, metrics), as values of their tags."""
    shown = columns(runs)
    widths = FIXED | {name: _width(name) for name in shown}
    state = {"selectedColumns": shown, "columnOrder": list(widths), "columnWidths": widths}
    return {
        f"{VIEW_TAG}{name}": json.dumps(state | {"orderByKey": key, "orderByAsc": upwards})
        for name, (key, upwards) in ORDERS.items()
    }


def _width(column: str) -> int:
    least, most = WIDTHS
    return max(least, min(most, 45 + 7 * len(column.partition("`")[2])))


def columns(runs: Sequence[tuple[Mapping[str, str], Mapping[str, float]]]) -> list[str]:
    """The params that differ (if none does, the choices of groups), then the headline metrics."""
    described = [params for params, _ in runs if params]  # the parent of a sweep has none
    names = list(dict.fromkeys([*CHOICES, *sorted({name for params in described for name in params})]))
    telling = [name for name in names if name.partition(".")[0] not in SILENT]
    differing = [name for name in telling if len({params.get(name) for params in described}) > 1]
    chosen = {
        f"{name}._target_" for name in differing
    }  # the class says what the choice beside it says already
    differing = [name for name in differing if name not in chosen]
    known = [name for name in CHOICES if any(name in params for params in described)]
    measured = [name for name in COLUMNS if any(name in metrics for _, metrics in runs)]
    return [f"params.`{name}`" for name in (differing or known)[:NUM_PARAMS]] + [
        f"metrics.`{name}`" for name in measured
    ]
