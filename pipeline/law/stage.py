"""The stage that measures a law: one file, and a verdict for each check on the terminal."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from pipeline.config import command
from pipeline.law.protocol import Law
from pipeline.results import Check, LawFile
from pipeline.system import LOG_ONLY, RunFolder, print_line

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger("pipeline")


def measure(folder: RunFolder, law: Law) -> LawFile:
    """Measure the law, write law.h5, and print whether each check holds; one that does not is no error.

    Raises:
        PipelineError: the folder lacks what the law is measured from, or cannot be written.
    """
    outcome = law.measure(folder)
    options: dict[str, Any] = asdict(cast("DataclassInstance", law))
    file = LawFile(type(law).__name__, law.TITLE, law.SOURCE, outcome, options, command())
    file.write(folder.law)
    _say(f"{law.TITLE} ({law.SOURCE})")
    for check in outcome.checks:
        _say(f"  {verdict(check)}", "" if check.held else "yellow")
    if not outcome.held:
        missed = len(outcome.checks) - outcome.num_held
        log.warning("the law is not held: %d of %d checks failed.", missed, len(outcome.checks))
    return file


def verdict(check: Check) -> str:
    """One line on a check.

    >>> verdict(Check("rank", "rank of H", 30.0, "=", 30.0))
    'held      rank of H: 30 = 30'
    """
    measured, expected, tolerance = check.texts
    allowed = f" ± {tolerance}" if check.tolerance else ""
    return f"{check.verdict:<9} {check.name}: {measured} {check.relation} {expected}{allowed}"


def _say(text: str, style: str = "") -> None:
    print_line(text, style)
    log.info("%s", text, extra=LOG_ONLY)
