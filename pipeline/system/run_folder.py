"""The run folder: where each thing lies, and how a file is put there so that a kill never leaves half of it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DamagedFile, PipelineError

STEP = re.compile(r"step-(\d{6,})")
# Files of a step's shards, and the bands of one: what has such a name and is no shard is one that was damaged.
OF_SHARDS = re.compile(
    r"(?:step-\d{6,}/(?:batch-\d{5,}|passing-\d{5,}|mean|running)|.*\.bands/\d+-of-\d+)\.h5"
)
PATIENCE = 10  # hundredths of a second


@dataclass(frozen=True)
class RunFolder:
    """Names inside one run folder. Nothing is created until it is written."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config of the run that computed what is in here; Hydra's own notes change with every restart."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def shards(self) -> Path:
        return self.path / "shards"

    @property
    def history(self) -> Path:
        """The training curve: step, losses and accuracies, a row an evaluation."""
        return self.checkpoints / "history.csv"

    @property
    def spectra(self) -> Path:
        return self.path / "spectra"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def status(self) -> Path:
        """How the last start of the run ended, or that it has not yet."""
        return self.path / "status.json"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}.safetensors"

    def second_moments(self, step: int) -> Path:
        """With Adam, the running mean of the squared gradient at a checkpoint."""
        return self.checkpoints / f"step-{step:06d}.adam.h5"

    def shard(self, step: int, batch: int) -> Path:
        return self.shards / f"step-{step:06d}" / f"batch-{batch:05d}.h5"

    def mean(self, step: int) -> Path:
        """The weighted mean of a step's shards, in the format of a shard."""
        return self.shards / f"step-{step:06d}" / "mean.h5"

    def running_mean(self, step: int) -> Path:
        """With keep=mean, that of the first so many batches."""
        return self.shards / f"step-{step:06d}" / "running.h5"

    def transient_shard(self, step: int, batch: int) -> Path:
        """With keep=mean, the shard of a batch until it has been added."""
        return self.shards / f"step-{step:06d}" / f"passing-{batch:05d}.h5"

    def spectrum(self, step: int) -> Path:
        return self.spectra / f"step-{step:06d}.h5"

    @property
    def spectrum_choice(self) -> Path:
        """What `spectrum=auto` stands for here."""
        return self.spectra / "choice.json"

    @property
    def strategy_choice(self) -> Path:
        """That `strategy=auto` computes no matrix here, and why."""
        return self.spectra / "strategy.json"

    def slices(self, step: int) -> Path:
        """The loss along the top eigenvectors."""
        return self.path / "slices" / f"step-{step:06d}.h5"

    @property
    def law(self) -> Path:
        """The law that was measured, and its verdict."""
        return self.path / "law.h5"

    def unfinished(self, step: int) -> Path:
        """What the aggregation of a step has found before its spectra file is whole."""
        return self.spectra / f".step-{step:06d}"

    def checkpoint_steps(self) -> list[int]:
        """Training steps that have a checkpoint, ascending."""
        return _steps(self.checkpoints.glob("step-*.safetensors"))

    def shard_steps(self) -> list[int]:
        """Training steps that have at least one whole shard, or the mean of all, ascending."""
        found = [path for name in ("batch-*.h5", "mean.h5") for path in self.shards.glob(f"step-*/{name}")]
        return _steps({path.parent for path in found})

    def spectrum_steps(self) -> list[int]:
        """Training steps that have been aggregated, ascending."""
        return _steps(self.spectra.glob("step-*.h5"))

    def shard_paths(self, step: int) -> list[Path]:
        """The whole shards of one step, in batch order; where there are none, their mean, if that is there."""
        mean = self.mean(step)
        return sorted(mean.parent.glob("batch-*.h5")) or [path for path in (mean,) if path.exists()]

    @property
    def holds_results(self) -> bool:
        """Whether a run has left anything that a later stage can begin with."""
        return self.config.exists() or self.law.exists() or bool(self.shard_steps() or self.spectrum_steps())

    def missing(self) -> list[Path]:
        """The folder, and those above it, that are not there yet: the deepest first."""
        path = self.path.absolute()
        return [each for each in (path, *path.parents) if not each.exists()]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one process; the kernel lets go of it when the process ends, however it ends.

        Raises:
            PipelineError: another process holds the folder, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise PipelineError(
                f"the run folder {self.path} cannot be written ({error.strerror}: {error.filename}): "
                "choose another folder with hydra.run.dir=FOLDER."
            ) from error
        try:
            try:
                _take(handle)
            except BlockingIOError:
                raise PipelineError(
                    f"another run is at work in {self.path}: wait for it to end, "
                    "or choose another folder with hydra.run.dir=FOLDER."
                ) from None
            self._clear_away()
            yield
            fcntl.flock(handle, fcntl.LOCK_UN)  # a child that was just started may hold a copy of the handle
        finally:
            os.close(handle)

    def _clear_away(self) -> None:
        """Remove what a killed process has left under temporary names; inside shards it is taken up."""
        for path in self.path.glob("*/*.partial"):
            with suppress(OSError):
                path.unlink()

    def is_held(self) -> bool:
        """Whether a process is at work in the folder now."""
        try:
            handle = os.open(self.path / ".lock", os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False


def _take(handle: int) -> None:
    """Lock it, and wait a little: `is_held` holds it for a moment."""
    for _ in range(PATIENCE):
        with suppress(BlockingIOError):
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.01)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def discard(folder: Path, names: Iterable[str], folders: Iterable[Path]) -> None:
    """Remove files of a folder that are there, and of `folders`, the deepest first, the empty ones, where it can be."""
    for name in names:
        with suppress(OSError):  # of a disk with a fault, which has been told
            (folder / name).unlink(missing_ok=True)
    for each in folders:
        with suppress(OSError):  # it holds something else
            each.rmdir()


