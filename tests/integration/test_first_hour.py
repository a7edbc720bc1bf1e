"""What newcomers bring along ends in a spectrum of certified matrices: `scripts/first_hour.sh`, a run each."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from support.command import PROJECT, script, succeed

SCRIPT = PROJECT / "scripts" / "first_hour.sh"
BROUGHT = SCRIPT.with_suffix("")
SHORT = ("training.num_steps=20", "figure_formats=[]")
FEWER = {"tokens": (*SHORT, "+model.width=3")}


@pytest.mark.parametrize("name", ["tokens", "timm", "huggingface", "lightning"])
def test_a_newcomers_own_files_end_in_certified_matrices(name, tmp_path):
    """The script as it is: a library or files of one's own, made before the run."""
    variables = {
        "PYTHON": sys.executable,
        "TMPDIR": str(tmp_path),
        "OPTIONS": " ".join(FEWER.get(name, SHORT[1:])),
    }
    done = subprocess.run([SCRIPT, name], env={**os.environ, **variables}, text=True, capture_output=True)
    if "left out" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"done      {name}" in done.stdout


@pytest.mark.parametrize(("name", "formats"), [("focal", "[png]"), ("strategy", "[]")])
def test_a_newcomers_own_class_ends_in_certified_matrices(name, formats, tmp_path):
    """The script's options, in a child of the server of commands."""
    [options] = re.findall(rf'^first_hour {name} "" "" (.+)$', SCRIPT.read_text(), re.MULTILINE)
    given = (*shlex.split(options), "dtype=float64", "tracking=none", SHORT[0], f"figure_formats={formats}")
    succeed(tmp_path / name, *given, paths=[BROUGHT])
    done = script(BROUGHT / "check.py", name, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "error of H v" in done.stdout
    figures = {path.stem: path.read_bytes()[:4] for path in (tmp_path / name / "figures").glob("*.png")}
    assert ("landscape" in figures and "density" in figures) == (formats == "[png]")
    assert set(figures.values()) <= {b"\x89PNG"}
