"""What `pip install .` installs: every config and asset, and a command that finds them from an empty folder."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from support.command import PROJECT, SMALL, environment

import pipeline

BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
START = (
    "import sys; sys.path[0] = ''; sys.argv[0] = 'curvature'; from importlib.metadata import distribution; "
)

HEAVY = ["mlflow", "scipy", "sklearn", "distributed"]
NET = f"""
import atexit, gc, sys
from torch.nn import Flatten, Linear, Sequential

atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules], gc.isenabled()))

def net(input_shape, num_outputs):  # too large for a dense solver
    return Sequential(Flatten(), Linear(*input_shape, 80), Linear(80, num_outputs))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The wheel, unpacked: the folder that would be site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    left_out = shutil.ignore_patterns("__pycache__")
    for name in ("pipeline", "conf"):
        shutil.copytree(PROJECT / name, source / name, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    command = [sys.executable, "-c", BUILD, folder]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    name = done.stdout.splitlines()[-1]
    assert name == f"curvature_pipeline-{pipeline.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(folder / name) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def curvature(site, cwd, *arguments):
    """The console command of the wheel, in a process that does not see the checkout."""
    code = START + "[found] = distribution('curvature-pipeline').entry_points.select(name='curvature'); "
    code += f"assert str(found.load().__code__.co_filename).startswith({str(site)!r}); found.load()()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment() | {"PYTHONPATH": os.fspath(site)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_wheel_holds_every_file_of_the_package_and_of_conf(site):
    for folder in ("pipeline", "conf"):
        ours = {path.relative_to(PROJECT) for path in (PROJECT / folder).rglob("*") if path.is_file()}
        ours = {path for path in ours if "__pycache__" not in path.parts}
        assert ours == {path.relative_to(site) for path in (site / folder).rglob("*") if path.is_file()}


def test_the_installed_command_makes_a_report_in_an_empty_folder(site, tmp_path):
    """It waits for no library that it does not need: Dask asks for all of distributed where it is not told otherwise;
    garbage is looked for after the imports.
    """
    (tmp_path / "mine.py").write_text(NET)
    small = [option for option in SMALL if not option.startswith("model.")]
    done = curvature(site, tmp_path, *small, "num_batches=1", "model._target_=mine.net")
    assert done.returncode == 0, done.stdout
    [report] = tmp_path.glob("outputs/*/*/report.html")
    assert done.stdout.splitlines()[-2:] == [f"report: {report}", "[] True"]
    assert "command: curvature data=blobs" in (report.parent / "config.yaml").read_text()
    assert not (tmp_path / "outputs" / "mlflow.db").exists()


def test_the_installed_command_tells_its_version_and_its_options(site, tmp_path):
    assert curvature(site, tmp_path, "--version").stdout == f"curvature-pipeline {pipeline.__version__}\n"
    lines = curvature(site, tmp_path, "--help", "model").stdout.splitlines()
    assert lines[0] == "model: the network"
    assert list(tmp_path.iterdir()) == []
