"""A part that no function answers to would silently be counted as something else."""

import sys
from pkgutil import resolve_name

import pytest
from support.command import PROJECT

sys.path.insert(0, str(PROJECT / "scripts"))

import profile_run


@pytest.mark.parametrize("place", [place for places in profile_run.PARTS.values() for place in places])
def test_what_is_timed_exists(place):
    assert callable(resolve_name(place))


def test_a_moment_is_counted_once_and_for_the_innermost_part(monkeypatch):
    moments = iter([1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(profile_run.time, "monotonic", lambda: next(moments))
    clock = profile_run.Clock(0.0)
    clock.begin("rest")
    with clock.part("training"), clock.part("import torch"):
        pass
    assert clock.seconds == {"interpreter": 1.0, "rest": 2.0, "training": 3.0 + 5.0, "import torch": 4.0}
