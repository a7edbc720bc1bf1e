"""A section for each file of `conf/experiment/`: what it shows, its command, its figure and what was found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.help import EXPERIMENT, Option, options_of

FOLDER = Path(__file__).parents[1] / "gallery"  # NAME.png: the figure; NAME.md: what was found, in words
COMMAND = re.compile(r"^# ((?:python -m pipeline\.run|curvature) .*)$", re.MULTILINE)


def gallery() -> str:
    """The experiments in the order of their names."""
    return "\n\n".join(part for option in options_of(EXPERIMENT) for part in _section(option))


def _section(option: Option) -> Iterator[str]:
    yield f"## {option.name.replace('_', ' ').capitalize()}"
    yield option.description
    commands = COMMAND.findall(option.path.read_text(encoding="utf-8"))
    yield "\n".join(["```sh", *(commands or [f"python -m pipeline.run experiment={option.name}"]), "```"])
    if (FOLDER / f"{option.name}.png").exists():
        yield f"![{option.name.replace('_', ' ')}: the figure that the command leaves]({option.name}.png)"
    if (FOLDER / f"{option.name}.md").exists():
        yield (FOLDER / f"{option.name}.md").read_text(encoding="utf-8").strip()
