"""Memory that runs out at every place: the address space of the process is limited to so much more than it has."""

import os
import re

import pytest
from faults.conftest import in_lanes
from faults.runs import Fault, commands, run_again
from support.command import SMALL
from support.outcome import complete, differing, names, results, unlike

LARGER = (
    *SMALL,
    "figure_formats=[png]",
    "model.hidden_sizes=[64]",
    "data.dimension=16",
    "data.num_samples=60",
)  # P = 1,283: 13 MB in float64
EVERY = int(os.environ.get("FAULTS_EVERY", "4"))
SAID = re.compile("out of memory|a library failed without a reason")
MEGABYTES = (*range(1, 200, 3 * EVERY), 250, 300, 400, 600)  # of addresses: threads take many


@pytest.mark.parametrize("options", [["strategy=khatri_rao"], ["strategy=func"], ["spectrum=topk"]])
def test_memory_that_runs_out(library, in_memory, options):
    """From a point on there is enough; before it each run ends with one line, and loses nothing.

    By itself, but where it is OpenBLAS that gets no memory: it says so and ends the process, at times by SIGSEGV, and
    nobody can catch that.
    """
    overrides = [*LARGER, "stages=[train,compute,aggregate]", *options]

    def lane(number, mine):
        seen = []
        with commands(
            library, [(in_memory / options[0].partition("=")[2] / f"lane-{number}", overrides)]
        ) as [command]:
            command.begin_from(None)
            assert command.run().status == 0
            expected, all_names = results(command.folder), names(command.folder)
            for megabytes in mine:
                command.begin_from(None)
                done = command.run(Fault(memory=megabytes * 2**20))
                found, there = results(command.folder), complete(command.folder)
                wrong = []
                by_blas = "OpenBLAS error: Memory allocation still failed" in done.output
                if done.hung or (done.status not in (0, 1) and not by_blas):
                    wrong.append(f"it ended with {done.status}")
                if done.status != 0 and (len(done.complaints) != 1 or "unexpected" in done.complaints[0]):
                    wrong.append("its message is not one line")
                if done.status == 1 and not by_blas and not SAID.match(done.complaints[0]):
                    wrong.append(f"it said {done.complaints[0]!r}")
                if done.status == 0 and differing(found, expected):
                    wrong.append(f"{differing(found, expected)} differ")
                if unlike(found, expected):
                    wrong.append(f"{unlike(found, expected)} are there and are wrong")
                wrong += run_again(command, expected, all_names, there)[1]
                seen.append((megabytes, done, wrong))
        return seen

    seen = sorted(in_lanes(lane, MEGABYTES), key=lambda one: one[0])
    lines = {
        line.partition(":")[0][:40] for _, done, _ in seen if done.status == 1 for line in done.complaints[:1]
    }
    enough = [megabytes for megabytes, done, _ in seen if done.status == 0]
    print(
        f"\n{options}: {len(seen) - len(enough)} limits hit, enough from {min(enough, default=None)} MB; said: {lines}"
    )
    problems = [
        f"{megabytes} MB: {what}\n{done.output[-500:]}" for megabytes, done, wrong in seen for what in wrong
    ]
    assert not problems, f"{len(problems)}:\n" + "\n\n".join(problems[:8])
    assert len(seen) > len(enough) + 3 // EVERY
    assert enough
