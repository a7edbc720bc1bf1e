"""The jobs of a sweep that SLURM has: which they are, and waiting until the last of them has ended."""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.system import CANCELLED, FAILED, RunFolder, slurm, write_atomically, write_status

NOTES = Path(".submitit") / "jobs.json"  # in the sweep's folder: which SLURM job does which job of the sweep
GRACE = 10.0  # seconds that the files of a job which has ended may take to appear on a network disk
log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Job:
    """One job of the sweep: its number, overrides and run folder, and its name in SLURM once it has one."""

    number: int
    overrides: list[str]
    folder: RunFolder
    store: tuple[str | None, str] | None = None  # tracking.uri and tracking.root, where there is tracking
    slurm_id: str = ""

    def __str__(self) -> str:
        overrides = " ".join(text for text in self.overrides if not text.startswith("hydra"))
        return f"job {self.number} ({overrides})"


def noted(sweep: Path) -> dict[int, tuple[str, list[str]]]:
    """The SLURM job of each job of the sweep, and its overrides, by number, as the last launcher noted them."""
    try:
        found = json.loads((sweep / NOTES).read_text(encoding="utf-8"))
        return {int(number): (str(name), list(overrides)) for number, (name, *overrides) in found.items()}
    except (OSError, ValueError, TypeError):
        return {}


def note(sweep: Path, jobs: Iterable[Job]) -> None:
    """Note the jobs that were submitted, for a launcher that comes after this one."""
    known = {**noted(sweep), **{job.number: (job.slurm_id, job.overrides) for job in jobs}}
    lines = {number: [name, *overrides] for number, (name, overrides) in known.items()}
    write_atomically(sweep / NOTES, json.dumps(lines, indent=2) + "\n")


def still_queued(sweep: Path, jobs: Sequence[Job]) -> list[Job]:
    """Those that an earlier launcher submitted and SLURM still has.

    Raises:
        PipelineError: SLURM has one with other overrides for the same folder.
    """
    before = noted(sweep)
    known = [(job, *before[job.number]) for job in jobs if job.number in before]
    if not known:
        return []
    states = slurm.states({name for _, name, _ in known})
    live = [(job, name, overrides) for job, name, overrides in known if not states[name].ended]
    for job, name, overrides in live:
        if overrides != job.overrides:
            raise PipelineError(
                f"SLURM still has job {name}, with other overrides, for the folder of {job}: scancel {name}, "
                "or choose another folder with hydra.sweep.dir=FOLDER."
            )
    return [replace(job, slurm_id=name) for job, name, _ in live]


@dataclass
class QueueWatcher:
    """Waits for jobs, and says what becomes of them."""

    params: Mapping[str, Any]
    line: str = ""  # said last of the queue; said again only when it has changed
    held: set[str] = field(default_factory=set)
    ended_at: dict[str, float] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)  # when last heard of

    def wait(self, jobs: Iterable[Job]) -> dict[int, str]:
        """Until each job has left its result or SLURM has given it up; why the lost ones are, by number."""
        left = {job.slurm_id: job for job in jobs}
        lost: dict[int, str] = {}
        asked = -float("inf")
        while left:
            for name, job in list(left.items()):
                if (why := result(self._path(name, "result.pkl"))) is not None:
                    del left[name]
                    lost |= {job.number: why} if why else {}
            if left and time.monotonic() - asked >= self.params["poll_s"]:
                asked = time.monotonic()
                for name, state in self._ask(left).items():
                    if self._is_over(name, state, asked):
                        job = left.pop(name)
                        lost[job.number] = self._record_lost(job, state)
            time.sleep(min(1.0, self.params["poll_s"]))
        return lost

    def _is_over(self, name: str, state: slurm.JobState, now: float) -> bool:
        """Whether SLURM has given the job up, long enough ago for its result to have been seen."""
        if not state.ended:
            self.ended_at.pop(name, None)
            return False
        return now - self.ended_at.setdefault(name, now) >= GRACE

    def _path(self, slurm_id: str, kind: str) -> Path:
        folder = Path(self.params["submitit_folder"].replace("%j", slurm_id)).absolute()
        return folder / f"{slurm_id}_0_{kind}"

    def _record_lost(self, job: Job, state: slurm.JobState) -> str:
        """Why a job is lost that could not say so itself; it is left in its folder too."""
        remedy = {
            "CANCELLED": "it was cancelled",
            "OUT_OF_MEMORY": f"it took more than hydra.launcher.mem_gb={self.params['mem_gb']}",
            "TIMEOUT": f"its {self.params['timeout_min']} min were over before it could stop: raise "
            "hydra.launcher.timeout_min or signal_delay_s",
        }.get(state.state, "it ended without a word of its own")
        printed = self._path(job.slurm_id, "log.err")
        detail = f", {state.detail}" if state.detail not in ("", "None") else ""
        where = f"; what it printed is in {printed}" if printed.exists() and printed.stat().st_size else ""
        why = f"{remedy} (SLURM job {job.slurm_id}: {state.state}{detail}{where})."
        write_status(job.folder, CANCELLED if state.state == "CANCELLED" else FAILED, why)
        log.error("%s is lost: %s", job, why)
        return why

    def _ask(self, left: Mapping[str, Job]) -> dict[str, slurm.JobState]:
        """The states of the jobs, told in a line; none while the controller does not answer."""
        try:
            found = slurm.states(left.keys())
        except PipelineError as error:
            self._say(f"{error} The jobs go on; asking again.")
            return {}
        counts = Counter(_word(state) for state in found.values() if not state.ended)
        if counts:
            self._say(
                "SLURM: " + ", ".join(f"{number} {word}" for word, number in sorted(counts.items())) + "."
            )
        for name, state in found.items():
            if state.state == slurm.UNKNOWN and name in self.waiting:
                found[name] = slurm.JobState("CANCELLED", "while it waited")  # SLURM keeps no record of these
            elif state.state == "PENDING":
                self.waiting.add(name)
            else:
                self.waiting.discard(name)
            if slurm.is_held(state) and name not in self.held:
                self.held.add(name)
                log.warning(
                    "%s waits until a person does something: %s (scontrol show job %s says more, scancel %s ends it).",
                    left[name], state.detail, name, name,
                )  # fmt: skip
        return found

    def _say(self, line: str) -> None:
        if line != self.line:
            self.line = line
            log.info("%s", line)


def _word(state: slurm.JobState) -> str:
    if state.state == "PENDING":
        return f"waiting ({state.detail})" if state.detail not in ("", "None") else "waiting"
    return state.state.lower()


def result(path: Path) -> str | None:
    """What a job left: empty if all is well, why it failed if not, None if there is nothing yet."""
    try:
        outcome, returned = pickle.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (EOFError, pickle.UnpicklingError):
        return None  # not all of it has arrived
    if outcome == "error":
        return str(returned).strip().splitlines()[-1]
    return "" if returned.status.name == "COMPLETED" else str(returned._return_value)
