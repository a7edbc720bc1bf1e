"""What produced a run: versions of the packages that decide its numbers, the commit of the project, the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CPUINFO = Path("/proc/cpuinfo")
PACKAGES = {"torch": "torch", "mlflow": "mlflow", "pipeline": "curvature-pipeline"}


def versions() -> dict[str, str]:
    """Versions by name, `python` among them; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """This machine: its name, its system, and the model of its processor where Linux tells it."""
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if CPUINFO.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = f"{os.cpu_count()} × " if os.cpu_count() else ""
    return {
        "machine": platform.node() or "unknown",
        "system": f"{platform.system()} {platform.machine()}",
        "processor": cores + next(iter(models), platform.processor() or platform.machine()),
    }


def git_commit(project: Path = PROJECT) -> str | None:
    """The commit that `project` has checked out, with ` (changed)` behind it if tracked files differ from it.

    None where `project` is not itself the top of a git checkout: a package installed below somebody else's
    repository must not carry that repository's commit.
    """
    top = _git(project, "rev-parse", "--show-toplevel")
    commit = _git(project, "rev-parse", "--verify", "HEAD")
    if not top or not commit or Path(top).resolve() != project.resolve():
        return None
    changes = _git(project, "status", "--porcelain", "--untracked-files=no")
    return f"{commit} (changed)" if changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    # a git hook exports GIT_DIR and the like, which would point git away from `folder`
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
