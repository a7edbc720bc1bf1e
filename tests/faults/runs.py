"""Many runs of one command in one folder, each with a fault of its own; see server.py and failing.c."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from support.command import PROGRESS, environment
from support.outcome import complete, differing, names, results

HERE = Path(__file__).parent
ONCE, FOR_GOOD, KILL, KILL_AMID = range(4)


@dataclass(frozen=True)
class Fault:
    """The operation with this number fails with this errno; 0: none does.

    mode: it alone, all from it on, or the process is killed before it, or in the middle of what it writes.
    reads: count the operations that read, not those that change files. memory: bytes of addresses that the process may
    take beyond what it has; 0: as many as it likes.
    """

    number: int = 0
    code: int = errno.ENOSPC
    mode: int = ONCE
    reads: bool = False
    memory: int = 0


NONE = Fault()


@dataclass(frozen=True)
class Outcome:
    """How a run ended. count: operations so far. what: the one that failed."""

    status: int
    hung: bool
    seconds: float
    count: int
    what: str
    output: str

    @property
    def complaints(self) -> list[str]:
        """What a run that failed said beside its plan and its progress, and after its table, if it came so far."""
        lines = [line for line in self.output.splitlines() if not any(said in line for said in PROGRESS)]
        ends = [
            number for number, line in enumerate(lines, 1) if line.startswith(("report: ", "run folder: "))
        ]
        return lines[max(ends, default=0) :]


class Command:
    """A command that stands before its first file, to be run again and again; they come from `commands`."""

    def __init__(self, folder: Path, requests: int, answers: int) -> None:
        self.folder = folder
        self._output = folder.with_name(folder.name + ".out")
        self._requests, self._answers = os.fdopen(requests, "w"), os.fdopen(answers)

    def begin(self) -> None:
        if self._answers.readline() != '{"ready": true}\n':
            raise RuntimeError(f"the command for {self.folder} did not come to its first file")

    def end(self) -> None:
        self._requests.close()
        self._answers.close()

    def run(self, fault: Fault = NONE, kill_after: float | None = None) -> Outcome:
        """Run it to its end, which need not be a good one; in one of eight the interpreter takes itself to pieces."""
        request = {
            **asdict(fault),
            "kill_after": kill_after,
            "quick": fault.number % 8 != 1,
            "folder": str(self.folder),
            "output": str(self._output),
        }
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()
        answer = json.loads(self._answers.readline())
        return Outcome(**answer, output=self._output.read_text(errors="replace"))

    def begin_from(self, start: Path | None) -> None:
        """Make the folder a copy of another, or nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if start is not None:
            shutil.copytree(start, self.folder)


@contextmanager
def commands(
    library: Path, wanted: Sequence[tuple[Path, Sequence[str]]], constants: Mapping[str, int] | None = None
) -> Iterator[list[Command]]:
    """A command for each pair of a folder and overrides, from one process that imports everything once.

    constants: values in place of those of the program, by their full names.
    """
    specs, mine, theirs = [], [], []
    for folder, overrides in wanted:
        requests, answers = os.pipe(), os.pipe()
        argv = [*overrides, f"hydra.run.dir={folder}"]
        specs.append({"argv": argv, "requests": requests[0], "answers": answers[1]})
        mine.append(Command(folder, requests[1], answers[0]))
        theirs += [requests[0], answers[1]]
    for folder, _ in wanted:
        folder.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, HERE / "server.py", library, json.dumps(specs)],
        cwd=wanted[0][0].parent,
        env=environment(LD_PRELOAD=str(library), FAULTS_CONSTANTS=json.dumps(constants or {})),
        stdin=subprocess.DEVNULL,
        pass_fds=theirs,
    )
    for descriptor in theirs:
        os.close(descriptor)
    try:
        for command in mine:
            command.begin()
        yield mine
    finally:
        for command in mine:
            command.end()
        process.wait()


def run_again(command, expected, all_names, there):
    """Give the same command again: the run, and in words what is not as if nothing had been.

    expected, all_names: results and files of an undisturbed run. there: what was complete, and must stay as it is.
    """
    done, wrong = command.run(), []
    if done.status != 0:
        wrong.append(f"the same command again ended with {done.status}: {done.output[-500:]}")
    elif differing(results(command.folder), expected):
        wrong.append(f"after it again {differing(results(command.folder), expected)} differ")
    elif names(command.folder) != all_names:
        wrong.append(f"after it again there are other files: {set(names(command.folder)) ^ set(all_names)}")
    elif not there.items() <= complete(command.folder).items():
        now = complete(command.folder)
        wrong.append(
            f"it made {[name for name in there if now.get(name) != there[name]]} anew, which were complete"
        )
    return done, wrong
