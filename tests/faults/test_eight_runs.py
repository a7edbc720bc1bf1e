"""Eight runs of the real command, started at once on a store that is not there yet: none fails, no metric is lost."""

import csv
import json
import sqlite3
import subprocess
from contextlib import ExitStack, closing, contextmanager

from support.command import SMALL, command, environment

NUM_RUNS = 8
OPTIONS = [option for option in SMALL if option not in ("tracking=none", "figure_formats=[]")]


@contextmanager
def started(root, seed):
    overrides = [*OPTIONS, f"seed={seed}", f"tracking.root={root / 'store'}", "training.evaluate_every=1"]
    with (root / f"{seed}.log").open("w") as log:
        run = subprocess.Popen(
            command(root / f"run{seed}", *overrides), cwd=root, env=environment(), stdout=log, stderr=log
        )
        try:
            yield run
        finally:
            run.kill()
            run.wait()


def logged(connection, run):
    """Every (metric, step) of a run, with its value."""
    question = "select key, step, value from metrics join runs using (run_uuid) where name like ?"
    return {(key, step): value for key, step, value in connection.execute(question, (f"% seed={run} %",))}


def test_eight_runs_at_once_on_a_fresh_store(tmp_path):
    with ExitStack() as stack:
        runs = [stack.enter_context(started(tmp_path, seed)) for seed in range(NUM_RUNS)]
        codes = [run.wait(900) for run in runs]
    assert codes == [0] * NUM_RUNS, "\n".join(log.read_text() for log in tmp_path.glob("*.log"))
    with closing(sqlite3.connect(tmp_path / "store" / "mlflow.db")) as connection:
        assert connection.execute("select status, count(*) from runs group by status").fetchall() == [
            ("FINISHED", NUM_RUNS)
        ]
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        for seed in range(NUM_RUNS):
            folder = tmp_path / f"run{seed}"
            metrics = logged(connection, seed)
            with (folder / "checkpoints" / "history.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            assert len(rows) == 21
            for row in rows:
                for key, value in row.items():
                    if key != "step" and value:
                        assert metrics[key, int(row["step"])] == float(value)
            summary = json.loads((folder / "summary.json").read_text())
            assert metrics["lambda_max", 20] == summary["lambda_max"]
            assert {step for key, step in metrics if key == "per_batch/probe_error"} == {0, 1, 2}
            assert metrics["seconds_report", 0] == summary["seconds_report"]
            run_id = json.loads((folder / "mlflow.json").read_text())["run_id"]
            artifacts = tmp_path / "store" / "mlflow-artifacts" / run_id / "artifacts"
            assert (artifacts / "report.html").read_bytes() == (folder / "report.html").read_bytes()
            assert {path.name for path in (artifacts / "figures").iterdir()} == {
                path.name for path in (folder / "figures").iterdir()
            }