def is_of_shards(path: Path) -> bool:
    """Whether a file has the name and the folder of a shard, and so is this program's."""
    return OF_SHARDS.fullmatch("/".join(path.absolute().parts[-2:])) is not None


def _steps(paths: Iterable[Path]) -> list[int]:
    found = (STEP.match(path.name) for path in paths)
    return sorted(int(match[1]) for match in found if match)


def refuse_file(path: Path, what: str) -> None:
    """Refuse a file where a folder is asked for; what: such a folder, for the message.

    Raises:
        PipelineError: it is one.
    """
    if path.exists() and not path.is_dir():
        raise PipelineError(f"{path} is not {what}: it is a file; pipeline.open_shard opens a shard.")


@contextmanager
def replacing(path: Path, is_resumable: Callable[[BaseException], bool] | None = None) -> Iterator[Path]:
    """A temporary name beside `path`; on success it is flushed to disk and takes the final name in one step.

    A file with the final name is therefore always whole. When the body raises, the temporary file is removed, unless
    `is_resumable` says of what was raised that the next process can go on with it; what stood at `path` before stays.

    Raises:
        PipelineError: the file cannot be written: no room, no right to, or the disk has a fault.
    """
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        flush(partial)
        os.replace(partial, path)
        flush(path.parent)
    except BaseException as error:
        if is_resumable is None or not is_resumable(error):
            with suppress(OSError):  # what went wrong first is what is told
                partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # not: a connection that was lost
            raise unwritable(path, error) from error
        raise


def unwritable(path: Path, error: OSError) -> PipelineError:
    reason = error.strerror or str(error)
    return PipelineError(
        f"{path} could not be written ({reason}): {remedy(error)}; what was complete before is kept."
    )


def unreadable(path: Path, error: OSError) -> PipelineError:
    return PipelineError(f"{path} could not be read ({error.strerror or error}): {remedy(error)}.")


def fault_behind(error: BaseException) -> OSError | None:
    """What the system said of a file to a library with errors of its own; None where it said nothing.

    HDF5 writes `errno = 5, error message = 'Input/output error'`, PyTorch `Input/output error (5)`, safetensors
    `Input/output error (os error 5)`.
    """
    text = str(error)
    numbers = [int(digits) for digits in re.findall(r"(?:errno = |\(|os error )(\d{1,3})\b", text)]
    codes = [number for number in numbers if os.strerror(number) in text]
    if isinstance(error, OSError) and error.errno is not None:
        codes = [error.errno]
    return OSError(codes[0], os.strerror(codes[0])) if codes else None


def set_aside(
    damage: DamagedFile, remedy: str = "run again, which makes this file alone again"
) -> DamagedFile:
    """Give a damaged file another name, so that it is made again; gives what there is to say about it."""
    aside = damage.path.with_name(damage.path.name + ".damaged")
    os.replace(damage.path, aside)
    return DamagedFile(damage.path, damage.why, f"it is now {aside.name}; {remedy}")


def remedy(error: OSError) -> str:
    """What to do about a file that cannot be opened, read or written."""
    other = "another folder with hydra.run.dir=FOLDER"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"make room or choose {other}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"give yourself the right to it or choose {other}"
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return "end other programs, or raise the limit that `ulimit -a` shows, and run again"
    if error.errno == errno.EIO:
        return f"look after the disk (`dmesg` may say more) and run again, or choose {other}"
    return f"choose {other}"


def partial_of(path: Path) -> Path:
    """The name under which `path` is written."""
    return path.with_name(path.name + ".partial")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file or none of it."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
