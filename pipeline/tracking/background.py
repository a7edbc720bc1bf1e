"""MLflow in a process of its own, beside the work, so that importing it and writing to it cost a run next to nothing.

The run sends a line of JSON for each call and goes on. The recorder carries the calls out in their order; what it
cannot do is an error of the run's next call, and the run's end waits for all of them. When the run is killed, the
recorder still carries out what it was sent, and sets the run to KILLED. It serves one run after the other (the jobs of
a local sweep) and ends with the process that started it, however that ends.

    {"call": "log_metrics", "arguments": [{"train_loss": 0.25}, 100]}
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import PipelineError
from pipeline.system import RunFolder
from pipeline.tracking.key_format import flat_texts

PROJECT = Path(__file__).resolve().parents[2]
DONE = {"done": True}
recorders: dict[str, Recorder] = {}  # by the options of their MLflow


def recorder(tracking: Mapping[str, object]) -> Recorder:
    """The recorder of this process for these options of MLflow; a new one imports mlflow while the caller goes on."""
    options = json.dumps(tracking)
    found = recorders.get(options)
    if found is None or found.process.poll() is not None:
        found = recorders[options] = Recorder.started(options)
    return found


@dataclass
class Recorder:
    """The run's end of the line; `start` as `MLflow` has it."""

    process: subprocess.Popen[bytes]
    complaints: IO[bytes]  # what the other end printed
    busy: bool = False

    @classmethod
    def started(cls, options: str) -> Recorder:
        path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
        complaints = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.tracking.background_process", options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the run
        )
        new = cls(process, complaints)
        atexit.register(new.close)
        return new

    @contextmanager
    def start(
        self,
        folder: RunFolder,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        sweep: Path | None,
    ) -> Iterator[Recorder]:
        """See `MLflow.start`; it does not wait for the run to be there.

        Raises:
            PipelineError: by a later call or at the end, if the store cannot be used.
        """
        place = str(folder.path.absolute())
        self.busy = True
        try:
            self._send("start", place, name, flat_texts(params), dict(tags), str(sweep) if sweep else None)
            yield self
        except BaseException as error:
            # the reason that the body gave counts, even if the store is gone as well
            with suppress(PipelineError):
                self._send("fail", isinstance(error, Exception), str(error) or type(error).__name__)
                self._hear()
            raise
        else:
            self._send("end")
            self._hear()
        finally:
            self.busy = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._send("log_metrics", {name: float(value) for name, value in metrics.items()}, step)

    def log_artifact(self, path: Path, under: str | None = None) -> None:
        self._send("log_artifact", str(path.absolute()), under)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._send("set_tags", dict(tags))

    def close(self) -> None:
        """End it; at once if no run is open, else (an exit in the middle) when it has carried out all."""
        if not self.busy:
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self.process.wait()
        self.complaints.close()

    def _send(self, call: str, *arguments: object) -> None:
        assert self.process.stdin
        assert self.process.stdout
        if select.select([self.process.stdout], [], [], 0)[0]:
            self._hear()  # it speaks unasked when it has to give up
        try:
            self.process.stdin.write(json.dumps({"call": call, "arguments": arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            self._hear()

    def _hear(self) -> None:
        """Wait for a word of the recorder: the end of the run, or why it gives up.

        Raises:
            PipelineError: it gives up, or has ended without a word.
        """
        assert self.process.stdout
        line = self.process.stdout.readline()
        word = json.loads(line) if line else {}
        if word == DONE:
            return
        self.process.kill()  # it has given up; the next run gets another
        self.process.wait()
        if not word:
            self.complaints.seek(0)
            printed = self.complaints.read().decode(errors="replace").strip().splitlines() or [
                "it said nothing"
            ]
            raise PipelineError(
                f"MLflow's process ended by itself ({printed[-1]}): the same command goes on with this run; "
                "tracking.background=false shows where it fails."
            )
        raise PipelineError(word["error"])
