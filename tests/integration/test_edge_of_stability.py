"""A fact of the field, by the command: gradient descent brings λmax to 2/η and keeps it there (Cohen et al. 2021)."""

import sqlite3

import pytest
from support.command import succeed

from pipeline.results.run import open_run

STEPS = [0, 1500, 2000, 4000]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edge") / "run"
    options = [f"checkpoint_steps={STEPS[:-1]}".replace(" ", ""), "spectrum=topk", "device=cpu"]
    options += [f"training.num_steps={STEPS[-1]}", "training.evaluate_every=2000", "training.save_every=4000"]
    stages = "stages=[train,compute,aggregate,law]"
    succeed(folder, "experiment=edge_of_stability", *options, stages, f"tracking.root={folder.parent}")
    return open_run(folder)


@pytest.mark.slow
def test_the_largest_eigenvalue_comes_to_rest_at_two_over_the_learning_rate(run):
    ratios = {step: each.attrs["lambda_max"] * 0.4 / 2 for step, each in run.spectra.items()}
    assert list(ratios) == STEPS
    assert ratios[0] > 1.5  # it was elsewhere before
    for step in STEPS[1:]:
        assert ratios[step] == pytest.approx(1.0, abs=0.08)
    losses = [each.attrs["loss"] for each in run.spectra.values()]
    assert losses[-1] < 0.75 * losses[1] < 0.2 * losses[0]  # and the loss goes on falling
    assert run.law.outcome.held
    assert run.law.options == {"learning_rate": 0.4, "first_step": 1500}


@pytest.mark.slow
def test_the_tracker_has_each_number_at_its_training_step(run):
    query = "select step, value from metrics where key = 'lambda_max' order by step"
    with sqlite3.connect(run.folder.path.parent / "mlflow.db") as store:
        logged = store.execute(query).fetchall()
    assert logged == [(step, each.attrs["lambda_max"]) for step, each in run.spectra.items()]
