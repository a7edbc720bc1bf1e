"""Kills and faults inside a shard of many tiles: the next run goes on with the tiles that were recorded."""

import errno
import os
import re

import pytest
from faults.conftest import NUM_LANES, in_lanes
from faults.runs import FOR_GOOD, KILL, KILL_AMID, ONCE, Fault, commands, run_again
from support.command import SMALL
from support.outcome import complete, names, results

TILED = (  # P = 99
    *(option for option in SMALL if not option.startswith("training")),
    "model.hidden_sizes=[12]",
    "num_batches=1",
    "storage.tile=10",
    "training=none",
    "stages=[train,compute]",
)
CONSTANTS = {"pipeline.shards.tile_writer.RECORD_BYTES": 4000}  # 55 tiles, recorded five at a time
SHARD = "shards/step-000000/batch-00000.h5"
EVERY = int(os.environ.get("FAULTS_EVERY", "4"))
MODES = (KILL, KILL_AMID, ONCE, FOR_GOOD)


def recorded_in(folder):
    """How many tiles the journal of an unfinished shard holds."""
    journal = folder / f"{SHARD}.journal"
    unfinished = journal.exists() and not (folder / SHARD).exists()
    return max(0, journal.read_bytes().count(b"\n") - 1) if unfinished else 0


@pytest.mark.parametrize("mode", MODES)
def test_every_operation_inside_a_shard(library, in_memory, mode):
    """What was recorded is not computed again, and the shard is the same to the last bit."""

    def lane(number, mine):
        seen = []
        with commands(library, [(in_memory / f"tiles-{mode}" / f"lane-{number}", TILED)], CONSTANTS) as [
            command
        ]:
            command.begin_from(None)
            count = command.run().count
            expected, all_names = results(command.folder), names(command.folder)
            assert len(expected[SHARD][1]["checksums"]) > 0
            for fatal in range(1 + mine[0] * EVERY, count + 1, NUM_LANES * EVERY):
                command.begin_from(None)
                fault = Fault(fatal, (errno.ENOSPC, errno.EIO)[fatal // (NUM_LANES * EVERY) % 2], mode)
                done = command.run(fault)
                there, recorded, wrong = complete(command.folder), recorded_in(command.folder), []
                if mode in (ONCE, FOR_GOOD) and (done.hung or done.status not in (0, 1)):
                    wrong.append(f"it ended with {done.status}")
                if done.status == 1 and len(done.complaints) != 1:
                    wrong.append("its message is not one line")
                again, amiss = run_again(command, expected, all_names, there)
                wrong += amiss
                told = re.search(r"(\d+) tiles are there already", again.output)
                num_kept = int(told[1]) if told else 0
                if num_kept < recorded:
                    wrong.append(f"{recorded} tiles were recorded, {num_kept} were taken")
                seen.append(
                    (num_kept > 0, [f"{fault} ({done.what}): {what}\n{done.output[-400:]}" for what in wrong])
                )
        return seen

    seen = in_lanes(lane, range(NUM_LANES))
    problems = [text for _, wrong in seen for text in wrong]
    resumed = sum(kept for kept, _ in seen)
    print(f"\nmode {mode}: {len(seen)} operations, {resumed} times the next run went on inside the shard")
    print("\n\n".join(problems[:8]))
    assert not problems, f"{len(problems)} problems in {len(seen)} runs"
    assert resumed > len(seen) // 10
