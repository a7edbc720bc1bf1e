"""What a law has."""

from __future__ import annotations

from typing import ClassVar, Protocol

from pipeline.results import Outcome
from pipeline.system import RunFolder


class Law(Protocol):
    """A frozen dataclass of options, of which `conf/law/NAME.yaml` lists the same ones.

    TITLE: the law in a few words. SOURCE: authors, year, arXiv number or DOI, as `conf/experiment/NAME.yaml` has it.
    """

    TITLE: ClassVar[str]
    SOURCE: ClassVar[str]

    def measure(self, folder: RunFolder) -> Outcome:
        """Compute what the law is about, on nets of its own or from what the run has left in the folder.

        Raises:
            PipelineError: the folder lacks what it is measured from.
        """
        ...
