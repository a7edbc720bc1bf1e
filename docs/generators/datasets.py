"""The arrays of result files, as `pipeline/results/dataset_attributes.py` describes them."""

from __future__ import annotations

from generators.markdown import code, table
from pipeline.results.dataset_attributes import DATASETS


def datasets() -> str:
    """A table for each group of arrays."""
    parts = []
    for group in dict.fromkeys(name.partition("/")[0] for name in DATASETS):
        rows = [
            (code(f"/{name}"), shape and code(shape), unit, description)
            for name, (description, unit, shape, _) in DATASETS.items()
            if name.partition("/")[0] == group
        ]
        parts += [f"### `/{group}`", table(("array", "shape", "unit", "what it holds"), rows)]
    return "\n\n".join(parts)
