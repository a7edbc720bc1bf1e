"""The MLflow run of a whole sweep, under which those of its jobs hang: what it carries when they have ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.results import TABLE
from pipeline.system import FINISHED, KILLED
from pipeline.tracking import RECORD, MLflowRun, error_messages, store

if TYPE_CHECKING:
    from pipeline.sweep.jobs import Sweep


def record(sweep: Sweep, files: Sequence[Path]) -> None:
    """Log the numbers of all jobs together and the files; nothing, if no job was tracked.

    The run ends as FINISHED if all jobs did, else as FAILED. A job that was killed could not say so in MLflow:
    it is set to KILLED.

    Raises:
        PipelineError: the store cannot be used; the line says why.
    """
    found = _read(sweep.folder)
    if found is None:
        return
    client, _ = store.connect(found["uri"], found["experiment"])
    run = MLflowRun(client, found["run_id"], found["uri"])
    with error_messages.one_line(run.uri):
        client.update_run(run.run_id, name=f"sweep {sweep.title}")
        for job in sweep.jobs:
            if job.status.state == KILLED and (killed := _read(job.folder.path)):
                client.set_terminated(killed["run_id"], KILLED.upper())
    run.log_metrics(numbers(sweep))
    run.set_tags(_tags(sweep))
    for path in files:
        run.log_artifact(path)
    run.close("FAILED" if sweep.unfinished else "FINISHED")


def numbers(sweep: Sweep) -> dict[str, float]:
    """How many jobs there are and how many are finished; least, mean and largest of each headline number.

    The names differ from those of the jobs, so that in a table of runs the parent is in nobody's column.
    """
    finished = [job.summary for job in sweep.jobs if job.status.state == FINISHED]
    metrics: dict[str, float] = {"sweep/num_jobs": len(sweep.jobs), "sweep/num_finished": len(finished)}
    for key in TABLE:
        values = [summary[key] for summary in finished if key in summary]
        if values:
            metrics |= {
                f"sweep/{key}/min": min(values),
                f"sweep/{key}/mean": sum(values) / len(values),
                f"sweep/{key}/max": max(values),
            }
    return metrics


def _tags(sweep: Sweep) -> dict[str, str]:
    choices = {key: dict.fromkeys(job.overrides.get(key, "") for job in sweep.jobs) for key in sweep.varying}
    unfinished = [f"job {job.number} {job.status.state}: {job.status.reason}" for job in sweep.unfinished]
    return {
        "varies": " ".join(f"{key}={','.join(values)}" for key, values in choices.items()),
        "not_finished": "\n".join(unfinished),
    }


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {key: str(found[key]) for key in ("run_id", "experiment", "uri")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
