"""The gallery has every experiment, with its command, and with what `make reproduce` left of it."""

import json
import re

from generators.gallery import gallery
from support.command import PROJECT

EXPERIMENTS = sorted((PROJECT / "conf" / "experiment").glob("*.yaml"))
VERDICT = {
    "held": True,
    "title": "two ways to the same eigenvalues",
    "sentence": "All differences are below 1e-10.",
    "checks": [
        {
            "name": "largest | difference",
            "verdict": "held",
            "here": "3e-15",
            "relation": "=",
            "value": "0",
            "tolerance": "1e-10",
        }
    ],
}


def section(text, name):
    """The part of a page with the command of an experiment."""
    return next(part for part in text.split("\n### ") if re.search(rf"experiment={name}\b", part))


def test_every_experiment_has_its_comment_and_its_command(tmp_path):
    text = gallery(tmp_path)
    for path in EXPERIMENTS:
        shown = re.sub(r"\\(.)", r"\1", section(text, path.stem))
        lines = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
        for line in lines:
            assert line.startswith("@package") or line in shown.replace("\n", " "), path.stem
        assert "![" not in shown
        assert "| check |" not in shown


def test_a_figure_and_a_verdict_are_shown_where_they_are(tmp_path):
    (tmp_path / "duality.png").touch()
    (tmp_path / "verdicts.json").write_text(json.dumps({"duality": VERDICT}))
    shown = section(gallery(tmp_path), "duality")
    assert shown.startswith("Two ways to the same eigenvalues\n")
    assert "](duality.png)" in shown
    assert "**Held.** All differences are below 1e-10." in shown
    assert "| largest \\| difference | 3e-15 | = 0 | 1e-10 | held |" in shown
    assert "](duality.png)" not in section(gallery(tmp_path), "quick")


def test_a_law_that_is_not_held_or_failed_is_told(tmp_path):
    verdicts = {
        "duality": {**VERDICT, "held": False},
        "quick": {"held": False, "error": "no room\non the disk"},
    }
    (tmp_path / "verdicts.json").write_text(json.dumps(verdicts))
    text = gallery(tmp_path)
    assert "**Not held.**" in section(text, "duality")
    assert "**Failed.** no room on the disk" in section(text, "quick")
