"""Run every experiment that measures a law, and print one table of what it gives, here, and whether it holds.

    python scripts/reproduce.py                    all of them, one after another
    python scripts/reproduce.py duality symmetries  some; the others keep the verdicts that they had

Leaves docs/gallery/NAME.png (the figure of each), docs/gallery/verdicts.json and docs/gallery/verdicts.md; the runs
themselves stay in outputs/reproduce/NAME. Ends with status 1 where a law is not held or a run failed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from pipeline import open_run
from pipeline.system import print_rows

ROOT = Path(__file__).resolve().parents[1]
GALLERY = ROOT / "docs" / "gallery"
RUNS = ROOT / "outputs" / "reproduce"
HEAD = ("experiment", "check", "here", "law or value", "tolerance", "verdict", "source", "seconds")
SHORT = ("experiment", "verdict", "checks", "seconds", "law")


def experiments() -> list[str]:
    """The experiments that choose a law, in the order of their names."""
    found = []
    for path in sorted((ROOT / "conf" / "experiment").glob("*.yaml")):
        choices = yaml.safe_load(path.read_text(encoding="utf-8")).get("defaults", [])
        if any(isinstance(each, dict) and each.get("override /law") for each in choices):
            found.append(path.stem)
    return found


def verdict_of(name: str) -> dict[str, Any]:
    """Run an experiment from the beginning; its checks, or the end of what it said where it failed."""
    folder, start = RUNS / name, time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pipeline.run", f"experiment={name}", "tracking=none"]
    done = subprocess.run(
        [*command, f"hydra.run.dir={folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    seconds = round(time.perf_counter() - start, 1)
    law = open_run(folder).law if done.returncode == 0 else None
    if law is None:
        return {"held": False, "seconds": seconds, "error": (done.stdout + done.stderr).strip()[-500:]}
    shutil.copyfile(folder / "figures" / "law.png", GALLERY / f"{name}.png")
    rows = [
        dict(zip(("name", "verdict", "here", "relation", "value", "tolerance"), row, strict=True))
        for row in law.rows
    ]
    return {
        "held": law.outcome.held,
        "seconds": seconds,
        "title": law.title,
        "source": law.source,
        "sentence": law.outcome.sentence,
        "checks": rows,
    }


def rows_of(verdicts: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row a check; source and seconds stand in the first row of an experiment."""
    rows = []
    for name, verdict in verdicts.items():
        ends = [verdict.get("source", ""), f"{verdict['seconds']:.0f}"]
        if "error" in verdict:
            rows.append([name, verdict["error"].splitlines()[-1], "", "", "", "failed", *ends])
        for place, check in enumerate(verdict.get("checks", ())):
            value = f"{check['relation']} {check['value']}"
            row = [
                name if not place else "",
                check["name"],
                check["here"],
                value,
                check["tolerance"],
                check["verdict"],
            ]
            rows.append([*row, *(ends if not place else ["", ""])])
    return rows


def summary_of(name: str, verdict: dict[str, Any]) -> list[str]:
    checks = verdict.get("checks", [])
    held = f"{sum(check['verdict'] == 'held' for check in checks)} of {len(checks)}"
    word = "failed" if "error" in verdict else "held" if verdict["held"] else "not held"
    return [name, word, held, f"{verdict['seconds']:.0f}", verdict.get("title", "")]


def say(name: str, verdict: dict[str, Any]) -> None:
    """The checks of one experiment, a line each."""
    print(f"{name} ({verdict['seconds']:.0f} s): {verdict.get('sentence') or verdict['error']}")
    for check in verdict.get("checks", []):
        allowed = f" ± {check['tolerance']}" if check["tolerance"] != "0" else ""
        values = f"{check['here']} {check['relation']} {check['value']}{allowed}"
        print(f"  {check['verdict']:<9} {check['name']}: {values}", flush=True)


def markdown(verdicts: dict[str, dict[str, Any]]) -> str:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (HEAD, *rows_of(verdicts))]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(HEAD), *lines[1:]]) + "\n"


def main(names: list[str]) -> int:
    known = experiments()
    if unknown := set(names) - set(known):
        print(f"{', '.join(sorted(unknown))}: no experiment with a law; there are {', '.join(known)}.")
        return 2
    GALLERY.mkdir(parents=True, exist_ok=True)
    path = GALLERY / "verdicts.json"
    verdicts: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    start = time.perf_counter()
    for name in names or known:
        verdicts[name] = verdict_of(name)
        say(name, verdicts[name])
    verdicts = {name: verdicts[name] for name in known if name in verdicts}
    path.write_text(json.dumps(verdicts, indent=1, ensure_ascii=False) + "\n")
    (GALLERY / "verdicts.md").write_text(markdown(verdicts))
    print_rows("Laws", SHORT, [summary_of(name, verdict) for name, verdict in verdicts.items()])
    held = sum(verdict["held"] for verdict in verdicts.values())
    print(f"{held} of {len(verdicts)} laws held; {time.perf_counter() - start:.0f} s.")
    return 0 if held == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
