"""The verdict on a run of gradient descent, from numbers that are made up, and from a run."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.law import EdgeOfStability, edge_of_stability

LAW = EdgeOfStability(learning_rate=0.5, first_step=100)
FOLDER = SimpleNamespace(path="outputs/mine")


@pytest.fixture
def spectra(monkeypatch):
    """Spectra of steps with these largest eigenvalues and losses."""

    def make(steps, largest, losses):
        files = {
            step: SimpleNamespace(numbers={"lambda_max": top, "loss": loss})
            for step, top, loss in zip(steps, largest, losses, strict=True)
        }
        monkeypatch.setattr(edge_of_stability, "open_run", lambda path: SimpleNamespace(spectra=files))

    return make


def test_ratios_are_those_from_the_first_step_on(spectra):
    spectra([0, 50, 100, 200], [1.0, 2.0, 4.1, 3.9], [5.0, 4.0, 3.0, 1.5])
    outcome = LAW.measure(FOLDER)
    measured = {check.key: check.measured for check in outcome.checks}
    assert measured["mean_ratio"] == pytest.approx(1.0)
    assert abs(measured["farthest_ratio"] - 1) == pytest.approx(0.025)
    assert measured["loss"] == pytest.approx(0.5)
    assert outcome.held
    np.testing.assert_array_equal(outcome.panels[0].series[0].y, [1.0, 2.0, 4.1, 3.9])


@pytest.mark.parametrize(
    ("largest", "losses", "key"),
    [
        ([3.0, 3.0], [2.0, 1.0], "mean_ratio"),
        ([4.6, 3.4], [2.0, 1.0], "farthest_ratio"),
        ([4.0, 4.0], [1.0, 1.0], "loss"),
    ],
)
def test_each_check_can_fail(spectra, largest, losses, key):
    spectra([100, 200], largest, losses)
    assert not {check.key: check.held for check in LAW.measure(FOLDER).checks}[key]


def test_too_few_steps_are_told(spectra):
    spectra([0, 100], [1.0, 2.0], [1.0, 1.0])
    with pytest.raises(PipelineError, match="needs spectra of two steps from 100 on, and outputs/mine has 1"):
        LAW.measure(FOLDER)
