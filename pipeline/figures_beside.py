"""Figures drawn by processes beside the run: they import matplotlib while it computes, and draw while it makes a page.

A process gets what is to be drawn through a pipe and answers each name with None, or with the exception that the run
then raises as its own. It ends with the process that started it, however that ends, even in the middle of a figure.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.findings import Findings

PROJECT = Path(__file__).resolve().parents[1]
NUM_PROCESSES = 2  # where there are as many cores; on a single one they would only be in the way
FIGURES = (  # those of `figures.figures_of`, whose import takes matplotlib's; slow ones first
    "landscape",
    "batches",
    "density_steps",
    "overlap_steps",
    "steps",
    "training",
    "density",
    "eigenvalues",
    "block_norms",
)
started: list[Drawer] = []


def drawers() -> Sequence[Drawer]:
    """The processes of this one that draw, of which those that have ended are replaced; they serve run after run."""
    number = min(NUM_PROCESSES, len(os.sched_getaffinity(0)))
    started[:] = [drawer for drawer in started if drawer.process.poll() is None]
    started.extend(Drawer.begun() for _ in range(number - len(started) if number > 1 else 0))
    return started


@contextmanager
def drawing(drawers: Sequence[Drawer], found: Findings, folder: Path) -> Iterator[deque[str]]:
    """Let figures of a run be drawn into `folder` while the caller does something else; the end waits for them.

    The names that are left afterwards are the caller's to draw: all where there are no processes, else those on which
    processes have ended by themselves.
    """
    left = deque(FIGURES)
    if not drawers:
        yield left
        return
    with ThreadPoolExecutor(len(drawers)) as pool:
        shares = [pool.submit(drawer.draw, found, folder, left) for drawer in drawers]
        yield left
        lost = [name for share in shares for name in share.result()]
    left.extend(lost)


@dataclass
class Drawer:
    """The run's end of the line."""

    process: subprocess.Popen[bytes]

    @classmethod
    def begun(cls) -> Drawer:
        path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.figures_beside"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the run
        )
        new = cls(process)
        atexit.register(new.close)
        return new

    def draw(self, found: Findings, folder: Path, left: deque[str]) -> list[str]:
        """Draw what is left, one figure after the other; returns the one on which the process has ended, if it has.

        Raises:
            Exception: what the drawing raises; then nothing is left for the others.
        """
        name, error = "", None
        try:
            self._send((found, folder))
            while error is None and (name := _taken(left)):
                self._send(name)
                error = self._heard()
        except Ended:
            return [name] if name else []
        if error is not None:
            left.clear()
            raise error
        return []

    def close(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self.process.wait()

    def _send(self, message: object) -> None:
        assert self.process.stdin
        try:
            pickle.dump(message, self.process.stdin)
            self.process.stdin.flush()
        except OSError:
            raise Ended from None

    def _heard(self) -> Exception | None:
        assert self.process.stdout
        try:
            error: Exception | None = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise Ended from None
        return error


class Ended(Exception):
    """The process has ended by itself."""


def _taken(left: deque[str]) -> str:
    """The next figure, which is then nobody else's; "" if there is none."""
    with suppress(IndexError):
        return left.popleft()
    return ""


def main() -> None:
    """A process that draws: figures are loaded while nothing is asked of it."""
    words, sys.stdout = sys.stdout.buffer, sys.stderr  # what a library prints is none of our words
    messages: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_receive, args=(sys.stdin.buffer, messages), daemon=True).start()
    from pipeline.figures import Draw, figures_of, save_figures

    figures: dict[str, Draw] = {}
    folder = Path()
    while True:
        match messages.get():
            case (found, Path() as folder):
                figures = figures_of(found)
            case name:
                pickle.dump(_failure(save_figures({name: figures[name]}, folder)), words)
                words.flush()


def _receive(pipe: IO[bytes], messages: SimpleQueue[Any]) -> None:
    """Pass on what comes, and end the process at the moment when nothing more can come."""
    with suppress(EOFError, pickle.UnpicklingError):
        while True:
            messages.put(pickle.load(pipe))
    os._exit(0)


def _failure(drawn: Iterator[Path]) -> Exception | None:
    """What the drawing raises, in a form that another process can raise."""
    try:
        list(drawn)
    except Exception as error:
        error.add_note("".join(traceback.format_tb(error.__traceback__)))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return RuntimeError("".join(traceback.format_exception(error)))
        return error
    return None


if __name__ == "__main__":
    main()
