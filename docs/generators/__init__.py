"""Pages that are made from the code when the site is built, so that they say what is there.

A page asks for one by a line `<!-- generated: NAME -->`, or `<!-- generated: NAME ARGUMENT -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from generators.configuration import configuration
from generators.datasets import datasets
from generators.gallery import gallery
from generators.metrics import metrics
from generators.notebooks import notebook
from generators.python_reference import python_reference

MARK = re.compile(r"^<!-- generated: (\w+)(?: (\S+))? -->$", re.MULTILINE)
GENERATORS: dict[str, Callable[..., str]] = {
    "configuration": configuration,
    "datasets": datasets,
    "gallery": gallery,
    "metrics": metrics,
    "notebook": notebook,
    "python_reference": python_reference,
}


def filled(text: str) -> str:
    """The text of a page with what its marks ask for in their place."""
    return MARK.sub(lambda mark: GENERATORS[mark[1]](*filter(None, [mark[2]])), text)
