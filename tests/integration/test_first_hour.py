"""What newcomers bring along ends in a spectrum of certified matrices: `scripts/first_hour.sh`, a run each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "first_hour.sh"


@pytest.mark.parametrize("name", ["tokens", "timm", "huggingface", "lightning", "focal", "strategy"])
def test_a_newcomers_own_files_end_in_certified_matrices(name, tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    done = subprocess.run([SCRIPT, name], env=environment, text=True, capture_output=True)
    if "left out" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"done      {name}" in done.stdout
