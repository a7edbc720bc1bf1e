from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.spectrum.cost import Rates
from pipeline.spectrum.eigenvalues import DEVICES
from pipeline.spectrum.exact import Exact
from pipeline.spectrum.slq import SLQ
from pipeline.validation import check_bool, check_choice, check_count, check_number


@dataclass(frozen=True)
class Auto:
    """`Exact` while all eigenvalues are estimated to take less than so many seconds and fit into memory, else `SLQ`.

    It is not asked for spectra itself: `pipeline.aggregate` makes the choice once for a run folder, from the numbers
    of rows and of matrices and the machine's rounded rates, and notes it there.

    max_seconds: for the eigenvalues of all matrices of a run. The other options are those of `Exact` and `SLQ`.
    """

    num_top: int = 10
    num_bottom: int = 1
    max_seconds: float = 60.0
    all_of_batches: bool = False
    device: str = field(default="auto", repr=False)  # the numbers are the same but for rounding

    def __post_init__(self) -> None:
        check_number("spectrum.max_seconds", self.max_seconds, minimum=0)
        check_count("spectrum.num_top", self.num_top)
        check_count("spectrum.num_bottom", self.num_bottom, minimum=0)
        check_choice("spectrum.device", self.device, DEVICES)
        check_bool("spectrum.all_of_batches", self.all_of_batches)

    @property
    def exact(self) -> Exact:
        return Exact(self.num_top, self.all_of_batches, self.device)

    @property
    def slq(self) -> SLQ:
        return SLQ(self.num_top, self.num_bottom)

    def seconds(self, sizes: Sequence[int], rates: Rates) -> float:
        """For all eigenvalues of matrices of so many rows, one after the other."""
        return sum(rates.all_eigenvalues(size, self.device) for size in sizes)
