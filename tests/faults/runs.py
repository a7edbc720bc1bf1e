"""Many runs of one command in one folder, each with a fault of its own; see server.py and failing.c."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from command import PROGRESS, environment

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
        """The lines after what it said of its plan and its progress, of a run that failed."""
        return [line for line in self.output.splitlines() if not any(said in line for said in PROGRESS)]


class Command:
    """A command that stands before its first file, to be run again and again.

    constants: of the program, such as `compute__TILE=8` for pipeline.compute.TILE.
    """

    def __init__(self, library: Path, folder: Path, *overrides: str, **constants: int) -> None:
        self.folder = folder
        self._output = folder.with_name(folder.name + ".out")
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, HERE / "server.py", library, *overrides, f"hydra.run.dir={folder}"],
            cwd=folder.parent,
            env=environment(LD_PRELOAD=str(library), FAULTS_CONSTANTS=json.dumps(constants)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._process.stdout.readline() != '{"ready": true}\n':
            raise RuntimeError(f"{overrides} did not come to its first file")

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def run(self, fault: Fault = NONE, kill_after: float | None = None) -> Outcome:
        """Run it to its end, which need not be a good one; in one of eight the interpreter takes itself to pieces."""
        request = {
            **asdict(fault),
            "kill_after": kill_after,
            "quick": fault.number % 8 != 1,
            "folder": str(self.folder),
            "output": str(self._output),
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Outcome(**answer, output=self._output.read_text(errors="replace"))

    def begin_from(self, start: Path | None) -> None:
        """Make the folder a copy of another, or nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if start is not None:
            shutil.copytree(start, self.folder)
