"""The benchmark of storage runs, on a small net; its figures are for a person to look at."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.command import PROJECT

sys.path.insert(0, str(PROJECT / "scripts"))
import benchmark_storage


def test_every_figure_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_storage, "PROBE", 8 * 2**20)
    monkeypatch.chdir(PROJECT)
    found = benchmark_storage.measure(tmp_path, hidden=2)
    assert "the Hessian of P = 1,600, end to end" in found
    assert len(found) == 9
    assert not list(tmp_path.glob("probe*"))
