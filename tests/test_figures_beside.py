"""Processes that draw: real ones that are asked, killed, and left behind. Oracle: the same figures drawn here."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import contextmanager

import numpy as np
import pytest
from command import PROJECT
from report_cases import bowl, put, spectra

from pipeline import figures_beside
from pipeline.errors import PipelineError
from pipeline.evolution import stability_limit
from pipeline.figures import figures_of, save_figures
from pipeline.figures_beside import FIGURES, Drawer, drawing
from pipeline.findings import Findings
from pipeline.folder import RunFolder
from pipeline.report import make_report

HISTORY = {"step": np.array([0.0, 120.0]), "train_loss": np.array([2.3, 0.05])}
RESULTS = {60: spectra(step=60, num_layers=2), 120: spectra(step=120, num_layers=2)}
FOUND = Findings(RESULTS, HISTORY, stability_limit("", {}, "hessian"), {120: bowl()})


@contextmanager
def processes(number):
    begun = [Drawer.begun() for _ in range(number)]
    try:
        yield begun
    finally:
        for drawer in begun:
            drawer.close()


@pytest.fixture(scope="module")
def two():
    with processes(2) as begun:
        yield begun


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The figures as this process draws them."""
    folder = tmp_path_factory.mktemp("here")
    list(save_figures(figures_of(FOUND), folder))
    return contents(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"  # whoever inherited it has not looked yet
    except FileNotFoundError:
        return True


def within(seconds, happens):
    end = time.monotonic() + seconds
    while not happens() and time.monotonic() < end:
        time.sleep(0.02)
    return happens()


def test_the_names_are_those_of_all_figures():
    assert sorted(FIGURES) == sorted(figures_of(FOUND))


def test_what_they_draw_is_what_would_be_drawn_here(two, here, tmp_path):
    assert len(here) == len(FIGURES)
    for folder in (tmp_path / "one", tmp_path / "another"):  # they serve one run after the other
        with drawing(two, FOUND, folder) as left:
            pass
        assert not left
        assert contents(folder) == here


def test_without_processes_all_is_left(tmp_path):
    with drawing([], FOUND, tmp_path) as left:
        pass
    assert sorted(left) == sorted(FIGURES)


@pytest.mark.parametrize("number", [1, 2])
def test_the_report_draws_what_killed_processes_leave(number, tmp_path):
    folder = put(RunFolder(tmp_path / "run"), *RESULTS.values())
    with processes(2) as begun:
        for drawer in begun[:number]:
            drawer.process.kill()
            drawer.process.wait()
        make_report(folder, {}, begun)
    assert {"density.png", "eigenvalues.png", "steps.png", "batches.png"} <= contents(folder.figures).keys()
    assert 'id="density"' in folder.report.read_text(encoding="utf-8")
    assert not list(folder.path.rglob("*.partial"))


def test_a_process_that_is_killed_in_the_middle_leaves_its_figure(tmp_path):
    with processes(1) as [drawer]:
        os.kill(drawer.process.pid, signal.SIGSTOP)  # so it will not answer
        with drawing([drawer], FOUND, tmp_path) as left:
            assert within(100, lambda: FIGURES[0] not in left)
            drawer.process.kill()
        assert sorted(left) == sorted(FIGURES)
    assert contents(tmp_path) == {}


def test_a_figure_that_cannot_be_saved_is_one_line_and_they_go_on(two, here, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    line = rf"^{tmp_path}/file/\w+\.png could not be written \(File exists\): "
    with pytest.raises(PipelineError, match=line) as failed, drawing(two, FOUND, tmp_path / "file"):
        pass
    assert "\n" not in str(failed.value)
    with drawing(two, FOUND, tmp_path / "folder"):
        pass
    assert contents(tmp_path / "folder") == here


def test_a_bug_comes_with_the_place_where_it_is(two, tmp_path):
    broken = spectra(step=120, num_layers=2)
    del broken.arrays["mean/eigenvalues"]
    found = Findings({120: broken}, HISTORY, FOUND.limit, {})
    with pytest.raises(KeyError, match="mean/eigenvalues") as failed, drawing(two, found, tmp_path) as left:
        pass
    assert not left  # nothing is begun once the run is to fail
    assert any("figure_spectrum.py" in note for note in failed.value.__notes__)


PROGRAM = """
import pickle, sys, time
from pathlib import Path
from pipeline.figures_beside import Drawer
found = pickle.load(open(sys.argv[1], "rb"))
drawers = [Drawer.begun() for _ in range(2)]
for name in sys.argv[3:]:
    drawers[0]._send((found, Path(sys.argv[2])))
    for _ in range(100):
        drawers[0]._send(name)
print(*(drawer.process.pid for drawer in drawers), flush=True)
if sys.argv[3:]:
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["end", "kill"])
def test_they_end_with_the_run_however_it_ends(how, tmp_path):
    (tmp_path / "found").write_bytes(pickle.dumps(FOUND))
    figures = (
        ["density"] if how == "kill" else []
    )  # a hundred times: in the middle of one when the run is killed
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        PROGRAM,
        tmp_path / "found",
        tmp_path / "figures",
        *figures,
    ]
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    ) as run:
        pids = run.stdout.readline().split()
        assert len(pids) == 2
        if how == "kill":
            assert within(30, (tmp_path / "figures" / "density.png").exists)
            run.kill()
    assert run.returncode == (-signal.SIGKILL if how == "kill" else 0)
    assert within(30, lambda: all(map(gone, pids)))


def test_they_are_begun_once_and_again_where_one_has_ended(monkeypatch):
    monkeypatch.setattr(figures_beside, "started", [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    first = list(figures_beside.drawers())
    try:
        assert len(first) == figures_beside.NUM_PROCESSES
        assert list(figures_beside.drawers()) == first
        first[0].process.kill()
        first[0].process.wait()
        second = list(figures_beside.drawers())
        assert second[0] is first[1]
        assert len(second) == len(first)
    finally:
        for drawer in {id(drawer): drawer for drawer in [*first, *figures_beside.started]}.values():
            drawer.close()


def test_a_single_core_draws_in_the_run_itself(monkeypatch):
    monkeypatch.setattr(figures_beside, "started", [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(1))
    assert list(figures_beside.drawers()) == []


def test_the_next_figure_is_taken_once():
    left = deque(["a"])
    assert [figures_beside._taken(left), figures_beside._taken(left)] == ["a", ""]
