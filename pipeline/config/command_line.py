"""The command line before Hydra reads it: help, flags anywhere, and the commands that messages name."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.system import RunFolder, __version__

SCRIPT = "curvature"  # of pyproject.toml
MODULE = "python -m pipeline.run"
WITH_VALUE = (
    "--config-dir",
    "-cd",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--package",
    "-p",
)  # Hydra's


def program() -> str:
    """How this process was started, as a person would write it."""
    return SCRIPT if Path(sys.argv[0]).name == SCRIPT else MODULE


def command(arguments: Sequence[str] | None = None) -> str:
    """The command with these arguments, those of this process by default, as a shell takes it."""
    given = sys.argv[1:] if arguments is None else arguments
    return " ".join([program(), *map(shlex.quote, given)])


def command_in(folder: Path, arguments: Sequence[str] | None = None) -> str:
    """The command that goes on with this one in its run folder."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    kept = [each for each in given if not each.startswith("hydra.run.dir=")]
    return command([*kept, f"hydra.run.dir={quoted(str(folder))}"])


def interruption(folder: RunFolder) -> str:
    """What follows the word "interrupted": how to go on."""
    if not folder.config.exists():
        return " before the run began."
    here = Path.cwd()
    path = folder.path.relative_to(here) if folder.path.is_relative_to(here) else folder.path
    return f": what is whole stays; to go on: {command_in(path)}"


def quoted(value: str) -> str:
    """A text as Hydra takes it for a value: in quotes where it has characters that mean something there.

    >>> quoted("outputs/a b"), quoted("50% (a)")
    ('outputs/a b', "'50% (a)'")
    """
    if re.fullmatch(r"[\w/+.$%*@?|:-]([\w/+.$%*@?|: -]*[\w/+.$%*@?|:-])?", value, re.ASCII):
        return value
    value = re.sub(r"(\\*)'", r"\1\1\\'", value)  # a backslash means itself, but before a quote
    return "'" + re.sub(r"(\\+)$", r"\1\1", value) + "'"


def read_arguments() -> str | None:
    """Bring the arguments of this process into the order that Hydra takes; the page that they ask for, if they do.

    Raises:
        PipelineError: as `arranged` and `answer`.
    """
    sys.argv[1:] = arranged(sys.argv[1:])
    return answer(sys.argv[1:])


def arranged(arguments: Sequence[str]) -> list[str]:
    """Flags first, then what is overridden: Hydra takes no flag in between.

    >>> arranged(["model=cnn", "-m", "seed=0,1", "--config-dir", "a=b"])
    ['-m', '--config-dir', 'a=b', 'model=cnn', 'seed=0,1']

    Raises:
        PipelineError: an option is written with dashes.
    """
    flags: list[str] = []
    overrides: list[str] = []
    previous = ""
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if equals and name.startswith("--") and name not in WITH_VALUE:
            bare = argument.lstrip("-")
            raise PipelineError(f"{argument}: options are written without dashes: {bare.replace('-', '_')}.")
        is_override = (equals and not name.startswith("-")) or name.startswith("~")
        (overrides if is_override and previous not in WITH_VALUE else flags).append(argument)
        previous = argument
    return [*flags, *overrides]


def answer(arguments: Sequence[str]) -> str | None:
    """What is said in place of a run: the page of `--help`, or the version; None where a run is asked for.

    Raises:
        PipelineError: there is no page of what is asked for.
    """
    if "--version" in arguments:
        return f"curvature-pipeline {__version__}"
    if not {"--help", "-h"} & set(arguments):
        return None
    from pipeline.config.help import page_of  # OmegaConf: who reads what a run left needs none of it

    words, folders = [], []
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            folders.append(Path(value or next(rest, ".")))
        elif not argument.startswith(("-", "hydra.")):
            words.append(argument)
    return page_of(words, program(), folders)
