"""The benchmark of real nets, on a small one: a row of a table, and what is written to the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.command import PROJECT, environment


def test_a_net_has_its_row(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    script = [sys.executable, str(PROJECT / "scripts" / "benchmark_zoo.py")]
    options = ["--nets", "forward-of-dict", "--samples", "4", "--rounds", "1", "--json", str(file)]
    done = subprocess.run(
        [*script, *options],
        cwd=PROJECT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row = done.stdout.splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["forward-of-dict", "1,505", "4"]
    assert 0 <= float(cells[3]) < 1e-4
    assert all(float(cells[i]) > 0 for i in (4, 5, 7, 8))
    methods = json.loads(file.read_text())["forward-of-dict"]["methods"]
    assert set(methods) >= {"verified", "unverified", "torch.func.hessian", "chunked jvp(grad)"}
