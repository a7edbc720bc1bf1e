"""The library that lets file operations fail, and one undisturbed small run to start from and to compare with."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults.runs import HERE, commands
from support.command import SMALL

STAGES = ("train", "compute", "aggregate", "slices", "report")
NUM_LANES = len(os.sched_getaffinity(0))


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """failing.c, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc) for tests/faults/failing.c")
    path = tmp_path_factory.mktemp("library") / "failing.so"
    subprocess.run(
        [
            compiler,
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            "-o",
            path,
            HERE / "failing.c",
            "-ldl",
        ],
        check=True,
    )
    return path


@pytest.fixture(scope="session")
def in_memory(tmp_path_factory):
    """A folder in memory, where the system has one: how long a disk takes for a flush is not looked at here."""
    memory = Path("/dev/shm")
    fast = memory.is_dir() and os.access(memory, os.W_OK)
    place = Path(tempfile.mkdtemp(prefix="faults-", dir=memory if fast else tmp_path_factory.mktemp("lanes")))
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def stage_commands(library, in_memory):
    """For each stage and each lane, the command of this stage alone."""
    root = in_memory / "stages"
    places = [(stage, lane) for stage in STAGES for lane in range(NUM_LANES)]
    wanted = [
        (root / f"{stage}-{lane}", (*SMALL, "figure_formats=[png]", f"stages=[{stage}]"))
        for stage, lane in places
    ]
    with commands(library, wanted) as found:
        yield dict(zip(places, found, strict=True))


@pytest.fixture(scope="session")
def starts(stage_commands, in_memory):
    """The folder as it is before each stage of an undisturbed run (None: there is none), and, as "end", after all."""
    folders = {STAGES[0]: None}
    for stage, following in zip(STAGES, [*STAGES[1:], "end"], strict=True):
        command = stage_commands[stage, 0]
        command.begin_from(folders[stage])
        done = command.run()
        assert done.status == 0, done.output
        folders[following] = shutil.copytree(command.folder, in_memory / "starts" / following)
    return folders


def in_lanes(work: Callable[[int, Sequence], list], items: Sequence) -> list:
    """`work(lane, its items)` on every core; gives what all of them gave."""
    with ThreadPoolExecutor(NUM_LANES) as pool:
        lanes = [pool.submit(work, lane, items[lane::NUM_LANES]) for lane in range(NUM_LANES)]
        return [found for lane in lanes for found in lane.result()]
