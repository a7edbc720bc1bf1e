"""The notebooks run from beginning to end, and give what is kept in them."""

import json
import re
import subprocess
import sys

import pytest
from support.command import PROJECT, environment

NOTEBOOKS = sorted((PROJECT / "docs" / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
RUN = "import nbformat, pathlib, sys; from scripts.notebooks import executed; "
RUN += "nbformat.write(executed(pathlib.Path(sys.argv[1])), sys.argv[2])"


def outputs(path):
    """For each cell of code what it printed, and how many figures it drew."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    printed = ["".join("".join(output.get("text", "")) for output in cell["outputs"]) for cell in cells]
    figures = [sum("image/png" in output.get("data", {}) for output in cell["outputs"]) for cell in cells]
    return printed, figures


def numbers(text):
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["matrix_free", "own_net"]


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_gives_what_is_kept_in_it(path, tmp_path):
    again = tmp_path / path.name
    done = subprocess.run(
        [sys.executable, "-c", RUN, path, again],
        cwd=PROJECT,
        env=environment() | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (printed, figures), (kept, kept_figures) = outputs(again), outputs(path)
    assert figures == kept_figures
    assert sum(figures) >= 1
    assert [NUMBER.sub("#", text) for text in printed] == [NUMBER.sub("#", text) for text in kept]
    for new, old in zip(printed, kept, strict=True):
        assert numbers(new) == pytest.approx(numbers(old), rel=0.02, abs=0.002), new
