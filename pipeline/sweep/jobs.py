"""The jobs of a sweep, read from its folder: `pipeline.open_sweep`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.errors import PipelineError
from pipeline.sweep.seeds import SEED, Statistics, groups_of
from pipeline.system import FINISHED, RunFolder, Status, refuse_file, status_of, write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.results import Run

PLAN = "sweep.json"
DEPTH = 3  # of job folders below the sweep's, for hydra.sweep.subdir=model/seed/…


@dataclass(frozen=True)
class Job:
    """One job of a sweep; its folder may not be there yet."""

    number: int
    folder: RunFolder
    overrides: Mapping[str, str]
    status: Status

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The headline numbers; none before the job has got so far."""
        try:
            found: dict[str, Any] = json.loads(self.folder.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found


@dataclass(frozen=True, repr=False)
class Sweep:
    """The jobs of a sweep, in the order of their numbers, as they stood when it was opened."""

    folder: Path
    jobs: tuple[Job, ...]

    def __repr__(self) -> str:
        finished = len(self.jobs) - len(self.unfinished)
        varying = " × ".join(self.varying) or "nothing"
        return f"Sweep({self.folder}: {len(self.jobs)} jobs, {finished} finished; {varying} varies)"

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """The config keys that not all jobs have the same value of, in the order of the command."""
        keys = dict.fromkeys(key for job in self.jobs for key in job.overrides)
        return tuple(key for key in keys if len({job.overrides.get(key) for job in self.jobs}) > 1)

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a job: `state`, a column for each choice that varies, the headline numbers, `reason`, `folder`.

        Numbers that a job does not have are NaN.
        """
        import pandas as pd

        from pipeline.results import TABLE  # HDF5: not before it is needed

        known = {key for job in self.jobs for key in job.summary}
        numbers = [key for key in TABLE if key in known]
        numbers += sorted(key for key in known if key.startswith("seconds_"))
        rows = [
            {
                "state": job.status.state,
                **{key: _typed(job.overrides.get(key)) for key in self.varying},
                **{key: job.summary.get(key, float("nan")) for key in numbers},
                "reason": job.status.reason,
                "folder": str(job.folder.path),
            }
            for job in self.jobs
        ]
        index = pd.Index([job.number for job in self.jobs], name="job")
        return pd.DataFrame(rows, index=index)

    @cached_property
    def over_seeds(self) -> pd.DataFrame | None:
        """A row for each group of finished jobs that differ in their seed alone: choices, `num_seeds`, and of each
        headline number `KEY_mean` and `KEY_std`, the standard deviation with n − 1; None where the seed does not vary.
        """
        import pandas as pd

        from pipeline.results import TABLE

        finished = [job for job in self.jobs if job.status.state == FINISHED]
        if SEED not in self.varying or not finished:
            return None
        choices = [{key: job.overrides.get(key, "") for key in self.varying} for job in finished]
        rows = []
        for group, members in groups_of(choices).items():
            row: dict[str, Any] = {**{key: _typed(value) for key, value in group}, "num_seeds": len(members)}
            for key in TABLE:
                found = Statistics.of(finished[k].summary.get(key, float("nan")) for k in members)
                if found.count:
                    row |= {f"{key}_mean": found.mean, f"{key}_std": found.deviation}
            rows.append(row)
        return pd.DataFrame(rows)

    @cached_property
    def runs(self) -> dict[int, Run]:
        """The run folder of each job that has begun, as `pipeline.open_run` opens it, by number."""
        return dict(self._runs())

    def _runs(self) -> Iterator[tuple[int, Run]]:
        from pipeline.results import open_run  # HDF5: not before it is needed

        for job in self.jobs:
            try:
                yield job.number, open_run(job.folder.path)
            except PipelineError:
                continue

    @property
    def title(self) -> str:
        """What varies, and when it was begun: a name that a person can read."""
        return " ".join((" × ".join(self.varying) or "of one job", *self.folder.parts[-2:]))

    @property
    def command(self) -> str:
        """The command that began it; empty where it is not known."""
        try:
            return str(json.loads((self.folder / PLAN).read_text(encoding="utf-8"))["command"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    @property
    def unfinished(self) -> list[Job]:
        return [job for job in self.jobs if job.status.state != FINISHED]


def open_sweep(folder: str | Path) -> Sweep:
    """Open the folder of a multirun: `.table` is a DataFrame with a row a job, `.runs` has the run of each.

    Raises:
        PipelineError: there is no such folder, or no sweep was begun in it.
    """
    path = Path(folder).absolute()
    refuse_file(path, "the folder of a sweep")
    if (path / PLAN).exists() and not has_jobs(path) and not _is_plan(path / PLAN):
        raise PipelineError(
            f"{folder} is not the folder of a sweep: {PLAN} there lists no jobs of this program."
        )
    planned = _plan(path)
    found = _numbered(path, planned)
    jobs = []
    for number in sorted({*planned, *found}):
        run = RunFolder(found.get(number, path / str(number)))
        overrides = planned.get(number) or _yaml(run.path / ".hydra" / "overrides.yaml") or []
        jobs.append(Job(number, run, _keyed(overrides), status_of(run)))
    if not jobs:
        raise PipelineError(f"{folder} is not the folder of a sweep: it has neither {PLAN} nor jobs.")
    return Sweep(path, tuple(jobs))


def job_name(folder: Path, number: int) -> str | None:
    """The name of a job beside those of the same sweep: its number and what varies; None if that is not known.

    To be asked for in the job itself: of the jobs, only what was planned is known.
    """
    planned = {job: _keyed(overrides) for job, overrides in _plan(folder).items()}
    if number not in planned:
        return None
    mine = planned[number].items()
    differing = [
        (key, value) for key, value in mine if any(job.get(key) != value for job in planned.values())
    ]
    width = len(str(max(planned)))
    return " ".join(
        [f"{number:0{width}}", *(f"{key.rpartition('.')[2]}={value}" for key, value in differing)]
    )


def plan(folder: Path, command: str, jobs: Sequence[Sequence[str]]) -> None:
    """Leave in the sweep's folder what is to be run, so that a job that never began is missed.

    A sweep that is begun again with some of its jobs keeps the list of all.
    """
    known, new = _plan(folder), {number: list(overrides) for number, overrides in enumerate(jobs)}
    if new and any(known.get(number) != overrides for number, overrides in new.items()):
        write_atomically(folder / PLAN, json.dumps({"command": command, "jobs": new}, indent=2) + "\n")


def _is_plan(path: Path) -> bool:
    """Whether it is a plan, or what a damaged one may be; not JSON of another program."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return isinstance(found, dict) and "jobs" in found


def _plan(folder: Path) -> dict[int, list[str]]:
    try:
        jobs = json.loads((folder / PLAN).read_text(encoding="utf-8"))["jobs"]
        return {int(number): [str(text) for text in overrides] for number, overrides in jobs.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(
            f"{folder / PLAN} cannot be read ({error}): delete it; jobs that never began are then not missed."
        ) from error


def _numbered(sweep: Path, planned: Mapping[int, Any]) -> dict[int, Path]:
    """The job folders that are there, by the number of the job: the folder's name, or what Hydra noted in it."""
    numbered: dict[int, Path] = {}
    for folder in sorted(_folders(sweep)):
        name = str(folder.relative_to(sweep))
        noted = int(name) if name.isdecimal() else _noted_number(folder)
        number = noted if noted is not None else max({-1, *planned, *numbered}) + 1
        numbered.setdefault(number, folder)
    return numbered


def has_jobs(sweep: Path) -> bool:
    """Whether a job has begun in the folder of a sweep."""
    return any(_folders(sweep))


def _folders(sweep: Path) -> Iterator[Path]:
    levels = ["/".join(["*"] * depth) for depth in range(1, DEPTH + 1)]
    return (found.parent for level in levels for found in sweep.glob(f"{level}/.hydra"))


def _noted_number(job: Path) -> int | None:
    found = _yaml(job / ".hydra" / "hydra.yaml")
    try:
        return int(found["hydra"]["job"]["num"])
    except (KeyError, TypeError, ValueError):  # a job that was gone on with alone has no number
        return None


def _keyed(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides by key: ["+model.width=64"] gives {"model.width": "64"}."""
    pairs = [override.lstrip("+").partition("=") for override in overrides]
    return {key: value for key, _, value in pairs if not key.startswith("hydra")}


def _typed(text: str | None) -> Any:
    """The value of an override: a number where it is one."""
    for kind in (int, float):
        with suppress(ValueError, TypeError):
            return kind(text)  # type: ignore[arg-type]
    return text


def _yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError):
        return None
