"""Mistakes in options, in one line: Hydra's and OmegaConf's errors, shortened, with the nearest name that exists."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from omegaconf import OmegaConf

from pipeline.errors import PipelineError

CONF = Path(__file__).parent.parent / "conf"


def explain(error: BaseException) -> str | None:
    """One line for the user; None if the error is none of the user's making, and a traceback is due."""
    for cause in _causes(error):
        if isinstance(cause, PipelineError):
            return str(cause)
    if type(error).__module__.partition(".")[0] in ("hydra", "omegaconf"):
        return _about_options(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}: choose another folder with hydra.run.dir=FOLDER."
    return None


def _causes(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__
    return found


def _about_options(error: BaseException) -> str:
    text = " ".join(str(cause) for cause in _causes(error))
    if unknown := re.search(r"Key '([^']+)' is not in struct\s+full_key: (\S+)", text):
        return _unknown_key(unknown[2])
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(unknown[1])
    if choice := re.search(r"Could not find '([^']+)'", text):
        group, _, option = choice[1].rpartition("/")
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        return f"{group}={option}: there is no such option{_near(option, options)} Choose one of {', '.join(options)}."
    short = re.split(r"\s+(?:full_key|object_type|Config search path|set env var|See https?):?", text)[0]
    key = re.search(r"full_key: (\S+)", text)
    return f"{key[1] + ': ' if key and key[1] not in short else ''}{' '.join(short.split())}"


def _unknown_key(key: str) -> str:
    """`key` is a top-level key, or group.key."""
    group, _, name = key.rpartition(".")
    folder = CONF / group if group else CONF
    known: set[str] = {path.name for path in CONF.iterdir() if path.is_dir()} if not group else set()
    for path in folder.glob("*.yaml"):
        known |= {str(found) for found in OmegaConf.load(path) if not str(found).startswith("_")}
    return f"{key}: there is no such option{_near(name, sorted(known))}"


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]}?" if close else "."
