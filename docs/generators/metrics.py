"""Every headline number of a run, as `pipeline/results/quantities.py` registers it."""

from __future__ import annotations

from generators.markdown import code, table
from pipeline.results import QUANTITIES


def metrics() -> str:
    """A table for each group of numbers."""
    parts = []
    for group in dict.fromkeys(quantity.group for quantity in QUANTITIES.values()):
        rows = [
            (code(each.key), each.name, each.symbol, each.unit, each.sentence)
            for each in QUANTITIES.values()
            if each.group == group
        ]
        parts += [f"## {group}", table(("key", "name", "symbol", "unit", "meaning"), rows)]
    return "\n\n".join(parts)
