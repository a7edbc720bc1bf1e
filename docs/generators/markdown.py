"""Tables and code of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def code(text: str) -> str:
    """Text as code, inside a cell of a table too."""
    return f"`{text}`" if text else ""


def cell(text: str) -> str:
    """Text that may stand between two bars of a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", text).replace("\n", " ")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; cells are Markdown themselves."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def escaped(text: str) -> str:
    """Text in which what Markdown would take for its own is escaped, outside of code."""
    parts = text.split("`")
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*<|\[\]_~])", r"\\\1", parts[i])
    return "`".join(parts)
