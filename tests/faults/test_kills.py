"""SIGKILL at 100 random moments of all stages; the same command again ends as if undisturbed."""

import itertools
import os
import random
import time
from collections import Counter

import pytest
from faults.conftest import NUM_LANES, STAGES, in_lanes
from faults.runs import commands, run_again
from support.command import SMALL
from support.outcome import complete, names, results, unlike

from pipeline.system.run_folder import RunFolder

NUM_KILLS = int(os.environ.get("FAULTS_KILLS", "100"))
NUM_STEPS = 150
LONGER = (
    *SMALL,
    "figure_formats=[png]",
    "model.hidden_sizes=[16,8]",
    f"training.num_steps={NUM_STEPS}",
    "training.save_every=10",
    "training.evaluate_every=15",
    f"checkpoint_steps=[0,{NUM_STEPS // 2}]",
)
NUM_CHECKPOINTS = 3


def under_way(folder):
    """Which stage a killed run was in, from what it left behind."""
    run = RunFolder(folder)
    if len(list(folder.glob("slices/step-*.h5"))) == NUM_CHECKPOINTS:
        return "report"
    if len(run.spectrum_steps()) == NUM_CHECKPOINTS:
        return "slices"
    if len(list(run.shards.glob("step-*/batch-*.h5"))) == 3 * NUM_CHECKPOINTS:
        return "aggregate"
    return "compute" if run.checkpoint(NUM_STEPS).exists() else "train"


def spans_of(command):
    """Seconds from the start of a run to the beginning and to the end of each of its stages."""
    command.begin_from(None)
    start = time.time()
    done = command.run()
    run = RunFolder(command.folder)
    assert done.status == 0, done.output
    marks = [
        run.config,
        run.checkpoint(NUM_STEPS),
        run.shard(NUM_STEPS, 2),
        run.spectrum(NUM_STEPS),
        run.slices(NUM_STEPS),
        run.summary,
    ]
    seconds = [path.stat().st_mtime - start for path in marks]
    return dict(zip(STAGES, itertools.pairwise(seconds), strict=True))


@pytest.fixture(scope="module")
def long_commands(library, in_memory):
    root = in_memory / "kills"
    with commands(library, [(root / f"{lane}", LONGER) for lane in range(NUM_LANES)]) as found:
        yield found


def test_a_hundred_random_kills(long_commands):
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(10**6)))
    print(f"\nrepeat these moments with KILL_SEED={seed}")
    spans = spans_of(long_commands[0])
    undisturbed = long_commands[0].folder.rename(long_commands[0].folder.with_name("undisturbed"))
    expected, all_names = results(undisturbed), names(undisturbed)

    def once(command, chance, stage, pace):
        """Kill a run in that stage, perhaps again when it is taken up; gives the stages, and what is wrong.

        pace: how many times as long as at first a run takes now, on a machine that others use too.
        """
        command.begin_from(None)
        killed, wrong, there = [], [], {}
        for again in (False, True):
            if again and chance.random() < 0.5:
                break
            moment = chance.uniform(*spans[stage])
            done = command.run(kill_after=pace * moment)
            found = results(command.folder)
            wrong += [
                f"{name} is there and is not what it is without a kill" for name in unlike(found, expected)
            ]
            if not there.items() <= complete(command.folder).items():
                wrong.append("what was complete was lost or made anew")
            there = complete(command.folder)
            if done.status == 0:
                break
            killed.append(under_way(command.folder))
        wrong += run_again(command, expected, all_names, there)[1]
        return killed, wrong

    def work(lane, share):
        chance, seen, pace, kills = random.Random(seed + lane), [], 1.0, Counter()
        while kills.total() < len(share):
            stage = min(STAGES, key=lambda stage: (kills[stage], chance.random()))
            killed, wrong = once(long_commands[lane], chance, stage, pace)
            seen.append((killed, wrong))
            kills.update(killed)
            print(*seen[-1], sep="\n  ", flush=True)
            first = STAGES.index(killed[0]) if killed else len(STAGES)
            pace *= 1.1 ** (STAGES.index(stage) - first)
        return seen

    seen = in_lanes(work, range(NUM_KILLS))
    kills = Counter(stage for killed, _ in seen for stage in killed)
    problems = [f"killed in {killed}: {text}" for killed, wrong in seen for text in wrong]
    print(f"{kills.total()} kills in {len(seen)} runs: {dict(kills)}; stages take {spans}")
    assert not problems, f"KILL_SEED={seed}: " + "\n".join(problems)
    assert kills.total() >= NUM_KILLS
    assert all(kills[stage] >= NUM_KILLS // 20 for stage in STAGES), kills
