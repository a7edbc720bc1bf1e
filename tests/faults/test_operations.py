"""Each operation on a file fails once, for good, or is the last before a kill; then the same command is given again.

The way SQLite's tests for I/O errors and crashes go: operations are counted in a run that goes well, then the first one
fails, the second one, and so on. What is looked at after each: the process ended by itself, with status 1 and one line,
or all is as it should be; every file with a final name is what it is without the fault; the same command then ends in
the undisturbed result, and makes nothing anew that was complete.
"""

import errno
import os
import re
from collections import Counter

import pytest
from faults.conftest import STAGES, in_lanes
from faults.runs import FOR_GOOD, KILL, KILL_AMID, ONCE, Fault, run_again
from support.outcome import complete, differing, names, results, unlike

ALL = os.environ.get("FAULTS") == "all"  # both errors in both modes at every operation: twice as long
EVERY = int(os.environ.get("FAULTS_EVERY", "6"))  # 1: every operation, for half an hour more
NUM_READS = 1000 if ALL else 60  # of a stage, evenly spaced
CODES = (errno.ENOSPC, errno.EIO)
ONE_LINE = re.compile(r"\S.*[:;] .*\S")


def errors(number):
    """Once and for good, with one error each, in turn."""
    if ALL:
        return [Fault(number, code, mode) for code in CODES for mode in (ONCE, FOR_GOOD)]
    return [Fault(number, CODES[number % 2], ONCE), Fault(number, CODES[(number + 1) % 2], FOR_GOOD)]


def problems_of(command, start, fault, undisturbed):
    """What is wrong after a run with a fault, and after the same command again, in words."""
    command.begin_from(start)
    before = complete(command.folder) if start else {}
    done = command.run(fault)
    found, expected = results(command.folder), results(undisturbed)
    wrong = []
    if fault.mode in (KILL, KILL_AMID):
        if done.status != -9:
            wrong.append(f"it was not killed but ended with {done.status}")
    elif done.hung or done.status not in (0, 1):
        wrong.append("it hangs" if done.hung else f"it died by signal {-done.status}")
    elif done.status == 0 and differing(found, expected):
        wrong.append(f"it ended well, yet {differing(found, expected)} differ")
    elif done.status == 1 and not (len(done.complaints) == 1 and ONE_LINE.fullmatch(done.complaints[0])):
        wrong.append("its message is not one line of what, why and remedy")
    elif done.status == 1 and done.complaints[0].startswith("unexpected"):
        wrong.append("its message is that of a bug")
    if unlike(found, expected):
        wrong.append(f"{unlike(found, expected)} are there and are not what they are without the fault")
    there = complete(command.folder)
    if {name: stamp for name, stamp in there.items() if name in before} != before:
        wrong.append("what was complete before was lost or made anew")
    wrong += run_again(command, expected, names(undisturbed), there)[1]
    return done, [f"{fault} ({done.what}): {what}\n{done.output[-600:]}" for what in wrong]


def go_through(stage_commands, starts, stage, faults_of, reads=False, most=None):
    """Let the operations of a stage fail, one after the other; prints how often which ended how."""
    following = [*STAGES, "end"][STAGES.index(stage) + 1]
    command = stage_commands[stage, 0]
    command.begin_from(starts[stage])
    count = command.run(Fault(reads=reads)).count
    assert count > 20
    numbers = range(1, count + 1, EVERY * (max(1, count // most) if most else 1))

    def work(lane, mine):
        command = stage_commands[stage, lane]
        return [problems_of(command, starts[stage], fault, starts[following]) for fault in mine]

    seen = in_lanes(work, [fault for number in numbers for fault in faults_of(number)])
    kinds = Counter((done.what.split(" ")[0], done.status) for done, _ in seen)
    print(
        f"\n{stage}: {len(seen)} runs over {len(numbers)} of {count} operations; ended how often with which status:"
    )
    print("  " + ", ".join(f"{kind} {status}: {often}" for (kind, status), often in sorted(kinds.items())))
    problems = [text for _, texts in seen for text in texts]
    print("\n\n".join(problems[:10]))
    assert not problems, f"{len(problems)} problems in {len(seen)} runs"


@pytest.mark.parametrize("stage", STAGES)
def test_operations_that_fail(stage_commands, starts, stage):
    go_through(stage_commands, starts, stage, errors)


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_at_each_operation(stage_commands, starts, stage):
    """Before the odd ones, and before or, where they write, in the middle of the even ones."""
    go_through(
        stage_commands, starts, stage, lambda number: [Fault(number, mode=(KILL_AMID, KILL)[number % 2])]
    )


@pytest.mark.parametrize("stage", STAGES[1:])
def test_reads_that_fail(stage_commands, starts, stage):
    def faults_of(number):
        return [Fault(number, errno.EIO, mode, reads=True) for mode in (ONCE, FOR_GOOD)[number % 2 :]]

    go_through(stage_commands, starts, stage, faults_of, reads=True, most=NUM_READS)
