"""SIGKILL at random moments of train, compute and aggregate; the same command again ends as if nothing had happened."""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from support.command import command, environment, fork, succeed
from support.outcome import differing, results

from pipeline.system.run_folder import RunFolder

NUM_KILLS = 12
NUM_KILLS_A_STAGE = 2
LAST = 400
STAGES = ("train", "compute", "aggregate")
AFTER = (*STAGES, "report")  # all is there, and the process has not ended yet
OPTIONS = (
    "data=blobs",
    "data.num_samples=60",
    "data.dimension=8",
    "data.num_clusters=4",
    "data.batch_size=25",  # 25, 25 and 10
    "data.separation=2.0",
    "model.hidden_sizes=[8,4]",
    f"training.num_steps={LAST}",
    "training.batch_size=16",
    "training.save_every=20",
    "training.evaluate_every=40",
    f"checkpoint_steps=[{LAST // 2}]",
    "strategy=triangular",
    "dtype=float64",
    "device=cpu",
    "cluster.num_workers=2",
    "tracking=none",
    f"stages=[{','.join(STAGES)}]",
)


def under_way(folder):
    """Which stage a killed run was in, from what it left behind."""
    run, steps = RunFolder(folder), 2
    if len(run.spectrum_steps()) == steps:
        return "report"
    if len(list(run.shards.glob("step-*/batch-*.h5"))) == 3 * steps:
        return "aggregate"
    return "compute" if run.checkpoint(LAST).exists() else "train"


def traces(folder, stage):
    """What changes when a stage begins to leave something."""
    names = {"train": "checkpoints/*", "compute": "shards/*/batch-*", "aggregate": "shards/*/mean*"}[stage]
    found = {}
    for path in folder.glob(names):
        with contextlib.suppress(FileNotFoundError):  # a temporary name that was given up since
            found[path] = path.stat().st_mtime_ns
    return found


def durations(folder):
    """Seconds from the first file of each stage to its last one."""
    run = RunFolder(folder)
    marks = {
        "train": [run.config, run.checkpoint(LAST)],
        "compute": [run.checkpoint(LAST), run.shard(LAST, 2)],
        "aggregate": [run.shard(LAST, 2), run.spectrum(LAST)],
    }
    return {stage: last.stat().st_mtime - first.stat().st_mtime for stage, (first, last) in marks.items()}


def kill_within(folder, stage, delay):
    """Start the command and kill it `delay` seconds after the stage's first trace; whether it was still alive."""
    before = traces(folder, stage)
    server, pid = fork(command(folder, *OPTIONS), folder.parent, environment())
    while psutil.pid_exists(pid) and traces(folder, stage) == before:
        time.sleep(0.01)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return int(server.stdout.readline()) == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill") / "undisturbed"
    succeed(folder, *OPTIONS)
    return folder


@pytest.mark.slow
def test_a_run_that_is_killed_and_started_again_ends_as_if_undisturbed(undisturbed, tmp_path):
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(10**6)))
    print(f"repeat these moments with KILL_SEED={seed}")
    chance = random.Random(seed)
    expected = results(undisturbed)
    seconds = durations(undisturbed)
    kills, moments = Counter(), []
    for number in range(6):
        folder: Path = tmp_path / str(number)
        for stage in STAGES:  # in succession, so that what is taken up was often taken up before
            for _ in range(2):
                if folder.exists() and AFTER.index(under_way(folder)) > STAGES.index(stage):
                    break
                delay = chance.uniform(0, 0.5) * seconds[stage]
                if not kill_within(folder, stage, delay):
                    break
                kills[under_way(folder)] += 1
                moments.append(f"{delay:.3f} s into {stage}")
        succeed(folder, *OPTIONS)
        different = differing(results(folder), expected)
        assert not different, f"KILL_SEED={seed}, killed {moments}: {different} differ"
        if sum(kills.values()) >= NUM_KILLS and all(kills[stage] >= NUM_KILLS_A_STAGE for stage in STAGES):
            break
        moments.clear()
    print(f"killed in {dict(kills)}, stages take {seconds}")
    assert sum(kills.values()) >= NUM_KILLS
    assert all(kills[stage] >= NUM_KILLS_A_STAGE for stage in STAGES), kills
    assert not list(tmp_path.rglob("*.partial"))
