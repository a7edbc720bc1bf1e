"""The smallest sweep there is on real SLURM daemons: what CI runs of the tests on SLURM."""

from support.slurm_cases import DATA, LAUNCHER, NEEDS_SLURM, Started

import pipeline
from pipeline.tracking import store

pytestmark = NEEDS_SLURM


def test_two_jobs_end_under_one_parent(tmp_path):
    root = f"tracking.root={tmp_path / 'store'}"
    options = ("training.num_steps=20", "stages=[train,compute,aggregate]", "seed=0,1")
    with Started(tmp_path / "jobs", *LAUNCHER, *DATA, *options, root) as sweep:
        status, printed = sweep.finish()
    assert status == 0, printed
    assert "2 of 2 jobs finished." in printed
    table = pipeline.open_sweep(tmp_path / "jobs").table
    assert list(table["seed"]) == [0, 1]
    assert (table["lambda_max"] > 0).all()
    client, experiment = store.connect(f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}", "curvature")
    runs = client.search_runs([experiment])
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs}
    assert len(runs) == 3
    assert len(parents - {None}) == 1
    assert {run.info.status for run in runs} == {"FINISHED"}
