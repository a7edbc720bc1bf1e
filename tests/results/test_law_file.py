"""Checks of a law: when they hold, how they read, and that the file gives back what was written."""

import json

import numpy as np
import pytest

from pipeline.errors import DamagedFile
from pipeline.results import Check, LawFile, Outcome, Panel, Series, open_run

NAN = float("nan")


def law(*checks):
    curves = [
        Series("measured", [1.0, 2.0, 3.0], [0.1, 0.2, 0.4], "points"),
        Series("law", [1.0, 3.0], [0.1, 0.4]),
    ]
    panels = [
        Panel("Left", "x", "y", curves, "Points lie on the line."),
        Panel("Right", "x", "y", [Series("λ", [5.0], [6.0], "dashes")], "One point.", "xy"),
    ]
    outcome = Outcome("All is well.", checks or [Check("rank", "rank of H", 29.0, "=", 30.0, 0.5)], panels)
    return LawFile(
        "Mine", "A law", "Somebody 2020, arXiv:0000.00000", outcome, {"sizes": [3, 2]}, "a command"
    )


@pytest.mark.parametrize(
    ("measured", "relation", "expected", "tolerance", "held"),
    [
        (1.0, "=", 1.0, 0.0, True),
        (1.0, "=", 1.1, 0.0, False),
        (1.0, "=", 1.1, 0.11, True),
        (1.2, "=", 1.1, 0.05, False),
        (1.0, "≤", 1.1, 0.0, True),
        (1.2, "≤", 1.1, 0.05, False),
        (1.2, "≤", 1.1, 0.11, True),
        (1.2, "≥", 1.1, 0.0, True),
        (1.0, "≥", 1.1, 0.05, False),
        (1.0, "≥", 1.1, 0.11, True),
        *((NAN, relation, 1.0, 1e9, False) for relation in "=≤≥"),
    ],
)
def test_when_a_check_holds(measured, relation, expected, tolerance, held):
    assert Check("key", "name", measured, relation, expected, tolerance).held is held


def test_the_file_gives_back_what_was_written(tmp_path):
    law().write(tmp_path / "law.h5")
    first, second = law(), LawFile.read(tmp_path / "law.h5")
    assert second.attrs == first.attrs
    assert second.outcome.checks == first.outcome.checks
    assert second.options == {"sizes": [3, 2]}
    for mine, yours in zip(first.outcome.panels, second.outcome.panels, strict=True):
        assert mine.title == yours.title
        assert mine.logarithmic == yours.logarithmic
        for one, other in zip(mine.series, yours.series, strict=True):
            assert (one.name, one.drawn) == (other.name, other.drawn)
            np.testing.assert_array_equal(one.x, other.x)
            np.testing.assert_array_equal(one.y, other.y)
    assert second.metrics == {"law/rank/value": 29.0, "law/rank/expected": 30.0, "law/rank/held": 0.0}
    assert json.dumps(second.metrics)
    assert open_run(tmp_path).law.rows == [["rank of H", "not held", "29", "=", "30", "0.50"]]


def test_a_file_of_another_kind_is_refused(tmp_path):
    from support.report_cases import bowl

    bowl().write(tmp_path / "law.h5")
    with pytest.raises(DamagedFile, match="it has no checks/key"):
        LawFile.read(tmp_path / "law.h5")


@pytest.mark.parametrize("keys", [(), ("a", "a")])
def test_an_outcome_has_checks_with_names_of_their_own(keys):
    panel = law().outcome.panels[0]
    with pytest.raises(ValueError, match="give distinct keys"):
        Outcome("", [Check(key, key, 1.0, "=", 1.0) for key in keys], [panel])
