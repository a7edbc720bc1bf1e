"""A section for each file of `conf/experiment/`: what it shows, its command, its figure, and what was found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generators.markdown import escaped, table
from pipeline.config.help import EXPERIMENT, Option, options_of

DOCS = Path(__file__).parents[1]
COMMANDS = ("python -m pipeline.run ", "curvature ")


def gallery(folder: Path = DOCS / "gallery") -> str:
    """The experiments that measure a law, then the others, each in the order of their names.

    folder: where `scripts/reproduce.py` leaves NAME.png, the figure, and verdicts.json, what was found.
    """
    path = folder / "verdicts.json"
    verdicts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    options = options_of(EXPERIMENT)
    laws = [option for option in options if any(word.startswith("law=") for word in option.settings)]
    parts = ["## Laws", *_each(laws, folder, verdicts)] if laws else []
    return "\n\n".join(
        [*parts, "## Other experiments", *_each([o for o in options if o not in laws], folder, verdicts)]
    )


def _each(options: list[Option], folder: Path, verdicts: dict[str, Any]) -> Iterator[str]:
    for option in options:
        yield from _section(option, folder, verdicts.get(option.name))


def _section(option: Option, folder: Path, verdict: dict[str, Any] | None) -> Iterator[str]:
    page = DOCS / "laws" / f"{option.name}.md"
    title = page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") if page.exists() else ""
    title = (verdict or {}).get("title") or title or option.name.replace("_", " ")
    yield f"### {title[0].upper()}{title[1:]}"
    commands, text = _comment(option)
    if text and _is_source(text[0]):
        yield f"Source: {escaped(text.pop(0))}."
    yield escaped(" ".join(text))
    if page.exists():
        yield f"[The derivation, and what is measured](../laws/{option.name}.md)"
    yield "\n".join(["```sh", *(commands or [f"python -m pipeline.run experiment={option.name}"]), "```"])
    if (folder / f"{option.name}.png").exists():
        yield f"![The figure of {title}]({option.name}.png)"
    if verdict:
        yield from _verdict(verdict)


def _comment(option: Option) -> tuple[list[str], list[str]]:
    """The commands and the other lines of the comment at the head of a file."""
    commands, text = [], []
    for line in option.path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words = line.removeprefix("#").strip()
        if words.startswith(COMMANDS):
            commands.append(words)
        elif words and not words.startswith("@package"):
            text.append(words)
    return commands, text


def _is_source(line: str) -> bool:
    return ("arXiv:" in line or "doi:" in line) and not line.endswith((".", ","))


def _verdict(verdict: dict[str, Any]) -> Iterator[str]:
    word = "failed" if "error" in verdict else "held" if verdict["held"] else "not held"
    sentence = verdict.get("sentence") or verdict.get("error", "")
    yield f"**{word.capitalize()}.** {escaped(' '.join(sentence.split()))}"
    if checks := verdict.get("checks"):
        rows = [
            (
                escaped(each["name"]),
                each["here"],
                escaped(f"{each['relation']} {each['value']}"),
                each["tolerance"],
                each["verdict"],
            )
            for each in checks
        ]
        yield table(("check", "here", "law or published value", "tolerance", "verdict"), rows)
