"""An executed notebook as a page: its text, its code, and what the code gave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"


def notebook(name: str) -> str:
    """The cells of `docs/notebooks/NAME` in Markdown."""
    cells = json.loads((FOLDER / name).read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _cell(cell))


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            image = "".join(data["image/png"]).replace("\n", "")
            yield f'<img class="notebook-figure" alt="figure of the code above" src="data:image/png;base64,{image}">'
        elif text := "".join(output.get("text") or data.get("text/plain", "")).rstrip():
            yield f"```{{code-block}} text\n:class: output\n\n{text}\n```"
