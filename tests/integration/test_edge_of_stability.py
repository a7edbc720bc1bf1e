"""A fact of the field, by the command: gradient descent brings λmax to 2/η and keeps it there (Cohen et al. 2021)."""

import pytest
from support.command import succeed

from pipeline.results.run import open_run

STEPS = [0, 1500, 2000, 4000]


@pytest.mark.slow
def test_the_largest_eigenvalue_comes_to_rest_at_two_over_the_learning_rate(tmp_path):
    options = [f"checkpoint_steps={STEPS[:-1]}".replace(" ", ""), "spectrum=topk", "device=cpu"]
    options += [f"training.num_steps={STEPS[-1]}", "training.evaluate_every=2000", "training.save_every=4000"]
    stages = "stages=[train,compute,aggregate,law]"
    succeed(tmp_path / "run", "experiment=edge_of_stability", *options, stages, "tracking=none")
    run = open_run(tmp_path / "run")
    ratios = {step: each.attrs["lambda_max"] * 0.4 / 2 for step, each in run.spectra.items()}
    assert list(ratios) == STEPS
    assert ratios[0] > 1.5  # it was elsewhere before
    for step in STEPS[1:]:
        assert ratios[step] == pytest.approx(1.0, abs=0.08)
    losses = [each.attrs["loss"] for each in run.spectra.values()]
    assert losses[-1] < 0.75 * losses[1] < 0.2 * losses[0]  # and the loss goes on falling
    assert run.law.outcome.held
    assert run.law.options == {"learning_rate": 0.4, "first_step": 1500}
