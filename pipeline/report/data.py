"""All that a report is made from, read from a run folder once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.results import LandscapeFile, LawFile, SpectraFile, StabilityLimit


@dataclass(frozen=True)
class ReportData:
    """What a run has found.

    results: the spectra by step, ascending. history: columns of the training curve by name; empty if there is none.
    limits: lines beside numbers that are followed along training, by the key of the number. slices: the loss along
    eigenvectors, of those steps that have it. law: that which was measured, if one was.
    """

    results: Mapping[int, SpectraFile]
    history: Mapping[str, NDArray[Any]]
    limits: Mapping[str, StabilityLimit]
    slices: Mapping[int, LandscapeFile]
    law: LawFile | None = None

    @property
    def last_step(self) -> int:
        return max(self.results)

    @property
    def last(self) -> SpectraFile:
        """The spectra of the last step."""
        return self.results[self.last_step]
