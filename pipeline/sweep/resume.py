"""Take a sweep up again: the same command in the same folders, where only what is missing is done.

    python -m pipeline.sweep resume outputs/multirun/2026-11-22/22-01-34 hydra.launcher.timeout_min=240

Jobs that are finished are taken as they are, the others go on from what is whole in their folders, and jobs that an
earlier launcher left in SLURM's queue are waited for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from pipeline.config import quoted
from pipeline.errors import PipelineError

PROJECT = Path(__file__).resolve().parents[2]
NOTED = "multirun.yaml"  # Hydra's own note of how a sweep was begun
OVER = ("hydra.mode=", "hydra.sweep.dir=")


def command(sweep: Path, changes: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder in which the sweep was begun, and the command that goes on with it.

    Raises:
        PipelineError: the folder holds no sweep, or where it was begun is no longer there.
    """
    try:
        hydra: Mapping[str, Any] = yaml.safe_load((sweep / NOTED).read_text(encoding="utf-8"))["hydra"]
        began = Path(hydra["runtime"]["cwd"])
        given = [*hydra["overrides"]["hydra"], *hydra["overrides"]["task"]]
        sources = hydra["runtime"]["config_sources"]
    except (OSError, TypeError, KeyError, yaml.YAMLError) as error:
        raise PipelineError(
            f"{sweep} is not the folder of a sweep ({NOTED}: {type(error).__name__}): "
            "give the folder that holds the jobs' folders 0, 1, 2, …"
        ) from error
    if not began.is_dir():
        raise PipelineError(
            f"{sweep} was begun in {began}, which is no longer there: relative paths would miss."
        )
    folders = [source["path"] for source in sources if source["provider"] == "command-line"]
    kept = [override for override in given if not override.startswith(OVER)]
    configs = [argument for folder in folders for argument in ("--config-dir", folder)]
    return began, [
        "-m",
        "pipeline.run",
        *configs,
        "-m",
        *kept,
        f"hydra.sweep.dir={quoted(str(sweep))}",
        *changes,
    ]


def main(arguments: Sequence[str]) -> NoReturn:
    """Become the command."""
    if not arguments or arguments[0].startswith("-"):
        sys.exit(
            "usage: python -m pipeline.sweep resume FOLDER "
            "[what is to be different, such as hydra.launcher.timeout_min=240]"
        )
    try:
        began, line = command(Path(arguments[0]).absolute(), arguments[1:])
    except PipelineError as error:
        sys.exit(str(error))
    os.chdir(began)
    path = os.pathsep.join(
        filter(None, (os.environ.get("PYTHONPATH"), str(PROJECT)))
    )  # where it is not installed
    os.execve(sys.executable, [sys.executable, *line], os.environ | {"PYTHONPATH": path})
