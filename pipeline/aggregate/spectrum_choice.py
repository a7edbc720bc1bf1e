"""What `spectrum=auto` stands for in a run folder: chosen once, noted there, and the same when the run goes on."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from pipeline.layout import Layout
from pipeline.spectrum import Auto, Rates, SpectrumMethod
from pipeline.system import (
    RunFolder,
    available_memory,
    format_bytes,
    format_seconds,
    locked,
    write_atomically,
)

RATES = "spectrum-rates.json"  # in the folder of a sweep: what its first job has measured counts for all
log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class SpectrumChoice:
    """What was chosen, and why.

    options: the `Auto` that was asked, in words. seconds: estimated for all eigenvalues, with rounded rates.
    """

    options: str
    num_rows: int
    num_matrices: int
    seconds: float
    spectrum: str
    reason: str

    @staticmethod
    def read(folder: RunFolder) -> SpectrumChoice | None:
        """The choice that was noted in the folder; None where there is none, or nothing sound."""
        try:
            return SpectrumChoice(**json.loads(folder.spectrum_choice.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: RunFolder) -> None:
        write_atomically(folder.spectrum_choice, json.dumps(asdict(self), indent=2) + "\n")

    def method(self, auto: Auto) -> SpectrumMethod:
        return auto.exact if self.spectrum == "exact" else auto.slq

    def __str__(self) -> str:
        return f"spectrum=auto takes {self.spectrum}: {self.reason}."


def choose(
    folder: RunFolder,
    auto: Auto,
    layout: Layout,
    dtype: DTypeLike,
    num_steps: int,
    num_batches: int,
    sweep: Path | None = None,
) -> SpectrumChoice:
    """The choice that the folder holds, or the one that is made now; it is not written.

    num_steps, num_batches: checkpoints, and batches of each, whose matrices are decomposed.
    sweep: the folder of the sweep that the run is a job of.
    """
    noted = SpectrumChoice.read(folder)
    if noted is not None and (noted.options, noted.num_rows) == (repr(auto), layout.num_parameters):
        return noted
    sizes = sizes_of(layout, num_batches if auto.all_of_batches else 0) * num_steps
    seconds = auto.seconds(sizes, _rates(dtype, sweep))
    needed = auto.exact.memory(layout.num_parameters, np.dtype(dtype).itemsize)
    name, reason = _rule(auto, layout.num_parameters, seconds, needed)
    return SpectrumChoice(repr(auto), layout.num_parameters, len(sizes), seconds, name, reason)


def settled(
    folder: RunFolder,
    spectrum: SpectrumMethod | Auto,
    layout: Layout,
    dtype: DTypeLike,
    num_steps: int,
    num_batches: int,
) -> SpectrumMethod:
    """The spectrum itself, or what `auto` stands for here, which is noted in the folder."""
    if not isinstance(spectrum, Auto):
        return spectrum
    choice = choose(folder, spectrum, layout, dtype, num_steps, num_batches)
    if choice != SpectrumChoice.read(folder):
        log.info("%s", choice)
        choice.write(folder)
    return choice.method(spectrum)


def sizes_of(layout: Layout, num_batches: int) -> list[int]:
    """Rows of the matrices that are decomposed at one step: batches, each parameter's own block, and the mean."""
    blocks = [span.stop - span.start for span in layout.slices().values()]
    whole = layout.num_parameters
    return [whole] * num_batches + [size for size in blocks if size] + [whole]


def _rule(auto: Auto, num_rows: int, seconds: float, needed: int) -> tuple[str, str]:
    whole = f"all {num_rows:,} eigenvalues"
    if needed > available_memory():
        return "slq", (
            f"{whole} need {format_bytes(needed)} of memory, {format_bytes(available_memory())} are free; "
            "slq gives their density and both ends"
        )
    if seconds > auto.max_seconds:
        return "slq", (
            f"{whole} would take about {format_seconds(seconds)}; slq gives their density and both ends, "
            "spectrum=exact gets all"
        )
    return "exact", f"{whole} take about {format_seconds(seconds)}"


def _rates(dtype: DTypeLike, sweep: Path | None) -> Rates:
    """Rounded rates of this machine, or those that the first job of the sweep has measured for this dtype."""
    if sweep is None:
        return Rates.of(dtype).rounded()
    path = sweep / f"{np.dtype(dtype).name}-{RATES}"
    lock = path.with_name(f".{path.name}.lock")
    with locked(lock, "hydra.sweep.dir=FOLDER"):  # jobs begin at the same moment
        try:
            return Rates(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            rates = Rates.of(dtype).rounded()
            write_atomically(path, json.dumps(asdict(rates)) + "\n")
            return rates
